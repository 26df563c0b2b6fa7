"""Learning rate and seeds, as functions of the step alone."""

import math
from typing import Any

import pytest

from trainer.training.schedule import capped_warmup, derive_seed, ema_decay, learning_rate

SHAPE: dict[str, Any] = {"total_steps": 100, "warmup_steps": 10, "lr": 1e-3, "min_lr": 1e-5}


def test_the_warm_up_is_a_straight_line_from_almost_nothing_to_the_highest_rate():
    rates = [learning_rate(step, **SHAPE) for step in range(10)]

    assert rates == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert max(learning_rate(step, **SHAPE) for step in range(100)) == rates[-1]


def test_after_the_warm_up_it_is_half_a_cosine_that_ends_at_the_lowest_rate():
    for step in range(10, 100):
        angle = math.pi * (step - 9) / 90
        expected = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(angle)) / 2
        assert learning_rate(step, **SHAPE) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(99, **SHAPE) == pytest.approx(1e-5)


@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 8])
def test_any_warm_up_gives_rates_within_bounds_at_every_step(warmup_steps):
    shape: dict[str, Any] = {
        "total_steps": 7,
        "warmup_steps": capped_warmup(warmup_steps, 7),
        "lr": 1.0,
        "min_lr": 0.1,
    }

    rates = [learning_rate(step, **shape) for step in range(7)]

    assert all(0 < rate <= 1.0 for rate in rates)
    assert rates[-1] == pytest.approx(0.1)
    top = rates.index(max(rates))
    assert top == max(0, min(warmup_steps, 3) - 1)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_a_run_of_one_step_takes_it_at_the_rate_of_the_last():
    shape: dict[str, Any] = {"total_steps": 1, "warmup_steps": capped_warmup(1, 1)}

    assert learning_rate(0, lr=1.0, min_lr=0.1, **shape) == pytest.approx(0.1)


def test_a_longer_run_follows_the_longer_schedule():
    longer = {**SHAPE, "total_steps": 200}

    assert learning_rate(99, **longer) > learning_rate(99, **SHAPE)


def test_the_moving_average_forgets_the_random_start_of_a_short_run():
    kept = math.prod(ema_decay(step, 0.9999) for step in range(100))

    assert kept < 1e-6
    assert ema_decay(10**9, 0.9999) == 0.9999


def test_seeds_of_neighbouring_runs_steps_and_ranks_never_coincide():
    seeds = {
        derive_seed(seed, "step", step, rank)
        for seed in range(10)
        for step in range(100)
        for rank in range(4)
    }

    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(3, "weights") == derive_seed(3, "weights")
