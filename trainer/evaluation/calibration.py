"""Whether probabilities mean what they say: temperature scaling and the reliability curve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from trainer.evaluation.independent_intervals import proportion_interval
from trainer.evaluation.intervals import Interval, bootstrap_interval
from trainer.evaluation.metrics import N_BINS, confidence_bins

#: Logits that order val perfectly would be sharpened without end.
TEMPERATURES = (0.05, 20.0)


def fit_temperature(logits: NDArray[np.float64], label: NDArray[np.int64]) -> float | None:
    """Return the temperature T at which softmax(logits / T) has the least log loss.

    One number, fitted on val, changes no order and so no accuracy and no AUC of sequences (Guo et
    al. 2017, On Calibration of Modern Neural Networks, section 4.2). The log loss is convex in
    1 / T, so there is one minimum.

    Parameters
    ----------
    logits : float64 array of shape (n, n_classes)
    label : int64 array of shape (n,)

    Returns
    -------
    float or None
        Within `TEMPERATURES`. None where a class is missing: one answer for all would fit best.
    """
    if len(np.unique(label)) < logits.shape[1]:
        return None
    true = np.take_along_axis(logits, label[:, None], axis=1)[:, 0]

    def log_loss(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        return float(np.mean(logsumexp(logits * inverse, axis=1) - true * inverse))

    low, high = map(math.log, TEMPERATURES)
    found = minimize_scalar(log_loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def meaning_of_temperature(temperature: float) -> str:
    """Return as a clause what a temperature that was fitted on val says of a model."""
    # The search ends just inside its bounds.
    if temperature > 0.99 * TEMPERATURES[1]:
        return (
            "the highest that is tried: on val the model does no better than an equal probability "
            "for every class"
        )
    if temperature > 1:
        return "the model is too sure of itself as it is"
    return "the model is not sure enough as it is"


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Confidence and accuracy by bin of confidence; the gaps add up to the ECE.

    Attributes
    ----------
    edges : float64 array of shape (N_BINS + 1,)
    count : int64 array of shape (N_BINS,)
    confidence, accuracy : float64 arrays of shape (N_BINS,)
        Means; NaN in an empty bin.
    low, high : float64 arrays of shape (N_BINS,)
        95 % interval of the accuracy over groups; NaN in a bin that fewer than two groups reach.
    """

    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def reliability_curve(
    probability: NDArray[np.float64],
    label: NDArray[np.int64],
    group: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> ReliabilityCurve:
    """Return how often the predicted class is right, by its probability.

    Parameters
    ----------
    probability : float64 array of shape (n, n_classes)
    label : int64 array of shape (n,)
    group : int64 array of shape (n,)
        Independent unit of each row.
    weights : float64 array of shape (n_bootstrap, n_groups)
        Of `trainer.evaluation.intervals.bootstrap_weights`.
    """
    confidence = probability.max(axis=1)
    right = probability.argmax(axis=1) == label
    bins = confidence_bins(confidence)
    place = (group, bins)
    count, n_right, sum_confidence = np.zeros((3, weights.shape[1], N_BINS))
    np.add.at(count, place, 1.0)
    np.add.at(n_right, place, right)
    np.add.at(sum_confidence, place, confidence)
    total = count.sum(axis=0)
    with np.errstate(invalid="ignore"):
        accuracy = n_right.sum(axis=0) / total
        mean_confidence = sum_confidence.sum(axis=0) / total
        samples = (weights @ n_right) / (weights @ count)
    intervals = [
        _accuracy_interval(float(accuracy[b]), samples[:, b], n_right[:, b], count[:, b])
        for b in range(N_BINS)
    ]
    return ReliabilityCurve(
        np.arange(N_BINS + 1) / N_BINS,
        total.astype(np.int64),
        mean_confidence,
        accuracy,
        np.array([interval.low for interval in intervals], np.float64),
        np.array([interval.high for interval in intervals], np.float64),
    )


def _accuracy_interval(
    value: float,
    samples: NDArray[np.float64],
    n_right: NDArray[np.float64],
    count: NDArray[np.float64],
) -> Interval:
    """Return the interval of the accuracy in a bin, of the answers of each group in it."""
    n_right, count = n_right[count > 0], count[count > 0]
    n_groups = len(count)
    if n_groups < 2:
        return Interval(None, None)
    wholly_right = n_right == count
    if (wholly_right | (n_right == 0)).all():
        # Resamples by class may all be alike then: each group counts as one observation.
        found = proportion_interval(int(wholly_right.sum()), n_groups)
        return found.including(value)
    return bootstrap_interval(value, samples, np.zeros(n_groups, np.int64), "logit")
