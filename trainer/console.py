"""What a person sees of a training: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 10.0


class Display(Protocol):
    """Where a loop says how far it is."""

    def update(self, done: int, name: str, text: str) -> None:
        """Show how many steps are done, what is being done, and what was measured last."""

    def say(self, line: str) -> None:
        """Leave a line that stays."""


class _Bar:
    def __init__(self, progress: Progress, total: int, done: int, brief: bool) -> None:
        self._progress, self._brief = progress, brief
        self._task = progress.add_task("", total=total, completed=done, text="")

    def update(self, done: int, name: str, text: str) -> None:
        self._progress.update(self._task, completed=done, description=name, text=text)

    def say(self, line: str) -> None:
        if not self._brief:
            self._progress.console.print(Text(line), soft_wrap=True)


class _Lines:
    def __init__(self, total: int, done: int, brief: bool) -> None:
        self._total, self._first, self._brief = total, done, brief
        self._start = self._last = time.monotonic()

    def update(self, done: int, name: str, text: str) -> None:
        now = time.monotonic()
        if now - self._last < PLAIN_SECONDS:
            return
        self._last = now
        line = f"{name}: {done:,} of {self._total:,}, {text}"
        if done > self._first:
            left = (now - self._start) / (done - self._first) * (self._total - done)
            line += f", {format_seconds(left)} left"
        print(line, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        if not self._brief:
            print(line, file=sys.stderr, flush=True)


class _Silent:
    def update(self, done: int, name: str, text: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass


@contextmanager
def display(
    total: int, done: int = 0, *, silent: bool = False, brief: bool = False
) -> Iterator[Display]:
    """Show on standard error how far the body is.

    Parameters
    ----------
    total, done : int
        Steps of the whole, and those done before.
    silent : bool
        For the processes beside the main one.
    brief : bool
        Show nothing that stays when the body is done.
    """
    if silent:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(total, done, brief)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=brief) as progress:
            yield _Bar(progress, total, done, brief)


def format_estimate(entry: Mapping[str, float | None], decimals: int = 3) -> str:
    """Return a metric's value and its interval, of ``metrics/SPLIT.json``, as text."""
    value, low, high = entry["value"], entry["low"], entry["high"]
    if value is None:
        return "undefined"
    interval = "" if low is None else f" [{low:.{decimals}f}, {high:.{decimals}f}]"
    return f"{value:.{decimals}f}{interval}"


def format_p_value(content: Mapping[str, Any], level: str, digits: int = 2) -> str:
    """Return the p-value at a level of ``metrics/SPLIT.json`` as text; a dash across folds."""
    if "across_folds" in content:
        return "–"  # noqa: RUF001
    value = content[level]["p_value"]
    return "undefined" if value is None else f"{value:.{digits}g}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of text to standard output; all columns but the first are aligned right."""
    # Title outside, and cells as Text: rich would wrap one, and read `[b]` in the other as markup.
    table = Table()
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    # A pipe has no width: without a floor, rich would wrap at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    print(title)
    console.print(table)


def format_seconds(seconds: float) -> str:
    """Return a duration in the unit that a person would choose."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_bytes(n: float) -> str:
    """Return a size in the largest unit that keeps it above one."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} TB"
