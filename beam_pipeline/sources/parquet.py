"""Trace tables in Parquet: one file, a folder, or a glob, on this machine or on gs://."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa

from beam_pipeline.sources import (
    COLUMNS,
    TEXT_COLUMNS,
    SourceError,
    find_animal_column,
    match_columns,
    null_columns,
)
from beam_pipeline.sources.parquet_files import TableFile, find_files
from beam_pipeline.storage.gcs_client import in_parallel
from beam_pipeline.trace_column import fits_float32

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
    file: TableFile
    columns: dict[str, str]
    null_columns: frozenset[str]
    animal_column: str | None
    fits_float32: bool
    row_group_rows: tuple[int, ...]
    n_bytes: int

    @property
    def path(self) -> str:
        return self.file.path


class ParquetSource:
    """Parquet files of one table.

    Parameters
    ----------
    uri : str
        A file, a folder (searched for ``*.parquet``, hidden names left out) or a glob, on this
        machine or on gs://.
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
        files = find_files(uri)
        if files[0].state is None:
            self._files = [_inspect(file, names or {}) for file in files]
        else:
            self._files = in_parallel(lambda file: _inspect(file, names or {}), files)
        self.columns = _common_columns(self._files)
        self.animal_column = None if "subject" in self.columns else self._files[0].animal_column
        self.n_rows = sum(sum(file.row_group_rows) for file in self._files)
        exact = all(file.fits_float32 for file in self._files)
        self.sample_dtype = "float32" if exact else "float64"
        if self.n_rows == 0:
            raise SourceError(f"{uri}: the table has no rows")
        self.row_bytes = sum(file.n_bytes for file in self._files) / self.n_rows

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
        file = next(file for file in self._files if file.path == split.path)
        columns, position = file.columns, 0
        with file.file.open(stream=True) as parquet:
            batches = parquet.iter_batches(
                batch_rows, [split.row_group], list(columns.values()), use_threads=False
            )
            for batch in batches:
                first = max(0, split.start - position)
                last = min(batch.num_rows, split.stop - position)
                position += batch.num_rows
                if last > first:
                    yield self._fit(batch.slice(first, last - first), columns)
                if position >= split.stop:
                    return

    def read_columns(self, names: Sequence[str]) -> pa.Table:
        """Read a few small columns of all files; ids and conditions as strings."""
        tables = []
        for file in self._files:
            present = [name for name in names if name in file.columns]
            with file.file.open() as parquet:
                table = parquet.read([file.columns[name] for name in present])
            columns = {name: table.column(file.columns[name]) for name in present}
            # Files may differ in whether an id is a number.
            for name in columns.keys() & TEXT_COLUMNS:
                columns[name] = columns[name].cast(pa.string())
            n_rows = sum(file.row_group_rows)
            tables.append(pa.table({name: columns.get(name, pa.nulls(n_rows)) for name in names}))
        return pa.concat_tables(tables, promote_options="permissive")

    def identity(self) -> list[Any]:
        """Return path, size and modification time of every file, or generation of an object."""
        return [file.file.identity() for file in self._files]

    def selection(self) -> dict[str, Any]:
        """Return nothing: files are read as a whole."""
        return {}

    def _fit(self, batch: pa.RecordBatch, columns: Mapping[str, str]) -> pa.RecordBatch:
        """Name a file's columns as the contract does; those that it has no values of are null."""
        arrays = [
            batch.column(columns[name]) if name in columns else _nulls(name, batch.num_rows)
            for name in self.columns
        ]
        return pa.RecordBatch.from_arrays(arrays, names=list(self.columns))


def _nulls(name: str, n_rows: int) -> pa.Array:
    return pa.nulls(n_rows, pa.string() if name in TEXT_COLUMNS else pa.float64())


def _common_columns(files: Sequence[_File]) -> tuple[str, ...]:
    """Return the columns that a file has values of; the others must have them too, if only null."""
    holder = {name: file for file in files for name in file.columns}
    for file in files:
        missing = holder.keys() - file.columns.keys() - file.null_columns
        if missing:
            other = holder[min(missing)]
            raise SourceError(
                f"{other.path} has the columns {sorted(other.columns)}, but {file.path} has "
                f"{sorted(file.columns)}: the files of one table need the same columns"
            )
    return tuple(name for name in COLUMNS if name in holder)


def _inspect(file: TableFile, names: Mapping[str, str]) -> _File:
    path = file.path
    try:
        with file.open() as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
    except (pa.ArrowInvalid, OSError) as error:
        # Arrow raises an OSError without a number for content that it cannot make sense of.
        if getattr(error, "errno", None) is not None:
            raise
        reason = str(error).splitlines()[0]
        raise SourceError(f"{path}: not a readable Parquet file ({reason})") from error
    row_groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = match_columns(schema, names, path)
    return _File(
        file,
        columns,
        null_columns(schema, names),
        find_animal_column(schema, columns),
        fits_float32(schema.field(columns["trace"]).type),
        tuple(row_group.num_rows for row_group in row_groups),
        sum(row_group.total_byte_size for row_group in row_groups),
    )
