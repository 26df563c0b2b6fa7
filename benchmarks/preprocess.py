"""Measure `beam_pipeline preprocess` against other ways to do the same job.

Generates tables of the lab's shape (float32 traces of 5,000 samples, 32 sessions), runs every
case on them as a fresh process with two workers, checks that all give the same statistics and the
same spectrograms, and prints a Markdown report. Nothing is subtracted: wall time is that of the
whole command. Tables are in the page cache when a case starts; what earlier cases wrote is on disk.

The peers are in benchmarks/peers. One environment will do: pip install -e '.[pipeline,dev,bench]'.
Fairer are two, because Beam imports pandas and others where it finds them: this interpreter's with
what a user of ours installs, '.[pipeline]', and psutil and webdataset; and --peer-python's with
'.[dev,bench]'.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measure
import numpy as np
import psutil
from preprocess_report import FULL_ROWS, ONCE, Run, Sizes, judge, report

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
#: Enough for the tables and what the largest case keeps at one time.
BYTES_PER_ROW = 250_000
#: Memory of the peers whose memory grows with the table.
PEER_BYTES_PER_ROW = {"beam": 700_000, "lab": 2_500_000}


@dataclass(frozen=True)
class Case:
    """One way to do the job: its script in benchmarks/peers and the packages that it needs."""

    script: str
    needs: tuple[str, ...] = ()
    of_peers: bool = False


CASES = {
    "loop": Case("loop.py"),
    "lab": Case("lab.py", ("pandas",), of_peers=True),
    "beam": Case("idiomatic_beam.py", ("apache-beam", "webdataset")),
    "datasets": Case("hf_datasets.py", ("datasets",), of_peers=True),
    "litdata": Case("lit_data.py", ("litdata", "torch"), of_peers=True),
}


class DifferentResultError(AssertionError):
    """Two cases do not give the same dataset, so their times cannot be compared."""


class Bench:
    """Runs cases on tables of any size in one folder."""

    def __init__(self, folder: Path, peer_python: str, repeats: int) -> None:
        self._folder = folder
        self._peer_python = peer_python
        self._repeats = repeats
        self._log = folder / "log.txt"
        self._ours: dict[int, Mapping[str, Any]] = {}
        self.runs: list[Run] = []
        self.notes: list[str] = []
        caches = folder / "caches"
        self._env = os.environ | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{PEERS}",
            "HF_HOME": str(caches / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "DATA_OPTIMIZER_CACHE_FOLDER": str(caches / "litdata"),
            "DATA_OPTIMIZER_DATA_CACHE_FOLDER": str(caches / "litdata-data"),
        }

    def ours(self, rows: int) -> None:
        """Measure `python -m beam_pipeline preprocess`."""
        table, output = self._table(rows), self._output
        command = [sys.executable, "-m", "beam_pipeline", "preprocess"]
        command += ["--input", str(table), "--output", str(output)]
        command += ["--sfreq", "1000", "--onset", "2.0"]
        command += ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
        self._measure("ours", rows, command)
        # The loop writes the same format.
        self._ours[rows] = self._inspect(sys.executable, CASES["loop"])
        self._clear()

    def peer(self, name: str, rows: int, variant: str = "") -> None:
        """Measure a peer; where ours has run on the same table, compare the results."""
        case = CASES[name]
        python = self._peer_python if case.of_peers else sys.executable
        command = self._command(python, case, "_".join(["process", *variant.split()]), rows)
        self._measure(f"{name} {variant}".strip(), rows, command)
        if rows in self._ours:
            found = self._inspect(python, case)
            lost = int(self._ours[rows]["n_trials"] - found["n_trials"])
            if name == "beam" and lost:
                # Elements that large get lost now and then between Beam 2.77's worker processes
                # and its local runner. Less work cannot make ours look better.
                self.notes.append(f"(c) lost {lost:,} of {rows:,} rows in silence.")
            else:
                compare(name, found, self._ours[rows])
        self._clear()

    def spectrograms_only(self, name: str, rows: int) -> None:
        """Measure a peer's single pass: no statistics, no normalisation, no mixing."""
        case = CASES[name]
        python = self._peer_python if case.of_peers else sys.executable
        command = self._command(python, case, "process_once", rows)
        self._measure(f"{name}{ONCE}", rows, command)
        self._clear()

    @property
    def _output(self) -> Path:
        return self._folder / "output"

    def _table(self, rows: int) -> Path:
        path = self._folder / f"traces-{rows}.parquet"
        if not path.exists():
            say(f"generating {rows:,} rows")
            script = ROOT / "benchmarks" / "lab_table.py"
            arguments = ["--rows", str(rows), "--output", str(path)]
            subprocess.run([sys.executable, str(script), *arguments], env=self._env, check=True)
        return path

    def _command(self, python: str, case: Case, work: str, rows: int) -> list[str]:
        return [python, str(PEERS / case.script), work, str(self._table(rows)), str(self._output)]

    def _measure(self, name: str, rows: int, command: Sequence[str]) -> None:
        usages = []
        for _ in range(self._repeats):
            self._clear()
            # Otherwise the disk would still be busy with what the last case wrote.
            os.sync()
            usages.append(measure.run(command, cwd=ROOT, env=self._env, log=self._log))
        usage = measure.middle(usages)
        say(f"{name}, {rows:,} rows: {usage.wall:.1f} s, {usage.memory / 1e9:.2f} GB")
        self.runs.append(Run(name, rows, usage))

    def _inspect(self, python: str, case: Case) -> Mapping[str, Any]:
        result = self._folder / "inspected.npz"
        command = [python, str(PEERS / case.script), "inspect", str(self._output), str(result)]
        measure.run(command, cwd=ROOT, env=self._env, log=self._log)
        with np.load(result) as arrays:
            return dict(arrays)

    def _clear(self) -> None:
        for folder in (self._output, self._folder / "caches"):
            shutil.rmtree(folder, ignore_errors=True)


def compare(name: str, found: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Check that a peer has done the same job as ours.

    Raises
    ------
    DifferentResultError
        If statistics differ by more than 1e-6 relative, a trial is missing, the first or last
        trial differs by more than rounding to float16, or shards do not mix sessions.
    """
    problems = []
    for key in ("mean", "std"):
        if not np.isclose(found[key], ours[key], rtol=1e-6, atol=0):
            problems.append(f"{key} {found[key]} instead of {ours[key]}")
    if found["n_trials"] != ours["n_trials"]:
        problems.append(f"{found['n_trials']} trials instead of {ours['n_trials']}")
    for key in ("first", "last"):
        # float16 keeps 11 bits; SciPy's and our kernel agree to 1e-4.
        values, expected = found[key].astype(float), ours[key].astype(float)
        if values.shape != expected.shape or not np.allclose(values, expected, 1e-3, 2e-4):
            problems.append(f"the {key} trial differs")
    if not np.allclose([found["train_mean"], found["train_std"]], [0, 1], atol=1e-3):
        problems.append("the train split is not normalised")
    if name != "lab" and found["shard_sessions"] < 2:
        problems.append("its train shards hold a single session each")
    if problems:
        raise DifferentResultError(f"{name}: {'; '.join(problems)}")


def say(text: str) -> None:
    """Report progress; the report itself goes to the standard output."""
    print(text, file=sys.stderr, flush=True)


def run_all(bench: Bench, peers: Sequence[str], sizes: Sizes) -> None:
    """Run ours and the peers at the sizes at which they are compared."""
    bench.ours(sizes.lab)
    if "lab" in peers:
        for variant in ("", "twice"):
            bench.peer("lab", sizes.lab // 2, variant)
            bench.peer("lab", sizes.lab, variant)
    if "beam" in peers:
        bench.ours(sizes.beam)
        bench.peer("beam", sizes.beam // 2)
        bench.peer("beam", sizes.beam)
    bench.ours(sizes.peers)
    for name in ("loop", "datasets", "litdata"):
        if name in peers:
            bench.peer(name, sizes.peers)
            bench.spectrograms_only(name, sizes.peers)
    for rows in (sizes.quarter, sizes.full):
        bench.ours(rows)
        if "loop" in peers:
            bench.peer("loop", rows)
    for name in ("datasets", "litdata"):
        if name in peers:
            bench.peer(name, sizes.full)


def installed_peers(wanted: Sequence[str], versions: dict[str, dict[str, str]]) -> list[str]:
    """Return the peers whose packages are there, and say which are left out."""
    kept = []
    for name in wanted:
        case = CASES[name]
        found = versions["peers" if case.of_peers else "ours"]
        missing = [package for package in case.needs if package not in found]
        if missing:
            say(f"left out: {name} needs {', '.join(missing)}; see --help")
        else:
            kept.append(name)
    return kept


def check_space(folder: Path, peers: Sequence[str], sizes: Sizes) -> None:
    """Refuse to start where the disk or the memory would fill up."""
    available = psutil.virtual_memory().available
    for peer, rows in (("beam", sizes.beam), ("lab", sizes.lab)):
        memory = rows * PEER_BYTES_PER_ROW[peer]
        if peer in peers and available < memory:
            raise SystemExit(
                f"{available / 1e9:.0f} GB of memory are free, the peer {peer} needs about "
                f"{memory / 1e9:.0f} GB at {rows:,} rows: leave it out of --peers"
            )
    measure.check_disk(folder, sizes.full * BYTES_PER_ROW)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=FULL_ROWS,
        help="rows of the largest table (default: the lab's %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a look in about a minute: 4,096 rows at most, where start-up hides the rest",
    )
    parser.add_argument(
        "--peers", nargs="*", choices=CASES, default=list(CASES), help="default: all of them"
    )
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        metavar="PATH",
        help="interpreter that has pandas, datasets, litdata and torch (default: this one)",
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="runs of each case; the median counts"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="for tables and outputs, about 20 GB at the full size; emptied of them at the end "
        "(default: a temporary folder)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there, too")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    sizes = Sizes.quick() if args.quick else Sizes.of(args.rows)
    versions = {
        "ours": measure.versions(sys.executable),
        "peers": measure.versions(args.peer_python),
    }
    peers = installed_peers(args.peers, versions)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=args.folder) as name:
        folder = Path(name)
        check_space(folder, peers, sizes)
        machine = measure.machine(folder, n_bytes=1 << (28 if args.quick else 31))
        bench = Bench(folder, args.peer_python, args.repeats)
        failure = ""
        try:
            run_all(bench, peers, sizes)
        except (measure.CommandError, DifferentResultError, subprocess.CalledProcessError) as error:
            # What has been measured until then took long enough to be worth printing.
            failure = str(error)
    targets = judge(bench.runs, sizes)
    print(report(bench.runs, targets, sizes, machine, versions, args.repeats))
    for note in bench.notes:
        print(note)
    if args.json:
        content = {
            "machine": machine,
            "versions": versions,
            "sizes": asdict(sizes),
            "repeats": args.repeats,
            "runs": [asdict(run) for run in bench.runs],
            "targets": [asdict(target) for target in targets],
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if failure:
        say(f"error: {failure}")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
