"""Generated traces: what `ground_truth.json` says of them is checked against SciPy."""

import argparse
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from scipy import signal, stats

from beam_pipeline.errors import UsageError
from beam_pipeline.rejects import Reason
from beam_pipeline.sample import command as sample
from beam_pipeline.sample.bad_rows import REASONS
from beam_pipeline.sample.command import write_sample
from beam_pipeline.sample.model import (
    BAYES_N_TRIALS,
    CONDITIONS,
    bayes_accuracy,
    latent_amplitudes,
)
from beam_pipeline.sample.options import SampleOptions
from beam_pipeline.sample.sessions import (
    STIMULUS_AMPLITUDES,
    STIMULUS_FREQUENCIES,
    draw_session,
)
from beam_pipeline.sample.tables import SAMPLES_PER_CHUNK, session_tables
from beam_pipeline.sample.traces import GAMMA_BAND, GAMMA_WINDOW, ONSET, simulate


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read_truth(folder):
    return json.loads((folder / "ground_truth.json").read_text())


def read_table(folder):
    return pa.concat_tables(pq.read_table(p) for p in sorted(folder.glob("*.parquet")))


def read_latents(folder, n_sessions):
    return pacsv.read_csv(folder / "ground_truth.csv")["latent"].to_numpy().reshape(n_sessions, -1)


def decode(column, encoding):
    read = {
        "list": lambda cell: np.array(cell, dtype=np.float32),
        "text": lambda cell: np.array(json.loads(cell), dtype=np.float32),
        "bytes": lambda cell: np.frombuffer(cell, dtype="<f4"),
    }[encoding]
    return [read(cell) for cell in column.to_pylist()]


def is_fmr1(folder):
    return np.array([s["condition"] == "FMR1" for s in read_truth(folder)["sessions"]])


def gamma_log_power(traces, sfreq):
    """Log power of the gamma band after the onset, less the baseline's."""
    freqs, times, power = signal.spectrogram(traces, sfreq, "hann", nperseg=126, noverlap=116)
    low, high = GAMMA_BAND
    band = power[:, (freqs >= low) & (freqs <= high)].mean(axis=1)
    start, stop = (edge + ONSET for edge in GAMMA_WINDOW)
    after = band[:, (times >= start) & (times <= stop)].mean(axis=1)
    before = band[:, times < ONSET - 0.1].mean(axis=1)
    return np.log(after / before)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    """Twelve sessions where only the order of the trials tells of the class."""
    folder = tmp_path_factory.mktemp("dynamic")
    options = SampleOptions(
        sessions=12, trials=200, effect=0.0, dynamics=0.8, bad_fraction=0.0, seed=3
    )
    write_sample(options, folder)
    return folder


@pytest.fixture(scope="module")
def dynamic_traces(dynamic):
    values = read_table(dynamic)["trace"].combine_chunks().values.to_numpy()
    return values.reshape(12, 200, 5000)


# --- The ceiling ----------------------------------------------------------------------------------


def ar1_covariance(n_trials, correlation):
    lag = np.abs(np.subtract.outer(np.arange(n_trials), np.arange(n_trials)))
    return np.array([[correlation**k for k in row] for row in lag.tolist()])


def monte_carlo_accuracy(n_trials, effect, dynamics, n_draws=200_000):
    rng = np.random.default_rng(8)
    wt = stats.multivariate_normal(np.zeros(n_trials), ar1_covariance(n_trials, -dynamics))
    fmr1 = stats.multivariate_normal(np.full(n_trials, effect), ar1_covariance(n_trials, dynamics))

    def log_likelihood_ratio(draws):
        return fmr1.logpdf(draws) - wt.logpdf(draws)

    right = np.mean(log_likelihood_ratio(fmr1.rvs(n_draws, random_state=rng)) > 0)
    return (right + np.mean(log_likelihood_ratio(wt.rvs(n_draws, random_state=rng)) < 0)) / 2


@pytest.mark.parametrize("n_trials", [2, 4, 16])
@pytest.mark.parametrize(("effect", "dynamics"), [(0.0, 0.7), (0.5, 0.3), (1.0, -0.6), (-0.4, 0.9)])
def test_bayes_accuracy_is_that_of_the_likelihood_ratio(n_trials, effect, dynamics):
    expected = monte_carlo_accuracy(n_trials, effect, dynamics)

    # Four standard errors of the draws.
    assert bayes_accuracy(n_trials, effect, dynamics) == pytest.approx(expected, abs=0.0035)


@pytest.mark.parametrize("n_trials", BAYES_N_TRIALS)
@pytest.mark.parametrize("effect", [0.0, 0.3, 1.0, 2.5])
def test_bayes_accuracy_without_dynamics_is_that_of_a_shift(n_trials, effect):
    expected = stats.norm.cdf(effect * np.sqrt(n_trials) / 2)

    assert bayes_accuracy(n_trials, effect, 0.0) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("dynamics", [0.1, 0.5, 0.99, -0.5])
def test_one_trial_is_at_chance_and_two_follow_the_orthant_probability(dynamics):
    assert bayes_accuracy(1, 0.0, dynamics) == pytest.approx(0.5, abs=1e-7)
    assert bayes_accuracy(2, 0.0, dynamics) == pytest.approx(
        0.5 + np.arcsin(abs(dynamics)) / np.pi, abs=1e-7
    )


def test_bayes_accuracy_is_written(dynamic):
    written = read_truth(dynamic)["bayes_accuracy"]

    assert list(written) == ["1", "2", "4", "8", "16"]
    assert written["1"] == 0.5
    for n_trials, accuracy in written.items():
        assert accuracy == pytest.approx(bayes_accuracy(int(n_trials), 0.0, 0.8), abs=1e-6)


# --- Latents --------------------------------------------------------------------------------------


def test_latents_are_an_ar1_process_of_unit_variance():
    draws = np.array(
        [latent_amplitudes(6, 1.5, 0.6, np.random.default_rng(seed)) for seed in range(20_000)]
    )

    assert draws.mean(axis=0) == pytest.approx(np.full(6, 1.5), abs=0.03)
    assert np.cov(draws.T) == pytest.approx(ar1_covariance(6, 0.6), abs=0.04)


def test_dynamics_alone_leaves_every_trial_distributed_alike():
    # One trial in forty: successive ones are dependent, which the test must not be.
    by_class = {
        correlation: np.concatenate(
            [
                latent_amplitudes(400, 0.0, correlation, np.random.default_rng(seed))[::40]
                for seed in seeds
            ]
        )
        for correlation, seeds in ((0.8, range(200)), (-0.8, range(200, 400)))
    }

    assert stats.ks_2samp(by_class[0.8], by_class[-0.8]).pvalue > 0.01
    assert all(stats.kstest(draws, "norm").pvalue > 0.01 for draws in by_class.values())


def test_successive_latents_correlate_by_class(dynamic):
    latents = read_latents(dynamic, 12)
    products = (latents[:, 1:] * latents[:, :-1]).mean(axis=1)

    assert products[is_fmr1(dynamic)].mean() == pytest.approx(0.8, abs=0.15)
    assert products[~is_fmr1(dynamic)].mean() == pytest.approx(-0.8, abs=0.15)


def test_effect_shifts_the_latents_of_one_class_and_nothing_else(tmp_path):
    for effect in (0.0, 2.0):
        write_sample(SampleOptions(sessions=12, trials=30, effect=effect), tmp_path / str(effect))

    shift = read_latents(tmp_path / "2.0", 12) - read_latents(tmp_path / "0.0", 12)
    fmr1 = is_fmr1(tmp_path / "2.0")
    assert shift[fmr1] == pytest.approx(np.full((fmr1.sum(), 30), 2.0))
    assert (shift[~fmr1] == 0).all()
    assert read_truth(tmp_path / "2.0")["sessions"] == read_truth(tmp_path / "0.0")["sessions"]


# --- Traces ---------------------------------------------------------------------------------------


def test_latents_are_read_from_spectrograms_across_sessions_of_any_gain(dynamic, dynamic_traces):
    gains = np.array([s["gain"] for s in read_truth(dynamic)["sessions"]])
    latents = read_latents(dynamic, 12)
    power = gamma_log_power(dynamic_traces.reshape(-1, 5000), 1000.0)

    assert gains.max() / gains.min() > 8
    assert np.corrcoef(power, latents.ravel())[0, 1] > 0.95


def test_a_classifier_of_two_spectrograms_comes_near_the_ceiling(dynamic, dynamic_traces):
    power = gamma_log_power(dynamic_traces.reshape(-1, 5000), 1000.0).reshape(12, 200)
    score = stats.zscore(power, axis=None)
    guess = score[:, ::2] * score[:, 1::2] > 0
    fmr1 = is_fmr1(dynamic)
    accuracy = (guess[fmr1].mean() + (~guess[~fmr1]).mean()) / 2

    assert accuracy == pytest.approx(read_truth(dynamic)["bayes_accuracy"]["2"], abs=0.05)


def test_amplitude_follows_the_gain(dynamic, dynamic_traces):
    gains = np.array([s["gain"] for s in read_truth(dynamic)["sessions"]])
    level = dynamic_traces[:, :, :2000].std(axis=(1, 2))

    assert level / gains == pytest.approx(np.ones(12), rel=0.3)


def test_background_has_the_stated_exponent_and_line(dynamic, dynamic_traces):
    for session, traces in zip(read_truth(dynamic)["sessions"], dynamic_traces, strict=True):
        freqs, density = signal.welch(traces[:, :2000], 1000.0, nperseg=1000)
        density = density.mean(axis=0)
        fitted = (freqs >= 4) & (freqs <= 25)
        slope = np.polyfit(np.log(freqs[fitted]), np.log(density[fitted]), 1)[0]
        assert -slope == pytest.approx(session["exponent"], abs=0.25)
        near = (freqs > 40) & (freqs < 70)
        assert freqs[near][density[near].argmax()] == session["line_freq"]


@pytest.mark.parametrize("sfreq", [250.0, 488.28125, 2000.0])
def test_trough_comes_at_its_latency_at_any_rate(sfreq):
    session = draw_session(0, 12, 0)
    n_trials = 300
    traces = simulate(
        session,
        np.zeros(n_trials),
        np.full(n_trials, session.best_frequency),
        np.full(n_trials, 80.0),
        sfreq,
        np.random.default_rng(0),
    )
    evoked = traces.mean(axis=0)

    assert traces.shape == (n_trials, round(5 * sfreq))
    assert traces.dtype == np.float32
    latency = evoked.argmin() / sfreq - 2.0
    assert 0.02 < latency < 0.05
    assert latency == pytest.approx(session.trough_latency, abs=0.003 + 1 / sfreq)


def test_louder_tones_evoke_deeper_troughs():
    session = draw_session(0, 12, 0)
    depths = []
    for level in STIMULUS_AMPLITUDES:
        traces = simulate(
            session,
            np.zeros(200),
            np.full(200, session.best_frequency),
            np.full(200, level),
            1000.0,
            np.random.default_rng(0),
        )
        depths.append(-traces.mean(axis=0)[2000:2100].min())

    assert depths == sorted(depths)
    assert depths[2] > 1.5 * depths[0]


def test_the_stimulus_grid_is_covered_evenly_in_a_new_order(dynamic):
    table = read_table(dynamic)
    pairs = list(zip(table["frequency"].to_pylist(), table["amplitude"].to_pylist(), strict=True))
    rounds = [pairs[:24], pairs[24:48], pairs[200:224]]
    grid = set(itertools.product(STIMULUS_FREQUENCIES, STIMULUS_AMPLITUDES))

    assert len(grid) == 24
    assert all(set(presented) == grid for presented in rounds)
    assert not any(a == b for a, b in itertools.combinations(rounds, 2))


# --- Sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_sessions", [2, 3, 6, 9, 12, 13, 32])
@pytest.mark.parametrize("seed", [0, 1])
def test_classes_belong_to_animals_and_are_balanced(n_sessions, seed):
    sessions = [draw_session(i, n_sessions, seed) for i in range(n_sessions)]
    condition = {s.subject: s.condition for s in sessions}
    animals = {name: list(condition.values()).count(name) for name in CONDITIONS}

    assert all(condition[s.subject] == s.condition for s in sessions)
    assert len({s.session for s in sessions}) == n_sessions
    assert abs(animals["WT"] - animals["FMR1"]) <= 1
    assert min(animals.values()) >= (3 if n_sessions >= 6 else 1)
    if n_sessions >= 12:
        assert len(condition) == (n_sessions + 1) // 2


def test_a_session_does_not_depend_on_how_many_there_are():
    few, many = SampleOptions(sessions=12, trials=5), SampleOptions(sessions=40, trials=5)

    for index in (0, 7, 11):
        session, latents, bad, chunks = session_tables(few, index)
        again, latents_again, bad_again, chunks_again = session_tables(many, index)
        assert session == again
        assert bad == bad_again
        assert latents.equals(latents_again)
        assert pa.concat_tables(chunks).equals(pa.concat_tables(chunks_again))


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["list", "text", "bytes"])
def test_equal_options_give_equal_bytes_and_another_seed_does_not(tmp_path, encoding):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        options = SampleOptions(sessions=3, trials=8, seed=seed, format=encoding, bad_fraction=0.3)
        write_sample(options, tmp_path / name)

    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")
    assert read_table(tmp_path / "a")["trace"] != read_table(tmp_path / "c")["trace"]


def test_formats_hold_the_same_values(tmp_path):
    traces = {}
    for encoding in ("list", "text", "bytes"):
        folder = tmp_path / encoding
        write_sample(SampleOptions(sessions=2, trials=5, format=encoding, bad_fraction=0), folder)
        traces[encoding] = np.stack(decode(read_table(folder)["trace"], encoding))

    assert read_table(tmp_path / "list").schema.field("trace").type == pa.list_(pa.float32())
    np.testing.assert_array_equal(traces["bytes"], traces["list"])
    np.testing.assert_allclose(traces["text"], traces["list"], rtol=6e-6)


def test_columns_are_those_of_the_contract(dynamic):
    table = read_table(dynamic)

    assert table.column_names == [
        "session",
        "subject",
        "condition",
        "trial_num",
        "frequency",
        "amplitude",
        "sfreq",
        "onset",
        "trace",
    ]
    assert pa.types.is_integer(table.schema.field("trial_num").type)
    assert set(table["condition"].to_pylist()) == {"WT", "FMR1"}
    assert set(table["sfreq"].to_pylist()) == {1000.0}
    assert set(table["onset"].to_pylist()) == {2.0}


def test_the_rows_do_not_depend_on_the_number_of_files(tmp_path):
    for files in (1, 4):
        write_sample(SampleOptions(sessions=6, trials=4, files=files), tmp_path / str(files))

    assert read_truth(tmp_path / "4")["files"] == [
        f"traces-{i:05d}-of-00004.parquet" for i in range(4)
    ]
    assert all((tmp_path / "4" / name).exists() for name in read_truth(tmp_path / "4")["files"])
    assert read_table(tmp_path / "4").equals(read_table(tmp_path / "1"))
    assert read_truth(tmp_path / "4")["rows"] == read_table(tmp_path / "4").num_rows


def test_long_sessions_are_written_in_pieces_that_bound_the_memory(dynamic):
    metadata = pq.read_metadata(dynamic / "traces.parquet")
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    assert max(rows) * 5000 <= SAMPLES_PER_CHUNK
    assert sum(rows) == 2400


# --- Bad rows -------------------------------------------------------------------------------------


def reason_of(cell, encoding, n_samples):
    """Say what is wrong with a cell, by rules of this test's own."""
    if encoding == "text" and "..." in cell:
        return "truncated_trace"
    trace = decode(pa.array([cell]), encoding)[0]
    if len(trace) == 0:
        return "empty_trace"
    if len(trace) < n_samples:
        return "too_short"
    if not np.isfinite(trace).all():
        return "non_finite"
    if np.ptp(trace) == 0:
        return "flat"
    at_rail = np.abs(trace) == np.abs(trace).max()
    return "railed" if at_rail.mean() > 0.5 else None


@pytest.mark.parametrize("encoding", ["list", "text", "bytes"])
def test_bad_rows_are_what_they_claim_and_all_others_are_good(tmp_path, encoding):
    options = SampleOptions(sessions=4, trials=60, bad_fraction=0.2, format=encoding)
    write_sample(options, tmp_path)
    table = read_table(tmp_path)
    expected = {
        (r["session"], r["trial_num"]): r["reason"] for r in read_truth(tmp_path)["bad_rows"]
    }
    seen: dict[tuple[str, int], object] = {}
    found: dict[tuple[str, int], str] = {}
    for session, trial_num, cell in zip(
        *(table[name].to_pylist() for name in ("session", "trial_num", "trace")), strict=True
    ):
        key = session, trial_num
        reason = reason_of(cell, encoding, 5000)
        if key in seen:
            assert cell == seen[key]
            reason = "duplicate_trial"
        seen[key] = cell
        if reason:
            found[key] = reason

    assert found == expected
    assert len(expected) == 48
    every = set(REASONS) - (set() if encoding == "text" else {"truncated_trace"})
    assert set(expected.values()) == every


def test_reasons_are_those_of_the_reader():
    assert set(REASONS) <= set(Reason)


def test_bad_rows_leave_latents_and_good_traces_alone(tmp_path):
    for name, bad_fraction in (("clean", 0.0), ("dirty", 0.2)):
        options = SampleOptions(sessions=2, trials=30, bad_fraction=bad_fraction)
        write_sample(options, tmp_path / name)
    bad = {(r["session"], r["trial_num"]) for r in read_truth(tmp_path / "dirty")["bad_rows"]}
    rows = {
        name: {
            (row["session"], row["trial_num"]): row["trace"]
            for row in read_table(tmp_path / name).to_pylist()
        }
        for name in ("clean", "dirty")
    }

    assert bad
    np.testing.assert_array_equal(
        read_latents(tmp_path / "clean", 2), read_latents(tmp_path / "dirty", 2)
    )
    assert all(rows["dirty"][key] == rows["clean"][key] for key in rows["clean"].keys() - bad)


# --- Command --------------------------------------------------------------------------------------


def command(*words):
    parser = argparse.ArgumentParser()
    sample.add_arguments(parser)
    return sample.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def small(tmp_path):
    return ["--output", tmp_path / "out", "--sessions", 2, "--trials", 3]


def test_defaults_are_those_of_the_options(tmp_path):
    parser = argparse.ArgumentParser()
    sample.add_arguments(parser)
    args = vars(parser.parse_args(["--output", "x"]))

    assert SampleOptions(**{k: args[k] for k in args if k not in ("output", "overwrite")}) == (
        SampleOptions()
    )


def test_the_same_command_again_leaves_the_folder_alone(small, tmp_path, capsys):
    assert command(*small) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert command(*small) == 0

    assert "already complete" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before


def test_progress_counts_every_trial_once(tmp_path):
    counts: list[int] = []
    # Half of the rows are bad, duplicates among them; a session comes in more than one piece.
    options = SampleOptions(sessions=2, trials=250, bad_fraction=0.5)
    write_sample(options, tmp_path, progress=counts.append)

    assert counts[0] == 0
    assert len(counts) > 3
    assert sum(counts) == 500 < read_truth(tmp_path)["rows"]


def test_plain_lines_say_how_far_it_is_where_there_is_no_terminal(small, capsys):
    assert command(*small) == 0
    assert capsys.readouterr().err == "sample: 6 of 6\n"
    assert command(*small) == 0
    assert capsys.readouterr().err == ""


def test_other_arguments_need_overwrite_and_leave_no_stray_file(small, tmp_path):
    assert command(*small, "--files", 2) == 0
    before = folder_bytes(tmp_path / "out")
    with pytest.raises(ValueError, match="--overwrite"):
        command(*small, "--seed", 1)
    assert folder_bytes(tmp_path / "out") == before

    assert command(*small, "--seed", 1, "--overwrite") == 0
    assert sorted(folder_bytes(tmp_path / "out")) == [
        "ground_truth.csv",
        "ground_truth.json",
        "traces.parquet",
    ]
    assert read_truth(tmp_path / "out")["options"]["seed"] == 1


def test_an_interrupted_run_is_finished_by_the_same_command(small, tmp_path):
    def interrupt(n_trials):
        if n_trials:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample(SampleOptions(sessions=2, trials=3), tmp_path / "out", progress=interrupt)
    assert not (tmp_path / "out" / "ground_truth.json").exists()
    assert command(*small) == 0

    write_sample(SampleOptions(sessions=2, trials=3), tmp_path / "whole")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


def test_a_table_that_is_not_ours_is_not_replaced(small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "traces.parquet").write_bytes(b"a user's table")

    with pytest.raises(ValueError, match=r"^.* already holds traces\.parquet.*$"):
        command(*small)
    assert folder_bytes(tmp_path / "out") == {"traces.parquet": b"a user's table"}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--sessions", 1),
        ("--trials", 0),
        ("--effect", "nan"),
        ("--dynamics", 1),
        ("--seed", -1),
        ("--sfreq", 100),
        ("--bad_fraction", 1.5),
        ("--files", 3),
    ],
)
def test_wrong_values_are_wrong_usage(small, tmp_path, flag, value):
    with pytest.raises(UsageError, match=f"^{flag} is"):
        command(*small, flag, value)
    assert not (tmp_path / "out").exists()
