"""Broken streams and regrouped batches, against the rows themselves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipeline.sources import SourceError
from beam_pipeline.sources.resuming import BrokenStreamError, Patience, read_resuming, rebatch

AT_ONCE = Patience(first_delay=0.0, longest_delay=0.0)


def batch_of(values: list[float | None]) -> pa.RecordBatch:
    traces = pa.array([[value, 0.0] for value in values], pa.list_(pa.float64()))
    ids = pa.array([None if value is None else f"s{value}" for value in values], pa.string())
    return pa.record_batch({"id": ids, "trace": traces})


def ids_of(batches: list[pa.RecordBatch]) -> list[str | None]:
    return [value for batch in batches for value in batch.column("id").to_pylist()]


def server(
    rows: pa.RecordBatch, breaks: list[tuple[int, int, int]], offsets: list[int]
) -> Callable[[int], Iterator[pa.RecordBatch]]:
    """A stream that breaks after so many rows each time, rewinds, and groups rows at its will."""
    waiting = iter(breaks)

    def open_at(offset: int) -> Iterator[pa.RecordBatch]:
        offsets.append(offset)
        until, rewind, group = next(waiting, (rows.num_rows, 0, 3))
        start = max(0, offset - rewind)
        stop = min(rows.num_rows, start + until)
        for first in range(start, stop, group):
            yield rows.slice(first, min(group, stop - first))
        if stop < rows.num_rows:
            raise BrokenStreamError("broke", "on demand")

    return open_at


ROWS = st.lists(st.sampled_from([1.0, 2.0, float("nan"), None]), min_size=1, max_size=30)
BREAKS = st.lists(st.tuples(st.integers(0, 12), st.just(0), st.integers(1, 5)), max_size=8)


@settings(max_examples=150, deadline=None)
@given(ROWS, BREAKS)
def test_every_row_once_and_in_order_even_where_rows_are_equal(
    values: list[float | None], breaks: list[tuple[int, int, int]]
) -> None:
    rows, offsets, counts = batch_of(values), list[int](), Counter[str]()
    found = list(read_resuming(server(rows, breaks, offsets), AT_ONCE, _into(counts), "t"))
    assert ids_of(found) == ids_of([rows])
    assert set(counts) <= {"stream_breaks_broke"}
    assert counts["stream_breaks_broke"] == len(offsets) - 1


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(1, 5)), max_size=8),
)
def test_rows_from_before_the_offset_are_left_out(
    n_rows: int, breaks: list[tuple[int, int, int]]
) -> None:
    rows = batch_of([float(value) for value in range(n_rows)])
    found = list(read_resuming(server(rows, breaks, []), AT_ONCE, lambda *_: None, "t"))
    assert ids_of(found) == ids_of([rows])


def _into(counts: Counter[str]) -> Callable[[str, int], None]:
    def count(name: str, n: int) -> None:
        counts[name] += n

    return count


def test_a_stream_that_goes_on_elsewhere_is_an_error() -> None:
    rows = batch_of([float(value) for value in range(9)])

    def open_at(offset: int) -> Iterator[pa.RecordBatch]:
        yield rows.slice(0, 4) if offset == 0 else rows.slice(offset + 2)
        raise BrokenStreamError("broke", "on demand")

    patience = Patience(first_delay=0.01, longest_delay=0.01, give_up=0.05)
    with pytest.raises(SourceError, match=r"^the table: gave up after") as caught:
        list(read_resuming(open_at, patience, lambda *_: None, "the table"))
    assert isinstance(caught.value.__cause__, BrokenStreamError)


def test_patience_is_counted_from_the_last_new_row() -> None:
    rows = batch_of([float(value) for value in range(6)])
    patience = Patience(first_delay=0.02, longest_delay=0.02, give_up=0.05)
    # Each attempt brings one new row and then breaks: together longer than the patience.
    breaks = [(2, 0, 1)] * 5
    found = list(read_resuming(server(rows, breaks, []), patience, lambda *_: None, "t"))
    assert ids_of(found) == ids_of([rows])


def test_a_delay_that_the_server_asks_for_is_kept() -> None:
    rows = batch_of([1.0])
    answers = iter([BrokenStreamError("busy", "later", delay=0.2)])

    def open_at(offset: int) -> Iterator[pa.RecordBatch]:
        for error in answers:
            raise error
        yield rows

    started = time.monotonic()
    assert ids_of(list(read_resuming(open_at, AT_ONCE, lambda *_: None, "t"))) == ["s1.0"]
    assert time.monotonic() - started >= 0.2


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
def test_batches_do_not_depend_on_how_rows_came(sizes: list[int], batch_rows: int) -> None:
    values: list[float | None] = [float(value) for value in range(sum(sizes))]
    rows, start = iter(values), 0
    parts = [batch_of([next(rows) for _ in range(size)]) for size in sizes]
    found = list(rebatch(parts, batch_rows))
    for batch in found:
        assert batch.equals(batch_of(values[start : start + batch_rows]))
        start += batch_rows
    assert sum(batch.num_rows for batch in found) == len(values)
