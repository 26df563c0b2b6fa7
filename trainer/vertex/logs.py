"""What a job's containers wrote, read from Cloud Logging as it comes in."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from google.api_core.client_options import ClientOptions
from google.cloud.logging import ASCENDING, Client

from trainer.vertex.client import credentials_for
from trainer.vertex.options import VertexOptions

#: Entries come in late, and not in the order of their times.
_LOOK_BACK = timedelta(minutes=2)
_PAGE = 1000


class JobLogs:
    """The log of one job, each line once.

    Parameters
    ----------
    options : VertexOptions
    job_id : str
        Last part of the job's name.
    since : datetime.datetime
        When the job was made, by the service's clock.
    """

    def __init__(self, options: VertexOptions, job_id: str, since: datetime) -> None:
        endpoint = options.vertex_endpoint
        # One server stands in for all services where credentials are not wanted.
        other = ClientOptions(api_endpoint=endpoint) if endpoint.startswith("http://") else None
        self._client = Client(
            project=options.project,
            credentials=credentials_for(endpoint),
            client_options=other,
            _use_grpc=False,
        )
        self._job_id = job_id
        self._from = since - _LOOK_BACK
        #: {id of an entry that was seen: its time}.
        self._seen: dict[str, datetime] = {}

    def read(self) -> Iterator[str]:
        """Yield the lines that came in since the last call.

        Raises
        ------
        google.api_core.exceptions.GoogleAPICallError, requests.exceptions.RequestException
            If the service refuses, or cannot be reached; the next call goes on.
        """
        entries = self._client.list_entries(
            filter_=f'resource.type="ml_job" AND resource.labels.job_id="{self._job_id}" '
            f'AND timestamp>="{self._from.isoformat()}"',
            order_by=ASCENDING,
            page_size=_PAGE,
        )
        for entry in entries:
            if entry.insert_id in self._seen:
                continue
            self._seen[entry.insert_id] = entry.timestamp
            yield from _lines(entry)
        if self._seen:
            self._from = max(self._from, max(self._seen.values()) - _LOOK_BACK)
            self._seen = {key: at for key, at in self._seen.items() if at >= self._from}


def _lines(entry: Any) -> Iterator[str]:
    payload = entry.payload
    text = payload.get("message", "") if isinstance(payload, dict) else str(payload or "")
    task = (entry.resource.labels or {}).get("task_name", "") if entry.resource else ""
    # One machine is workerpool0-0; the service itself writes as "service".
    prefix = "" if task in ("", "workerpool0-0") else f"{task}: "
    yield from (f"{prefix}{line}" for line in text.splitlines())
