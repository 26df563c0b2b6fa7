"""Work for a service that a training must neither wait for nor fail with."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from google.api_core.retry import Retry

from trainer.transient import is_transient

#: Seconds for which one piece of work is tried again.
PATIENCE_SECONDS = 60.0
#: Seconds that the end of a training waits for what is left; one that was told to stop has few.
CLOSE_SECONDS = {"complete": 60.0, "failed": 60.0, "stopped": 5.0}
_MOST_WAITING = 1000


class Outbox:
    """Does pieces of work in their order, in a thread of its own; counts those that fail.

    Parameters
    ----------
    name : str
        Of the service, for what is said at the end.
    patience : float
        Seconds for which a piece that fails for the moment is tried again.

    Attributes
    ----------
    taken, failed : int
        Pieces of work that came in, and those given up.
    """

    def __init__(self, name: str, patience: float = PATIENCE_SECONDS) -> None:
        self._name = name
        self.taken = self.failed = 0
        self._error = ""
        self._retry = Retry(predicate=is_transient, initial=0.5, maximum=10.0, timeout=patience)
        self._waiting: queue.Queue[Callable[[], object] | None] = queue.Queue(_MOST_WAITING)
        # A daemon: what hangs in a request does not keep the process alive.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, work: Callable[[], object]) -> None:
        """Take a piece of work; what may be repeated without harm."""
        self.taken += 1
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            self._fail("the service is too slow")

    def close(self, seconds: float) -> str:
        """Wait for what is left; return what is to be said, empty if all went well."""
        deadline = time.monotonic() + seconds
        with suppress(queue.Full):
            self._waiting.put(None, timeout=seconds)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        lost = self.failed
        if self._thread.is_alive():
            # The one that is being done, too; `None` is no work.
            lost += max(1, self._waiting.qsize())
            self._error = self._error or f"no answer for {seconds:g} s"
        if not lost:
            return ""
        return (
            f"{self._name}: {lost} of {self.taken} entries "
            f"{'was' if lost == 1 else 'were'} not recorded ({self._error}); the "
            "run folder holds everything"
        )

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            try:
                self._retry(work)()
            except Exception as error:
                cause = getattr(error, "cause", None) or error
                self._fail(" ".join(str(cause).split()) or type(cause).__name__)

    def _fail(self, text: str) -> None:
        self.failed += 1
        self._error = text
