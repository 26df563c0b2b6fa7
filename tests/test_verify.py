"""Each kind of damage is done to a small dataset of the real pipeline, found, and named."""

import argparse
import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipeline import dataset_run
from beam_pipeline.blocks import block_key
from beam_pipeline.errors import UsageError
from beam_pipeline.launchers.local import LocalLauncher
from beam_pipeline.manifest import Manifest, ManifestError, SplitManifest
from beam_pipeline.options import DatasetOptions, options_fingerprint
from beam_pipeline.sample.command import write_sample
from beam_pipeline.sample.options import SampleOptions
from beam_pipeline.shards import Sample, manifest_entry, write_shard
from beam_pipeline.sources.parquet import ParquetSource
from beam_pipeline.spectrogram import SpectrogramOptions
from beam_pipeline.verify import command as verify
from beam_pipeline.verify.block_report import SampleRules, row_digests
from beam_pipeline.verify.shard_report import inspect_shard
from beam_pipeline.verify.statistics_checks import recover_moments

ROOT = Path(__file__).resolve().parents[1]
SFREQ = 250.0
TRAIN = "train/lfp-train-00000-of-00002.tar"
TRAIN_1 = "train/lfp-train-00001-of-00002.tar"
VAL = "val/lfp-val-00000-of-00002.tar"
TEST = "test/lfp-test-00000-of-00002.tar"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    options = SampleOptions(sessions=12, trials=10, sfreq=SFREQ, bad_fraction=0.1)
    write_sample(options, folder)
    return ParquetSource(str(folder))


def make_dataset(source: ParquetSource, output: Path, **options: Any) -> Path:
    chosen = DatasetOptions(
        SpectrogramOptions(SFREQ, **options.pop("spectrogram", {})),
        columns={},
        max_reject_fraction=0.5,
        block_trials=4,
        **options,
    )
    dataset_run.make_dataset(source, chosen, output, LocalLauncher(["--direct_num_workers", "1"]))
    return output


@pytest.fixture(scope="module")
def original(table, tmp_path_factory):
    return make_dataset(table, tmp_path_factory.mktemp("made") / "dataset", num_shards=2)


@pytest.fixture
def dataset(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "dataset"))


# --- Doing damage ---------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
    del content["sha256"]
    return content


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write a manifest whose seal holds."""
    splits = {name: SplitManifest(**split) for name, split in content["splits"].items()}
    manifest = Manifest(**{**content, "splits": splits})
    (folder / "dataset.json").write_text(manifest.to_json())


def digest(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def reseal(folder: Path, edit: Callable[[dict[str, Any]], object] = lambda content: None) -> None:
    """Edit the manifest, and make it fit the files as they are now."""
    content = read_manifest(folder)
    edit(content)
    for split, described in content["splits"].items():
        index = json.loads((folder / f"{split}.json").read_text())
        index["shardlist"] = []
        for shard in described["shards"]:
            path = folder / shard["path"]
            shard |= digest(path)
            index["shardlist"].append(
                {
                    "url": shard["path"],
                    "nsamples": shard["samples"],
                    "filesize": shard["bytes"],
                    "md5sum": hashlib.md5(path.read_bytes()).hexdigest(),
                }
            )
        (folder / f"{split}.json").write_text(json.dumps(index, indent=1) + "\n")
    content["files"] = {name: digest(folder / name) for name in content["files"]}
    write_manifest(folder, content)


def read_members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            yield info, file.read()


def read_shard(path: Path) -> list[Sample]:
    samples: dict[str, dict[str, bytes]] = {}
    for info, content in read_members(path):
        key, _, member = info.name.partition(".")
        samples.setdefault(key, {})[member] = content
    return [
        Sample(
            key,
            np.load(io.BytesIO(members["spectrogram.npy"])),
            np.load(io.BytesIO(members["baseline.npy"])),
            json.loads(members["json"]),
        )
        for key, members in samples.items()
    ]


def rewrite(folder: Path, path: str, samples: Iterable[Sample]) -> None:
    """Write a shard anew and make all that describes it fit."""
    entry = manifest_entry(write_shard(folder, path, samples))

    def edit(content: dict[str, Any]) -> None:
        for split in content["splits"].values():
            for shard in split["shards"]:
                if shard["path"] == path:
                    shard |= entry
            split["samples"] = sum(shard["samples"] for shard in split["shards"])
            split["trials"] = sum(shard["trials"] for shard in split["shards"])

    reseal(folder, edit)


def edit_sample(folder: Path, path: str, edit: Callable[[Sample], Sample], index: int = 0) -> str:
    """Change one sample of a shard, consistently; return its key."""
    samples = read_shard(folder / path)
    key = samples[index].key
    samples[index] = edit(samples[index])
    rewrite(folder, path, samples)
    return key


def edit_json(folder: Path, path: str, **changes: Any) -> None:
    edit_sample(folder, path, lambda s: dataclasses.replace(s, metadata={**s.metadata, **changes}))


def edit_sessions(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    table = pq.read_table(folder / "sessions.parquet")
    rows = table.to_pylist()
    for row in rows:
        edit(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "sessions.parquet")


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# --- A sound dataset ------------------------------------------------------------------------------


def run(folder: Path, workers: int = 1) -> int:
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return verify.run(parser.parse_args([str(folder), "--workers", str(workers)]))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_undamaged_dataset_is_sound(original, capsys, workers):
    status = run(original, workers)

    manifest = read_manifest(original)
    n_trials = sum(split["trials"] for split in manifest["splits"].values())
    assert status == 0
    assert f"{n_trials} trials of 12 sessions" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        {"gain_correction": "session", "normalization": "per_frequency"},
        {"normalization": "none", "shard_mb": 0.05},
        {"spectrogram": {"baseline_mode": "zscore"}},
        {"spectrogram": {"n_freqs": 1, "log_floor": 1e9}, "normalization": "none"},
    ],
    ids=["gain", "raw", "zscore", "no-power-above-the-floor"],
)
def test_every_kind_of_dataset_is_sound(table, tmp_path, options):
    assert verify.verify(make_dataset(table, tmp_path / "dataset", **options)).problems == []


def test_run_json_may_differ_or_be_absent(dataset):
    (dataset / "run.json").write_text("{}")
    assert verify.verify(dataset).problems == []
    (dataset / "run.json").unlink()
    assert verify.verify(dataset).problems == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nothing", r"is not there; pass the --output of preprocess"),
        ("empty folder", r"has no dataset\.json: it is no dataset, or its run did not finish"),
        ("file", r"is a file, and no dataset folder; pass the --output of preprocess"),
    ],
)
def test_what_is_no_dataset_is_said_in_one_line(tmp_path, kind, said):
    path = tmp_path / "x"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "file":
        path.touch()

    with pytest.raises(ManifestError, match=rf"^.*x {said}$"):
        run(path)


# --- Files that are not as the manifest says ------------------------------------------------------


def damage_byte(folder: Path) -> None:
    flip_byte(folder / TRAIN, 512 + 128 + 1000)


def damage_header(folder: Path) -> None:
    second = read_shard(folder / TRAIN)[1].key
    flip_byte(folder / TRAIN, (folder / TRAIN).read_bytes().index(second.encode()) + 120)


def damage_end(folder: Path) -> None:
    content = (folder / TRAIN).read_bytes()
    (folder / TRAIN).write_bytes(content[: len(content) // 2])


def swap_folders(folder: Path) -> None:
    (folder / "train").rename(folder / "x")
    (folder / "test").rename(folder / "train")
    (folder / "x").rename(folder / "test")


def swap_contents(folder: Path) -> None:
    for a, b in zip(
        sorted((folder / "train").iterdir()), sorted((folder / "test").iterdir()), strict=True
    ):
        content = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(content)


def edit_manifest_text(folder: Path) -> None:
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"gain_correction": "none"', '"gain_correction": "x"'))


CHANGED: dict[str, tuple[Callable[[Path], object], dict[str, set[str]]]] = {
    "byte in a shard": (damage_byte, {TRAIN: {"checksum"}}),
    "tar header": (damage_header, {TRAIN: {"checksum", "archive", "samples", "keys"}}),
    "truncated shard": (damage_end, {TRAIN: {"size", "checksum", "archive", "samples", "keys"}}),
    "missing shard": (lambda folder: (folder / TRAIN).unlink(), {TRAIN: {"missing"}}),
    "missing file": (lambda folder: (folder / "val.json").unlink(), {"val.json": {"missing"}}),
    "card": (lambda folder: (folder / "README.md").write_text(""), {"README.md": {"checksum"}}),
    "sessions": (
        lambda folder: flip_byte(folder / "sessions.parquet", 99),
        {"sessions.parquet": {"checksum"}},
    ),
    "stats": (
        lambda folder: (folder / "spectrogram_norm_stats.json").write_text("{}"),
        {"spectrogram_norm_stats.json": {"checksum"}},
    ),
    "index": (lambda folder: flip_byte(folder / "test.json", 30), {"test.json": {"checksum"}}),
    "rejects": (
        lambda folder: (folder / "rejects/flat.jsonl").write_text(""),
        {"rejects/flat.jsonl": {"checksum"}},
    ),
    "extra file": (lambda folder: (folder / "train/x.tar").touch(), {"train/x.tar": {"stray"}}),
    "edited manifest": (edit_manifest_text, {"dataset.json": {"manifest"}}),
    "no json": (
        lambda folder: (folder / "dataset.json").write_text("{"),
        {"dataset.json": {"manifest"}},
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_file_is_named_and_nothing_else(dataset, name):
    damage, expected = CHANGED[name]
    damage(dataset)

    found: dict[str, set[str]] = {}
    for problem in verify.verify(dataset).problems:
        found.setdefault(problem.where, set()).add(problem.check)

    assert found == expected


def test_swapped_split_folders_are_missing_and_stray(dataset):
    swap_folders(dataset)

    problems = {(problem.check, problem.where) for problem in verify.verify(dataset).problems}

    assert {("missing", TRAIN), ("stray", TRAIN.replace("train/", "test/"))} <= problems


def test_swapped_shard_contents_are_named_by_split(dataset):
    swap_contents(dataset)
    key = read_shard(dataset / TRAIN)[0].key

    problems = {(problem.check, problem.where) for problem in verify.verify(dataset).problems}

    assert {("checksum", TRAIN), ("checksum", TEST), ("split", f"{TRAIN}: {key}")} <= problems


@pytest.mark.parametrize("name", ["[b]odd.txt", "[%WT].txt", ":smile:.txt", "a\\[b]"])
def test_all_problems_are_printed_and_then_it_fails(dataset, capsys, name):
    damage_byte(dataset)
    (dataset / name).touch()

    with pytest.raises(verify.DamagedDatasetError, match=r"is damaged: 2 problems$"):
        run(dataset)

    printed = capsys.readouterr().out
    assert "2 problems" in printed
    assert name in printed


def test_names_that_begin_with_a_dot_are_no_strays(dataset):
    (dataset / ".DS_Store").touch()
    (dataset / "train" / ".nfs0001").touch()
    (dataset / ".work-abc" / "segments").mkdir(parents=True)
    (dataset / ".work-abc" / "segments" / "x").touch()
    (dataset / "notes").mkdir()
    (dataset / "notes" / "x.txt").touch()

    found = [(problem.check, problem.where) for problem in verify.verify(dataset).problems]

    assert found == [("stray", "notes/x.txt")]


@pytest.mark.parametrize("workers", [0, -2])
def test_a_number_of_workers_that_is_none_is_wrong_usage(dataset, workers):
    with pytest.raises(UsageError, match=f"^--workers is {workers}"):
        run(dataset, workers)


def test_a_damaged_sample_is_named_beside_its_shard(dataset):
    key = read_shard(dataset / TRAIN)[0].key
    # The first byte after the tar header is the npy magic.
    flip_byte(dataset / TRAIN, 512)

    problems = {(problem.check, problem.where) for problem in verify.verify(dataset).problems}

    assert problems == {("checksum", TRAIN), ("decoding", f"{TRAIN}: {key}.spectrogram.npy")}


# --- Damage under a seal that holds ---------------------------------------------------------------


def set_nan(member: str) -> Callable[[Sample], Sample]:
    def edit(sample: Sample) -> Sample:
        values = getattr(sample, member).copy()
        values[-1, 3] = np.nan
        return dataclasses.replace(sample, **{member: values})

    return edit


def edit_counts(content: dict[str, Any]) -> None:
    content["splits"]["val"]["trials"] += 1
    content["source"]["rows"] += 1


def edit_class_counts(content: dict[str, Any]) -> None:
    counts = content["splits"]["val"]["trials_per_class"]
    counts["WT"], counts["FMR1"] = counts["WT"] + 1, counts["FMR1"] - 1


def edit_options(content: dict[str, Any], refingerprint: bool) -> None:
    content["options"]["tmax"] = 2.5
    if refingerprint:
        content["fingerprint"] = options_fingerprint(content["options"])


def point_outside(content: dict[str, Any]) -> None:
    content["splits"]["train"]["shards"][0]["path"] = f"train/../{VAL}"


def move_split(content: dict[str, Any]) -> None:
    moved = content["splits"]["val"]["sessions"].pop()
    content["splits"]["train"]["sessions"].append(moved)


def repeat_session(content: dict[str, Any]) -> None:
    splits = content["splits"]
    splits["test"]["sessions"] = sorted([*splits["test"]["sessions"], splits["val"]["sessions"][0]])


def repeat_subject(content: dict[str, Any]) -> None:
    splits = content["splits"]
    splits["test"]["subjects"] = sorted([*splits["test"]["subjects"], splits["val"]["subjects"][0]])


def set_stats(folder: Path, **changes: Any) -> None:
    path = folder / "spectrogram_norm_stats.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    reseal(folder, lambda content: content["normalization"].update(changes))


def replace_stats_file(folder: Path) -> None:
    (folder / "spectrogram_norm_stats.json").write_text("[]")
    reseal(folder)


def stats_that_saw_val(folder: Path) -> None:
    """Mean, std and count as they would be over train and val together."""
    rows = pq.read_table(folder / "sessions.parquet").to_pylist()
    seen = [row for row in rows if row["split"] in ("train", "val")]
    count = sum(row["count"] * len(row["sum"]) for row in seen)
    mean = sum(float(value) for row in seen for value in row["sum"]) / 2**128 / count
    square = sum(float(value) for row in seen for value in row["sum_squares"]) / 2**128 / count
    set_stats(folder, mean=mean, std=(square - mean**2) ** 0.5, count=count)


def add_to_sessions(folder: Path, **changes: int) -> None:
    """Change numbers in the first row of the table of sessions."""

    def edit(row: dict[str, Any]) -> None:
        if row["session"] == "session-00001":
            for name, change in changes.items():
                # Decimals would round a sum to 28 digits.
                row[name] = type(row[name])(int(row[name]) + change)

    edit_sessions(folder, edit)
    reseal(folder)


def shift_moments(folder: Path) -> None:
    """Move a session's sums by 1 % of a standard deviation, as another set of trials would."""
    std = read_manifest(folder)["normalization"]["std"]

    def edit(row: dict[str, Any]) -> None:
        if row["session"] == "session-00003":
            change = int(0.01 * std * row["count"] * 2**128)
            row["sum"] = [Decimal(int(value) + change) for value in row["sum"]]

    edit_sessions(folder, edit)
    reseal(folder)


def exchange_train_and_test(folder: Path) -> None:
    """Exchange the splits everywhere: names, index, table, manifest."""
    other = {"train": "test", "test": "train", "val": "val"}
    for split in ("train", "test"):
        (folder / split).rename(folder / f"old-{split}")
    for split in ("train", "test"):
        (folder / other[split]).mkdir()
        for path in (folder / f"old-{split}").iterdir():
            path.rename(folder / other[split] / path.name.replace(split, other[split]))
        (folder / f"old-{split}").rmdir()
    edit_sessions(folder, lambda row: row.update(split=other[row["split"]]))

    def edit(content: dict[str, Any]) -> None:
        old = content["splits"]
        for split, described in old.items():
            for shard in described["shards"]:
                shard["path"] = shard["path"].replace(split, other[split])
        content["splits"] = {split: old[other[split]] for split in old}

    reseal(folder, edit)


def exchange_table_only(folder: Path) -> None:
    other = {"train": "test", "test": "train", "val": "val"}
    edit_sessions(folder, lambda row: row.update(split=other[row["split"]]))
    reseal(folder)


def copy_trial(folder: Path) -> None:
    """Put a train trial's arrays in the place of a val trial."""
    first = read_shard(folder / TRAIN)[0]

    def edit(sample: Sample) -> Sample:
        spectrogram, baseline = sample.spectrogram.copy(), sample.baseline.copy()
        spectrogram[0], baseline[0] = first.spectrogram[-1], first.baseline[-1]
        return dataclasses.replace(sample, spectrogram=spectrogram, baseline=baseline)

    edit_sample(folder, VAL, edit)


def copy_sample(folder: Path) -> None:
    """Append a train sample to a val shard."""
    first = read_shard(folder / TRAIN)[0]
    rewrite(folder, VAL, [*read_shard(folder / VAL), first])


def swap_samples(folder: Path) -> None:
    samples = read_shard(folder / TRAIN)
    rewrite(folder, TRAIN, [samples[1], samples[0], *samples[2:]])


def move_sample(folder: Path) -> None:
    first, second = read_shard(folder / TRAIN), read_shard(folder / TRAIN_1)
    rewrite(folder, TRAIN, first[:-1])
    rewrite(folder, TRAIN_1, [first[-1], *second])


def reverse_trials(folder: Path) -> None:
    def edit(sample: Sample) -> Sample:
        metadata = {**sample.metadata, "trial_num": sample.metadata["trial_num"][::-1]}
        return dataclasses.replace(sample, metadata=metadata)

    edit_sample(folder, TRAIN, edit)


def raise_trials(folder: Path) -> None:
    """Renumber a session's first block, so that its second one seems to come before it."""
    samples = read_shard(folder / TRAIN)
    index = next(i for i, s in enumerate(samples) if s.key.endswith("-000000"))
    trial_num = [1000 + number for number in samples[index].metadata["trial_num"]]
    metadata = {**samples[index].metadata, "trial_num": trial_num}
    samples[index] = dataclasses.replace(samples[index], metadata=metadata)
    rewrite(folder, TRAIN, samples)


def edit_index(folder: Path) -> None:
    index = json.loads((folder / "train.json").read_text())
    index["shardlist"][1]["md5sum"] = "0" * 32
    (folder / "train.json").write_text(json.dumps(index))
    content = read_manifest(folder)
    content["files"]["train.json"] = digest(folder / "train.json")
    write_manifest(folder, content)


def drop_trial(folder: Path) -> None:
    def edit(sample: Sample) -> Sample:
        names = ("trial_num", "frequency", "amplitude")
        metadata = {**sample.metadata, **{name: sample.metadata[name][1:] for name in names}}
        return Sample(sample.key, sample.spectrogram[1:], sample.baseline[1:], metadata)

    edit_sample(folder, TRAIN, edit)


def replace_array(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        edit_sample(
            folder,
            TRAIN,
            lambda sample: dataclasses.replace(sample, **{name: change(getattr(sample, name))}),
        )

    return damage


def rewrite_tar(
    change: Callable[[tarfile.TarInfo, bytes], Iterator[tuple[tarfile.TarInfo, bytes]]],
):
    """Return a damage that writes a shard anew, member by member."""

    def damage(folder: Path) -> None:
        members = list(read_members(folder / TRAIN))
        with tarfile.open(folder / TRAIN, "w", format=tarfile.GNU_FORMAT) as tar:
            for index, (info, content) in enumerate(members):
                for new, data in change(info, content) if index == 0 else [(info, content)]:
                    new.size = len(data)
                    tar.addfile(new, io.BytesIO(data))
        reseal(folder)

    return damage


def other_time(info: tarfile.TarInfo, content: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    info.mtime = 1
    yield info, content


def pickled(info: tarfile.TarInfo, content: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], object), allow_pickle=True)
    yield info, buffer.getvalue()


def too_large(info: tarfile.TarInfo, content: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    yield info, content + bytes(10**6)


def left_out(info: tarfile.TarInfo, content: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    yield from ()


def edit_rejects(folder: Path, text: str) -> None:
    path = folder / "rejects/flat.jsonl"
    path.write_text(text + "".join(path.read_text().splitlines(keepends=True)[1:]))
    reseal(folder)


def session_text(**changes: Any) -> str:
    line = {"session": "session-00001", "trial_num": 3, "reason": "flat", "detail": "x"}
    return json.dumps({**line, **changes}) + "\n"


SEALED: dict[str, tuple[Callable[[Path], object], set[tuple[str, str]]]] = {
    "counts": (
        lambda folder: reseal(folder, edit_counts),
        {("counts", "dataset.json: val")},
    ),
    "rows": (
        lambda folder: reseal(folder, lambda content: content["source"].update(rows=5)),
        {("rows", "dataset.json")},
    ),
    "class counts": (
        lambda folder: reseal(folder, edit_class_counts),
        {("counts", "dataset.json: val")},
    ),
    "shard trials": (
        lambda folder: reseal(
            folder, lambda content: content["splits"]["train"]["shards"][0].update(trials=1)
        ),
        {("trials", TRAIN)},
    ),
    "content": (
        lambda folder: reseal(folder, lambda content: content["source"].update(uri="trials:0")),
        {("source", "dataset.json")},
    ),
    "options": (
        lambda folder: reseal(folder, lambda content: edit_options(content, False)),
        {("options", "dataset.json")},
    ),
    "options and fingerprint": (
        lambda folder: reseal(folder, lambda content: edit_options(content, True)),
        {("axes", "dataset.json")},
    ),
    "class order": (
        lambda folder: reseal(folder, lambda content: content["classes"].reverse()),
        {("label", TRAIN)},
    ),
    "clipped": (
        lambda folder: reseal(folder, lambda content: content.update(values_clipped=7)),
        {("counts", "dataset.json")},
    ),
    "shard path": (
        lambda folder: reseal(folder, point_outside),
        {("manifest", "dataset.json")},
    ),
    "no mean": (
        lambda folder: reseal(folder, lambda content: content["normalization"].pop("mean")),
        {("manifest", "dataset.json")},
    ),
    "moved session": (
        lambda folder: reseal(folder, move_split),
        {("split", "dataset.json: train"), ("split", "dataset.json: val"), ("leakage", "session")},
    ),
    "repeated session": (lambda folder: reseal(folder, repeat_session), {("leakage", "session")}),
    "repeated subject": (lambda folder: reseal(folder, repeat_subject), {("leakage", "subject")}),
    "exchanged splits": (exchange_train_and_test, {("statistics", "dataset.json")}),
    "exchanged table": (
        exchange_table_only,
        {("statistics", "dataset.json"), ("split", "dataset.json: train"), ("leakage", "session")},
    ),
    "stats saw val": (stats_that_saw_val, {("statistics", "dataset.json")}),
    "stats sessions": (
        lambda folder: set_stats(folder, sessions=["session-00003"]),
        {("statistics", "dataset.json")},
    ),
    "stats file": (
        replace_stats_file,
        {("statistics", "spectrogram_norm_stats.json")},
    ),
    "moments": (shift_moments, {("moments", "session session-00003")}),
    "baseline sum": (
        lambda folder: add_to_sessions(folder, baseline_sum=1),
        {("baseline", "session session-00001")},
    ),
    "gain": (
        lambda folder: add_to_sessions(folder, gain=1),
        {("gain", "sessions.parquet: session-00001")},
    ),
    "kept": (
        lambda folder: add_to_sessions(folder, trials_kept=1),
        {("sessions", "sessions.parquet: session-00001")},
    ),
    "rejected": (
        lambda folder: add_to_sessions(folder, trials_rejected=1),
        {("rejects", "sessions.parquet: session-00001")},
    ),
    "copied trial": (copy_trial, {("leakage", "train session")}),
    "copied sample": (
        copy_sample,
        {("leakage", "session"), ("leakage", "subject"), ("keys", VAL), ("blocks", "session-")},
    ),
    "nan spectrogram": (
        lambda folder: edit_sample(folder, TRAIN, set_nan("spectrogram")),
        {("finite", TRAIN)},
    ),
    "nan baseline": (
        lambda folder: edit_sample(folder, TRAIN, set_nan("baseline")),
        {("finite", TRAIN)},
    ),
    "label": (lambda folder: edit_json(folder, TRAIN, label=7), {("label", TRAIN)}),
    "condition": (
        lambda folder: edit_json(folder, TRAIN, condition="x"),
        {("label", TRAIN), ("condition", TRAIN)},
    ),
    "subject": (lambda folder: edit_json(folder, TRAIN, subject="x"), {("subject", TRAIN)}),
    "session": (
        lambda folder: edit_json(folder, TRAIN, session="x"),
        {("key", TRAIN), ("split", TRAIN)},
    ),
    "json field": (lambda folder: edit_json(folder, TRAIN, extra=1), {("decoding", TRAIN)}),
    "json type": (lambda folder: edit_json(folder, TRAIN, block="0"), {("decoding", TRAIN)}),
    "json length": (lambda folder: edit_json(folder, TRAIN, frequency=[]), {("trials", TRAIN)}),
    "index": (edit_index, {("index", "train.json")}),
    "block order": (raise_trials, {("trial order", "session-")}),
    "trial order": (reverse_trials, {("trial order", TRAIN)}),
    "lost trial": (drop_trial, {("trials", TRAIN), ("counts", "dataset.json: train")}),
    "key order": (swap_samples, {("key order", TRAIN)}),
    "wrong shard": (move_sample, {("keys", TRAIN), ("keys", TRAIN_1)}),
    "dtype": (
        replace_array("spectrogram", lambda values: values.astype(np.float32)),
        {("decoding", TRAIN)},
    ),
    "shape": (replace_array("baseline", lambda values: values[:, :-1]), {("decoding", TRAIN)}),
    "tar time": (rewrite_tar(other_time), {("tar metadata", TRAIN)}),
    "pickle": (rewrite_tar(pickled), {("decoding", TRAIN)}),
    "too large": (rewrite_tar(too_large), {("decoding", TRAIN)}),
    "member left out": (rewrite_tar(left_out), {("members", TRAIN)}),
    "reject lost": (lambda folder: edit_rejects(folder, ""), {("rejects", "rejects/flat.jsonl")}),
    "reject text": (
        lambda folder: edit_rejects(folder, "x\n"),
        {("rejects", "rejects/flat.jsonl:1")},
    ),
    "reject reason": (
        lambda folder: edit_rejects(folder, session_text(reason="railed")),
        {("rejects", "rejects/flat.jsonl:1")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEALED)
def test_damage_under_an_intact_seal_is_named(dataset, name):
    damage, expected = SEALED[name]
    damage(dataset)

    found = [(problem.check, problem.where) for problem in verify.verify(dataset).problems]

    missing = [
        (check, where)
        for check, where in expected
        if not any(c == check and w.startswith(where) for c, w in found)
    ]
    assert missing == [], found
    # The files are as the manifest says: only their meaning is wrong.
    assert not {check for check, _ in found} & {"checksum", "size", "missing", "stray"}


def test_splits_exchanged_everywhere_are_caught_by_the_statistics_alone(dataset):
    exchange_train_and_test(dataset)

    problems = verify.verify(dataset).problems

    assert {problem.check for problem in problems} == {"statistics"}


def test_a_copied_trial_is_named_with_both_its_places(dataset):
    source, target = read_shard(dataset / TRAIN)[0], read_shard(dataset / VAL)[0]
    copy_trial(dataset)

    details = [p.detail for p in verify.verify(dataset).problems if p.check == "leakage"]

    place = f"trial {source.metadata['trial_num'][-1]} ({source.key})"
    other = f"trial {target.metadata['trial_num'][0]} ({target.key})"
    assert details == [
        f"1 times the same {kind}: {place} = {other}" for kind in ("spectrogram", "baseline")
    ]


# --- The parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-7.3, 0.4), (1e4, 1e-3), (0.01, 50.0)])
@pytest.mark.parametrize("n_values", [1, 488, 100_000])
def test_recovered_moments_hold_the_true_ones_within_their_bounds(mean, std, n_values):
    rng = np.random.default_rng(0)
    values = (mean + std * rng.standard_normal((n_values, 3))).astype(np.float32)
    # The writer's arithmetic: float32, then float16.
    normalised = (values - np.float32(mean)) * np.float32(1 / std)
    half = normalised.astype(np.float16).astype(np.float64)

    found = recover_moments(
        n_values, half.sum(axis=0), np.square(half).sum(axis=0), np.array([mean]), np.array([std])
    )

    wide = values.astype(np.float64)
    errors = np.abs(found.sums - wide.sum(axis=0))
    square_errors = np.abs(found.squares - np.square(wide).sum(axis=0))
    assert (errors <= found.sums_tolerance).all()
    assert (square_errors <= found.squares_tolerance).all()
    # Not so wide that a mean off by a thousandth of the values' spread would pass.
    spread = std + 3 * np.abs(half).max() * std + abs(mean) * 2**-10
    assert (found.sums_tolerance / n_values < 1e-3 * spread).all()


@pytest.mark.parametrize("session", ["s" * 150, "ünicode/.. name", "a.b"])
def test_a_shard_of_an_odd_session_name_is_read_without_complaint(tmp_path, session):
    (tmp_path / "train").mkdir()
    rng = np.random.default_rng(0)
    metadata = {
        "session": session, "subject": None, "condition": "WT", "label": 0, "block": 0,
        "trial_num": [1, 5], "frequency": [None, 1.0], "amplitude": [2.0, None],
    }  # fmt: skip
    one = Sample(
        block_key(session, 0),
        rng.standard_normal((2, 3, 5)).astype(np.float16),
        rng.standard_normal((2, 3)).astype(np.float32),
        metadata,
    )
    info = write_shard(tmp_path, "train/x.tar", [one])

    report = inspect_shard(str(tmp_path), "train/x.tar", SampleRules(("WT",), (2, 3, 5)))

    assert report.problems == ()
    assert (report.bytes, report.sha256, report.md5) == (info.bytes, info.sha256, info.md5)
    assert report.blocks[0].trial_num.tolist() == [1, 5]


def test_rows_are_identified_by_their_bytes_unless_they_tell_nothing():
    rows = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    rows[2] = rows[0]
    rows[1] = 7.0

    digests = row_digests(rows)

    expected = hashlib.blake2b(rows[0].tobytes(), digest_size=16).digest()
    assert digests[0].tobytes() == digests[2].tobytes() == expected
    assert not digests[1].any()
    assert not row_digests(rows[:, :7]).any()


def test_the_reader_in_the_documentation_reads_every_trial(original):
    text = (ROOT / "docs" / "dataset-format.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]

    done = subprocess.run(
        [sys.executable, "-c", code, str(original)], capture_output=True, text=True, check=True
    )

    manifest = read_manifest(original)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(line[0], int(line[1])) for line in lines] == [
        (name, split["trials"]) for name, split in manifest["splits"].items()
    ]
    # Recovered from float16, the train values have the statistics that were taken out of them.
    norm = manifest["normalization"]
    assert [float(lines[0][2]), float(lines[0][3])] == pytest.approx(
        [norm["mean"], norm["std"]], rel=1e-3
    )
