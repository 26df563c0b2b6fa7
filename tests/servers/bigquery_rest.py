"""The REST side of BigQuery on loopback: tables, datasets, and jobs that run known queries."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from tests.servers.bigquery_tables import StoredTable

Queries = dict[str, tuple[list[str], Callable[[], pa.Table]]]
_CREATE = re.compile(
    r"CREATE TABLE IF NOT EXISTS `(?P<name>[^`]+)` OPTIONS "
    r"\(expiration_timestamp = TIMESTAMP '(?P<expires>[^']+)'\) AS\n(?P<query>.*)",
    re.DOTALL,
)


class RestError(Exception):
    """A refusal as BigQuery words it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class RestServer:
    """Serves the REST API for the tables and queries that it is given, until it is closed.

    Attributes
    ----------
    jobs : list
        Configurations of the jobs that ran, dry ones included.
    faults : list of int or None
        HTTP statuses that the next requests are answered with: 200 as they would be, None never.
    """

    def __init__(
        self, tables: dict[str, StoredTable], queries: Queries, forbidden: set[str]
    ) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.faults: list[int | None] = []
        self._closed = threading.Event()
        self._tables = tables
        self._queries = queries
        self._forbidden = forbidden
        self._results: dict[str, dict[str, Any]] = {}
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    @property
    def url(self) -> str:
        """``http://host:port``, as ``BIGQUERY_EMULATOR_HOST`` wants it."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop."""
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        Raises
        ------
        RestError
            If it is refused.
        """
        fault = self.faults.pop(0) if self.faults else 200
        if fault is None:
            self._closed.wait()
            raise ConnectionAbortedError
        elif fault != 200:
            raise RestError(fault, "backendError", "on demand")
        project, _, rest = path.removeprefix("/bigquery/v2/projects/").partition("/")
        kind, *names = rest.split("/")
        if kind == "datasets" and len(names) >= 3 and names[1] == "tables":
            return self._table(method, f"{project}.{names[0]}.{names[2]}", body)
        if kind == "datasets":
            reference = {"projectId": project, "datasetId": names[0] if names else "made"}
            return {"datasetReference": reference, "location": "EU"}
        if kind == "jobs" and method == "POST":
            return self._run(project, body)
        if kind in ("jobs", "queries") and names and names[0] in self._results:
            job = self._results[names[0]]
            return job if kind == "jobs" else job | {"jobComplete": True, "totalRows": "0"}
        if kind == "queries" and method == "POST":
            job = self._run(project, {"configuration": {"query": body}})
            return job | {"jobComplete": True, "totalRows": "0"}
        raise RestError(404, "notFound", f"Not found: {path}")

    def _table(self, method: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        stored = self._find(name)
        if method == "PATCH":
            stored.expires = datetime.fromtimestamp(int(body["expirationTime"]) / 1e3, UTC)
        project, dataset, table = name.rsplit(".", 2)
        content = stored.at(None)
        resource = {
            "kind": "bigquery#table",
            "id": f"{project}:{dataset}.{table}",
            "tableReference": {"projectId": project, "datasetId": dataset, "tableId": table},
            "schema": {"fields": list(stored.fields())},
            "type": stored.kind,
            "numRows": str(len(content)),
            "numBytes": str(content.nbytes),
            "creationTime": _milliseconds(stored.created),
            "lastModifiedTime": _milliseconds(stored.modified),
            "location": "EU",
        }
        if stored.streaming:
            resource["streamingBuffer"] = {"estimatedRows": "5", "estimatedBytes": "500"}
        if stored.expires:
            resource["expirationTime"] = _milliseconds(stored.expires)
        return resource

    def _find(self, name: str) -> StoredTable:
        where = name.replace(".", ":", 1)
        if name in self._forbidden:
            raise RestError(
                403,
                "accessDenied",
                f"Access Denied: Table {where}: Permission bigquery.tables.get denied on table "
                f"{where} (or it may not exist).",
            )
        expires = self._tables[name].expires if name in self._tables else None
        if name not in self._tables or (expires and expires < datetime.now(UTC)):
            raise RestError(404, "notFound", f"Not found: Table {where}")
        return self._tables[name]

    def _run(self, project: str, body: dict[str, Any]) -> dict[str, Any]:
        configuration = body["configuration"]
        text = configuration["query"]["query"]
        created = _CREATE.fullmatch(text)
        query = created["query"] if created else text
        if query not in self._queries:
            raise RestError(400, "invalidQuery", f"Syntax error: Unexpected input in '{query}'")
        names, result = self._queries[query]
        for name in names:
            self._find(name)
        self.jobs.append(configuration)
        dry = bool(configuration.get("dryRun"))
        if created and not dry and created["name"] not in self._tables:
            stored = StoredTable(expires=datetime.fromisoformat(created["expires"]))
            stored.put(result(), datetime.now(UTC))
            self._tables[created["name"]] = stored
        parts = [name.rsplit(".", 2) for name in names]
        kind = "SELECT" if query.upper().startswith(("SELECT", "WITH")) else query.split()[0]
        reference = {"projectId": project, "jobId": f"job{len(self.jobs)}", "location": "EU"}
        reference["jobId"] = body.get("jobReference", {}).get("jobId", reference["jobId"])
        job = {
            "kind": "bigquery#job",
            "jobReference": reference,
            "configuration": configuration,
            "status": {"state": "DONE"},
            "statistics": {
                "query": {
                    "statementType": "CREATE_TABLE_AS_SELECT" if created else kind,
                    "referencedTables": [
                        {"projectId": project, "datasetId": dataset, "tableId": table}
                        for project, dataset, table in parts
                    ],
                    "totalBytesProcessed": "0",
                }
            },
        }
        self._results[reference["jobId"]] = job
        return job


def _milliseconds(time: datetime) -> str:
    return str(int(time.timestamp() * 1000))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: RestServer

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        try:
            status, content = (
                200,
                self.server_of.answer(self.command, unquote(urlsplit(self.path).path), body),
            )
        except ConnectionAbortedError:
            self.close_connection = True
            return
        except RestError as error:
            status = error.status
            details = [{"reason": error.reason, "message": str(error), "domain": "global"}]
            content = {"error": {"code": status, "message": str(error), "errors": details}}
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _answer  # noqa: N815 (the library's names)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
