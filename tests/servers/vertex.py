"""Vertex AI on loopback: jobs, tuning jobs, the metadata of experiments, TensorBoard, job logs.

It knows as much of the REST interface as google-cloud-aiplatform and google-cloud-logging use here.
What is posted is held against the real message types, so that nothing passes that they have not.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from google.cloud.aiplatform_v1 import types
from google.protobuf.json_format import MessageToDict, ParseDict

from tests.servers import faults
from tests.servers.faulty_http import FaultyHandler, FaultyServer

_ROOT = r"/(?:v1|v1beta1)/(projects/[^/]+/locations/[^/:]+)"
#: Where new resources come from: {last part of the path: (message, parameter with the id)}.
_COLLECTIONS: dict[str, tuple[Any, str]] = {
    "customJobs": (types.CustomJob, ""),
    "hyperparameterTuningJobs": (types.HyperparameterTuningJob, ""),
    "metadataStores": (types.MetadataStore, "metadataStoreId"),
    "contexts": (types.Context, "contextId"),
    "executions": (types.Execution, "executionId"),
    "artifacts": (types.Artifact, "artifactId"),
    "tensorboards": (types.Tensorboard, ""),
    "experiments": (types.TensorboardExperiment, "tensorboardExperimentId"),
    "runs": (types.TensorboardRun, "tensorboardRunId"),
    "timeSeries": (types.TensorboardTimeSeries, "tensorboardTimeSeriesId"),
}
_JOBS = ("customJobs", "hyperparameterTuningJobs")
#: When every job is made.
CREATED = "2026-01-01T00:00:00Z"
#: What a job goes through while it is asked for its state, unless a test says otherwise.
SUCCEEDS = ("JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_SUCCEEDED")


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class VertexServer:
    """A server on loopback.

    Attributes
    ----------
    faults : Faults
        ``server.faults.add("POST", "customJobs$", faults.LOSE)`` makes a request go wrong.
    requests : list of (method, path)
        All that were received, decoded, in order.
    resources : dict
        {full resource name: its JSON}.
    script : sequence of str
        States of every new job, one for each time that it is asked for; the last one stays.
    error : str
        What a job that fails says.
    trials : list
        Trials of a tuning job that has ended, as JSON.
    log : list of dict
        Log entries; they come out with the first request for them.
    children, members : dict
        {context: contexts or artifacts that were put into it}.
    points : list of (run, series, step, value)
        Of TensorBoard.
    """

    def __init__(self) -> None:
        self.faults = faults.Faults()
        handler = type("Handler", (_Handler,), {"vertex": self})
        self._server = FaultyServer(("127.0.0.1", 0), handler)
        self._lock = threading.Lock()
        self.reset()
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def reset(self) -> None:
        """Forget everything."""
        self.faults.clear()
        self.requests: list[tuple[str, str]] = []
        self.resources: dict[str, dict[str, Any]] = {}
        self.script: Sequence[str] = SUCCEEDS
        self.error = ""
        self.trials: list[dict[str, Any]] = []
        self.log: list[dict[str, Any]] = []
        self.children: dict[str, list[str]] = {}
        self.members: dict[str, list[str]] = {}
        self.points: list[tuple[str, str, int, float]] = []
        self._asked: dict[str, int] = {}

    def close(self) -> None:
        """Stop."""
        self.faults.clear()
        self._server.shutdown()
        self._server.server_close()

    def of(self, collection: str) -> list[dict[str, Any]]:
        """Return the resources of a collection, in the order in which they were made."""
        found = self.resources.items()
        return [content for name, content in found if name.split("/")[-2] == collection]

    def add(self, name: str, content: dict[str, Any]) -> None:
        """Put a resource there that somebody else has made."""
        self.resources[name] = {**content, "name": name}

    # --- What is asked ----------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        with self._lock:
            if path == "/v2/entries:list":
                return {"entries": [entry for entry in self.log if self._wanted(entry, body)]}
            match = re.fullmatch(_ROOT + r"/([^:]*)(?::(\w+))?", path)
            if not match:
                raise ApiError(501, f"{method} {path} is not served here")
            name, verb = f"{match[1]}/{match[2]}", match[3]
            if verb:
                return self._custom_verb(name, verb, body)
            is_collection = name.rpartition("/")[2] in _COLLECTIONS and name.count("/") % 2 == 0
            if method == "POST" and is_collection:
                return self._create(name, query, body)
            if method == "GET":
                return self._list(name, query) if is_collection else self._get(name)
            if method == "PATCH":
                self._get(name)
                self.resources[name].update(body)
                return self.resources[name]
            raise ApiError(501, f"{method} {path} is not served here")

    def _wanted(self, entry: dict[str, Any], body: dict[str, Any]) -> bool:
        job_id = entry["resource"]["labels"]["job_id"]
        since = re.search(r'timestamp>="([^"]+)"', body["filter"])
        assert since
        late = datetime.fromisoformat(entry["timestamp"]) >= datetime.fromisoformat(since[1])
        return late and f'resource.labels.job_id="{job_id}"' in body["filter"]

    def _create(self, parent: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        collection = parent.rpartition("/")[2]
        message, parameter = _COLLECTIONS[collection]
        content = MessageToDict(ParseDict(body, message.pb(message())))
        given = query.get(parameter) if parameter else None
        name = f"{parent}/{given or 1000 + len(self.resources)}"
        if name in self.resources:
            raise ApiError(409, f"{name} already exists")
        content["name"] = name
        if collection in _JOBS:
            content |= {"state": "JOB_STATE_PENDING", "createTime": CREATED}
        self.resources[name] = content
        if collection == "metadataStores":
            kind = {"@type": "type.googleapis.com/google.cloud.aiplatform.v1.MetadataStore"}
            return {"name": f"{name}/operations/1", "done": True, "response": kind | content}
        return content

    def _get(self, name: str) -> dict[str, Any]:
        if name not in self.resources:
            raise ApiError(404, f"{name} is not there")
        content = self.resources[name]
        if name.split("/")[-2] in _JOBS:
            self._advance(name, content)
        return content

    def _advance(self, name: str, job: dict[str, Any]) -> None:
        index = self._asked.get(name, 0)
        self._asked[name] = index + 1
        if job["state"] != "JOB_STATE_CANCELLED":
            job["state"] = self.script[min(index, len(self.script) - 1)]
        if job["state"] == "JOB_STATE_FAILED":
            job["error"] = {"code": 3, "message": self.error}
        ended = job["state"] in ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED")
        if ended and "hyperparameterTuningJobs" in name:
            job["trials"] = self.trials

    def _list(self, parent: str, query: dict[str, str]) -> dict[str, Any]:
        collection = parent.rpartition("/")[2]
        below = re.escape(parent) + r"/[^/]+"
        found = [r for name, r in self.resources.items() if re.fullmatch(below, name)]
        keep = self._filter(query.get("filter", ""))
        key = {"timeSeries": "tensorboardTimeSeries"}.get(collection, collection)
        return {key: [resource for resource in found if keep(resource)]}

    def _filter(self, text: str) -> Callable[[dict[str, Any]], bool]:
        label = re.search(r'labels\.(\w+)="([^"]*)"', text)
        title = re.search(r'schema_title="([^"]*)"', text)
        context = re.search(r'in_context\("([^"]*)"\)', text)

        def keep(resource: dict[str, Any]) -> bool:
            return (
                (not label or resource.get("labels", {}).get(label[1]) == label[2])
                and (not title or resource.get("schemaTitle") == title[1])
                and (not context or resource["name"] in self.members.get(context[1], ()))
            )

        return keep

    def _custom_verb(self, name: str, verb: str, body: Any) -> dict[str, Any]:
        if verb == "addContextChildren":
            held = self.children.setdefault(name, [])
            held += [child for child in body["childContexts"] if child not in held]
        elif verb == "addContextArtifactsAndExecutions":
            members = self.members.setdefault(name, [])
            members += [item for item in body.get("artifacts", ()) if item not in members]
        elif verb == "write":
            for series in body["timeSeriesData"]:
                shown = self.resources[f"{name}/timeSeries/{series['tensorboardTimeSeriesId']}"]
                for point in series["values"]:
                    value = point["scalar"].get("value", 0.0)
                    step = int(point.get("step", 0))
                    self.points.append((name, shown["displayName"], step, value))
        elif verb == "cancel":
            self.resources[name]["state"] = "JOB_STATE_CANCELLED"
        else:
            raise ApiError(501, f"{name}:{verb} is not served here")
        return {}


class _Handler(FaultyHandler):
    vertex: VertexServer

    def _respond(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path)
        self.vertex.requests.append((self.command, path))
        fault = self.vertex.faults.find(self.command, path)
        if fault is not None and fault.action == faults.RESET:
            self.reset()
            return
        if fault is not None and fault.action == faults.HOLD:
            fault.reached.set()
            fault.release.wait()
        if fault is not None and fault.action == faults.STATUS:
            status, answer = fault.status, _error(fault.status, "injected")
        else:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            try:
                content = json.loads(text) if text else {}
                answer = self.vertex.answer(self.command, unquote(parts.path), query, content)
                status = 200
            except ApiError as error:
                status, answer = error.status, _error(error.status, str(error))
        if fault is not None and fault.action == faults.LOSE:
            self.reset()
            return
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_DELETE = _respond  # noqa: N815 (http.server's names)


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "status": "INJECTED"}}
