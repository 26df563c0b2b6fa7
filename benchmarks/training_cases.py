"""Runs the cases of the training benchmark, each as a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
from training_report import Loading, Start, Step

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "benchmarks" / "training_peers"
START_LIMIT_SECONDS = 600
#: Of the trainer's shards: the peers' `SHARD_BYTES` in training_peers/loading.py.
SHARD_MB = 64


def say(text: str) -> None:
    """Report progress; the report itself goes to the standard output."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Peer:
    """A package that is run by the peers' interpreter.

    Attributes
    ----------
    needs : str
        Its distribution.
    script : str, optional
        In benchmarks/training_peers, where it loads.
    """

    needs: str
    script: str | None = None


PEERS = {
    "webdataset": Peer("webdataset", "plain_webdataset.py"),
    "litdata": Peer("litdata", "lit_data.py"),
    "mosaic": Peer("mosaicml-streaming", "mosaic_streaming.py"),
    "vit_pytorch": Peer("vit-pytorch"),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes
    ----------
    rows : int
        Of the table; 0 where the dataset is given.
    passes : int
        Epochs that are timed, warm, and again cold, of each way to load.
    n_trials : int
        Of a sequence.
    batch_size : int
        Sequences of a training step.
    steps, stretches : int
        Steps of a stretch, and stretches, that are timed.
    repeats : int
        Processes of each case.
    """

    rows: int
    passes: int
    n_trials: int
    batch_size: int
    steps: int
    stretches: int
    repeats: int


class DifferentResultError(AssertionError):
    """Two ways deliver different trials, so their times cannot be compared."""


class Bench:
    """Runs cases on one dataset, in one folder."""

    def __init__(self, folder: Path, dataset: Path | None, peer_python: str, sizes: Sizes) -> None:
        self._folder = folder
        self._peer_python = peer_python
        self._sizes = sizes
        self._log, self._result = folder / "log.txt", folder / "result.json"
        self._content: dict[int, tuple[str, Any]] = {}
        self.loadings: list[Loading] = []
        self.steps: list[Step] = []
        self.starts: list[Start] = []
        caches = folder / "caches"
        self._env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "DATA_OPTIMIZER_CACHE_FOLDER": str(caches / "litdata"),
            "DATA_OPTIMIZER_DATA_CACHE_FOLDER": str(caches / "litdata-data"),
        }
        self._dataset = dataset or folder / "dataset"

    def make_dataset(self) -> None:
        """Generate a table of the lab's shape and preprocess it."""
        table = self._folder / "traces.parquet"
        say(f"making a dataset of {self._sizes.rows:,} rows")
        script = ROOT / "benchmarks" / "lab_table.py"
        rows = ["--rows", str(self._sizes.rows)]
        self._run([sys.executable, str(script), *rows, "--output", str(table)])
        command = [sys.executable, "-m", "beam_pipeline", "preprocess"]
        command += ["--input", str(table), "--output", str(self._dataset)]
        command += ["--sfreq", "1000", "--onset", "2.0", "--shard_mb", str(SHARD_MB)]
        command += ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
        self._run(command)
        table.unlink()

    def load(self, name: str, n_trials: int) -> None:
        """Measure one of the trainer's stores, and what bounds it."""
        command = [sys.executable, str(SCRIPTS / "stores.py"), name, str(self._dataset)]
        self._load(name, n_trials, [*command, str(self._result), "--n-trials", str(n_trials)])

    def load_peer(self, name: str) -> None:
        """Write the trials in a peer's format, and measure how it loads them."""
        converted = self._folder / "converted"
        command = [self._peer_python, str(SCRIPTS / (PEERS[name].script or ""))]
        self._run([*command, "convert", str(self._dataset), str(converted)])
        self._load(name, 1, [*command, "load", str(converted), str(self._result)])
        for path in (converted, self._folder / "caches"):
            shutil.rmtree(path, ignore_errors=True)

    def step(self, name: str) -> None:
        """Measure a training step."""
        sizes = self._sizes
        python = self._peer_python if name in PEERS else sys.executable
        command = [python, str(SCRIPTS / "step.py"), name, str(self._dataset), str(self._result)]
        command += ["--n-trials", str(sizes.n_trials), "--batch-size", str(sizes.batch_size)]
        command += ["--steps", str(sizes.steps), "--stretches", str(sizes.stretches)]
        usages, results = self._repeat(command)
        first = results[0]
        step = Step(
            name,
            sizes.batch_size,
            min(result["first"] for result in results),
            _all(results, "seconds"),
            first["parameters"],
            first["flops"],
            first["peak"],
            first["bfloat16"],
            first["compiled"],
            first["gpu_memory"] or max(usage.memory for usage in usages),
        )
        say(f"{name}: {step.rate:.3g} sequences/s")
        self.steps.append(step)

    def start(self, store: str, gpu: bool) -> None:
        """Measure a training command until its first step is done, then end it."""
        found = [self._start(store, gpu) for _ in range(self._sizes.repeats)]
        ready, first_step = min(found, key=lambda times: times[1])
        say(f"start, store {store}: {first_step:.2f} s")
        self.starts.append(Start(store, ready, first_step))

    def import_torch(self) -> None:
        """Measure what no training can do without."""
        command = [sys.executable, "-c", "import torch"]
        walls = [self._run(command).wall for _ in range(self._sizes.repeats)]
        self.starts.append(Start("torch", min(walls), None))

    def _load(self, name: str, n_trials: int, command: Sequence[str]) -> None:
        usages, results = self._repeat([*command, "--passes", str(self._sizes.passes)])
        bounds = [result["bound"] for result in results if result["bound"]]
        for result in (*results, *bounds):
            self._check_content(name, n_trials, result["content"])
        loading = Loading(
            name,
            n_trials,
            results[0]["content"][0],
            min(result["opening"] for result in results),
            _all(results, "warm"),
            _all(results, "cold"),
            _all(bounds, "warm"),
            _all(bounds, "cold"),
            max(usage.memory for usage in usages),
        )
        say(f"{name}, {n_trials} a sequence: {loading.rate:,.0f} trials/s")
        self.loadings.append(loading)

    def _check_content(self, name: str, n_trials: int, content: Any) -> None:
        other, expected = self._content.setdefault(n_trials, (name, content))
        if content not in (expected, None):
            raise DifferentResultError(
                f"{name} delivers {content} with {n_trials} trials a sequence, {other} {expected} "
                "(trials, sum of their bits)"
            )

    def _repeat(self, command: Sequence[str]) -> tuple[list[measure.Usage], list[dict[str, Any]]]:
        usages, results = [], []
        for _ in range(self._sizes.repeats):
            usages.append(self._run(command))
            results.append(json.loads(self._result.read_text()))
        return usages, results

    def _run(self, command: Sequence[str]) -> measure.Usage:
        # Otherwise the disk would still be busy with what the last case wrote.
        os.sync()
        return measure.run(command, cwd=ROOT, env=self._env, log=self._log)

    def _start(self, store: str, gpu: bool) -> tuple[float, float]:
        """Return the seconds until the plan stands on the screen, and until a step is logged."""
        run = self._folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        command = [sys.executable, "-m", "trainer", "train", "--data", str(self._dataset)]
        command += ["--output", str(run), "--store", store, "--train.log_every", "1"]
        if not gpu:
            # So that the step itself does not hide the start.
            command += ["--model.size", "tiny", "--train.batch_size", "1"]
        with self._log.open("w") as log:
            started = time.perf_counter()
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                ready = self._await(child, self._log, "Steps: ") - started
                first_step = self._await(child, run / "metrics.jsonl", '"step": 1,') - started
            finally:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        shutil.rmtree(run)
        return ready, first_step

    def _await(self, child: subprocess.Popen[bytes], path: Path, text: str) -> float:
        """Return when a file holds a text."""
        limit = time.perf_counter() + START_LIMIT_SECONDS
        while not (path.exists() and text in path.read_text(errors="replace")):
            if child.poll() is not None or time.perf_counter() > limit:
                tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
                raise measure.CommandError(f"the training took no step:\n{tail}")
            time.sleep(0.01)
        return time.perf_counter()


def _all(results: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Return the times of every pass of every process."""
    return [seconds for result in results for seconds in result[name]]
