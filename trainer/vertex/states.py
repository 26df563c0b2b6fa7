"""The states of a job, and what they mean for whoever waits for it."""

from __future__ import annotations

_PREFIX = "JOB_STATE_"
SUCCEEDED = "JOB_STATE_SUCCEEDED"
#: {state that a job does not leave: what is to be said of it}.
FINAL = {
    SUCCEEDED: "is done",
    "JOB_STATE_PARTIALLY_SUCCEEDED": "is done in part",
    "JOB_STATE_FAILED": "failed",
    "JOB_STATE_CANCELLED": "was cancelled",
    "JOB_STATE_EXPIRED": "took longer than --timeout",
}


def plain(state: str) -> str:
    """Return a state's name in lower case, without what all of them begin with."""
    return state.removeprefix(_PREFIX).lower().replace("_", " ")
