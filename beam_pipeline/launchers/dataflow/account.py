"""Whether the launcher may run jobs as a service account, asked of Google's IAM service.

Dataflow itself says so only after the job was sent, or when its workers do not start.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote

from google.api_core.exceptions import GoogleAPIError, NotFound, from_http_response
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from requests import RequestException

from beam_pipeline.errors import one_line

ACT_AS = "iam.serviceAccounts.actAs"
#: gcloud's own variable for another endpoint; one of plain HTTP is shown no credentials.
ENDPOINT = "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAM"
#: Seconds for one request, and for all of them; the answer only spares a wait.
_REQUEST_SECONDS, _PATIENCE_SECONDS = 20.0, 10.0
#: The project of an account that is a person's own; Google's own ones have none in their name.
_PROJECT = re.compile(r".+@([^.]+)(?:\.(.+))?\.iam\.gserviceaccount\.com")


class AccountError(RuntimeError):
    """Jobs cannot run as the account that was named; the message says why and what to do."""


def check_account(email: str, credentials: Credentials) -> list[str]:
    """Check that an account is there and that these credentials may run jobs as it.

    Parameters
    ----------
    email : str
        Value of ``--service_account_email``.
    credentials : Credentials
        Of whoever sends the job.

    Returns
    -------
    list of str
        A note if it could not be asked: the launcher needs no right to know.

    Raises
    ------
    AccountError
        If there is no such account, or its use is not allowed.
    """
    flag = f"--service_account_email {email}"
    endpoint = os.environ.get(ENDPOINT, "").rstrip("/") or "https://iam.googleapis.com"
    if endpoint.startswith("http://"):
        credentials = AnonymousCredentials()
    try:
        granted = _granted(f"{endpoint}/v1/{account_name(email)}", credentials)
    except NotFound as error:
        raise AccountError(
            f"{flag}: there is no such account; 'gcloud iam service-accounts list' shows those of "
            "a project, and cloud/setup.sh makes one"
        ) from error
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        return [f"{flag} was not checked: the IAM API does not answer ({one_line(error)})"]
    if ACT_AS in granted:
        return []
    raise AccountError(
        f"{flag}: you may not run jobs as it; whoever administers it lets you by 'gcloud iam "
        f"service-accounts add-iam-policy-binding {email} --member=user:YOU@EXAMPLE.ORG "
        "--role=roles/iam.serviceAccountUser'"
    )


def account_name(email: str) -> str:
    """Return an account's resource name.

    It names the project where the address does: with the wildcard in its place, the service
    answers 403 for an account that does not exist.
    """
    found = _PROJECT.fullmatch(email)
    project = "-" if found is None else f"{found[2]}:{found[1]}" if found[2] else found[1]
    return f"projects/{quote(project, safe=':')}/serviceAccounts/{quote(email, safe='@')}"


def _granted(url: str, credentials: Credentials) -> list[str]:
    def ask() -> list[str]:
        response = session.post(
            f"{url}:testIamPermissions", json={"permissions": [ACT_AS]}, timeout=_REQUEST_SECONDS
        )
        if not response.ok:
            raise from_http_response(response)
        permissions: list[str] = response.json().get("permissions", [])
        return permissions

    with AuthorizedSession(credentials) as session:
        return Retry(initial=0.5, timeout=_PATIENCE_SECONDS)(ask)()
