"""Small training runs for tests: how they are started, and what they leave."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from trainer.training.checkpoint import load_checkpoint, read_marker

ROOT = Path(__file__).resolve().parents[1]
N_TRIALS = 4
MODEL: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 0.1}
#: Of a log line, what depends on how fast the run was.
TIMING = {"sequences_per_second", "data_wait"}
#: Of a process whose numbers are to be compared: one thread, and no GPU.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(ROOT),
}


def flags(dataset: Path | str, output: Path | str, **more: Any) -> list[str]:
    """Flags of a run that takes a second; `more` by field, with `__` for the dot."""
    values: dict[str, Any] = {
        "sequence.n_trials": N_TRIALS,
        **{f"model.{name}": value for name, value in MODEL.items()},
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.log_every": 1,
        "evaluation.n_bootstrap": 50,
        "evaluation.n_permutations": 50,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    fields = [f"--{name}={'null' if value is None else value}" for name, value in values.items()]
    return ["train", "--data", str(dataset), "--output", str(output), *fields]


def log_of(run: Path, split: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def last_state(run: Path) -> dict[str, Any]:
    marker = read_marker(run / "checkpoints")
    assert marker
    return load_checkpoint(run / "checkpoints", marker.last)


def best_state(run: Path) -> dict[str, Any]:
    marker = read_marker(run / "checkpoints")
    assert marker
    return load_checkpoint(run / "checkpoints", marker.best[0])


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit, at any depth; the length of a log with times in it is no part of a state."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a.keys() - {"log_bytes"}:
            assert_equal(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


def curves(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in line.items() if name not in TIMING} for line in lines]
