"""Values of the metrics, for one weighting of the groups or for thousands at once.

A cluster bootstrap weighs whole groups (animals), so all that a metric needs is summed inside each
group first. Then every resample is a few products of small matrices, and the value itself is the
case in which every weight is 1. The conventions are scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: In the order of the tables. All but the last three are better when larger.
METRICS = ("accuracy", "balanced_accuracy", "auc", "f1", "log_loss", "brier", "ece")
#: Equal-width bins of the calibration error, as in Guo et al. (2017).
N_BINS = 15
#: scikit-learn's floor of a probability whose logarithm is taken.
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class GroupSums:
    """What the metrics need, summed over the units of each group.

    Attributes
    ----------
    confusion : float64 array of shape (n_groups, n_classes, n_classes)
        Units by true and predicted class.
    log_loss, brier : float64 arrays of shape (n_groups,)
    calibration : float64 array of shape (n_groups, N_BINS)
        Right answers minus confidence, by bin of confidence.
    wins : float64 array of shape (n_scores, n_groups, n_groups)
        For each score, pairs of a unit of its class in one group and a unit of another class in
        the other group of which the first scores higher; ties count one half. Two classes have
        one score, that of class 1; more have one a class.
    """

    confusion: NDArray[np.float64]
    log_loss: NDArray[np.float64]
    brier: NDArray[np.float64]
    calibration: NDArray[np.float64]
    wins: NDArray[np.float64]


def scored_classes(n_classes: int) -> range:
    """Return the classes that have an AUC: class 1 of two, or each one against the rest."""
    return range(1, 2) if n_classes == 2 else range(n_classes)


def pair_wins(
    score: NDArray[np.float64],
    group: NDArray[np.int64],
    other_score: NDArray[np.float64],
    other_group: NDArray[np.int64],
    n_groups: int,
) -> NDArray[np.float64]:
    """Count, for each pair of groups, the pairs of units of which the first scores higher.

    This is the Mann-Whitney U statistic cut into groups: with weights w of the groups,
    ``w @ wins @ w`` is the U of the weighted units, exactly.

    Parameters
    ----------
    score : float64 array of shape (n,)
    group : int64 array of shape (n,)
    other_score : float64 array of shape (m,)
    other_group : int64 array of shape (m,)
    n_groups : int

    Returns
    -------
    float64 array of shape (n_groups, n_groups)
        Multiples of one half.
    """
    wins = np.zeros((n_groups, n_groups))
    order = np.lexsort((other_score, other_group))
    edges = np.searchsorted(other_group[order], np.arange(n_groups + 1))
    ordered = other_score[order]
    for index in np.unique(other_group):
        rivals = ordered[edges[index] : edges[index + 1]]
        doubled = np.searchsorted(rivals, score, "left") + np.searchsorted(rivals, score, "right")
        wins[:, index] = np.bincount(group, doubled / 2, n_groups)
    return wins


def confidence_bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each confidence; bin b holds (b / N_BINS, (b + 1) / N_BINS]."""
    bins = np.ceil(confidence * N_BINS).astype(np.int64) - 1
    return np.clip(bins, 0, N_BINS - 1)


def group_sums(
    probability: NDArray[np.float64],
    label: NDArray[np.int64],
    group: NDArray[np.int64],
    n_groups: int,
) -> GroupSums:
    """Sum up what the metrics need.

    Parameters
    ----------
    probability : float64 array of shape (n, n_classes)
        Rows sum to 1. The class with the highest one is predicted, the first of equal ones.
    label : int64 array of shape (n,)
    group : int64 array of shape (n,)
        Group of each unit, from 0 to n_groups - 1.
    n_groups : int
    """
    n_classes = probability.shape[1]
    predicted = probability.argmax(axis=1)
    confusion = np.zeros((n_groups, n_classes, n_classes))
    np.add.at(confusion, (group, label, predicted), 1.0)

    true_probability = np.take_along_axis(probability, label[:, None], axis=1)[:, 0]
    losses = -np.log(np.clip(true_probability, _EPSILON, 1 - _EPSILON))
    squares = np.square(probability - np.eye(n_classes)[label]).sum(axis=1)
    # Of two classes both are off by the same; scikit-learn counts one, as Brier (1950) did not.
    squares = squares / 2 if n_classes == 2 else squares

    confidence = probability.max(axis=1)
    calibration = np.zeros((n_groups, N_BINS))
    np.add.at(calibration, (group, confidence_bins(confidence)), (predicted == label) - confidence)

    wins = []
    for scored in scored_classes(n_classes):
        own = label == scored
        score = probability[:, scored]
        wins.append(pair_wins(score[own], group[own], score[~own], group[~own], n_groups))
    return GroupSums(
        confusion,
        np.bincount(group, losses, n_groups).astype(np.float64),
        np.bincount(group, squares, n_groups).astype(np.float64),
        calibration,
        np.stack(wins),
    )


def weighted_metrics(
    sums: GroupSums, weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Return every metric for every weighting of the groups.

    ``accuracy``
        Share of units whose class is predicted.
    ``balanced_accuracy``
        Mean recall of the classes that occur.
    ``auc``
        Area under the ROC curve of class 1; of more than two classes the plain mean of each
        against the rest. NaN where a class does not occur.
    ``f1``
        Of class 1; of more than two classes the plain mean over those that occur or are
        predicted. NaN where class 1 neither occurs nor is predicted.
    ``log_loss``
        Mean negative log probability of the true class, in nats.
    ``brier``
        Mean squared error of the probability of class 1; of more than two classes summed over
        the classes (``sklearn.metrics.brier_score_loss`` with ``scale_by_half="auto"``).
    ``ece``
        Expected calibration error: mean gap between confidence and accuracy over `N_BINS` bins of
        equal width, weighted by their units. Confidence is the probability of the predicted class
        (Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3).

    Parameters
    ----------
    sums : GroupSums
    weights : float64 array of shape (n_weightings, n_groups)
        How often each group counts; at least one a row above 0.

    Returns
    -------
    dict
        {metric: float64 array of shape (n_weightings,)}, in the order of `METRICS`.
    """
    confusion = np.tensordot(weights, sums.confusion, axes=1)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    right = np.diagonal(confusion, axis1=1, axis2=2)
    total = true.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / true
        f1 = 2 * right / (true + predicted)
        aucs = [
            ((weights @ wins) * weights).sum(axis=1) / (true[:, scored] * (total - true[:, scored]))
            for scored, wins in zip(scored_classes(true.shape[1]), sums.wins, strict=True)
        ]
    return {
        "accuracy": right.sum(axis=1) / total,
        "balanced_accuracy": _mean_where_defined(recall),
        "auc": np.mean(aucs, axis=0),
        "f1": f1[:, 1] if true.shape[1] == 2 else _mean_where_defined(f1),
        "log_loss": weights @ sums.log_loss / total,
        "brier": weights @ sums.brier / total,
        "ece": np.abs(weights @ sums.calibration).sum(axis=1) / total,
    }


def compute_metrics(probability: NDArray[np.float64], label: NDArray[np.int64]) -> dict[str, float]:
    """Return the metrics of units that all count once; see `weighted_metrics`.

    Parameters
    ----------
    probability : float64 array of shape (n, n_classes)
    label : int64 array of shape (n,)

    Returns
    -------
    dict
        {metric: value}; NaN where a metric is not defined.
    """
    sums = group_sums(probability, label, np.zeros(len(label), np.int64), 1)
    values = weighted_metrics(sums, np.ones((1, 1)))
    return {name: float(value[0]) for name, value in values.items()}


def _mean_where_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis of what is not NaN."""
    defined = ~np.isnan(values)
    mean: NDArray[np.float64] = np.where(defined, values, 0.0).sum(axis=1) / defined.sum(axis=1)
    return mean
