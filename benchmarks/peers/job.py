"""The job that every peer does, and how its result is read back for comparison.

Job: spectrograms of all traces with the default options; mean and standard deviation over the
train split; normalised float16 in shards of 128 MB that mix sessions, a folder a split.
Peers get the plan (splits, blocks, shards) from here; it takes a fraction of a second.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beam_pipeline.blocks import (
    block_key,
    key_hash,
    n_shards_for,
    shard_index,
    shard_path,
    shard_starts,
)
from beam_pipeline.shards import tar_sample_size
from beam_pipeline.spectrogram import Spectrogram, SpectrogramOptions
from beam_pipeline.splits import SPLITS, SessionCount, assign_splits

SFREQ = 1000.0
WORKERS = 2
BLOCK_TRIALS = 32
SHARD_MB = 128
STATS = "spectrogram_norm_stats.json"


def kernel() -> Spectrogram:
    """Return the kernel of beam_pipeline with its default options."""
    return Spectrogram(SpectrogramOptions(sfreq=SFREQ))


@dataclass(frozen=True)
class Block:
    """Consecutive trials of one session: rows ``start`` to ``stop`` of the table.

    `metadata` is the json member of contract 2.2.
    """

    key: str
    start: int
    stop: int
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What goes where.

    Attributes
    ----------
    split_of : dict
        Split of each session.
    is_train : array of bool
        For each row of the table.
    shards : dict
        Blocks of each shard, by its path, in the order of a hash of their keys.
    """

    split_of: dict[str, str]
    is_train: NDArray[np.bool_]
    shards: dict[str, list[Block]]

    def shards_of(self, split: str) -> list[list[Block]]:
        """Return the blocks of each shard of a split."""
        return [blocks for path, blocks in self.shards.items() if path.startswith(f"{split}/")]


def plan(table: Path) -> Plan:
    """Read all but the traces and decide what goes where.

    Relies on what the benchmark's table promises: rows are ordered by session and trial.
    """
    names = ["session", "condition", "trial_num", "frequency", "amplitude"]
    rows = pq.read_table(table, columns=names, use_threads=False).to_pydict()
    sessions = np.array(rows["session"])
    edges = [0, *(np.flatnonzero(sessions[1:] != sessions[:-1]) + 1).tolist(), len(sessions)]
    spans = list(pairwise(edges))
    counts = [
        SessionCount(rows["session"][first], None, rows["condition"][first], last - first)
        for first, last in spans
    ]
    split_of = assign_splits(counts)
    blocks = [block for span in spans for block in _blocks(rows, *span)]
    is_train = np.array([split_of[session] == "train" for session in rows["session"]])
    return Plan(split_of, is_train, _shards(blocks, split_of))


def _blocks(rows: dict[str, list[Any]], first: int, last: int) -> Iterator[Block]:
    session, condition = rows["session"][first], rows["condition"][first]
    for number, start in enumerate(range(first, last, BLOCK_TRIALS)):
        stop = min(start + BLOCK_TRIALS, last)
        metadata = {
            "session": session,
            "subject": None,
            "condition": condition,
            "label": sorted(set(rows["condition"])).index(condition),
            "block": number,
            **{name: rows[name][start:stop] for name in ("trial_num", "frequency", "amplitude")},
        }
        yield Block(block_key(session, number), start, stop, metadata)


def _shards(blocks: list[Block], split_of: dict[str, str]) -> dict[str, list[Block]]:
    spectrogram = kernel()
    shape = len(spectrogram.freqs), len(spectrogram.times)
    shards: dict[str, list[Block]] = defaultdict(list)
    for split in SPLITS:
        own = [block for block in blocks if split_of[block.metadata["session"]] == split]
        own.sort(key=lambda block: key_hash(block.key))
        hashes = [key_hash(block.key) for block in own]
        n_bytes = sum(tar_sample_size(block.stop - block.start, *shape) for block in own)
        n_shards = n_shards_for(n_bytes, len(own), SHARD_MB, None)
        starts = shard_starts(hashes, n_shards)
        for block, value in zip(own, hashes, strict=True):
            shards[shard_path(split, shard_index(value, starts), n_shards)].append(block)
    return dict(shards)


def trace_array(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float32]:
    """View a column of lists of equal length as float32 of shape (n, n_samples)."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    traces: NDArray[np.float32] = column.flatten().to_numpy().reshape(len(column), -1)
    return traces


def sums(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return count, sum and sum of squares in float64."""
    wide = values.astype(np.float64).ravel()
    return np.array([wide.size, wide.sum(), np.einsum("i,i->", wide, wide)])


def mean_std(totals: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and population standard deviation from added `sums`."""
    count, total, squares = totals.tolist()
    mean = total / count
    return mean, float(np.sqrt(squares / count - mean**2))


def normalize(values: NDArray[np.float32], mean: float, std: float) -> NDArray[np.float16]:
    """Normalise in place and round to float16, in the order of operations of beam_pipeline."""
    values -= np.float32(mean)
    values *= np.float32(1.0 / std)
    return values.astype(np.float16)


def write_stats(output: Path, mean: float, std: float) -> None:
    """Write the statistics of train beside the shards."""
    (output / STATS).write_text(json.dumps({"mean": mean, "std": std}))


Trial = tuple[str, str, str, int, NDArray[Any]]
"""Split, shard, session, trial_num and values (n_freqs, n_times) of one trial of an output."""


def inspect(output: Path, trials: Iterable[Trial]) -> dict[str, Any]:
    """Sum up what a peer has written, read back from what it wrote.

    Returns
    -------
    dict
        The statistics of train; the number of trials, shards and, in a train shard, sessions (the
        median: what remains for the last shard may be one block); mean and standard deviation of
        the values of train; the first and the last trial by (session, trial_num).
    """
    stats = json.loads((output / STATS).read_text())
    sessions_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    values_of: dict[tuple[str, int], NDArray[Any]] = {}
    seen = set()
    totals = np.zeros(3)
    for split, shard, session, trial_num, values in trials:
        key = session, trial_num
        seen.add(key)
        sessions_of[split, shard].add(session)
        if split == "train":
            totals += sums(values)
        # Only the first and the last trial so far are kept.
        values_of[key] = values.copy()
        values_of = {kept: values_of[kept] for kept in (min(values_of), max(values_of))}
    train_mean, train_std = mean_std(totals)
    return {
        "mean": stats["mean"],
        "std": stats["std"],
        "n_trials": len(seen),
        "n_shards": len(sessions_of),
        "shard_sessions": median(
            len(found) for (split, _), found in sessions_of.items() if split == "train"
        ),
        "train_mean": train_mean,
        "train_std": train_std,
        "first": values_of[min(values_of)],
        "last": values_of[max(values_of)],
    }


def main(
    process: Callable[[Path, Path], None],
    read: Callable[[Path], Iterator[Trial]],
    **others: Callable[[Path, Path], None],
) -> None:
    """Command line of a peer: do the job, or read its result back.

    Parameters
    ----------
    process : callable
        Does the whole job: table, output folder.
    read : callable
        Yields the trials of an output folder.
    **others : callable
        Variants, under the names of their commands; ``process_once`` only turns traces into
        float16 spectrograms on disk: no statistics, no normalisation, no mixing.
    """
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    jobs = {"process": process} | others
    for name in jobs:
        command = commands.add_parser(name)
        command.add_argument("table", type=Path)
        command.add_argument("output", type=Path)
    command = commands.add_parser("inspect")
    command.add_argument("output", type=Path)
    command.add_argument("result", type=Path, help="npz file")
    args = parser.parse_args()
    if args.command == "inspect":
        np.savez(args.result, **inspect(args.output, read(args.output)))
    else:
        args.output.mkdir(parents=True)
        jobs[args.command](args.table, args.output)
