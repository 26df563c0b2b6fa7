"""Streams of record batches that break: read on where they broke, every row exactly once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from beam_pipeline.sources import SourceError

Count = Callable[[str, int], None]


@dataclass(frozen=True)
class Patience:
    """How long a stream is waited for, in seconds.

    Attributes
    ----------
    stall : float
        Longest wait for one message; then the stream counts as broken.
    first_delay, longest_delay : float
        Wait before the first new attempt, and the limit it doubles up to.
    give_up : float
        Attempts without a new row end after this long.
    """

    stall: float = 180.0
    first_delay: float = 0.5
    longest_delay: float = 30.0
    give_up: float = 1200.0


class BrokenStreamError(Exception):
    """A stream broke in a way that may pass.

    Parameters
    ----------
    cause : str
        Short lower-case name, for the counter.
    detail : str
        What the server said.
    delay : float
        Seconds that the server asks to be left alone.
    """

    def __init__(self, cause: str, detail: str, delay: float = 0.0) -> None:
        super().__init__(detail)
        self.cause = cause
        self.delay = delay


def read_resuming(
    open_at: Callable[[int], Iterator[pa.RecordBatch]],
    patience: Patience,
    count: Count,
    where: str,
) -> Iterator[pa.RecordBatch]:
    """Yield every row of a stream once and in order, however often it breaks.

    A broken stream is opened again one row early: that it goes on with the row it broke after
    proves that it goes on at the right place. Rows from before it are left out.

    Parameters
    ----------
    open_at : callable
        Opens the stream at a row offset; the iterator raises `BrokenStreamError`.
    patience : Patience
    count : callable
        Gets (counter, n) for every break, and for rows that came twice.
    where : str
        What to call the stream in an error.

    Raises
    ------
    SourceError
        If no attempt brought a row for `patience.give_up` seconds.
    """
    n_rows = 0
    last: pa.RecordBatch | None = None
    failing_since: float | None = None
    delay = patience.first_delay
    while True:
        try:
            for batch in _rows_after(last, open_at(max(0, n_rows - 1)), count):
                n_rows, last = n_rows + batch.num_rows, batch.slice(batch.num_rows - 1)
                failing_since, delay = None, patience.first_delay
                yield batch
            return
        except BrokenStreamError as error:
            now = time.monotonic()
            failing_since = now if failing_since is None else failing_since
            if now - failing_since > patience.give_up:
                raise SourceError(
                    f"{where}: gave up after {now - failing_since:,.0f} s without a new row; the "
                    f"last problem was {error.cause}: {error}"
                ) from error
            count(f"stream_breaks_{error.cause}", 1)
            # Workers that broke together should not all come back together.
            time.sleep(max(error.delay, delay * random.uniform(0.5, 1.0)))
            delay = min(2 * delay, patience.longest_delay)


def _rows_after(
    last: pa.RecordBatch | None, batches: Iterator[pa.RecordBatch], count: Count
) -> Iterator[pa.RecordBatch]:
    """Leave out the rows up to and including `last`, where there is one."""
    wanted = None if last is None else _content(last, 0)
    n_skipped = 0
    for batch in batches:
        first = 0
        while wanted is not None and first < batch.num_rows:
            if _content(batch, first).equals(wanted):
                wanted = None
                if n_skipped:
                    count("stream_rows_repeated", n_skipped)
            n_skipped += 1
            first += 1
        if first < batch.num_rows:
            yield batch.slice(first)
    if wanted is not None:
        raise BrokenStreamError("lost_place", "the row after which it broke did not come again")


def _content(batch: pa.RecordBatch, row: int) -> pa.Buffer:
    """Return the bits of a row; as values, a NaN would equal nothing.

    Taken, not sliced: a slice's buffers can hold bits of its neighbours.
    """
    return batch.take(pa.array([row])).serialize()


def rebatch(batches: Iterable[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of exactly `batch_rows`, the last one excepted.

    How a server groups rows differs from read to read; what is numbered by batch must not.
    """
    waiting: list[pa.RecordBatch] = []
    n_waiting = 0
    for batch in batches:
        rest = batch
        while n_waiting + rest.num_rows >= batch_rows:
            n_taken = batch_rows - n_waiting
            yield _join([*waiting, rest.slice(0, n_taken)])
            waiting, n_waiting, rest = [], 0, rest.slice(n_taken)
        if rest.num_rows:
            waiting.append(rest)
            n_waiting += rest.num_rows
    if waiting:
        yield _join(waiting)


def _join(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    (joined,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined
