"""Dataflow's REST API on loopback: it keeps the jobs it is sent, and plays or runs them.

By itself a job goes through the `states` it is told to, with the counters and messages it is told
to report. With an `Executor` it is run: from what was staged, and nothing else.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

_PLACE = r".*/v1b3/projects/([^/]+)/locations/([^/]+)/jobs"


@dataclass
class Job:
    """One job that was submitted.

    Attributes
    ----------
    body : dict
        As the client sent it.
    states : list of str
        Without ``JOB_STATE_``; each look at the job takes one, the last one stays.
    messages : list of (str, str)
        Importance without ``JOB_MESSAGE_``, and text.
    metrics : list of dict
        As the API words them.
    """

    id: str
    project: str
    region: str
    body: dict[str, Any]
    states: list[str]
    messages: list[tuple[str, str]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "projectId": self.project,
            "location": self.region,
            "name": self.body["name"],
            "currentState": f"JOB_STATE_{self.states[0]}",
        }

    def describe(self) -> dict[str, Any]:
        described = self.summary() | {
            "clientRequestId": self.body["clientRequestId"],
            "labels": self.body.get("labels", {}),
        }
        if len(self.states) > 1:
            self.states.pop(0)
        return described


class Executor(Protocol):
    """Runs a job and sets its states, messages and metrics."""

    def start(self, job: Job) -> None: ...


class DataflowServer:
    """Dataflow on a port of loopback until it is closed.

    Attributes
    ----------
    jobs : list of Job
    states : sequence of str
        What the next job goes through.
    messages, metrics : list
        What the next job reports; see `Job`.
    executor : Executor or None
    refuse : tuple of (int, str) or None
        Status and message with which jobs are refused.
    outages : int
        Looks at jobs that are answered `outage` from now on.
    outage : int or None
        A status; None stands for no answer at all.
    regions : sequence of str
        Where there is a Dataflow.
    elsewhere : tuple of (int, str)
        Status code and its name with which all that is asked in another region is refused.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.states: Sequence[str] = ("PENDING", "RUNNING", "DONE")
        self.messages: list[tuple[str, str]] = []
        self.metrics: list[dict[str, Any]] = []
        self.executor: Executor | None = None
        self.refuse: tuple[int, str] | None = None
        self.outages = 0
        self.outage: int | None = 503
        self.closed = threading.Event()
        self.regions: Sequence[str] = ("europe-west4", "us-central1")
        self.elsewhere = (400, "FAILED_PRECONDITION")
        self.looked_at = threading.Event()
        handler = type("Handler", (_Handler,), {"dataflow": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """``--dataflow_endpoint``; for its host name Beam speaks REST and asks no other service."""
        return f"http://localhost:{self._server.server_port}"

    def create(self, project: str, region: str, body: dict[str, Any]) -> Job:
        job_id = f"2026-11-22_00_00_00-{len(self.jobs) + 1}"
        states = ["PENDING"] if self.executor else list(self.states)
        job = Job(job_id, project, region, body, states, list(self.messages), list(self.metrics))
        self.jobs.append(job)
        if self.executor:
            self.executor.start(job)
        return job

    def find(self, job_id: str) -> Job | None:
        return next((job for job in self.jobs if job.id == job_id), None)

    def close(self) -> None:
        """Stop."""
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()


def counter(name: str, value: int, step: str = "s1", tentative: bool = False) -> dict[str, Any]:
    """Return one of the pipeline's counters as the API words it."""
    context = {"namespace": "lfp", "step": step} | ({"tentative": "true"} if tentative else {})
    return {"name": {"origin": "user", "name": name, "context": context}, "scalar": value}


def service_metric(name: str, value: float) -> dict[str, Any]:
    """Return one of Dataflow's own metrics as the API words it."""
    return {"name": {"origin": "dataflow/v1b3", "name": name, "context": {}}, "scalar": value}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    dataflow: DataflowServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = re.fullmatch(_PLACE, urlsplit(self.path).path)
        if found is None:
            self._fail(404, f"no {self.path}")
        elif found[2] not in self.dataflow.regions:
            self._refuse_region(found[2])
        elif self.dataflow.refuse:
            self._fail(*self.dataflow.refuse)
        else:
            self._send(self.dataflow.create(found[1], found[2], body).describe())

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        place = re.fullmatch(_PLACE, url.path)
        if place and place[2] not in self.dataflow.regions:
            self._refuse_region(place[2])
            return
        if place:
            self._list(parse_qs(url.query).get("name", [""])[0])
            return
        found = re.fullmatch(rf"{_PLACE}/([^/]+)(/messages|/metrics)?", url.path)
        job = self.dataflow.find(found[3]) if found else None
        if found is None or job is None:
            self._fail(404, f"no {self.path}")
        elif self.dataflow.outages:
            self._be_out()
        elif found[4] == "/metrics":
            self._send({"metricTime": "2026-11-22T00:00:00Z", "metrics": job.metrics})
        elif found[4] == "/messages":
            self._send({"jobMessages": _messages(job)})
        else:
            self._send(job.describe())
            self.dataflow.looked_at.set()

    def _list(self, name: str) -> None:
        if self.dataflow.outages:
            self._be_out()
            return
        jobs = self.dataflow.jobs
        self._send({"jobs": [job.summary() for job in jobs if name in ("", job.body["name"])]})

    def _be_out(self) -> None:
        self.dataflow.outages -= 1
        if self.dataflow.outage is None:
            self.close_connection = True
            self.dataflow.closed.wait()
        else:
            self._fail(self.dataflow.outage, "try again")

    def _refuse_region(self, region: str) -> None:
        text = (
            f"(d5c84d5dd719994a): The request was sent to an invalid regional endpoint ({region})."
        )
        status, name = self.dataflow.elsewhere
        self._send({"error": {"code": status, "message": text, "status": name}}, status)

    def _fail(self, status: int, message: str) -> None:
        self._send({"error": {"code": status, "message": message}}, status)

    def _send(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _messages(job: Job) -> list[dict[str, str]]:
    return [
        {
            "id": f"m{index}",
            "time": f"2026-11-22T00:00:{index:02d}.123Z",
            "messageText": text,
            "messageImportance": f"JOB_MESSAGE_{importance}",
        }
        for index, (importance, text) in enumerate(list(job.messages))
    ]
