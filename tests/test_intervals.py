"""Intervals and p-values: against SciPy, closed forms, and what a known truth demands."""

import math

import numpy as np
import pytest
from scipy import stats

from trainer.evaluation.independent_intervals import (
    RATES,
    independent_interval,
    proportion_interval,
)
from trainer.evaluation.intervals import bootstrap_interval, bootstrap_weights
from trainer.evaluation.metrics import compute_metrics, group_sums, weighted_metrics
from trainer.evaluation.permutation import permutation_p_value, relabellings


def bounds(interval):
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def as_probability(score):
    return np.stack([1 - score, score], axis=1)


# --- Bootstrap ------------------------------------------------------------------------------------


def test_every_resample_holds_every_class_in_the_same_proportions():
    strata = np.array([0, 1, 0, 0, 1, 2])
    weights = bootstrap_weights(strata, 500, seed=0)
    assert weights.shape == (500, 6)
    for stratum, size in ((0, 3), (1, 2), (2, 1)):
        assert (weights[:, strata == stratum].sum(axis=1) == size).all()
    assert len(np.unique(weights, axis=0)) > 20


def test_resamples_are_a_function_of_the_seed():
    strata = np.zeros(9, np.int64)
    assert (bootstrap_weights(strata, 50, 3) == bootstrap_weights(strata, 50, 3)).all()
    assert (bootstrap_weights(strata, 50, 3) != bootstrap_weights(strata, 50, 4)).any()


def test_bootstrap_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(0).standard_normal(40)
    samples = bootstrap_weights(np.zeros(40, np.int64), 20_000, 0) @ values / 40
    assert samples.std() == pytest.approx(values.std() / math.sqrt(40), rel=0.02)
    assert samples.mean() == pytest.approx(values.mean(), abs=0.005)


def test_mean_of_normal_values_has_students_interval():
    values = np.random.default_rng(0).standard_normal(8) + 3
    samples = bootstrap_weights(np.zeros(8, np.int64), 200_000, 0) @ values / 8
    found = bounds(bootstrap_interval(values.mean(), samples, np.zeros(8, np.int64), "linear"))
    expected = stats.t.interval(0.95, 7, values.mean(), stats.sem(values))
    assert found == pytest.approx(expected, rel=0.005)


def test_each_class_loses_a_degree_of_freedom():
    """Difference of two means of normal values, against the pooled t-test."""
    rng = np.random.default_rng(0)
    strata = np.repeat([0, 1], 5)
    signed = rng.standard_normal(10) * np.where(strata == 1, 1, -1)
    samples = bootstrap_weights(strata, 200_000, 0) @ signed / 5
    found = bounds(bootstrap_interval(signed.sum() / 5, samples, strata, "linear"))
    values = signed * np.where(strata == 1, 1, -1)
    expected = stats.ttest_ind(values[5:], values[:5]).confidence_interval()
    assert found == pytest.approx((expected.low, expected.high), rel=0.005)


@pytest.mark.parametrize(("scale", "value"), [("logit", 0.97), ("logit", 0.02), ("log", 0.05)])
def test_intervals_stay_where_the_number_can_be(scale, value):
    samples = value + 0.5 * min(value, 1 - value) * np.tile([-1.0, 1.0], 500)
    low, high = bounds(bootstrap_interval(value, samples, np.arange(10) % 2, scale))
    assert 0 < low < value < high
    assert scale == "log" or high < 1
    # For errors that are small beside the value, the scale makes no difference.
    close = value + 1e-5 * np.tile([-1.0, 1.0], 500)
    strata = np.arange(10) % 2
    assert bounds(bootstrap_interval(value, close, strata, scale)) == pytest.approx(
        bounds(bootstrap_interval(value, close, strata, "linear")), rel=1e-4
    )


def coverage(n_per_class, effect, n_studies, interval_of):
    """Share of studies whose interval of the AUC holds the true one; animals differ."""
    truth = stats.norm.cdf(effect / math.sqrt(2 * 2))
    strata = np.repeat([0, 1], n_per_class)
    group = np.repeat(np.arange(2 * n_per_class), 10)
    hits = 0
    for study in range(n_studies):
        rng = np.random.default_rng([n_per_class, study])
        animal, noise = rng.standard_normal(len(strata)), rng.standard_normal(len(group))
        score = stats.norm.cdf((effect * strata + animal)[group] + noise)
        sums = group_sums(as_probability(score), strata[group], group, len(strata))
        value = weighted_metrics(sums, np.ones((1, len(strata))))["auc"][0]
        samples = weighted_metrics(sums, bootstrap_weights(strata, 300, study))["auc"]
        low, high = interval_of(float(value), samples, strata)
        hits += low <= truth <= high
    return hits / n_studies


@pytest.mark.parametrize(
    # Close to 1 with few animals, less than was promised: no method knows what it never saw.
    ("n_per_class", "effect", "least"),
    [(6, 1.0, 0.91), (3, 1.0, 0.91), (6, 2.5, 0.84)],
)
def test_intervals_over_few_animals_hold_the_truth_better_than_percentiles(
    n_per_class, effect, least
):
    def students(value, samples, strata):
        return bounds(bootstrap_interval(value, samples, strata, "logit"))

    def percentiles(value, samples, strata):
        return np.quantile(samples, [0.025, 0.975])

    found = coverage(n_per_class, effect, 150, students)
    assert least <= found <= 0.995
    assert coverage(n_per_class, effect, 150, percentiles) < found - 0.02


def test_one_group_of_a_class_gives_no_interval():
    interval = bootstrap_interval(0.7, np.full(100, 0.7), np.array([0, 0, 0, 1]), "logit")
    assert interval.low is None
    assert interval.high is None


def test_undefined_values_give_no_interval_and_undefined_resamples_are_left_out():
    strata = np.zeros(4, np.int64)
    assert bootstrap_interval(math.nan, np.full(9, math.nan), strata, "logit").low is None
    some = np.array([math.nan, 0.2, 0.4, math.nan])
    assert bootstrap_interval(0.3, some, strata, "logit") == bootstrap_interval(
        0.3, some[1:3], strata, "logit"
    )


# --- Independent units ----------------------------------------------------------------------------


def test_26_of_32_sessions():
    low, high = bounds(proportion_interval(26, 32))
    assert (round(low, 2), round(high, 2)) == (0.64, 0.93)


def interval_of(metric, value, confusion):
    return bounds(independent_interval(metric, value, np.array(confusion)))


def test_six_perfect_sessions_do_not_prove_perfection():
    found = {metric: interval_of(metric, 1.0, [[3, 0], [0, 3]]) for metric in RATES}
    assert found["accuracy"] == (pytest.approx(0.025 ** (1 / 6)), 1.0)
    for metric, (low, high) in found.items():
        assert 0.3 < low < 0.65, metric
        assert high == pytest.approx(1.0), metric
    # As the permutation test says: three against three may be chance.
    assert found["auc"][0] < 0.51


def test_intervals_shrink_step_by_step_towards_perfection():
    lows = [interval_of("auc", auc, [[15, 0], [0, 15]])[0] for auc in (0.95, 0.99, 0.999, 1.0)]
    assert lows == sorted(lows)
    assert np.diff(lows).max() < 0.1


@pytest.mark.parametrize(("auc", "n_own", "n_other"), [(0.8, 9, 23), (0.5, 6, 6), (0.97, 16, 16)])
def test_auc_interval_is_where_hanley_and_mcneils_error_says_it_is(auc, n_own, n_other):
    mean = (n_own + n_other) / 2
    for bound in interval_of("auc", auc, [[n_other, 0], [0, n_own]]):
        # Hanley and McNeil (1982), equation 2, with both sizes in the numerator replaced.
        q1, q2 = bound / (2 - bound), 2 * bound**2 / (1 + bound)
        variance = bound * (1 - bound) + (mean - 1) * (q1 - bound**2 + q2 - bound**2)
        error = math.sqrt(variance / (n_own * n_other))
        assert abs(bound - auc) == pytest.approx(stats.norm.ppf(0.975) * error, rel=1e-6)


def test_opposite_results_have_opposite_intervals():
    for metric in ("accuracy", "balanced_accuracy", "auc"):
        low, high = interval_of(metric, 1.0, np.array([[4, 0], [0, 7]]))
        opposite = interval_of(metric, 0.0, np.array([[0, 4], [7, 0]]))
        assert opposite == pytest.approx((1 - high, 1 - low)), metric
    assert interval_of("f1", 0.0, np.array([[0, 4], [7, 0]]))[0] == 0.0


@pytest.mark.parametrize("metric", RATES)
@pytest.mark.parametrize("effect", [0.0, 1.0, 2.5])
def test_independent_intervals_hold_the_truth(metric, effect):
    """Also near 1, where those of a bootstrap do not."""
    right = stats.norm.cdf(effect / 2)
    # Of equal classes that err alike all of them are the accuracy, but for the AUC.
    truth = stats.norm.cdf(effect / math.sqrt(2)) if metric == "auc" else right
    label = np.repeat([0, 1], 8)
    hits = 0
    for study in range(300):
        score = effect * (label - 0.5) + np.random.default_rng(study).standard_normal(16)
        probability = as_probability(stats.norm.cdf(score))
        value = compute_metrics(probability, label)[metric]
        if math.isnan(value):
            continue
        confusion = np.zeros((2, 2), np.int64)
        np.add.at(confusion, (label, (score > 0).astype(int)), 1)
        low, high = interval_of(metric, value, confusion)
        hits += low <= truth <= high
    assert hits / 300 >= 0.91


def test_three_classes():
    confusion = [[5, 0, 1], [0, 6, 0], [2, 0, 3]]
    assert interval_of("accuracy", 14 / 17, confusion) == bounds(proportion_interval(14, 17))
    low, high = interval_of("balanced_accuracy", (5 / 6 + 1 + 3 / 5) / 3, confusion)
    assert 0.5 < low < 0.7 < 0.9 < high < 1
    for metric in ("auc", "f1"):
        assert independent_interval(metric, 0.8, np.array(confusion)) is None
        assert interval_of(metric, 1.0, np.diag([5, 6, 7]))[0] > 0.5


# --- Permutations ---------------------------------------------------------------------------------


def p_value(score, label, n_permutations=10_000, block=None, unit=None, seed=0):
    label = np.asarray(label)
    block = np.zeros_like(label) if block is None else np.asarray(block)
    unit = np.arange(len(label)) if unit is None else np.asarray(unit)
    relabelling = relabellings(label, block, n_permutations, seed)
    probability = as_probability(np.asarray(score, np.float64))
    return permutation_p_value(probability, unit, label, relabelling), relabelling


def test_six_sessions_cannot_beat_one_in_twenty():
    found, relabelling = p_value([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1])
    assert relabelling.exact
    assert found == relabelling.smallest_p_value == 1 / 20


@pytest.mark.parametrize("seed", range(5))
def test_exact_p_value_is_that_of_mann_whitney(seed):
    rng = np.random.default_rng(seed)
    label = rng.permutation([0] * 5 + [1] * 6)
    score = rng.random(11) + 0.2 * label
    expected = stats.mannwhitneyu(
        score[label == 1], score[label == 0], alternative="greater", method="exact"
    )
    assert p_value(score, label)[0] == pytest.approx(expected.pvalue, rel=1e-12)


def test_exact_p_value_with_ties_is_that_of_scipys_permutation_test():
    score = np.array([0.1, 0.2, 0.2, 0.3, 0.2, 0.3, 0.3, 0.5])
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1])

    def rank_sum(x, y):
        return stats.rankdata(np.concatenate([x, y]))[: len(x)].sum()

    expected = stats.permutation_test(
        (score[label == 1], score[label == 0]), rank_sum, alternative="greater", n_resamples=10**6
    )
    assert p_value(score, label)[0] == pytest.approx(expected.pvalue, rel=1e-12)


def test_random_permutations_come_near_the_exact_value_and_are_never_zero():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 8)
    score = rng.random(16) + 0.3 * label
    exact, all_of_them = p_value(score, label, n_permutations=20_000)
    drawn, random = p_value(score, label, n_permutations=5000)
    assert all_of_them.exact
    assert not random.exact
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / 5000))
    perfect, _ = p_value(np.arange(16) / 16, label, n_permutations=1000)
    assert perfect == pytest.approx(1 / 1001, rel=1)
    assert perfect >= 1 / 1001


def test_p_values_of_meaningless_labels_are_uniform():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 4)
    found = np.array([p_value(rng.random(8), label)[0] for _ in range(400)])
    for level in (0.05, 0.2, 0.5):
        assert (found <= level).mean() <= level + 3 * math.sqrt(level * (1 - level) / 400)


def test_many_trials_of_few_animals_are_still_few_animals():
    """A perfect order of 600 sequences of six animals is no better than one of six."""
    unit = np.repeat(np.arange(6), 100)
    score = (unit >= 3) * 0.5 + np.random.default_rng(0).random(600) * 0.4
    assert p_value(score, [0, 0, 0, 1, 1, 1], unit=unit)[0] == 1 / 20


def test_labels_are_swapped_inside_blocks_only():
    label, block = np.array([0, 1, 0, 1, 1]), np.array([0, 0, 1, 1, 1])
    relabelling = relabellings(label, block, 100, 0)
    assert relabelling.n_possible == 2 * 3
    assert len(np.unique(relabelling.labels, axis=0)) == 6
    assert (relabelling.labels[:, :2].sum(axis=1) == 1).all()
    random = relabellings(np.tile(label, 6), np.repeat(np.arange(12), [2, 3] * 6), 50, 0)
    assert not random.exact
    assert (random.labels[:, :2].sum(axis=1) == 1).all()
    # Animals that differ in level: across them nothing is ordered, inside each all is.
    score = [0.1, 0.2, 0.7, 0.8, 0.9]
    assert p_value(score, label, block=block)[0] == 1 / 6


def test_three_classes_against_scipy():
    rng = np.random.default_rng(0)
    label = np.array([0, 0, 1, 1, 2, 2])
    probability = rng.dirichlet(np.ones(3), 6)
    relabelling = relabellings(label, np.zeros(6, np.int64), 1000, 0)
    assert relabelling.n_possible == len(np.unique(relabelling.labels, axis=0)) == 90

    def macro_auc(labels):
        aucs = [
            stats.mannwhitneyu(
                probability[labels == c, c], probability[labels != c, c], method="asymptotic"
            ).statistic
            for c in range(3)
        ]
        return sum(aucs)

    expected = np.mean([macro_auc(row) >= macro_auc(label) for row in relabelling.labels])
    found = permutation_p_value(probability, np.arange(6), label, relabelling)
    assert found == pytest.approx(expected, rel=1e-12)


def test_one_class_has_no_p_value():
    assert p_value([0.1, 0.5, 0.9], [1, 1, 1])[0] is None
