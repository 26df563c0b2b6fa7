"""The whole job as one Beam pipeline: table to trials to blocks to statistics to shards."""

from __future__ import annotations

import apache_beam as beam

from beam_pipeline.options import DatasetOptions, screening_options
from beam_pipeline.output.work_folder import WorkFolder
from beam_pipeline.sources import TraceSource
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.transforms.outputs import (
    FINGERPRINTS,
    PICTURES,
    REJECTS,
    SESSION_COUNTS,
    SUMMARIES,
)
from beam_pipeline.transforms.plan import CountRejects, PlanLayout, PlanSplits
from beam_pipeline.transforms.read import FindCopies, ReadTrials, ResolveSessions
from beam_pipeline.transforms.spectrograms import SurveyBlocks, WriteShards
from beam_pipeline.transforms.write import WriteOutcome, WriteRejects, WriteSessions

#: Rows of a piece of the table: small enough for an even load, large enough to be worth opening.
PIECE_ROWS = 2048
#: Pieces stand in the job that a service is sent, which may not exceed 10 MB.
MAX_PIECES = 10_000


def build_pipeline(
    pipeline: beam.Pipeline,
    source: TraceSource,
    options: DatasetOptions,
    spectrogram: Spectrogram,
    work: WorkFolder,
    survey_all: bool,
) -> None:
    """Put the whole job together: table to trials to blocks to statistics to shards.

    The statistics before the shards need the train split alone; those of the other sessions are
    taken while their shards are written, unless `survey_all`.
    """
    screening = screening_options(source, options, spectrogram)
    store = work.segment_store(screening.n_samples, screening.dtype)
    n_pieces = min(MAX_PIECES, max(1, source.n_rows // PIECE_ROWS))
    pieces = list(enumerate(source.splits(n_pieces)))
    shape = (len(spectrogram.freqs), len(spectrogram.times))

    read = (
        pipeline
        # Spread over the workers by `Create` itself.
        | "Pieces" >> beam.Create(pieces, reshuffle=True)
        | ReadTrials(source, screening, store, work)
    )
    copies = read[FINGERPRINTS] | FindCopies()
    resolved = {"rows": read["rows"], "copies": copies} | ResolveSessions(options)
    splits = None if survey_all else resolved[SESSION_COUNTS] | PlanSplits(options)
    surveyed = resolved["blocks"] | SurveyBlocks(options.spectrogram, store, work, splits)
    rejects = (read[REJECTS], resolved[REJECTS], surveyed[REJECTS]) | beam.Flatten()
    rejects | WriteRejects(work)
    counts = rejects | CountRejects()
    layout = (surveyed[SUMMARIES], counts) | PlanLayout(
        options, source.n_rows, shape, work, survey_all
    )
    written = surveyed["blocks"] | WriteShards(layout, options.spectrogram, store, work)
    summaries = (surveyed[SUMMARIES], written[SUMMARIES]) | "BothPasses" >> beam.Flatten()
    (summaries, counts, written[REJECTS]) | WriteSessions(layout, work)
    (written["shards"], written[PICTURES]) | WriteOutcome(work)
