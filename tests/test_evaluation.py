"""The content of ``metrics/SPLIT.json``: levels, uncertainty, and what must not be claimed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest, mannwhitneyu
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from trainer.config import EvaluationConfig
from trainer.evaluation.metrics import METRICS
from trainer.evaluation.predictions import Predictions, PredictionsError
from trainer.evaluation.results import evaluate_predictions, paired_difference

CONFIG = EvaluationConfig(n_bootstrap=300, n_permutations=500)
CLASSES = ("WT", "FMR1")


def make_study(n_subjects=8, sessions=2, sequences=20, effect=1.0, seed=0, n_classes=2):
    """Sequences whose logits depend on animal, session and class."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(n_subjects), sessions * sequences)
    session = np.repeat(np.arange(n_subjects * sessions), sequences)
    label = subject % n_classes
    levels = rng.standard_normal((n_subjects, n_classes))[subject]
    levels += 0.5 * rng.standard_normal((n_subjects * sessions, n_classes))[session]
    noise = rng.standard_normal((len(label), n_classes))
    return Predictions(
        tuple(f"s{i:03d}" for i in session),
        tuple(f"m{i}" for i in subject),
        np.tile(np.arange(sequences), n_subjects * sessions)[:, None],
        label,
        effect * np.eye(n_classes)[label] + levels + noise,
    )


def evaluate(predictions, classes=CLASSES, **keywords):
    return evaluate_predictions(predictions, classes, CONFIG, 0, **keywords)


def means(values, keys):
    names = sorted(set(keys))
    return np.array(
        [values[np.array([key == name for key in keys])].mean(axis=0) for name in names]
    )


def test_the_contract():
    content = evaluate(make_study(), temperature=1.5, metadata={"git_commit": "abc"})
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["git_commit"] == "abc"
    for level, n in (("sequence", 320), ("session", 16), ("subject", 8)):
        found = content[level]
        assert found["n"] == n
        assert found["prevalence"] == {"WT": 0.5, "FMR1": 0.5}
        assert np.sum(found["confusion_matrix"]) == n
        assert 0 < found["p_value"] <= 1
        for metric in METRICS:
            entry = found[metric]
            assert entry["low"] <= entry["value"] <= entry["high"], (level, metric)
    assert content["groups"] == {"unit": "subject", "n": 8, "per_class": {"WT": 4, "FMR1": 4}}
    assert content["permutation"] == {
        "unit": "subject",
        "statistic": "auc",
        "exact": True,
        "n_arrangements": 70,
        "smallest_p_value": 1 / 70,
    }


def test_values_of_each_level():
    study = make_study()
    content = evaluate(study)
    probability = softmax(study.logits, axis=1)
    by_session = means(probability, study.session)
    session_label = np.repeat(np.arange(8) % 2, 2)
    by_subject = by_session.reshape(8, 2, 2).mean(axis=1)
    for level, p, label in (
        ("sequence", probability, study.label),
        ("session", by_session, session_label),
        ("subject", by_subject, np.arange(8) % 2),
    ):
        found = content[level]
        assert found["auc"]["value"] == pytest.approx(roc_auc_score(label, p[:, 1]))
        assert found["accuracy"]["value"] == pytest.approx(accuracy_score(label, p.argmax(axis=1)))
        assert found["log_loss"]["value"] == pytest.approx(log_loss(label, p))
        assert found["brier"]["value"] == pytest.approx(brier_score_loss(label, p[:, 1]))
    score = by_subject[:, 1]
    expected = mannwhitneyu(score[1::2], score[::2], alternative="greater", method="exact").pvalue
    assert content["subject"]["p_value"] == pytest.approx(expected)


def test_a_long_session_does_not_outvote_a_short_one():
    study = make_study(sessions=2)
    short = [row for row in range(len(study)) if row % 40 < 20 or row % 40 == 39]
    uneven = study.take(np.array(short))
    by_session = means(softmax(uneven.logits, axis=1), uneven.session)
    expected = by_session.reshape(8, 2, 2).mean(axis=1)
    found = evaluate(uneven)["subject"]
    assert found["log_loss"]["value"] == pytest.approx(log_loss(np.arange(8) % 2, expected))


def test_the_order_of_the_sequences_does_not_matter():
    study = make_study()
    shuffled = study.take(np.random.default_rng(0).permutation(len(study)))
    one, other = evaluate(study), evaluate(shuffled)
    assert other["session"]["p_value"] == one["session"]["p_value"]
    for metric in METRICS:
        assert other["subject"][metric] == pytest.approx(one["subject"][metric], rel=1e-12)
        assert other["sequence"][metric] == pytest.approx(one["sequence"][metric], rel=1e-12)


def test_same_seed_same_numbers_other_seed_other_intervals():
    study = make_study()
    assert evaluate(study) == evaluate(study)
    other = evaluate_predictions(study, CLASSES, CONFIG, 1)
    assert other["sequence"]["auc"]["value"] == evaluate(study)["sequence"]["auc"]["value"]
    assert other["sequence"]["auc"] != evaluate(study)["sequence"]["auc"]


def test_more_trials_of_the_same_animals_do_not_narrow_the_interval():
    """An interval over sequences would shrink tenfold; one over animals must not."""
    few, many = (make_study(sequences=n, effect=0.5) for n in (10, 1000))
    widths = []
    for study in (few, many):
        entry = evaluate(study)["sequence"]["auc"]
        widths.append(entry["high"] - entry["low"])
    assert widths[1] > 0.5 * widths[0]
    assert evaluate(many)["sequence"]["p_value"] >= 1 / 70


def test_six_perfect_sessions():
    study = make_study(n_subjects=6, sessions=1, effect=50.0)
    no_subject = replace(study, subject=(None,) * len(study))
    content = evaluate(no_subject)
    assert content["groups"]["unit"] == "session"
    assert "subject" not in content
    assert "no subject level: the table names no subjects" in content["notes"]
    assert any("only 3 sessions of a class" in note for note in content["notes"])
    for level in ("sequence", "session"):
        assert content[level]["auc"]["value"] == 1.0
        assert content[level]["p_value"] == 1 / 20
        assert content[level]["auc"]["low"] < 0.51
        assert content[level]["accuracy"]["low"] == pytest.approx(0.025 ** (1 / 6))
    assert content["permutation"]["smallest_p_value"] == 1 / 20


def test_a_model_that_always_says_one_class_has_no_sure_numbers():
    """Every resample of its answers is the same, but other animals might be answered otherwise."""
    study = make_study(n_subjects=11)
    label = (np.array([int(name[1:]) for name in study.subject]) >= 8).astype(np.int64)
    content = evaluate(replace(study, label=label, logits=np.tile([2.0, 0.0], (len(study), 1))))
    exact = binomtest(8, 11).proportion_ci(0.95, method="exact")
    for level in ("sequence", "session", "subject"):
        entries = content[level]
        assert entries["accuracy"]["value"] == pytest.approx(8 / 11)
        if level != "session":
            assert entries["accuracy"]["low"] == pytest.approx(exact.low)
            assert entries["accuracy"]["high"] == pytest.approx(exact.high)
        for metric in ("accuracy", "balanced_accuracy", "auc"):
            assert entries[metric]["low"] + 0.1 < entries[metric]["value"]
            assert entries[metric]["high"] - 0.1 > entries[metric]["value"]
        # None of three animals found: by Wilson's interval, the share could be 0.56.
        wilson = binomtest(0, 3).proportion_ci(0.95, method="wilson").high
        assert entries["f1"]["low"] == 0.0
        assert entries["f1"]["high"] == pytest.approx(2 * wilson / (1 + wilson))
        assert entries["log_loss"]["low"] is None


def test_sessions_of_other_lengths_do_not_make_one_answer_for_all_sure():
    """Resamples then differ in how many trials a class has, but not in what is answered."""
    study = make_study()
    uneven = study.take(np.array([row for row in range(len(study)) if row % 40 < 20 + row // 40]))
    content = evaluate(replace(uneven, logits=np.tile([0.0, 2.0], (len(uneven), 1))))
    for metric in ("accuracy", "f1"):
        animals, sequences = content["subject"][metric], content["sequence"][metric]
        assert sequences["low"] <= animals["low"] < animals["high"] <= sequences["high"], metric


def test_accuracy_of_independent_sessions_has_the_exact_interval():
    label = np.array([0] * 23 + [1] * 9)
    answers = label.copy()
    answers[[0, 5, 11, 23, 25, 30]] ^= 1
    predictions = Predictions(
        tuple(f"s{i:02d}" for i in range(32)),
        (None,) * 32,
        np.ones((32, 1), np.int64),
        label,
        np.eye(2)[answers],
    )
    entry = evaluate(predictions)["session"]["accuracy"]
    assert entry["value"] == 26 / 32
    assert (round(entry["low"], 2), round(entry["high"], 2)) == (0.64, 0.93)


def test_subjects_that_hold_both_classes():
    study = make_study(n_subjects=5, sessions=6)
    label = np.array([int(name[1:]) % 2 for name in study.session])
    both = replace(study, label=label)
    content = evaluate(both)
    assert content["groups"] == {"unit": "subject", "n": 5, "per_class": {"WT": 5, "FMR1": 5}}
    assert content["permutation"]["unit"] == "session"
    assert not content["permutation"]["exact"]
    assert "subject" not in content
    assert any("subjects hold sessions of several classes" in note for note in content["notes"])
    entry = content["session"]["auc"]
    assert entry["low"] < entry["value"] < entry["high"]


def test_one_animal_of_a_class_has_no_interval():
    content = evaluate(make_study(n_subjects=2))
    assert content["sequence"]["auc"]["value"] is not None
    assert content["sequence"]["log_loss"]["low"] is None
    assert any("only one subject of a class" in note for note in content["notes"])


def test_a_split_of_one_class():
    study = make_study()
    content = evaluate(study.take(np.flatnonzero(study.label == 1)))
    assert content["sequence"]["auc"] == {"value": None, "low": None, "high": None}
    assert content["sequence"]["p_value"] is None
    assert content["sequence"]["prevalence"] == {"WT": 0.0, "FMR1": 1.0}
    assert content["sequence"]["accuracy"]["value"] is not None
    assert any("no session of class WT" in note for note in content["notes"])
    json.dumps(content, allow_nan=False)


def test_three_classes():
    study = make_study(n_subjects=9, n_classes=3)
    content = evaluate(study, classes=("a", "b", "c"))
    expected = roc_auc_score(study.label, softmax(study.logits, axis=1), multi_class="ovr")
    assert content["sequence"]["auc"]["value"] == pytest.approx(expected)
    assert np.shape(content["subject"]["confusion_matrix"]) == (3, 3)
    assert content["permutation"]["n_arrangements"] == 500


def test_some_sessions_without_a_subject_are_groups_of_their_own():
    study = make_study()
    subject = tuple(
        None if name == "s000" else m for name, m in zip(study.session, study.subject, strict=True)
    )
    content = evaluate(replace(study, subject=subject))
    assert content["groups"]["n"] == 9
    assert "subject" not in content
    note = "no subject level: some sessions name no subject, and each of them counts as one"
    assert note in content["notes"]


@pytest.mark.parametrize(
    "changes",
    [
        {"label": np.r_[1, np.arange(320)[1:] // 40 % 2]},
        {"subject": ("other", *make_study().subject[1:])},
    ],
)
def test_a_session_of_two_kinds_is_refused(changes):
    with pytest.raises(PredictionsError, match="session 's000' has two labels or two subjects"):
        evaluate(replace(make_study(), **changes))


def test_calibrated_values_stand_beside_the_raw_ones():
    study = make_study()
    content = evaluate(study, temperature=2.0)
    expected = log_loss(study.label, softmax(study.logits / 2.0, axis=1))
    assert content["calibration"]["temperature"] == 2.0
    assert content["calibration"]["sequence"]["log_loss"]["value"] == pytest.approx(expected)
    assert set(content["calibration"]["subject"]) == {"log_loss", "brier", "ece"}
    assert content["sequence"]["log_loss"]["value"] == pytest.approx(
        log_loss(study.label, softmax(study.logits, axis=1))
    )
    raw, calibrated = (content["calibration"]["reliability"][k] for k in ("raw", "calibrated"))
    assert sum(raw["count"]) == sum(calibrated["count"]) == 320
    assert raw["accuracy"][0] is None
    assert len(raw["edges"]) == len(raw["count"]) + 1
    assert list(evaluate(study)["calibration"]["reliability"]) == ["raw"]


# --- Differences ----------------------------------------------------------------------------------


def test_nothing_differs_from_itself():
    """And nothing is known of how much it might: no resample shows it."""
    study = make_study()
    found = paired_difference(study, study, CONFIG, 0)
    for level in ("sequence", "session", "subject"):
        for metric in METRICS:
            assert found[level][metric] == {"value": 0.0, "low": None, "high": None}


def test_a_paired_difference_is_sharper_than_two_intervals():
    """Two models that share the animals' peculiarities and differ by a little everywhere."""
    study = make_study(n_subjects=16, effect=0.5)
    better = replace(study, logits=study.logits + 0.3 * np.eye(2)[study.label])
    found = paired_difference(better, study, CONFIG, 0)
    one, other = evaluate(better), evaluate(study)
    entry = found["sequence"]["auc"]
    assert entry["value"] == pytest.approx(
        one["sequence"]["auc"]["value"] - other["sequence"]["auc"]["value"]
    )
    assert entry["low"] > 0
    assert one["sequence"]["auc"]["low"] < other["sequence"]["auc"]["high"]
    opposite = paired_difference(study, better, CONFIG, 0)["sequence"]["auc"]
    assert opposite["high"] == pytest.approx(-entry["low"], rel=1e-9)


def test_no_difference_of_shares_lies_beyond_one():
    study = make_study(n_subjects=4, effect=2.0)
    found = paired_difference(study, replace(study, logits=-study.logits), CONFIG, 0)
    for level in ("sequence", "session", "subject"):
        for metric in ("accuracy", "balanced_accuracy", "auc", "f1", "ece"):
            entry = found[level][metric]
            bounds = [entry["low"], entry["high"]]
            assert bounds == [None, None] or -1 <= bounds[0] <= entry["value"] <= bounds[1] <= 1
    assert found["sequence"]["auc"]["high"] == 1.0


def test_sequences_of_one_side_only_are_left_out_and_counted():
    study = make_study()
    found = paired_difference(study, study.take(np.arange(20, 320)), CONFIG, 0)
    assert found["sequence"]["n"] == 300
    assert "20 sequences are left out, which only one of the two holds" in found["notes"]
