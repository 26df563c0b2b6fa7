"""The audit's numbers against NumPy and SciPy, its warnings on tables with one fault each."""

import argparse
import base64
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import signal, stats

from beam_pipeline.audit import command as audit
from beam_pipeline.audit.tally import AuditTally, Timing
from beam_pipeline.audit.timing import (
    RateVerdict,
    SpectralPeak,
    evoked_peak,
    line_noise,
    sharp_peaks,
)
from beam_pipeline.errors import UsageError
from beam_pipeline.output.segments import Pointers
from beam_pipeline.sample.command import write_sample
from beam_pipeline.sample.options import SampleOptions
from beam_pipeline.screening import ScreeningOptions, screen
from beam_pipeline.sessions import order_by_session, resolve_session, session_rows
from beam_pipeline.sources.parquet import ParquetSource

N_SAMPLES = 1000
SFREQ = 500.0
ONSET = 0.8


def run_audit(table, output, *flags):
    """Run the command and return what it wrote."""
    parser = argparse.ArgumentParser()
    audit.add_arguments(parser)
    given = ["--input", str(table), "--output", str(output), *flags]
    assert audit.run(parser.parse_args(given)) == 0
    return json.loads((output / "audit.json").read_text())


def read_audit(table, sfreq=None, onset=None):
    """Return what the command writes to its JSON, without drawing the page."""
    source = ParquetSource(str(table))
    data = audit.audit_data(*audit.audit_table(source, sfreq, onset), source)
    return json.loads(audit.to_json(data))


def kinds(data):
    return {warning["kind"]: warning for warning in data["warnings"]}


def make_rows(seed=0, n_sessions=6, n_trials=20, gains=None, line=50.0, latency=0.03):
    """Rows of good sessions: white noise, mains hum and a trough; conditions alternate."""
    rng = np.random.default_rng(seed)
    times = np.arange(N_SAMPLES) / SFREQ
    rows = []
    for index in range(n_sessions):
        gain = 50.0 if gains is None else gains[index]
        for trial in range(1, n_trials + 1):
            phase = rng.uniform(0, 2 * np.pi)
            trace = rng.standard_normal(N_SAMPLES)
            trace += 0.5 * np.cos(2 * np.pi * line * times + phase)
            trace -= 3 * np.exp(-0.5 * ((times - ONSET - latency) / 0.008) ** 2)
            rows.append(
                {
                    "session": f"s{index:02d}",
                    "subject": f"m{index:02d}",
                    "condition": ("WT", "FMR1")[index % 2],
                    "trial_num": trial,
                    "frequency": float(4000 * 2 ** (trial % 4)),
                    "amplitude": float(40 + 20 * (trial % 2)),
                    "trace": gain * trace,
                }
            )
    return rows


def write(rows, path, **table_options):
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    columns["trace"] = pa.array(columns["trace"], table_options.get("type", pa.list_(pa.float64())))
    pq.write_table(pa.table(columns), path, row_group_size=table_options.get("group", 37))
    return path


def audited(rows, tmp_path, sfreq=SFREQ, onset=ONSET, **table_options):
    return read_audit(write(rows, tmp_path / "t.parquet", **table_options), sfreq, onset)


# --- Numbers --------------------------------------------------------------------------------------


def session_means(rows, session):
    traces = np.array([row["trace"] for row in rows if row["session"] == session])
    traces = traces - traces.mean(axis=1, keepdims=True)
    mean = traces.mean(axis=0)
    evoked = mean - mean[: round(ONSET * SFREQ)].mean()
    _, power = signal.periodogram(traces, SFREQ, window="hann")
    return evoked / np.median(traces.std(axis=1)), power.mean(axis=0)


def test_means_of_each_condition_count_each_session_once(tmp_path):
    rows = make_rows(gains=[1, 5, 200, 30, 7, 1000])

    data = audited(rows, tmp_path)

    for condition in data["conditions"]:
        members = sorted({r["session"] for r in rows if r["condition"] == condition["condition"]})
        evoked, power = zip(*(session_means(rows, session) for session in members), strict=True)
        np.testing.assert_allclose(
            condition["mean_evoked"], np.mean(evoked, axis=0), rtol=1e-5, atol=1e-6
        )
        # Bins 0 and Nyquist aside: the mean is taken off before.
        np.testing.assert_allclose(
            condition["mean_spectrum"][1:], stats.gmean(power, axis=0)[1:], rtol=1e-5
        )


def test_counts_and_amplitudes_of_sessions(tmp_path):
    rows = make_rows(gains=[1, 2, 3, 4, 5, 6])
    dropped = {("s01", 4), ("s01", 5), ("s01", 9), ("s03", 7)}
    rows = [row for row in rows if (row["session"], row["trial_num"]) not in dropped]
    rows += [row for row in rows if (row["session"], row["trial_num"]) == ("s02", 2)]

    data = audited(rows, tmp_path)

    sessions = {session["session"]: session for session in data["sessions"]}
    assert {name: s["rows"] for name, s in sessions.items()} == {
        "s00": 20, "s01": 17, "s02": 21, "s03": 19, "s04": 20, "s05": 20,
    }  # fmt: skip
    assert {name: s["n_missing"] for name, s in sessions.items() if s["n_missing"]} == {
        "s01": 3,
        "s03": 1,
    }
    assert sessions["s01"]["gaps"] == [[4, 5], [9, 9]]
    assert {name: s["n_duplicates"] for name, s in sessions.items() if s["n_duplicates"]} == {
        "s02": 1
    }
    for name, session in sessions.items():
        level = [np.std(row["trace"]) for row in rows if row["session"] == name]
        found = [session["amplitude"][key] for key in ("p5", "median", "p95")]
        np.testing.assert_allclose(found, np.percentile(level, [5, 50, 95]), rtol=1e-9)
    assert data["rejects"] == {"duplicate_trial": 1}
    stimuli = {(s["frequency"], s["amplitude"]): s["rows"] for s in data["stimuli"]}
    cells = [(row["frequency"], row["amplitude"]) for row in rows]
    assert stimuli == {cell: cells.count(cell) for cell in set(cells)}


def test_line_peak_and_latency_are_those_put_in(tmp_path):
    data = audited(make_rows(line=60.0, latency=0.04), tmp_path)

    assert data["line_noise"]["verdict"] == "fits"
    assert data["line_noise"]["mains"] == 60.0
    assert data["line_noise"]["peak"]["cycles_per_sample"] * SFREQ == pytest.approx(60.0, abs=0.1)
    assert data["evoked_peak"]["latency"] == pytest.approx(0.04, abs=2 / SFREQ)
    assert data["evoked_peak"]["value"] < 0
    assert data["warnings"] == []


def test_gain_auc_is_that_of_the_rank_test(tmp_path):
    gains = [1, 5, 2, 7, 9, 8]
    data = audited(make_rows(gains=gains), tmp_path)

    level = {s["session"]: s["amplitude"]["median"] for s in data["sessions"]}
    wt, fmr1 = ([level[f"s0{i}"] for i in range(first, 6, 2)] for first in (0, 1))
    pairs = [(a, b) for a in fmr1 for b in wt]
    assert data["gain"] == [
        {
            "conditions": ["FMR1", "WT"],
            "auc": pytest.approx(np.mean([b > a for a, b in pairs])),
            "p_value": pytest.approx(stats.mannwhitneyu(fmr1, wt).pvalue),
            "n_sessions": [3, 3],
        }
    ]


def test_bad_rows_are_counted_by_the_reasons_of_preprocessing(tmp_path):
    rows = make_rows(n_sessions=2, n_trials=20)
    text = [{**row, "trace": json.dumps(row["trace"].tolist())} for row in rows]
    text[0]["trace"] = "[1.0, 2.0, ..., 3.0]"
    text[1]["trace"] = "[1.0, soup]"
    text[2]["trace"] = None
    text[3]["trace"] = "[]"
    text[4]["trace"] = text[4]["trace"].replace("[", "[NaN, ", 1)
    text[5]["trace"] = json.dumps([1.0] * N_SAMPLES)
    text[6]["trace"] = json.dumps(np.clip(rows[6]["trace"], -20, 20).tolist())
    text[7]["condition"] = None
    text[8]["session"] = None
    text[9]["trial_num"] = None
    text[10]["trace"] = text[11]["trace"]

    data = audited(text, tmp_path, type=pa.string())

    assert data["rejects"] == {
        "missing_id": 2,
        "missing_condition": 1,
        "truncated_trace": 1,
        "unparsable_trace": 1,
        "empty_trace": 2,
        "non_finite": 1,
        "flat": 1,
        "railed": 1,
        "duplicate_trace": 1,
    }
    assert data["rows"] == 40
    assert data["accepted"] == 30


@pytest.mark.parametrize("gain", [1e300, 1e-200])
def test_numbers_at_the_ends_of_float64_do_no_harm(tmp_path, gain):
    rows = make_rows(gains=[50.0] * 5 + [gain])

    data = audited(rows, tmp_path)

    assert data["rejects"] == {"unusable_spectrogram": 20}
    assert data["accepted"] == 100


def test_a_table_without_one_good_row_still_gets_its_page(tmp_path):
    rows = [{**row, "trace": None} for row in make_rows(n_sessions=2, n_trials=3)]

    data = run_audit(write(rows, tmp_path / "t.parquet"), tmp_path / "out")

    assert data["accepted"] == 0
    assert data["rejects"] == {"empty_trace": 6}
    assert "one_condition" in kinds(data)
    assert (tmp_path / "out" / "index.html").exists()


def test_other_lengths_are_counted_and_left_out_of_the_means(tmp_path):
    rows = make_rows()
    clean = audited(rows, tmp_path)
    extra = [{**row, "trial_num": 21, "trace": row["trace"][:700]} for row in rows[::20]]

    data = audited(rows + extra, tmp_path)

    assert [(t["n_samples"], t["rows"]) for t in data["trace_timings"]] == [(1000, 120), (700, 6)]
    assert data["timing"]["n_averaged"] == 120
    warning = kinds(data)["trace_lengths"]
    assert warning["title"] == "6 traces have another length"
    assert "Most traces have 1,000 samples; the others have 700." in warning["text"]
    np.testing.assert_allclose(
        data["conditions"][0]["mean_spectrum"], clean["conditions"][0]["mean_spectrum"]
    )


def test_memory_of_a_session_does_not_grow_with_its_lengths():
    tally = AuditTally(SFREQ, ONSET)
    for length in range(500, 540):
        trace = np.random.default_rng(length).standard_normal(length)
        columns = {"session": ["s"], "condition": ["WT"], "trial_num": [length], "trace": [trace]}
        tally.add(pa.RecordBatch.from_pydict(columns))

    session = tally.sessions["s"]
    assert len(session.sums) < 10
    assert sum(session.timings.values()) == 40
    assert session.timings[Timing(539, SFREQ, ONSET)] == 1


def preprocessing_rejects(rows):
    """Count what `screen` and `resolve_session` make of the rows, a batch of one session each."""
    counts: Counter[str] = Counter()
    for name in sorted({row["session"] for row in rows}):
        own = [row for row in rows if row["session"] == name]
        names = dict.fromkeys(name for row in own for name in row)
        batch = pa.RecordBatch.from_pydict({n: [row.get(n) for row in own] for n in names})
        options = ScreeningOptions(
            SFREQ, ONSET, False, 0.05, (-ONSET, 1.0), N_SAMPLES - 100, "float64"
        )
        trials, rejects = screen(batch, options)
        order, places = order_by_session(trials)
        n_rows = len(order)
        pointers = Pointers(np.zeros(n_rows, np.int64), np.zeros(n_rows, np.int64))
        pieces = [session_rows(trials, order, place, pointers) for _, place in places]
        rejects += resolve_session(name, pieces, [], 16, None)[1]
        counts.update(str(reject.reason) for reject in rejects)
    return dict(counts)


def without_stimuli(rows):
    return [{n: row[n] for n in row if n not in ("frequency", "amplitude")} for row in rows]


def test_a_row_delivered_twice_is_no_repeat_where_the_table_has_no_stimuli(tmp_path):
    rows = without_stimuli(make_rows(n_sessions=2))
    rows.append(rows[3])

    data = audited(rows, tmp_path)

    assert data["rejects"] == preprocessing_rejects(rows) == {"duplicate_trial": 1}
    assert "duplicate_trials" in kinds(data)
    assert "trial_num_counts_repeats" not in kinds(data)


@pytest.mark.parametrize("stimulus", [0.0, None, float("nan")])
def test_a_stimulus_equals_itself_and_no_other(tmp_path, stimulus):
    rows = make_rows(n_sessions=2)
    rows[3] |= {"frequency": stimulus}
    rows += [{**rows[3], "frequency": -0.0 if stimulus == 0 else stimulus}]
    rows += [{**rows[5], "frequency": 1.0}]

    data = audited(rows, tmp_path)

    # One of the two equal rows, and both of the two that differ.
    assert data["rejects"] == preprocessing_rejects(rows) == {"duplicate_trial": 3}


@pytest.mark.parametrize(
    ("subjects", "expected"),
    [
        ([None] * 20, {}),
        (["m"] * 19 + [None], {"missing_id": 1}),
        ([None, ""] + ["m"] * 18, {"missing_id": 2}),
        ([None] + ["m"] * 18 + ["n"], {"session_two_subjects": 20}),
    ],
)
def test_rows_without_the_subject_that_others_have_are_rejected(tmp_path, subjects, expected):
    rows = make_rows(n_sessions=2)
    for row, subject in zip(rows[:20], subjects, strict=True):
        row["subject"] = subject

    data = audited(rows, tmp_path)

    assert data["rejects"] == preprocessing_rejects(rows) == expected


def test_a_label_of_a_row_that_is_rejected_itself_makes_no_conflict(tmp_path):
    rows = make_rows(n_sessions=2)
    rows[4] |= {"condition": "FMR1", "trace": np.ones(N_SAMPLES)}
    rows[5] |= {"subject": "m99", "trace": np.ones(N_SAMPLES)}

    data = audited(rows, tmp_path)

    assert data["rejects"] == preprocessing_rejects(rows) == {"flat": 2}


def test_a_row_without_subject_is_no_copy_of_the_row_that_stays(tmp_path):
    rows = make_rows(n_sessions=2)
    rows.append({**rows[3], "subject": None})

    data = audited(rows, tmp_path)

    assert data["rejects"] == preprocessing_rejects(rows) == {"missing_id": 1}


# --- Sampling rate and onset ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1000, 10_000])
def bare_sample(request, tmp_path_factory):
    """A generated table that does not state its rate, and the rate."""
    folder = tmp_path_factory.mktemp("sample")
    options = SampleOptions(sessions=6, trials=12, sfreq=request.param, bad_fraction=0.0, seed=5)
    write_sample(options, folder)
    table = pq.read_table(folder / "traces.parquet").drop_columns(["sfreq", "onset"])
    path = folder / "bare" / "t.parquet"
    path.parent.mkdir()
    pq.write_table(table, path)
    return path, request.param, json.loads((folder / "ground_truth.json").read_text())


def test_a_right_rate_raises_no_suspicion(bare_sample):
    path, sfreq, truth = bare_sample

    data = read_audit(path, sfreq, 2.0)

    assert not kinds(data).keys() & {"sampling_rate", "evoked_latency", "onset", "sharp_peak"}
    assert data["line_noise"]["mains"] == truth["sessions"][0]["line_freq"]
    latencies = [session["trough_latency"] for session in truth["sessions"]]
    assert min(latencies) - 0.005 <= data["evoked_peak"]["latency"] <= max(latencies) + 0.005


@pytest.mark.parametrize("factor", [0.1, 10])
def test_a_rate_ten_times_off_is_named(bare_sample, factor):
    path, sfreq, _ = bare_sample
    assumed, onset = sfreq * factor, 2.0 / factor

    data = read_audit(path, assumed, onset)

    warning = kinds(data)["sampling_rate"]
    assert warning["severity"] == "warning"
    assert data["line_noise"]["fits"][0]["sfreq"] == sfreq
    assert warning["title"] == f"The sampling rate may be {sfreq:,} Hz, not {assumed:,.9g} Hz"
    assert f"--sfreq {sfreq} --onset 2" in warning["advice"]
    assert ("late" if factor < 1 else "early") in kinds(data)["evoked_latency"]["title"]


def test_an_unknown_rate_is_suggested_and_axes_are_in_samples(bare_sample, tmp_path):
    path, sfreq, _ = bare_sample

    data = run_audit(path, tmp_path)

    assert f"--sfreq {sfreq}." in kinds(data)["sampling_rate_unknown"]["advice"]
    assert "onset_unknown" in kinds(data)
    assert data["evoked_peak"]["latency"] is None
    # The trough comes within 45 ms of the tone at 2 s.
    assert 2.0 * sfreq < data["evoked_peak"]["sample"] < 2.045 * sfreq
    assert "in samples" in (tmp_path / "index.html").read_text()


def test_a_response_before_the_onset_is_doubtful(tmp_path):
    data = audited(make_rows(), tmp_path, onset=1.4)

    assert kinds(data)["onset"]["severity"] == "warning"


def test_what_comes_before_the_onset_does_no_harm_where_a_response_follows_it(tmp_path):
    rows = make_rows()
    earlier = 4 * np.exp(-0.5 * ((np.arange(N_SAMPLES) / SFREQ - 0.3) / 0.008) ** 2)

    data = audited([row | {"trace": row["trace"] - 50 * earlier} for row in rows], tmp_path)

    assert data["warnings"] == []
    assert data["evoked_peak"]["latency"] == pytest.approx(0.03, abs=2 / SFREQ)


def steady(rows, frequency=40.0, amplitude=1.5):
    """Add a response that follows a train of stimuli, stronger for some than for others."""
    times = np.arange(N_SAMPLES) / SFREQ - ONSET
    wave = 50 * amplitude * np.sin(2 * np.pi * frequency * times) * (times > 0)
    return [row | {"trace": row["trace"] + wave * (row["amplitude"] / 40)} for row in rows]


@pytest.mark.parametrize("trough", [True, False])
@pytest.mark.parametrize("frequency", [8.0, 40.0, 41.7, 62.5, 100.0])
def test_a_response_at_the_rate_of_the_stimuli_is_no_hum(tmp_path, frequency, trough):
    silent = make_rows(line=0.0, latency=0.03 if trough else 99.0)

    data = audited(steady(silent, frequency, 3.0), tmp_path)

    assert data["warnings"] == []
    assert data["line_noise"]["verdict"] == "no_peak"


@pytest.mark.parametrize("mains", [50.0, 60.0])
@pytest.mark.parametrize("factor", [0.5, 2, 5])
def test_hum_tells_the_rate_beside_a_response_at_40_hz(tmp_path, mains, factor):
    rows = steady(make_rows(line=mains))

    assert audited(rows, tmp_path)["warnings"] == []
    data = audited(rows, tmp_path, SFREQ * factor, ONSET / factor)

    warning = next(
        w for w in data["warnings"] if w["kind"] in ("sampling_rate", "line_harmonic_only")
    )
    assert warning["severity"] == "warning"
    assert warning["title"].startswith("The sampling rate may be 500 Hz")


@pytest.mark.parametrize("onset", [0.0, 0.002, 0.01])
def test_without_a_baseline_nothing_is_said_of_the_rate(tmp_path, onset):
    data = audited(make_rows(), tmp_path, onset=onset)

    assert data["line_noise"]["verdict"] == "no_peak"
    assert not kinds(data).keys() & {"sampling_rate", "line_harmonic_only", "sharp_peak"}


def test_without_hum_nothing_is_said_of_the_rate(tmp_path):
    silent = make_rows(line=0.0)

    assert audited(silent, tmp_path)["warnings"] == []
    for factor in (0.5, 2):
        found = kinds(audited(silent, tmp_path, SFREQ * factor, ONSET / factor))
        assert not found.keys() & {"sampling_rate", "line_harmonic_only", "sharp_peak"}


def test_a_response_is_no_hum_where_the_onset_is_unknown(tmp_path):
    rows = steady([row | {"amplitude": 40.0} for row in make_rows(line=0.0)])

    data = audited(rows, tmp_path, sfreq=None, onset=None)

    assert "no mains hum tells it" in kinds(data)["sampling_rate_unknown"]["text"]


def test_hum_names_the_rate_where_the_given_one_puts_the_onset_outside(tmp_path):
    data = audited(steady(make_rows()), tmp_path, sfreq=10 * SFREQ)

    assert kinds(data)["onset_outside"]["severity"] == "problem"
    assert data["line_noise"]["fits"][0]["sfreq"] == SFREQ


def test_an_onset_outside_the_trace_is_a_problem(tmp_path):
    data = audited(make_rows(), tmp_path, onset=2.5)

    assert kinds(data)["onset_outside"]["severity"] == "problem"


def hum(frequency, sfreq, n_samples=5000, n_trials=60, harmonics=(1,)):
    rng = np.random.default_rng(1)
    times = np.arange(n_samples) / sfreq
    traces = np.cumsum(rng.standard_normal((n_trials, n_samples)), axis=1)
    traces -= np.linspace(0, 1, n_samples) * traces[:, -1:]
    for harmonic in harmonics:
        phases = rng.uniform(0, 2 * np.pi, (n_trials, 1))
        angles = 2 * np.pi * harmonic * frequency * times
        traces += 20 / harmonic * np.cos(angles + phases)
    return signal.periodogram(traces, window="hann")[1].mean(axis=0)


@pytest.mark.parametrize("mains", [50.0, 60.0])
@pytest.mark.parametrize(
    ("true", "assumed", "n_samples"),
    [(10_000, 1000, 5000), (1000, 5000, 5000), (24414.0625, 1000, 20_000), (1024, 1000, 5000)],
)
def test_a_sharp_peak_tells_the_true_rate(mains, true, assumed, n_samples):
    peaks = sharp_peaks(hum(mains, true, n_samples), n_samples, 60)

    assert peaks[0].cycles_per_sample * true == pytest.approx(mains, rel=0.01)
    assert line_noise(peaks, n_samples, true).verdict == RateVerdict.FITS
    found = line_noise(peaks, n_samples, assumed)
    assert found.verdict == RateVerdict.OTHER_RATE
    assert any((fit.sfreq, fit.mains) == (true, mains) for fit in found.fits)


@pytest.mark.parametrize("cycles", range(5, 30))
def test_a_short_baseline_proposes_clean_multiples_alone(cycles):
    found = line_noise([SpectralPeak(cycles / 400, 20.0)], 400, 1000.0)

    assert {fit.sfreq for fit in found.fits} <= {200.0, 500.0, 2000.0, 5000.0, 10_000.0}


@pytest.mark.parametrize("peak", [3.0, 9.5, 700.0, 2400.0])
def test_a_rate_that_nobody_records_at_is_not_proposed(peak):
    found = line_noise([SpectralPeak(peak / 5000, 20.0)], 20_000, 5000.0)

    assert all(200 <= fit.sfreq <= 50_000 for fit in found.fits)
    assert found.verdict == RateVerdict.UNEXPLAINED


def test_harmonics_alone_are_doubtful_and_with_the_fundamental_are_not():
    alone = sharp_peaks(hum(50.0, 1000, harmonics=(2,)), 5000, 60)
    with_fundamental = sharp_peaks(hum(50.0, 1000, harmonics=(1, 2, 3, 5)), 5000, 60)

    assert line_noise(alone, 5000, 1000.0).verdict == RateVerdict.HARMONIC_ONLY
    assert line_noise(with_fundamental, 5000, 1000.0).verdict == RateVerdict.FITS
    assert line_noise(with_fundamental, 5000, 10_000.0).fits[0].sfreq == 1000.0


def test_other_peaks_are_no_hum():
    strange = [SpectralPeak(0.0437, 20.0)]

    assert line_noise(strange, 5000, 1000.0).verdict == RateVerdict.UNEXPLAINED
    assert line_noise([], 5000, 1000.0).verdict == RateVerdict.NO_PEAK
    assert sharp_peaks(hum(50.0, 1000, harmonics=()), 5000, 60) == []


def test_noise_is_no_evoked_response():
    noise = np.random.default_rng(2).standard_normal(5000)
    bumped = noise - 12 * np.exp(-0.5 * ((np.arange(5000) - 2030) / 10) ** 2)

    assert not evoked_peak(noise, 2000).is_clear
    assert evoked_peak(bumped, 2000).is_clear
    assert abs(evoked_peak(bumped, 2000).sample - 2030) < 10


# --- Warnings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "severity"), [(20, "warning"), (150, "problem")])
def test_a_gain_difference_is_said_in_words(tmp_path, factor, severity):
    data = audited(make_rows(gains=[1, 1, 1, factor, 1, 1]), tmp_path)

    warning = kinds(data)["gain"]
    assert warning["severity"] == severity
    (ratio,) = map(float, re.findall(r"differ (\d+)-fold", warning["title"]))
    assert ratio == pytest.approx(factor, rel=0.05)
    assert "s03, the largest" in warning["text"]


def test_a_gain_that_follows_the_class_is_a_shortcut(tmp_path):
    gains = [1 + 0.1 * (i // 2) + 4 * (i % 2) for i in range(12)]

    warning = kinds(audited(make_rows(n_sessions=12, gains=gains), tmp_path))["gain_shortcut"]

    assert warning["severity"] == "warning"
    assert "AUC 1.00" in warning["title"]


def test_traces_in_volts_drown_in_the_floor(tmp_path):
    volts = kinds(audited(make_rows(gains=[5e-5] * 6), tmp_path))
    microvolts = kinds(audited(make_rows(gains=[50.0] * 6), tmp_path))

    assert volts["power_floor"]["severity"] == "problem"
    assert "power_floor" not in microvolts


def change(rows, name, **values):
    return [{**row, **values} if row["session"] == name else row for row in rows]


def without_subjects(rows):
    return [{name: row[name] for name in row if name != "subject"} for row in rows]


def mixed_conditions(rows):
    return [
        {**row, "condition": "WT"} if (row["session"], row["trial_num"]) == ("s01", 3) else row
        for row in rows
    ]


def repeats_as_trials(rows):
    count: dict[tuple, int] = {}
    numbered = []
    for row in rows:
        cell = row["session"], row["frequency"], row["amplitude"]
        count[cell] = count.get(cell, 0) + 1
        numbered.append({**row, "trial_num": count[cell]})
    return numbered


@pytest.mark.parametrize(
    ("damage", "kind", "severity"),
    [
        (mixed_conditions, "session_two_conditions", "problem"),
        (lambda rows: change(rows, "s01", subject="m00"), "subject_several_conditions", "warning"),
        (without_subjects, "no_subjects", "warning"),
        (lambda rows: change(rows, "s01", subject=None), "session_without_subject", "warning"),
        (lambda rows: [r for r in rows if r["condition"] == "WT"], "one_condition", "problem"),
        (lambda rows: rows[:5] + rows[6:], "missing_trials", "note"),
        (lambda rows: rows + rows[:2], "duplicate_trials", "warning"),
        (repeats_as_trials, "trial_num_counts_repeats", "problem"),
        (lambda rows: change(rows, "s01", condition=None), "session_without_condition", "warning"),
    ],
)
def test_each_fault_is_named_and_a_sound_table_has_none(tmp_path, damage, kind, severity):
    rows = make_rows()
    assert audited(rows, tmp_path)["warnings"] == []

    found = kinds(audited(damage(rows), tmp_path))

    assert found[kind]["severity"] == severity
    assert all(found[kind][part] for part in ("title", "text", "advice"))


def test_unbalanced_conditions_are_told_with_their_ratio(tmp_path):
    rows = [row for row in make_rows(n_sessions=10) if row["session"] not in ("s01", "s03", "s05")]

    assert "2.5 : 1" in kinds(audited(rows, tmp_path))["unbalanced"]["title"]


# --- The page -------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, resources and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.resources, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = ("src", "srcset", "href", "action", "data")
        self.resources += [value for name, value in attrs if name in names]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_self_contained_and_escapes_names(tmp_path):
    evil = "<script>alert(1)</script>"
    rows = change(make_rows(), "s02", session=evil, subject="<b>m$x$</b>", condition="<i>WT</i>")

    table = write(rows, tmp_path / "t.parquet")
    data = run_audit(table, tmp_path / "out", "--sfreq", str(SFREQ), "--onset", str(ONSET))

    assert evil in [session["session"] for session in data["sessions"]]
    text = (tmp_path / "out" / "index.html").read_text()
    page = Page(text)
    assert not {"script", "b", "i", "link", "iframe"} & set(page.tags)
    assert evil in page.words
    assert page.resources
    assert all(url.startswith("data:image/svg+xml;base64,") for url in page.resources)
    assert not re.search(r"https?:|url\(|@import", text)
    for url in page.resources:
        figure = ET.fromstring(base64.b64decode(url.partition(",")[2]))
        assert {element.tag.rpartition("}")[2] for element in figure.iter()} <= {
            "svg", "metadata", "RDF", "Work", "type", "defs", "style", "g", "path", "use", "text",
            "tspan", "clipPath", "rect",
        }  # fmt: skip
        for element in figure.iter():
            links = [value for name, value in element.items() if name.endswith("href")]
            assert all(link.startswith("#") for link in links)


def test_equal_input_gives_equal_bytes(tmp_path):
    table = write(make_rows(), tmp_path / "t.parquet")
    for name in ("a", "b"):
        run_audit(table, tmp_path / name, "--sfreq", str(SFREQ), "--onset", str(ONSET))

    for name in ("audit.json", "index.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_end_prints_warnings_and_the_page(tmp_path, capsys):
    table = write(make_rows(gains=[1, 1, 1, 40, 1, 1]), tmp_path / "t.parquet")
    data = run_audit(table, tmp_path / "out")

    printed = capsys.readouterr().out
    assert kinds(data)["gain"]["title"] in printed
    assert printed.rstrip().endswith(str(tmp_path / "out" / "index.html"))


def test_names_are_printed_as_they_stand(tmp_path, capsys):
    rows = change(make_rows(gains=[1, 1, 1, 40, 1, 1]), "s03", session="[b] :smile: [/]")
    run_audit(write(rows, tmp_path / "t.parquet"), tmp_path / "out")

    assert "[b] :smile: [/], the largest" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("flag", ["--sfreq=0", "--sfreq=-1", "--sfreq=nan", "--onset=inf"])
def test_a_rate_or_onset_that_is_none_is_wrong_usage(tmp_path, flag):
    with pytest.raises(UsageError, match=flag.partition("=")[0]):
        run_audit("x", tmp_path / "o", flag)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.html", "my page"),
        ("audit.json", "my notes"),
        ("audit.json", '{"format_version": 99}'),
        ("audit.json", "[1]"),
    ],
)
def test_a_folder_of_other_things_is_left_alone(tmp_path, name, content):
    table = write(make_rows(n_sessions=2, n_trials=3), tmp_path / "t.parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)

    with pytest.raises(audit.OutputExistsError, match=f"holds {name}; choose another --output"):
        run_audit(table, tmp_path / "out")

    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == {name: content}


def test_an_output_that_is_a_file_is_said_so(tmp_path):
    table = write(make_rows(n_sessions=2, n_trials=3), tmp_path / "t.parquet")

    with pytest.raises(audit.OutputExistsError, match="is a file"):
        run_audit(table, table)


def test_an_earlier_audit_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".gitkeep").touch()
    for n_trials in (3, 4):
        table = write(make_rows(n_sessions=2, n_trials=n_trials), tmp_path / "t.parquet")
        data = run_audit(table, tmp_path / "out")

    assert data["rows"] == 8


@pytest.mark.parametrize(("flag", "warned"), [(2 * SFREQ, True), (SFREQ, False)])
def test_a_flag_that_contradicts_the_tables_rate_is_said(tmp_path, flag, warned):
    rows = [row | {"sfreq": SFREQ, "onset": ONSET} for row in make_rows()]
    table = write(rows, tmp_path / "table.parquet")
    data = run_audit(table, tmp_path / "audit", "--sfreq", str(flag))
    assert ("sfreq_flag_differs" in kinds(data)) == warned
