"""The objective of a trial, for the tuning job of Vertex AI that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hypertune

from trainer.evaluation.predictions import Predictions
from trainer.training.follower import Follower
from trainer.tune.space import OBJECTIVE


class TrialReport(Follower):
    """Writes the AUC of val's sessions where the service looks for it."""

    def __init__(self) -> None:
        self._tuner: Any = None
        self._reported = self._failed = 0
        self._error = ""

    def log(self, split: str, step: int, epoch: int, values: Mapping[str, float | None]) -> None:
        """Report an epoch's AUC."""
        if split == "val":
            self._report(values.get("auc"), step)

    def evaluated(self, split: str, content: Mapping[str, Any], predictions: Predictions) -> None:
        """Report the best epoch's AUC once more: a container that was restarted knows no other."""
        if split == "val":
            self._report(content["session"]["auc"]["value"], content["checkpoint"]["step"])

    def close(self, state: str) -> str:
        """Say whether the service has missed something."""
        if not self._failed:
            return ""
        return (
            f"hyperparameter tuning: {self._failed} of {self._reported} AUCs were not reported "
            f"({self._error})"
        )

    def _report(self, auc: float | None, step: int) -> None:
        if auc is None:
            return
        self._reported += 1
        try:
            # It makes a folder.
            self._tuner = self._tuner or hypertune.HyperTune()
            self._tuner.report_hyperparameter_tuning_metric(
                hyperparameter_metric_tag=OBJECTIVE, metric_value=auc, global_step=step
            )
        except OSError as error:
            self._failed += 1
            self._error = str(error)
