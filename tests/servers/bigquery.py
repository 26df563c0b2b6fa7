"""BigQuery on loopback: the Storage Read API over gRPC, with faults on demand, and its REST side.

Google's clients and Beam's ``ReadFromBigQuery(method=DIRECT_READ)`` run against it unchanged. It
keeps what the emulators from PyPI do not: a read starts at its row offset, a session is a snapshot,
and streams break in every way that BigQuery's do.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count, pairwise
from typing import Any

import grpc
import pyarrow as pa
from google.cloud.bigquery_storage_v1.types import (
    CreateReadSessionRequest,
    DataFormat,
    ReadRowsRequest,
    ReadRowsResponse,
    ReadSession,
)
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from tests.servers import bigquery_avro
from tests.servers.bigquery_rest import RestServer
from tests.servers.bigquery_tables import StoredTable, restrict

SERVICE = "google.cloud.bigquery.storage.v1.BigQueryRead"
#: What a fault does, beside ending the stream with a gRPC status of its name.
RST_STREAM = "RST_STREAM"  # the stream is reset instead of ended
STALL = "STALL"  # nothing more comes, and the stream stays open
REPEAT = "REPEAT"  # the last message is sent twice, then all goes on
REWIND = "REWIND"  # the read starts some rows before the offset
EXPIRED = "session expired at 2026-01-01"


@dataclass
class StreamFault:
    """What goes wrong with the reads that it meets.

    Attributes
    ----------
    action : str
        The name of a gRPC status, or one of the constants of this module.
    after : int
        Messages that are sent before.
    times : int or None
        Reads that are met; None for all.
    resumed : bool or None
        Meet only reads from an offset above 0, or only those from 0.
    column : str or None
        Meet only reads of this column.
    rows : int
        Of a `REWIND`.
    retry_delay : float
        Seconds that a status tells the client to wait.
    """

    action: str
    after: int = 0
    times: int | None = 1
    resumed: bool | None = None
    column: str | None = None
    rows: int = 0
    retry_delay: float = 0.0

    def meets(self, offset: int, columns: Sequence[str]) -> bool:
        """Say if a read is met, and count it."""
        if self.times == 0 or self.resumed not in (None, offset > 0):
            return False
        if self.column is not None and self.column not in columns:
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class _Session:
    table: pa.Table
    avro: bool
    #: Where each stream starts and stops.
    edges: list[tuple[int, int]]
    #: What its messages depend on.
    content: tuple[Any, ...]


@dataclass
class BigQueryServer:
    """Serves the tables that are put into it, on two ports of loopback.

    Attributes
    ----------
    tables : dict
        {``project.dataset.table``: StoredTable}
    queries : dict
        {text: (names of the tables that it reads, function that returns its result)}
    faults : list of StreamFault
        A read meets the first that meets it.
    create_faults : list of str
        Statuses that the next sessions are refused with.
    forbidden : set of str
        Tables that may not be read.
    message_rows : int
        Rows of a message.
    least_streams : int
        BigQuery gives what it likes: a session has at least so many streams, asked for or not.
    sessions, reads : list
        Requests for sessions; (stream, offset) of reads.
    """

    message_rows: int = 7
    least_streams: int = 3
    tables: dict[str, StoredTable] = field(default_factory=dict)
    queries: dict[str, tuple[list[str], Callable[[], pa.Table]]] = field(default_factory=dict)
    faults: list[StreamFault] = field(default_factory=list)
    create_faults: list[str] = field(default_factory=list)
    forbidden: set[str] = field(default_factory=set)
    sessions: list[CreateReadSessionRequest] = field(default_factory=list)
    reads: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, _Session] = {}
        # Kept, so that a benchmark measures who reads them and not who makes them.
        self._messages: dict[tuple[Any, ...], bytes] = {}
        self._server = grpc.server(
            ThreadPoolExecutor(64), options=[("grpc.max_send_message_length", -1)]
        )
        handlers = {
            "CreateReadSession": grpc.unary_unary_rpc_method_handler(
                self._create_read_session,
                CreateReadSessionRequest.deserialize,
                ReadSession.serialize,
            ),
            "ReadRows": grpc.unary_stream_rpc_method_handler(
                self._read_rows, ReadRowsRequest.deserialize, bytes
            ),
        }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE, handlers)]
        )
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self._rest = RestServer(self.tables, self.queries, self.forbidden)

    @property
    def environment(self) -> dict[str, str]:
        """The variable that sends Google's REST client here."""
        return {"BIGQUERY_EMULATOR_HOST": self._rest.url}

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """Configurations of the jobs that ran."""
        return self._rest.jobs

    @property
    def rest_faults(self) -> list[int | None]:
        """HTTP statuses that the next REST requests are answered with."""
        return self._rest.faults

    def put(self, name: str, table: pa.Table, modified: datetime | None = None) -> None:
        """Make or replace a table; its earlier states can still be read as snapshots."""
        stored = self.tables.setdefault(name, StoredTable())
        stored.put(table, modified or datetime.now(UTC))

    def expire_sessions(self) -> None:
        """Let six hours pass."""
        with self._lock:
            self._open.clear()

    def close(self) -> None:
        """Stop."""
        self._server.stop(None).wait()
        self._rest.close()

    def _create_read_session(
        self, request: CreateReadSessionRequest, context: grpc.ServicerContext
    ) -> ReadSession:
        with self._lock:
            self.sessions.append(request)
            refused = self.create_faults.pop(0) if self.create_faults else None
        if refused:
            _abort(context, refused)
        session = request.read_session
        match = re.fullmatch("projects/(.+)/datasets/(.+)/tables/(.+)", session.table)
        assert match
        name = ".".join(match.groups())
        if name not in self.tables:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Not found: Table {name}")
        if name in self.forbidden:
            context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"request failed: the user does not have 'bigquery.readsessions.create' permission "
                f"for {request.parent}\nor the table does not exist",
            )
        options = session.read_options
        try:
            time = _time(session.table_modifiers)
            table = restrict(self.tables[name].at(time), options.row_restriction)
            if options.selected_fields:
                # In the table's order, as BigQuery does.
                wanted = set(options.selected_fields)
                table = table.select([column for column in table.column_names if column in wanted])
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"request failed: {error}")
        n_streams = max(self.least_streams, request.max_stream_count) if len(table) else 0
        edges = [len(table) * i // max(1, n_streams) for i in range(n_streams + 1)]
        with self._lock:
            key = f"{request.parent}/locations/eu/sessions/s{len(self.sessions)}"
            avro = session.data_format == DataFormat.AVRO
            content = (name, id(self.tables[name].at(time)), options.row_restriction, avro)
            self._open[key] = _Session(
                table, avro, list(pairwise(edges)), (*content, *table.column_names)
            )
        answer = ReadSession(
            name=key,
            table=session.table,
            data_format=session.data_format,
            estimated_row_count=len(table) + 1,
            estimated_total_bytes_scanned=table.nbytes,
            streams=[{"name": f"{key}/streams/{i}"} for i in range(n_streams)],
        )
        if avro:
            answer.avro_schema.schema = bigquery_avro.schema(table.schema)
        else:
            answer.arrow_schema.serialized_schema = table.schema.serialize().to_pybytes()
        return answer

    def _read_rows(
        self, request: ReadRowsRequest, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        name, offset = request.read_stream, request.offset
        with self._lock:
            self.reads.append((name, offset))
            key, _, index = name.partition("/streams/")
            session = self._open.get(key)
            columns = session.table.column_names if session else []
            fault = next((fault for fault in self.faults if fault.meets(offset, columns)), None)
        if session is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, EXPIRED)
            return
        stream = session.edges[int(index)]
        row = stream[0] + offset
        if fault is not None and fault.action == REWIND:
            row = max(stream[0], row - fault.rows)
        for sent in count():
            if fault is not None and sent == fault.after:
                if fault.action == REPEAT and sent:
                    yield self._message(session, stream, row - self.message_rows)
                _commit(fault, context)
            if row >= stream[1]:
                # Faults that were to come later still come.
                if fault is not None and sent < fault.after:
                    _commit(fault, context)
                return
            yield self._message(session, stream, row)
            row += self.message_rows

    def _message(self, session: _Session, stream: tuple[int, int], row: int) -> bytes:
        """Return the message that begins with a row."""
        n_rows = min(self.message_rows, stream[1] - row)
        key = (*session.content, *stream, row, n_rows)
        if key not in self._messages:
            self._messages[key] = ReadRowsResponse.serialize(
                _make_message(session, stream, row, n_rows)
            )
        return self._messages[key]


def _make_message(
    session: _Session, stream: tuple[int, int], row: int, n_rows: int
) -> ReadRowsResponse:
    start, stop = stream
    rows = session.table.slice(row, n_rows)
    message = ReadRowsResponse(row_count=n_rows)
    message.stats.progress.at_response_start = (row - start) / (stop - start)
    message.stats.progress.at_response_end = (row + n_rows - start) / (stop - start)
    if session.avro:
        message.avro_rows.serialized_binary_rows = bigquery_avro.rows(rows)
    else:
        (batch,) = rows.combine_chunks().to_batches()
        message.arrow_record_batch.serialized_record_batch = batch.serialize().to_pybytes()
    # Only the first message of a stream says what it is made of.
    if row == start and session.avro:
        message.avro_schema.schema = bigquery_avro.schema(rows.schema)
    elif row == start:
        message.arrow_schema.serialized_schema = rows.schema.serialize().to_pybytes()
    return message


def _commit(fault: StreamFault, context: grpc.ServicerContext) -> None:
    if fault.action == STALL:
        ended = threading.Event()
        if context.add_callback(ended.set):
            ended.wait()
    elif fault.action == RST_STREAM:
        context.cancel()
    elif fault.action not in (REPEAT, REWIND):
        _abort(context, fault.action, fault.retry_delay)


def _time(modifiers: ReadSession.TableModifiers) -> datetime | None:
    time = modifiers.snapshot_time
    return None if not time or not time.timestamp() else time


def _abort(context: grpc.ServicerContext, status: str, retry_delay: float = 0.0) -> None:
    code = grpc.StatusCode[status]
    if not retry_delay:
        context.abort(code, f"{status} on demand")
    detail = AnyMessage()
    detail.Pack(RetryInfo(retry_delay=Duration(nanos=round(1e9 * retry_delay))))
    answer = Status(code=code.value[0], message=f"{status} on demand", details=[detail])
    context.abort_with_status(rpc_status.to_status(answer))
