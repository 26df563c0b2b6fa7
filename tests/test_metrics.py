"""Values of the metrics, plain and weighted, against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from trainer.evaluation.metrics import (
    METRICS,
    N_BINS,
    compute_metrics,
    group_sums,
    pair_wins,
    weighted_metrics,
)


def make_case(n=300, n_classes=2, n_groups=7, seed=0, decimals=None):
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(n_groups, size=n))
    group[:n_groups] = np.arange(n_groups)
    label = rng.integers(n_classes, size=n)
    logits = 0.8 * np.eye(n_classes)[label] + rng.standard_normal((n, n_classes))
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if decimals is not None:
        # Coarse probabilities: many ties, and units that sit on the edge of a bin.
        first = np.round(probability[:, 1], decimals)
        probability = np.stack([1 - first, first], axis=1)
    return probability, label, group


def sklearn_metrics(probability, label, sample_weight=None):
    n_classes = probability.shape[1]
    predicted = probability.argmax(axis=1)
    binary = n_classes == 2
    keywords = {"sample_weight": sample_weight}
    averages = {"average": "binary" if binary else "macro"}
    return {
        "accuracy": reference.accuracy_score(label, predicted, **keywords),
        "balanced_accuracy": reference.balanced_accuracy_score(label, predicted, **keywords),
        "auc": reference.roc_auc_score(
            label, probability[:, 1] if binary else probability, multi_class="ovr", **keywords
        ),
        "f1": reference.f1_score(label, predicted, zero_division=np.nan, **averages, **keywords),
        "log_loss": reference.log_loss(label, probability, labels=np.arange(n_classes), **keywords),
        "brier": reference.brier_score_loss(
            label, probability, labels=np.arange(n_classes), **keywords
        ),
    }


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_values_are_scikit_learns(n_classes, seed):
    probability, label, _ = make_case(n_classes=n_classes, seed=seed)
    values = compute_metrics(probability, label)
    assert tuple(values) == METRICS
    for name, expected in sklearn_metrics(probability, label).items():
        assert values[name] == pytest.approx(expected, rel=1e-12), name


@pytest.mark.parametrize("n_classes", [2, 4])
def test_weighted_groups_are_scikit_learns_sample_weights(n_classes):
    probability, label, group = make_case(n_classes=n_classes)
    weights = np.random.default_rng(1).integers(0, 4, size=(20, 7)).astype(np.float64)
    weights[:, 0] = 1
    found = weighted_metrics(group_sums(probability, label, group, 7), weights)
    for row, weight in enumerate(weights):
        for name, expected in sklearn_metrics(probability, label, weight[group]).items():
            assert found[name][row] == pytest.approx(expected, rel=1e-12), name


def test_a_weighted_group_counts_as_often_as_it_is_repeated():
    """Also the calibration error, which scikit-learn has not."""
    probability, label, group = make_case(decimals=1)
    weights = np.array([2.0, 0.0, 1.0, 3.0, 1.0, 0.0, 5.0])
    found = weighted_metrics(group_sums(probability, label, group, 7), weights[None])
    rows = np.repeat(np.arange(len(label)), weights[group].astype(int))
    repeated = compute_metrics(probability[rows], label[rows])
    assert {name: values[0] for name, values in found.items()} == pytest.approx(repeated, rel=1e-12)


def test_auc_with_ties():
    probability, label, _ = make_case(decimals=1)
    assert len(np.unique(probability[:, 1])) < 12
    expected = reference.roc_auc_score(label, probability[:, 1])
    assert compute_metrics(probability, label)["auc"] == pytest.approx(expected, rel=1e-14)


def test_pair_wins_against_all_pairs():
    rng = np.random.default_rng(0)
    score, other = rng.integers(6, size=40) / 2, rng.integers(6, size=30) / 2
    group, other_group = rng.integers(4, size=40), rng.integers(3, size=30)
    wins = np.zeros((4, 4))
    for a, i in zip(score, group, strict=True):
        for b, j in zip(other, other_group, strict=True):
            wins[i, j] += (a > b) + (a == b) / 2
    assert pair_wins(score, group, other, other_group, 4).tolist() == wins.tolist()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_calibration_error_bin_by_bin(n_classes):
    probability, label, _ = make_case(n=2000, n_classes=n_classes)
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == label
    expected = 0.0
    for b in range(N_BINS):
        inside = (confidence > b / N_BINS) & (confidence <= (b + 1) / N_BINS)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    assert compute_metrics(probability, label)["ece"] == pytest.approx(expected, rel=1e-12)


def test_one_class_has_no_auc():
    probability = np.array([[0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    values = compute_metrics(probability, np.ones(3, np.int64))
    assert math.isnan(values["auc"])
    assert values["accuracy"] == values["balanced_accuracy"] == pytest.approx(2 / 3)
    assert values["f1"] == pytest.approx(0.8)
    other = compute_metrics(np.array([[0.9, 0.1]]), np.zeros(1, np.int64))
    assert math.isnan(other["f1"])
    assert math.isnan(other["auc"])


def test_a_missing_class_of_three_has_no_auc():
    probability, label, _ = make_case(n_classes=3)
    kept = label != 2
    values = compute_metrics(probability[kept], label[kept])
    assert math.isnan(values["auc"])
    expected = reference.f1_score(label[kept], probability[kept].argmax(axis=1), average="macro")
    assert values["f1"] == pytest.approx(expected)


def test_certain_and_wrong_is_finite():
    probability, label = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 0])
    values = compute_metrics(probability, label)
    assert values["log_loss"] == pytest.approx(reference.log_loss(label, probability))
    assert values["brier"] == 1.0
    assert values["ece"] == 1.0
