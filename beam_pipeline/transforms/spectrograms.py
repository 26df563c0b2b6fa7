"""The two passes over the spectrograms: sums for the layout, then shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsSingleton, TaggedOutput
from numpy.typing import NDArray

from beam_pipeline.blocks import block_key, key_hash, shard_path
from beam_pipeline.counters import NAMESPACE, PHASE_COUNTERS, count
from beam_pipeline.layout import Layout
from beam_pipeline.output.work_folder import AnySegmentStore, WorkFolder
from beam_pipeline.pictures import MeanPicture
from beam_pipeline.progress import WorkCount
from beam_pipeline.sessions import (
    Block,
)
from beam_pipeline.shards import Sample, write_shard
from beam_pipeline.spectrogram import Spectrogram, SpectrogramOptions
from beam_pipeline.survey import SessionSummary, survey_block, unsurveyed_summary
from beam_pipeline.transforms.outputs import (
    PICTURES,
    REJECTS,
    SUMMARIES,
    Rejects,
)


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
