"""Dataflow's API: what a job says of itself. Nothing is ever changed or cancelled."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import google.auth
from apache_beam.internal.gcp.auth import get_service_credentials
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import (
    BadGateway,
    BadRequest,
    GatewayTimeout,
    GoogleAPICallError,
    GoogleAPIError,
    NotFound,
)
from google.api_core.retry import Retry, if_transient_error
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.cloud import dataflow_v1beta3 as dataflow
from requests import RequestException, Timeout

from beam_pipeline.errors import one_line
from beam_pipeline.launchers.dataflow.job_record import LABEL, cancel_command
from beam_pipeline.launchers.dataflow.job_state import GONE, Message, Metrics, state_name

#: The API is asked again through an outage of this length; the job does not need us.
PATIENCE_SECONDS = 600.0
#: For one request: the client itself would wait for an answer for ever.
REQUEST_SECONDS = 60.0
#: Before there is a job, a person waits for the first answer.
FIRST_PATIENCE_SECONDS = 60.0
REGIONS = "https://cloud.google.com/dataflow/docs/resources/locations"
CONSOLE = "https://console.cloud.google.com/dataflow/jobs"
_IMPORTANCE = {
    dataflow.JobMessageImportance.JOB_MESSAGE_BASIC: "basic",
    dataflow.JobMessageImportance.JOB_MESSAGE_WARNING: "warning",
    dataflow.JobMessageImportance.JOB_MESSAGE_ERROR: "error",
}
#: Dataflow lists a distribution both as a whole and as these scalars.
_PARTS = ("_MIN", "_MAX", "_MEAN", "_COUNT")


class ServiceError(RuntimeError):
    """Dataflow cannot be asked, or refuses; the message is its own."""


def default_project() -> str | None:
    """Return the project of the machine's Google credentials.

    Raises
    ------
    ServiceError
        If there are no credentials: Beam would look for them for minutes.
    """
    try:
        _, project = google.auth.default()
    except DefaultCredentialsError as error:
        raise ServiceError(
            "no Google credentials found, which --dry_run needs as well, for the job depends on "
            "the table; run 'gcloud auth application-default login', or set "
            "GOOGLE_APPLICATION_CREDENTIALS"
        ) from error
    return project


class DataflowService:
    """The jobs of one project and region.

    Parameters
    ----------
    options : PipelineOptions
        Of the job: project, region, endpoint and credentials are taken from them.
    namespace : str
        Of the pipeline's counters.
    """

    def __init__(self, options: PipelineOptions, namespace: str) -> None:
        cloud = options.view_as(GoogleCloudOptions)
        self.project, self.region = cloud.project, cloud.region
        self._namespace = namespace
        endpoint = (cloud.dataflow_endpoint or "").rstrip("/")
        # A loopback server speaks plain HTTP.
        transport = "rest" if endpoint.startswith("http://") else "grpc"
        target = endpoint if transport == "rest" else re.sub(r"^https://", "", endpoint)
        common: dict[str, Any] = {
            "credentials": credentials_of(options),
            "transport": transport,
            "client_options": ClientOptions(api_endpoint=target or None),
        }
        self._jobs = dataflow.JobsV1Beta3Client(**common)
        self._messages = dataflow.MessagesV1Beta3Client(**common)
        self._metrics = dataflow.MetricsV1Beta3Client(**common)
        self._retry = Retry(_may_pass, initial=1.0, maximum=30.0, timeout=PATIENCE_SECONDS)

    def console_url(self, job_id: str) -> str:
        """Return the address of a job's page."""
        return f"{CONSOLE}/{self.region}/{job_id}?project={self.project}"

    def cancel_command(self, job_id: str) -> str:
        """Return what a person types to cancel a job."""
        return cancel_command(job_id, self.project, self.region)

    def check_region(self) -> list[str]:
        """Ask for a job, whichever: a region that Dataflow does not have is refused.

        Returns
        -------
        list of str
            Empty; see `beam_pipeline.launchers.dataflow.preflight`.

        Raises
        ------
        ServiceError
            If there is no such region, or Dataflow cannot be used at all.
        """
        request = dataflow.ListJobsRequest(
            project_id=self.project, location=self.region, page_size=1
        )
        retry = self._retry.with_timeout(min(PATIENCE_SECONDS, FIRST_PATIENCE_SECONDS))
        with _service_errors():
            try:
                self._jobs.list_jobs(request, retry=retry, timeout=REQUEST_SECONDS)
            except (BadRequest, NotFound) as error:
                raise ServiceError(
                    f"--region {self.region}: Dataflow has no such region for project "
                    f"{self.project} (it answered {error.code}: {one_line(error.message)}); "
                    f"take one such as us-central1 or europe-west4, see {REGIONS}"
                ) from error
        return []

    def find(self, name: str, label: str) -> str:
        """Return the id of the job of this name and label `LABEL`; empty if there is none.

        Raises
        ------
        ServiceError
        """
        request = dataflow.ListJobsRequest(project_id=self.project, location=self.region, name=name)
        with _service_errors():
            for listed in self._jobs.list_jobs(request, **self._patience()):
                # Names come again; what is listed leaves out the labels.
                place = self._place(listed.id)
                view = dataflow.JobView.JOB_VIEW_ALL
                job = self._jobs.get_job(
                    dataflow.GetJobRequest(view=view, **place), **self._patience()
                )
                if job.name == name and job.labels.get(LABEL) == label:
                    return str(job.id)
        return ""

    def state(self, job_id: str) -> str:
        """Return a job's state, such as ``running``; `GONE` if there is no such job.

        Raises
        ------
        ServiceError
        """
        request = dataflow.GetJobRequest(**self._place(job_id))
        with _service_errors():
            try:
                job = self._jobs.get_job(request, **self._patience())
            except NotFound:
                return GONE
        return state_name(dataflow.JobState(job.current_state).name)

    def messages(self, job_id: str, since: datetime | None) -> Iterator[Message]:
        """Yield what the job has logged that concerns a person, oldest first."""
        request = dataflow.ListJobMessagesRequest(
            minimum_importance=dataflow.JobMessageImportance.JOB_MESSAGE_BASIC,
            start_time=since,
            **self._place(job_id),
        )
        with _service_errors():
            for message in self._messages.list_job_messages(request, **self._patience()):
                importance = _IMPORTANCE.get(message.message_importance)
                if importance:
                    yield Message(message.id, message.time, importance, message.message_text)

    def metrics(self, job_id: str) -> Metrics:
        """Return a job's numbers as they are now."""
        request = dataflow.GetJobMetricsRequest(**self._place(job_id))
        with _service_errors():
            found = self._metrics.get_job_metrics(request, **self._patience())
        return read_metrics(found.metrics, self._namespace)

    def _patience(self) -> dict[str, Any]:
        return {"retry": self._retry, "timeout": REQUEST_SECONDS}

    def _place(self, job_id: str) -> dict[str, str]:
        return {"project_id": self.project, "location": self.region, "job_id": job_id}


def _may_pass(error: Exception) -> bool:
    # The last is that of a request over plain HTTP; over gRPC it is the second.
    return if_transient_error(error) or isinstance(error, BadGateway | GatewayTimeout | Timeout)


def read_metrics(updates: Any, namespace: str) -> Metrics:
    """Sort out the metrics of a job.

    Each counter comes twice, as committed and as tentative: with what bundles count that may
    still fail. A counter of several steps is their sum.
    """
    committed: dict[str, int] = defaultdict(int)
    tentative: dict[str, int] = defaultdict(int)
    service: dict[str, float] = {}
    for update in updates:
        name, context = update.name.name, update.name.context
        if update.name.origin == "user":
            if context.get("namespace") != namespace or name.endswith(_PARTS):
                continue
            counters = tentative if context.get("tentative") == "true" else committed
            for part, value in _values(name, update):
                counters[part] = _combine(part, counters.get(part), value)
        elif isinstance(update.scalar, int | float) and context.get("tentative") != "true":
            service[name] = float(update.scalar)
    return Metrics(dict(sorted((tentative | committed).items())), service)


def _values(name: str, update: Any) -> Iterator[tuple[str, int]]:
    if isinstance(update.scalar, int | float):
        yield name, int(update.scalar)
    elif update.distribution is not None:
        for part in ("min", "max", "sum"):
            yield f"{name}_{part}", int(update.distribution[part])


def _combine(part: str, before: int | None, value: int) -> int:
    if before is None:
        return value
    return {"min": min, "max": max}.get(part.rpartition("_")[2], int.__add__)(before, value)


def credentials_of(options: PipelineOptions) -> Credentials:
    """Return the credentials that Beam takes for a job with these options."""
    if options.view_as(GoogleCloudOptions).no_auth:
        return AnonymousCredentials()
    found = get_service_credentials(options)
    return found.get_google_auth_credentials() if found else AnonymousCredentials()


@contextmanager
def _service_errors() -> Iterator[None]:
    """Raise whatever keeps Dataflow from answering as `ServiceError`."""
    try:
        yield
    except GoogleAPICallError as error:
        raise ServiceError(f"Dataflow answered {error.code}: {error.message}") from error
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        # Patience that ran out, credentials that expired, no network.
        raise ServiceError(f"Dataflow does not answer ({one_line(error)})") from error
