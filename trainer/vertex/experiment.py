"""A run in Vertex AI Experiments: its parameters, curves, metrics, confusion matrices and ROCs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from trainer.config import Config
from trainer.evaluation.levels import LEVELS, Level, score_levels, study_design
from trainer.evaluation.predictions import Predictions
from trainer.outbox import CLOSE_SECONDS, Outbox
from trainer.training.follower import Follower
from trainer.vertex import container
from trainer.vertex.options import ENVIRONMENT

#: What the service keeps of a run.
MOST_SERIES = 20
#: Points of a ROC curve that are kept.
_MOST_POINTS = 200
_METRICS = ("auc", "balanced_accuracy", "accuracy", "log_loss")


class ExperimentTracker(Follower):
    """Tells Vertex AI Experiments of a run; a run that was restarted goes on there, too.

    Curves need a TensorBoard instance. None is made here: without one, the last values of val are
    kept as metrics.

    Parameters
    ----------
    environ : mapping
        Names project, region, experiment, run, and the TensorBoard instance where there is one.
    config : Config
    data, output : str
        Of the run.
    """

    def __init__(self, environ: Mapping[str, str], config: Config, data: str, output: str) -> None:
        trial = environ.get(container.TRIAL)
        self._run_name = environ[container.RUN] + (f"-{trial}" if trial else "")
        self._experiment_name = environ.get(container.EXPERIMENT) or "lfp-vit"
        self._project = environ.get(ENVIRONMENT["project"])
        self._region = environ.get(ENVIRONMENT["region"])
        self._board = environ.get(ENVIRONMENT["tensorboard"]) or None
        self._endpoint = environ.get(ENVIRONMENT["vertex_endpoint"]) or None
        self._series: set[str] = set()
        self._dropped: set[str] = set()
        self._run: Any = None
        self._outbox = Outbox("Vertex AI Experiments")
        parameters = {"data": data, "output": output, **_flat(config)}
        self._outbox.put(lambda: self._opened().log_params(parameters))

    def log(self, split: str, step: int, epoch: int, values: Mapping[str, float | None]) -> None:
        """Add a point to each curve; val's values are the run's metrics as well."""
        points = {f"{split}_{name}": value for name, value in values.items() if value is not None}
        if self._board:
            series = self._kept(points)
            if series:
                self._outbox.put(lambda: self._opened().log_time_series_metrics(series, step=step))
        if split == "val":
            metrics = {**points, "epoch": epoch, "step": step}
            self._outbox.put(lambda: self._opened().log_metrics(metrics))

    def evaluated(self, split: str, content: Mapping[str, Any], predictions: Predictions) -> None:
        """Add the best checkpoint's metrics, and confusion matrix and ROC at each level."""
        metrics = {
            f"{split}_{level}_{name}": content[level][name]["value"]
            for level in LEVELS
            if level in content
            for name in _METRICS
            if content[level][name]["value"] is not None
        }
        self._outbox.put(lambda: self._opened().log_metrics(metrics))
        self._outbox.put(partial(self._log_pictures, split, content, predictions))

    def close(self, state: str) -> str:
        """Set the run's state; one that was stopped stays running, since it goes on."""
        if state != "stopped":
            self._outbox.put(lambda: self._set_state(state.upper()))
        said = self._outbox.close(CLOSE_SECONDS[state])
        if self._dropped:
            more = f"Vertex AI Experiments keeps {MOST_SERIES} curves of a run: not "
            said = "\n".join(filter(None, [said, more + ", ".join(sorted(self._dropped))]))
        return said

    def _kept(self, points: Mapping[str, float]) -> dict[str, float]:
        for name in points:
            if name not in self._series and len(self._series) == MOST_SERIES:
                self._dropped.add(name)
            elif name not in self._dropped:
                self._series.add(name)
        return {name: value for name, value in points.items() if name in self._series}

    # In the outbox's thread only:

    def _opened(self) -> Any:
        """Return the run, got or created."""
        if self._run is not None:
            return self._run
        # Here, because it takes seconds to load.
        from google.api_core.exceptions import Conflict
        from google.cloud import aiplatform

        from trainer.vertex.client import credentials_for

        aiplatform.init(
            project=self._project,
            location=self._region,
            api_endpoint=self._endpoint,
            api_transport="rest",
            credentials=credentials_for(self._endpoint or ""),
        )
        # Not by init(experiment=...), which would make a TensorBoard instance.
        try:
            experiment = aiplatform.Experiment.get_or_create(self._experiment_name)
        except Conflict:
            # Another run made it at the same moment.
            experiment = aiplatform.Experiment(self._experiment_name)
        run = aiplatform.ExperimentRun.get(self._run_name, experiment=experiment)
        if run is None:
            try:
                run = aiplatform.ExperimentRun.create(
                    self._run_name, experiment=experiment, tensorboard=self._board
                )
            except Conflict:
                # The service had made it, and its answer was lost.
                run = aiplatform.ExperimentRun(self._run_name, experiment=experiment)
        # What a process that was killed in between has not done; all of it may be done twice.
        run._associate_to_experiment(experiment)
        if self._board and run._lookup_tensorboard_run_artifact() is None:
            run.assign_backing_tensorboard(self._board)
        run.update_state(aiplatform.gapic.Execution.State.RUNNING)
        self._run = run
        return run

    def _log_pictures(
        self, split: str, content: Mapping[str, Any], predictions: Predictions
    ) -> None:
        run = self._opened()
        step = content["checkpoint"]["step"]
        # A run that was restarted has them already, unless it has found a better checkpoint.
        there = {metrics["display_name"] for metrics in run.get_classification_metrics()}
        levels, _ = score_levels(predictions, study_design(predictions))
        for name, level in levels.items():
            display_name = f"{split}_{name}_step_{step}"
            if display_name not in there:
                run.log_classification_metrics(
                    display_name=display_name,
                    labels=list(content["classes"]),
                    matrix=content[name]["confusion_matrix"],
                    **_roc(level),
                )

    def _set_state(self, name: str) -> None:
        from google.cloud import aiplatform

        self._opened().update_state(getattr(aiplatform.gapic.Execution.State, name))


def _flat(config: Config) -> dict[str, float | int | str]:
    return {
        f"{section}.{name}": "null" if value is None else value
        for section, fields in asdict(config).items()
        for name, value in fields.items()
    }


def _roc(level: Level) -> dict[str, list[float]]:
    """Return the ROC of the last class against the other; nothing where there is none."""
    if level.probability.shape[1] != 2 or len(np.unique(level.label)) < 2:
        return {}
    fpr, tpr, threshold = roc_curve(level.label, level.probability[:, 1])
    keep = np.unique(np.linspace(0, len(fpr) - 1, min(len(fpr), _MOST_POINTS)).astype(int))
    # The first threshold, which nothing reaches, is infinite, and JSON has no such number.
    threshold = np.minimum(threshold, 1.0)
    return {
        "fpr": fpr[keep].tolist(),
        "tpr": tpr[keep].tolist(),
        "threshold": threshold[keep].tolist(),
    }
