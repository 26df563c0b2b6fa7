"""Trace tables in Parquet: one file, a folder, or a glob."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from beam_pipeline.sources import TEXT_COLUMNS, SourceError, match_columns
from beam_pipeline.traces import fits_float32

#: With a buffer, Parquet pages are streamed; without, a whole column chunk is held in memory.
READ_BUFFER_BYTES = 1 << 20
MAX_PIECES_OF_ROW_GROUP = 4


@dataclass(frozen=True)
class ParquetSplit:
    """Rows ``start`` to ``stop`` of one row group."""

    path: str
    row_group: int
    start: int
    stop: int


@dataclass(frozen=True)
class _File:
    path: str
    columns: dict[str, str]
    fits_float32: bool
    row_group_rows: tuple[int, ...]


class ParquetSource:
    """Parquet files of one table.

    Parameters
    ----------
    uri : str
        A file, a folder (searched for ``*.parquet``, hidden names left out) or a glob.
    names : mapping, optional
        {contract name: column} for columns that are called otherwise.

    Raises
    ------
    SourceError
        If nothing is found, a file is no Parquet, or its columns do not fit.
    """

    kind = "parquet"
    snapshot_time: str | None = None

    def __init__(self, uri: str, names: Mapping[str, str] | None = None) -> None:
        self.uri = uri
        self._files = [_inspect(path, names or {}) for path in _find(uri)]
        first = self._files[0]
        for file in self._files[1:]:
            if file.columns.keys() != first.columns.keys():
                raise SourceError(
                    f"{file.path} has the columns {sorted(file.columns)}, but {first.path} has "
                    f"{sorted(first.columns)}: the files of one table need the same columns"
                )
        self.columns = tuple(first.columns)
        self.n_rows = sum(sum(file.row_group_rows) for file in self._files)
        exact = all(file.fits_float32 for file in self._files)
        self.sample_dtype = "float32" if exact else "float64"
        if self.n_rows == 0:
            raise SourceError(f"{uri}: the table has no rows")

    def splits(self, desired: int) -> list[ParquetSplit]:
        """Return one piece a row group, or a few where the row groups are too large.

        A piece inside a row group decodes and skips the rows before it. With a few pieces that
        costs a few percent of the work on a row; with many it would grow with their square.
        """
        target = max(1, -(-self.n_rows // desired))
        pieces = []
        for file in self._files:
            for row_group, n_rows in enumerate(file.row_group_rows):
                n_pieces = min(MAX_PIECES_OF_ROW_GROUP, max(1, round(n_rows / target)))
                edges = [n_rows * piece // n_pieces for piece in range(n_pieces + 1)]
                pieces += [
                    ParquetSplit(file.path, row_group, start, stop)
                    for start, stop in pairwise(edges)
                    if stop > start
                ]
        return pieces

    def read(self, split: ParquetSplit, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a piece as record batches of the contract's columns."""
        columns = next(file.columns for file in self._files if file.path == split.path)
        position = 0
        with pq.ParquetFile(split.path, buffer_size=READ_BUFFER_BYTES, pre_buffer=False) as file:
            batches = file.iter_batches(
                batch_rows, [split.row_group], list(columns.values()), use_threads=False
            )
            for batch in batches:
                first = max(0, split.start - position)
                last = min(batch.num_rows, split.stop - position)
                position += batch.num_rows
                if last > first:
                    yield _rename(batch.slice(first, last - first), columns)
                if position >= split.stop:
                    return

    def read_columns(self, names: Sequence[str]) -> pa.Table:
        """Read a few small columns of all files; ids and conditions as strings."""
        tables = []
        for file in self._files:
            with pq.ParquetFile(file.path) as parquet:
                table = parquet.read([file.columns[name] for name in names])
            columns = {name: table.column(file.columns[name]) for name in names}
            # Files may differ in whether an id is a number.
            for name in columns.keys() & TEXT_COLUMNS:
                columns[name] = columns[name].cast(pa.string())
            tables.append(pa.table({name: columns[name] for name in names}))
        return pa.concat_tables(tables, promote_options="permissive")

    def identity(self) -> list[Any]:
        """Return path, size and modification time of every file."""
        stats = [(file.path, Path(file.path).stat()) for file in self._files]
        return [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _rename(batch: pa.RecordBatch, columns: Mapping[str, str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [batch.column(column) for column in columns.values()], names=list(columns)
    )


def _find(uri: str) -> list[str]:
    path = Path(uri)
    if path.is_dir():
        found = sorted(
            str(file)
            for file in path.rglob("*.parquet")
            # Other engines write hidden and underscore files beside the data, and tables as folders
            # that are called *.parquet themselves.
            if file.is_file() and not any(part[0] in "._" for part in file.relative_to(path).parts)
        )
        missing = f"{uri}: the folder has no *.parquet file"
    elif glob.has_magic(uri) and not path.is_file():
        found = sorted(
            name
            for name in glob.glob(uri, recursive=True)  # noqa: PTH207 (takes absolute patterns)
            if Path(name).is_file()
        )
        missing = f"{uri}: no file matches"
    else:
        found = [uri] if path.is_file() else []
        missing = f"{uri}: no such file or folder"
    if not found:
        raise SourceError(missing)
    return found


def _inspect(path: str, names: Mapping[str, str]) -> _File:
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(f"{path}: not a readable Parquet file ({reason})") from error
    rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    columns = match_columns(schema, names, path)
    return _File(path, columns, fits_float32(schema.field(columns["trace"]).type), rows)
