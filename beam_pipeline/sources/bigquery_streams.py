"""The client of BigQuery's Storage Read API: sessions and single attempts to read a stream."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Iterator
from functools import cache
from types import TracebackType
from typing import Any

import grpc
import pyarrow as pa
from google.api_core import exceptions
from google.api_core.gapic_v1.routing_header import to_grpc_metadata
from google.api_core.retry import Retry, if_exception_type
from google.cloud.bigquery_storage_v1.services.big_query_read import BigQueryReadClient
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import (
    BigQueryReadGrpcTransport,
)
from google.cloud.bigquery_storage_v1.types import (
    ReadRowsRequest,
    ReadRowsResponse,
    ReadSession,
)
from google.rpc.error_details_pb2 import RetryInfo

from beam_pipeline.sources.resuming import BrokenStreamError, Count

PASSING_ERRORS = (
    exceptions.Aborted,
    exceptions.Cancelled,
    exceptions.DeadlineExceeded,
    exceptions.InternalServerError,
    exceptions.ResourceExhausted,
    exceptions.ServiceUnavailable,
    exceptions.Unknown,
)
#: What is asked once, before any work starts, is not waited for as long as a stream.
CREATE_SECONDS = 60.0
WATCHDOG = "read-rows-watchdog"
_CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_metadata_size", 1 << 20)]


def is_loopback(endpoint: str) -> bool:
    """Tell whether HOST:PORT is on this machine, where neither TLS nor credentials are needed."""
    host = endpoint.rpartition(":")[0].strip("[]") or endpoint
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@cache
def read_client(endpoint: str | None) -> BigQueryReadClient:
    """Return this process's client of an endpoint; None is Google's."""
    if endpoint is None:
        return BigQueryReadClient()
    if not is_loopback(endpoint):
        return BigQueryReadClient(client_options={"api_endpoint": endpoint})
    channel = grpc.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
    return BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=channel))


def create_session(
    client: BigQueryReadClient, parent: str, session: ReadSession, max_streams: int
) -> ReadSession:
    """Create a read session.

    Raises
    ------
    google.api_core.exceptions.GoogleAPICallError
        If the server refuses it, or does not answer for `CREATE_SECONDS`.
    """
    return client.create_read_session(
        request={
            "parent": parent,
            "read_session": session,
            "max_stream_count": max_streams,
            "preferred_min_stream_count": max_streams,
        },
        retry=Retry(if_exception_type(*PASSING_ERRORS), initial=0.5, timeout=CREATE_SECONDS),
        timeout=CREATE_SECONDS,
    )


def read_stream(
    client: BigQueryReadClient,
    name: str,
    offset: int,
    schema: pa.Schema,
    stall_seconds: float,
    count: Count,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a stream from an offset; one attempt.

    The client's own `read_rows` goes on by itself after some errors: for up to a day, and without
    a word. Here every break is seen, and whoever reads decides.

    Parameters
    ----------
    client : BigQueryReadClient
    name : str
    offset : int
    schema : pyarrow.Schema
    stall_seconds : float
        Longest wait for a message.
    count : callable
        Gets (counter, n) for messages that came twice.

    Raises
    ------
    BrokenStreamError
        If another attempt may succeed.
    google.api_core.exceptions.GoogleAPICallError
        If none will.
    """
    request = ReadRowsRequest(read_stream=name, offset=offset)
    # The bare call: the client's wrapper waits for the first message before it hands over the call
    # that could be cancelled.
    stub: Any = client.transport.read_rows
    call = stub(request, metadata=[to_grpc_metadata([("read_stream", name)])])
    previous: Any = None
    watchdog = _Watchdog(call, stall_seconds)
    try:
        with watchdog:
            for response in watchdog.watch(call):
                message = ReadRowsResponse.pb(response)
                # Its place in the stream is part of a message, so only a copy can be equal.
                if message.stats.progress.at_response_end and message == previous:
                    count("stream_messages_repeated", 1)
                    continue
                previous = message
                if message.row_count:
                    content = message.arrow_record_batch.serialized_record_batch
                    yield pa.ipc.read_record_batch(pa.py_buffer(content), schema)
    except grpc.RpcError as error:
        if watchdog.fired:
            raise BrokenStreamError("stalled", f"nothing came for {stall_seconds:g} s") from error
        problem = exceptions.from_grpc_error(error)
        if not isinstance(problem, PASSING_ERRORS):
            raise problem from error
        cause = error.code().name.lower()
        raise BrokenStreamError(cause, str(problem.message), _asked_delay(problem)) from error
    finally:
        call.cancel()


def _asked_delay(error: exceptions.GoogleAPICallError) -> float:
    """Return the seconds after which the server wants to be asked again; 0 if it says nothing."""
    for detail in error.details:
        if isinstance(detail, RetryInfo):
            return float(detail.retry_delay.ToTimedelta().total_seconds())
    return 0.0


class _Watchdog:
    """Cancels a call that stays silent for too long while it is waited for."""

    def __init__(self, call: grpc.Call, seconds: float) -> None:
        self.fired = False
        self._call = call
        self._seconds = seconds
        self._waiting_since: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=WATCHDOG, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def watch(self, responses: Iterator[Any]) -> Iterator[Any]:
        while True:
            self._waiting_since = time.monotonic()
            try:
                response = next(responses)
            except StopIteration:
                return
            finally:
                # What is done with a message may take as long as it likes.
                self._waiting_since = None
            yield response

    def _run(self) -> None:
        while not self._ended.wait(self._seconds / 4):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > self._seconds:
                self.fired = True
                self._call.cancel()
