"""The whole job on real Beam runners: its dataset against SciPy, NumPy and WebDataset."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import scipy.signal
import webdataset

from beam_pipeline.__main__ import main
from beam_pipeline.launchers.contract import RunFailedError
from beam_pipeline.launchers.local import LocalLauncher
from beam_pipeline.manifest import read_manifest
from beam_pipeline.output.dataset_folder import IncompleteDatasetError, check_complete
from beam_pipeline.output.lock import locked
from tests import tables

FLOAT16_ROUNDING = 2.0**-11


def preprocess(source: Path, output: Path, *flags: str) -> Path:
    command = ["preprocess", "--input", str(source), "--output", str(output), *tables.FLAGS]
    assert main([*command, *tables.IN_PROCESS, *flags]) == 0
    return output


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but run.json, which holds times and host."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset.json").read_text())


def read_split(folder: Path, split: str) -> list[dict[str, Any]]:
    urls = [str(folder / shard["path"]) for shard in manifest_of(folder)["splits"][split]["shards"]]
    return list(webdataset.WebDataset(urls, shardshuffle=False).decode())


def read_trials(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Every trial of a dataset by session and trial number, read by WebDataset."""
    trials = {}
    for split in ("train", "val", "test"):
        for sample in read_split(folder, split):
            meta = sample["json"]
            for index, trial_num in enumerate(meta["trial_num"]):
                trials[meta["session"], trial_num] = {
                    "split": split,
                    "condition": meta["condition"],
                    "label": meta["label"],
                    "subject": meta["subject"],
                    "stimulus": (meta["frequency"][index], meta["amplitude"][index]),
                    "spectrogram": sample["spectrogram.npy"][index],
                    "baseline": sample["baseline.npy"][index],
                }
    return trials


def scipy_log_power(traces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lab's spectrogram by SciPy, float64: log power and log10 mean baseline power."""
    window: Any = scipy.signal.windows.hann(96, sym=True)
    _, times, power = scipy.signal.spectrogram(
        traces,
        tables.SFREQ,
        window=window,
        nperseg=96,
        noverlap=80,
        scaling="density",
    )
    in_baseline = times - tables.ONSET <= 0.0
    baseline = np.log10(power[..., in_baseline].mean(axis=-1) + 1e-10)
    return np.log10(power + 1e-10), baseline


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return tables.make_table()


@pytest.fixture(scope="module")
def source(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tables.write(table, tmp_path_factory.mktemp("table") / "table.parquet")


@pytest.fixture(scope="module")
def dataset(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preprocess(source, tmp_path_factory.mktemp("dataset") / "out", "--block_trials", "8")


def train_rows(table: pa.Table, trials: dict[tuple[str, int], dict[str, Any]]) -> list[int]:
    keys = zip(table["session"].to_pylist(), table["trial_num"].to_pylist(), strict=True)
    return [row for row, key in enumerate(keys) if trials[key]["split"] == "train"]


def test_every_trial_is_scipys_spectrogram_normalised_by_numpy(
    table: pa.Table, dataset: Path
) -> None:
    trials = read_trials(dataset)
    values, baseline = scipy_log_power(tables.traces_of(table))
    train = values[train_rows(table, trials)]
    expected = (values - train.mean()) / train.std()
    assert len(trials) == table.num_rows
    for row, record in enumerate(table.drop_columns("trace").to_pylist()):
        trial = trials[record["session"], record["trial_num"]]
        tolerance = 1e-4 / train.std() + FLOAT16_ROUNDING * np.abs(expected[row])
        assert (np.abs(trial["spectrogram"] - expected[row]) <= tolerance).all()
        np.testing.assert_allclose(trial["baseline"], baseline[row], atol=1e-4)
        assert trial["condition"] == record["condition"]
        assert trial["label"] == ["FMR1", "WT"].index(record["condition"])
        assert trial["subject"] == str(record["subject"])
        assert trial["stimulus"] == (record["frequency"], record["amplitude"])


def test_statistics_are_numpys_over_train(table: pa.Table, dataset: Path) -> None:
    values, _ = scipy_log_power(tables.traces_of(table))
    train = values[train_rows(table, read_trials(dataset))]
    stats = json.loads((dataset / "spectrogram_norm_stats.json").read_text())
    # SciPy in float64 differs from the float32 logarithm by up to 1e-6 a value, at random.
    assert stats["mean"] == pytest.approx(train.mean(), rel=1e-7)
    assert stats["std"] == pytest.approx(train.std(), rel=1e-7)
    assert stats["count"] == train.size
    assert stats["sessions"] == manifest_of(dataset)["splits"]["train"]["sessions"]


def test_per_frequency_statistics(table: pa.Table, source: Path, tmp_path: Path) -> None:
    folder = preprocess(source, tmp_path / "out", "--normalization", "per_frequency")
    values, _ = scipy_log_power(tables.traces_of(table))
    train = values[train_rows(table, read_trials(folder))]
    stats = json.loads((folder / "spectrogram_norm_stats.json").read_text())
    np.testing.assert_allclose(stats["mean"], train.mean(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(stats["std"], train.std(axis=(0, 2)), rtol=1e-6)


def test_gain_correction_removes_the_gain(table: pa.Table, tmp_path: Path) -> None:
    gains = {
        name: 10.0 ** (k % 4) for k, name in enumerate(sorted(set(table["session"].to_pylist())))
    }
    scale = np.array([gains[name] for name in table["session"].to_pylist()])
    louder = table.set_column(
        table.schema.get_field_index("trace"),
        "trace",
        pa.array(list(tables.traces_of(table) * scale[:, None])),
    )
    flags = ("--gain_correction", "session", "--log_floor", "1e-30")
    plain = preprocess(tables.write(table, tmp_path / "a.parquet"), tmp_path / "a", *flags)
    gained = preprocess(tables.write(louder, tmp_path / "b.parquet"), tmp_path / "b", *flags)
    quiet, loud = read_trials(plain), read_trials(gained)
    for key, trial in quiet.items():
        np.testing.assert_allclose(trial["spectrogram"], loud[key]["spectrogram"], atol=4e-3)


def test_blocks_are_consecutive_trials_of_one_session(dataset: Path) -> None:
    blocks: dict[str, dict[int, list[int]]] = {}
    for split in ("train", "val", "test"):
        for sample in read_split(dataset, split):
            meta = sample["json"]
            assert sample["spectrogram.npy"].dtype == np.float16
            assert sample["baseline.npy"].dtype == np.float32
            assert sample["__key__"].count(".") == sample["__key__"].count("/") == 0
            blocks.setdefault(meta["session"], {})[meta["block"]] = meta["trial_num"]
    for numbered in blocks.values():
        assert [numbered[block] for block in sorted(numbered)] == [
            list(range(10, 18)),
            list(range(18, 20)),
        ]


def test_splits_hold_whole_subjects_and_every_class(dataset: Path) -> None:
    splits = manifest_of(dataset)["splits"]
    subjects = [set(split["subjects"]) for split in splits.values()]
    assert not subjects[0] & subjects[1] | subjects[0] & subjects[2] | subjects[1] & subjects[2]
    assert all(min(split["trials_per_class"].values()) > 0 for split in splits.values())


@pytest.mark.parametrize("layout", ["two_processes", "shuffled", "forty_files", "small_row_groups"])
def test_the_same_bytes_whatever_the_runner_order_and_files(
    table: pa.Table, dataset: Path, tmp_path: Path, layout: str
) -> None:
    flags: list[str] = []
    if layout == "two_processes":
        source = tables.write(table, tmp_path / "t.parquet")
        flags = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    elif layout == "shuffled":
        source = tables.write(tables.shuffled(table), tmp_path / "t.parquet")
    elif layout == "forty_files":
        source = tables.write_files(tables.shuffled(table), tmp_path / "files", 40)
    else:
        source = tables.write(table, tmp_path / "t.parquet", row_group_size=7)
    other = preprocess(source, tmp_path / "out", "--block_trials", "8", *flags)
    assert digests(other) == digests(dataset)


def test_val_and_test_change_no_statistic(table: pa.Table, dataset: Path, tmp_path: Path) -> None:
    trials = read_trials(dataset)
    keys = zip(table["session"].to_pylist(), table["trial_num"].to_pylist(), strict=True)
    outside = [row for row, key in enumerate(keys) if trials[key]["split"] != "train"]
    noise = 50.0 * np.random.default_rng(9).standard_normal((2, tables.N_SAMPLES))
    changed = tables.replace_trace(table, outside[0], noise[0].tolist())
    changed = tables.replace_trace(changed, outside[-1], noise[1].tolist())
    other = preprocess(
        tables.write(changed, tmp_path / "t.parquet"), tmp_path / "out", "--block_trials", "8"
    )
    before, after = digests(dataset), digests(other)
    changed_files = {name for name in before if before[name] != after[name]}
    assert "spectrogram_norm_stats.json" not in changed_files
    assert not any(name.startswith("train/") for name in changed_files)
    assert any(name.startswith(("val/", "test/")) for name in changed_files)


@pytest.mark.parametrize("split", ["train", "val"])
def test_trials_that_turn_out_unusable_are_rejected_whenever_they_are_found(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    table = tables.make_table(dtype="float64")
    trials = read_trials(dataset)
    keys = list(zip(table["session"].to_pylist(), table["trial_num"].to_pylist(), strict=True))
    bad = [row for row, key in enumerate(keys) if trials[key]["split"] == split][:3]
    changed = table
    for row in bad:
        # Finite, but its power is not.
        trace = 1e200 * tables.traces_of(table)[row]
        changed = tables.replace_trace(changed, row, trace.tolist())
    source = tables.write(changed, tmp_path / "t.parquet")
    found = preprocess(source, tmp_path / "a", "--block_trials", "8")
    lines = (found / "rejects" / "unusable_spectrogram.jsonl").read_text().splitlines()
    rejected = {(reject["session"], reject["trial_num"]) for reject in map(json.loads, lines)}
    assert rejected == {keys[row] for row in bad}
    assert read_trials(found).keys() == set(keys) - rejected
    assert main(["verify", str(found)]) == 0

    monkeypatch.setattr("beam_pipeline.dataset_run.needs_every_spectrogram", lambda options: True)
    expected = preprocess(source, tmp_path / "b", "--block_trials", "8")
    assert digests(found) == digests(expected)


def test_ratios_that_the_groups_do_not_allow_are_said(
    dataset: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocess(source, tmp_path / "out")
    note = "the splits hold 0.50 / 0.25 / 0.25 of the trials instead of 0.70 / 0.15 / 0.15"
    assert note in capsys.readouterr().out
    assert note in (dataset / "README.md").read_text()


def test_splits_file_overrides_the_ratios(source: Path, tmp_path: Path) -> None:
    splits = tmp_path / "splits.csv"
    wanted = {"0": "test", "1": "test", "2": "val", "3": "val"}
    lines = [f"{subject},{split}" for subject, split in wanted.items()]
    # The other subjects are not covered: the run must say so and write nothing.
    splits.write_text("\n".join(["subject,split", *lines]))
    command = ["preprocess", "--input", str(source), "--output", str(tmp_path / "out")]
    flags = [*tables.FLAGS, *tables.IN_PROCESS, "--splits", str(splits)]
    assert main([*command, *flags]) == 1
    assert not (tmp_path / "out" / "dataset.json").exists()

    wanted |= dict.fromkeys("4567", "train")
    lines = [f"{subject},{split}" for subject, split in wanted.items()]
    splits.write_text("\n".join(["subject,split", *lines]))
    folder = preprocess(source, tmp_path / "b", "--splits", str(splits))
    assert {
        subject: name
        for name, split in manifest_of(folder)["splits"].items()
        for subject in split["subjects"]
    } == wanted


def test_shards_mix_sessions_and_count_right(source: Path, tmp_path: Path) -> None:
    folder = preprocess(source, tmp_path / "out", "--block_trials", "2", "--num_shards", "3")
    for split, described in manifest_of(folder)["splits"].items():
        assert len(described["shards"]) == 3
        sizes = [shard["samples"] for shard in described["shards"]]
        assert max(sizes) - min(sizes) <= 1
        for shard in described["shards"]:
            content = (folder / shard["path"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard["sha256"]
            assert len(content) == shard["bytes"]
            samples = list(webdataset.WebDataset(str(folder / shard["path"]), shardshuffle=False))
            assert len(samples) == shard["samples"]
            sessions = {json.loads(sample["json"])["session"] for sample in samples}
            assert len(sessions) > 1, split


def test_bad_rows_stand_in_rejects_and_the_counts_add_up(tmp_path: Path) -> None:
    table = tables.make_table()
    table = tables.replace_trace(table, 3, [float("nan")] * tables.N_SAMPLES)
    table = tables.replace_trace(table, 45, [1.0] * tables.N_SAMPLES)
    table = tables.replace_trace(table, 46, [])
    table = tables.replace_trace(table, 90, tables.traces_of(tables.make_table())[91].tolist())
    folder = preprocess(tables.write(table, tmp_path / "t.parquet"), tmp_path / "out")
    manifest = manifest_of(folder)
    assert manifest["rejects"] == {
        "duplicate_trace": 1,
        "empty_trace": 1,
        "flat": 1,
        "non_finite": 1,
    }
    used = sum(split["trials"] for split in manifest["splits"].values())
    assert used + sum(manifest["rejects"].values()) == manifest["source"]["rows"] == 160
    lines = [json.loads(line) for line in (folder / "rejects/flat.jsonl").read_text().splitlines()]
    assert lines == [
        {
            "session": table["session"][45].as_py(),
            "trial_num": table["trial_num"][45].as_py(),
            "reason": "flat",
            "detail": "every sample is 1",
        }
    ]
    counters = json.loads((folder / "run.json").read_text())["counters"]
    assert counters["rows_read"] == 160
    assert counters["trials_written"] == used
    assert counters["shard_bytes_sum"] == sum(
        shard["bytes"] for split in manifest["splits"].values() for shard in split["shards"]
    )
    assert {name: counters[f"rejected_{name}"] for name in manifest["rejects"]} == (
        manifest["rejects"]
    )
    per_session = pq.read_table(folder / "sessions.parquet")
    assert pc.sum(per_session["trials_rejected"]).as_py() == 4


def test_too_many_rejects_fail_before_a_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tables.make_table()
    for row in range(0, 160, 10):
        table = tables.replace_trace(table, row, [0.0] * tables.N_SAMPLES)
    source = tables.write(table, tmp_path / "t.parquet")
    command = ["preprocess", "--input", str(source), "--output", str(tmp_path / "out")]
    assert main([*command, *tables.FLAGS, *tables.IN_PROCESS]) == 1
    error = capsys.readouterr().err
    assert "16 of 160 rows (10.0%) are rejected" in error
    assert "flat 16" in error
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list((tmp_path / "out").rglob("*.tar"))
    flags = [*tables.FLAGS, *tables.IN_PROCESS, "--max_reject_fraction", "0.1"]
    assert main([*command, *flags]) == 0


def test_a_complete_dataset_is_left_alone_and_never_lost(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = preprocess(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    preprocess(source, folder)
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    command = ["preprocess", "--input", str(source), "--output", str(folder)]
    flags = [*tables.FLAGS, *tables.IN_PROCESS, "--normalization", "none"]
    assert main([*command, *flags]) == 1
    error = capsys.readouterr().err
    assert "--overwrite" in error
    assert "normalization global -> none" in error
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    assert main([*command, *flags, "--overwrite"]) == 0
    fresh = preprocess(source, tmp_path / "fresh", "--normalization", "none")
    assert digests(folder) == digests(fresh)


def test_a_changed_table_is_not_taken_for_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tables.write(tables.make_table(), tmp_path / "t.parquet")
    folder = preprocess(source, tmp_path / "out")
    tables.write(tables.make_table(seed=1), source)
    command = ["preprocess", "--input", str(source), "--output", str(folder)]
    assert main([*command, *tables.FLAGS, *tables.IN_PROCESS]) == 1
    assert "changed input" in capsys.readouterr().err


def test_a_folder_of_other_things_is_not_touched(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years of work")
    command = ["preprocess", "--input", str(source), "--output", str(folder)]
    assert main([*command, *tables.FLAGS, *tables.IN_PROCESS, "--overwrite"]) == 1
    assert "chapter1.tex" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["chapter1.tex"]


def test_killed_at_any_moment_it_leaves_no_manifest_and_the_same_command_ends_right(
    source: Path, dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "beam_pipeline", "preprocess", "--input", str(source)),
        *("--output", str(folder), "--block_trials", "8", *tables.FLAGS),
        *("--direct_num_workers", "2"),
    ]
    moments = [".work-*", ".work-*/segments/*", ".work-*/progress/survey*", ".work-*/dataset/*/*"]

    def seen(pattern: str) -> set[str]:
        # Unlike pathlib's, this glob bears folders that vanish while it looks.
        return set(glob.glob(str(folder / pattern)))  # noqa: PTH207

    for reached in moments:
        earlier = seen(reached)
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while not seen(reached) - earlier and process.poll() is None:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (folder / "dataset.json").exists()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert digests(folder) == digests(dataset)


def test_killed_while_it_moved_the_dataset_into_place_it_starts_again(
    source: Path, dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(dataset, folder)
    (folder / "dataset.json").unlink()
    (folder / "test" / "lfp-test-00000-of-00001.tar").write_bytes(b"half a shard")
    (folder / ".work-0123456789ab").mkdir()
    (folder / ".work-0123456789ab" / "installing").touch()
    assert digests(preprocess(source, folder, "--block_trials", "8")) == digests(dataset)


def test_half_a_dataset_stays_ours_when_the_next_run_fails(
    source: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(dataset, folder)
    (folder / "dataset.json").unlink()
    (folder / ".work-0123456789ab").mkdir()
    (folder / ".work-0123456789ab" / "installing").touch()

    def fail(*_: object) -> None:
        raise RunFailedError("a worker died")

    command = ["preprocess", "--input", str(source), "--output", str(folder), *tables.FLAGS]
    with monkeypatch.context() as patched:
        patched.setattr(LocalLauncher, "run", fail)
        for _ in range(2):
            assert main([*command, *tables.IN_PROCESS]) == 1
            assert "a worker died" in capsys.readouterr().err
    assert digests(preprocess(source, folder, "--block_trials", "8")) == digests(dataset)


def test_files_put_beside_a_failed_run_are_not_touched(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    (folder / ".work-0123456789ab").mkdir(parents=True)
    (folder / "train").mkdir()
    (folder / "train" / "years.csv").write_text("years of work")
    command = ["preprocess", "--input", str(source), "--output", str(folder)]
    assert main([*command, *tables.FLAGS, *tables.IN_PROCESS]) == 1
    assert "it holds train" in capsys.readouterr().err
    assert (folder / "train" / "years.csv").read_text() == "years of work"


def test_two_runs_do_not_write_to_one_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["preprocess", "--input", str(source), "--output", str(tmp_path / "out")]
    with locked(tmp_path / "out"):
        assert main([*command, *tables.FLAGS, *tables.IN_PROCESS]) == 1
    assert "another run is writing" in capsys.readouterr().err
    assert main([*command, *tables.FLAGS, *tables.IN_PROCESS]) == 0


@pytest.mark.parametrize("damage", ["shard", "run.json"])
def test_a_damaged_dataset_is_not_taken_for_a_complete_one(
    source: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(dataset, folder)
    (next(folder.rglob("*.tar")) if damage == "shard" else folder / "run.json").unlink()
    command = ["preprocess", "--input", str(source), "--output", str(folder)]
    flags = [*tables.FLAGS, *tables.IN_PROCESS, "--block_trials", "8"]
    assert main([*command, *flags]) == 1
    expected = "is damaged" if damage == "shard" else "run.json is missing"
    assert expected in capsys.readouterr().err
    assert main([*command, *flags, "--overwrite"]) == 0
    assert digests(folder) == digests(dataset)


def test_rows_that_the_runner_loses_fail_the_run(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    check_complete(manifest)
    rows = manifest.source["rows"]
    with pytest.raises(IncompleteDatasetError, match="lost some"):
        check_complete(replace(manifest, source=manifest.source | {"rows": rows + 1}))
    fewer = replace(manifest.splits["val"], trials=manifest.splits["val"].trials - 1)
    with pytest.raises(IncompleteDatasetError, match="the shards of val"):
        check_complete(replace(manifest, splits=manifest.splits | {"val": fewer}))
