"""Small trace tables for tests, built without the code under test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SFREQ = 250.0
ONSET = 1.0
N_SAMPLES = 625
#: Flags that fit these tables: 49 frequencies from 96 samples, times -1 to 1.5 s.
FLAGS = [
    *("--sfreq", "250", "--onset", "1.0", "--tmin", "-1.0", "--tmax", "1.5"),
    *("--baseline", "-1.0,0.0", "--nperseg", "96", "--noverlap", "80"),
]
#: The runner inside this process: no worker processes to start.
IN_PROCESS = ["--direct_num_workers", "1"]


def make_table(
    sessions: int = 16, trials: int = 10, seed: int = 0, dtype: str = "float32"
) -> pa.Table:
    """Return a table of random walks: WT and FMR1 in turn, two sessions a subject."""
    rng = np.random.default_rng(seed)
    traces = rng.standard_normal((sessions * trials, N_SAMPLES)).cumsum(axis=1).astype(dtype)
    session = np.repeat(np.arange(sessions), trials)
    subject = session // 2
    return pa.table(
        {
            "session": [f"s.{index}/a b" for index in session],
            "subject": subject.tolist(),
            "condition": [("WT", "FMR1")[index % 2] for index in subject],
            "trial_num": np.tile(np.arange(10, 10 + trials), sessions),
            "frequency": np.resize([4000.0, 8000.0, 16000.0], len(session)),
            "amplitude": np.resize([60.0, 80.0], len(session)),
            "trace": list(traces),
        }
    )


def traces_of(table: pa.Table) -> NDArray[np.float64]:
    """Return the traces as float64 of shape (rows, N_SAMPLES)."""
    flat = table.column("trace").combine_chunks().flatten().to_numpy()
    return flat.astype(np.float64).reshape(table.num_rows, -1)


def replace_trace(table: pa.Table, row: int, trace: Sequence[float]) -> pa.Table:
    """Return the table with another trace in one row."""
    traces = table.column("trace").to_pylist()
    traces[row] = list(trace)
    column = pa.array(traces, table.schema.field("trace").type)
    return table.set_column(table.schema.get_field_index("trace"), "trace", column)


def write(table: pa.Table, path: Path, row_group_size: int | None = None) -> Path:
    """Write a table as one Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def write_files(table: pa.Table, folder: Path, n_files: int) -> Path:
    """Write a table as several Parquet files."""
    edges = [table.num_rows * index // n_files for index in range(n_files + 1)]
    for index in range(n_files):
        part = table.slice(edges[index], edges[index + 1] - edges[index])
        write(part, folder / f"part-{index:03d}.parquet")
    return folder


def shuffled(table: pa.Table, seed: int = 1) -> pa.Table:
    """Return the rows in random order."""
    return table.take(np.random.default_rng(seed).permutation(table.num_rows))
