"""The preprocessing job: one readable pipeline, and the steps that make its result a dataset."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import operator
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult

from beam_pipeline import console
from beam_pipeline.card import cautions
from beam_pipeline.dataset_folder import describe, existing_dataset, install, locked
from beam_pipeline.errors import UsageError
from beam_pipeline.layout import needs_every_spectrogram
from beam_pipeline.local_runner import local_runner, pipeline_options
from beam_pipeline.manifest import RUN, Manifest
from beam_pipeline.options import (
    DatasetOptions,
    add_dataset_arguments,
    add_source_arguments,
    dataset_options,
    screening_options,
)
from beam_pipeline.progress import read_counts
from beam_pipeline.segments import SegmentStore
from beam_pipeline.sources import TraceSource
from beam_pipeline.sources.parquet import ParquetSource
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.transforms import (
    FINGERPRINTS,
    NAMESPACE,
    PICTURES,
    REJECTS,
    SESSION_COUNTS,
    SUMMARIES,
    CountRejects,
    FindCopies,
    PlanLayout,
    PlanSplits,
    ReadTrials,
    ResolveSessions,
    SurveyBlocks,
    WriteOutcome,
    WriteRejects,
    WriteSessions,
    WriteShards,
)
from beam_pipeline.work_folder import WorkFolder

PHASES = {"read": "Reading traces", "survey": "Measuring statistics", "write": "Writing shards"}
#: Rows of a piece of the table: small enough for an even load, large enough to be worth opening.
PIECE_ROWS = 1024


class PreprocessError(RuntimeError):
    """The run has failed; the message says why and what to do."""


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
    store = SegmentStore(str(work.segments), screening.n_samples, screening.dtype)
    pieces = list(enumerate(source.splits(max(1, source.n_rows // PIECE_ROWS))))
    shape = (len(spectrogram.freqs), len(spectrogram.times))

    read = (
        pipeline
        | "Pieces" >> beam.Create(pieces)
        | "SpreadPieces" >> beam.Reshuffle()
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


def preprocess(
    source: TraceSource,
    options: DatasetOptions,
    output: Path,
    beam_arguments: Sequence[str] = (),
    overwrite: bool = False,
    verbose: bool = False,
) -> tuple[Manifest, bool]:
    """Turn a trace table into a complete dataset folder.

    Parameters
    ----------
    source : TraceSource
    options : DatasetOptions
    output : pathlib.Path
        Dataset folder. It is left alone if it already holds this dataset.
    beam_arguments : sequence of str
        Flags for Beam, such as ``--direct_num_workers 2``.
    overwrite : bool
        Replace another dataset in `output`, once the new one is complete.
    verbose : bool
        Show what Beam and its workers log.

    Returns
    -------
    manifest : Manifest
    made : bool
        False if `output` held this dataset already.

    Raises
    ------
    DatasetExistsError
        If `output` holds something else.
    PreprocessError
        If the table cannot become a sound dataset, or the run breaks off.
    """
    beam_options = pipeline_options(beam_arguments, verbose)
    with locked(output):
        existing = existing_dataset(source, options, output, overwrite)
        leftovers = WorkFolder.leftovers(output)
        if existing is not None:
            for leftover in leftovers:
                leftover.remove()
            return existing, False
        # Before the others go, so that at any moment a work folder marks what lies here as ours.
        work = WorkFolder.create(output)
        for leftover in leftovers:
            leftover.remove()
        survey_all = needs_every_spectrogram(options)
        try:
            manifest = _make(source, options, work, beam_options, verbose, survey_all)
        except _LateRejectsError:
            work.remove()
            print("Some spectrograms are unusable: measuring those of all splits", file=sys.stderr)
            work = WorkFolder.create(output)
            beam_options = pipeline_options(beam_arguments, verbose)
            manifest = _make(source, options, work, beam_options, verbose, survey_all=True)
        install(work, manifest, output)
        return manifest, True


class _LateRejectsError(Exception):
    """Trials turned out unusable that the splits were decided with."""


def _make(
    source: TraceSource,
    options: DatasetOptions,
    work: WorkFolder,
    beam_options: PipelineOptions,
    verbose: bool,
    survey_all: bool,
) -> Manifest:
    started, input_identity = time.time(), source.identity()
    spectrogram = Spectrogram(options.spectrogram)
    runner = local_runner(beam_options, Path("/dev/stderr") if verbose else work.log)
    pipeline = beam.Pipeline(runner=runner, options=beam_options)
    build_pipeline(pipeline, source, options, spectrogram, work, survey_all)
    try:
        with console.watch(PHASES, source.n_rows, lambda: read_counts(work.progress)):
            # The card needs it at the end, when no worker is left to use the time.
            threading.Thread(target=import_module, args=["matplotlib.figure"], daemon=True).start()
            result = _run(pipeline, work, verbose)
    finally:
        # A worker that fails late may still be writing; the next run removes what is left.
        shutil.rmtree(work.segments, ignore_errors=True)
    if work.late_rejects.exists():
        raise _LateRejectsError
    if work.problem.exists():
        _print_rejects(work.rejects)
        raise PreprocessError(work.problem.read_text())
    manifest = describe(source, options, spectrogram, work)
    counters = _counters(result)
    _write_run(work.dataset / RUN, source.uri, input_identity, beam_options, started, counters)
    return manifest


def _run(pipeline: beam.Pipeline, work: WorkFolder, verbose: bool) -> PipelineResult:
    logging.getLogger("apache_beam").setLevel(logging.INFO if verbose else logging.CRITICAL)
    try:
        with contextlib.ExitStack() as stack:
            if not verbose:
                log = stack.enter_context(work.log.open("a"))
                stack.enter_context(contextlib.redirect_stderr(log))
            result = pipeline.run()
            result.wait_until_finish()
    except Exception as error:
        # Beam puts a worker's whole traceback before its message.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = lines[-1] if lines else type(error).__name__
        if message.startswith("Channel closed"):
            message = "a worker process died; was it killed, or out of memory?"
        where = "above" if verbose else f"in {work.log}"
        raise PreprocessError(f"{message}; the traceback is {where}") from error
    return result


def _print_rejects(folder: Path) -> None:
    """Print how many rows were rejected for each reason, and an example of each."""
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text().splitlines()
        first = json.loads(lines[0])
        where = f"session {first['session']} trial {first['trial_num']}"
        rows.append((path.stem, len(lines), where, first["detail"]))
    if rows:
        header = ["reason", "rows", "for example", "detail"]
        console.print_table(
            "Rejected rows", header, rows, f"all are listed in {folder}, which the next run removes"
        )


def _counters(result: PipelineResult) -> dict[str, int]:
    query = beam.metrics.MetricsFilter().with_namespace(NAMESPACE)
    found = result.metrics().query(query)
    counts = {counter.key.metric.name: counter.result for counter in found["counters"]}
    for distribution in found["distributions"]:
        name, values = distribution.key.metric.name, distribution.result
        counts |= {f"{name}_{part}": getattr(values, part) for part in ("min", "max", "sum")}
    return dict(sorted(counts.items()))


def _write_run(
    path: Path,
    uri: str,
    input_identity: list[Any],
    beam_options: PipelineOptions,
    started: float,
    counters: Mapping[str, int],
) -> None:
    direct = beam_options.view_as(DirectOptions)
    finished = time.time()
    run = {
        "command": sys.argv,
        "input": uri,
        "input_identity": input_identity,
        "started": datetime.fromtimestamp(started, UTC).isoformat(),
        "finished": datetime.fromtimestamp(finished, UTC).isoformat(),
        "seconds": round(finished - started, 3),
        "runner": beam_options.view_as(StandardOptions).runner,
        "direct_num_workers": direct.direct_num_workers,
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "counters": counters,
    }
    path.write_text(json.dumps(run, indent=1) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``preprocess``; those of Beam are passed on beside them."""
    parser.epilog = "Flags of Apache Beam are passed on, such as --direct_num_workers 2."
    add_source_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="dataset folder")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace another dataset in --output"
    )
    add_dataset_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Preprocess a table and print what was made."""
    started = time.time()
    if "://" in args.output:
        raise UsageError(f"--output {args.output}: only local folders can be written so far")
    output = Path(args.output)
    source = ParquetSource(args.input, args.columns)
    options = dataset_options(args, source)
    manifest, made = preprocess(
        source, options, output, args.beam_arguments, args.overwrite, args.verbose
    )
    if not made:
        print(f"{output} already holds this dataset; nothing to do")
    print_summary(manifest, output, time.time() - started)
    return 0


def print_summary(manifest: Manifest, output: Path, seconds: float) -> None:
    """Print what a run made."""
    used = sum(split.trials for split in manifest.splits.values())
    rows = manifest.source["rows"]
    if manifest.rejects:
        console.print_table(
            "Rows that were not used",
            ["reason", "rows"],
            sorted(manifest.rejects.items(), key=operator.itemgetter(1), reverse=True),
            f"listed in {output / 'rejects'}",
        )
    console.print_table(
        f"{output}",
        ["split", "trials", *manifest.classes, "sessions", "subjects", "shards", "size"],
        [
            (
                name,
                split.trials,
                *(split.trials_per_class[label] for label in manifest.classes),
                len(split.sessions),
                len(split.subjects) or "unknown",
                len(split.shards),
                console.format_bytes(sum(shard["bytes"] for shard in split.shards)),
            )
            for name, split in manifest.splits.items()
        ],
    )
    total = console.format_bytes(sum(shard["bytes"] for shard in manifest.shards))
    rejected = sum(manifest.rejects.values())
    print(
        f"{rows:,} rows: {used:,} used, {rejected:,} rejected; {len(manifest.shards)} shards, "
        f"{total}, in {seconds:.1f} s. Card: {output / 'README.md'}"
    )
    for caution in cautions(manifest):
        print(f"Note: {caution}")
    if manifest.values_clipped:
        print(f"Note: {manifest.values_clipped:,} values exceed float16 and were clipped")
