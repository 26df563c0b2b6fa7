"""What numbers over animals are worth in a cross-validation, whose models share training animals.

An animal that one model is tested on is among those that the others learned from, so the errors of
the folds are not independent and an interval over animals is too narrow. No unbiased estimate of
that variance exists (Bengio and Grandvalet 2004); `half_width_factor` is the usual, conservative
correction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluation.levels import LEVELS
from trainer.evaluation.metrics import METRICS
from trainer.evaluation.results import ABOVE_ZERO

Entry = Mapping[str, float | None]


def half_width_factor(n_folds: int) -> float:
    """Return by how much the folds' dependence widens an interval.

    Nadeau and Bengio (2003, Inference for the Generalization Error, Machine Learning 52) multiply
    the variance over K test sets by 1 + K * n_test / n_train; in K folds n_test / n_train is
    1 / (K - 1), with val counted as train, so half-widths are multiplied by sqrt(1 + K / (K - 1)).

    Parameters
    ----------
    n_folds : int
        At least 2.
    """
    return math.sqrt(1 + n_folds / (n_folds - 1))


def metrics_across_folds(content: Mapping[str, Any], n_folds: int) -> dict[str, Any]:
    """Return metrics of pooled folds with wider intervals and without p-values.

    Parameters
    ----------
    content : mapping
        `trainer.evaluation.results.evaluate_predictions` of all folds, without a temperature.
    n_folds : int

    Returns
    -------
    dict
        The same, but each half-width is multiplied by `half_width_factor` and the bounds are
        clipped to the metric's range; ``p_value`` is null, because labels would have to be permuted
        before the training; ``permutation`` keeps the ``unit`` and the ``smallest_p_value`` that
        no test on so many could get below. ``across_folds`` says so.
    """
    factor = half_width_factor(n_folds)
    permutation, calibration = content["permutation"], content["calibration"]
    levels = {
        level: {**_widened(content[level], factor, 0.0), "p_value": None}
        for level in LEVELS
        if level in content
    }
    curves = {
        name: _widened_curve(curve, factor) for name, curve in calibration["reliability"].items()
    }
    return {
        **content,
        **levels,
        "permutation": {name: permutation[name] for name in ("unit", "smallest_p_value")},
        "calibration": {**calibration, "reliability": curves},
        "across_folds": {
            "n_folds": n_folds,
            "half_width_factor": factor,
            "note": (
                f"intervals are {factor:.2f} times as wide as independent {permutation['unit']}s "
                "would make them, since the folds' models share training animals (Nadeau and "
                "Bengio 2003), and there is no p-value, since labels would have to be permuted "
                "before the training"
            ),
        },
    }


def difference_across_folds(content: Mapping[str, Any], n_folds: int) -> dict[str, Any]:
    """Return differences of pooled folds with intervals as wide as `metrics_across_folds` says.

    Parameters
    ----------
    content : mapping
        `trainer.evaluation.results.paired_difference` of all folds.
    n_folds : int
    """
    factor = half_width_factor(n_folds)
    levels = {level: _widened(content[level], factor, -1.0) for level in LEVELS if level in content}
    return {**content, **levels}


def _widened(content: Mapping[str, Any], factor: float, least: float) -> dict[str, Any]:
    """Return one level; `least` is that of a share, 0, or of a difference of two, -1."""
    found = dict(content)
    for metric in METRICS:
        bounds = (least, 1.0)
        if metric in ABOVE_ZERO:
            bounds = (0.0 if least == 0 else -math.inf, math.inf)
        found[metric] = _widened_entry(content[metric], factor, *bounds)
    return found


def _widened_entry(
    entry: Entry, factor: float, least: float, most: float
) -> dict[str, float | None]:
    value, low, high = entry["value"], entry["low"], entry["high"]
    if value is None or low is None or high is None:
        return dict(entry)
    return {
        "value": value,
        "low": max(least, value - factor * (value - low)),
        "high": min(most, value + factor * (high - value)),
    }


def _widened_curve(
    curve: Mapping[str, Sequence[float | None]], factor: float
) -> dict[str, Sequence[float | None]]:
    bins = [
        _widened_entry({"value": value, "low": low, "high": high}, factor, 0.0, 1.0)
        for value, low, high in zip(curve["accuracy"], curve["low"], curve["high"], strict=True)
    ]
    return {**curve, "low": [held["low"] for held in bins], "high": [held["high"] for held in bins]}
