"""The preprocessing job: one readable pipeline, and the steps that make its result a dataset."""

from __future__ import annotations

import contextlib
import json
import logging
import operator
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult

from beam_pipeline import console
from beam_pipeline.card import PICTURE, dataset_card, mean_spectrograms_png
from beam_pipeline.layout import Normalization, SessionSummary, train_normalization
from beam_pipeline.local_runner import choose_runner, pipeline_options
from beam_pipeline.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    RUN,
    SESSIONS,
    STATS,
    Manifest,
    file_digest,
    package_versions,
    read_manifest,
    split_manifests,
    write_atomically,
)
from beam_pipeline.moments import UNIT
from beam_pipeline.options import DatasetOptions, screening_options
from beam_pipeline.progress import read_counts
from beam_pipeline.segments import SegmentStore
from beam_pipeline.sessions_table import read_summaries
from beam_pipeline.shards import ShardInfo, wids_index
from beam_pipeline.sources import TraceSource
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.splits import SPLITS
from beam_pipeline.transforms import (
    FINGERPRINTS,
    PICTURES,
    REJECTS,
    SUMMARIES,
    FindCopies,
    PlanLayout,
    ReadTrials,
    ResolveSessions,
    SurveyBlocks,
    WriteOutcome,
    WriteRejects,
    WriteShards,
)
from beam_pipeline.work_folder import WorkFolder

PHASES = {"read": "Reading traces", "survey": "Measuring statistics", "write": "Writing shards"}
#: Rows of a piece of the table: small enough for an even load, large enough to be worth opening.
PIECE_ROWS = 1024
#: What a dataset folder consists of, besides its manifest.
CONTENTS = (
    STATS,
    SESSIONS,
    *SPLITS,
    *(f"{split}.json" for split in SPLITS),
    "rejects",
    "README.md",
    PICTURE,
    RUN,
)


class PreprocessError(RuntimeError):
    """The run cannot start or has failed; the message says why and what to do."""


def build_pipeline(
    pipeline: beam.Pipeline,
    source: TraceSource,
    options: DatasetOptions,
    spectrogram: Spectrogram,
    work: WorkFolder,
) -> None:
    """Put the whole job together: table to trials to blocks to statistics to shards."""
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
    resolved = {"rows": read["rows"], "copies": copies} | ResolveSessions(
        options.block_trials, options.amplitude_outlier
    )
    surveyed = resolved["blocks"] | SurveyBlocks(options.spectrogram, store, work)
    rejects = (read[REJECTS], resolved[REJECTS], surveyed[REJECTS]) | beam.Flatten()
    rejects | WriteRejects(work)
    layout = (surveyed[SUMMARIES], rejects) | PlanLayout(options, source.n_rows, shape, work)
    written = surveyed["blocks"] | WriteShards(layout, options.spectrogram, store, work)
    (written["shards"], written[PICTURES]) | WriteOutcome(work)


def preprocess(
    source: TraceSource,
    options: DatasetOptions,
    output: Path,
    beam_arguments: Sequence[str] = (),
    overwrite: bool = False,
    verbose: bool = False,
) -> Manifest:
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
    Manifest

    Raises
    ------
    PreprocessError
        If `output` holds something else, or the table cannot become a sound dataset.
    """
    existing = existing_dataset(source, options, output, overwrite)
    if existing is not None:
        return existing
    started = time.time()
    spectrogram = Spectrogram(options.spectrogram)
    beam_options = pipeline_options(beam_arguments, verbose)
    for leftover in WorkFolder.leftovers(output):
        shutil.rmtree(leftover)
    work = WorkFolder.create(output)
    runner = choose_runner(beam_options, Path("/dev/stderr") if verbose else work.log)
    pipeline = beam.Pipeline(runner=runner, options=beam_options)
    build_pipeline(pipeline, source, options, spectrogram, work)
    with console.watch(PHASES, source.n_rows, lambda: read_counts(work.progress)):
        result = _run(pipeline, work, verbose)
    shutil.rmtree(work.segments)
    if work.problem.exists():
        raise PreprocessError(work.problem.read_text() + _reject_examples(work.rejects))
    n_clipped = _counter(result, "values_clipped")
    manifest = describe(source, options, spectrogram, work, n_clipped)
    _write_run(work.dataset / RUN, source, beam_options, started)
    install(work, manifest, output)
    return manifest


def _run(pipeline: beam.Pipeline, work: WorkFolder, verbose: bool) -> PipelineResult:
    if verbose:
        logging.getLogger("apache_beam").setLevel(logging.INFO)
        result = pipeline.run()
        result.wait_until_finish()
        return result
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    try:
        with work.log.open("a") as log, contextlib.redirect_stderr(log):
            result = pipeline.run()
            result.wait_until_finish()
    except Exception as error:
        # Beam puts a worker's whole traceback before its message.
        message = [line for line in str(error).splitlines() if line.strip()][-1].strip()
        if message.startswith("Channel closed"):
            message = "a worker process died; was it killed, or out of memory?"
        raise PreprocessError(f"{message}; the traceback is in {work.log}") from error
    return result


def _reject_examples(folder: Path) -> str:
    """Return the first rejected row of each reason, and where the others are listed."""
    firsts = [
        json.loads(path.read_text().splitlines()[0]) for path in sorted(folder.glob("*.jsonl"))
    ]
    if not firsts:
        return ""
    examples = [
        "  {reason}, e.g. session {session} trial {trial_num}: {detail}".format(**row)
        for row in firsts
    ]
    return "\n".join(["", *examples, f"All rejected rows are listed in {folder}"])


def _counter(result: Any, name: str) -> int:
    query = beam.metrics.MetricsFilter().with_name(name)
    return sum(counter.result for counter in result.metrics().query(query)["counters"])


def existing_dataset(
    source: TraceSource, options: DatasetOptions, output: Path, overwrite: bool
) -> Manifest | None:
    """Return the manifest if `output` already holds this dataset; None if the way is free.

    Raises
    ------
    PreprocessError
        If `output` is something else that must not be lost.
    """
    if output.exists() and not output.is_dir():
        raise PreprocessError(f"{output} is a file; --output needs a folder")
    if (output / MANIFEST).exists():
        manifest = read_manifest(output)
        run = json.loads((output / RUN).read_text()) if (output / RUN).exists() else {}
        same_options = manifest.fingerprint == options.fingerprint()
        same_input = run.get("input_identity") == source.identity()
        if same_options and same_input:
            for leftover in WorkFolder.leftovers(output):
                shutil.rmtree(leftover)
            return manifest
        if not overwrite:
            what = "other options" if not same_options else "another or a changed input"
            raise PreprocessError(
                f"{output} holds a dataset made with {what}; choose another --output, or "
                f"replace it with --overwrite{_changed_options(manifest, options)}"
            )
    elif output.exists() and not WorkFolder.leftovers(output):
        foreign = sorted(path.name for path in output.iterdir())
        if foreign:
            raise PreprocessError(
                f"{output} is neither empty nor a dataset: it holds {', '.join(foreign[:5])}; "
                "choose another --output"
            )
    return None


def _changed_options(manifest: Manifest, options: DatasetOptions) -> str:
    new = options.to_dict()
    changed = [
        f"{name} {manifest.options.get(name)} -> {value}"
        for name, value in new.items()
        if name != "splits" and manifest.options.get(name) != value
    ]
    return f" ({'; '.join(changed)})" if changed else ""


def describe(
    source: TraceSource,
    options: DatasetOptions,
    spectrogram: Spectrogram,
    work: WorkFolder,
    n_clipped: int,
) -> Manifest:
    """Write everything beside the shards into the work folder and return the manifest."""
    folder = work.dataset
    summaries, table = read_summaries(folder / SESSIONS)
    rows = table.to_pylist()
    shards = [ShardInfo(**shard) for shard in json.loads(work.shards.read_text())]
    classes = list(options.classes or sorted({row["condition"] for row in rows}))
    stats = normalization_stats(rebuild_normalization(summaries, rows, options.normalization))
    (folder / STATS).write_text(json.dumps(stats, indent=1) + "\n")
    for split in SPLITS:
        own = [shard for shard in shards if shard.path.startswith(f"{split}/")]
        (folder / f"{split}.json").write_text(json.dumps(wids_index(split, own), indent=1) + "\n")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=options.fingerprint(),
        options=options.to_dict(),
        source=describe_source(source, summaries),
        classes=classes,
        freqs=spectrogram.freqs.tolist(),
        times=spectrogram.times.tolist(),
        dtype="float16",
        shape=[options.block_trials, len(spectrogram.freqs), len(spectrogram.times)],
        normalization=stats | {"gain_correction": options.gain_correction},
        splits=split_manifests(shards, rows, classes),
        rejects={
            path.stem: len(path.read_text().splitlines())
            for path in sorted(work.rejects.glob("*.jsonl"))
        },
        values_clipped=n_clipped,
        files={},
        versions=package_versions(),
    )
    (folder / "README.md").write_text(dataset_card(manifest))
    (folder / PICTURE).write_bytes(mean_spectrograms_png(work.pictures, manifest))
    described = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    manifest.files.update(
        {
            str(path.relative_to(folder)): file_digest(path)
            for path in described
            if path.suffix != ".tar" and path.name != RUN
        }
    )
    return manifest


def rebuild_normalization(
    summaries: Sequence[SessionSummary], rows: Sequence[dict[str, Any]], method: str
) -> Normalization:
    """Return the train statistics from the rows of ``sessions.parquet``."""
    split_of = {row["session"]: row["split"] for row in rows}
    gains = {row["session"]: round(row["gain"] * UNIT) for row in rows}
    return train_normalization(summaries, split_of, gains, method)


def normalization_stats(norm: Normalization) -> dict[str, Any]:
    """Return the contents of ``spectrogram_norm_stats.json``."""
    per_frequency = norm.method == "per_frequency"
    return {
        "normalization": norm.method,
        "mean": norm.mean.tolist() if per_frequency else float(norm.mean[0]),
        "std": norm.std.tolist() if per_frequency else float(norm.std[0]),
        "count": norm.count,
        "sessions": list(norm.sessions),
    }


def describe_source(source: TraceSource, summaries: Sequence[SessionSummary]) -> dict[str, Any]:
    """Return the manifest's word on the table.

    Files are named by what was used of them, not by where they lay, so that the same rows in one
    file or in forty give the same manifest; ``run.json`` has the path.
    """
    content = sum(summary.content for summary in summaries) % (1 << 128)
    uri = f"trials:{content:032x}" if source.snapshot_time is None else source.uri
    return {
        "kind": source.kind,
        "uri": uri,
        "rows": source.n_rows,
        "snapshot_time": source.snapshot_time,
    }


def _write_run(
    path: Path, source: TraceSource, beam_options: PipelineOptions, started: float
) -> None:
    direct = beam_options.view_as(DirectOptions)
    finished = time.time()
    run = {
        "command": sys.argv,
        "input": source.uri,
        "input_identity": source.identity(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(),
        "finished": datetime.fromtimestamp(finished, UTC).isoformat(),
        "seconds": round(finished - started, 3),
        "runner": beam_options.view_as(StandardOptions).runner,
        "direct_num_workers": direct.direct_num_workers,
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }
    path.write_text(json.dumps(run, indent=1) + "\n")


def install(work: WorkFolder, manifest: Manifest, output: Path) -> None:
    """Move a finished dataset into place; its manifest appears last."""
    (output / MANIFEST).unlink(missing_ok=True)
    for name in CONTENTS:
        old = output / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        (work.dataset / name).rename(old)
    write_atomically(output / MANIFEST, manifest.to_json())
    work.remove()


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
    if manifest.values_clipped:
        print(f"Note: {manifest.values_clipped:,} values exceed float16 and were clipped")
