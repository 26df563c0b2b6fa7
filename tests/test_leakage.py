"""The leakage gate: each kind of leak is made in a dataset whose checksums hold, and refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import datasets, tables
from tests.datasets import Recording, recording
from trainer.data.dataset_folder import open_dataset
from trainer.data.digests import row_digests
from trainer.data.leakage import LeakageError, check_dataset
from trainer.data.split_scan import scan_split
from trainer.data.storage import DatasetError
from trainer.data.verified_shards import recall_index

SPLITS = {
    "train": [recording("a", "WT", 9), recording("b", "FMR1", 9), recording("c", "WT", 5)],
    "val": [recording("d", "WT", 6), recording("e", "FMR1", 7)],
    "test": [recording("f", "WT", 6), recording("g", "FMR1", 7)],
}


def refusal(folder: Path, kind: type[DatasetError] = LeakageError) -> str:
    with pytest.raises(kind) as error:
        check_dataset(open_dataset(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_sound_datasets_pass(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    check_dataset(open_dataset(datasets.small_dataset(tmp_path_factory)))
    check_dataset(open_dataset(datasets.write_dataset(tmp_path, SPLITS)))


def test_splits_may_be_empty(tmp_path: Path) -> None:
    check_dataset(open_dataset(datasets.write_dataset(tmp_path, {"train": SPLITS["train"]})))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_session_in_two_splits(tmp_path: Path, split: str) -> None:
    # Even where no trial is shared.
    later = Recording("a", "other animal", "WT", {9: range(100, 104)})
    path = datasets.write_dataset(tmp_path, {**SPLITS, split: [*SPLITS[split], later]})
    assert f"sessions a are in train and in {split}" in refusal(path)


def test_an_animal_in_two_splits(tmp_path: Path) -> None:
    again = recording("h", "WT", 4, subject="d")
    path = datasets.write_dataset(tmp_path, {**SPLITS, "test": [*SPLITS["test"], again]})
    assert "subjects d are in val and in test" in refusal(path)


def hide_from_manifest(field: str, name: str) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        content["splits"]["test"][field].remove(name)

    return edit


def test_an_animal_that_the_manifest_does_not_tell(tmp_path: Path) -> None:
    again = recording("h", "WT", 4, subject="d")
    path = datasets.write_dataset(tmp_path, {**SPLITS, "test": [*SPLITS["test"], again]})
    datasets.edit_manifest(path, hide_from_manifest("subjects", "d"))
    assert "subjects d are in the shards of val and of test" in refusal(path)


def test_sessions_without_an_animal_are_no_leak(tmp_path: Path) -> None:
    unnamed = {
        split: [dataclasses.replace(r, subject=None) for r in recordings]
        for split, recordings in SPLITS.items()
    }
    check_dataset(open_dataset(datasets.write_dataset(tmp_path, unnamed)))


@pytest.mark.parametrize("sessions", [["a", "b"], ["a", "b", "c", "d"], ["d", "e"], []])
def test_statistics_of_other_sessions_than_train(tmp_path: Path, sessions: list[str]) -> None:
    path = datasets.write_dataset(tmp_path, SPLITS)

    def edit(content: dict[str, Any]) -> None:
        content["normalization"]["sessions"] = sessions

    datasets.edit_manifest(path, edit)
    message = refusal(path)
    assert "normalisation was not computed from exactly the train sessions" in message
    assert all(name in message for name in sorted(set("abc") ^ set(sessions))[:3])


@pytest.fixture(scope="module", params=["global", "per_frequency", "none"])
def normalised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the pipeline, with session gains."""
    folder = tmp_path_factory.mktemp("normalised")
    flags = ["--normalization", request.param, "--gain_correction", "session"]
    return datasets.make_dataset(tables.make_table(12, 4), folder, *flags)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_that_the_train_sessions_do_not_give(
    normalised: Path, tmp_path: Path, name: str
) -> None:
    path = shutil.copytree(normalised, tmp_path / "dataset")
    check_dataset(open_dataset(path))

    def change(by: float) -> Callable[[dict[str, Any]], None]:
        def edit(content: dict[str, Any]) -> None:
            stated = np.atleast_1d(content["normalization"][name])
            stated[-1] = stated[-1] * (1 + by) + by * (stated[-1] == 0)
            is_list = isinstance(content["normalization"][name], list)
            content["normalization"][name] = stated.tolist() if is_list else float(stated[0])

        return edit

    # What another program may have rounded otherwise.
    datasets.edit_manifest(path, change(1e-12 * (open_dataset(path).normalization[name] != 0)))
    check_dataset(open_dataset(path))
    datasets.edit_manifest(path, change(1e-8))
    assert f"by another {name} than that of the train sessions" in refusal(path)


def test_statistics_of_all_sessions_that_are_said_to_be_of_train(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    path = shutil.copytree(datasets.small_dataset(tmp_path_factory), tmp_path / "dataset")
    values = np.concatenate(
        [
            trial["spectrogram"].astype(np.float64).ravel()
            for split in SPLITS
            for trial in datasets.read_trials(path, split).values()
        ]
    )

    def edit(content: dict[str, Any]) -> None:
        norm = content["normalization"]
        norm["mean"] += norm["std"] * values.mean()
        norm["std"] *= values.std()

    datasets.edit_manifest(path, edit)
    assert "by another mean than that of the train sessions" in refusal(path)


@pytest.mark.parametrize("method", ["z-score", None])
def test_an_unknown_normalisation(tmp_path: Path, method: str | None) -> None:
    path = datasets.write_dataset(tmp_path, SPLITS)
    datasets.edit_manifest(
        path, lambda content: content["normalization"].update(normalization=method)
    )
    assert "do not say what the values were normalised by" in refusal(path, DatasetError)


def test_every_file_beside_the_shards_is_the_one_of_the_manifest(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    path = shutil.copytree(datasets.small_dataset(tmp_path_factory), tmp_path / "dataset")
    names = open_dataset(path).files
    assert {"spectrogram_norm_stats.json", "sessions.parquet", "train.json"} <= set(names)
    for name in names:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content + b" ")
        assert f"{path / name} is not the file that dataset.json lists" in refusal(
            path, DatasetError
        )
        (path / name).unlink()
        assert f"{path / name} is missing" in refusal(path, DatasetError)
        (path / name).write_bytes(content)
    check_dataset(open_dataset(path))


@pytest.mark.parametrize("member", ["spectrogram", "baseline"])
@pytest.mark.parametrize(("one", "other"), [("a-000001", "f-000000"), ("d-000000", "g-000001")])
def test_the_same_values_in_two_splits(tmp_path: Path, member: str, one: str, other: str) -> None:
    values = np.random.default_rng(9).standard_normal((3, 8))

    def plant(sample: Any) -> Any:
        if sample.key not in (one, other):
            return sample
        array = getattr(sample, member).copy()
        # Different places in their blocks.
        row = 0 if sample.key == one else 2
        array[row] = values if member == "spectrogram" else values[:, 0]
        return dataclasses.replace(sample, **{member: array})

    path = datasets.write_dataset(tmp_path, SPLITS, plant, shape=(3, 8))
    if member == "baseline":
        # Three frequencies are 12 bytes, which may be equal by chance.
        check_dataset(open_dataset(path))
        return
    first, second = (int(key[-1]) * 4 + row for key, row in ((one, 0), (other, 2)))
    message = refusal(path)
    assert "have the same spectrogram" in message
    assert f"trial {first} of session {one[0]}" in message
    assert f"trial {second} of session {other[0]}" in message


def test_the_same_baseline_in_two_splits(tmp_path: Path) -> None:
    """As of one trace in two sessions, each with a gain of its own subtracted."""

    def plant(sample: Any) -> Any:
        if sample.key not in ("b-000000", "e-000001"):
            return sample
        baseline = sample.baseline.copy()
        baseline[1] = np.arange(8)
        return dataclasses.replace(sample, baseline=baseline)

    path = datasets.write_dataset(tmp_path, SPLITS, plant, shape=(8, 3))
    assert "train and val have the same baseline in 1 trial, such as" in refusal(path)


def test_trials_of_one_value_are_no_copies_of_each_other(tmp_path: Path) -> None:
    def flat(sample: Any) -> Any:
        return dataclasses.replace(sample, spectrogram=np.ones_like(sample.spectrogram))

    check_dataset(open_dataset(datasets.write_dataset(tmp_path, SPLITS, flat)))


def test_digests_tell_rows_apart() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 4, 8)).astype(np.float16)
    rows[3] = rows[1]
    rows[4] = rows[4, 0, 0]
    found = [bytes(digest) for digest in row_digests(rows)]
    assert found[1] == found[3]
    assert len({*found[:3]}) == 3
    assert found[4] == bytes(16) not in found[:4]


@pytest.mark.parametrize("condition", ["WT", "FMR1"])
def test_a_class_that_is_missing_from_train(tmp_path: Path, condition: str) -> None:
    only = [r for r in SPLITS["train"] if r.condition != condition]
    path = datasets.write_dataset(tmp_path, {**SPLITS, "train": only})
    assert f"train has no trials of class {condition}" in refusal(path, DatasetError)


def test_a_damaged_split_that_is_not_even_loaded(tmp_path: Path) -> None:
    path = datasets.write_dataset(tmp_path, SPLITS)
    shard = path / open_dataset(path).splits["test"].shards[1].path
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert f"{shard} is not the file" in refusal(path, DatasetError)
    shard.unlink()
    assert f"{shard} is missing" in refusal(path, DatasetError)


# --- What is remembered ---------------------------------------------------------------------------


def test_shards_that_were_verified_are_not_read_again_until_they_change(tmp_path: Path) -> None:
    path = datasets.write_dataset(tmp_path / "dataset", SPLITS)
    cache, read = tmp_path / "cache", list[int]()
    folder = open_dataset(path)
    check_dataset(folder, cache=cache, advance=read.append)
    assert sum(read) == sum(split.trials for split in folder.splits.values())

    read.clear()
    check_dataset(folder, cache=cache, advance=read.append)
    assert not read

    os.utime(path / folder.splits["val"].shards[0].path, (1, 1))
    check_dataset(folder, cache=cache, advance=read.append)
    assert sum(read) == folder.splits["val"].trials


def test_what_is_remembered_is_what_was_read(tmp_path: Path) -> None:
    folder = open_dataset(datasets.write_dataset(tmp_path / "dataset", SPLITS))
    check_dataset(folder, cache=tmp_path)
    for split in ("train", "val"):
        read, recalled = scan_split(folder, split), recall_index(folder, split, tmp_path)
        assert recalled is not None
        assert recalled.trials.sessions == read.trials.sessions
        for name in ("first_row", "shard", "offset", "spectrogram_digest", "baseline_digest"):
            np.testing.assert_array_equal(getattr(recalled, name), getattr(read, name))
        for name in ("session", "trial_num", "labels"):
            np.testing.assert_array_equal(
                getattr(recalled.trials, name), getattr(read.trials, name)
            )


def test_another_dataset_in_the_same_place_is_read(tmp_path: Path) -> None:
    folder = open_dataset(datasets.write_dataset(tmp_path / "dataset", SPLITS))
    check_dataset(folder, cache=tmp_path)
    datasets.edit_manifest(tmp_path / "dataset", lambda content: content["options"].update(seed=1))
    assert recall_index(folder, "val", tmp_path) is not None
    assert recall_index(open_dataset(folder.url), "val", tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_memory_is_none(tmp_path: Path, content: bytes) -> None:
    folder = open_dataset(datasets.write_dataset(tmp_path / "dataset", SPLITS))
    (tmp_path / "verified-test.npz").write_bytes(content)
    assert recall_index(folder, "test", tmp_path) is None
    check_dataset(folder, cache=tmp_path)
    assert recall_index(folder, "test", tmp_path) is not None
