"""What may follow a run beside its folder, such as a tracking service.

A follower never fails a run, and never keeps it waiting: it counts what goes wrong, and says so at
the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.evaluation.predictions import Predictions


class Follower:
    """Is told what a run does; this one listens to nothing."""

    def log(self, split: str, step: int, epoch: int, values: Mapping[str, float | None]) -> None:
        """Take a line of the log; what is not finite is None."""

    def flushed(self) -> None:
        """Note that all that was logged is on disk."""

    def evaluated(self, split: str, content: Mapping[str, Any], predictions: Predictions) -> None:
        """Take ``metrics/SPLIT.json`` of the best checkpoint, and what it comes from."""

    def close(self, state: str) -> str:
        """End, and return what is to be said; empty if all went well.

        Parameters
        ----------
        state : {"complete", "failed", "stopped"}
            Of the run; one that was stopped will go on.
        """
        return ""
