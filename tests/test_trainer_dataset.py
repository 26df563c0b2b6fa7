"""Dataset folders opened and read: what they hold, and every way in which they can be broken."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest

from tests import datasets
from trainer.data.dataset_folder import DatasetFolder, open_dataset
from trainer.data.shard_reader import read_blocks
from trainer.data.split_scan import scan_split
from trainer.data.storage import DatasetError
from trainer.errors import TrainerError

TWO_SESSIONS = {
    "train": [datasets.recording("a", "WT", 10), datasets.recording("b", "FMR1", 7)],
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.small_dataset(tmp_path_factory)


@pytest.fixture
def copied(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "dataset"))


def one_line(error: pytest.ExceptionInfo[TrainerError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def scan_error(folder: Path, split: str = "train") -> str:
    with pytest.raises(DatasetError) as error:
        scan_split(open_dataset(folder), split)
    return one_line(error)


# --- What it holds --------------------------------------------------------------------------------


def test_a_dataset_is_what_its_manifest_says(original: Path) -> None:
    manifest = json.loads((original / "dataset.json").read_text())
    folder = open_dataset(original)
    assert folder.url == str(original)
    assert folder.fingerprint == manifest["sha256"]
    assert list(folder.classes) == manifest["classes"]
    assert folder.freqs.tolist() == manifest["freqs"]
    assert folder.times.tolist() == manifest["times"]
    assert [folder.block_trials, *folder.shape] == manifest["shape"]
    assert folder.normalization == manifest["normalization"]
    for name, split in manifest["splits"].items():
        found = folder.splits[name]
        assert [dataclasses.asdict(shard) for shard in found.shards] == split["shards"]
        assert list(found.sessions) == split["sessions"]
        assert list(found.subjects) == split["subjects"]
        assert (found.trials, found.trials_per_class) == (
            split["trials"],
            split["trials_per_class"],
        )


def check_index(folder: DatasetFolder, path: Path, split: str) -> None:
    """Compare a scan with what WebDataset reads and with the shards' bytes."""
    expected = datasets.read_trials(path, split)
    found: dict[int, np.ndarray] = {}

    def keep(first_row: int, block: Any) -> None:
        found.update(enumerate(block.spectrogram, start=first_row))

    index = scan_split(folder, split, keep)
    trials = index.trials
    keys = [
        (trials.sessions[session], int(trial_num))
        for session, trial_num in zip(trials.session, trials.trial_num, strict=True)
    ]
    assert keys == sorted(expected)
    for row, key in enumerate(keys):
        spectrogram = expected[key]["spectrogram"]
        np.testing.assert_array_equal(found[row], spectrogram)
        assert trials.labels[trials.session[row]] == expected[key]["label"]
        assert trials.subjects[trials.session[row]] == expected[key]["subject"]
        block = int(index.block_of(np.array([row]))[0])
        inside = row - int(index.first_row[block])
        shard = folder.splits[split].shards[index.shard[block]].path
        start = int(index.offset[block]) + inside * folder.trial_bytes
        content = (path / shard).read_bytes()[start : start + folder.trial_bytes]
        assert content == spectrogram.tobytes()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_scan_finds_every_trial_where_its_bytes_are(original: Path, split: str) -> None:
    check_index(open_dataset(original), original, split)


def test_names_that_need_long_tar_headers_and_odd_blocks(tmp_path: Path) -> None:
    blocks = {0: [3, 4], 2: [10], 7: [11, 12, 15, 20]}
    odd = datasets.Recording("né.e/" * 30, None, "WT", blocks)
    path = datasets.write_dataset(
        tmp_path, {"train": [odd, datasets.recording("b", "FMR1", 9)], "val": [], "test": []}
    )
    check_index(open_dataset(path), path, "train")


def test_a_remote_store_is_read_like_a_disk(original: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(original), "/remote/dataset", recursive=True)
    try:
        remote = open_dataset("memory://remote/dataset/")
        assert remote.fingerprint == open_dataset(original).fingerprint
        check_index(remote, original, "val")
        memory.pipe_file(f"/remote/dataset/{remote.splits['val'].shards[1].path}", b"short")
        with pytest.raises(DatasetError, match=r"val-00001.*ends early, after 5 of"):
            remote.shard_states("val")
        with pytest.raises(DatasetError, match=r"val-00001.*ends early, after 5 of"):
            scan_split(remote, "val")
        with pytest.raises(DatasetError, match=r"memory://nowhere has no dataset\.json"):
            open_dataset("memory://nowhere")
    finally:
        memory.rm("/remote", recursive=True)


def test_a_scan_counts_every_trial_once(original: Path) -> None:
    folder, counted = open_dataset(original), list[int]()
    scan_split(folder, "train", advance=counted.append)
    assert sum(counted) == folder.splits["train"].trials


# --- No dataset, or a broken manifest -------------------------------------------------------------


@pytest.mark.parametrize("where", ["missing", ".", "file.txt"])
def test_no_dataset(tmp_path: Path, where: str) -> None:
    (tmp_path / "file.txt").touch()
    with pytest.raises(DatasetError) as error:
        open_dataset(tmp_path / where)
    assert "has no dataset.json: it is no dataset folder" in one_line(error)


def test_an_unknown_kind_of_store() -> None:
    with pytest.raises(DatasetError, match="nosuch://x cannot be opened") as error:
        open_dataset("nosuch://x")
    one_line(error)


def edited(content: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps(content | fields).encode()


def resealed(content: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps(datasets.sealed(content | fields)).encode()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "is damaged"),
        (lambda content: b"[1]", "is damaged"),
        (lambda content: b"\xff\xfe", "is damaged"),
        (lambda content: json.dumps(content).encode()[:-100], "is damaged"),
        (lambda content: b"{}", "is damaged"),
        (lambda content: edited(content, format_version=9), "is of format 9; this program reads 1"),
        (lambda content: edited(content, classes=["WT", "FMR1"]), "was edited"),
        (lambda content: resealed(content, dtype="float32"), "no manifest of format 1"),
        (lambda content: resealed(content, shape=[4, 1, 1]), "no manifest of format 1"),
        (lambda content: resealed(content, splits={}), "no manifest of format 1"),
        (lambda content: resealed(content, splits=None), "no manifest of format 1"),
    ],
)
def test_a_broken_manifest(
    copied: Path, damage: Callable[[dict[str, Any]], bytes], message: str
) -> None:
    content = json.loads((copied / "dataset.json").read_text())
    (copied / "dataset.json").write_bytes(damage(content))
    with pytest.raises(DatasetError, match=message) as error:
        open_dataset(copied)
    assert str(copied / "dataset.json") in one_line(error)


def test_a_sessions_table_that_was_exchanged(copied: Path) -> None:
    with (copied / "sessions.parquet").open("ab") as file:
        file.write(b"x")
    assert "sessions.parquet is not the file that dataset.json lists" in scan_error(copied)
    (copied / "sessions.parquet").unlink()
    assert "sessions.parquet is missing" in scan_error(copied)


def test_a_sessions_table_that_contradicts_the_manifest(copied: Path) -> None:
    datasets.edit_manifest(copied, lambda content: content["splits"]["train"]["sessions"].pop())
    assert "sessions.parquet does not fit the manifest" in scan_error(copied)


# --- Broken shards --------------------------------------------------------------------------------


def shard_of(folder: Path, number: int = 1) -> Path:
    return folder / open_dataset(folder).splits["train"].shards[number].path


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5, 0.99])
def test_a_shard_that_ends_early(copied: Path, keep: float) -> None:
    shard = shard_of(copied)
    content = shard.read_bytes()
    kept = int(keep * len(content))
    shard.write_bytes(content[:kept])
    expected = (
        f"{shard} ends early, after {kept:,} of {len(content):,} bytes: copy the dataset again"
    )
    assert scan_error(copied) == expected
    with pytest.raises(DatasetError, match="ends early"):
        open_dataset(copied).shard_states("train")


def test_a_shard_that_ends_early_between_two_members(copied: Path) -> None:
    shard = shard_of(copied)
    folder = open_dataset(copied)
    blocks = list(read_blocks(folder, folder.splits["train"].shards[1]))
    # The headers of a member and of its array come right before the values.
    shard.write_bytes(shard.read_bytes()[: blocks[2].offset - 128 - 512])
    assert f"{shard} ends early" in scan_error(copied)


def test_a_missing_shard(copied: Path) -> None:
    shard = shard_of(copied)
    shard.unlink()
    assert scan_error(copied) == f"{shard} is missing: copy the dataset again"
    with pytest.raises(DatasetError, match="is missing"):
        open_dataset(copied).shard_states("train")


@pytest.mark.parametrize("place", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_a_shard_with_one_wrong_bit(copied: Path, place: float) -> None:
    shard = shard_of(copied)
    content = bytearray(shard.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    shard.write_bytes(content)
    error = scan_error(copied)
    assert f"{shard} is not the file that dataset.json lists (its sha256 differs)" in error


@pytest.mark.parametrize("text", [b'"session":"s', b'"trial_num":[1', b'"block":0'])
def test_a_wrong_bit_that_makes_a_sound_sample(copied: Path, text: bytes) -> None:
    """The advice is to copy the dataset, not to run the pipeline again."""
    shard = shard_of(copied)
    content = bytearray(shard.read_bytes())
    content[content.index(text) + len(text) - 1] ^= 1
    shard.write_bytes(content)
    assert "its sha256 differs): copy the dataset again" in scan_error(copied)


def test_a_shard_that_is_too_long(copied: Path) -> None:
    shard = shard_of(copied)
    with shard.open("ab") as file:
        file.write(bytes(512))
    assert "is not the file that dataset.json lists" in scan_error(copied)
    with pytest.raises(DatasetError, match=r"bytes, dataset\.json says"):
        open_dataset(copied).shard_states("train")


def test_shards_of_equal_size_that_were_exchanged(copied: Path) -> None:
    folder = open_dataset(copied)
    one, other = (copied / shard.path for shard in folder.splits["train"].shards[:2])
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert "ends early" in (error := scan_error(copied)) or "sha256" in error


# --- Shards whose checksums hold, and that are wrong nevertheless ---------------------------------


def with_metadata(**fields: Any) -> Callable[[Any], Any]:
    """Change the first block of session a."""

    def change(sample: Any) -> Any:
        if sample.key != "a-000000":
            return sample
        return dataclasses.replace(sample, metadata=sample.metadata | fields)

    return change


def with_spectrogram(spectrogram: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], Any]:
    def change(sample: Any) -> Any:
        if sample.key != "a-000000":
            return sample
        return dataclasses.replace(sample, spectrogram=spectrogram(sample.spectrogram))

    return change


def with_baseline(value: float) -> Callable[[Any], Any]:
    def change(sample: Any) -> Any:
        return dataclasses.replace(sample, baseline=np.full_like(sample.baseline, value))

    return change


def with_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.arange(values.size).reshape(values.shape) == 5, np.float16(np.nan), values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_metadata(trial_num=[0, 2, 1, 3]), "not 1 to 4 ascending numbers"),
        (with_metadata(trial_num=[0, 1, 2]), "an array is float16"),
        (with_metadata(trial_num=list(range(9))), "not 1 to 4 ascending numbers"),
        (with_metadata(trial_num=[90, 91, 92, 93]), "session a: trial 4 is out of order"),
        (with_metadata(session="z"), "block 0 of session z is none of train"),
        (with_metadata(block=7), "block 7 of session a is none of train"),
        (with_metadata(block=1), "block 1 of session a comes twice"),
        (with_metadata(condition="FMR1"), "another subject or condition than its session"),
        (with_metadata(subject="b"), "another subject or condition than its session"),
        (with_spectrogram(with_nan), "not finite"),
        (with_baseline(np.inf), "not finite"),
        (with_spectrogram(lambda x: x.astype(np.float32)), "an array is float32"),
        (with_spectrogram(lambda x: x[:, :-1]), r"an array is float16 \(4, 2, 8\)"),
    ],
)
def test_a_shard_that_holds_what_it_should_not(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    path = datasets.write_dataset(tmp_path, TWO_SESSIONS, change, n_shards=1)
    with pytest.raises(DatasetError, match=message) as error:
        scan_split(open_dataset(path), "train")
    assert "train" in one_line(error)


class Trap:
    """Leaves a trace where it is unpickled."""

    ran: ClassVar[list[int]] = []

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Trap.ran.append, (1,)


def rewrite_shard(
    folder: Path, change: Callable[[str, bytes], bytes] = lambda name, content: content, **tar: Any
) -> None:
    """Write the only train shard anew by tarfile, and make the manifest fit it."""
    shard = shard_of(folder, 0)
    with tarfile.open(shard) as file:
        members = {info.name: file.extractfile(info) for info in file}
        contents = {name: member.read() for name, member in members.items() if member is not None}
    with tarfile.open(shard, "w", **tar) as file:
        for name, content in contents.items():
            changed = change(name, content)
            info = tarfile.TarInfo(name)
            info.size = len(changed)
            file.addfile(info, io.BytesIO(changed))

    def describe(content: dict[str, Any]) -> None:
        content["splits"]["train"]["shards"][0] |= {
            "bytes": shard.stat().st_size,
            "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
        }

    datasets.edit_manifest(folder, describe)


def test_a_tar_in_which_bytes_lie_elsewhere(tmp_path: Path) -> None:
    path = datasets.write_dataset(tmp_path, TWO_SESSIONS, n_shards=1)
    rewrite_shard(path, format=tarfile.GNU_FORMAT)
    check_index(open_dataset(path), path, "train")
    rewrite_shard(path, format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"})
    assert "is no plain GNU tar archive" in scan_error(path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = datasets.write_dataset(tmp_path, TWO_SESSIONS, n_shards=1)
    pickled = io.BytesIO()
    np.save(pickled, np.array([Trap()]), allow_pickle=True)
    rewrite_shard(
        path, lambda name, content: pickled.getvalue() if "spectrogram" in name else content
    )
    assert "allow_pickle=False" in scan_error(path)
    assert not Trap.ran


def test_a_block_that_is_in_no_shard(tmp_path: Path) -> None:
    path = datasets.write_dataset(tmp_path, TWO_SESSIONS, n_shards=2)

    def leave_out(content: dict[str, Any]) -> None:
        content["splits"]["train"]["shards"].pop()

    datasets.edit_manifest(path, leave_out)
    assert "is in no shard" in scan_error(path)
