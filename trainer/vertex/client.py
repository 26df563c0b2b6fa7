"""The job service of Vertex AI: jobs are created once, found again, and asked for their state."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import GoogleAuthError
from google.cloud.aiplatform_v1 import JobServiceClient
from google.cloud.aiplatform_v1.types import CustomJob

from trainer.errors import TrainerError
from trainer.transient import is_transient
from trainer.vertex.job_spec import output_label
from trainer.vertex.options import OUTPUT_LABEL, SUBMISSION_LABEL, VertexOptions
from trainer.vertex.states import FINAL
from trainer.vertex.validation import Job

T = TypeVar("T")

#: Seconds for one request, and for a request with all that it takes to get through.
_REQUEST_SECONDS = 60.0
_PATIENCE_SECONDS = 600.0
#: Before there is a job, a person waits for the first answer.
_FIRST_PATIENCE_SECONDS = 60.0
_REGIONS = "https://cloud.google.com/vertex-ai/docs/general/locations"


def _is_worth_repeating(error: Exception) -> bool:
    # A quota of machines does not grow while we wait.
    exhausted = isinstance(error, exceptions.TooManyRequests) and "quota" in str(error).lower()
    return not exhausted and is_transient(error)


def credentials_for(endpoint: str) -> Credentials | None:
    """Return credentials for an endpoint; None lets the client find this machine's own."""
    return AnonymousCredentials() if endpoint.startswith("http://") else None


class JobService:
    """Jobs of one project and region.

    Parameters
    ----------
    options : VertexOptions

    Raises
    ------
    TrainerError
        Here and in all methods, if the service refuses or cannot be reached.
    """

    def __init__(self, options: VertexOptions) -> None:
        self._region = options.region
        self._parent = f"projects/{options.project}/locations/{options.region}"
        endpoint = options.vertex_endpoint or f"{options.region}-aiplatform.googleapis.com"
        with _one_line("Vertex AI cannot be reached"):
            self._client = JobServiceClient(
                transport="rest",
                credentials=credentials_for(options.vertex_endpoint),
                client_options=ClientOptions(api_endpoint=endpoint),
            )

    def create(self, job: Job) -> Job:
        """Create a job, once: where an answer is lost, the job is looked for before a retry."""
        submission = uuid.uuid4().hex
        job.labels[SUBMISSION_LABEL] = submission
        tried = False

        def attempt() -> Job:
            nonlocal tried
            if tried:
                found = next(self._list(job, SUBMISSION_LABEL, submission), None)
                if found is not None:
                    return found
            tried = True
            if isinstance(job, CustomJob):
                return self._client.create_custom_job(
                    parent=self._parent, custom_job=job, timeout=_REQUEST_SECONDS
                )
            return self._client.create_hyperparameter_tuning_job(
                parent=self._parent, hyperparameter_tuning_job=job, timeout=_REQUEST_SECONDS
            )

        with _one_line("Vertex AI did not take the job"):
            return _retried(attempt)

    def get(self, job: Job) -> Job:
        """Return a job as it is now."""
        is_custom = isinstance(job, CustomJob)
        method = self._client.get_custom_job
        if not is_custom:
            method = self._client.get_hyperparameter_tuning_job
        with _one_line(f"Vertex AI does not say how {job.name} is; it may go on"):
            return _retried(lambda: method(name=job.name, timeout=_REQUEST_SECONDS))

    def find_active(self, job: Job, output: str) -> Job | None:
        """Return a job that has not ended and writes to the same output, None if there is none."""
        with _one_line("Vertex AI does not list its jobs"):
            try:
                found = _retried(
                    lambda: list(self._list(job, OUTPUT_LABEL, output_label(output))),
                    _FIRST_PATIENCE_SECONDS,
                )
            except (exceptions.BadRequest, exceptions.NotFound) as error:
                # The first that is asked of a region; what answers for none may speak HTML.
                why = _message(error).partition("<")[0].strip()
                raise TrainerError(
                    f"--region {self._region}: there is no Vertex AI ({error.code} {why}); take "
                    f"one such as us-central1 or europe-west4, see {_REGIONS}"
                ) from error
        return next((other for other in found if other.state.name not in FINAL), None)

    def _list(self, like: Job, label: str, value: str) -> Iterator[Job]:
        request = {"parent": self._parent, "filter": f'labels.{label}="{value}"'}
        if isinstance(like, CustomJob):
            yield from self._client.list_custom_jobs(request=request, timeout=_REQUEST_SECONDS)
        else:
            yield from self._client.list_hyperparameter_tuning_jobs(
                request=request, timeout=_REQUEST_SECONDS
            )


def _retried(call: Callable[[], T], patience: float = _PATIENCE_SECONDS) -> T:
    said = False

    def say(error: Exception) -> None:
        nonlocal said
        if not said:
            print(f"Vertex AI: {_message(error)}; trying again", file=sys.stderr, flush=True)
        said = True

    retry = Retry(
        predicate=_is_worth_repeating,
        initial=0.5,
        maximum=30.0,
        timeout=patience,
        on_error=say,
    )
    return retry(call)()


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except GoogleAuthError as error:
        raise TrainerError(
            f"{what}: {error}; log in with: gcloud auth application-default login"
        ) from error
    except exceptions.RetryError as error:
        raise TrainerError(f"{what}: {_message(error.cause)} (tried again and again)") from error
    except exceptions.GoogleAPICallError as error:
        raise TrainerError(f"{what}: {_message(error)}{_advice(error)}") from error
    except OSError as error:
        raise TrainerError(f"{what}: {error}") from error


def _message(error: Any) -> str:
    return " ".join(str(getattr(error, "message", None) or error).split())


def _advice(error: exceptions.GoogleAPICallError) -> str:
    if isinstance(error, exceptions.Forbidden):
        return "; you need roles/aiplatform.user, and roles/iam.serviceAccountUser on the account"
    if isinstance(error, exceptions.TooManyRequests):
        return "; ask for more at https://console.cloud.google.com/iam-admin/quotas"
    return ""
