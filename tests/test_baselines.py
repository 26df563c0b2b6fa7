"""Baselines: their features, how they are chosen, and the command on a small dataset."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from tests import datasets, tables
from trainer.__main__ import main
from trainer.baselines import features, linear
from trainer.baselines.command import read_splits
from trainer.baselines.eegnet import EPOCHS, fit_eegnet
from trainer.baselines.features import BANDS, TrialFeatures
from trainer.baselines.fitting import TITLES, SplitFeatures, fit_baselines
from trainer.baselines.linear import DEFAULT_PENALTY
from trainer.config import SequenceConfig
from trainer.data.dataset_folder import open_dataset
from trainer.data.shard_reader import Block
from trainer.evaluation.predictions import read_predictions

N_FREQS, N_TIMES = 5, 30


def make_block(spectrogram, baseline, first=0):
    n = len(spectrogram)
    return Block("s", "WT", None, 0, np.arange(first, first + n), spectrogram, baseline, 0)


@pytest.fixture(scope="module")
def trials():
    """Spectrograms and baselines of 12 trials, and the features taken from two blocks of them."""
    rng = np.random.default_rng(0)
    spectrogram = (rng.standard_normal((12, N_FREQS, N_TIMES)) * 3 - 5).astype(np.float16)
    baseline = rng.standard_normal((12, N_FREQS)).astype(np.float32)
    found = TrialFeatures.empty(12, N_FREQS, N_TIMES)
    found.add(7, make_block(spectrogram[7:], baseline[7:]))
    found.add(0, make_block(spectrogram[:7], baseline[:7]))
    return spectrogram.astype(np.float64), baseline.astype(np.float64), found


ROWS = np.array([[0, 1, 2], [2, 3, 4], [8, 9, 11]])


# --- Features -------------------------------------------------------------------------------------


def test_mean_and_std_are_those_of_all_values_of_a_sequence(trials):
    spectrogram, _, found = trials
    values = spectrogram[ROWS].transpose(0, 2, 1, 3).reshape(3, N_FREQS, -1)
    expected = np.concatenate([values.mean(axis=2), values.std(axis=2)], axis=1)
    result = features.mean_and_std(found.mean, found.mean_square, ROWS)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_sequence_means(trials):
    _, baseline, found = trials
    expected = baseline[ROWS].mean(axis=1)
    np.testing.assert_allclose(features.sequence_means(found.baseline, ROWS), expected, rtol=1e-12)


def test_session_gain_is_the_mean_over_the_whole_session(trials):
    _, baseline, found = trials
    session = np.repeat([0, 1], [5, 7]).astype(np.int32)
    gain = features.session_gain(found.baseline, ROWS, session)
    expected = [baseline[:5].mean(), baseline[:5].mean(), baseline[5:].mean()]
    np.testing.assert_allclose(gain[:, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("std", [2.0, [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_band_power_is_that_before_the_normalisation_but_for_a_constant(trials, std):
    spectrogram, _, found = trials
    freqs = np.array([0.0, 4.0, 7.9, 8.0, 59.0])
    power = spectrogram[ROWS].mean(axis=(1, 3)) * std
    expected = np.stack([power[:, 1:3].mean(axis=1), power[:, 3], power[:, 4]], axis=1)
    result = features.band_power(found.mean, ROWS, freqs, std)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_bands_follow_one_another():
    edges = list(BANDS.values())
    assert [high for _, high in edges[:-1]] == [low for low, _ in edges[1:]]
    no_band = features.band_power(np.zeros((12, 2)), ROWS, np.array([0.0, 120.0]), 1.0)
    assert no_band.shape == (3, 0)


@pytest.mark.parametrize("n", [1, 7, 30, 99])
def test_pooling_is_the_mean_of_nearly_equal_runs(n):
    values = np.random.default_rng(0).standard_normal((2, 3, 30)).astype(np.float32)
    pooled = features.pool_axis(values, n, 2)
    parts = [values[:, :, 30 * i // n : 30 * (i + 1) // n] for i in range(n)]
    expected = np.stack([part.mean(axis=2) for part in parts if part.size], axis=2)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


# --- Models ---------------------------------------------------------------------------------------


def make_split(n=200, effect=1.0, n_features=6, seed=0, n_classes=2):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % n_classes
    values = rng.standard_normal((n, n_features)) * 10.0 ** np.arange(n_features)
    values[:, 0] += effect * label
    return linear.LabelledFeatures(values + 100, label)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logistic_regression_with_the_penalty_that_is_best_on_val(n_classes):
    train, val, test = (make_split(seed=seed, n_classes=n_classes) for seed in range(3))
    scaler = StandardScaler().fit(train.features)
    found = {}
    for penalty in linear.PENALTIES:
        model = LogisticRegression(C=penalty, class_weight="balanced", tol=1e-8, max_iter=5000)
        model.fit(scaler.transform(train.features), train.label)
        score = model.predict_proba(scaler.transform(val.features))
        auc = roc_auc_score(val.label, score[:, 1] if n_classes == 2 else score, multi_class="ovr")
        found[penalty] = auc, model
    fitted = linear.fit_logistic(train, val, seed=0)
    assert found[fitted.penalty][0] == max(auc for auc, _ in found.values())
    expected = found[fitted.penalty][1].decision_function(scaler.transform(test.features))
    logits = fitted.logits(test.features)
    assert logits.shape == (200, n_classes)
    decision = logits[:, 1] - logits[:, 0] if n_classes == 2 else logits
    np.testing.assert_allclose(decision, expected, rtol=1e-3, atol=1e-4)


def test_of_equally_good_penalties_the_strongest_is_taken():
    """One feature: every penalty gives the same order."""
    train, val = (make_split(n_features=1, seed=seed) for seed in range(2))
    assert linear.fit_logistic(train, val, seed=0).penalty == linear.PENALTIES[0]


def test_classes_are_weighed_equally():
    train = make_split(n=400)
    rare = np.flatnonzero((train.label == 0) | (np.arange(400) % 20 == 1))
    unbalanced = linear.LabelledFeatures(train.features[rare], train.label[rare])
    logits = linear.fit_logistic(unbalanced, None, seed=0).logits(make_split(seed=1).features)
    assert 0.3 < (logits[:, 1] > logits[:, 0]).mean() < 0.7


def test_pca_finds_a_direction_that_many_features_share():
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(300)
    splits = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        label = np.arange(120) % 2
        strength = 2 * label + rng.standard_normal(120)
        values = strength[:, None] * direction + rng.standard_normal((120, 300))
        splits.append(linear.LabelledFeatures(values, label))
    fitted = linear.fit_logistic(splits[0], splits[1], seed=0, pca=True)
    logits = fitted.logits(splits[2].features)
    assert roc_auc_score(splits[2].label, logits[:, 1] - logits[:, 0]) > 0.88


def test_prior():
    logits = linear.prior_logits(np.array([0, 0, 0, 1]), 2, 5)
    np.testing.assert_allclose(np.exp(logits), np.tile([0.75, 0.25], (5, 1)))


def make_sequences(n_sessions=6, n_trials=40):
    """Windows of 4 trials with stride 2: neighbours overlap."""
    starts = np.arange(0, n_trials - 3, 2)
    rows = np.concatenate([s * n_trials + starts for s in range(n_sessions)])[:, None]
    return rows + np.arange(4), np.repeat(np.arange(n_sessions), len(starts)).astype(np.int32)


@pytest.mark.parametrize(("level", "low", "high"), [(0.0, 0.05, 0.3), (3.0, 0.9, 1.0)])
def test_session_probe_finds_what_sessions_have_of_their_own(level, low, high):
    rows, session = make_sequences()
    rng = np.random.default_rng(0)
    trial = rng.standard_normal((240, 5)) + level * rng.standard_normal((6, 5)).repeat(40, axis=0)
    found = linear.session_probe(trial[rows].mean(axis=1), rows, session)
    assert found is not None
    assert low <= found["accuracy"] <= high
    assert (found["chance"], found["n_sessions"]) == (1 / 6, 6)
    # 19 windows a session: 9 before the cut, and the first after it shares trials with them.
    assert found["n"] == 6 * (9 + 9)


def test_session_probe_of_sessions_that_are_too_short():
    rows, session = make_sequences(n_trials=6)
    assert linear.session_probe(np.zeros((len(rows), 2)), rows, session) is None


@pytest.mark.parametrize(
    ("accuracy", "chance", "by_heart"),
    [(1.0, 0.05, True), (0.4, 0.05, True), (0.10, 0.08, False), (0.11, 0.14, False)],
)
def test_a_probe_near_chance_is_not_said_to_give_sessions_away(accuracy, chance, by_heart):
    probe = {"accuracy": accuracy, "chance": chance, "n_sessions": 12, "n": 60}
    assert ("can know sessions by heart" in linear.meaning_of_probe(probe)) == by_heart


def make_pooled(effect, seed):
    """Class 1 has a bump at a frequency and a time of its own in every trial."""
    rng = np.random.default_rng(seed)
    pooled = rng.standard_normal((120, 8, 16)).astype(np.float16)
    label = np.arange(60) % 2
    pooled[(np.arange(120) // 2) % 2 == 1, 3, 5:9] += effect
    return pooled * 4 - 9, np.arange(120).reshape(60, 2), label


def test_eegnet_learns_what_a_few_pixels_say_and_repeats_itself():
    train, val, test = (make_pooled(1.5, seed) for seed in range(3))
    state = torch.get_rng_state()
    (model, epoch), (again, _), (other, _) = (fit_eegnet(train, val, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    logits = model.logits(*test[:2])
    assert roc_auc_score(test[2], logits[:, 1] - logits[:, 0]) > 0.9
    assert (again.logits(*test[:2]) == logits).all()
    assert (other.logits(*test[:2]) != logits).any()
    assert epoch >= 1


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return datasets.small_dataset(tmp_path_factory)


@pytest.fixture(scope="module")
def output(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    command = ["baselines", str(dataset), "--output", str(folder), "--sequence.n_trials", "4"]
    assert main(command) == 0
    return folder


def test_all_baselines_stand_in_one_file(output, dataset):
    contents = json.loads((output / "baselines.json").read_text())
    assert list(contents) == list(TITLES)
    manifest = json.loads((dataset / "dataset.json").read_text())
    for name, content in contents.items():
        assert content["dataset_fingerprint"] == manifest["sha256"]
        assert (content["split"], content["n_trials"], content["stride"]) == ("test", 4, 2)
        assert content["title"] == TITLES[name]
        entry = content["subject"]["auc"]
        assert entry["low"] <= entry["value"] <= entry["high"]
        # One animal a class: nothing to draw from, and one of two arrangements.
        assert content["sequence"]["auc"]["value"] is not None
        assert any("only one subject of a class" in note for note in content["notes"])
        assert content["permutation"]["smallest_p_value"] == 0.5
        assert content["calibration"]["temperature"] > 0
    assert contents["majority"]["sequence"]["auc"]["value"] == 0.5
    assert contents["mean_std"]["settings"]["n_features"] == 2 * 49
    probe = json.loads((output / "session_probe.json").read_text())
    assert 0 <= probe["accuracy"] <= 1


def test_predictions_are_of_the_sequences_of_the_test_split(output, dataset):
    trials = datasets.read_trials(dataset, "test")
    for name in TITLES:
        predictions, classes = read_predictions(output / "predictions" / f"{name}.parquet")
        assert classes == ("FMR1", "WT")
        for row, (session, trial_nums) in enumerate(predictions.ids()):
            assert {trials[session, t]["label"] for t in trial_nums} == {predictions.label[row]}
            assert (np.diff(trial_nums) == 1).all()


def relabelled(split: SplitFeatures, labels: NDArray[np.int64]) -> SplitFeatures:
    return replace(split, trials=replace(split.trials, labels=labels))


def test_nothing_is_chosen_by_the_labels_of_the_test_split(dataset):
    folder = open_dataset(str(dataset))
    splits = read_splits(folder, SequenceConfig(4), "test")
    others = splits | {"test": relabelled(splits["test"], 1 - splits["test"].trials.labels)}
    val_others = splits | {"val": relabelled(splits["val"], 1 - splits["val"].trials.labels)}
    found, same, changed = (
        {fit.name: fit for fit in fit_baselines(folder, given, "test", seed=0)}
        for given in (splits, others, val_others)
    )
    for name in TITLES:
        assert found[name].settings == same[name].settings
        np.testing.assert_array_equal(found[name].logits, same[name].logits)
    # With val's labels other choices are made, so those of test would have shown.
    assert any(found[name].settings != changed[name].settings for name in TITLES)
    assert found["eegnet"].settings != changed["eegnet"].settings


def test_a_val_split_without_a_class_chooses_nothing(dataset):
    folder = open_dataset(str(dataset))
    splits = read_splits(folder, SequenceConfig(4), "test")
    one_class = relabelled(splits["val"], np.zeros_like(splits["val"].trials.labels))
    for fitted in fit_baselines(folder, splits | {"val": one_class}, "test", seed=0):
        if fitted.name != "majority":
            assert fitted.settings["chosen_on"] is None
        if fitted.name == "eegnet":
            assert fitted.settings["epoch"] == EPOCHS
        assert fitted.settings.get("C", DEFAULT_PENALTY) == DEFAULT_PENALTY


def test_baseline_spectrum_is_fitted_to_what_the_shards_hold(output, dataset):
    """The same from the raw samples: features of train, scikit-learn, the logits of test."""
    found, _ = read_predictions(output / "predictions/baseline_spectrum.parquet")
    contents = json.loads((output / "baselines.json").read_text())
    train = datasets.read_trials(dataset, "train")
    windows = windows_of(train)
    x = np.array([[train[key]["baseline"] for key in window] for window in windows], np.float64)
    x = x.mean(axis=1)
    y = np.array([train[window[0]]["label"] for window in windows])
    scaler = StandardScaler().fit(x)
    penalty = contents["baseline_spectrum"]["settings"]["C"]
    model = LogisticRegression(C=penalty, class_weight="balanced", tol=1e-8, max_iter=5000)
    model.fit(scaler.transform(x), y)
    test = datasets.read_trials(dataset, "test")
    held = [[test[session, t]["baseline"] for t in numbers] for session, numbers in found.ids()]
    values = np.array(held, np.float64).mean(axis=1)
    expected = model.decision_function(scaler.transform(values))
    decision = found.logits[:, 1] - found.logits[:, 0]
    np.testing.assert_allclose(decision, expected, rtol=1e-3, atol=1e-3)


def windows_of(trials):
    """Windows of 4 trials, with stride 2 from the first trial of a session and after each gap."""
    windows = []
    first = None
    for session, number in sorted(trials):
        if (session, number - 1) not in trials:
            first = number
        window = [(session, number + i) for i in range(4)]
        if (number - first) % 2 == 0 and all(trial in trials for trial in window):
            windows.append(window)
    return windows


def test_the_same_command_writes_the_same_bytes(output, dataset, tmp_path, capsys):
    command = ["baselines", str(dataset), "--output", str(tmp_path), "--sequence.n_trials", "4"]
    assert main(command) == 0
    # Over its own, too.
    assert main(command) == 0
    for path in sorted(output.rglob("*.*")):
        assert (tmp_path / path.relative_to(output)).read_bytes() == path.read_bytes(), path
    printed = capsys.readouterr().out
    for title in TITLES.values():
        assert title.split()[0] in printed
    assert "session probe: " in printed


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--sequence.n_trials", "1"], "made with n_trials 4, not 1, stride 2, not 1"),
        (["--sequence.n_trials", "4", "--sequence.stride", "3"], "made with stride 2, not 3"),
        (["--sequence.n_trials", "4", "--seed", "7"], "made with seed 0, not 7"),
        (["--sequence.n_trials", "4", "--split", "val"], "of test, not val"),
    ],
)
def test_others_are_not_written_over(output, dataset, tmp_path, capsys, flags, reason):
    folder = shutil.copytree(output, tmp_path / "out")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    assert main(["baselines", str(dataset), "--output", str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert f"{folder} holds baselines {reason}: give another --output, or --overwrite" in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_those_of_another_dataset_are_not_written_over_unless_it_is_asked_for(
    output, tmp_path, capsys
):
    folder = shutil.copytree(output, tmp_path / "out")
    before = (folder / "baselines.json").read_bytes()
    other = datasets.random_dataset(tmp_path / "other")
    command = ["baselines", str(other), "--output", str(folder), "--sequence.n_trials", "4"]
    assert main(command) == 2
    assert "holds baselines of another dataset (fingerprint " in capsys.readouterr().err
    assert (folder / "baselines.json").read_bytes() == before

    assert main([*command, "--overwrite"]) == 0
    fresh = tmp_path / "fresh"
    assert main([*command[:3], str(fresh), *command[4:]]) == 0
    for path in fresh.rglob("*.*"):
        assert (folder / path.relative_to(fresh)).read_bytes() == path.read_bytes(), path


def test_what_cannot_be_read_is_made_again(output, dataset, tmp_path):
    (tmp_path / "baselines.json").write_text('{"pca": {"auc"')
    command = ["baselines", str(dataset), "--output", str(tmp_path), "--sequence.n_trials", "4"]
    assert main(command) == 0
    made = (tmp_path / "baselines.json").read_bytes()
    assert made == (output / "baselines.json").read_bytes()


def test_a_dataset_is_no_place_for_baselines(dataset, capsys):
    before = {path.name for path in dataset.iterdir()}
    assert main(["baselines", str(dataset), "--output", str(dataset)]) == 2
    assert f"--output {dataset} is a dataset" in capsys.readouterr().err
    assert {path.name for path in dataset.iterdir()} == before


def test_shards_of_a_bucket_are_kept_in_a_cache(gcs, tmp_path):
    folder, data = datasets.random_dataset(tmp_path / "noise"), "gs://lab/datasets/noise"
    for path in folder.rglob("*.*"):
        gcs.put(f"{data}/{path.relative_to(folder)}", path.read_bytes())
    cache, runs = tmp_path / "cache", "gs://lab/runs"
    tail = ["--sequence.n_trials", "4", "--cache", str(cache)]
    assert main(["baselines", data, "--output", f"{runs}/first", *tail]) == 0

    shards = {path.read_bytes() for path in folder.rglob("*.tar")}
    assert {path.read_bytes() for path in cache.iterdir()} == shards
    gcs.requests.clear()
    assert main(["baselines", data, "--output", f"{runs}/second", *tail]) == 0
    assert not [path for _, path in gcs.requests if "alt=media" in path and ".tar" in path]
    assert gcs.list(f"{runs}/first") == gcs.list(f"{runs}/second")
    local = tmp_path / "local"
    assert main(["baselines", str(folder), "--output", str(local), *tail]) == 0
    written = {str(path.relative_to(local)): path.read_bytes() for path in local.rglob("*.*")}
    assert gcs.list(f"{runs}/first") == written


def test_one_trial_and_val(dataset, tmp_path):
    flags = ["--sequence.n_trials", "1", "--split", "val"]
    assert main(["baselines", str(dataset), "--output", str(tmp_path), *flags]) == 0
    content = json.loads((tmp_path / "baselines.json").read_text())["mean_std"]
    assert content["split"] == "val"
    assert content["sequence"]["n"] == len(datasets.read_trials(dataset, "val"))


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--sequence.n_trials", "31"], 1, "train holds no sequence of 31 trials of class"),
        (["--sequence.n_trials", "0"], 2, "n_trials must be 1 or more"),
        (["--seed", "-1"], 2, "--seed is -1"),
        (["--split", "train"], 2, "invalid choice: 'train'"),
    ],
)
def test_bad_flags(dataset, tmp_path, capsys, flags, status, message):
    assert main(["baselines", str(dataset), "--output", str(tmp_path), *flags]) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_dataset_that_leaks_is_refused(dataset, tmp_path, capsys):
    folder = shutil.copytree(dataset, tmp_path / "dataset")
    datasets.edit_manifest(
        folder, lambda content: content["normalization"]["sessions"].append("of test")
    )
    assert main(["baselines", str(folder), "--output", str(tmp_path / "out")]) == 1
    assert "leaks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_dataset(tmp_path, capsys):
    assert main(["baselines", str(tmp_path)]) == 1
    assert "has no dataset.json" in capsys.readouterr().err


def test_too_little_data_is_said_in_a_note_and_not_by_a_library(tmp_path, capsys):
    dataset = datasets.make_dataset(tables.make_table(sessions=12, trials=1), tmp_path)
    command = ["baselines", str(dataset), "--output", str(tmp_path / "b"), "--sequence.n_trials=1"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "note: some of the fits are ill-posed" in printed.out
    assert "Warning" not in printed.err
