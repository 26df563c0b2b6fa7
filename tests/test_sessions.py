"""A session's rows together: conflicts, copies, outliers, blocks; and the files between passes."""

from dataclasses import fields, replace
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from beam_pipeline.output.segments import Pointers, SegmentStore
from beam_pipeline.rejects import Reason
from beam_pipeline.screening import TrialBatch, digests
from beam_pipeline.sessions import (
    Copy,
    SessionRows,
    find_copies,
    fingerprints,
    order_by_session,
    resolve_session,
    session_rows,
)

N_SAMPLES = 8


def make_rows(trial_num, traces=None, **changes):
    """Rows of one session; `traces` are numbers, and equal numbers are equal traces."""
    n = len(trial_num)
    traces = trial_num if traces is None else traces
    columns = {
        "subject": ["m1"] * n,
        "condition": ["WT"] * n,
        "trial_num": np.array(trial_num, np.int64),
        "frequency": np.full(n, 4000.0),
        "amplitude": np.full(n, np.nan),
        "level": np.ones(n),
        "digest": digests(np.array([[trace] * N_SAMPLES for trace in traces], np.float64)),
        "pointers": Pointers(np.zeros(n, np.int64), np.array(traces, np.int64)),
    }
    return SessionRows(**{**columns, **changes})


def take(rows, index):
    index = np.asarray(index, np.int64)
    columns = {field.name: getattr(rows, field.name) for field in fields(rows)}
    for name, column in columns.items():
        columns[name] = [column[i] for i in index] if isinstance(column, list) else column[index]
    return SessionRows(**columns)


def resolve(rows, copies=(), block_trials=4, amplitude_outlier=None, classes=None):
    pieces = rows if isinstance(rows, list) else [rows]
    blocks, rejects = resolve_session(
        "s", pieces, copies, block_trials, amplitude_outlier, classes=classes
    )
    kept = [trial for block in blocks for trial in block.trial_num.tolist()]
    return blocks, kept, {(reject.trial_num, reject.reason) for reject in rejects}, rejects


# --- Blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_trials", [1, 3, 4, 7, 100])
def test_blocks_hold_the_trials_in_order(block_trials):
    numbers = np.random.default_rng(0).permutation(50)[:11] - 20
    blocks, kept, found, _ = resolve(make_rows(numbers), block_trials=block_trials)
    ordered = sorted(numbers.tolist())
    parts = [ordered[i : i + block_trials] for i in range(0, 11, block_trials)]
    assert [block.trial_num.tolist() for block in blocks] == parts
    assert [block.block for block in blocks] == list(range(len(parts)))
    assert found == set()
    for block in blocks:
        assert (block.session, block.subject, block.condition) == ("s", "m1", "WT")
        # The row of each segment and its trial number were made equal.
        np.testing.assert_array_equal(block.pointers.row, block.trial_num)
    assert kept == ordered


def test_select_keeps_columns_together():
    block = resolve(make_rows([1, 2, 3, 4]))[0][0]
    part = block.select(np.array([False, True, False, True]))
    assert part.trial_num.tolist() == [2, 4]
    assert part.pointers.row.tolist() == [2, 4]
    np.testing.assert_array_equal(part.digest, block.digest[[1, 3]])
    assert part.frequency.shape == part.amplitude.shape == (2,)


# --- Conflicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        (
            {"condition": ["WT", "FMR1", "WT"]},
            Reason.SESSION_TWO_CONDITIONS,
            ["condition", "WT in 2", "FMR1 in 1"],
        ),
        ({"subject": ["m1", "m1", "m2"]}, Reason.SESSION_TWO_SUBJECTS, ["subject", "m2 in 1"]),
        (
            {"subject": ["m1", None, "m2"]},
            Reason.SESSION_TWO_SUBJECTS,
            ["(missing) in 1", "m1 in 1", "m2 in 1"],
        ),
        (
            {"subject": ["m1", "m2", "m1"], "condition": ["WT", "FMR1", "WT"]},
            Reason.SESSION_TWO_CONDITIONS,
            ["FMR1 in 1"],
        ),
        # A known and an unknown condition: which of them is wrong cannot be told.
        ({"condition": ["WT", "KO", "WT"]}, Reason.SESSION_TWO_CONDITIONS, ["KO in 1"]),
        ({"condition": ["KO"] * 3}, Reason.UNKNOWN_CONDITION, ["'KO'", "WT", "FMR1"]),
        (
            {"condition": ["KO"] * 3, "subject": ["m1", "m2", None]},
            Reason.UNKNOWN_CONDITION,
            ["'KO'"],
        ),
    ],
)
def test_a_session_with_two_labels_is_not_used(changes, reason, words):
    rows = make_rows([1, 2, 3], **changes)
    pieces = [take(rows, [2]), take(rows, [0, 1])]
    blocks, _, found, rejects = resolve(pieces, classes=("WT", "FMR1"))
    assert blocks == []
    assert found == {(trial, reason) for trial in (1, 2, 3)}
    for word in words:
        assert word in rejects[0].detail


def test_no_subject_at_all_is_no_conflict():
    blocks, kept, found, _ = resolve(make_rows([1, 2], subject=[None, None]))
    assert (kept, found, blocks[0].subject) == ([1, 2], set(), None)


def test_every_condition_is_known_without_classes():
    blocks, kept, _, _ = resolve(make_rows([1, 2], condition=["KO", "KO"]))
    assert (kept, blocks[0].condition) == ([1, 2], "KO")
    assert resolve(make_rows([1, 2]), classes=("WT", "FMR1"))[1] == [1, 2]


def test_a_row_without_the_subject_of_its_session_is_rejected_alone():
    # Trials 1 and 3 come twice, once without their subject: the sound row stays.
    rows = make_rows([1, 1, 2, 3, 3], subject=[None, "m1", "m1", "m1", None])
    blocks, kept, found, rejects = resolve([take(rows, [4, 0]), take(rows, [1, 2, 3])])
    assert [block.subject for block in blocks] == ["m1"]
    assert kept == [1, 2, 3]
    assert found == {(1, Reason.MISSING_ID), (3, Reason.MISSING_ID)}
    assert all("subject" in reject.detail for reject in rejects)
    assert len(kept) + len(rejects) == 5


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, [1, 2, 3]),
        ({"traces": [1, 2, 9, 2, 3]}, [1, 3]),
        ({"frequency": np.array([1.0, 2.0, 4.0, 2.0, 3.0])}, [1, 3]),
        ({"amplitude": np.array([1.0, 2.0, np.nan, 2.0, 3.0])}, [1, 3]),
    ],
    ids=["equal", "trace", "frequency", "amplitude"],
)
def test_a_trial_number_that_comes_thrice(change, kept):
    """Equal rows are one row delivered again; rows that differ cannot be told apart."""
    numbers = [1, 2, 2, 2, 3]
    rows = make_rows(numbers, **({"traces": numbers} | change))
    _, found_kept, found, rejects = resolve(rows)
    assert found_kept == kept
    assert found == {(2, Reason.DUPLICATE_TRIAL)}
    assert len(found_kept) + len(rejects) == 5


# --- Identical traces -----------------------------------------------------------------------------


def copies_of(sessions):
    """Copies by session, found over all buckets."""
    buckets: dict = {}
    for session, rows in sessions:
        for bucket, part in fingerprints(session, rows, 3):
            buckets.setdefault(bucket, []).append(part)
    found: dict = {}
    for parts in buckets.values():
        for session, copy in find_copies(parts):
            found.setdefault(session, []).append(copy)
    return found


def test_identical_traces_in_a_session_leave_the_first():
    rows = make_rows([4, 3, 5, 6], traces=[8, 8, 8, 7])
    copies = copies_of([("s", take(rows, [0, 3])), ("s", take(rows, [1, 2]))])["s"]
    _, kept, found, rejects = resolve(rows, copies)
    assert kept == [3, 6]
    assert found == {(4, Reason.DUPLICATE_TRACE), (5, Reason.DUPLICATE_TRACE)}
    assert all("trial 3 of session s" in reject.detail for reject in rejects)


def test_identical_traces_across_sessions_leave_none():
    first = make_rows([1, 2, 3], traces=[10, 11, 12])
    second = make_rows([1, 2, 3], traces=[20, 11, 22])
    found = copies_of([("a", first), ("b", second)])
    assert {session: [copy.trial_num for copy in found[session]] for session in found} == {
        "a": [2],
        "b": [2],
    }
    assert found["a"][0].detail == "the same trace as trial 2 of session b"
    assert found["b"][0].detail == "the same trace as trial 2 of session a"
    assert resolve(first, found["a"])[1] == [1, 3]


def test_a_row_delivered_twice_is_no_copy_of_itself():
    rows = make_rows([1, 2, 2], traces=[1, 2, 2])
    assert copies_of([("s", rows)]) == {}


def test_a_copy_is_told_by_its_trace_too():
    rows = make_rows([1, 2])
    other = Copy(2, digests(np.full((1, N_SAMPLES), 77.0))[0].tobytes(), "")
    assert resolve(rows, [other])[1] == [1, 2]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_no_two_kept_trials_share_a_trace(traces, random):
    where = [random.choice("abc") for _ in traces]
    sessions = []
    for session in sorted(set(where)):
        own = [(i, trace) for i, trace in enumerate(traces) if where[i] == session]
        sessions.append((session, make_rows([i for i, _ in own], [t for _, t in own])))
    copies = copies_of(sessions)
    kept = []
    for session, rows in sessions:
        blocks, rejects = resolve_session(session, [rows], copies.get(session, []), 4, None)
        trials = [trial for block in blocks for trial in block.trial_num.tolist()]
        assert len(trials) + len(rejects) == len(rows.trial_num)
        kept += trials
    by_trace: dict = {}
    for trial, (trace, session) in enumerate(zip(traces, where, strict=True)):
        by_trace.setdefault(trace, []).append((trial, session))
    assert sorted(kept) == sorted(
        places[0][0] for places in by_trace.values() if len({s for _, s in places}) == 1
    )


# --- Outliers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2.0, 3.5, 6.0])
def test_amplitude_outliers(limit):
    level = np.random.default_rng(3).lognormal(1.0, 0.7, 300)
    level[:4] *= [100.0, 0.003, 30.0, 0.02]
    log_level = np.log10(level)
    distance = np.abs(log_level - np.median(log_level))
    expected = distance > limit * stats.median_abs_deviation(log_level, scale="normal")
    assert 0 < expected.sum() < 300
    rows = make_rows(np.arange(300), level=level)
    _, kept, found, _ = resolve(rows, amplitude_outlier=limit)
    assert found == {(int(t), Reason.AMPLITUDE_OUTLIER) for t in np.flatnonzero(expected)}
    assert kept == np.flatnonzero(~expected).tolist()


def test_outliers_are_kept_by_default_and_equal_levels_have_none():
    rows = make_rows(np.arange(10), level=np.r_[1e3, np.ones(9)])
    assert len(resolve(rows)[1]) == 10
    assert len(resolve(rows, amplitude_outlier=3.0)[1]) == 10


def test_rejected_trials_do_not_move_the_median():
    level = np.r_[np.linspace(0.9, 1.1, 9), np.full(9, 100.0)]
    rows = make_rows(np.r_[np.arange(9), np.full(9, 50)], np.arange(18), level=level)
    _, kept, found, _ = resolve(rows, amplitude_outlier=5.0)
    assert kept == list(range(9))
    assert found == {(50, Reason.DUPLICATE_TRIAL)}


# --- Order of arrival -----------------------------------------------------------------------------


def contents(blocks):
    """All but where the segments lie: a row delivered twice lies in two places."""
    return [
        [getattr(block, name) for name in ("session", "subject", "condition", "block")]
        + [
            getattr(block, name).tobytes()
            for name in ("trial_num", "frequency", "amplitude", "digest")
        ]
        for block in blocks
    ]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), min_size=1, max_size=25),
    st.integers(0, 2),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_order_and_pieces_do_not_matter(trials, n_conflicts, random):
    numbers, traces = zip(*trials, strict=True)
    n = len(trials)
    rows = make_rows(
        numbers,
        traces,
        frequency=np.array(traces) % 3.0,
        level=1.0 + 100.0 * (np.array(traces) == 6),
        condition=["FMR1"] * min(n, n_conflicts // 2) + ["WT"] * (n - min(n, n_conflicts // 2)),
    )
    copies = copies_of([("s", rows)]).get("s", [])
    blocks, rejects = resolve_session("s", [rows], copies, 3, 3.0)
    order = random.sample(range(n), n)
    cuts = sorted({0, n, *(random.randint(0, n) for _ in range(3))})
    pieces = [take(rows, order[a:b]) for a, b in pairwise(cuts)]
    again, again_rejects = resolve_session("s", pieces, random.sample(copies, len(copies)), 3, 3.0)
    assert contents(again) == contents(blocks)
    assert again_rejects == rejects
    assert sum(len(block.trial_num) for block in blocks) + len(rejects) == n
    for block in again:
        np.testing.assert_array_equal(
            digests(np.repeat(block.pointers.row[:, None], N_SAMPLES, 1).astype(np.float64)),
            block.digest,
        )


# --- Segments between the passes ------------------------------------------------------------------


def make_batch(session, trial_num):
    n = len(session)
    segments = np.arange(n * N_SAMPLES, dtype=np.float32).reshape(n, N_SAMPLES)
    return TrialBatch(
        session=list(session),
        subject=[f"m{name}" for name in session],
        condition=["WT"] * n,
        trial_num=np.array(trial_num, np.int64),
        frequency=np.arange(n, dtype=np.float64),
        amplitude=np.arange(n, dtype=np.float64),
        level=segments.std(axis=1, dtype=np.float64),
        digest=digests(segments),
        segments=segments,
    )


def test_a_batch_by_session_points_to_its_segments(tmp_path):
    batch = make_batch("abacab", [3, 1, 2, 9, 1, 0])
    order, places = order_by_session(batch)
    store = SegmentStore(str(tmp_path), N_SAMPLES, "float32")
    with store.writer(7) as writer:
        writer.write(batch.segments[:1])
        pointers = writer.write(batch.segments[order])
    seen = 0
    for session, place in places:
        rows = session_rows(batch, order, place, pointers)
        assert set(rows.subject) == {f"m{session}"}
        assert rows.trial_num.tolist() == sorted(rows.trial_num.tolist())
        np.testing.assert_array_equal(digests(store.read(rows.pointers)), rows.digest)
        np.testing.assert_array_equal(rows.digest, batch.digest[rows.frequency.astype(int)])
        seen += len(rows.trial_num)
    assert seen == 6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_segments_are_read_back_in_any_order(tmp_path, dtype):
    store = SegmentStore(str(tmp_path), N_SAMPLES, dtype)
    rng = np.random.default_rng(0)
    written, parts = [], []
    for chunk in (0, 5):
        with store.writer(chunk) as writer:
            for n in (3, 0, 4):
                segments = rng.standard_normal((n, N_SAMPLES)).astype(dtype)
                parts.append(writer.write(segments))
                written.append(segments)
    pointers, segments = Pointers.concatenate(parts), np.concatenate(written)
    for order in (np.arange(14), rng.permutation(14), np.array([3, 3, 13])):
        read = store.read(pointers[order])
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, segments[order])


def test_segments_of_an_interrupted_writer_do_not_appear(tmp_path):
    store = SegmentStore(str(tmp_path), N_SAMPLES, "float32")
    pointers = []

    def interrupted():
        with store.writer(0) as writer:
            pointers.append(writer.write(np.ones((2, N_SAMPLES), np.float32)))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    with pytest.raises(FileNotFoundError):
        store.read(pointers[0])


def test_segments_that_are_cut_short_are_noticed(tmp_path):
    store = SegmentStore(str(tmp_path), N_SAMPLES, "float32")
    with store.writer(0) as writer:
        pointers = writer.write(np.ones((2, N_SAMPLES), np.float32))
    beyond = replace(pointers, row=pointers.row + 1)
    with pytest.raises(OSError, match="ends before row 3"):
        store.read(beyond)
