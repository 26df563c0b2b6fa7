"""Exact, order-independent sums of spectrogram values.

Float addition depends on the order of the terms, so means merged in another order differ in
their last bits. Here every trial's sum over time is rounded once to a multiple of 2**-40, and
all further addition is on integers: any grouping, any order and any number of workers give the
same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

FRACTION_BITS = 40
UNIT = 1 << FRACTION_BITS
HALF_BITS = 32
HALF_MASK = (1 << HALF_BITS) - 1
#: Beyond this magnitude a sum of squares over a long trial could leave the 64-bit integers.
MAX_MAGNITUDE = float(1 << 20)


def exact_sum(values: NDArray[np.float64]) -> NDArray[np.object_]:
    """Sum over the first axis as Python integers in units of 2**-40.

    Parameters
    ----------
    values : float64 array of shape (n, ...)
        Finite, each below 2**63 in magnitude; n below 2**22.

    Returns
    -------
    object array of shape (...)
        Python integers.
    """
    floor = np.floor(values)
    fraction = np.rint((values - floor) * UNIT).astype(np.int64)
    whole = floor.astype(np.int64)
    # In two halves, because the sum of the whole numbers may need more than 64 bits.
    high = (whole >> HALF_BITS).sum(axis=0).astype(object)
    low = (whole & HALF_MASK).sum(axis=0).astype(object)
    total = (high << HALF_BITS) + low
    scaled: NDArray[np.object_] = np.asarray(total * UNIT + fraction.sum(axis=0).astype(object))
    return scaled


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of spectrogram values, per frequency.

    Attributes
    ----------
    count : int
        Values summed at each frequency (trials times frames).
    sums, squares : tuple of int
        One per frequency, in units of 2**-40.
    """

    count: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def zero(cls, n_freqs: int) -> Moments:
        """Return the neutral element of addition."""
        return cls(0, (0,) * n_freqs, (0,) * n_freqs)

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Moments:
        """Return the moments of spectrograms (n_trials, n_freqs, n_times), float32.

        Values must be finite and below `MAX_MAGNITUDE`. A trial's sums have the 53 bits of
        float64, so that a standard deviation is good to 1e-9 as long as it is above a thousandth
        of the mean.
        """
        n_trials, _, n_times = values.shape
        wide = values.astype(np.float64)
        sums = exact_sum(wide.sum(axis=2))
        squares = exact_sum(np.square(wide, out=wide).sum(axis=2))
        return cls(n_trials * n_times, tuple(sums.tolist()), tuple(squares.tolist()))

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
            In units of 2**-40.
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
