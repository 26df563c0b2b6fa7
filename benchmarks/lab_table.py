"""Write a trace table of the lab's shape: 32 sessions, WT and FMR1 at 2.7 : 1, 5,000 samples.

Its columns are those of the lab's table: no subject, no sampling rate, no onset. Traces come from
``beam_pipeline.sample``; every row is good, so that each peer does the same work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipeline.sample.sessions import draw_session, stimulus_order
from beam_pipeline.sample.tables import encode_traces
from beam_pipeline.sample.traces import simulate

SESSIONS = 32
FMR1_SESSIONS = 9
WT_PER_FMR1 = 2.7
SFREQ = 1000.0
SEED = 0
#: One of our pieces, so that no case decodes a row twice; not one row group for all.
ROW_GROUP_ROWS = 2048
ROWS_AT_ONCE = 256


def trials_per_session(n_rows: int) -> list[int]:
    """Return the number of trials of each session; every third or fourth session is FMR1."""
    fmr1 = [is_fmr1(session) for session in range(SESSIONS)]
    per_class = {True: 1 / FMR1_SESSIONS, False: WT_PER_FMR1 / (SESSIONS - FMR1_SESSIONS)}
    shares = np.array([per_class[flag] for flag in fmr1]) / (1 + WT_PER_FMR1)
    edges = np.round(np.cumsum(shares) * n_rows).astype(int)
    return [int(count) for count in np.diff(edges, prepend=0)]


def is_fmr1(session: int) -> bool:
    """Spread the FMR1 sessions evenly over the others."""
    return session * FMR1_SESSIONS % SESSIONS < FMR1_SESSIONS


def batches(n_rows: int) -> Iterator[pa.Table]:
    """Yield the table, ordered by session and trial, a few rows at a time."""
    rng = np.random.default_rng(SEED)
    for index, n_trials in enumerate(trials_per_session(n_rows)):
        condition = "FMR1" if is_fmr1(index) else "WT"
        session = replace(draw_session(index, SESSIONS, SEED), condition=condition)
        frequency, amplitude = stimulus_order(n_trials, rng)
        for start in range(0, n_trials, ROWS_AT_ONCE):
            part = slice(start, min(start + ROWS_AT_ONCE, n_trials))
            n = part.stop - part.start
            latent = rng.standard_normal(n)
            traces = simulate(session, latent, frequency[part], amplitude[part], SFREQ, rng)
            yield pa.table(
                {
                    "session": [session.session] * n,
                    "condition": [condition] * n,
                    "frequency": frequency[part],
                    "amplitude": amplitude[part],
                    "trial_num": np.arange(part.start, part.stop) + 1,
                    "trace": encode_traces(list(traces), "list"),
                }
            )


def write_table(path: Path, n_rows: int) -> None:
    """Write one Parquet file of several row groups."""
    tables = batches(n_rows)
    waiting = next(tables)
    with pq.ParquetWriter(path, waiting.schema, compression="snappy") as writer:
        for table in tables:
            waiting = pa.concat_tables([waiting, table])
            if waiting.num_rows >= ROW_GROUP_ROWS:
                writer.write_table(waiting.slice(0, ROW_GROUP_ROWS))
                waiting = waiting.slice(ROW_GROUP_ROWS)
        if waiting.num_rows:
            writer.write_table(waiting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    write_table(args.output, args.rows)


if __name__ == "__main__":
    main()
