"""Rows of the table to blocks of accepted trials."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_pipeline.counters import PHASE_COUNTERS, count
from beam_pipeline.options import DatasetOptions
from beam_pipeline.output.work_folder import AnySegmentStore, WorkFolder
from beam_pipeline.progress import WorkCount
from beam_pipeline.screening import ScreeningOptions, screen
from beam_pipeline.sessions import (
    Copy,
    Fingerprints,
    SessionRows,
    find_copies,
    fingerprints,
    n_digest_buckets,
    order_by_session,
    resolve_session,
    session_rows,
)
from beam_pipeline.sources import TraceSource
from beam_pipeline.splits import SessionCount
from beam_pipeline.transforms.outputs import (
    FINGERPRINTS,
    REJECTS,
    SESSION_COUNTS,
    Rejects,
)

#: Bytes of samples that are decoded at once: what fits the cache.
BATCH_BYTES = 2 << 20


class _ScreenRows(beam.DoFn):
    def __init__(
        self,
        source: TraceSource,
        screening: ScreeningOptions,
        store: AnySegmentStore,
        work: WorkFolder,
    ) -> None:
        self._source = source
        self._screening = screening
        self._store = store
        self._work = work
        self._n_buckets = n_digest_buckets(source.n_rows)

    def setup(self) -> None:
        self._done = WorkCount(self._work.progress, "read")

    def teardown(self) -> None:
        self._done.close()

    def process(self, element: tuple[int, Any]) -> Iterator[Any]:
        chunk, split = element
        # A trace may be much longer than its segment, which is decoded as float64 at worst.
        row_bytes = max(self._source.row_bytes, 8 * self._store.n_samples)
        batch_rows = max(1, int(BATCH_BYTES / row_bytes))
        parts: dict[str, list[SessionRows]] = defaultdict(list)
        rejects: Rejects = []
        with self._store.writer(chunk) as writer:
            for batch in self._source.read(split, batch_rows):
                trials, found = screen(batch, self._screening)
                rejects += found
                order, places = order_by_session(trials)
                pointers = writer.write(trials.segments[order])
                for session, place in places:
                    parts[session].append(session_rows(trials, order, place, pointers))
                count(PHASE_COUNTERS["read"], batch.num_rows)
                self._done.add(batch.num_rows)
        # One element a session, not one a batch: each costs the runner more than it holds.
        for session, pieces in parts.items():
            rows = SessionRows.concatenate(pieces)
            yield session, rows
            for bucket, part in fingerprints(session, rows, self._n_buckets):
                yield TaggedOutput(FINGERPRINTS, (bucket, part))
        yield TaggedOutput(REJECTS, rejects)


@dataclass
class ReadTrials(beam.PTransform):
    """Pieces of a table to accepted trials by session, with their segments stored aside."""

    source: TraceSource
    screening: ScreeningOptions
    store: AnySegmentStore
    work: WorkFolder

    def expand(self, pieces: beam.PCollection) -> Any:
        do_fn = _ScreenRows(self.source, self.screening, self.store, self.work)
        return pieces | beam.ParDo(do_fn).with_outputs(REJECTS, FINGERPRINTS, main="rows")


@dataclass
class FindCopies(beam.PTransform):
    """Fingerprints by bucket to the trials whose trace stands elsewhere too, by session."""

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        def find(element: tuple[int, Iterable[Fingerprints]]) -> Iterator[tuple[str, Copy]]:
            return find_copies(element[1])

        return parts | beam.GroupByKey() | beam.FlatMap(find)


@dataclass
class ResolveSessions(beam.PTransform):
    """Accepted trials by session to blocks; what conflicts is rejected."""

    options: DatasetOptions

    def expand(self, inputs: dict[str, beam.PCollection]) -> Any:
        def resolve(
            element: tuple[str, dict[str, Iterable[Any]]], options: DatasetOptions = self.options
        ) -> Iterator[Any]:
            session, grouped = element
            rows: Iterable[SessionRows] = grouped["rows"]
            blocks, rejects = resolve_session(
                session,
                rows,
                grouped["copies"],
                options.block_trials,
                options.amplitude_outlier,
                classes=options.classes,
            )
            yield from blocks
            yield TaggedOutput(REJECTS, rejects)
            if blocks:
                n_trials = sum(len(block.trial_num) for block in blocks)
                count = SessionCount(session, blocks[0].subject, blocks[0].condition, n_trials)
                yield TaggedOutput(SESSION_COUNTS, count)

        return (
            inputs
            | beam.CoGroupByKey()
            | beam.FlatMap(resolve).with_outputs(REJECTS, SESSION_COUNTS, main="blocks")
        )
