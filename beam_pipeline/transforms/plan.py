"""What is known of the sessions to their splits, and to the layout of the dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import AsList

from beam_pipeline.layout import Layout, LayoutError, decide_splits, plan_layout
from beam_pipeline.options import DatasetOptions
from beam_pipeline.output.work_folder import WorkFolder
from beam_pipeline.rejects import Reason
from beam_pipeline.splits import SessionCount, SplitError
from beam_pipeline.survey import SessionSummary, merge_summaries


@dataclass
class PlanSplits(beam.PTransform):
    """Counts of the sessions to {session: split}; empty where `PlanLayout` will find a problem."""

    options: DatasetOptions

    def expand(self, session_counts: beam.PCollection) -> beam.PCollection:
        def plan(
            _: bytes, counts: list[SessionCount], options: DatasetOptions = self.options
        ) -> dict[str, str]:
            # Names in the file that nothing is known of may be those of rejected sessions.
            unknown = options.splits.split_of if options.splits else ()
            try:
                return decide_splits(counts, options, rejected_sessions=unknown)
            except SplitError:
                return {}

        root = session_counts.pipeline | "Once" >> beam.Impulse()
        return root | beam.Map(plan, AsList(session_counts))


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
            _: bytes,
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
                    summaries, by_reason, n_rows, options, shape, rejected_by_session(counts)
                )
            except LayoutError as error:
                work.problem.write_text(str(error))
                return None

        root = summaries.pipeline | "Once" >> beam.Impulse()
        return root | beam.Map(plan, AsList(merged), AsList(counts))


def rejected_by_session(counts: Iterable[tuple[tuple[str | None, str], int]]) -> Counter[str]:
    """Return the rejects of each session, under "" those of no session, from `CountRejects`."""
    by_session: Counter[str] = Counter()
    for (session, _reason), n in counts:
        by_session[session or ""] += n
    return by_session
