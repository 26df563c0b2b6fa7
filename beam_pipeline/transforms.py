"""Beam glue: each transform wraps pure functions of nearly the same name.

What the runners force on this file: elements are few and large (columns of many trials, pointers
instead of traces), because the local runner copies every element it shuffles several times; and
whatever a step writes is named by its input and complete when it appears, because an element may
be processed more than once.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsList, AsSingleton, TaggedOutput
from numpy.typing import NDArray

from beam_pipeline.blocks import block_key, key_hash, shard_path
from beam_pipeline.counters import NAMESPACE, PHASE_COUNTERS, count
from beam_pipeline.layout import Layout, LayoutError, decide_splits, plan_layout
from beam_pipeline.manifest import SESSIONS
from beam_pipeline.options import DatasetOptions
from beam_pipeline.output.work_folder import AnySegmentStore, WorkFolder
from beam_pipeline.pictures import MeanPicture
from beam_pipeline.progress import WorkCount
from beam_pipeline.sessions import (
    Block,
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
from beam_pipeline.sessions_table import sessions_table, write_table
from beam_pipeline.shards import Sample, ShardInfo, write_shard
from beam_pipeline.sources import TraceSource
from beam_pipeline.spectrogram import Spectrogram, SpectrogramOptions
from beam_pipeline.splits import SessionCount, SplitError
from beam_pipeline.survey import SessionSummary, merge_summaries, survey_block, unsurveyed_summary
from beam_pipeline.traces import Reason, Reject, ScreeningOptions, screen

REJECTS, FINGERPRINTS, SESSION_COUNTS = "rejects", "fingerprints", "session_counts"
SUMMARIES, PICTURES = "summaries", "pictures"
#: Bytes of samples that are decoded at once: what fits the cache.
BATCH_BYTES = 2 << 20

Rejects = list[Reject]


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


@dataclass
class PlanSplits(beam.PTransform):
    """Counts of the sessions to {session: split}; empty where `PlanLayout` will find a problem."""

    options: DatasetOptions

    def expand(self, session_counts: beam.PCollection) -> beam.PCollection:
        def plan(
            _: None, counts: list[SessionCount], options: DatasetOptions = self.options
        ) -> dict[str, str]:
            # Names in the file that nothing is known of may be those of rejected sessions.
            unknown = options.splits.split_of if options.splits else ()
            try:
                return decide_splits(counts, options, rejected_sessions=unknown)
            except SplitError:
                return {}

        root = session_counts.pipeline | "Once" >> beam.Create([None])
        return root | beam.Map(plan, AsList(session_counts))


class _OnSpectrograms(beam.DoFn):
    """What the two passes over the spectrograms have in common."""

    phase: str
    counter: str

    def __init__(
        self, spectrogram: SpectrogramOptions, store: AnySegmentStore, work: WorkFolder
    ) -> None:
        self._options = spectrogram
        self._store = store
        self._work = work

    def setup(self) -> None:
        self._spectrogram = Spectrogram(self._options)
        self._done = WorkCount(self._work.progress, self.phase)

    def teardown(self) -> None:
        self._done.close()

    def _compute(self, block: Block) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        result = self._spectrogram(self._store.read(block.pointers))
        self._finish(block)
        return result

    def _finish(self, block: Block) -> None:
        # The file shows the launcher of this machine how far we are, the counter those elsewhere.
        self._done.add(len(block.trial_num))
        count(self.counter, len(block.trial_num))


class _SurveyBlocks(_OnSpectrograms):
    phase = "survey"
    counter = PHASE_COUNTERS["survey"]

    def process(self, block: Block, split_of: dict[str, str] | None = None) -> Iterator[Any]:
        if split_of is not None and split_of.get(block.session) != "train":
            self._finish(block)
            yield block
            summary = unsurveyed_summary(block, len(self._spectrogram.freqs))
            yield TaggedOutput(SUMMARIES, (block.session, summary))
            return
        usable, survey, rejects = survey_block(block, *self._compute(block))
        if survey is not None:
            yield usable
            yield TaggedOutput(SUMMARIES, (block.session, survey))
        yield TaggedOutput(REJECTS, rejects)


@dataclass
class SurveyBlocks(beam.PTransform):
    """Blocks to their sums, and to the blocks without unusable spectrograms.

    Where the splits are given, only train is surveyed and the other blocks pass as they are.
    """

    spectrogram: SpectrogramOptions
    store: AnySegmentStore
    work: WorkFolder
    splits: beam.PCollection | None

    def expand(self, blocks: beam.PCollection) -> Any:
        do_fn = _SurveyBlocks(self.spectrogram, self.store, self.work)
        side_inputs = [] if self.splits is None else [AsSingleton(self.splits)]
        # Without the reshuffle a session's blocks would stay on the worker that resolved it.
        return (
            blocks
            | beam.Reshuffle()
            | beam.ParDo(do_fn, *side_inputs).with_outputs(REJECTS, SUMMARIES, main="blocks")
        )


@dataclass
class CountRejects(beam.PTransform):
    """Rejects to ((session, reason), rows)."""

    def expand(self, rejects: beam.PCollection) -> beam.PCollection:
        return (
            rejects
            | beam.FlatMap(lambda found: ((reject.session, str(reject.reason)) for reject in found))
            | beam.combiners.Count.PerElement()
        )


@dataclass
class PlanLayout(beam.PTransform):
    """Summaries and reject counts to one layout; None, and a note, where there can be none."""

    options: DatasetOptions
    n_rows: int
    shape: tuple[int, int]
    work: WorkFolder
    survey_all: bool

    def expand(self, inputs: tuple[beam.PCollection, beam.PCollection]) -> beam.PCollection:
        summaries, counts = inputs
        merged = summaries | beam.CombinePerKey(merge_summaries) | beam.Values()

        def plan(
            _: None,
            summaries: list[SessionSummary],
            counts: list[tuple[tuple[str | None, str], int]],
            options: DatasetOptions = self.options,
            n_rows: int = self.n_rows,
            shape: tuple[int, int] = self.shape,
            work: WorkFolder = self.work,
            survey_all: bool = self.survey_all,
        ) -> Layout | None:
            by_reason: Counter[str] = Counter()
            for (_session, reason), n in counts:
                by_reason[reason] += n
            if by_reason[Reason.UNUSABLE_SPECTROGRAM] and not survey_all:
                work.late_rejects.touch()
                return None
            try:
                return plan_layout(
                    summaries, by_reason, n_rows, options, shape, _rejected_by_session(counts)
                )
            except LayoutError as error:
                work.problem.write_text(str(error))
                return None

        root = summaries.pipeline | "Once" >> beam.Create([None])
        return root | beam.Map(plan, AsList(merged), AsList(counts))


def _rejected_by_session(counts: Iterable[tuple[tuple[str | None, str], int]]) -> Counter[str]:
    by_session: Counter[str] = Counter()
    for (session, _reason), n in counts:
        by_session[session or ""] += n
    return by_session


@dataclass
class WriteRejects(beam.PTransform):
    """Rejects to one sorted file a reason."""

    work: WorkFolder

    def expand(self, rejects: beam.PCollection) -> beam.PCollection:
        def by_reason(found: Rejects) -> Iterator[tuple[str, Rejects]]:
            groups = defaultdict(list)
            for reject in found:
                groups[str(reject.reason)].append(reject)
            return iter(groups.items())

        def write(element: tuple[str, Iterable[Rejects]], work: WorkFolder = self.work) -> None:
            reason, groups = element
            ordered = sorted(
                (reject for group in groups for reject in group),
                key=lambda reject: (
                    reject.session or "",
                    -1 if reject.trial_num is None else reject.trial_num,
                    reject.detail,
                ),
            )
            lines = "".join(f"{json.dumps(asdict(reject))}\n" for reject in ordered)
            (work.rejects / f"{reason}.jsonl").write_text(lines)
            count(f"rejected_{reason}", len(ordered))

        return rejects | beam.FlatMap(by_reason) | beam.GroupByKey() | beam.Map(write)


class _WriteShards(_OnSpectrograms):
    phase = "write"
    counter = PHASE_COUNTERS["write"]

    def process(self, element: tuple[str, Iterable[Block]], layout: Layout) -> Iterator[Any]:
        key, blocks = element
        split, index = key.split("/")
        path = shard_path(split, int(index), len(layout.shard_starts[split]))
        pictures: dict[str, MeanPicture] = {}
        surveys: list[tuple[SessionSummary | None, Rejects]] = []
        samples = self._samples(blocks, layout, pictures, surveys)
        shard = write_shard(self._work.dataset, path, samples)
        yield shard
        for summary, rejects in surveys:
            if summary is not None:
                yield TaggedOutput(SUMMARIES, (summary.session, summary))
            yield TaggedOutput(REJECTS, rejects)
        for condition, picture in pictures.items():
            yield TaggedOutput(PICTURES, ((split, condition), picture))
        count("shards", 1)
        count("trials_written", shard.trials)
        count("values_clipped", shard.values_clipped)
        Metrics.distribution(NAMESPACE, "shard_bytes").update(shard.bytes)

    def _samples(
        self,
        blocks: Iterable[Block],
        layout: Layout,
        pictures: dict[str, MeanPicture],
        surveys: list[tuple[SessionSummary | None, Rejects]],
    ) -> Iterator[Sample]:
        for block in sorted(blocks, key=_block_order):
            values, baseline = self._compute(block)
            if not block.surveyed:
                _, summary, rejects = survey_block(block, values, baseline)
                surveys.append((summary, rejects))
                if rejects:
                    continue
            sample = layout.sample(block, values, baseline)
            picture = pictures.setdefault(block.condition, MeanPicture.zero(*values.shape[1:]))
            picture.add(values)
            yield sample


def _block_order(block: Block) -> tuple[int, str]:
    key = block_key(block.session, block.block)
    return key_hash(key), key


@dataclass
class WriteShards(beam.PTransform):
    """Blocks to tar shards, by a hash of their keys; surveys those that were not."""

    layout: beam.PCollection
    spectrogram: SpectrogramOptions
    store: AnySegmentStore
    work: WorkFolder

    def expand(self, blocks: beam.PCollection) -> Any:
        layout = AsSingleton(self.layout)

        def assign(block: Block, layout: Layout | None) -> Iterator[tuple[str, Block]]:
            if layout is not None:
                split, index = layout.shard_of(block)
                yield f"{split}/{index}", block

        do_fn = _WriteShards(self.spectrogram, self.store, self.work)
        return (
            blocks
            | beam.FlatMap(assign, layout)
            | beam.GroupByKey()
            | beam.ParDo(do_fn, layout).with_outputs(PICTURES, SUMMARIES, REJECTS, main="shards")
        )


@dataclass
class WriteSessions(beam.PTransform):
    """Summaries of both passes and reject counts to ``sessions.parquet``.

    Rejects of the writing pass come too late, since the splits were decided without them. They are
    noted instead: the table must be surveyed as a whole.
    """

    layout: beam.PCollection
    work: WorkFolder

    def expand(self, inputs: tuple[beam.PCollection, beam.PCollection, beam.PCollection]) -> None:
        summaries, counts, late_rejects = inputs

        def write(
            _: None,
            layout: Layout | None,
            summaries: list[SessionSummary],
            counts: list[tuple[tuple[str | None, str], int]],
            late_rejects: list[Rejects],
            work: WorkFolder = self.work,
        ) -> None:
            if any(late_rejects):
                work.late_rejects.touch()
            elif layout is not None:
                table = sessions_table(summaries, layout, _rejected_by_session(counts))
                write_table(table, work.dataset / SESSIONS)

        surveyed = (
            summaries
            | beam.Filter(lambda element: element[1].surveyed)
            | beam.CombinePerKey(merge_summaries)
            | beam.Values()
        )
        root = counts.pipeline | "Once" >> beam.Create([None])
        root | beam.Map(
            write,
            AsSingleton(self.layout),
            AsList(surveyed),
            AsList(counts),
            AsList(late_rejects),
        )


@dataclass
class WriteOutcome(beam.PTransform):
    """The list of shards, and the mean spectrograms, for the launcher to finish the dataset."""

    work: WorkFolder

    def expand(self, inputs: Any) -> None:
        shards, pictures = inputs

        def write_list(_: None, shards: list[ShardInfo], work: WorkFolder = self.work) -> None:
            ordered = sorted(shards, key=lambda shard: shard.path)
            work.shards.write_text(json.dumps([asdict(shard) for shard in ordered]))

        def write_picture(
            element: tuple[tuple[str, str], MeanPicture], work: WorkFolder = self.work
        ) -> None:
            (split, condition), picture = element
            content = io.BytesIO()
            np.savez(
                content,
                split=split,
                condition=condition,
                mean=picture.mean(),
                n_trials=picture.n_trials,
            )
            path = work.pictures / f"{split}-{key_hash(condition):016x}.npz"
            path.write_bytes(content.getvalue())

        root = shards.pipeline | "Once" >> beam.Create([None])
        root | "WriteShardList" >> beam.Map(write_list, AsList(shards))
        # Combined, not grouped: each worker then sends one picture, not one a shard.
        merged = pictures | beam.CombinePerKey(MeanPicture.total_of)
        merged | "WritePictures" >> beam.Map(write_picture)
