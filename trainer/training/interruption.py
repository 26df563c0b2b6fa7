"""SIGTERM and Ctrl-C: at once where nothing is lost, after the step where a checkpoint is due."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.errors import TrainerError


class StoppedError(TrainerError):
    """Someone asked the run to stop; the same command goes on."""


class Interruption:
    """What was asked by a signal while `deferred` was on.

    Attributes
    ----------
    signal_name : str
        The signal that waits to be obeyed; empty where there is none.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._is_deferred = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the body look at `signal_name` and stop where it can; a second Ctrl-C ends it."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def finish(self) -> None:
        """Let what is left to do end in peace from now on; a second Ctrl-C ends it."""
        self._is_deferred = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, or obey it at once."""
        name = signal.Signals(number).name
        if not self._is_deferred or (self.signal_name == name == "SIGINT"):
            raise StoppedError(f"stopped by {name}; the same command goes on")
        self.signal_name = name


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Take SIGTERM and SIGINT over while the body runs."""
    interruption = Interruption()
    before = {
        number: signal.signal(number, interruption.handle)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
