"""Which epoch is the best: by the AUC of val's sessions, then by its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.levels import score_levels, study_design
from trainer.evaluation.metrics import compute_metrics
from trainer.evaluation.predictions import Predictions


@dataclass(frozen=True, eq=False)
class Validation:
    """What val says of an epoch.

    Attributes
    ----------
    values : dict
        For the log: `loss` and `accuracy` of sequences, `auc` and `balanced_accuracy` of
        sessions. NaN where one is not defined.
    score : tuple of float
        Higher is better: the AUC of sessions, then the loss, because a few sessions have few
        AUCs. The loss alone where val lacks a class, which leaves the AUC undefined. The first
        number says alone whether there is progress; all of them say which epoch is the best.
    confusion : int64 array of shape (n_classes, n_classes)
        Sequences by true and predicted class.
    """

    values: dict[str, float]
    score: tuple[float, ...]
    confusion: NDArray[np.int64]


def validate(predictions: Predictions) -> Validation:
    """Return what an epoch's predictions of val amount to."""
    levels, _ = score_levels(predictions, study_design(predictions))
    sequence, session = levels["sequence"], levels["session"]
    of_sequences = compute_metrics(sequence.probability, sequence.label)
    of_sessions = compute_metrics(session.probability, session.label)
    loss, auc = of_sequences["log_loss"], of_sessions["auc"]
    confusion = np.zeros((sequence.probability.shape[1],) * 2, np.int64)
    np.add.at(confusion, (sequence.label, sequence.probability.argmax(axis=1)), 1)
    return Validation(
        values={
            "loss": loss,
            "accuracy": of_sequences["accuracy"],
            "auc": auc,
            "balanced_accuracy": of_sessions["balanced_accuracy"],
        },
        score=(-loss,) if math.isnan(auc) else (auc, -loss),
        confusion=confusion,
    )
