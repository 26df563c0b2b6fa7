"""The files beside the shards, and notes for the launcher."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsList, AsSingleton

from beam_pipeline.blocks import key_hash
from beam_pipeline.counters import count
from beam_pipeline.layout import Layout
from beam_pipeline.manifest import SESSIONS
from beam_pipeline.output.work_folder import WorkFolder
from beam_pipeline.pictures import MeanPicture
from beam_pipeline.sessions_table import sessions_table, write_table
from beam_pipeline.shards import ShardInfo
from beam_pipeline.survey import SessionSummary, merge_summaries
from beam_pipeline.transforms.outputs import (
    Rejects,
)
from beam_pipeline.transforms.plan import rejected_by_session


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
            _: bytes,
            layout: Layout | None,
            summaries: list[SessionSummary],
            counts: list[tuple[tuple[str | None, str], int]],
            late_rejects: list[Rejects],
            work: WorkFolder = self.work,
        ) -> None:
            if any(late_rejects):
                work.late_rejects.touch()
            elif layout is not None:
                table = sessions_table(summaries, layout, rejected_by_session(counts))
                write_table(table, work.dataset / SESSIONS)

        surveyed = (
            summaries
            | beam.Filter(lambda element: element[1].surveyed)
            | beam.CombinePerKey(merge_summaries)
            | beam.Values()
        )
        root = counts.pipeline | "Once" >> beam.Impulse()
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

        def write_list(_: bytes, shards: list[ShardInfo], work: WorkFolder = self.work) -> None:
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

        root = shards.pipeline | "Once" >> beam.Impulse()
        root | "WriteShardList" >> beam.Map(write_list, AsList(shards))
        # Combined, not grouped: each worker then sends one picture, not one a shard.
        merged = pictures | beam.CombinePerKey(MeanPicture.total_of)
        merged | "WritePictures" >> beam.Map(write_picture)
