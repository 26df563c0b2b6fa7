"""Temperature and reliability: against known temperatures, SciPy and scikit-learn."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from trainer.evaluation.calibration import (
    TEMPERATURES,
    fit_temperature,
    meaning_of_temperature,
    reliability_curve,
)
from trainer.evaluation.intervals import bootstrap_weights
from trainer.evaluation.metrics import N_BINS, compute_metrics
from trainer.evaluation.predictions import probabilities


def overconfident(n=4000, factor=3.0, n_classes=2, seed=0):
    """Logits that are `factor` times those the labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, n_classes))
    uniform = rng.random((n, 1))
    label = (uniform > probabilities(logits).cumsum(axis=1)[:, :-1]).sum(axis=1)
    return logits * factor, label


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_temperature_undoes_overconfidence(factor, n_classes):
    logits, label = overconfident(20_000, factor, n_classes)
    assert fit_temperature(logits, label) == pytest.approx(factor, rel=0.05)


def test_one_class_has_no_temperature():
    """Naming it ever more surely would fit best."""
    logits, label = overconfident()
    one = label == 0
    assert fit_temperature(logits[one], label[one]) is None


def test_no_other_temperature_is_better():
    logits, label = overconfident(300)

    def loss(temperature):
        return log_loss(label, probabilities(logits, float(temperature[0])))

    expected = minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-7}).x[0]
    assert fit_temperature(logits, label) == pytest.approx(expected, rel=1e-4)


def test_calibration_lowers_log_loss_and_error_and_changes_no_decision():
    logits, label = overconfident()
    temperature = fit_temperature(*overconfident(seed=1))
    raw = compute_metrics(probabilities(logits), label)
    calibrated = compute_metrics(probabilities(logits, temperature), label)
    assert calibrated["log_loss"] < raw["log_loss"]
    assert calibrated["ece"] < raw["ece"] / 3
    for name in ("accuracy", "auc", "f1"):
        assert calibrated[name] == raw[name]


def test_perfect_logits_are_not_sharpened_without_end():
    logits, label = np.array([[-1.0, 1.0], [1.0, -1.0]] * 5), np.array([1, 0] * 5)
    low, high = TEMPERATURES
    sharpest = fit_temperature(logits, label)
    assert sharpest is not None
    assert low <= sharpest < 2 * low
    assert fit_temperature(logits, 1 - label) == pytest.approx(high, rel=1e-3)


def test_a_model_that_is_wrong_on_val_is_not_called_too_sure():
    logits, label = overconfident()
    cases = {1.0: "too sure of itself", 0.1: "not sure enough", -1.0: "no better than an equal"}
    for factor, said in cases.items():
        temperature = fit_temperature(factor * logits, label)
        assert temperature is not None
        assert said in meaning_of_temperature(temperature)


def test_reliability_against_scikit_learn():
    logits, label = overconfident()
    probability = probabilities(logits)
    group = np.arange(len(label)) % 8
    weights = bootstrap_weights(np.zeros(8, np.int64), 200, 0)
    curve = reliability_curve(probability, label, group, weights)
    right = probability.argmax(axis=1) == label
    accuracy, confidence = calibration_curve(right, probability.max(axis=1), n_bins=N_BINS)
    used = curve.count > 0
    np.testing.assert_allclose(curve.accuracy[used], accuracy, rtol=1e-12)
    np.testing.assert_allclose(curve.confidence[used], confidence, rtol=1e-12)
    assert curve.count.sum() == len(label)
    gaps = np.abs(curve.accuracy - curve.confidence)[used] * curve.count[used] / len(label)
    assert gaps.sum() == pytest.approx(compute_metrics(probability, label)["ece"])
    assert (curve.low[used] <= curve.accuracy[used]).all()
    assert (curve.accuracy[used] <= curve.high[used]).all()
    # Two classes: the predicted one never has less than one half.
    assert np.isnan(curve.accuracy[: N_BINS // 2]).all()
    assert np.isnan(curve.low[: N_BINS // 2]).all()


def test_one_answer_for_all_has_no_sure_reliability():
    """Each resample by class holds as many right answers, but eight animals are only eight."""
    label = np.repeat([0, 1], 40)
    group = np.repeat(np.arange(8), 10)
    weights = bootstrap_weights(np.repeat([0, 1], 4), 200, 0)
    curve = reliability_curve(np.tile([0.4, 0.6], (80, 1)), label, group, weights)
    exact = binomtest(4, 8).proportion_ci(0.95, method="exact")
    used = curve.count > 0
    np.testing.assert_allclose(curve.low[used], exact.low)
    np.testing.assert_allclose(curve.high[used], exact.high)
