"""Sequences, their order and their division, against brute force."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sequences import Division, build_sequences, epoch_order, rank_batches
from trainer.data.split_index import SplitIndex
from trainer.data.stream_plan import StreamPlan
from trainer.data.trials import Trials


def make_trials(sessions: Sequence[Sequence[int]]) -> Trials:
    """Return trials of sessions with the given trial numbers."""
    return Trials(
        tuple(f"s{i}" for i in range(len(sessions))),
        (None,) * len(sessions),
        np.arange(len(sessions)) % 2,
        np.repeat(np.arange(len(sessions), dtype=np.int32), [len(s) for s in sessions]),
        np.array([n for numbers in sessions for n in numbers], np.int64),
    )


trial_numbers = st.sets(st.integers(0, 30), min_size=1, max_size=20).map(sorted)


@given(
    st.lists(trial_numbers, min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(0, 3),
)
@settings(derandomize=True, max_examples=300)
def test_sequences_are_those_found_by_cutting_each_run_of_trials(
    sessions, n_trials, stride, max_gap
):
    trials = make_trials(sessions)
    expected = []
    short = tail = gap = 0
    for session, numbers in enumerate(sessions):
        runs = [[numbers[0]]]
        for before, number in pairwise(numbers):
            if number - before > 1 + max_gap:
                runs.append([])
            runs[-1].append(number)
        for run in runs:
            windows = [
                run[start : start + n_trials]
                for start in range(0, len(run), stride)
                if start + n_trials <= len(run)
            ]
            expected += [[(session, number) for number in window] for window in windows]
            left = len(set(run) - {number for window in windows for number in window})
            if len(numbers) < n_trials:
                short += left
            elif windows:
                tail += left
            else:
                gap += left

    found = build_sequences(trials, n_trials, stride, max_gap)

    keys = list(zip(trials.session.tolist(), trials.trial_num.tolist(), strict=True))
    assert [[keys[row] for row in rows] for rows in found.rows] == expected
    assert found.session.tolist() == [window[0][0] for window in expected]
    assert found.dropped == {
        "trials_short_session": short,
        "trials_gap": gap,
        "trials_tail": tail,
    }
    used = {number for window in expected for number in window}
    assert len(used) + gap + short + tail == len(trials)
    assert found.rows.shape == (len(found), n_trials)


def test_windows_start_anew_after_a_gap():
    """A bad trial costs a session of 13 the sequences that would hold it, and no other."""
    numbers = [n for n in range(13) if n != 4]
    found = build_sequences(make_trials([numbers]), 8, 4, 0)
    assert [[numbers[row] for row in rows] for rows in found.rows] == [list(range(5, 13))]
    assert found.dropped["trials_gap"] == 4


def test_a_small_example_of_what_is_dropped():
    sessions = [[1, 2, 3, 5, 6, 7, 8, 9, 10, 12], [4, 5], [0, 1, 2, 3]]
    found = build_sequences(make_trials(sessions), 3, 2, 0)
    assert found.rows.tolist() == [[0, 1, 2], [3, 4, 5], [5, 6, 7], [12, 13, 14]]
    assert found.dropped == {"trials_short_session": 2, "trials_gap": 1, "trials_tail": 2}


# --- Order and division ---------------------------------------------------------------------------


def test_the_order_is_a_permutation_and_another_one_in_every_epoch():
    orders = [epoch_order(100, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(100, 1, 1).tolist() == orders[-1]


def batches_of(order, batch_size, rank, world_size, start_step=0):
    return [
        (index.tolist(), mask.tolist())
        for index, mask in rank_batches(order, batch_size, rank, world_size, start_step)
    ]


def check_division(per_rank, n_sequences, batch_size):
    """Check that ranks take equal steps of equal size and see every sequence once."""
    assert len({len(batches) for batches in per_rank}) == 1
    for batches in per_rank:
        for index, mask in batches:
            assert len(index) == len(mask) == batch_size
            assert [i != -1 for i in index] == mask
        # Only the last batch of a rank may be short.
        assert all(all(mask) for _, mask in batches[:-1])
    seen = [i for batches in per_rank for index, _ in batches for i in index if i != -1]
    assert sorted(seen) == list(range(n_sequences))


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5))
@settings(derandomize=True)
def test_ranks_take_equal_steps_and_lose_or_repeat_nothing(n_sequences, batch_size, world_size):
    order = epoch_order(n_sequences, 0, 0)
    per_rank = [batches_of(order, batch_size, rank, world_size) for rank in range(world_size)]
    check_division(per_rank, n_sequences, batch_size)
    # Whatever the number of ranks, a step is made of the same sequences.
    size = batch_size * world_size
    for step, together in enumerate(zip(*per_rank, strict=True)):
        held = [i for index, _ in together for i in index if i != -1]
        assert sorted(held) == sorted(order[step * size : (step + 1) * size].tolist())


@pytest.mark.parametrize("start_step", [0, 1, 4, 5])
def test_an_epoch_goes_on_where_it_was_left(start_step):
    order = epoch_order(37, 3, 2)
    whole = batches_of(order, 4, 1, 2)
    assert len(whole) == 5
    assert batches_of(order, 4, 1, 2, start_step) == whole[start_step:]


# --- The order of a stream ------------------------------------------------------------------------


def make_plan(rank, world_size, n_workers, batch_size, shuffle=True, shuffle_blocks=4, n_trials=3):
    """Return the plan of 12 sessions in blocks of 4 that are spread over 5 shards."""
    trials = make_trials([range(5 + 2 * session) for session in range(12)])
    sizes = np.bincount(trials.session)
    blocks = [min(4, n - low) for n in sizes.tolist() for low in range(0, n, 4)]
    rng = np.random.default_rng(0)
    shard = rng.integers(0, 5, len(blocks)).astype(np.int32)
    # Each stands behind the blocks that were dealt to its shard before.
    offset = np.array([1000 * np.count_nonzero(shard[:i] == s) for i, s in enumerate(shard)])
    digest = np.zeros((len(trials), 16), np.uint8)
    index = SplitIndex(trials, np.cumsum([0, *blocks]), shard, offset, digest, digest)
    sequences = build_sequences(trials, n_trials, 2, 0)
    division = Division(batch_size, 7, rank, world_size, shuffle)
    return StreamPlan(index, sequences, division, shuffle_blocks, n_workers)


def plan_batches(plan, epoch=0, start_step=0):
    return [(i.tolist(), m.tolist()) for i, m in plan.batches(epoch, start_step)]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 40), st.booleans())
@settings(derandomize=True)
def test_streams_of_all_ranks_hold_every_sequence_once(world_size, n_workers, batch_size, shuffle):
    plans = [make_plan(r, world_size, n_workers, batch_size, shuffle) for r in range(world_size)]
    n = len(plans[0].sequences)
    for epoch in (0, 3):
        per_rank = [plan_batches(plan, epoch) for plan in plans]
        check_division(per_rank, n, batch_size)
        assert {len(batches) for batches in per_rank} == {plans[0].steps_per_epoch}
    # The same number of steps as with trials in memory.
    resident = batches_of(np.arange(n), batch_size, 0, world_size)
    assert len(resident) == plans[0].steps_per_epoch


@pytest.mark.parametrize("start_step", [1, 2, 3, 7])
def test_a_stream_goes_on_where_it_was_left(start_step):
    plan = make_plan(1, 2, 3, 5)
    assert plan_batches(plan, 4, start_step) == plan_batches(plan, 4)[start_step:]
    assert len(plan_batches(plan, 4)) > 7


def test_a_stream_without_shuffling_follows_the_shards():
    plan = make_plan(0, 1, 1, 6, shuffle=False)
    order = [i for index, _ in plan_batches(plan) for i in index if i != -1]
    first = plan.first_blocks()[order]
    places = np.stack([plan.index.shard[first], plan.index.offset[first]], axis=1).tolist()
    assert places == sorted(places)
    assert plan_batches(plan, 0) == plan_batches(plan, 1)


def test_a_shuffled_stream_reads_no_further_ahead_than_it_may():
    plan = make_plan(0, 1, 2, 6, shuffle_blocks=4)
    orders = []
    for epoch in range(3):
        for worker in plan.workers(epoch):
            # What is delivered while block b is the last one read began at most 4 blocks before.
            reached = np.maximum.accumulate(worker.place)
            assert (reached - worker.place <= 4).all()
            assert sorted(set(worker.place)) == list(range(worker.place.max() + 1))
            assert len(set(np.diff(worker.place))) > 2
        orders.append([i for index, _ in plan_batches(plan, epoch) for i in index])
    assert orders[0] != orders[1] != orders[2]


def test_shards_are_divided_over_ranks():
    plan = make_plan(0, 2, 1, 4)
    first = plan.index.shard[plan.first_blocks()]
    for epoch in (0, 1):
        expected = tuple(len(set(first[plan.rank_part(epoch, rank)])) for rank in (0, 1))
        assert plan.shards_per_rank(epoch) == expected
        # Only the shard in the middle is read by both.
        assert sum(expected) <= len(set(first)) + 1
