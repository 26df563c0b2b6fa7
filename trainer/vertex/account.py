"""Whether whoever sends a job may run it as a service account, asked of Google's IAM service."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth import default as default_credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession

from trainer.errors import TrainerError
from trainer.transient import is_transient
from trainer.vertex.client import credentials_for

ACT_AS = "iam.serviceAccounts.actAs"
#: gcloud's own variable for another endpoint.
ENDPOINT = "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAM"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
#: Seconds for one request, and for all of them; the answer only spares a wait.
_REQUEST_SECONDS, _PATIENCE_SECONDS = 20.0, 10.0
#: The project of an account that is a person's own; Google's own ones have none in their name.
_PROJECT = re.compile(r".+@([^.]+)(?:\.(.+))?\.iam\.gserviceaccount\.com")


def check_account(email: str) -> list[str]:
    """Check that an account is there and that jobs may be run as it.

    Parameters
    ----------
    email : str
        Value of ``--service_account``.

    Returns
    -------
    list of str
        A note if it could not be asked: nobody needs the right to know.

    Raises
    ------
    TrainerError
        If there is no such account, or its use is not allowed.
    """
    endpoint = os.environ.get(ENDPOINT, "").rstrip("/") or "https://iam.googleapis.com"
    # With the wildcard for a project, the service answers 403 for an account that does not exist.
    found = _PROJECT.fullmatch(email)
    project = "-" if found is None else f"{found[2]}:{found[1]}" if found[2] else found[1]
    name = f"projects/{quote(project, safe=':')}/serviceAccounts/{quote(email, safe='@')}"
    try:
        granted = _granted(endpoint, f"{endpoint}/v1/{name}:testIamPermissions")
    except exceptions.NotFound as error:
        raise TrainerError(
            f"--service_account {email}: there is no such account; 'gcloud iam service-accounts "
            "list' shows those of a project, and cloud/setup.sh makes one"
        ) from error
    # The last: errors of requests.
    except (exceptions.GoogleAPIError, GoogleAuthError, OSError) as error:
        why = " ".join(str(error).split())
        return [f"--service_account {email} was not checked: the IAM API does not answer ({why})"]
    if ACT_AS in granted:
        return []
    raise TrainerError(
        f"--service_account {email}: you may not run jobs as it; whoever administers it lets you "
        f"by 'gcloud iam service-accounts add-iam-policy-binding {email} "
        "--member=user:YOU@EXAMPLE.ORG --role=roles/iam.serviceAccountUser'"
    )


def _granted(endpoint: str, url: str) -> list[str]:
    def ask() -> list[str]:
        response = session.post(url, json={"permissions": [ACT_AS]}, timeout=_REQUEST_SECONDS)
        if not response.ok:
            raise exceptions.from_http_response(response)
        permissions: list[str] = response.json().get("permissions", [])
        return permissions

    credentials = credentials_for(endpoint) or default_credentials(scopes=[_SCOPE])[0]
    with AuthorizedSession(credentials) as session:
        return Retry(predicate=is_transient, initial=0.5, timeout=_PATIENCE_SECONDS)(ask)()
