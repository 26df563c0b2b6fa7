"""The limit: two processes, no framework, the kernel and the tar writer of beam_pipeline.

Pass 1 decodes each row group, lays its traces into one raw file, and sums up the spectrograms of
train. Pass 2 writes shard after shard from that file, which the page cache holds.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from job import (
    BLOCK_TRIALS,
    WORKERS,
    Block,
    Trial,
    kernel,
    main,
    mean_std,
    normalize,
    plan,
    sums,
    trace_array,
    write_stats,
)
from numpy.typing import NDArray

from beam_pipeline.shards import Sample, write_shard
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.splits import SPLITS


@dataclass(frozen=True)
class RawTraces:
    """The traces of a table in one file of float32, row after row."""

    table: Path
    file: Path
    spectrogram: Spectrogram

    def row_groups(self) -> list[tuple[int, int]]:
        """Return (index, first row) of each row group."""
        metadata = pq.read_metadata(self.table)
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return [(i, sum(counts[:i])) for i in range(len(counts))]

    def decode(self, row_group: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (row in the group, traces), a few at a time."""
        with pq.ParquetFile(self.table) as file:
            table = file.read_row_group(row_group, ["trace"], use_threads=False)
        traces = trace_array(table.column("trace"))
        for row in range(0, len(traces), BLOCK_TRIALS):
            yield row, traces[row : row + BLOCK_TRIALS]

    def store(self, is_train: NDArray[np.bool_], row_group: tuple[int, int]) -> NDArray[np.float64]:
        """Lay a row group into the file; return the `sums` over its spectrograms of train."""
        index, first_row = row_group
        totals = np.zeros(3)
        with self.file.open("r+b", buffering=0) as file:
            file.seek(first_row * self.spectrogram.n_samples * 4)
            for row, traces in self.decode(index):
                file.write(traces)
                first = first_row + row
                train = traces[is_train[first : first + len(traces)]]
                if len(train):
                    totals += sums(self.spectrogram(train)[0])
        return totals

    def read(self, block: Block) -> NDArray[np.float32]:
        """Return the traces of a block."""
        shape = block.stop - block.start, self.spectrogram.n_samples
        start = block.start * shape[1] * 4
        return np.fromfile(self.file, np.float32, shape[0] * shape[1], offset=start).reshape(shape)


def in_processes(work: Callable[[Any], Any], tasks: list[Any]) -> list[Any]:
    """Do tasks in `WORKERS` processes, each taking the next when it is free."""
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        return pool.map(work, tasks, chunksize=1)


def store_and_measure(traces: RawTraces, is_train: NDArray[np.bool_]) -> tuple[float, float]:
    """Pass 1: fill the raw file; return mean and standard deviation of train."""
    traces.file.touch()
    parts = in_processes(partial(traces.store, is_train), traces.row_groups())
    return mean_std(np.sum(parts, axis=0))


def write(
    traces: RawTraces, output: Path, mean: float, std: float, shard: tuple[str, list[Block]]
) -> None:
    """Pass 2: write one shard."""
    path, blocks = shard

    def samples() -> Iterator[Sample]:
        for block in blocks:
            values, baseline = traces.spectrogram(traces.read(block))
            yield Sample(block.key, normalize(values, mean, std), baseline, block.metadata)

    write_shard(output, path, samples())


def process(table: Path, output: Path) -> None:
    """Do the whole job."""
    dataset = plan(table)
    traces = RawTraces(table, output / "traces.f32", kernel())
    mean, std = store_and_measure(traces, dataset.is_train)
    for split in SPLITS:
        (output / split).mkdir()
    in_processes(partial(write, traces, output, mean, std), list(dataset.shards.items()))
    traces.file.unlink()
    write_stats(output, mean, std)


def write_once(traces: RawTraces, output: Path, row_group: tuple[int, int]) -> None:
    """Write the spectrograms of one row group to a shard of its own."""
    index, _ = row_group

    def samples() -> Iterator[Sample]:
        for row, segments in traces.decode(index):
            values, baseline = traces.spectrogram(segments)
            yield Sample(f"{index:05d}-{row:06d}", values.astype(np.float16), baseline, {})

    write_shard(output, f"{index:05d}.tar", samples())


def process_once(table: Path, output: Path) -> None:
    """Only turn traces into spectrograms."""
    traces = RawTraces(table, Path(os.devnull), kernel())
    in_processes(partial(write_once, traces, output), traces.row_groups())


def read(output: Path) -> Iterator[Trial]:
    """Yield the trials of tar shards of blocks (contract 2.2), ours or the loop's."""
    for split in SPLITS:
        for path in sorted((output / split).glob("*.tar")):
            with tarfile.open(path) as archive:
                for spectrogram, metadata in _samples(archive):
                    trials = zip(metadata["trial_num"], spectrogram, strict=True)
                    for trial_num, values in trials:
                        yield split, path.name, metadata["session"], trial_num, values


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[NDArray[np.float16], dict[str, Any]]]:
    for member in archive:
        file = archive.extractfile(member)
        assert file is not None
        if member.name.endswith(".spectrogram.npy"):
            spectrogram = np.load(io.BytesIO(file.read()), allow_pickle=False)
        elif member.name.endswith(".json"):
            yield spectrogram, json.load(file)


if __name__ == "__main__":
    main(process, read, process_once=process_once)
