"""Faults that a loopback server commits on demand, for the requests that match."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field

#: What a fault does; all but `LOSE` and `PERSIST_HALF` leave the server's state alone.
STATUS = "status"  # answers `status` instead of doing what was asked
RESET = "reset"  # resets the connection instead of doing what was asked
LOSE = "lose"  # does what was asked, then resets the connection instead of answering
TRUNCATE = "truncate"  # answers, but closes the connection after half of the body
CORRUPT = "corrupt"  # answers with one bit of the body flipped
HOLD = "hold"  # sets `reached`, waits for `release`, then goes on as if nothing had been
PERSIST_HALF = "persist_half"  # a chunk of a resumable upload is kept by half only
ACTIONS = (STATUS, RESET, LOSE, TRUNCATE, CORRUPT, HOLD, PERSIST_HALF)


@dataclass
class Fault:
    """What goes wrong with the requests that match.

    Attributes
    ----------
    method, path : str
        Regular expressions: `method` must match as a whole, `path` is searched for in the decoded
        path and query of the request.
    action : str
        One of `ACTIONS`.
    times : int or None
        Requests that are met; None for all.
    skip : int
        Matching requests that are let through before.
    status : int
    hits : int
        Requests that were met so far.
    reached, release : threading.Event
        Of a `HOLD`.
    """

    method: str
    path: str
    action: str
    times: int | None = 1
    skip: int = 0
    status: int = 503
    hits: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        assert self.action in ACTIONS, self.action

    def meets(self, method: str, path: str) -> bool:
        """Say if a request is met, and count it."""
        if not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True


class Faults:
    """The faults of one server; the first that matches a request is committed."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(
        self,
        method: str,
        path: str,
        action: str,
        *,
        times: int | None = 1,
        skip: int = 0,
        status: int = 503,
    ) -> Fault:
        """Commit a fault from now on; its `hits` tell how often it was."""
        fault = Fault(method, path, action, times, skip, status)
        with self._lock:
            self._faults.append(fault)
        return fault

    def find(self, method: str, path: str) -> Fault | None:
        """Return the fault that a request meets."""
        with self._lock:
            return next((fault for fault in self._faults if fault.meets(method, path)), None)

    def clear(self) -> None:
        """Commit no more faults, and let go of what is held."""
        with self._lock:
            for fault in self._faults:
                fault.release.set()
            self._faults.clear()
