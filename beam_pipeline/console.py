"""What a person sees of a run: progress bars on a terminal, plain lines elsewhere, tables."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

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
from rich.table import Table
from rich.text import Text

REFRESH_SECONDS = 0.5
PLAIN_SECONDS = 10.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} trials/s" if speed else "", style="progress.data.speed")


@contextmanager
def watch(
    phases: Mapping[str, str], total: int, counts: Callable[[], Mapping[str, int]]
) -> Iterator[None]:
    """Show how far each phase is while the body runs.

    Parameters
    ----------
    phases : mapping
        {phase: what to call it}, in order.
    total : int
        Trials of each phase.
    counts : callable
        Returns the trials finished so far, by phase.
    """
    stop = threading.Event()
    # Taken now: the body may redirect what Beam prints.
    stream = sys.stderr
    show = _show_bars if stream.isatty() else _show_lines
    thread = threading.Thread(target=show, args=(phases, total, counts, stop, stream), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show_bars(
    phases: Mapping[str, str],
    total: int,
    counts: Callable[[], Mapping[str, int]],
    stop: threading.Event,
    stream: TextIO,
) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as progress:
        tasks = {
            phase: progress.add_task(name, total=total, start=False)
            for phase, name in phases.items()
        }
        ended = False
        while not ended:
            ended = stop.wait(REFRESH_SECONDS)
            current = counts()
            for phase, task in tasks.items():
                done = current.get(phase, 0)
                if done and not progress.tasks[task].started:
                    progress.start_task(task)
                progress.update(task, completed=done)


def _show_lines(
    phases: Mapping[str, str],
    total: int,
    counts: Callable[[], Mapping[str, int]],
    stop: threading.Event,
    stream: TextIO,
) -> None:
    started: dict[str, float] = {}
    moved: dict[str, tuple[int, float]] = {}
    shown: dict[str, int] = {}
    last = time.monotonic()
    ended = False
    while not ended:
        ended = stop.wait(REFRESH_SECONDS)
        now = time.monotonic()
        for phase, done in counts().items():
            started.setdefault(phase, now - REFRESH_SECONDS)
            if done != moved.get(phase, (0, now))[0]:
                moved[phase] = done, now
        for phase in phases:
            done, changed = moved.get(phase, (0, now))
            due = done >= total or ended or now - last > PLAIN_SECONDS
            if done == shown.get(phase, 0) or not due:
                continue
            shown[phase], last = done, now
            # Up to the last change: a phase that others wait for has not become slower.
            elapsed = changed - started[phase]
            line = f"{phases[phase]}: {done:,} of {total:,}"
            if elapsed > 4 * REFRESH_SECONDS:
                line += f", {done / elapsed:,.0f} trials/s"
                if done < total and not ended:
                    line += f", {(total - done) * elapsed / done:,.0f} s left"
            print(line, file=stream)


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[object]], notes: str = ""
) -> None:
    """Print a table to standard output as it stands; numbers are aligned to the right."""
    # Title and notes stand outside the table: rich would wrap them to its width.
    table = Table()
    for index, name in enumerate(header):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        # As plain text: rich would read a class named `[b]` as markup.
        table.add_column(Text(name), justify="right" if numeric else "left")
    for row in rows:
        cells = (f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row)
        table.add_row(*map(Text, cells))
    # A pipe has no width: without a floor, rich would wrap numbers at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    print(title)
    console.print(table)
    if notes:
        print(notes)


def format_bytes(n: float) -> str:
    """Return a size in the largest unit that keeps it above one."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} TB"
