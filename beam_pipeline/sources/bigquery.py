"""Trace tables in BigQuery, read as Arrow record batches by the Storage Read API."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from google.api_core.exceptions import FailedPrecondition, NotFound
from google.cloud.bigquery_storage_v1.types import DataFormat, ReadSession

from beam_pipeline.counters import count
from beam_pipeline.errors import UsageError
from beam_pipeline.sources import (
    TEXT_COLUMNS,
    SourceError,
    find_animal_column,
    match_columns,
)
from beam_pipeline.sources.bigquery_errors import clear_errors, said
from beam_pipeline.sources.bigquery_streams import (
    create_session,
    is_loopback,
    read_client,
    read_stream,
)
from beam_pipeline.sources.resuming import Patience, read_resuming, rebatch
from beam_pipeline.trace_column import fits_float32

#: Rows that a stream should have: an even load, and each stream worth opening.
STREAM_ROWS = 1024
#: The most streams that BigQuery gives a session.
MAX_STREAMS = 1000
#: Streams that the launcher reads side by side: of small columns only.
THREADS = 8
#: This clock may be ahead of BigQuery's, which refuses to read the future.
CLOCK_MARGIN = timedelta(seconds=5)
#: Where Google's client looks for another REST API than Google's.
EMULATOR = "BIGQUERY_EMULATOR_HOST"
_NAME = re.compile(
    r"bq://(?P<project>(?:[a-z0-9.-]+:)?[a-z0-9-]+)\.(?P<dataset>\w+)(?:\.(?P<table>[^.`/]+))?"
)


@dataclass(frozen=True)
class Selection:
    """What beside the table's name says which rows are read.

    Attributes
    ----------
    row_restriction : str or None
        SQL condition on a row.
    snapshot_time : datetime.datetime or None
        Read the table as it was then; with a time zone.
    query : str or None
        Read the result of this query; the uri then names the dataset that gets it.
    """

    row_restriction: str | None = None
    snapshot_time: datetime | None = None
    query: str | None = None


class BigQuerySource:
    """One table of BigQuery, or the result of a query.

    What is read is settled at construction: one read session, whose rows stay the same whatever
    happens to the table. It lives for six hours.

    Parameters
    ----------
    uri : str
        ``bq://project.dataset.table``, or with a query ``bq://project.dataset``.
    names : mapping, optional
        {contract name: column} for columns that are called otherwise.
    selection : Selection, optional
    endpoint : str, optional
        HOST:PORT of another Storage Read API. On loopback it is plain text, no credentials are
        looked for, and the REST API is where BIGQUERY_EMULATOR_HOST says, or not there at all.
    patience : Patience, optional
        How long a stream that fails is waited for.

    Raises
    ------
    SourceError
        If the table cannot be read as it is.
    UsageError
        If the uri is not a table's, or the query is not a SELECT.
    """

    kind = "bigquery"

    def __init__(
        self,
        uri: str,
        names: Mapping[str, str] | None = None,
        selection: Selection | None = None,
        endpoint: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._patience = patience or Patience()
        self._input = uri
        self._selection = selection = selection or Selection()
        self._endpoint = endpoint
        dataset, table = _parse(uri, with_table=selection.query is None)
        project = dataset.rpartition(".")[0]
        # A table that others share is read at our own cost.
        self._billed = os.environ.get("GOOGLE_CLOUD_PROJECT") or project
        with self._clear_errors():
            self._name, self._read_time, known_since = self._locate(dataset, table)
            self.uri = f"bq://{self._name}"
            self.snapshot_time: str | None = known_since.astimezone(UTC).isoformat()
            schema = _schema(self._session((), 1))
            self._column_of = match_columns(schema, names or {}, self.uri)
            self.columns = tuple(self._column_of)
            self.animal_column = find_animal_column(schema, self._column_of)
            exact = fits_float32(schema.field(self._column_of["trace"]).type)
            self.sample_dtype = "float32" if exact else "float64"
            self.n_rows = self._count_rows()
            if self.n_rows == 0:
                raise SourceError(f"{self.uri}: no rows to read")
            n_streams = min(MAX_STREAMS, -(-self.n_rows // STREAM_ROWS))
            session = self._session(self.columns, n_streams)
        self._schema = _schema(session)
        self._streams = tuple(stream.name for stream in session.streams)
        # Both are those of the table before the restriction.
        n_scanned = max(self.n_rows, session.estimated_row_count)
        self.row_bytes = session.estimated_total_bytes_scanned / n_scanned

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the names of the streams: a worker is told those that it reads."""
        return self.__dict__ | {"_streams": ()}

    def splits(self, desired: int) -> Sequence[str]:
        """Return the names of the session's streams, however many are desired."""
        return self._streams

    def read(self, split: str, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a stream, in the same batches whenever it is read."""
        places = [self._schema.get_field_index(self._column_of[name]) for name in self.columns]
        for batch in rebatch(self._read_stream(split, self._schema), batch_rows):
            arrays = [batch.column(place) for place in places]
            yield pa.RecordBatch.from_arrays(arrays, names=list(self.columns))

    def read_columns(self, names: Sequence[str]) -> pa.Table:
        """Read a few small columns of the whole table; ids and conditions as strings."""
        with self._clear_errors():
            session = self._session(names, THREADS)
        schema = _schema(session)

        def read(stream: Any) -> list[pa.RecordBatch]:
            return list(self._read_stream(stream.name, schema))

        with ThreadPoolExecutor(THREADS) as threads:
            batches = [batch for part in threads.map(read, session.streams) for batch in part]
        table = pa.Table.from_batches(batches, schema)
        columns = {name: table.column(self._column_of[name]) for name in names}
        for name in columns.keys() & TEXT_COLUMNS:
            columns[name] = columns[name].cast(pa.string())
        return pa.table(columns)

    def identity(self) -> list[Any]:
        """Return the table, the time of its state, and what was selected."""
        return [self.uri, self.snapshot_time, self._selection.row_restriction]

    def selection(self) -> dict[str, Any]:
        """Return what says which rows are read, under the names of the flags."""
        return {
            "input": self._input,
            "snapshot_time": self.snapshot_time,
            "row_restriction": self._selection.row_restriction,
            "bq_query": self._selection.query,
        }

    def _clear_errors(self) -> AbstractContextManager[None]:
        return clear_errors(self._input, self._billed)

    def _locate(self, dataset: str, table: str | None) -> tuple[str, datetime | None, datetime]:
        """Find the table, or make it by the query.

        Returns
        -------
        name : str
            ``project.dataset.table``
        read_time : datetime.datetime or None
            The time for which sessions are made; None reads it as it is.
        known_since : datetime.datetime
            The time given, or else that of the last change: from then on any time means the same
            rows, so that the same command for an unchanged table makes the same dataset.
        """
        now, wanted = datetime.now(UTC), self._selection.snapshot_time
        on_loopback = self._endpoint is not None and is_loopback(self._endpoint)
        if on_loopback and EMULATOR not in os.environ:
            if self._selection.query is not None:
                raise SourceError(f"--bq_query: {EMULATOR} does not say where queries can be run")
            return f"{dataset}.{table}", wanted or now, wanted or now
        # Workers do without: they read streams alone.
        from beam_pipeline.sources.bigquery_tables import connect, query_table, table_state

        client = connect(self._billed, on_loopback)
        if self._selection.query is not None:
            state = query_table(client, dataset, self._selection.query)
        else:
            state = table_state(client, f"{dataset}.{table}", must_be_settled=wanted is None)
        if wanted is not None:
            return state.name, wanted, wanted
        if not state.can_travel:
            return state.name, None, state.modified
        just_after = state.modified + timedelta(milliseconds=1)
        return state.name, max(just_after, now - CLOCK_MARGIN), state.modified

    def _session(self, names: Sequence[str], max_streams: int) -> ReadSession:
        """Create a session of a few columns of the contract; of the whole table if of none."""
        project, dataset, table = self._name.rsplit(".", 2)
        options = ReadSession.TableReadOptions(
            selected_fields=dict.fromkeys(self._column_of[name] for name in names),
            row_restriction=self._selection.row_restriction or "",
        )
        session = ReadSession(
            table=f"projects/{project}/datasets/{dataset}/tables/{table}",
            data_format=DataFormat.ARROW,
            read_options=options,
        )
        if self._read_time is not None:
            session.table_modifiers = ReadSession.TableModifiers(snapshot_time=self._read_time)
        client = read_client(self._endpoint)
        return create_session(client, f"projects/{self._billed}", session, max_streams)

    def _count_rows(self) -> int:
        """Count the rows by reading their numbers: BigQuery itself only estimates a selection."""
        session = self._session(["trial_num"], THREADS)
        schema = _schema(session)

        def count_rows(stream: Any) -> int:
            return sum(batch.num_rows for batch in self._read_stream(stream.name, schema))

        with ThreadPoolExecutor(THREADS) as threads:
            return sum(threads.map(count_rows, session.streams))

    def _read_stream(self, name: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        def open_at(offset: int) -> Iterator[pa.RecordBatch]:
            client = read_client(self._endpoint)
            return read_stream(client, name, offset, schema, self._patience.stall, count)

        with self._clear_errors():
            try:
                yield from read_resuming(open_at, self._patience, count, self.uri)
            except (FailedPrecondition, NotFound) as error:
                raise SourceError(
                    f"{self.uri}: the read session is gone ({said(error)}); it lives for six "
                    "hours: run the command again, with more workers if reading took that long"
                ) from error


def _parse(uri: str, with_table: bool) -> tuple[str, str | None]:
    """Return ``project.dataset`` and the table."""
    match = _NAME.fullmatch(uri)
    if match is None or (match["table"] is not None) != with_table:
        form = "bq://PROJECT.DATASET.TABLE"
        if not with_table:
            form = "bq://PROJECT.DATASET, the dataset that gets the result of --bq_query"
        raise UsageError(f"--input {uri} is not {form}")
    return f"{match['project']}.{match['dataset']}", match["table"]


def _schema(session: ReadSession) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(session.arrow_schema.serialized_schema))
