"""Measure how fast traces come out of BigQuery's Storage Read API into NumPy arrays.

One server on loopback, in a process of its own, serves tables of the lab's shape (arrays of 5,000
FLOAT64) to our `BigQuerySource` and to Beam's ``ReadFromBigQuery(method=DIRECT_READ)``. Each run is
a fresh process with a Beam pipeline on the same in-process runner, which makes one NumPy array of
each trace; a checksum over all samples shows that all read the same. Time goes from the start of
the pipeline, sessions and metadata included, to its end; imports are left out. The first run of a
case does not count: the server makes its messages then. What a further row takes, the start of a
pipeline left out, is the slope from a small table to a large one.

The server neither limits the rate nor adds latency: what is compared are the readers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import measure

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "bigquery_cases.py"
TARGET = 5.0
TITLES = {
    "ours": "**`BigQuerySource`**",
    "beam avro": "`ReadFromBigQuery(method=DIRECT_READ)`: Avro",
    "beam arrow": "`ReadFromBigQuery(method=DIRECT_READ, use_native_datetime=True)`: Arrow",
}
#: Avro is slow to write for the server, too.
SIZES = {"ours": (4096, 16384), "beam avro": (512, 2048), "beam arrow": (4096, 16384)}
PACKAGES = (
    *("apache-beam", "numpy", "pyarrow", "fastavro"),
    *("google-cloud-bigquery-storage", "grpcio", "protobuf"),
)


class DifferentRowsError(AssertionError):
    """Two runs did not read the same samples, so their times cannot be compared."""


@dataclass(frozen=True)
class Result:
    """The quickest run of one case on its small and its large table.

    Attributes
    ----------
    rows : tuple of int
    seconds : tuple of float
    memory : int
        Highest of all runs, in bytes.
    """

    rows: tuple[int, int]
    seconds: tuple[float, float]
    memory: int

    @property
    def rate(self) -> float:
        """Rows a second of the whole pipeline on the large table."""
        return self.rows[1] / self.seconds[1]

    @property
    def further_rate(self) -> float:
        """Rows a second beyond those of the small table."""
        return (self.rows[1] - self.rows[0]) / (self.seconds[1] - self.seconds[0])


@contextmanager
def server(env: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the endpoint of a server, and the environment that leads to it."""
    sizes = sorted({str(size) for sizes in SIZES.values() for size in sizes})
    command = [sys.executable, str(SCRIPT), "serve", *sizes]
    with subprocess.Popen(
        command, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        answer = json.loads(process.stdout.readline())
        yield answer["endpoint"], {**env, **answer["environment"]}


class Bench:
    """Runs cases against one server."""

    def __init__(self, endpoint: str, env: Mapping[str, str], folder: Path, repeats: int) -> None:
        self._endpoint = endpoint
        self._env = env
        self._folder = folder
        self._repeats = repeats
        self._checksums: dict[int, int] = {}

    def measure(self, case: str) -> Result:
        """Run a case on its two tables.

        Raises
        ------
        DifferentRowsError
            If two runs on one table read different samples.
        """
        small, large = SIZES[case]
        runs = [self._run(case, size) for size in (small, large)]
        seconds = [min(run["seconds"] for run in of_size) for of_size in runs]
        memory = max(run["memory"] for of_size in runs for run in of_size)
        result = Result((small, large), (seconds[0], seconds[1]), memory)
        say(f"{case}: {result.rate:,.0f} rows/s, then {result.further_rate:,.0f}")
        return result

    def _run(self, case: str, size: int) -> list[dict[str, Any]]:
        runs = []
        for _ in range(self._repeats + 1):
            path = self._folder / "result.json"
            command = [sys.executable, str(SCRIPT), case, str(size), self._endpoint, str(path)]
            measure.run(command, cwd=ROOT, env=self._env, log=self._folder / "log.txt")
            run = json.loads(path.read_text())
            if run["rows"] != size or self._checksums.setdefault(size, run["bits"]) != run["bits"]:
                raise DifferentRowsError(f"{case} read other samples of the {size:,} rows")
            runs.append(run)
        return runs[1:]


def say(text: str) -> None:
    """Report progress; the report itself goes to the standard output."""
    print(text, file=sys.stderr, flush=True)


def targets(results: Mapping[str, Result]) -> Iterator[tuple[str, float]]:
    """Yield what is compared, and by how much ours is faster."""
    ours = results["ours"]
    for peer in ("beam avro", "beam arrow"):
        text = f"a further row, rows/s over {TITLES[peer]}"
        yield text, ours.further_rate / results[peer].further_rate
    text = f"whole pipeline, {ours.rows[1]:,} rows, over {TITLES['beam arrow']}"
    yield text, ours.rate / results["beam arrow"].rate


def report(
    results: Mapping[str, Result],
    machine: Mapping[str, str],
    versions: Mapping[str, str],
    repeats: int,
) -> str:
    """Return the whole report in Markdown."""
    lines = ["# BigQuery", "", *(f"- {name}: {value}" for name, value in machine.items())]
    lines += [f"- versions: {', '.join(f'{name} {found}' for name, found in versions.items())}"]
    lines += [f"- rows of 5,000 FLOAT64 (40 kB); the quickest of {repeats} runs", ""]
    lines += ["| target | found | asked | |", "|---|---:|---:|---|"]
    for text, found in targets(results):
        verdict = "pass" if found >= TARGET else "**FAIL**"
        lines.append(f"| {text} | {found:.1f} | ≥ {TARGET:g} | {verdict} |")
    lines += [
        "",
        "| reader | rows | s | rows/s | a further row: rows/s | MB/s | memory, GB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case, result in results.items():
        lines.append(
            f"| {TITLES[case]} | {result.rows[1]:,} | {result.seconds[1]:.2f} "
            f"| {result.rate:,.0f} | {result.further_rate:,.0f} "
            f"| {0.04 * result.further_rate:,.0f} | {result.memory / 1e9:.2f} |"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=2, help="runs that count (default %(default)s)"
    )
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    env = {name: value for name, value in os.environ.items() if name != "GOOGLE_CLOUD_PROJECT"}
    env["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        machine = measure.machine(folder, n_bytes=1 << 28)
        with server(env) as (endpoint, led):
            bench = Bench(endpoint, led, folder, args.repeats)
            results = {case: bench.measure(case) for case in TITLES}
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    print(report(results, machine, versions, args.repeats))
    return 0


if __name__ == "__main__":
    sys.exit(main())
