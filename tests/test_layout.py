"""The plan of a dataset: refusals, statistics of train alone, and what a sample holds."""

from dataclasses import replace

import numpy as np
import pytest

from beam_pipeline.blocks import block_key
from beam_pipeline.layout import LayoutError, plan_layout
from beam_pipeline.moments import UNIT, Moments
from beam_pipeline.options import DatasetOptions
from beam_pipeline.output.segments import Pointers
from beam_pipeline.rejects import Reason
from beam_pipeline.screening import digests
from beam_pipeline.sessions import Block
from beam_pipeline.sessions_table import read_summaries, sessions_table, write_table
from beam_pipeline.spectrogram_options import SpectrogramOptions
from beam_pipeline.splits import SPLITS
from beam_pipeline.splits_file import SplitsFile
from beam_pipeline.survey import SessionSummary, merge_summaries, survey_block

N_FREQS, N_TIMES = 4, 30
SHAPE = (N_FREQS, N_TIMES)
OPTIONS = DatasetOptions(SpectrogramOptions(sfreq=1000.0), columns={}, block_trials=4)
N_BLOCKS = 3
NAMES = [f"s{i:02d}" for i in range(12)]


def make_block(session, block, n_trials=4):
    number = NAMES.index(session)
    trials = np.arange(block * 4, block * 4 + n_trials)
    return Block(
        session,
        f"m{number // 2}",
        ("WT", "FMR1")[number // 2 % 2],
        block,
        trials,
        np.full(n_trials, 4000.0),
        np.full(n_trials, np.nan),
        digests(np.array([[number, trial] for trial in trials], np.float64)),
        Pointers(trials, trials),
    )


def make_arrays(session, block, n_trials=4, **_):
    """Spectrograms whose level and spread differ between sessions and frequencies."""
    number = NAMES.index(session)
    rng = np.random.default_rng([number, block])
    noise = rng.standard_normal((n_trials, *SHAPE)) * np.linspace(0.5, 2.0, N_FREQS)[:, None]
    values = noise + number - np.arange(N_FREQS)[:, None]
    baseline = number + rng.standard_normal((n_trials, N_FREQS))
    return values.astype(np.float32), baseline.astype(np.float32)


@pytest.fixture(scope="module")
def data():
    return {(name, block): make_arrays(name, block) for name in NAMES for block in range(N_BLOCKS)}


def summary_of(block, values, baseline):
    summary = survey_block(block, values, baseline)[1]
    assert summary is not None
    return summary


def summarise(data):
    found: dict[str, list[SessionSummary]] = {}
    for (session, block), arrays in data.items():
        summary = summary_of(make_block(session, block), *arrays)
        found.setdefault(session, []).append(summary)
    return [merge_summaries(parts) for parts in found.values()]


def plan(summaries, rejects=None, n_rows=None, rejected_sessions=(), **changes):
    rejects = rejects or {}
    n_rows = len(NAMES) * N_BLOCKS * 4 + sum(rejects.values()) if n_rows is None else n_rows
    options = replace(OPTIONS, **changes)
    return plan_layout(summaries, rejects, n_rows, options, SHAPE, rejected_sessions)


# --- Surveying a block ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "bad"),
    [
        *(("spectrogram", bad) for bad in (np.nan, np.inf, -np.inf, 2.0**40, -(2.0**40))),
        *(("baseline", bad) for bad in (np.nan, np.inf, -np.inf)),
    ],
)
def test_survey_rejects_what_cannot_be_used_and_keeps_the_rest(where, bad):
    block, (values, baseline) = make_block("s01", 2), make_arrays("s01", 2)
    (values[1, 3] if where == "spectrogram" else baseline[1])[2] = bad
    kept, summary, rejects = survey_block(block, values, baseline)
    good = [0, 2, 3]
    assert [(r.session, r.trial_num, r.reason) for r in rejects] == [
        ("s01", 9, Reason.UNUSABLE_SPECTROGRAM)
    ]
    assert kept.trial_num.tolist() == [8, 10, 11]
    _, expected, _ = survey_block(
        block.select(np.isin(np.arange(4), good)), values[good], baseline[good]
    )
    assert summary == expected


def test_survey_keeps_a_trial_that_is_large_throughout():
    """Its squares add up to more than that of the largest value allowed."""
    values, baseline = make_arrays("s00", 0)
    values[2] = 2.0**39
    _, summary, rejects = survey_block(make_block("s00", 0), values, baseline)
    assert rejects == []
    assert summary is not None
    assert summary.n_trials == 4


def test_survey_of_a_block_with_nothing_left():
    values, baseline = make_arrays("s00", 0)
    block, summary, rejects = survey_block(make_block("s00", 0), values * np.nan, baseline)
    assert summary is None
    assert (len(block.trial_num), len(rejects)) == (0, 4)


def test_a_session_is_the_sum_of_its_blocks_in_any_order(data):
    parts = [summary_of(make_block("s03", i), *data["s03", i]) for i in range(N_BLOCKS)]
    merged = merge_summaries(parts)
    assert merged == merge_summaries([merge_summaries(parts[1:]), parts[0]])
    assert merged.n_trials == 12
    baseline = np.concatenate([data["s03", block][1] for block in range(N_BLOCKS)])
    assert merged.gain() / UNIT == pytest.approx(baseline.mean(dtype=np.float64), rel=1e-9)


def test_content_tells_which_trials_were_used(data):
    block, arrays = make_block("s03", 0), data["s03", 0]
    masks = [np.arange(4) != left_out for left_out in range(4)]
    contents = {
        summary_of(block.select(mask), *(a[mask] for a in arrays)).content for mask in masks
    }
    assert len(contents) == 4


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [-1, 1])
def test_lost_rows_are_refused(data, lost):
    with pytest.raises(LayoutError, match=f"{144 + lost} rows went in, but 144 used and 0 rej"):
        plan(summarise(data), n_rows=144 + lost)


def test_too_many_rejects_are_named_with_their_counts(data):
    rejects = {"flat": 3, "railed": 20, "too_short": 1}
    with pytest.raises(LayoutError) as caught:
        plan(summarise(data), rejects)
    message = str(caught.value)
    assert "24 of 168 rows (14.3%)" in message
    assert "--max_reject_fraction 0.05: railed 20, flat 3, too_short 1" in message


@pytest.mark.parametrize(("limit", "allowed"), [(16 / 160, True), (0.0999, False), (0.0, False)])
def test_share_of_rejects_that_is_allowed(data, limit, allowed):
    rejects = {"flat": 16}
    if allowed:
        assert plan(summarise(data), rejects, max_reject_fraction=limit).classes
    else:
        with pytest.raises(LayoutError, match="flat 16"):
            plan(summarise(data), rejects, max_reject_fraction=limit)


def test_no_rows_left():
    with pytest.raises(LayoutError, match="all 7 rows are rejected: flat 4, railed 3"):
        plan([], {"railed": 3, "flat": 4}, n_rows=7, max_reject_fraction=1.0)


def test_a_class_that_cannot_be_in_every_split(data):
    with pytest.raises(LayoutError, match=r"3 animals of each class .* 'FMR1' has 1 animal;"):
        plan([s for s in summarise(data) if s.condition == "WT" or s.session == "s02"], n_rows=84)


def test_a_class_that_is_asked_for_must_be_there(data):
    with pytest.raises(LayoutError) as caught:
        plan(summarise(data), {"flat": 3}, classes=("WT", "FMR1", "KO"))
    message = str(caught.value)
    assert "no usable trial has the class KO (usable trials: FMR1 72, WT 72)" in message
    assert "flat 3" in message


@pytest.mark.parametrize("split_ratios", [(0.7, 0.15, 0.15), (1.0, 0.0, 0.0)])
def test_one_class_is_no_dataset(data, split_ratios):
    one = [summary for summary in summarise(data) if summary.condition == "WT"]
    with pytest.raises(LayoutError, match=r"two classes \(usable trials: WT 72\)"):
        plan(one, n_rows=72, split_ratios=split_ratios)


@pytest.mark.parametrize("normalization", ["global", "per_frequency"])
def test_constant_spectrograms_cannot_be_normalised(data, normalization):
    constant = {key: (np.full_like(v, -10.0), b) for key, (v, b) in data.items()}
    with pytest.raises(LayoutError, match="train spectrograms are constant"):
        plan(summarise(constant), normalization=normalization)
    assert plan(summarise(constant), normalization="none").normalization.std == [1.0]


# --- Statistics -----------------------------------------------------------------------------------


def train_values(data, layout):
    """All train spectrograms in float64, less each session's gain."""
    train = [name for name in NAMES if layout.split_of[name] == "train"]
    parts = []
    for name in train:
        values = np.concatenate([data[name, block][0] for block in range(N_BLOCKS)])
        baseline = np.concatenate([data[name, block][1] for block in range(N_BLOCKS)])
        gain = baseline.mean(dtype=np.float64) if any(layout.gains.values()) else 0.0
        parts.append(values.astype(np.float64) - gain)
    return train, np.concatenate(parts)


@pytest.mark.parametrize("gain_correction", ["none", "session"])
@pytest.mark.parametrize(("normalization", "axis"), [("global", None), ("per_frequency", (0, 2))])
def test_statistics_are_those_of_train(data, normalization, axis, gain_correction):
    layout = plan(summarise(data), normalization=normalization, gain_correction=gain_correction)
    train, values = train_values(data, layout)
    norm = layout.normalization
    np.testing.assert_allclose(norm.mean, np.atleast_1d(values.mean(axis=axis)), rtol=1e-9)
    np.testing.assert_allclose(norm.std, np.atleast_1d(values.std(axis=axis)), rtol=1e-9)
    assert list(norm.sessions) == train
    assert norm.count * len(norm.mean) in {values.size, values.size // N_FREQS * len(norm.mean)}
    assert {layout.split_of[name] for name in NAMES} == set(SPLITS)
    for name in NAMES[::2]:
        partner = NAMES[NAMES.index(name) + 1]
        assert layout.split_of[name] == layout.split_of[partner]


@pytest.mark.parametrize("gain_correction", ["none", "session"])
def test_val_and_test_change_no_statistic(data, gain_correction):
    before = plan(summarise(data), gain_correction=gain_correction)
    changed = {
        (name, block): arrays
        if before.split_of[name] == "train"
        else (arrays[0] * 50 + 7, arrays[1] - 9)
        for (name, block), arrays in data.items()
    }
    after = plan(summarise(changed), gain_correction=gain_correction)
    assert after.split_of == before.split_of
    assert after.normalization.mean.tobytes() == before.normalization.mean.tobytes()
    assert after.normalization.std.tobytes() == before.normalization.std.tobytes()


def test_order_of_sessions_changes_nothing(data):
    summaries = summarise(data)
    first, again = plan(summaries), plan(summaries[::-1])
    assert first.normalization.mean.tobytes() == again.normalization.mean.tobytes()
    assert (first.split_of, first.shard_starts) == (again.split_of, again.shard_starts)


def test_a_splits_file_is_followed(data):
    wanted = {name: SPLITS[(i // 4) % 3] for i, name in enumerate(NAMES)}
    layout = plan(summarise(data), splits=SplitsFile("splits.csv", "session", wanted))
    assert layout.split_of == wanted


def test_a_splits_file_may_list_a_session_that_was_rejected(data):
    wanted = {name: SPLITS[(i // 4) % 3] for i, name in enumerate(NAMES)}
    file = SplitsFile("splits.csv", "session", {**wanted, "flat": "train"})
    rejects = {"flat": 4}
    with pytest.raises(LayoutError, match="not in the table: 'flat'"):
        plan(summarise(data), rejects, splits=file)
    layout = plan(summarise(data), rejects, rejected_sessions=["flat"], splits=file)
    assert layout.split_of == wanted


def test_a_splits_file_may_do_without_a_split_of_ratio_zero(data):
    wanted = {name: SPLITS[2 * (i // 4 % 2)] for i, name in enumerate(NAMES)}
    file = SplitsFile("splits.csv", "session", wanted)
    with pytest.raises(LayoutError, match="val has no trial"):
        plan(summarise(data), splits=file)
    layout = plan(summarise(data), splits=file, split_ratios=(0.7, 0.0, 0.3))
    assert layout.split_of == wanted
    assert layout.shard_starts["val"] == ()


def test_classes_are_sorted_or_as_asked_for(data):
    assert plan(summarise(data)).classes == ("FMR1", "WT")
    assert plan(summarise(data), classes=("WT", "FMR1")).classes == ("WT", "FMR1")


# --- Shards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_shards", [None, 1, 3, 1000])
def test_every_block_has_one_shard(data, num_shards):
    layout = plan(summarise(data), num_shards=num_shards)
    placed = {key: layout.shard_of(make_block(*key)) for key in data}
    for split in SPLITS:
        own = [index for where, index in placed.values() if where == split]
        n_shards = len(layout.shard_starts[split])
        assert set(own) == set(range(n_shards))
        assert n_shards == min(num_shards or 1, len(own))
        counts = np.bincount(own)
        assert counts.max() - counts.min() <= 1


def test_a_split_that_is_not_wanted_has_no_shards(data):
    layout = plan(summarise(data), split_ratios=(0.8, 0.2, 0.0))
    assert layout.shard_starts["test"] == ()


# --- Samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain_correction", ["none", "session"])
@pytest.mark.parametrize("normalization", ["global", "per_frequency", "none"])
def test_sample_is_normalised(data, normalization, gain_correction):
    layout = plan(summarise(data), normalization=normalization, gain_correction=gain_correction)
    _, train = train_values(data, layout)
    axis = (0, 2) if normalization == "per_frequency" else None
    mean, std = train.mean(axis=axis, keepdims=True), train.std(axis=axis, keepdims=True)
    if normalization == "none":
        mean, std = 0.0, 1.0
    for key in [("s00", 0), ("s07", 2)]:
        values, baseline = data[key]
        whole = np.concatenate([data[key[0], block][1] for block in range(N_BLOCKS)])
        gain = whole.mean(dtype=np.float64) if gain_correction == "session" else 0.0
        expected = ((values.astype(np.float64) - gain) - mean) / std
        sample = layout.sample(make_block(*key), values.copy(), baseline)
        assert sample.spectrogram.dtype == np.float16
        np.testing.assert_allclose(
            sample.spectrogram.astype(np.float64), expected, rtol=2**-10, atol=1e-5
        )
        # Kept as it was, for whoever wants the level.
        np.testing.assert_array_equal(sample.baseline, baseline)
        assert sample.values_clipped == 0


def test_metadata_of_a_sample(data):
    layout = plan(summarise(data))
    block = replace(
        make_block("s03", 1), amplitude=np.array([np.nan, -np.inf, 60.0, 70.5]), subject=None
    )
    sample = layout.sample(block, *(array.copy() for array in data["s03", 1]))
    assert sample.key == block_key("s03", 1)
    assert list(sample.metadata.items()) == [
        ("session", "s03"),
        ("subject", None),
        ("condition", "FMR1"),
        ("label", 0),
        ("block", 1),
        ("trial_num", [4, 5, 6, 7]),
        ("frequency", [4000.0] * 4),
        ("amplitude", [None, None, 60.0, 70.5]),
    ]


def test_values_beyond_float16_are_clipped_and_counted(data):
    layout = plan(summarise(data), normalization="none")
    values, baseline = (array.copy() for array in data["s00", 0])
    values[0, 0, :3] = [1e5, -1e5, 65504.0]
    values[2, 1, 4] = 70_000.0
    sample = layout.sample(make_block("s00", 0), values, baseline)
    assert sample.values_clipped == 3
    assert sample.spectrogram[0, 0, :3].tolist() == [65504.0, -65504.0, 65504.0]
    assert np.isfinite(sample.spectrogram).all()


# --- sessions.parquet -----------------------------------------------------------------------------


def test_summaries_are_written_and_read_exactly(data, tmp_path):
    summaries = summarise(data)
    layout = plan(summaries, {"flat": 2}, gain_correction="session")
    huge = Moments(10**12, (-(2**95),) * N_FREQS, (2**120,) * N_FREQS)
    summaries[0] = replace(summaries[0], moments=huge, content=(1 << 128) - 1, subject=None)
    table = sessions_table(summaries[::-1], layout, {"s01": 2})
    write_table(table, tmp_path / "sessions.parquet")
    read, again = read_summaries(tmp_path / "sessions.parquet")
    assert read == summaries
    assert again["trials_rejected"].to_pylist() == [0, 2] + [0] * 10
    assert again["split"].to_pylist() == [layout.split_of[name] for name in NAMES]
    gains = [round(gain * UNIT) for gain in again["gain"].to_pylist()]
    assert gains == [layout.gains[name] for name in NAMES]


def test_a_damaged_table_of_sessions(tmp_path):
    path = tmp_path / "sessions.parquet"
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ValueError, match=r"sessions\.parquet is not readable"):
        read_summaries(path)


def test_gain_of_a_session_without_spread():
    moments = Moments(6, (0,) * N_FREQS, (0,) * N_FREQS)
    summary = SessionSummary("s", None, "WT", ((0, 2), (5, 1)), moments, 3 * N_FREQS * UNIT, 0)
    assert summary.n_trials == 3
    assert summary.gain() == UNIT
