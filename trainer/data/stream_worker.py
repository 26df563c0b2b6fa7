"""What one worker does in an epoch: read the bytes of its batches, a little ahead of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trainer.data.range_reader import Parts, RangeReader
from trainer.data.split_index import SplitIndex, byte_runs
from trainer.data.stream_plan import StreamPlan, WorkerPlan

#: Blocks announced at a time: each is a round trip where the shards are not on this machine.
READ_AHEAD = 16
#: Batches whose byte ranges are worked out at once: NumPy takes as long for one as for several.
BATCHES_AT_ONCE = 16


def deliver(
    reader: RangeReader,
    plan: StreamPlan,
    worker: WorkerPlan,
    numbers: range,
    trial_bytes: int,
    fill_next: Callable[[], tuple[int, memoryview]],
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
    fill_next : callable
        Returns the slot that the next batch is to be written to, from its start, and its bytes.

    Yields
    ------
    int
        The slot of each batch that was written.

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
    parts = _parts(plan, worker, numbers, trial_bytes)
    for number, batch_parts in zip(numbers, parts, strict=True):
        slot, out = fill_next()
        part = worker.batch(number, plan.batch_size)
        end = min(part.stop, len(worker.place))
        if part.start < end:
            first, last = int(needed[part.start]), int(reached[end - 1])
            reader.forget(first)
            if last >= announced:
                begin = first if announced < 0 else announced
                announced = min(last + READ_AHEAD, len(row_ranges))
                _announce(reader, plan.index, row_ranges, range(begin, announced), trial_bytes)
            reader.read(batch_parts, out)
        yield slot


def _announce(
    reader: RangeReader,
    index: SplitIndex,
    row_ranges: NDArray[np.int64],
    places: range,
    trial_bytes: int,
) -> None:
    ranges = row_ranges[places.start : places.stop]
    # What the kernel drops it drops in stretches, and ranges take longer to work out than a look.
    block = index.block_of(ranges[[0, -1], 0])
    last = index.offset[block] + (index.first_row[block + 1] - index.first_row[block]) * trial_bytes
    edges = zip(index.shard[block].tolist(), (last - 1).tolist(), strict=True)
    if all(reader.is_near(shard, position) for shard, position in edges):
        return
    sizes = ranges[:, 1] - ranges[:, 0]
    group = np.repeat(places, sizes)
    stops = np.cumsum(sizes)
    rows = np.arange(stops[-1]) + np.repeat(ranges[:, 1] - stops, sizes)
    runs = byte_runs(index, rows, group, trial_bytes)
    columns = (group[runs.at], runs.shard, runs.start, runs.size, rows[runs.at])
    reader.announce(zip(*(column.tolist() for column in columns), strict=True))


def _parts(
    plan: StreamPlan, worker: WorkerPlan, numbers: range, trial_bytes: int
) -> Iterator[Parts]:
    """Yield what is read for each batch."""
    n_trials = plan.sequences.rows.shape[1]
    batch_trials = plan.batch_size * n_trials
    for start in range(0, len(numbers), BATCHES_AT_ONCE):
        some = numbers[start : start + BATCHES_AT_ONCE]
        part = slice(some.start * plan.batch_size, some.stop * plan.batch_size)
        rows = plan.sequences.rows[worker.order[part]]
        group = np.repeat(np.arange(len(rows)), n_trials)
        runs = byte_runs(plan.index, rows.ravel(), group, trial_bytes)
        place = worker.place[part][group[runs.at]]
        low = runs.at % batch_trials * trial_bytes
        parts = Parts(place, runs.shard, runs.start, low, low + runs.size)
        edges = np.searchsorted(runs.at, batch_trials * np.arange(len(some) + 1))
        yield from (parts[first:end] for first, end in pairwise(edges.tolist()))


def _row_ranges(rows: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first row that the sequences of each place need, and the end: (n_places, 2)."""
    ranges = np.zeros((int(place.max(initial=-1)) + 1, 2), np.int64)
    ranges[:, 0] = np.iinfo(np.int64).max
    np.minimum.at(ranges[:, 0], place, rows[:, 0])
    np.maximum.at(ranges[:, 1], place, rows[:, -1] + 1)
    return ranges
