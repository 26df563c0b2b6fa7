"""The preprocessing job: one readable pipeline, and the steps that make its result a dataset."""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam

from beam_pipeline import console
from beam_pipeline.card import cautions
from beam_pipeline.launchers.choice import choose_launcher
from beam_pipeline.launchers.contract import Launcher, Outcome, StillRunningError
from beam_pipeline.layout import needs_every_spectrogram
from beam_pipeline.manifest import RUN, Manifest
from beam_pipeline.options import (
    DatasetOptions,
    add_dataset_arguments,
    add_source_arguments,
    dataset_options,
    open_source,
    screening_options,
)
from beam_pipeline.output.dataset_folder import describe, existing_dataset
from beam_pipeline.output.installation import install
from beam_pipeline.output.lock import locked
from beam_pipeline.output.work_folder import WorkFolder
from beam_pipeline.sources import TraceSource
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.storage.locations import locate
from beam_pipeline.storage.places import AnyPath, remove_tree
from beam_pipeline.transforms import (
    FINGERPRINTS,
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

#: Rows of a piece of the table: small enough for an even load, large enough to be worth opening.
PIECE_ROWS = 1024
#: Pieces stand in the job that a service is sent, which may not exceed 10 MB.
MAX_PIECES = 10_000


class PreprocessError(RuntimeError):
    """No sound dataset can be made of the table; the message says why and what to do."""


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
    output: AnyPath,
    launcher: Launcher,
    overwrite: bool = False,
) -> tuple[Manifest, bool]:
    """Turn a trace table into a complete dataset folder.

    Parameters
    ----------
    source : TraceSource
    options : DatasetOptions
    output : path
        Dataset folder, on this machine or on gs://. It is left alone if it already holds this
        dataset.
    launcher : Launcher
        Runs the pipeline.
    overwrite : bool
        Replace another dataset in `output`, once the new one is complete.

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
        If the table cannot become a sound dataset.
    RunFailedError
        If the run breaks off.
    StillRunningError
        If it goes on without us; the same call follows it again.
    """
    with locked(output) as lock:
        existing = existing_dataset(source, options, output, overwrite)
        leftovers = WorkFolder.leftovers(output)
        identity = _identity(source, options)
        unfinished = launcher.unfinished(leftovers, identity)
        if existing is not None:
            for leftover in leftovers:
                leftover.remove()
            return existing, False
        # Before the others go, so that at any moment a work folder marks what lies here as ours.
        work = unfinished or WorkFolder.create(output)
        for leftover in leftovers:
            if leftover != work:
                leftover.remove()
        survey_all = needs_every_spectrogram(options)
        try:
            manifest, finished = _make(source, options, work, launcher, survey_all)
        except _LateRejectsError:
            work.remove()
            print("Some spectrograms are unusable: measuring those of all splits", file=sys.stderr)
            work = WorkFolder.create(output)
            manifest, finished = _make(source, options, work, launcher, survey_all=True)
        install(work, finished, manifest, output, lock)
        return manifest, True


class _LateRejectsError(Exception):
    """Trials turned out unusable that the splits were decided with."""


def _make(
    source: TraceSource,
    options: DatasetOptions,
    work: WorkFolder,
    launcher: Launcher,
    survey_all: bool,
) -> tuple[Manifest, WorkFolder]:
    """Run the pipeline; return the manifest, and the folder of the files beside the shards."""
    started, identity = time.time(), _identity(source, options)
    spectrogram = Spectrogram(options.spectrogram)
    build = partial(
        build_pipeline,
        source=source,
        options=options,
        spectrogram=spectrogram,
        work=work,
        survey_all=survey_all,
    )
    try:
        outcome = launcher.run(build, work, source.n_rows, identity)
    except StillRunningError:
        raise
    except BaseException:
        # A worker that fails late may still be writing; the next run removes what is left.
        remove_tree(work.segments)
        raise
    remove_tree(work.segments)
    # Whatever comes now can fail for good, and must not be tried again on the same files.
    work.forget_job()
    if work.late_rejects.exists():
        raise _LateRejectsError
    finished = work.fetch()
    folder = Path(finished.path, "dataset")
    if work.problem.exists():
        _print_rejects(folder / "rejects", str(work.rejects))
        raise PreprocessError(work.problem.read_text())
    manifest = describe(source, options, spectrogram, finished)
    _write_run(folder / RUN, source.uri, identity["input_identity"], started, outcome)
    return manifest, finished


def _identity(source: TraceSource, options: DatasetOptions) -> dict[str, Any]:
    """Return what tells the run of one dataset from that of another."""
    return {"fingerprint": options.fingerprint(), "input_identity": source.identity()}


def _print_rejects(folder: Path, shown: str) -> None:
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
            "Rejected rows", header, rows, f"all are listed in {shown}, which the next run removes"
        )


def _write_run(
    path: Path, uri: str, input_identity: list[Any], started: float, outcome: Outcome
) -> None:
    finished = time.time()
    run = {
        "command": sys.argv,
        "input": uri,
        "input_identity": input_identity,
        "started": datetime.fromtimestamp(started, UTC).isoformat(),
        "finished": datetime.fromtimestamp(finished, UTC).isoformat(),
        "seconds": round(finished - started, 3),
        **outcome.details,
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "counters": outcome.counters,
    }
    path.write_text(json.dumps(run, indent=1) + "\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``preprocess``; those of Beam are passed on beside them."""
    parser.epilog = (
        "Flags of Apache Beam are passed on, such as --direct_num_workers 2. --runner "
        "DataflowRunner runs the pipeline on Google Cloud; see docs/cloud.md."
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="dataset folder, here or on gs://"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace another dataset in --output"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="with --runner DataflowRunner: check everything and print the job as JSON (steps, "
        "files, worker pool, flags), without submitting it or writing anything",
    )
    add_dataset_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Preprocess a table and print what was made."""
    started = time.time()
    output = locate(args.output)
    # Before anything is asked over the network.
    launcher = choose_launcher(args.beam_arguments, args.input, args.output, args.verbose)
    source = open_source(args)
    options = dataset_options(args, source)
    if args.dry_run:
        build = partial(
            build_pipeline,
            source=source,
            options=options,
            spectrogram=Spectrogram(options.spectrogram),
            work=WorkFolder.planned(output),
            survey_all=needs_every_spectrogram(options),
        )
        print(json.dumps(launcher.describe(build), indent=2))
        return 0
    manifest, made = preprocess(source, options, output, launcher, args.overwrite)
    if not made:
        print(f"{output} already holds this dataset; nothing to do")
    print_summary(manifest, output, time.time() - started)
    return 0


def print_summary(manifest: Manifest, output: AnyPath, seconds: float) -> None:
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
