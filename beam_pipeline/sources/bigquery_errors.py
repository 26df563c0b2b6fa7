"""What Google's clients raise, as one line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError

from beam_pipeline.sources import SourceError


@contextmanager
def clear_errors(where: str, project: str) -> Iterator[None]:
    """Turn every error of a client into a `SourceError`.

    Parameters
    ----------
    where : str
        What to call the table.
    project : str
        The project that is billed.

    Raises
    ------
    SourceError
        In place of what the client raises.
    """
    try:
        yield
    except exceptions.RetryError as error:
        raise SourceError(f"{where}: BigQuery does not answer: {said(error.cause)}") from error
    except exceptions.NotFound as error:
        raise SourceError(f"{where}: not found ({said(error)}); check --input") from error
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise SourceError(
            f"{where}: no permission ({said(error)}); reading takes roles/bigquery.dataViewer on "
            f"the table and roles/bigquery.readSessionUser on the project {project}, and "
            "--bq_query takes roles/bigquery.jobUser, too"
        ) from error
    except exceptions.GoogleAPICallError as error:
        raise SourceError(f"{where}: BigQuery refuses: {said(error)}") from error
    except GoogleAuthError as error:
        raise SourceError(
            f"{where}: no usable Google credentials ({said(error)}); "
            "run: gcloud auth application-default login"
        ) from error
    except OSError as error:
        raise SourceError(f"{where}: BigQuery cannot be reached: {said(error)}") from error


def said(error: BaseException | None) -> str:
    """Return an error's own words in one line, without the request that it belongs to."""
    words = " ".join(str(getattr(error, "message", None) or error).split())
    return re.sub(r"^(GET|POST|PATCH) https?://\S+ ", "", words) or type(error).__name__
