"""The client of Cloud Storage: one a process, how it retries, and its errors as OSErrors."""

from __future__ import annotations

import base64
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO, TypeVar

#: How long passing faults (429, 5xx, broken connections) are waited out.
RETRY_SECONDS = 300.0
#: Requests in flight: each waits for an answer most of the time.
THREADS = 16

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply a function that waits for the service to all items; the first error is raised."""
    items = list(items)
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(THREADS, len(items))) as pool:
        try:
            return list(pool.map(function, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def client() -> Any:
    """Return this process's client, made when it is first needed."""
    return _client(os.getpid())


@cache
def _client(_process: int) -> Any:
    # One for each process: a fork must not go on with its parent's connections.
    from google.cloud.storage import Client
    from requests.adapters import HTTPAdapter

    # Objects are reached without a project; looking for one would fail on many machines.
    made = Client(project=None)
    # Threads beyond the pool would open a connection for each request, and say so.
    for scheme in ("https://", "http://"):
        made._http.mount(scheme, HTTPAdapter(pool_maxsize=2 * THREADS))
    return made


@cache
def retry() -> Any:
    """Return how passing faults are waited out."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(RETRY_SECONDS)


def crc32c(file: BinaryIO) -> str:
    """Return the checksum of a whole file as the service writes it."""
    import google_crc32c

    checksum = google_crc32c.Checksum()
    file.seek(0)
    while content := file.read(1 << 20):
        checksum.update(content)
    return base64.b64encode(checksum.digest()).decode()


@contextmanager
def os_errors(place: object) -> Iterator[None]:
    """Raise what the client raises as an OSError that names the object."""
    from google.api_core import exceptions as api
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption
    from requests import RequestException

    try:
        yield
    except api.NotFound as error:
        raise FileNotFoundError(errno.ENOENT, _reason(error), str(place)) from error
    except (api.Forbidden, api.Unauthorized) as error:
        raise PermissionError(errno.EACCES, _reason(error), str(place)) from error
    except api.PreconditionFailed as error:
        reason = "The object was replaced or removed by another program"
        raise OSError(errno.ESTALE, reason, str(place)) from error
    except DefaultCredentialsError as error:
        reason = "No Google credentials were found: run `gcloud auth application-default login`"
        raise PermissionError(errno.EACCES, reason, str(place)) from error
    except DataCorruption as error:
        reason = "What came does not fit the checksum of the object"
        raise OSError(errno.EIO, reason, str(place)) from error
    except (api.GoogleAPIError, GoogleAuthError, ValueError) as error:
        raise OSError(errno.EIO, _reason(error), str(place)) from error
    except (RequestException, ConnectionError, TimeoutError) as error:
        # Its message names a host and a port.
        reason = f"No connection to Cloud Storage ({type(error).__name__})"
        raise OSError(errno.EIO, reason, str(place)) from error


def _reason(error: Exception) -> str:
    """Return the service's own words where it sent any."""
    try:
        answer: Mapping[str, Any] = error.response.json()  # type: ignore[attr-defined]
        return str(answer["error"]["message"])
    except (AttributeError, ValueError, KeyError, TypeError):
        return " ".join(str(error).split())
