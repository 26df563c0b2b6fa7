"""Rounding to float16, against NumPy's own conversion bit for bit."""

import numpy as np
import pytest

from beam_pipeline.half import to_float16

#: Every float16, as float32; the infinities and NaNs left out.
HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = HALVES[np.isfinite(HALVES)].astype(np.float32)


def neighbours(values):
    """Return values with the float32 numbers next to them."""
    return np.concatenate([values, np.nextafter(values, np.float32(np.inf)), -values])


def trials(values):
    return np.resize(values.astype(np.float32), (3, 8, -(-len(values) // 8)))


@pytest.mark.parametrize(
    "values",
    [
        neighbours(FINITE),
        # Half way between two float16 numbers, where the even one is taken, and beside it.
        neighbours((np.sort(FINITE)[1:] + np.sort(FINITE)[:-1]) / 2),
        np.random.default_rng(0).standard_normal(100_000),
        # Of every size, from what becomes 0 on.
        10 ** np.random.default_rng(1).uniform(-45, 4.8, 100_000),
        np.array([0.0, -0.0, 65504.0, -65504.0]),
    ],
    ids=["float16", "middle", "normal", "sizes", "edges"],
)
def test_against_numpy(values):
    values = trials(values)
    inside = np.clip(values, -65504, 65504)
    halves, _ = to_float16(values)
    assert halves.dtype == np.float16
    np.testing.assert_array_equal(halves.view(np.uint16), inside.astype(np.float16).view(np.uint16))


def test_what_is_beyond_the_range_is_clipped_and_counted():
    values = trials(np.linspace(-1.0, 1.0, 80))
    values[1, 2, 3], values[2, 0, 0] = 65504.01, -1e30
    halves, n_clipped = to_float16(values)
    assert n_clipped == 2
    assert (halves[1, 2, 3], halves[2, 0, 0]) == (65504, -65504)
    assert (values[1, 2, 3], values[2, 0, 0]) == (65504, -65504)


def test_nothing_becomes_nothing():
    halves, n_clipped = to_float16(np.empty((0, 4, 5), np.float32))
    assert (halves.shape, n_clipped) == ((0, 4, 5), 0)
