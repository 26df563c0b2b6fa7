"""Which errors of Google's clients pass by themselves."""

from __future__ import annotations

from google.api_core import exceptions
from google.api_core.retry import if_transient_error


def is_transient(error: Exception) -> bool:
    """Return whether a request that failed like this may get through when it is made again."""
    if isinstance(error, FileNotFoundError):
        return False
    # The last: requests' own, such as a timeout.
    also = exceptions.GatewayTimeout | exceptions.BadGateway | OSError
    return bool(if_transient_error(error)) or isinstance(error, also)
