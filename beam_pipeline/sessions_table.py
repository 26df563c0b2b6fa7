"""``sessions.parquet``: one row a session, with its exact moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipeline.layout import Layout
from beam_pipeline.moments import UNIT, Moments
from beam_pipeline.storage.places import AnyPath
from beam_pipeline.survey import SessionSummary

#: Integers in units of 2**-128, as decimals because they exceed 64 bits.
EXACT = pa.decimal256(76, 0)
SCHEMA = pa.schema(
    [
        ("session", pa.string()),
        ("subject", pa.string()),
        ("condition", pa.string()),
        ("split", pa.string()),
        ("trials_kept", pa.int64()),
        ("trials_rejected", pa.int64()),
        ("gain", pa.float64()),
        ("count", pa.int64()),
        ("sum", pa.list_(EXACT)),
        ("sum_squares", pa.list_(EXACT)),
        ("baseline_sum", EXACT),
        ("content", pa.string()),
        ("blocks", pa.list_(pa.int64())),
        ("block_trials", pa.list_(pa.int64())),
    ]
)


def sessions_table(
    summaries: Iterable[SessionSummary], layout: Layout, rejected: Mapping[str, int]
) -> pa.Table:
    """Return the table of sessions, sorted by session.

    Parameters
    ----------
    summaries : iterable of SessionSummary
    layout : Layout
    rejected : mapping
        Rejected trials of each session that has any.
    """
    rows = [
        {
            "session": summary.session,
            "subject": summary.subject,
            "condition": summary.condition,
            "split": layout.split_of[summary.session],
            "trials_kept": summary.n_trials,
            "trials_rejected": rejected.get(summary.session, 0),
            "gain": layout.gains[summary.session] / UNIT,
            "count": summary.moments.count,
            "sum": [Decimal(value) for value in summary.moments.sums],
            "sum_squares": [Decimal(value) for value in summary.moments.squares],
            "baseline_sum": Decimal(summary.baseline_sum),
            "content": f"{summary.content:032x}",
            "blocks": [block for block, _ in summary.blocks],
            "block_trials": [n_trials for _, n_trials in summary.blocks],
        }
        for summary in sorted(summaries, key=lambda summary: summary.session)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_table(table: pa.Table, path: AnyPath) -> None:
    """Write the table of sessions."""
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    path.write_bytes(content.getvalue().to_pybytes())


def read_summaries(path: AnyPath) -> tuple[list[SessionSummary], pa.Table]:
    """Read the sessions' summaries back, and the table they stand in.

    Raises
    ------
    ValueError
        If the file is no such table.
    """
    try:
        # Not pq.read_table: a thread of its scanner may outlive the interpreter, and abort it.
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path.name} is not readable: {str(error).splitlines()[0]}") from error
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{path.name} has the columns {table.schema.names}")
    return [
        SessionSummary(
            row["session"],
            row["subject"],
            row["condition"],
            tuple(zip(row["blocks"], row["block_trials"], strict=True)),
            Moments(
                row["count"],
                tuple(int(value) for value in row["sum"]),
                tuple(int(value) for value in row["sum_squares"]),
            ),
            int(row["baseline_sum"]),
            int(row["content"], 16),
        )
        for row in table.to_pylist()
    ], table
