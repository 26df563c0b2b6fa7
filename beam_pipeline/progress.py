"""How far a run is: workers leave their counts in small files, the launcher adds them up."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import BinaryIO


class WorkCount:
    """One process's count of finished work in one phase.

    Parameters
    ----------
    folder : pathlib.Path or None
        Holds one file a process and phase. None if the launcher runs on another machine: nothing is
        left here then.
    phase : str
    """

    def __init__(self, folder: Path | None, phase: str) -> None:
        self._file: BinaryIO | None = None
        if folder is not None:
            path = folder / f"{phase}-{os.getpid()}-{id(self)}"
            self._file = path.open("wb", buffering=0)
        self._count = 0

    def add(self, n: int) -> None:
        """Add finished work and make it visible."""
        if self._file is None:
            return
        self._count += n
        # In place and of fixed width: a reader never finds the file empty or half written.
        os.pwrite(self._file.fileno(), f"{self._count:20d}".encode(), 0)

    def close(self) -> None:
        """Close the file; the count remains."""
        if self._file is not None:
            self._file.close()


def read_counts(folder: Path | None) -> Counter[str]:
    """Return the work finished by all processes on this machine, by phase."""
    counts: Counter[str] = Counter()
    if folder is None:
        return counts
    for path in folder.glob("*-*-*"):
        # A file that was just opened is empty.
        counts[path.name.split("-")[0]] += int(path.read_text() or 0)
    return counts
