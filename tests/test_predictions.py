"""Predictions: the Parquet file, what is refused, and averages over windows."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

from trainer.data.sequences import Sequences
from trainer.data.trials import Trials
from trainer.evaluation.predictions import (
    Predictions,
    PredictionsError,
    align,
    average_over_windows,
    predictions_of,
    probabilities,
    read_predictions,
    write_predictions,
)

CLASSES = ("WT", "FMR1")


def make_predictions(n_trials=1, n_sessions=4, trials=12, seed=0, n_classes=2):
    """Windows with stride 1 in sessions `s0`, `s1`, ... of two sessions an animal."""
    rng = np.random.default_rng(seed)
    starts = np.arange(trials - n_trials + 1)
    index = np.repeat(np.arange(n_sessions), len(starts))
    trial_nums = np.tile(starts, n_sessions)[:, None] + np.arange(n_trials) + 5
    return Predictions(
        tuple(f"s{i}" for i in index),
        tuple(f"m{i // 2}" for i in index),
        trial_nums,
        index // 2 % n_classes,
        rng.standard_normal((len(index), n_classes)),
    )


def assert_equal(one, other):
    assert one.session == other.session
    assert one.subject == other.subject
    for name in ("trial_nums", "label", "logits"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("n_trials", [1, 3])
def test_there_and_back(tmp_path, n_trials):
    predictions = make_predictions(n_trials)
    no_subject = replace(predictions, subject=(None,) * len(predictions))
    for name, written in (("a", predictions), ("b", no_subject)):
        path = tmp_path / "split=test" / f"{name}.parquet"
        write_predictions(path, written, CLASSES)
        read, classes = read_predictions(path)
        assert classes == CLASSES
        assert_equal(read, written)
        assert read.logits.dtype == np.float64
        assert read.trial_nums.dtype == np.int64


def test_the_file_is_plain_parquet_and_reproducible(tmp_path):
    predictions = make_predictions(3)
    for name in ("a", "b"):
        write_predictions(tmp_path / name, predictions, CLASSES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    rows = pq.ParquetFile(tmp_path / "a").read().to_pylist()
    assert rows[1] == {
        "session": "s0",
        "subject": "m0",
        "trial_num": 6,
        "trial_nums": [6, 7, 8],
        "label": 0,
        "logits": predictions.logits[1].tolist(),
    }


def test_other_files_are_refused(tmp_path):
    with pytest.raises(PredictionsError, match="cannot read the predictions"):
        read_predictions(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(PredictionsError, match="cannot read the predictions"):
        read_predictions(tmp_path / "text.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(PredictionsError, match=r"columns are \['x'\]"):
        read_predictions(tmp_path / "other.parquet")
    with pytest.raises(PredictionsError, match="2 classes do not fit"):
        write_predictions(tmp_path / "c.parquet", make_predictions(), ("A", "B", "C"))


def test_what_cannot_be_predictions():
    good = make_predictions()
    n = len(good)
    bad_logits = good.logits.copy()
    bad_logits[14] = np.nan
    for changes, message in (
        ({"logits": bad_logits}, "1 of 48 sequences are not finite, the first in session 's1'"),
        ({"label": good.label + 1}, "labels from 1 to 2 do not fit logits of 2 classes"),
        ({"label": good.label[:-1]}, "columns of other lengths"),
        ({"logits": good.logits[:, :1]}, "do not fit logits of 1 classes"),
        ({"trial_nums": np.zeros((n, 1), np.int64)}, "predicted twice"),
    ):
        with pytest.raises(PredictionsError, match=message):
            replace(good, **changes)
    with pytest.raises(PredictionsError, match="holds no sequence"):
        good.take(np.array([], np.int64))


def test_predictions_of_the_sequences_of_a_split():
    trials = Trials(
        sessions=("a", "b"),
        subjects=("m", None),
        labels=np.array([1, 0]),
        session=np.array([0, 0, 0, 1, 1], np.int32),
        trial_num=np.array([3, 4, 6, 1, 2]),
    )
    sequences = Sequences(np.array([[3, 4], [0, 1]]), np.array([1, 0], np.int32), {})
    found = predictions_of(trials, sequences, np.array([[0, 1], [2, 3]], np.float32))
    assert found.session == ("b", "a")
    assert found.subject == (None, "m")
    assert found.trial_nums.tolist() == [[1, 2], [3, 4]]
    assert found.trial_num.tolist() == [1, 3]
    assert found.label.tolist() == [0, 1]
    assert found.logits.tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("temperature", [None, 2.5])
def test_probabilities_are_scipys_softmax(temperature):
    logits = np.random.default_rng(0).standard_normal((20, 3)) * 300
    expected = softmax(logits / (temperature or 1.0), axis=1)
    np.testing.assert_allclose(probabilities(logits, temperature), expected, rtol=1e-12)


def test_average_over_windows_is_the_mean_probability_of_the_windows_trials():
    single, windows = make_predictions(1), make_predictions(4, seed=1)
    shuffled = single.take(np.random.default_rng(0).permutation(len(single)))
    averaged = average_over_windows(shuffled, windows)
    assert averaged.ids() == windows.ids()
    one = softmax(single.logits, axis=1).reshape(4, 12, 2)
    expected = [one[s, start : start + 4].mean(axis=0) for s in range(4) for start in range(9)]
    np.testing.assert_allclose(probabilities(averaged.logits), expected, rtol=1e-12)


def test_averages_that_cannot_be_taken():
    single, windows = make_predictions(1), make_predictions(4)
    with pytest.raises(PredictionsError, match="4 trials a sequence"):
        average_over_windows(windows, windows)
    with pytest.raises(PredictionsError, match="trial 7 of session 's0' has no one-trial"):
        average_over_windows(single.take(np.array([0, 1, *range(3, 48)])), windows)
    with pytest.raises(PredictionsError, match="disagree about labels"):
        average_over_windows(replace(single, label=1 - single.label), windows)
    with pytest.raises(PredictionsError, match="2 and 3 classes"):
        average_over_windows(single, make_predictions(4, n_classes=3))


def test_alignment_keeps_what_both_hold_in_the_order_of_the_first():
    one, other = make_predictions(2), make_predictions(2, seed=1)
    rng = np.random.default_rng(0)
    first = one.take(rng.permutation(len(one))[:30])
    second = other.take(rng.permutation(len(other))[:30])
    a, b = align(first, second)
    assert a.ids() == b.ids() == [key for key in first.ids() if key in set(second.ids())]
    assert 0 < len(a) < 30
    with pytest.raises(PredictionsError, match="share no sequence: sequences of 2 and 3 trials"):
        align(one, make_predictions(3))
    with pytest.raises(PredictionsError, match="disagree"):
        align(one, replace(other, subject=(None,) * len(other)))
