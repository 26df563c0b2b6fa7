"""Where the table is, how its columns are called, and which of its rows are read."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from beam_pipeline.errors import UsageError
from beam_pipeline.sources import SourceError, TraceSource, parse_column_names
from beam_pipeline.sources.parquet import ParquetSource


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where the table is and how its columns are called."""
    group = parser.add_argument_group("table")
    group.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="Parquet file, folder of Parquet files, or quoted glob, here or on gs://; or a table "
        "of BigQuery, bq://PROJECT.DATASET.TABLE",
    )
    group.add_argument(
        "--columns",
        type=_columns,
        default={},
        metavar="NAME=COLUMN,...",
        help="names in the table for: session, condition, trial_num, trace (required), subject, "
        "sfreq, onset, frequency, amplitude (optional); e.g. trace=lfp,session=session_id",
    )
    group.add_argument(
        "--sfreq",
        type=float,
        help="sampling rate in Hz of rows that state none; other rates are rejected, or "
        "resampled with --resample",
    )
    group.add_argument(
        "--onset",
        type=float,
        help="stimulus onset in seconds from the start of the trace, for rows that state none",
    )
    _add_bigquery_arguments(parser)


def _add_bigquery_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "BigQuery",
        "Reading is billed to the project of GOOGLE_CLOUD_PROJECT, or else to the table's own.",
    )
    group.add_argument(
        "--row_restriction",
        metavar="SQL",
        help="read the rows that meet this condition, e.g. \"session != 's07' AND trial_num < 90\"",
    )
    group.add_argument(
        "--snapshot_time",
        type=_time,
        metavar="TIME",
        help="read the table as it was then, e.g. 2026-11-20T12:00:00Z (default: as it is)",
    )
    group.add_argument(
        "--bq_query",
        metavar="SQL",
        help="read the result of this SELECT, which is put into a table that expires after a day, "
        "in the dataset --input bq://PROJECT.DATASET",
    )
    group.add_argument(
        "--bigquery_endpoint",
        metavar="HOST:PORT",
        help="another Storage Read API than Google's; on loopback plain text, and no credentials "
        "are looked for",
    )


def open_source(args: argparse.Namespace) -> TraceSource:
    """Return the table that the flags of `add_source_arguments` name, to split it by animal.

    A note says where the table seems to know the animals by another name. Raises what
    `find_source` does.
    """
    source = find_source(args)
    if source.animal_column is not None:
        print(
            f"Note: {source.uri} has no column 'subject', so it is split by session and one animal "
            f"may be in train and test; pass --columns {_with_animal(args.columns, source)} if "
            "that column names the animals",
            file=sys.stderr,
        )
    return source


def _with_animal(columns: Mapping[str, str], source: TraceSource) -> str:
    """Return the value of ``--columns`` that names the animals, too, as a shell takes it."""
    given = {**columns, "subject": source.animal_column}
    return shlex.quote(",".join(f"{name}={column}" for name, column in given.items()))


def find_source(args: argparse.Namespace) -> TraceSource:
    """Return the table that the flags of `add_source_arguments` name.

    Raises
    ------
    UsageError
        If flags contradict each other.
    SourceError
        If it cannot be read.
    """
    if not args.input.startswith("bq://"):
        for flag in ("row_restriction", "snapshot_time", "bq_query", "bigquery_endpoint"):
            if getattr(args, flag) is not None:
                raise UsageError(f"--{flag} is for --input bq://..., not for {args.input}")
        return ParquetSource(args.input, args.columns)
    if args.bq_query is not None:
        for flag, instead in (("row_restriction", "WHERE"), ("snapshot_time", "FOR SYSTEM_TIME")):
            if getattr(args, flag) is not None:
                raise UsageError(f"--{flag} and --bq_query: write {instead} in the query instead")
    # Google's client takes half a second to load, which files need not wait for.
    try:
        from beam_pipeline.sources.bigquery import BigQuerySource, Selection
    except ModuleNotFoundError as error:
        raise SourceError(
            f"{args.input}: reading BigQuery takes {error.name}, which is not installed; "
            "run: pip install 'lfp-vit[pipeline]'"
        ) from error
    selection = Selection(args.row_restriction, args.snapshot_time, args.bq_query)
    return BigQuerySource(args.input, args.columns, selection, args.bigquery_endpoint)


def _columns(text: str) -> dict[str, str]:
    try:
        return parse_column_names(text)
    except ValueError as error:
        # argparse names the flag, too.
        raise argparse.ArgumentTypeError(str(error).removeprefix("--columns: ")) from error


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no time like 2026-11-20T12:00:00Z") from error
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text} has no time zone; add Z for UTC")
    if time > datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"{text} is in the future")
    return time
