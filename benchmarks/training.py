"""Measure how fast `trainer` loads, trains and starts, against other ways to do the same.

Loading: all trials of train, shuffled, in batches of 128, with one worker where there are workers;
sequences do not overlap, so that each trial is delivered once. Step: one step of the optimiser at
the lab's size, 1,953 tokens. Start: from the command to the end of the first step. Every case is a
fresh process, checked to deliver the same trials. Shards are in the page cache, but for the column
that says otherwise.

The peers are in benchmarks/training_peers. They need an environment of their own, because
mosaicml-streaming wants an older NumPy:
    python -m venv peers && peers/bin/pip install -r benchmarks/training_peers/requirements.txt
and then --peer-python peers/bin/python. The rest needs: pip install -e '.[pipeline,trainer,bench]'
(without `pipeline` where --data names a dataset of the lab's shape).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import measure
import torch
from training_cases import PEERS, Bench, DifferentResultError, Sizes, say
from training_report import BOUNDS, SHAPE, Runs, judge, report

#: Table, dataset, and the trials of train in one peer's format at a time.
BYTES_PER_ROW = 160_000
PARTS = ("loading", "step", "start")


def run_all(bench: Bench, parts: Iterable[str], peers: Sequence[str], n: int, gpu: bool) -> None:
    """Run all cases; those that are compared stand next to each other in time."""
    if "loading" in parts:
        for n_trials, name in product((1, n), BOUNDS):
            bench.load(name, n_trials)
        for name in peers:
            if PEERS[name].script:
                bench.load_peer(name)
    if "step" in parts:
        ours = ("ours", "eager") if gpu else ("ours", "compiled", "bfloat16")
        for name in (*ours, "lab", "encoder"):
            bench.step(name)
        if "vit_pytorch" in peers:
            bench.step("vit_pytorch")
    if "start" in parts:
        bench.import_torch()
        for store in ("memory", "stream"):
            bench.start(store, gpu)


def installed_peers(wanted: Iterable[str], versions: dict[str, str]) -> list[str]:
    """Return the peers whose packages are there, and say which are left out."""
    kept = []
    for name in wanted:
        if PEERS[name].needs in versions:
            kept.append(name)
        else:
            say(f"left out: {name} needs {PEERS[name].needs}; see --help")
    return kept


def find_python(name: str) -> str:
    """Return an interpreter's path, for the commands run elsewhere; its links are its own."""
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"--peer-python {name} is no program")
    return str(Path(found).absolute())


def check_dataset(dataset: Path) -> None:
    """Refuse a dataset of another shape than the lab's."""
    try:
        shape = json.loads((dataset / "dataset.json").read_text())["shape"][1:]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"--data {dataset} is no dataset folder: {error}") from error
    if tuple(shape) != SHAPE:
        raise SystemExit(f"--data {dataset} has spectrograms of {shape}, not {list(SHAPE)}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=20_000, help="of the table (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a look in about two minutes: 4,096 rows, few steps"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="use this dataset instead of making one"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), help="default: all of them"
    )
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        metavar="PATH",
        help="interpreter that has the peers (default: this one)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        help="sequences of a training step (default: 16 as the lab's on a GPU, else 2)",
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="processes of each case; medians count"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="for all that is written, removed at the end (default: a temporary folder)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there, too")
    return parser.parse_args()


def choose_sizes(args: argparse.Namespace, gpu: bool) -> Sizes:
    """Return how much is to be measured."""
    rows = 0 if args.data else 4_096 if args.quick else args.rows
    batch_size = args.batch_size or (16 if gpu else 2)
    if args.quick:
        return Sizes(rows, 3, 2, batch_size, 1, 2, args.repeats)
    return Sizes(rows, 7, 8, batch_size, 20 if gpu else 1, 5 if gpu else 3, args.repeats)


def describe(sizes: Sizes, gpu: bool) -> list[str]:
    """Return what a reader must know of the conditions."""
    passes = f"{sizes.passes} epochs" + f" in each of {sizes.repeats} processes" * (
        sizes.repeats > 1
    )
    notes = [
        f"loading: medians of at least {passes}, after one that is not timed, the files in the "
        f"page cache; *from disk*: of {passes}, the files dropped from the page cache before each. "
        "Batches of 128 trials. *Opening*: what comes before the first epoch; ours reads and "
        "verifies all shards",
        f"step: batches of {sizes.batch_size} sequences of {sizes.n_trials} x {SHAPE[0]} x "
        f"{SHAPE[1]}, patches of 2 x 8 x 8; TFLOP/s count the matrix products of ours; memory of "
        + ("the GPU" if gpu else "the process"),
        "start: "
        + ("E3" if gpu else "E3 with the tiny model and one sequence a batch")
        + ", all shards read and verified first",
    ]
    if not gpu:
        notes.append("no GPU: compilation, bfloat16 and MFU are not what they would be on one")
    return notes


def main() -> int:
    args = parse_arguments()
    peer_python = find_python(args.peer_python)
    gpu = torch.cuda.is_available()
    sizes = choose_sizes(args, gpu)
    versions = {
        "ours": measure.versions(sys.executable),
        "peers": measure.versions(peer_python),
    }
    peers = installed_peers(args.peers, versions["peers"])
    if args.data:
        args.data = args.data.absolute()
        check_dataset(args.data)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=args.folder) as name:
        folder = Path(name).absolute()
        measure.check_disk(folder, sizes.rows * BYTES_PER_ROW)
        machine = measure.machine(folder, n_bytes=1 << (28 if args.quick else 31))
        machine["GPU"] = torch.cuda.get_device_name() if gpu else "none"
        bench = Bench(folder, args.data, peer_python, sizes)
        failure = ""
        try:
            if not args.data:
                bench.make_dataset()
            run_all(bench, args.parts, peers, sizes.n_trials, gpu)
        except (measure.CommandError, DifferentResultError) as error:
            # What has been measured until then took long enough to be worth printing.
            failure = str(error)
    runs = Runs(bench.loadings, bench.steps, bench.starts)
    print(report(runs, machine, versions, describe(sizes, gpu), gpu))
    if args.json:
        content = {
            "machine": machine,
            "versions": versions,
            "sizes": asdict(sizes),
            **asdict(runs),
            "targets": [asdict(target) for target in judge(runs, gpu)],
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if failure:
        say(f"error: {failure}")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
