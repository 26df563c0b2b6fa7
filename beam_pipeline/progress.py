"""How far a run is: workers leave their counts in small files, the launcher adds them up."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path


class WorkCount:
    """One process's count of finished work in one phase.

    Parameters
    ----------
    folder : pathlib.Path
        Holds one file a process and phase.
    phase : str
    """

    def __init__(self, folder: Path, phase: str) -> None:
        path = folder / f"{phase}-{os.getpid()}-{id(self)}"
        self._file = path.open("wb", buffering=0)
        self._count = 0

    def add(self, n: int) -> None:
        """Add finished work and make it visible."""
        self._count += n
        # In place and of fixed width: a reader never finds the file empty or half written.
        os.pwrite(self._file.fileno(), f"{self._count:20d}".encode(), 0)

    def close(self) -> None:
        """Close the file; the count remains."""
        self._file.close()


def read_counts(folder: Path) -> Counter[str]:
    """Return the work finished by all processes, by phase."""
    counts: Counter[str] = Counter()
    for path in folder.glob("*-*-*"):
        # A file that was just opened is empty.
        counts[path.name.split("-")[0]] += int(path.read_text() or 0)
    return counts
