"""Rows to arrays: every encoding, every reason to reject a row, the window, resampling."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from scipy import signal

from beam_pipeline.rejects import Reason
from beam_pipeline.screening import ScreeningOptions, digests, resampling_ratio, screen
from beam_pipeline.trace_column import decode_traces, fits_float32, is_trace_type

SFREQ, ONSET = 100.0, 0.5
OPTIONS = ScreeningOptions(
    sfreq=SFREQ,
    onset=ONSET,
    resample=False,
    max_railed_fraction=0.2,
    segment=(-0.2, 0.3),
    n_samples=50,
    dtype="float64",
)
WINDOW = slice(30, 80)
RNG = np.random.default_rng(0)
TRACE = RNG.standard_normal(100)


def make_row(**changes):
    row = {"session": "s", "condition": "WT", "trial_num": 1, "trace": TRACE.tolist()}
    return row | changes


TYPES = {
    "session": pa.string(),
    "condition": pa.string(),
    "trial_num": pa.int64(),
    "trace": pa.list_(pa.float64()),
    "subject": pa.string(),
    **dict.fromkeys(("sfreq", "onset", "frequency", "amplitude"), pa.float64()),
}


def make_batch(rows, **types):
    """A record batch of the columns that any row has."""
    names = [name for name in TYPES if any(name in row for row in rows)]
    columns = [pa.array([r.get(n) for r in rows], types.get(n, TYPES[n])) for n in names]
    return pa.RecordBatch.from_arrays(columns, names=names)


def rows_of(column):
    return [column.row(index) for index in range(len(column.offsets) - 1)]


# --- Encodings ------------------------------------------------------------------------------------

WHOLE = [[0.0, 1.0, -2.0], [3.0, 127.0, -5.0], [1e3, 0.5, 6.0]]
INTEGERS = [[0, 1, -2], [3, 127, -5], [1000, -32768, 6]]


@pytest.mark.parametrize("n_before", [0, 2])
@pytest.mark.parametrize("wrap", [pa.list_, pa.large_list, lambda value: pa.list_(value, 3)])
@pytest.mark.parametrize(
    "value", [pa.float32(), pa.float64(), pa.float16(), pa.int16(), pa.int32(), pa.int64()], ids=str
)
def test_lists(value, wrap, n_before):
    rows = WHOLE if pa.types.is_floating(value) else INTEGERS
    if value == pa.float16():
        rows = [np.array(row, np.float16).tolist() for row in rows]
    typed = [np.array(row, value.to_pandas_dtype()) for row in rows]
    array = pa.array(typed[:n_before] + typed + typed[:1], wrap(value))
    decoded = decode_traces(array.slice(n_before, 3))
    assert is_trace_type(array.type)
    assert decoded.problems == {}
    np.testing.assert_array_equal(rows_of(decoded), np.array(rows, np.float64))


@pytest.mark.parametrize(
    "data_type",
    [
        pa.list_(pa.float32()),
        pa.large_list(pa.float64()),
        pa.list_(pa.int16()),
        pa.list_(pa.float16()),
        pa.list_(pa.float32(), 2),
        pa.list_(pa.int32(), 2),
    ],
    ids=str,
)
def test_nulls(data_type):
    one, two, three = np.array([1, 2, 3], data_type.value_type.to_pandas_dtype())
    array = pa.array([[three, three], [one, two], None, [None, three], None, [two, one]], data_type)
    decoded = decode_traces(array[1:])
    assert decoded.problems.keys() == {1, 3}
    assert {reason for reason, _ in decoded.problems.values()} == {Reason.EMPTY_TRACE}
    rows = rows_of(decoded)
    for index, expected in ((0, [1, 2]), (2, [np.nan, 3]), (4, [2, 1])):
        np.testing.assert_array_equal(rows[index], expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1.0, -2.5, 3]", [1.0, -2.5, 3.0]),
        ("1.0,-2.5,3", [1.0, -2.5, 3.0]),
        ("1.0 -2.5 3", [1.0, -2.5, 3.0]),
        ("[1.0 -2.5\n  3.]", [1.0, -2.5, 3.0]),
        ("  [ 1.0 ,\t-2.5 , 3 ]\r\n", [1.0, -2.5, 3.0]),
        ("(1, 2)", [1.0, 2.0]),
        ("1,2,3,", [1.0, 2.0, 3.0]),
        ("[1e-3, -2.5E+4, 1.]", [1e-3, -2.5e4, 1.0]),
        ("[1, nan, NaN, null]", [1.0, np.nan, np.nan, np.nan]),
        ("[1, inf, -Infinity]", [1.0, np.inf, -np.inf]),
        ("[0.1, 1234567.890123]", [0.1, 1234567.890123]),
    ],
)
@pytest.mark.parametrize("data_type", [pa.string(), pa.large_string()])
def test_text(text, expected, data_type):
    decoded = decode_traces(pa.array(["5", text], data_type)[1:])
    assert decoded.problems == {}
    np.testing.assert_array_equal(decoded.row(0), expected)


@given(st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_text_keeps_every_double(values):
    np.testing.assert_array_equal(decode_traces(pa.array([str(values)])).row(0), values)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1.0, 2.0, ..., 3.0]", Reason.TRUNCATED_TRACE),
        ("[1.0, 2.0…", Reason.TRUNCATED_TRACE),
        ("[1.0, 2.0, 3.", Reason.TRUNCATED_TRACE),
        ("1.0, 2.0]", Reason.TRUNCATED_TRACE),
        ("[1.0, two]", Reason.UNPARSABLE_TRACE),
        ("[[1, 2], [3, 4]]", Reason.UNPARSABLE_TRACE),
        ("1;2;3", Reason.UNPARSABLE_TRACE),
        ("[1, , 3]", Reason.UNPARSABLE_TRACE),
        (",1,2", Reason.UNPARSABLE_TRACE),
        ("[,1,2]", Reason.UNPARSABLE_TRACE),
    ],
)
def test_text_that_is_no_trace(text, reason):
    decoded = decode_traces(pa.array(["[1, 2]", text, None, "[3, 4]"]))
    assert {row: found for row, (found, _) in decoded.problems.items()} == {
        1: reason,
        2: Reason.EMPTY_TRACE,
    }
    assert [row.tolist() for row in rows_of(decoded)] == [[1, 2], [], [], [3, 4]]


@pytest.mark.parametrize("data_type", [pa.binary(), pa.large_binary(), pa.binary(12)], ids=str)
def test_bytes(data_type):
    rows = RNG.standard_normal((3, 3)).astype("<f4")
    array = pa.array([row.tobytes() for row in rows], data_type)
    np.testing.assert_array_equal(rows_of(decode_traces(array)), rows)
    np.testing.assert_array_equal(rows_of(decode_traces(array[1:])), rows[1:])


def test_bytes_that_are_no_float32():
    decoded = decode_traces(pa.array([b"12345", b"1234", b""]))
    assert decoded.problems.keys() == {0}
    assert decoded.problems[0][0] == Reason.UNPARSABLE_TRACE


@pytest.mark.parametrize(
    "array", [pa.array(["1 2", "3 4"]), pa.array([[1.0, 2.0], [3.0, 4.0]])], ids=["text", "list"]
)
def test_dictionary(array):
    encoded = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1]), array)
    np.testing.assert_array_equal(rows_of(decode_traces(encoded)), [[3, 4], [1, 2], [3, 4]])


@pytest.mark.parametrize("data_type", [pa.list_(pa.float32()), pa.string(), pa.binary()], ids=str)
def test_no_rows(data_type):
    assert rows_of(decode_traces(pa.array([], data_type))) == []


@pytest.mark.parametrize("data_type", [pa.float32(), pa.list_(pa.string()), pa.list_(pa.bool_())])
def test_types_that_hold_no_trace(data_type):
    assert not is_trace_type(data_type)


@pytest.mark.parametrize(
    "value",
    [
        *(pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint8(), pa.int16()),
        *(pa.uint16(), pa.int32(), pa.uint32(), pa.int64()),
    ],
    ids=str,
)
def test_fits_float32_says_what_numpy_says(value):
    dtype = value.to_pandas_dtype()
    expected = bool(np.can_cast(dtype, np.float32, "safe"))
    assert fits_float32(pa.list_(value)) == expected
    assert fits_float32(pa.list_(value, 4)) == expected


def test_fits_float32_of_text_and_bytes():
    assert fits_float32(pa.binary())
    assert fits_float32(pa.binary(8))
    assert not fits_float32(pa.string())
    assert not fits_float32(pa.dictionary(pa.int32(), pa.string()))


# --- Reasons --------------------------------------------------------------------------------------


def changed(where, value):
    trace = TRACE.copy()
    trace[where] = value
    return trace.tolist()


BAD: dict[Reason, list[dict]] = {
    Reason.MISSING_ID: [{"session": None}, {"session": ""}, {"trial_num": None}],
    Reason.MISSING_CONDITION: [{"condition": None}, {"condition": ""}],
    Reason.MISSING_TIMING: [{"sfreq": 0.0}, {"sfreq": -1.0}, {"sfreq": np.inf}, {"onset": np.inf}],
    Reason.SFREQ_MISMATCH: [{"sfreq": 99.0}, {"sfreq": 100.01}],
    Reason.EMPTY_TRACE: [{"trace": []}, {"trace": None}],
    Reason.TOO_SHORT: [{"trace": TRACE[:79].tolist()}, {"onset": 0.1}, {"onset": 0.71}],
    Reason.NON_FINITE: [
        *({"trace": changed(WINDOW.start, bad)} for bad in (np.nan, np.inf, -np.inf)),
        {"trace": changed(WINDOW.stop - 1, np.nan)},
    ],
    Reason.FLAT: [{"trace": [0.1] * 100}, {"trace": changed(WINDOW, -7.0)}],
    # 11 of 50 samples are more than the 20 % allowed.
    Reason.RAILED: [{"trace": changed(slice(40, 51), rail)} for rail in (9.0, -9.0)],
}
TEXT_BAD: dict[Reason, list] = {
    Reason.TRUNCATED_TRACE: ["[0.1, 0.2, ...]", "[0.1, 0.2"],
    Reason.UNPARSABLE_TRACE: ["[0.1, x]", "[0.1,, 0.2]"],
    Reason.EMPTY_TRACE: ["", "[]", None],
}


@pytest.mark.parametrize(
    ("reason", "change"),
    [(reason, change) for reason, changes in BAD.items() for change in changes],
)
def test_reason(reason, change):
    rows = [make_row(trial_num=5), make_row(trial_num=6) | change, make_row(trial_num=7)]
    trials, rejects = screen(make_batch(rows), OPTIONS)
    assert trials.trial_num.tolist() == [5, 7]
    np.testing.assert_array_equal(trials.segments, [TRACE[WINDOW]] * 2)
    assert [reject.reason for reject in rejects] == [reason]
    assert rejects[0].session == (rows[1]["session"] or None)
    assert rejects[0].trial_num == rows[1]["trial_num"]
    assert rejects[0].detail


@pytest.mark.parametrize(
    ("reason", "text"), [(reason, text) for reason, texts in TEXT_BAD.items() for text in texts]
)
def test_reason_of_text(reason, text):
    good = str(TRACE.tolist())
    rows = [make_row(trial_num=5, trace=text), make_row(trial_num=6, trace=good)]
    trials, rejects = screen(make_batch(rows, trace=pa.string()), OPTIONS)
    assert [(reject.trial_num, reject.reason) for reject in rejects] == [(5, reason)]
    np.testing.assert_array_equal(trials.segments, [TRACE[WINDOW]])


def test_reason_of_bytes():
    rows = [make_row(trace=b"12345"), make_row(trace=TRACE.astype("<f4").tobytes())]
    trials, rejects = screen(make_batch(rows, trace=pa.binary()), OPTIONS)
    assert [reject.reason for reject in rejects] == [Reason.UNPARSABLE_TRACE]
    np.testing.assert_array_equal(trials.segments, [TRACE[WINDOW].astype(np.float32)])


def test_missing_onset():
    options = replace(OPTIONS, onset=None)
    rows = [make_row(), make_row(onset=0.5)]
    trials, rejects = screen(make_batch(rows), options)
    assert [reject.reason for reject in rejects] == [Reason.MISSING_TIMING]
    assert len(trials.segments) == 1


# What each reason needs of a row; all of them together leave the first reason.
FAULTS = [
    (Reason.MISSING_ID, {"session": None}),
    (Reason.MISSING_CONDITION, {"condition": None}),
    (Reason.MISSING_TIMING, {"onset": np.inf}),
    (Reason.SFREQ_MISMATCH, {"sfreq": 50.0}),
    (Reason.TRUNCATED_TRACE, {"trace": "[1, nan, x, ..."}),
    (Reason.UNPARSABLE_TRACE, {"trace": "[1, nan, x]"}),
    (Reason.EMPTY_TRACE, {"trace": "[]"}),
    (Reason.TOO_SHORT, {"trace": "[1, nan]"}),
    (Reason.NON_FINITE, {"trace": str([1.0] * 99 + ["nan"]).replace("'", "")}),
    (Reason.FLAT, {"trace": str([1.0] * 100)}),
    (Reason.RAILED, {"trace": str(changed(slice(40, 51), 9.0))}),
]


def test_precedence():
    assert [reason for reason, _ in FAULTS] == list(Reason)[: len(FAULTS)]
    options = replace(OPTIONS, segment=(-0.5, 0.5), n_samples=100, max_railed_fraction=0.1)
    row = make_row(trace=str(TRACE.tolist()))
    for reason, fault in reversed(FAULTS):
        row = row | fault
        _, rejects = screen(make_batch([row], trace=pa.string()), options)
        assert [reject.reason for reject in rejects] == [reason]


def test_a_row_of_an_unknown_condition_is_left_to_its_session():
    """Rejected here, it could no longer contradict the other rows of its session."""
    trials, rejects = screen(make_batch([make_row(), make_row(condition="KO")]), OPTIONS)
    assert trials.condition == ["WT", "KO"]
    assert rejects == []


def test_railed_at_the_limit():
    allowed = make_row(trace=changed(slice(40, 50), 9.0))
    trials, rejects = screen(make_batch([allowed]), OPTIONS)
    assert len(trials.segments) == 1
    assert rejects == []


@pytest.mark.parametrize("where", [0, WINDOW.start - 1, WINDOW.stop, 99])
def test_nan_outside_the_window_is_harmless(where):
    trials, rejects = screen(make_batch([make_row(trace=changed(where, np.nan))]), OPTIONS)
    assert rejects == []
    np.testing.assert_array_equal(trials.segments, [TRACE[WINDOW]])


@pytest.mark.parametrize("n_rows", [0, 3])
def test_no_row_survives(n_rows):
    trials, rejects = screen(make_batch([make_row(condition=None)] * 3)[:n_rows], OPTIONS)
    assert trials.segments.shape == (0, 50)
    assert trials.digest.shape == (0, 16)
    assert len(rejects) == n_rows


ROWS = st.sampled_from([{}, {}, {}, *(change for changes in BAD.values() for change in changes)])


@given(st.lists(ROWS, min_size=1, max_size=25), st.integers(1, 25))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_row_is_used_or_rejected_whatever_the_batch(changes, cut):
    rows = [make_row(trial_num=i) | change for i, change in enumerate(changes)]
    batch = make_batch([*rows, make_row(sfreq=SFREQ, onset=ONSET)])[:-1]
    trials, rejects = screen(batch, OPTIONS)
    expected = Counter(
        next(reason for reason, known in BAD.items() if any(change is k for k in known))
        for change in changes
        if change
    )
    assert Counter(reject.reason for reject in rejects) == expected
    assert trials.trial_num.tolist() == [i for i, change in enumerate(changes) if not change]
    parts = [screen(part, OPTIONS) for part in (batch[:cut], batch[cut:])]
    assert [reject for _, part in parts for reject in part] == rejects
    for name in ("trial_num", "level", "digest", "segments"):
        joined = np.concatenate([getattr(part, name) for part, _ in parts])
        np.testing.assert_array_equal(joined, getattr(trials, name))


# --- Columns of an accepted row -------------------------------------------------------------------


def test_labels_are_carried_through():
    rows = [
        make_row(subject="m1", frequency=4000.0, amplitude=-np.inf),
        make_row(condition="FMR1", trial_num=2),
    ]
    trials, _ = screen(make_batch(rows), OPTIONS)
    assert trials.session == ["s", "s"]
    assert trials.subject == ["m1", None]
    assert trials.condition == ["WT", "FMR1"]
    np.testing.assert_array_equal(trials.frequency, [4000.0, np.nan])
    np.testing.assert_array_equal(trials.amplitude, [-np.inf, np.nan])
    np.testing.assert_allclose(trials.level, [TRACE[WINDOW].std()] * 2, rtol=1e-14)


@pytest.mark.parametrize(
    "session",
    [
        pa.array([7, 42]),
        pa.array(["7", "42"]).dictionary_encode(),
        pa.array([7, 42]).dictionary_encode(),
        pa.array(["7", "42"], pa.large_string()),
    ],
    ids=lambda session: str(session.type),
)
def test_sessions_become_strings(session):
    batch = make_batch([make_row()] * 2).set_column(0, "session", session)
    assert screen(batch, OPTIONS)[0].session == ["7", "42"]


@pytest.mark.parametrize("dtype", [pa.float32(), pa.int64()])
def test_numbers_of_any_type(dtype):
    batch = make_batch([make_row(frequency=4000.0)], frequency=dtype)
    assert screen(batch, OPTIONS)[0].frequency.tolist() == [4000.0]


def test_digest_tells_segments_apart():
    segments = np.stack([TRACE, TRACE, TRACE + 1e-15, -TRACE])
    found = [digest.tobytes() for digest in digests(segments)]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_segments_keep_the_precision_asked_for():
    batch = make_batch([make_row()])
    assert screen(batch, OPTIONS)[0].segments.dtype == np.float64
    single, _ = screen(batch, replace(OPTIONS, dtype="float32"))
    np.testing.assert_array_equal(single.segments, [TRACE[WINDOW].astype(np.float32)])
    assert single.segments.dtype == np.float32


# --- Timing ---------------------------------------------------------------------------------------


def test_window_follows_the_onset_of_each_row():
    trace = np.arange(1000.0)
    onsets = [0.2, 1.0, 3.337, None, 9.7]
    rows = [make_row(trace=trace.tolist(), onset=onset) for onset in onsets]
    trials, rejects = screen(make_batch(rows), OPTIONS)
    assert rejects == []
    # 0.2 s before the onset, by hand; the row without an onset takes the constant.
    assert trials.segments[:, 0].tolist() == [0, 80, 314, 30, 950]
    np.testing.assert_array_equal(np.diff(trials.segments), 1.0)


@pytest.mark.parametrize("sfreq", [173.61, 250.0, 1017.2526, 24414.0625])
@pytest.mark.parametrize("onset", [0.5, 0.777, 1.2345])
def test_window_at_odd_rates(sfreq, onset):
    n_samples = int(0.5 * sfreq)
    options = replace(OPTIONS, sfreq=sfreq, n_samples=n_samples)
    trace = np.arange(int(2 * sfreq), dtype=np.float64)
    trials, _ = screen(make_batch([make_row(trace=trace.tolist(), onset=onset)]), options)
    first = trials.segments[0, 0]
    # The first sample is the one nearest to its time, and the others follow.
    assert abs(first / sfreq - (onset - 0.2)) <= 0.5 / sfreq + 1e-12
    np.testing.assert_array_equal(trials.segments[0], trace[int(first) :][:n_samples])


@pytest.mark.parametrize(("first", "n_trace", "fits"), [(0, 50, True), (0, 49, False)])
def test_window_that_just_fits(first, n_trace, fits):
    row = make_row(trace=TRACE[:n_trace].tolist(), onset=first / SFREQ + 0.2)
    trials, rejects = screen(make_batch([row]), OPTIONS)
    assert (len(trials.segments), len(rejects)) == (int(fits), int(not fits))


def test_sfreq_column_wins_over_the_constant():
    rows = [make_row(sfreq=rate, trial_num=i) for i, rate in enumerate([None, 100.0, 200.0])]
    trials, rejects = screen(make_batch(rows), OPTIONS)
    assert trials.trial_num.tolist() == [0, 1]
    assert [reject.trial_num for reject in rejects] == [2]


# --- Resampling -----------------------------------------------------------------------------------

RESAMPLE = replace(OPTIONS, resample=True)


def resampled(trace, sfreq, target=SFREQ, **changes):
    options = replace(RESAMPLE, sfreq=target, n_samples=int(0.5 * target), **changes)
    return screen(make_batch([make_row(trace=list(trace), sfreq=sfreq)]), options)


@pytest.mark.parametrize(
    ("sfreq", "target", "tolerance"),
    [
        *((200.0, 100.0, 1e-12), (50.0, 100.0, 1e-12), (512.0, 200.0, 1e-12)),
        *((250.0, 100.0, 1e-12), (44100.0, 8000.0, 1e-12), (1000.0, 173.61, 1e-4)),
        # 20000/17361, more than the resampler is given: the nearest shorter fraction.
        (173.61, 200.0, 1e-4),
    ],
)
def test_resampling_is_scipys(sfreq, target, tolerance):
    ratio = Fraction(str(target)) / Fraction(str(sfreq))
    trace = RNG.standard_normal(int(2 * sfreq))
    trials, rejects = resampled(trace, sfreq, target)
    assert rejects == []
    start = round(0.3 * target)
    whole = signal.resample_poly(
        trace - trace.mean(), ratio.numerator, ratio.denominator, padtype="line"
    )
    expected = whole[start : start + int(0.5 * target)] + trace.mean()
    np.testing.assert_allclose(trials.segments[0], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sfreq", [80.0, 173.61, 256.0, 1000.0, 1017.2526, 1000.05])
def test_a_sine_keeps_its_frequency_and_phase(sfreq):
    time = np.arange(int(2 * sfreq)) / sfreq
    trials, _ = resampled(5e3 + np.sin(2 * np.pi * 7.0 * time), sfreq)
    expected = np.sin(2 * np.pi * 7.0 * (0.3 + np.arange(50) / SFREQ))
    np.testing.assert_allclose(trials.segments[0] - 5e3, expected, atol=5e-3)


@given(st.floats(1.0, 1e5), st.floats(-3.0, 3.0))
@settings(deadline=None, derandomize=True)
def test_resampling_ratio_is_near_and_short(sfreq, exponent):
    target = sfreq * 10**exponent
    up, down = resampling_ratio(sfreq, target)
    assert 1 <= min(up, down) <= max(up, down) <= 10_000
    assert abs(up / down * sfreq / target - 1) <= 5e-5


def test_equal_rates_are_not_resampled():
    rate = SFREQ * (1 + 1e-9)
    trials, _ = resampled(TRACE, rate)
    np.testing.assert_array_equal(trials.segments, [TRACE[WINDOW]])
    assert screen(make_batch([make_row(sfreq=rate)]), OPTIONS)[1] == []


LONG = RNG.standard_normal(400)


def long_with(where, value):
    trace = LONG.copy()
    trace[where] = value
    return trace


@pytest.mark.parametrize(
    ("reason", "sfreq", "trace"),
    [
        (Reason.NON_FINITE, 200.0, long_with(390, np.nan)),
        (Reason.TOO_SHORT, 200.0, long_with(10, np.nan)[:150]),
        (Reason.EMPTY_TRACE, 200.0, []),
        (Reason.FLAT, 200.0, np.full(400, 0.1)),
        (Reason.FLAT, 250.0, long_with(slice(50, 220), 0.1)),
        (Reason.RAILED, 200.0, long_with(slice(80, 110), 4.0)),
        (Reason.SFREQ_MISMATCH, 1e9, LONG),
        (Reason.SFREQ_MISMATCH, 1e-3, LONG),
    ],
)
def test_reasons_when_resampling(reason, sfreq, trace):
    trials, rejects = resampled(trace, sfreq)
    assert [reject.reason for reject in rejects] == [reason]
    assert len(trials.segments) == 0
