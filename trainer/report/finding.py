"""What is said of a run: findings, and the scores in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Tone(StrEnum):
    """How much a finding should worry its reader, the most first."""

    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"
    GOOD = "good"


@dataclass(frozen=True)
class Finding:
    """Something that a reader must know.

    Attributes
    ----------
    tone : Tone
    title : str
        One sentence without a full stop.
    text : str
        The numbers behind it.
    advice : str
        What to do; empty where nothing needs to be done.
    """

    tone: Tone
    title: str
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Score:
    """An AUC with its 95 % interval; `low` and `high` are None where there is none."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, content: Mapping[str, Any], level: str, metric: str = "auc") -> Score | None:
        """Return a metric of a level of ``metrics/SPLIT.json``; None where it is not defined."""
        entry = content.get(level, {}).get(metric)
        if entry is None or entry["value"] is None:
            return None
        return cls(entry["value"], entry["low"], entry["high"])

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.2f} (no interval)"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def signed(self) -> str:
        """Return a difference as text."""
        if self.low is None or self.high is None:
            return f"{self.value:+.2f} (no interval)"
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
