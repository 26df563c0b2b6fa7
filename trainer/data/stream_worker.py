"""What one worker does in an epoch: read the bytes of its batches, a little ahead of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from trainer.data.range_reader import RangeReader
from trainer.data.split_index import SplitIndex, byte_runs
from trainer.data.stream_plan import StreamPlan, WorkerPlan

#: Blocks announced at a time: each is a round trip where the shards are not on this machine.
READ_AHEAD = 16


def deliver(
    reader: RangeReader,
    plan: StreamPlan,
    worker: WorkerPlan,
    numbers: range,
    trial_bytes: int,
    buffer_of: Callable[[int], memoryview],
) -> Iterator[int]:
    """Fill a buffer with each of a worker's batches.

    Parameters
    ----------
    reader : RangeReader
        Of the split's shards.
    plan : StreamPlan
    worker : WorkerPlan
    numbers : range
        The worker's batches that are wanted, consecutive; the last may be short or empty.
    trial_bytes : int
        Size of a spectrogram.
    buffer_of : callable
        Returns the bytes that a batch is to be written to, from their start.

    Yields
    ------
    int
        The number of each batch that was written.

    Raises
    ------
    DatasetError
        If a shard cannot be read or ends early.
    """
    rows = plan.sequences.rows[worker.order]
    # The last place that is read by a batch or one before it, the first by it or one after it.
    reached = np.maximum.accumulate(worker.place)
    needed = np.minimum.accumulate(worker.place[::-1])[::-1]
    row_ranges = _row_ranges(rows, worker.place)
    announced = -1
    for number in numbers:
        part = worker.batch(number, plan.batch_size)
        place = worker.place[part]
        if len(place):
            first, last = int(needed[part.start]), int(reached[part.start + len(place) - 1])
            reader.forget(first)
            if last >= announced:
                begin = first if announced < 0 else announced
                announced = min(last + READ_AHEAD, len(row_ranges))
                ahead = np.arange(begin, announced)
                _announce(reader, plan.index, ahead, row_ranges[ahead], trial_bytes)
            _read(reader, plan.index, place, rows[part], trial_bytes, buffer_of(number))
        yield number


def _announce(
    reader: RangeReader,
    index: SplitIndex,
    places: NDArray[np.int64],
    row_ranges: NDArray[np.int64],
    trial_bytes: int,
) -> None:
    rows = np.concatenate([np.arange(first, end) for first, end in row_ranges.tolist()])
    group = np.repeat(places, row_ranges[:, 1] - row_ranges[:, 0])
    runs = byte_runs(index, rows, group, trial_bytes)
    columns = (group[runs.at], runs.shard, runs.start, runs.size, rows[runs.at])
    reader.announce(zip(*(column.tolist() for column in columns), strict=True))


def _read(
    reader: RangeReader,
    index: SplitIndex,
    place: NDArray[np.int64],
    rows: NDArray[np.int64],
    trial_bytes: int,
    out: memoryview,
) -> None:
    n_sequences, n_trials = rows.shape
    group = np.repeat(np.arange(n_sequences), n_trials)
    runs = byte_runs(index, rows.ravel(), group, trial_bytes)
    to = runs.at * trial_bytes
    buffers = [
        out[low:high] for low, high in zip(to.tolist(), (to + runs.size).tolist(), strict=True)
    ]
    columns = (place[group[runs.at]].tolist(), runs.shard.tolist(), runs.start.tolist())
    reader.read(zip(*columns, buffers, strict=True))


def _row_ranges(rows: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first row that the sequences of each place need, and the end: (n_places, 2)."""
    ranges = np.zeros((int(place.max(initial=-1)) + 1, 2), np.int64)
    ranges[:, 0] = np.iinfo(np.int64).max
    np.minimum.at(ranges[:, 0], place, rows[:, 0])
    np.maximum.at(ranges[:, 1], place, rows[:, -1] + 1)
    return ranges
