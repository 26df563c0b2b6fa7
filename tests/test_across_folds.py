"""Folds share training animals: what is claimed of them must survive wider intervals."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from trainer.baselines.folder import Baselines
from trainer.config import Config, EvaluationConfig, SequenceConfig
from trainer.evaluation.across_folds import (
    difference_across_folds,
    half_width_factor,
    metrics_across_folds,
)
from trainer.evaluation.metrics import METRICS
from trainer.evaluation.predictions import Predictions, average_over_windows
from trainer.evaluation.results import evaluate_predictions, paired_difference
from trainer.pooling.baselines import note_left_out, pool_baselines
from trainer.report.analysis import MoreTrials, analyse, compare_with_averages
from trainer.report.contents import RunContents
from trainer.report.finding import Score, Tone
from trainer.report.verdict import judge

EVALUATION = EvaluationConfig(n_bootstrap=200, n_permutations=200)
CLASSES = ("FMR1", "WT")
N_FOLDS = 5
#: Of five folds: sqrt(1 + 5 / 4).
FACTOR = 1.5
FOLD = {"run": "run", "data": "data", "unfit_baselines": {}, "baselines": {"pca": {}}}


@pytest.mark.parametrize("n_folds", [2, 3, 5, 10])
def test_the_factor_is_that_of_the_corrected_variance(n_folds):
    """1/K + n_test/n_train in place of 1/K, for 60 animals, n_test of which each fold tests."""
    n_test = Fraction(60, n_folds)
    ratio = (Fraction(1, n_folds) + n_test / (60 - n_test)) / Fraction(1, n_folds)
    assert half_width_factor(n_folds) == pytest.approx(math.sqrt(ratio))
    assert half_width_factor(N_FOLDS) == FACTOR


def entries(**known: tuple[float, float, float]) -> dict[str, dict[str, float | None]]:
    nothing = (0.5, None, None)
    return {
        name: dict(zip(("value", "low", "high"), known.get(name, nothing), strict=True))
        for name in METRICS
    }


def bounds(level: dict[str, Any], metric: str) -> tuple[Any, Any]:
    return level[metric]["low"], level[metric]["high"]


def test_intervals_widen_about_their_estimate_inside_the_range_of_the_metric():
    level = entries(auc=(0.8, 0.6, 0.9), accuracy=(0.9, 0.7, 0.98), log_loss=(0.2, 0.05, 1.2))
    content: dict[str, Any] = {
        "sequence": {"n": 60, "p_value": 0.01, **level},
        "session": {"n": 60, "p_value": 0.01, **level},
        "permutation": {
            "unit": "subject",
            "statistic": "auc",
            "exact": False,
            "n_arrangements": 200,
            "smallest_p_value": 1 / 201,
        },
        "calibration": {
            "temperature": None,
            "reliability": {
                "raw": {
                    "edges": [0.0, 0.5, 1.0],
                    "accuracy": [0.5, None],
                    "low": [0.4, None],
                    "high": [0.9, None],
                }
            },
        },
        "notes": ["only 2 subjects: beware"],
    }
    found = metrics_across_folds(content, N_FOLDS)
    for name in ("sequence", "session"):
        assert bounds(found[name], "auc") == pytest.approx((0.5, 0.95))
        assert bounds(found[name], "accuracy") == pytest.approx((0.6, 1.0))
        assert bounds(found[name], "log_loss") == pytest.approx((0.0, 1.7))
        assert bounds(found[name], "f1") == (None, None)
        assert found[name]["auc"]["value"] == 0.8
        assert found[name]["p_value"] is None
    assert found["permutation"] == {"unit": "subject", "smallest_p_value": 1 / 201}
    curve = found["calibration"]["reliability"]["raw"]
    assert curve["low"] == [pytest.approx(0.35), None]
    assert curve["high"] == [1.0, None]
    assert (found["across_folds"]["n_folds"], found["across_folds"]["half_width_factor"]) == (
        5,
        1.5,
    )
    assert "1.50 times as wide" in found["across_folds"]["note"]
    # Nothing is said twice, and what was given is as it was.
    assert found["notes"] == content["notes"]
    assert content["sequence"]["auc"]["low"] == 0.6
    assert content["sequence"]["p_value"] == 0.01


def test_differences_widen_inside_twice_the_range():
    content = {
        "subject": {"n": 20, **entries(auc=(0.5, -0.2, 0.9), log_loss=(-1.0, -2.0, 0.5))},
        "notes": [],
    }
    level = difference_across_folds(content, N_FOLDS)["subject"]
    assert bounds(level, "auc") == pytest.approx((-0.55, 1.0))
    assert bounds(level, "log_loss") == pytest.approx((-2.5, 1.25))


# ---- what is claimed -----------------------------------------------------------------------------


def predict(scores: np.ndarray, label: np.ndarray, n_trials: int = 1) -> Predictions:
    """One sequence an animal."""
    names = tuple(f"m{index:02d}" for index in range(len(label)))
    trials = np.tile(np.arange(n_trials), (len(label), 1))
    return Predictions(names, names, trials, label, np.stack([0 * scores, scores], axis=1))


LABEL = np.arange(30) % 2


def two_models(lead: float) -> tuple[Predictions, Predictions]:
    """A model, and one that is worse by `lead` on the same animals."""
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((2, len(LABEL)))
    signs = 2 * LABEL - 1
    return predict(lead * signs + noise[0], LABEL), predict(0.1 * signs + noise[1], LABEL)


def pooled_run(predictions: Predictions, name: str = "pooled") -> RunContents:
    """What `pool` leaves of five folds, as the report reads it."""
    config = Config(sequence=SequenceConfig(predictions.trial_nums.shape[1]), evaluation=EVALUATION)
    metadata = {"split": "test", "dataset_fingerprint": "f" * 64, **key(predictions)}
    metrics = metrics_across_folds(
        evaluate_predictions(predictions, CLASSES, EVALUATION, 0, metadata=metadata), N_FOLDS
    )
    return RunContents(
        url=name,
        name=name,
        config=asdict(config),
        command="",
        log=(),
        metrics={"test": {**metrics, "folds": [FOLD] * N_FOLDS}},
        predictions={"test": predictions},
        attention={},
        classes=CLASSES,
        best_step=None,
        dataset=None,
        dataset_error="",
        folds=(FOLD,) * N_FOLDS,
    )


def key(predictions: Predictions) -> dict[str, Any]:
    n_trials = predictions.trial_nums.shape[1]
    return {"n_trials": n_trials, "stride": n_trials, "max_gap": 0}


def baselines_of(url: str, **predictions: Predictions) -> Baselines:
    contents = {
        name: evaluate_predictions(
            held,
            CLASSES,
            EVALUATION,
            0,
            metadata={
                "title": name.upper(),
                "split": "test",
                "dataset_fingerprint": "f" * 64,
                **key(held),
            },
        )
        for name, held in predictions.items()
    }
    return Baselines(url, contents, predictions, None)


def widened(entry: dict[str, float]) -> tuple[float, float]:
    value, low, high = entry["value"], entry["low"], entry["high"]
    return value + FACTOR * (low - value), value + FACTOR * (high - value)


@pytest.mark.parametrize(
    ("lead", "tone"), [(1.1, Tone.WARNING), (2.0, Tone.GOOD)], ids=["narrow", "wide"]
)
def test_a_win_counts_only_if_it_survives_the_wider_interval(lead, tone):
    model, rival = two_models(lead)
    baselines = baselines_of("b", pca=rival)
    plain = paired_difference(model, rival, EVALUATION, 0)["subject"]["auc"]
    # As on one test set, both leads would be a win.
    metrics = evaluate_predictions(model, CLASSES, EVALUATION, 0, metadata={"split": "test"})
    score = Score(plain["value"], plain["low"], plain["high"])
    assert judge(metrics, baselines.contents, {"pca": score})[0].tone is Tone.GOOD

    analysis = analyse(pooled_run(model), [baselines])

    low, high = widened(plain)
    entry = analysis.differences["pca"]["subject"]["auc"]
    assert entry == {
        "value": plain["value"],
        "low": pytest.approx(low),
        "high": pytest.approx(min(high, 1.0)),
    }
    assert analysis.findings[0].tone is tone
    assert (low > 0) == (tone is Tone.GOOD)


def test_an_auc_whose_wider_interval_holds_a_half_is_not_better_than_chance():
    run = pooled_run(two_models(0.5)[0])
    plain = evaluate_predictions(run.predictions["test"], CLASSES, EVALUATION, 0)
    assert plain["subject"]["auc"]["low"] > 0.5
    assert plain["subject"]["p_value"] < 0.05
    low, _ = widened(plain["subject"]["auc"])
    assert low < 0.5
    found = {f.title: f.text for f in analyse(run, []).findings}
    text = found["The ViT is not shown to be better than chance"]
    assert text.endswith("its interval holds 0.5.")


def test_pooled_runs_are_compared_with_pooled_averages_by_the_wider_interval():
    rng = np.random.default_rng(5)
    names = [f"m{index:02d}" for index in range(len(LABEL)) for _ in range(2)]
    label = np.repeat(LABEL, 2)
    single = predict(0.3 * (2 * label - 1) + rng.standard_normal(len(label)), label)
    single = Predictions(
        tuple(names), tuple(names), np.arange(len(label))[:, None] % 2, label, single.logits
    )
    longer = predict(0.9 * (2 * LABEL - 1) + rng.standard_normal(len(LABEL)), LABEL, n_trials=2)

    (found,) = compare_with_averages([pooled_run(single, "e1"), pooled_run(longer, "e2")])

    assert isinstance(found, MoreTrials)
    averages = average_over_windows(single, longer)
    plain = paired_difference(longer, averages, EVALUATION, 0)["subject"]["auc"]
    assert bounds(found.difference["subject"], "auc") == pytest.approx(widened(plain))
    alone = evaluate_predictions(averages, CLASSES, EVALUATION, 0)["subject"]["auc"]
    assert bounds(found.averaged["subject"], "auc") == pytest.approx(widened(alone))
    assert found.averaged["subject"]["p_value"] is None


def test_folds_that_allow_no_verdict_are_not_called_a_split():
    run = pooled_run(predict(np.zeros(6), np.zeros(6, np.int64)))
    assert analyse(run, []).findings[0].title == (
        "There can be no verdict on the test splits of 5 folds"
    )


# ---- baselines that are not of every fold --------------------------------------------------------


def test_a_baseline_that_a_fold_lacks_is_left_out_and_named():
    model, rival = two_models(1.0)
    halves = [np.arange(15), np.arange(15, 30)]
    folds = [
        baselines_of("run-1", pca=rival.take(halves[0]), band=model.take(halves[0])),
        baselines_of("run-2", pca=rival.take(halves[1])),
    ]
    pooled = pool_baselines(folds, CLASSES, EVALUATION, 0, {})
    assert pooled is not None
    assert list(pooled.contents) == ["pca"]
    plain = evaluate_predictions(pooled.predictions["pca"], CLASSES, EVALUATION, 0)
    low = plain["subject"]["auc"]["value"] - math.sqrt(3) * (
        plain["subject"]["auc"]["value"] - plain["subject"]["auc"]["low"]
    )
    assert pooled.contents["pca"]["subject"]["auc"]["low"] == pytest.approx(low)
    assert note_left_out(folds) == [
        "baselines that some folds lack are left out: BAND (not in run-2)"
    ]
    # Whichever fold has it.
    assert note_left_out(folds[::-1]) == note_left_out(folds)
    assert note_left_out(folds[1:]) == []


def test_without_a_baseline_of_every_fold_there_are_none():
    model, rival = two_models(1.0)
    folds = [
        baselines_of("run-1", pca=rival.take(np.arange(15))),
        baselines_of("run-2", band=model.take(np.arange(15, 30))),
    ]
    assert pool_baselines(folds, CLASSES, EVALUATION, 0, {}) is None
    (note,) = note_left_out(folds)
    assert "PCA (not in run-2); BAND (not in run-1)" in note
    # Pooling again would not help.
    lacking = tuple({**FOLD, "baselines": {name: {}}} for name in ("pca", "band"))
    (missing,) = analyse(replace(pooled_run(model), folds=lacking), []).missing
    assert (missing.what, missing.command) == (
        "No baseline is of every fold: make the same ones for each.",
        "",
    )
