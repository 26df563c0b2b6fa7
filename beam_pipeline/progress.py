"""How far a run is: workers leave their counts in small files, the launcher adds them up."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass
class WorkCount:
    """One process's count of finished work in one phase.

    Attributes
    ----------
    folder : str
    phase : str
    """

    folder: str
    phase: str
    count: int = 0

    def add(self, n: int) -> None:
        """Add finished work and make it visible."""
        self.count += n
        path = Path(self.folder) / f"{self.phase}-{os.getpid()}-{id(self)}"
        path.write_text(str(self.count))


def read_counts(folder: str | Path) -> Counter[str]:
    """Return the work finished by all processes, by phase."""
    counts: Counter[str] = Counter()
    for path in Path(folder).glob("*-*-*"):
        # A file that is being rewritten may be empty for a moment.
        counts[path.name.split("-")[0]] += int(path.read_text() or 0)
    return counts
