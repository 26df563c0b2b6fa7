"""A run that was stopped, by whatever, ends as if it had not been."""

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests import datasets
from tests.runs import (
    ENVIRONMENT,
    ROOT,
    assert_equal,
    best_state,
    curves,
    flags,
    last_state,
    log_of,
)
from trainer.__main__ import main
from trainer.training.checkpoint import read_marker

#: Everything that draws random numbers or remembers something from step to step.
EVERYTHING = {
    "sequence__stride": 1,
    "train__epochs": 3,
    "train__batch_size": 4,
    "train__checkpoint_every": 3,
    "train__log_every": 2,
    "optim__accumulate": 2,
    "optim__ema_decay": 0.9,
    "model__drop_rate": 0.1,
    "model__attn_drop_rate": 0.1,
    "model__drop_path_rate": 0.2,
    "augment__freq_mask": 5,
    "augment__time_mask": 5,
    "augment__trial_drop": 0.2,
    "augment__time_shift": 2,
    "augment__gain_jitter": 0.2,
    "augment__mixup": 0.4,
}
STEPS = 78


#: Two animals a split, and a model for their spectrograms of 3 x 8.
TWO_ANIMALS = {
    split: [datasets.recording(f"{split}{name}", name, 12) for name in datasets.CLASSES]
    for split in ("train", "val", "test")
}
SMALL = {"model__patch_freq": 3, "model__patch_time": 4}


def tell_apart(sample: Any) -> Any:
    """Give a class more power than the other one."""
    shift = np.float16(4 * sample.metadata["label"])
    return dataclasses.replace(sample, spectrogram=sample.spectrogram + shift)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return datasets.small_dataset(tmp_path_factory)


pytestmark = pytest.mark.usefixtures("one_thread")


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_line(process: subprocess.Popen[str], log: Path, n_lines: int) -> None:
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_bytes().count(b"\n") < n_lines:
        assert process.poll() is None, f"ended before line {n_lines}"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def stopped_run(arguments: list[str], run: Path, signals: list[signal.Signals], seed: int) -> None:
    """Start a run again and again, and send it a signal at a random line of its log each time."""
    rng = random.Random(seed)
    n_lines = STEPS // 2
    for index, number in enumerate(signals):
        process = start(arguments)
        first, last = n_lines * index // len(signals), n_lines * (index + 1) // len(signals)
        wait_for_line(process, run / "metrics.jsonl", rng.randint(first + 1, last - 3))
        time.sleep(rng.random() * 0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 1
            line = errors.splitlines()[-1]
            assert line.startswith(f"error: stopped by {number.name} after step ")
            assert line.endswith("which is saved; the same command goes on")
            assert "Traceback" not in errors
    process = start(arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def results(run: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / f"metrics/{split}.json").read_text())
    del content["checkpoint"]["sha256"]
    return content


KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("store", "signals"),
    [("memory", [KILL, TERM, KILL]), ("stream", [INT, KILL])],
)
def test_a_run_killed_again_and_again_ends_with_the_bits_of_an_unbroken_one(
    dataset, tmp_path, store, signals
):
    more = {**EVERYTHING, "loader__store": store}
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert main(flags(dataset, unbroken, **more)) == 0
    assert last_state(unbroken)["step"] == STEPS

    stopped_run(flags(dataset, broken, **more), broken, signals, seed=len(signals))

    assert curves(broken) == curves(unbroken)
    assert_equal(last_state(broken), last_state(unbroken))
    assert_equal(best_state(broken), best_state(unbroken))
    for split in ("val", "test"):
        files = [run / f"predictions/{split}.parquet" for run in (broken, unbroken)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert results(broken, split) == results(unbroken, split)
    assert len(list((broken / "checkpoints").iterdir())) == 3


def test_more_epochs_go_on_from_where_the_run_had_ended(dataset, tmp_path):
    run = tmp_path / "run"
    assert main(flags(dataset, run, train__epochs=1, loader__store="memory")) == 0
    first = log_of(run, "train")

    # Whose batches are those of the memory store.
    assert main(flags(dataset, run, train__epochs=3, loader__store="device")) == 0

    assert log_of(run, "train")[: len(first)] == first
    assert [line["epoch"] for line in log_of(run, "val")] == [1, 2, 3]
    assert last_state(run)["epoch"] == 3


def test_a_run_without_progress_on_val_stops_early_and_goes_on_with_more_patience(
    dataset, tmp_path, capsys
):
    run = tmp_path / "run"
    # No weight moves, so no epoch is better than the first.
    still = {"optim__lr": 1e-30, "optim__min_lr": 0, "optim__warmup_epochs": 0, "train__epochs": 9}

    assert main(flags(dataset, run, **still, train__patience=2)) == 0
    said = (
        "stopped early: no higher AUC of val's sessions for 2 epochs (--train.patience 2); the same"
    )
    assert f"{said} command with --train.patience 4 goes on" in capsys.readouterr().err
    assert [line["epoch"] for line in log_of(run, "val")] == [1, 2, 3]

    assert main(flags(dataset, run, **still, train__patience=4)) == 0
    assert [line["epoch"] for line in log_of(run, "val")] == [1, 2, 3, 4, 5]
    marker = read_marker(run / "checkpoints")
    assert marker
    assert [entry.epoch for entry in marker.best] == [1]


def test_a_lower_loss_at_an_equal_auc_makes_a_better_epoch_but_buys_no_time(tmp_path, capsys):
    dataset = datasets.write_dataset(tmp_path / "dataset", TWO_ANIMALS, change=tell_apart)
    more = {"train__epochs": 9, "train__patience": 2, "optim__warmup_epochs": 0}

    assert main(flags(dataset, tmp_path / "run", **SMALL, **more)) == 0

    assert "stopped early: no higher AUC of val's sessions for 2" in capsys.readouterr().err
    epochs = log_of(tmp_path / "run", "val")
    assert [line["auc"] for line in epochs] == [1.0, 1.0, 1.0]
    losses = [line["loss"] for line in epochs]
    assert losses == sorted(set(losses), reverse=True)
    marker = read_marker(tmp_path / "run/checkpoints")
    assert marker
    assert [entry.epoch for entry in marker.best] == [3]


def test_two_processes_never_train_in_one_folder(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    process = start(flags(dataset, run, **EVERYTHING))
    wait_for_line(process, run / "metrics.jsonl", 1)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        line = error_line(flags(dataset, run, **EVERYTHING), capsys)
    finally:
        process.kill()
        process.communicate(timeout=60)

    assert f"another process is training in {run}" in line


# --- What is no resumption ------------------------------------------------------------------------


def error_line(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 1) -> str:
    capsys.readouterr()
    assert main(arguments) == status
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def one_epoch(dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("one_epoch") / "run"
    assert main(flags(dataset, run, train__epochs=1)) == 0
    return run


def test_another_config_is_refused_by_what_differs_and_nothing_is_touched(
    dataset, one_epoch, capsys
):
    before = {path: path.read_bytes() for path in one_epoch.rglob("*") if path.is_file()}

    line = error_line(flags(dataset, one_epoch, train__epochs=1, optim__lr=1e-3), capsys)

    assert f"{one_epoch} holds another run: optim.lr was 0.0003 and is 0.001" in line
    assert before == {path: path.read_bytes() for path in one_epoch.rglob("*") if path.is_file()}


def test_a_dataset_that_changed_is_refused(dataset, one_epoch, tmp_path, capsys):
    changed = shutil.copytree(dataset, tmp_path / "changed")
    datasets.edit_manifest(changed, lambda content: content["options"].update(note="other"))

    line = error_line(flags(changed, one_epoch, train__epochs=2), capsys)

    assert "holds another run: dataset was" in line
    line = error_line(["evaluate", str(one_epoch), "--data", str(changed)], capsys)
    assert "is not the dataset that the model was trained on" in line


def test_a_stream_does_not_go_on_where_a_resident_store_was(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(flags(dataset, run, train__epochs=1, loader__store="memory")) == 0

    line = error_line(flags(dataset, run, train__epochs=2, loader__store="stream"), capsys)

    assert "order was resident and is stream with 2 workers" in line
    # What was refused is not what the run says of itself.
    assert yaml.safe_load((run / "config.yaml").read_text())["loader"]["store"] == "memory"


@pytest.mark.parametrize("memory_gb", [1.0, 1e-6])
def test_the_same_command_goes_on_whatever_memory_is_free(dataset, tmp_path, capsys, memory_gb):
    """As if memory were short in one of two starts: auto is what it was in the first."""
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    store = "memory" if memory_gb == 1.0 else "stream"
    assert main(flags(dataset, unbroken, train__epochs=2, loader__store=store)) == 0
    assert main(flags(dataset, run, train__epochs=1, loader__memory_gb=memory_gb)) == 0
    other = flags(dataset, run, train__epochs=2, loader__memory_gb=1e-6 / memory_gb)

    if store == "memory":
        line = error_line(other, capsys)
        assert "began with its trials in memory" in line
        assert "room for 1e-06 GB; free some memory, or allow more with --loader.memory_gb" in line
        assert main(flags(dataset, run, train__epochs=2)) == 0
    else:
        assert main(other) == 0

    assert [line["epoch"] for line in log_of(run, "val")] == [1, 2]
    assert last_state(run)["identity"] == last_state(unbroken)["identity"]


def test_fewer_epochs_than_were_trained_are_refused(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(flags(dataset, run, train__epochs=2)) == 0
    before = (run / "config.yaml").read_bytes()

    line = error_line(flags(dataset, run, train__epochs=1), capsys, status=2)

    assert f"{run} has gone into epoch 2, past --train.epochs 1: give 2 or more" in line
    assert (run / "config.yaml").read_bytes() == before
    assert main(flags(dataset, run, train__epochs=2, train__patience=1)) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["patience"] == 1


def test_a_damaged_checkpoint_is_named(dataset, one_epoch, tmp_path, capsys):
    run = shutil.copytree(one_epoch, tmp_path / "run")
    (last,) = (run / "checkpoints").glob("last-*.pt")
    last.write_bytes(last.read_bytes()[:-1])

    line = error_line(flags(dataset, run, train__epochs=2), capsys)

    assert str(last) in line
    assert "is damaged" in line


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_a_good_checkpoint(
    dataset, tmp_path, capsys
):
    run = tmp_path / "run"
    more = {"optim__lr": 1e10, "optim__warmup_epochs": 0, "optim__weight_decay": 0}

    line = error_line(flags(dataset, run, **more, train__checkpoint_every=1), capsys)

    step = int(line.split("not finite at step ")[1].split(",")[0])
    named = set(line.split("holds sessions ")[1].split(": look")[0].split(", "))
    assert named <= {session for session, _ in datasets.read_trials(dataset, "train")}
    assert last_state(run)["step"] == step - 1
    assert all(value.isfinite().all() for value in last_state(run)["model"].values())
    assert "NaN" not in (run / "metrics.jsonl").read_text()


def test_weights_that_overflow_are_never_saved(dataset, tmp_path, capsys):
    """The loss and the gradient before the step were finite."""
    run = tmp_path / "run"
    more = {"optim__lr": 1e38, "optim__warmup_epochs": 0, "optim__weight_decay": 0}

    line = error_line(flags(dataset, run, **more, train__checkpoint_every=1), capsys)

    assert "not finite at step 1, whose batch holds sessions" in line
    assert read_marker(run / "checkpoints") is None


def test_a_run_in_its_first_epoch_cannot_be_evaluated_yet(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    process = start(flags(dataset, run, **{**EVERYTHING, "train__checkpoint_every": 1}))
    wait_for_line(process, run / "metrics.jsonl", 3)
    process.kill()
    process.communicate(timeout=60)
    assert last_state(run)["epoch"] == 0

    line = error_line(["evaluate", str(run)], capsys)

    assert "its first epoch is not done" in line


def test_a_full_disk_ends_the_run_in_one_line(dataset, tmp_path, capfd):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Less than the first pictures on the board.
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, limits[1]))
        status = main(flags(dataset, tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    lines = capfd.readouterr().err.splitlines()
    assert status == 1
    assert lines[-1].startswith("error: cannot write")
    assert not any("Traceback" in line for line in lines)
    assert not list((tmp_path / "run").rglob("*.partial"))
