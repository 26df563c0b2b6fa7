"""The ``preprocess`` command: from a table of traces to a complete dataset folder."""

from __future__ import annotations

import argparse
import json
import operator
import time
from functools import partial

from beam_pipeline import console
from beam_pipeline.card import cautions
from beam_pipeline.dataset_run import make_dataset
from beam_pipeline.flags.dataset import add_dataset_arguments, dataset_options
from beam_pipeline.flags.table import add_source_arguments, open_source
from beam_pipeline.launchers.choice import choose_launcher
from beam_pipeline.layout import needs_every_spectrogram
from beam_pipeline.manifest import Manifest
from beam_pipeline.output.work_folder import WorkFolder
from beam_pipeline.pipeline import build_pipeline
from beam_pipeline.plurals import plural
from beam_pipeline.spectrogram import Spectrogram
from beam_pipeline.storage.locations import locate
from beam_pipeline.storage.places import AnyPath


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
        "files, worker pool, flags), without submitting it or writing a file; a --bq_query is "
        "run, since the job depends on its result",
    )
    add_dataset_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Preprocess a table and print what was made."""
    started = time.time()
    output = locate(args.output)
    # Before the table is opened: its flags, credentials and buckets take no time.
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
    manifest, made = make_dataset(source, options, output, launcher, args.overwrite)
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
        f"{plural(rows, 'row')}: {used:,} used, {rejected:,} rejected; "
        f"{plural(len(manifest.shards), 'shard')}, {total}, in {seconds:.1f} s. "
        f"Card: {output / 'README.md'}"
    )
    for caution in cautions(manifest):
        print(f"Note: {caution}")
    if manifest.values_clipped:
        clipped = plural(manifest.values_clipped, "value", "was", "were")
        print(f"Note: {clipped} beyond float16 and set to its limit")
