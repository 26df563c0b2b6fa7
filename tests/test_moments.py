"""Sums that no order changes, against NumPy in float64, fractions and decimal integers."""

import math
from fractions import Fraction
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from beam_pipeline.moments import MAX_MAGNITUDE, UNIT, Moments, exact_sum, trial_sums
from beam_pipeline.pictures import MeanPicture

RTOL = 1e-9
N_FREQS = 3


def spectrograms(offset=-5.0, scale=1.0, n_trials=40, n_times=97, seed=0):
    rng = np.random.default_rng(seed)
    values = offset + scale * rng.standard_normal((n_trials, N_FREQS, n_times))
    return values.astype(np.float32)


def moments_of(values):
    return Moments.of(trial_sums(values), values.shape[2])


def mean_std(values):
    wide = values.astype(np.float64)
    return wide.mean(axis=(0, 2)), wide.std(axis=(0, 2))


@pytest.mark.parametrize(
    ("offset", "scale"),
    [(-5.0, 1.0), (0.0, 1e-3), (1e4, 3e4), (1000.0, 1.0), (-1000.0, 1.0), (-10.0, 0.01)],
)
def test_against_numpy(offset, scale):
    values = spectrograms(offset, scale)
    mean, std = mean_std(values)
    moments = moments_of(values)
    assert moments.count == 40 * 97
    np.testing.assert_allclose(moments.mean(), mean, rtol=RTOL, atol=1e-15)
    np.testing.assert_allclose(moments.std(), std, rtol=RTOL)


def test_the_offsets_above_are_too_hard_for_float32():
    values = spectrograms(1000.0, 1.0)
    variance = np.square(values).mean(axis=(0, 2)) - values.mean(axis=(0, 2)) ** 2
    assert np.abs(variance - 1.0).max() > 0.01


def test_a_constant_has_no_spread():
    moments = moments_of(np.full((3, N_FREQS, 50), 1000.25, np.float32))
    assert moments.std().tolist() == [0.0] * N_FREQS
    assert moments.mean().tolist() == [1000.25] * N_FREQS


@given(
    st.lists(st.integers(0, 40), max_size=6),
    st.randoms(use_true_random=False),
    st.sampled_from([(-5.0, 1.0), (1000.0, 0.01), (0.0, 1e5)]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_grouping_and_order_change_no_bit(cuts, random, scale):
    values = spectrograms(*scale)
    whole = moments_of(values)
    shuffled = values[random.sample(range(40), 40)]
    edges = sorted({0, 40, *cuts})
    parts = [moments_of(shuffled[a:b]) for a, b in pairwise(edges)]
    random.shuffle(parts)
    assert Moments.total(parts, N_FREQS) == whole
    while len(parts) > 1:
        parts.append(parts.pop(random.randrange(len(parts))) + parts.pop(0))
    assert parts[0] == whole


def test_zero_is_neutral():
    moments = moments_of(spectrograms())
    assert Moments.zero(N_FREQS) + moments == moments
    assert Moments.total([], N_FREQS) == Moments.zero(N_FREQS)


def test_other_frequencies_do_not_add_up():
    with pytest.raises(ValueError, match="zip"):
        Moments.zero(2) + Moments.zero(3)


@pytest.mark.parametrize("offset", [0.0, 3.5, -7.123456789, 990.0])
def test_shifted(offset):
    values = spectrograms(offset, 0.5)
    units = round(offset * UNIT)
    mean, std = mean_std(values.astype(np.float64) - units / UNIT)
    shifted = moments_of(values).shifted(units)
    np.testing.assert_allclose(shifted.mean(), mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(shifted.std(), std, rtol=RTOL)
    assert shifted.count == moments_of(values).count


def test_shifted_there_and_back():
    moments = moments_of(spectrograms())
    back = moments.shifted(123456789).shifted(-123456789)
    assert back.sums == moments.sums
    assert max(abs(a - b) for a, b in zip(back.squares, moments.squares, strict=True)) <= 1


def test_pooled():
    values = spectrograms() + np.array([0.0, 5.0, -3.0], np.float32)[:, None]
    pooled = moments_of(values).pooled()
    assert pooled.count == values.size
    np.testing.assert_allclose(pooled.mean(), [values.mean(dtype=np.float64)], rtol=RTOL)
    np.testing.assert_allclose(pooled.std(), [values.std(dtype=np.float64)], rtol=RTOL)


# --- Exactness ------------------------------------------------------------------------------------


@given(st.lists(st.integers(-(2**52), 2**52), min_size=1, max_size=50))
@settings(deadline=None, derandomize=True)
def test_multiples_of_the_unit_are_summed_exactly(units):
    assert exact_sum(np.array(units) / UNIT) == sum(units)


@given(st.lists(st.floats(-(2.0**62), 2.0**62), min_size=1, max_size=50))
@settings(deadline=None, derandomize=True)
def test_other_values_are_rounded_once(values):
    total = Fraction(int(exact_sum(np.array(values))), UNIT)
    error = abs(total - sum(map(Fraction, values)))
    assert error <= len(values) * (Fraction(1, 2 * UNIT) + Fraction(1, 2**53))
    if max(map(abs, values)) < 1e6:
        assert float(total) == pytest.approx(math.fsum(values), abs=len(values) / UNIT)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_largest_values_many_times(sign):
    largest = sign * np.nextafter(2.0**63, 0.0)
    assert exact_sum(np.full(100_000, largest)) == 100_000 * int(largest) * UNIT


@pytest.mark.parametrize("shape", [(100_000, 1, 100), (1, 1, 100_000), (100, 1, 100_000)])
@pytest.mark.parametrize("sign", [1, -1])
def test_values_near_the_bound_do_not_overflow(shape, sign):
    value = np.nextafter(np.float32(MAX_MAGNITUDE), np.float32(0.0))
    values = np.broadcast_to(sign * value, shape)
    n, exact = math.prod(shape), sign * int(value * 16)
    moments = moments_of(values)
    assert moments.sums == (n * exact * UNIT // 16,)
    # A sum of squares is rounded once a trial, at 53 bits.
    assert moments.squares[0] == pytest.approx(n * exact**2 * UNIT // 256, rel=1e-13)
    assert moments.mean() == sign * value


def test_more_trials_than_64_bits_hold():
    part = Moments(10**9, (2**60 * UNIT,), (2**80 * UNIT,))
    total = Moments.total([part] * 10_000, 1)
    assert total.sums == (2**60 * UNIT * 10_000,)
    assert total.mean() == [2**60 / 10**9]


# --- Mean pictures --------------------------------------------------------------------------------


@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_mean_pictures_do_not_depend_on_the_order(order):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((60, 2, 5)) * 100).astype(np.float32)
    values[0, 0, 0], values[1, 0, 0] = 65504.0, 2**-24

    def mean_picture(order):
        parts = []
        for index in order:
            picture = MeanPicture.zero(2, 5)
            picture.add(values[10 * index :][:4])
            picture.add(values[10 * index + 4 :][:6])
            parts.append(picture)
        total = MeanPicture.total_of(parts)
        assert total.n_trials == 60
        return total.mean()

    exact = [[math.fsum(values[:, i, j].tolist()) / 60 for j in range(5)] for i in range(2)]
    # Each of twelve blocks is rounded by at most half a unit of 2**-20.
    np.testing.assert_allclose(mean_picture(order), exact, rtol=0, atol=12 * 2**-21 / 60)
    assert mean_picture(order).tobytes() == mean_picture(range(6)).tobytes()


@pytest.mark.parametrize("scale", [1e-16, 1e-9, 1e-4, 1e4, 1e9])
def test_any_unit_of_power_is_as_exact(scale):
    """Raw power (baseline_mode mean) of traces in volts is tiny, of integer counts large."""
    values = (scale * np.random.default_rng(0).standard_normal((9, 3, 50))).astype(np.float32)
    wide = values.astype(np.float64)
    moments = moments_of(values)
    np.testing.assert_allclose(moments.mean(), wide.mean(axis=(0, 2)), rtol=1e-9)
    np.testing.assert_allclose(moments.std(), wide.std(axis=(0, 2)), rtol=1e-9)
