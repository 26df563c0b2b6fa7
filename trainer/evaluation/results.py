"""From predictions to the numbers of ``metrics/SPLIT.json``, each with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config import EvaluationConfig
from trainer.evaluation.calibration import ReliabilityCurve, reliability_curve
from trainer.evaluation.independent_intervals import (
    RATES,
    group_confusion,
    independent_interval,
)
from trainer.evaluation.intervals import (
    FEW_GROUPS,
    Interval,
    Scale,
    all_alike,
    bootstrap_interval,
    bootstrap_weights,
)
from trainer.evaluation.levels import Design, Level, score_levels, study_design
from trainer.evaluation.metrics import METRICS, GroupSums, group_sums, weighted_metrics
from trainer.evaluation.permutation import Relabelling, permutation_p_value, relabellings
from trainer.evaluation.predictions import Predictions, align
from trainer.plurals import plural

#: Metrics that a temperature is for; those of sequences that are left out do not depend on it.
CALIBRATED = ("log_loss", "brier", "ece")
#: Metrics without an upper bound, or with one that depends on the classes.
ABOVE_ZERO = ("log_loss", "brier")


def evaluate_predictions(
    predictions: Predictions,
    classes: Sequence[str],
    config: EvaluationConfig,
    seed: int,
    temperature: float | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return every metric of a split, at every level, as plain JSON without NaN.

    Where the units of a level are independent (subjects, or sessions where each is a group of its
    own), rates have the intervals of `independent_interval`; everything else has those of a cluster
    bootstrap over groups (`bootstrap_interval`). P-values are one-sided and of labels permuted over
    groups (`permutation_p_value`), at every level.

    Parameters
    ----------
    predictions : Predictions
        Of all sequences of the split.
    classes : sequence of str
        Class names in label order.
    config : EvaluationConfig
    seed : int
        Of the bootstrap and of random permutations.
    temperature : float, optional
        Fitted on val; adds ``calibration``.
    metadata : mapping, optional
        JSON values that go in front, such as the dataset's fingerprint and the git commit.

    Returns
    -------
    dict
        ``sequence``, ``session`` and ``subject``: each metric of `METRICS` as ``value``, ``low``
        and ``high`` (null where not defined), beside ``n``, ``prevalence`` (share of each class),
        ``confusion_matrix`` (rows are true classes) and ``p_value``. ``subject`` is absent where
        subjects are not named or hold several classes. ``groups`` says what was resampled,
        ``permutation`` what was relabelled, ``calibration`` what the temperature changes, and
        ``notes`` what a reader must know.
    """
    design = study_design(predictions)
    weights = bootstrap_weights(design.strata, config.n_bootstrap, seed)
    _, label, block = design.exchangeable
    relabelling = relabellings(label, block, config.n_permutations, seed)
    levels, missing = score_levels(predictions, design)
    content: dict[str, Any] = dict(metadata or {})
    content["classes"] = list(classes)
    for name, level in levels.items():
        content[name] = _level_content(level, classes, design, weights, relabelling)
    class_sizes = design.class_sizes(len(classes)).tolist()
    content["groups"] = {
        "unit": design.unit,
        "n": len(design.groups),
        "per_class": dict(zip(classes, class_sizes, strict=True)),
    }
    content["permutation"] = {
        "unit": "session" if design.mixed else design.unit,
        "statistic": "auc",
        "exact": relabelling.exact,
        "n_arrangements": len(relabelling.labels),
        "smallest_p_value": relabelling.smallest_p_value,
    }
    content["calibration"] = _calibration(
        predictions, levels["sequence"], design, weights, temperature
    )
    content["notes"] = [*_notes(design, classes), *([missing] if missing else [])]
    return content


def paired_difference(
    first: Predictions, second: Predictions, config: EvaluationConfig, seed: int
) -> dict[str, Any]:
    """Return the metrics of `first` minus those of `second` on the sequences that both hold.

    Both are weighed alike in every resample, so that what they share (hard animals, few of them)
    cancels and the interval is that of the difference.

    Parameters
    ----------
    first, second : Predictions
        Matched by session and trials; see `trainer.evaluation.predictions.align`.
    config : EvaluationConfig
    seed : int

    Returns
    -------
    dict
        {level: {metric: {"value", "low", "high"}}}, as `evaluate_predictions`, with ``n`` in each
        level, and ``notes``.

    Raises
    ------
    PredictionsError
        If the two share no sequence or disagree about labels, subjects or classes.
    """
    one, other = align(first, second)
    design = study_design(one)
    weights = bootstrap_weights(design.strata, config.n_bootstrap, seed)
    levels, missing = score_levels(one, design)
    other_levels, _ = score_levels(other, design)
    content: dict[str, Any] = {}
    for name, level in levels.items():
        values = _values(_sums(level, design), weights)
        other_values = _values(_sums(other_levels[name], design), weights)
        content[name] = {"n": len(level.label)}
        for metric in METRICS:
            value = values[metric][0] - other_values[metric][0]
            samples = values[metric][1] - other_values[metric][1]
            interval = bootstrap_interval(value, samples, design.strata, "linear")
            if metric not in ABOVE_ZERO:
                interval = interval.within(-1.0, 1.0)
            content[name][metric] = _entry(value, interval)
    n_left = len(first) + len(second) - 2 * len(one)
    lone = plural(n_left, "sequence", "is", "are")
    left = [f"{lone} left out, which only one of the two holds"] if n_left else []
    content["notes"] = [*_few_groups(design), *left, *([missing] if missing else [])]
    return content


def _level_content(
    level: Level,
    classes: Sequence[str],
    design: Design,
    weights: NDArray[np.float64],
    relabelling: Relabelling,
) -> dict[str, Any]:
    n = len(level.label)
    counts = np.bincount(level.label, minlength=len(classes))
    sums = _sums(level, design)
    confusion = sums.confusion.sum(axis=0).astype(np.int64)
    content: dict[str, Any] = {
        "n": n,
        "prevalence": {name: int(c) / n for name, c in zip(classes, counts, strict=True)},
    }
    values = _values(sums, weights)
    # Sizes of groups alone then move how classes are weighed, as in accuracy and F1.
    same_answers = all_alike(values["balanced_accuracy"][1])
    for metric, (value, samples) in values.items():
        interval = None
        if metric in RATES and not math.isnan(value):
            if level.independent:
                interval = independent_interval(metric, value, confusion)
            elif all_alike(samples) or (same_answers and metric in ("accuracy", "f1")):
                # What resamples cannot see: each group counts as one observation.
                found = independent_interval(metric, value, group_confusion(sums.confusion))
                interval = found and found.including(value)
        if interval is None:
            interval = bootstrap_interval(value, samples, design.strata, _scale(metric))
        content[metric] = _entry(value, interval)
    content["confusion_matrix"] = confusion.tolist()
    of_session, label, _ = design.exchangeable
    content["p_value"] = permutation_p_value(
        level.probability, of_session[level.session], label, relabelling
    )
    return content


def _calibration(
    predictions: Predictions,
    raw: Level,
    design: Design,
    weights: NDArray[np.float64],
    temperature: float | None,
) -> dict[str, Any]:
    content: dict[str, Any] = {"temperature": temperature}
    content["reliability"] = {"raw": _curve_content(_curve(raw, design, weights))}
    if temperature is None:
        return content
    levels, _ = score_levels(predictions, design, temperature)
    content["reliability"]["calibrated"] = _curve_content(
        _curve(levels["sequence"], design, weights)
    )
    for name, level in levels.items():
        values = _values(_sums(level, design), weights)
        content[name] = {
            metric: _entry(value, bootstrap_interval(value, samples, design.strata, _scale(metric)))
            for metric, (value, samples) in values.items()
            if metric in CALIBRATED
        }
    return content


def _sums(level: Level, design: Design) -> GroupSums:
    return group_sums(level.probability, level.label, level.group, len(design.groups))


def _values(
    sums: GroupSums, weights: NDArray[np.float64]
) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """Return {metric: (value, resampled values)}."""
    value = weighted_metrics(sums, np.ones((1, weights.shape[1])))
    samples = weighted_metrics(sums, weights)
    return {metric: (float(value[metric][0]), samples[metric]) for metric in METRICS}


def _curve(level: Level, design: Design, weights: NDArray[np.float64]) -> ReliabilityCurve:
    return reliability_curve(level.probability, level.label, level.group, weights)


def _curve_content(curve: ReliabilityCurve) -> dict[str, Any]:
    return {
        name: [_number(value) for value in values.tolist()] for name, values in vars(curve).items()
    }


def _notes(design: Design, classes: Sequence[str]) -> Iterator[str]:
    present = np.unique(design.session_label)
    absent = [name for index, name in enumerate(classes) if index not in present]
    if absent:
        yield f"no session of class {', '.join(absent)}: AUC and p-value are not defined"
    if design.mixed:
        yield (
            "subjects hold sessions of several classes: resamples are not stratified by class, and "
            "a p-value permutes labels between the sessions of a subject"
        )
    yield from _few_groups(design)


def _few_groups(design: Design) -> Iterator[str]:
    fewest = int(np.unique(design.strata, return_counts=True)[1].min())
    of_class = "" if design.mixed else " of a class"
    if fewest < 2:
        yield (
            f"only one {design.unit}{of_class}: how much {design.unit}s differ is unknown, so "
            "there are no bootstrap intervals"
        )
    elif fewest < FEW_GROUPS:
        yield (
            f"only {fewest} {design.unit}s{of_class}: take the intervals for the least that the "
            "numbers may be off"
        )


def _scale(metric: str) -> Scale:
    return "log" if metric in ABOVE_ZERO else "logit"


def _entry(value: float, interval: Interval) -> dict[str, float | None]:
    return {"value": _number(value), "low": interval.low, "high": interval.high}


def _number(value: float) -> float | None:
    """Return a number that JSON has, or None."""
    return None if math.isnan(value) else value
