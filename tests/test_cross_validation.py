"""Folds: every animal is tested once, by a model that never saw it, and counts once."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score, roc_auc_score

from beam_pipeline.__main__ import main as pipeline_main
from beam_pipeline.splits import SessionCount, SplitError, assign_folds
from tests import runs, tables
from trainer.__main__ import main as trainer_main

N_FOLDS = 3
SPECTROGRAM = "--tmin 0 --tmax 0.5 --nperseg 64 --noverlap 48 --n_freqs 16"

SESSIONS = [
    SessionCount(f"s{i}", f"m{i // 2}", "KO" if i // 2 % 3 == 0 else "WT", 40 + 5 * i)
    for i in range(36)
]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- folds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_folds", [3, 5, 6])
def test_every_session_is_in_test_once_and_in_val_once(n_folds):
    folds = assign_folds(SESSIONS, n_folds, seed=1)

    assert len(folds) == n_folds
    for session in SESSIONS:
        roles = Counter(fold[session.session] for fold in folds)
        assert roles == {"test": 1, "val": 1, "train": n_folds - 2}


def test_folds_hold_whole_animals_and_like_shares_of_each_class():
    folds = assign_folds(SESSIONS, 3, seed=0)

    subject_of = {session.session: session.subject for session in SESSIONS}
    for fold in folds:
        splits_of = {(subject_of[session], split) for session, split in fold.items()}
        assert len(splits_of) == len(set(subject_of.values()))
        for condition in ("KO", "WT"):
            trials: Counter[str] = Counter()
            for session in SESSIONS:
                if session.condition == condition:
                    trials[fold[session.session]] += session.n_trials
            assert trials["test"] / trials.total() == pytest.approx(1 / 3, abs=0.05)


def test_folds_depend_on_the_seed_and_not_on_the_order_of_the_sessions():
    assert assign_folds(SESSIONS, 3, seed=4) == assign_folds(SESSIONS[::-1], 3, seed=4)
    assert assign_folds(SESSIONS, 3, seed=4) != assign_folds(SESSIONS, 3, seed=5)


def test_more_folds_than_animals_of_a_class_are_refused_with_the_counts():
    with pytest.raises(SplitError, match=r"class 'KO' has 6 group\(s\)") as caught:
        assign_folds(SESSIONS, 7)
    assert "--n_folds" in str(caught.value)


def test_two_folds_are_refused(tmp_path, capsys):
    table = tables.write(tables.make_table(), tmp_path / "t.parquet")
    command = ["folds", "--input", str(table), "--n_folds", "2", "--output", str(tmp_path / "f")]

    assert pipeline_main(command) == 2

    assert "--n_folds 2: train, val and test need 3" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


# ---- from the table to the pooled result ---------------------------------------------------------


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """A table, and a run on each of its folds."""
    folder = tmp_path_factory.mktemp("folds")
    table = folder / "table"
    sample = f"sample --output {table} --sessions 12 --trials 24 --sfreq 250 --effect 2"
    assert pipeline_main(sample.split()) == 0
    cut = f"folds --input {table} --n_folds {N_FOLDS} --output {folder}"
    assert pipeline_main(cut.split()) == 0
    for k in range(1, N_FOLDS + 1):
        dataset, run = folder / f"dataset-{k}", folder / f"run-{k}"
        flags = f"preprocess --input {table} --output {dataset} --splits {folder}/fold-{k}.csv"
        assert pipeline_main([*flags.split(), *SPECTROGRAM.split(), *tables.IN_PROCESS]) == 0
        patches = {"model__patch_freq": 8, "model__patch_time": 6}
        assert trainer_main(runs.flags(dataset, run, train__epochs=1, **patches)) == 0
    return folder


def run_folders(folder: Path) -> list[str]:
    return [str(folder / f"run-{k}") for k in range(1, N_FOLDS + 1)]


def test_the_pooled_result_holds_every_animal_of_the_table_once(folds, tmp_path, capsys):
    output = tmp_path / "pooled"

    assert trainer_main(["pool", *run_folders(folds), "--output", str(output)]) == 0

    files = (folds / "table").glob("*.parquet")
    sessions = {
        name for file in files for name in pq.ParquetFile(file).read()["session"].to_pylist()
    }
    with (folds / "fold-1.csv").open() as file:
        assert {row["session"] for row in csv.DictReader(file)} <= sessions
    pooled = pq.ParquetFile(output / "predictions/test.parquet").read()
    parts = [pq.ParquetFile(f"{run}/predictions/test.parquet").read() for run in run_folders(folds)]
    assert set(pooled["session"].to_pylist()) == sessions
    assert len(pooled) == sum(map(len, parts))
    label = np.concatenate([part["label"].to_numpy() for part in parts])
    logits = np.concatenate([np.stack(part["logits"].to_pylist()) for part in parts])
    metrics = json.loads((output / "metrics/test.json").read_text())
    assert metrics["sequence"]["accuracy"]["value"] == pytest.approx(
        accuracy_score(label, logits.argmax(1))
    )
    assert metrics["sequence"]["auc"]["value"] == pytest.approx(
        roc_auc_score(label, softmax(logits, axis=1)[:, 1])
    )
    assert metrics["groups"]["n"] == len(set(pooled["subject"].to_pylist()))
    printed = capsys.readouterr().out
    assert all(run in printed for run in run_folders(folds))


def test_an_animal_that_two_runs_test_is_refused(folds, tmp_path, capsys):
    first = run_folders(folds)[0]

    assert trainer_main(["pool", first, first, "--output", str(tmp_path / "pooled")]) == 2

    assert "is in test in both" in capsys.readouterr().err
    assert not (tmp_path / "pooled").exists()


def test_the_result_is_not_written_over_a_run_or_a_dataset(folds, tmp_path, capsys, monkeypatch):
    given = run_folders(folds)
    other = shutil.copytree(given[2], tmp_path / "other")
    monkeypatch.chdir(folds)
    before = {path: path.read_bytes() for path in folds.rglob("test.*")}
    for output, expected in {
        "run-1/": "is one of the runs",
        str(other): "is a run",
        "dataset-1": "is a dataset",
    }.items():
        assert trainer_main(["pool", *given[:2], "--output", output]) == 2
        assert f"--output {output} {expected}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folds.rglob("test.*")} == before
    assert not (folds / "dataset-1/metrics").exists()


def test_one_run_is_no_cross_validation(folds, tmp_path, capsys):
    assert trainer_main(["pool", run_folders(folds)[0], "--output", str(tmp_path / "p")]) == 2
    assert "two folds or more" in capsys.readouterr().err


def test_a_run_that_was_not_evaluated_is_named(folds, tmp_path, capsys):
    runs_given = [*run_folders(folds)[:1], str(tmp_path / "nothing")]

    assert trainer_main(["pool", *runs_given, "--output", str(tmp_path / "p")]) == 1

    error = capsys.readouterr().err
    assert f"{tmp_path / 'nothing'} holds no metrics/test.json" in error
