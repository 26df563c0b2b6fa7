"""Exact, order-independent sums of spectrogram values.

Float addition depends on the order of the terms, so means merged in another order differ in
their last bits. Here every trial's sum over time, a float64, becomes a whole multiple of 2**-128,
and all further addition is on integers: any grouping, any order and any number of workers give
the same bits. The unit is that small because squared power in V**2/Hz is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

FRACTION_BITS = 128
UNIT = 1 << FRACTION_BITS
MANTISSA_BITS = 53
#: Values whose exponents differ by less than this are summed together.
SHIFT_STEP = 8
HALF_BITS = 32
HALF_MASK = (1 << HALF_BITS) - 1
#: Beyond this magnitude sums of squares could leave the decimals of ``sessions.parquet``.
MAX_MAGNITUDE = float(1 << 40)


def exact_sum(values: NDArray[np.float64]) -> NDArray[np.object_]:
    """Sum over the first axis as Python integers in units of 2**-128.

    Parameters
    ----------
    values : float64 array of shape (n, ...)
        Finite; n below 2**22. Values below 2**-75 in magnitude are rounded to the unit, others
        are taken exactly.

    Returns
    -------
    object array of shape (...)
        Python integers.
    """
    _, exponents = np.frexp(values)
    shifts = np.maximum(exponents + (FRACTION_BITS - MANTISSA_BITS), 0)
    shifts -= shifts % SHIFT_STEP
    integers = np.rint(np.ldexp(values, FRACTION_BITS - shifts)).astype(np.int64)
    total = np.zeros(values.shape[1:], dtype=object)
    for shift in np.unique(shifts).tolist():
        chosen = np.where(shifts == shift, integers, 0)
        # In two halves, because the sum of the integers may need more than 64 bits.
        high = (chosen >> HALF_BITS).sum(axis=0).astype(object)
        low = (chosen & HALF_MASK).sum(axis=0).astype(object)
        total = total + ((high * (1 << HALF_BITS) + low) * (1 << shift))
    return np.asarray(total, dtype=object)


def trial_sums(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return sums and sums of squares over time.

    Parameters
    ----------
    values : float32 array of shape (n_trials, n_freqs, n_times)

    Returns
    -------
    float64 array of shape (2, n_trials, n_freqs)
    """
    n_trials, n_freqs, _ = values.shape
    sums = np.empty((2, n_trials, n_freqs))
    wide = np.empty(values.shape[1:])
    # Trial by trial, which fits the cache.
    for trial, spectrogram in enumerate(values):
        wide[:] = spectrogram
        wide.sum(axis=1, out=sums[0, trial])
        np.square(wide, out=wide).sum(axis=1, out=sums[1, trial])
    return sums


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of spectrogram values, per frequency.

    Attributes
    ----------
    count : int
        Values summed at each frequency (trials times frames).
    sums, squares : tuple of int
        One per frequency, in units of 2**-128.
    """

    count: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def zero(cls, n_freqs: int) -> Moments:
        """Return the neutral element of addition."""
        return cls(0, (0,) * n_freqs, (0,) * n_freqs)

    @classmethod
    def of(cls, sums: NDArray[np.float64], n_times: int) -> Moments:
        """Return the moments of trials from their `trial_sums`.

        Parameters
        ----------
        sums : float64 array of shape (2, n_trials, n_freqs)
            Of values that are finite and below `MAX_MAGNITUDE`. They have the 53 bits of float64,
            so that a standard deviation is good to 1e-9 as long as it is above a thousandth of
            the mean.
        n_times : int
            Values behind each sum.
        """
        first, second = (tuple(exact_sum(part).tolist()) for part in sums)
        return cls(sums.shape[1] * n_times, first, second)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count,
            tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
        )

    @classmethod
    def total(cls, parts: Iterable[Moments], n_freqs: int) -> Moments:
        """Return the sum of any number of moments, in any order."""
        total = cls.zero(n_freqs)
        for part in parts:
            total += part
        return total

    def shifted(self, offset: int) -> Moments:
        """Return the moments of the values minus `offset`, exactly up to one rounding.

        Parameters
        ----------
        offset : int
            In units of 2**-128.
        """
        # sum((x - g)^2) = sum(x^2) - 2 g sum(x) + n g^2
        squares = tuple(
            square + round(Fraction(offset * (self.count * offset - 2 * value), UNIT))
            for value, square in zip(self.sums, self.squares, strict=True)
        )
        return Moments(self.count, tuple(v - self.count * offset for v in self.sums), squares)

    def pooled(self) -> Moments:
        """Return the moments of all frequencies taken together (one entry)."""
        return Moments(self.count * len(self.sums), (sum(self.sums),), (sum(self.squares),))

    def mean(self) -> NDArray[np.float64]:
        """Return the mean per frequency, float64, each correctly rounded."""
        return np.array([float(Fraction(value, self.count * UNIT)) for value in self.sums])

    def std(self) -> NDArray[np.float64]:
        """Return the population standard deviation (ddof 0) per frequency, float64."""
        return np.array([math.sqrt(self._variance(i)) for i in range(len(self.sums))])

    def _variance(self, index: int) -> float:
        # (n sum(x^2) - sum(x)^2) / n^2 on integers: no cancellation, whatever the mean.
        numerator = self.count * self.squares[index] * UNIT - self.sums[index] ** 2
        return max(0.0, float(Fraction(numerator, (self.count * UNIT) ** 2)))
