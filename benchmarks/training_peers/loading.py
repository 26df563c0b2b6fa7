"""The job that every way of loading does: all trials of train, shuffled, in batches, every epoch.

A pass goes over one epoch and does nothing with its batches. The first one is not timed: it
starts the workers, brings the files into the page cache, and adds up what is delivered, so that
all ways can be shown to deliver the same. Some passes are timed after that with the files in the
page cache, and some after the kernel was told to drop them from it. What bounds a way to load is
timed in turn with it, because the speed of memory differs from one minute to the next.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Trials of a batch; those of 16 sequences of 8.
BATCH_TRIALS = 128
#: Trials among which the trainer's stream shuffles, and those that shuffle in a buffer.
SHUFFLE_TRIALS = 2048
#: Of the peers' shards: the trainer's `SHARD_MB` in training_cases.py.
SHARD_BYTES = 1 << 26
SEED = 0
#: For which a way that reads the page cache is timed: the first passes of a process vary most.
LEAST_SECONDS = 3.0

Trials = NDArray[np.float16]
Content = tuple[int, int]
"""Number of trials, and the sum of their bits as unsigned integers, in any order."""


@dataclass(frozen=True)
class Passes:
    """A way to load, ready to begin.

    Attributes
    ----------
    files : sequence of Path
        What a pass reads; none where it reads memory.
    go : callable
        Goes over an epoch.
    content : callable
        Goes over an epoch and returns what was delivered; None where that cannot be compared.
    """

    files: Sequence[Path]
    go: Callable[[int], object]
    content: Callable[[int], Content | None]


def passes(
    files: Sequence[Path],
    batches: Callable[[int], Iterable[Any]],
    trials_of: Callable[[Any], Trials],
) -> Passes:
    """Make passes of something that yields the batches of an epoch.

    Parameters
    ----------
    files : sequence of Path
    batches : callable
        Returns the batches of an epoch.
    trials_of : callable
        Returns the float16 trials (n, n_freqs, n_times) of a batch.
    """

    def go(epoch: int) -> None:
        for _ in batches(epoch):
            pass

    return Passes(files, go, lambda epoch: content(map(trials_of, batches(epoch))))


def content(arrays: Iterable[Trials]) -> Content:
    """Add up what was delivered."""
    n_trials = total = 0
    for array in arrays:
        n_trials += len(array)
        total += int(array.view(np.uint16).sum(dtype=np.uint64))
    return n_trials, total


def measure(
    make: Callable[[], Passes], n_passes: int, bound: Callable[[], Passes] | None = None
) -> dict[str, Any]:
    """Open a way to load and time it.

    Parameters
    ----------
    make : callable
        Opens it.
    n_passes : int
        With the files in the page cache at least so many, and as many as `LEAST_SECONDS` take.
    bound : callable, optional
        Opens what it is compared with, which is timed before each pass.

    Returns
    -------
    dict
        `opening`, seconds until the first pass could begin; `content`; `warm` and `cold`,
        seconds of each pass, `cold` without any where nothing is read; `bound`, the same of what
        bounds it, or None.
    """
    started = time.perf_counter()
    own = make()
    opening = time.perf_counter() - started
    ways = [own] if bound is None else [bound(), own]
    for path in {path: None for way in ways for path in way.files}:
        fill(path)
    found: list[dict[str, Any]] = [
        {"content": way.content(0), "warm": [], "cold": []} for way in ways
    ]
    epochs = itertools.count(1)
    while len(found[0]["warm"]) < n_passes or sum(found[0]["warm"]) < LEAST_SECONDS:
        epoch = next(epochs)
        for way, result in zip(ways, found, strict=True):
            result["warm"].append(_seconds(way, epoch))
    for epoch in itertools.islice(epochs, n_passes):
        for way, result in zip(ways, found, strict=True):
            if way.files:
                for path in way.files:
                    evict(path)
                result["cold"].append(_seconds(way, epoch))
    return {"opening": opening, **found[-1], "bound": None if bound is None else found[0]}


def _seconds(way: Passes, epoch: int) -> float:
    started = time.perf_counter()
    way.go(epoch)
    return time.perf_counter() - started


def evict(path: Path) -> None:
    """Ask the kernel to drop a file from the page cache; pages that are mapped stay."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def fill(path: Path) -> None:
    """Read a file from start to end into the page cache.

    Anew, because Linux keeps in large pieces what was read so, and in pages of 4 KiB what was
    read in another order; the latter takes more than twice as long to read again.
    """
    evict(path)
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def shards(dataset: Path) -> list[Path]:
    """Return the shards of train of a dataset folder."""
    manifest = json.loads((dataset / "dataset.json").read_text())
    return [dataset / shard["path"] for shard in manifest["splits"]["train"]["shards"]]


def read_blocks(path: Path) -> Iterator[tuple[Trials, int]]:
    """Yield spectrograms and label of every block of a shard, read by tarfile and NumPy alone."""
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            # Copied first: NumPy takes it for a file of the disk otherwise.
            if member.name.endswith(".spectrogram.npy"):
                values: Trials = np.load(io.BytesIO(file.read()), allow_pickle=False)
            elif member.name.endswith(".json"):
                yield values, json.load(file)["label"]


def read_trials(dataset: Path) -> Iterator[tuple[Trials, int]]:
    """Yield the spectrogram (n_freqs, n_times) and the label of every trial of train."""
    for path in shards(dataset):
        for values, label in read_blocks(path):
            for trial in values:
                yield trial, label


def main(load: Callable[[Path], Passes], convert: Callable[[Path, Path], None]) -> None:
    """Command line of a peer: write the trials in its format, or load them."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("convert")
    command.add_argument("dataset", type=Path)
    command.add_argument("output", type=Path)
    command = commands.add_parser("load")
    command.add_argument("output", type=Path)
    command.add_argument("result", type=Path, help="JSON file")
    command.add_argument("--passes", type=int, required=True)
    args = parser.parse_args()
    if args.command == "convert":
        args.output.mkdir(parents=True)
        convert(args.dataset, args.output)
    else:
        found = measure(lambda: load(args.output), args.passes)
        args.result.write_text(json.dumps(found))
