"""How far the reading of shards is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

PLAIN_SECONDS = 10.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} trials/s" if speed else "", style="progress.data.speed")


class _Lines:
    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, n_trials: int) -> None:
        with self._lock:
            self._done += n_trials
            now = time.monotonic()
            if now - self._last < PLAIN_SECONDS:
                return
            self._last = now
        print(f"{self._name}: {self._done:,} of {self._total:,} trials", file=sys.stderr)


@contextmanager
def reading_progress(name: str, n_trials: int) -> Iterator[Callable[[int], None]]:
    """Show on standard error how far the body is.

    Parameters
    ----------
    name : str
        What is being done.
    n_trials : int
        Of the whole.

    Yields
    ------
    callable
        To be called with the number of trials that were read; from any thread.
    """
    if not sys.stderr.isatty():
        yield _Lines(name, n_trials).advance
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    # Gone when it is done: the plan that follows says what was read.
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=n_trials)
        yield lambda n: progress.advance(task, n)
