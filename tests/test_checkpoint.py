"""Checkpoints: whole or not there, whatever happens while one is written."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from trainer.config import Config, LoaderConfig, OptimConfig, TrainConfig
from trainer.errors import TrainerError
from trainer.training.checkpoint import (
    Marker,
    check_same_run,
    load_checkpoint,
    read_marker,
    save_checkpoint,
)

ROOT = Path(__file__).resolve().parents[1]


def state_at(step: int, epoch: int = 0) -> dict[str, object]:
    return {
        "step": step,
        "epoch": epoch,
        "weights": torch.arange(1000.0) * step,
        "nested": {"none": None, "list": [1, 2.5, "x"], "flag": True},
    }


def save(folder: Path, step: int, score: tuple[float, ...] | None = None, top_k: int = 1) -> Marker:
    return save_checkpoint(folder, state_at(step, step // 10), score=score, top_k=top_k)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def steps(folder: Path) -> tuple[int, list[int]]:
    marker = read_marker(folder)
    assert marker
    return marker.last.step, [entry.step for entry in marker.best]


def test_what_was_saved_is_loaded(tmp_path):
    marker = save(tmp_path / "checkpoints", 7)

    state = load_checkpoint(tmp_path / "checkpoints", marker.last)

    assert torch.equal(state.pop("weights"), torch.arange(1000.0) * 7)
    assert state == {"step": 7, "epoch": 0, "nested": state_at(7)["nested"]}
    assert read_marker(tmp_path / "checkpoints") == marker


def test_where_nothing_was_saved_there_is_no_marker(tmp_path):
    assert read_marker(tmp_path / "checkpoints") is None


def test_the_last_and_the_best_are_kept_and_nothing_else(tmp_path):
    for step, score in [(10, (0.6, -1.0)), (15, None), (20, (0.8, -1.0)), (30, (0.7, -1.0))]:
        save(tmp_path, step, score)

    assert steps(tmp_path) == (30, [20])
    assert sorted(name[:13] for name in files(tmp_path)) == [
        "best-00000020",
        "committed.jso",
        "last-00000030",
    ]
    marker = read_marker(tmp_path)
    assert marker
    assert load_checkpoint(tmp_path, marker.best[0])["step"] == 20


def test_the_best_are_ordered_and_of_equal_ones_the_earlier_is_better(tmp_path):
    scores = [(0.6, -1.0), (0.8, -1.0), (0.8, -0.5), (0.8, -1.0), (0.9, -2.0)]
    for index, score in enumerate(scores):
        save(tmp_path, 10 * (index + 1), score, top_k=4)

    assert steps(tmp_path) == (50, [50, 30, 20, 40])
    save(tmp_path, 60, (0.1, 0.0), top_k=2)
    assert steps(tmp_path) == (60, [50, 30])


def test_debris_of_a_killed_process_goes_with_the_next_save(tmp_path):
    save(tmp_path, 1)
    for name in (".last-00000002-aa.pt.77.partial", "last-00000002-aa.pt"):
        (tmp_path / name).write_bytes(b"half")

    save(tmp_path, 3)

    assert len(files(tmp_path)) == 2
    assert steps(tmp_path) == (3, [])


def test_a_process_killed_while_it_saves_leaves_a_checkpoint_that_loads(tmp_path):
    """Killed at each of the writes in turn, by the system: the size limit ends the process."""
    marker = save(tmp_path, 1, (0.5,))
    script = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from trainer.training import checkpoint\n"
        "calls, write = [0], checkpoint.write_atomically\n"
        "def killed(path, content):\n"
        "    if calls[0] == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    calls[0] += 1\n"
        "    write(path, content)\n"
        "checkpoint.write_atomically = killed\n"
        "state = {'step': 2, 'epoch': 1, 'weights': torch.ones(10)}\n"
        "checkpoint.save_checkpoint(Path(sys.argv[1]), state, score=(0.9,), top_k=1)\n"
    )
    for n_writes in range(3):
        command = [sys.executable, "-c", script, str(tmp_path), str(n_writes)]
        done = subprocess.run(command, cwd=ROOT, check=False)
        assert done.returncode == -signal.SIGKILL
        assert read_marker(tmp_path) == marker
        for entry in (marker.last, *marker.best):
            assert load_checkpoint(tmp_path, entry)["step"] == 1


def test_without_room_there_is_one_line_and_the_old_checkpoint_stays(tmp_path):
    marker = save(tmp_path, 1, (0.5,))
    before = files(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(TrainerError, match=r"cannot write .*go on from step 1") as caught:
            save(tmp_path, 2, (0.9,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before
    assert read_marker(tmp_path) == marker
    assert load_checkpoint(tmp_path, marker.last)["step"] == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "pickle"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    marker = save(tmp_path, 1)
    path = tmp_path / marker.last.path
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "pickle":
        # Code instead of tensors, with a digest to match: it must not run.
        touched = tmp_path / "touched"

        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {touched}",)

        torch.save({"step": Evil()}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        marker = Marker(replace(marker.last, sha256=digest), ())
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content[:-10] if damage == "cut" else content)

    with pytest.raises(TrainerError, match=str(path)) as caught:
        load_checkpoint(tmp_path, marker.last)

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format_version": 1, "last": 3, "best": []}'])
def test_a_damaged_marker_is_named(tmp_path, text):
    (tmp_path / "committed.json").write_text(text)

    with pytest.raises(TrainerError, match=r"committed\.json is damaged"):
        read_marker(tmp_path)


def test_a_marker_of_a_later_version_is_not_guessed_at(tmp_path):
    save(tmp_path, 1)
    content = json.loads((tmp_path / "committed.json").read_text())
    (tmp_path / "committed.json").write_text(json.dumps({**content, "format_version": 2}))

    with pytest.raises(TrainerError, match="format 2, this version reads 1"):
        read_marker(tmp_path)


# --- Whose checkpoint it is -----------------------------------------------------------------------

IDENTITY = {"dataset": "abc", "processes": 1}


def checkpoint_of(config: Config) -> dict[str, object]:
    return {"config": asdict(config), "identity": IDENTITY}


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(train=TrainConfig(epochs=40, patience=None, log_every=3, checkpoint_every=7)),
        Config(loader=LoaderConfig(num_workers=0, memory_gb=1.0)),
    ],
)
def test_what_moves_no_weight_may_change(config):
    check_same_run(checkpoint_of(Config()), config, IDENTITY, "out/run")


@pytest.mark.parametrize(
    ("config", "identity", "expected"),
    [
        (Config(optim=OptimConfig(lr=1e-3)), {}, "optim.lr was 0.0003 and is 0.001"),
        (Config(train=TrainConfig(seed=1)), {}, "train.seed was 0 and is 1"),
        (Config(), {"dataset": "xyz"}, "dataset was abc and is xyz"),
        (Config(), {"processes": 2}, "processes was 1 and is 2"),
    ],
)
def test_another_run_is_refused_by_what_differs(config, identity, expected):
    with pytest.raises(TrainerError, match=f"out/run holds another run: {expected}"):
        check_same_run(checkpoint_of(Config()), config, {**IDENTITY, **identity}, "out/run")


def test_everything_that_differs_is_said_in_one_line():
    config = Config(optim=OptimConfig(lr=1e-3), train=TrainConfig(seed=1))

    with pytest.raises(TrainerError, match=r"optim\.lr .*train\.seed") as caught:
        check_same_run(checkpoint_of(Config()), config, IDENTITY, "out/run")

    assert "\n" not in str(caught.value)


def test_of_many_differences_the_first_are_said():
    config = Config(
        optim=OptimConfig(lr=1e-3, weight_decay=0.5), train=TrainConfig(seed=1, batch_size=7)
    )
    identity = {"dataset": "b" * 64, "processes": 2}

    with pytest.raises(TrainerError) as caught:
        check_same_run(checkpoint_of(Config()), config, {**IDENTITY, **identity}, "out/run")

    message = str(caught.value)
    assert "dataset was abc and is bbbbbbbbbbbb;" in message
    assert "; and 2 more. Give a new --output" in message
