"""Mean spectrograms, summed exactly so that the dataset card is the same for every runner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNIT = 2.0**20


@dataclass
class MeanPicture:
    """Sum of normalised spectrograms.

    A block's sum is rounded to a multiple of 2**-20. Sums of such multiples are exact in float64
    below 2**33, so that they do not depend on the order in which blocks are added.

    Attributes
    ----------
    n_trials : int
    total : float64 array of shape (n_freqs, n_times)
    """

    n_trials: int
    total: NDArray[np.float64]

    @classmethod
    def zero(cls, n_freqs: int, n_times: int) -> MeanPicture:
        """Return the neutral element of addition."""
        return cls(0, np.zeros((n_freqs, n_times)))

    @classmethod
    def total_of(cls, parts: Iterable[MeanPicture]) -> MeanPicture:
        """Return the sum of one or more pictures, in any order."""
        parts = list(parts)
        total = np.sum([part.total for part in parts], axis=0)
        return cls(sum(part.n_trials for part in parts), total)

    def add(self, spectrograms: NDArray[np.float32]) -> None:
        """Add the spectrograms of a block, shape (n_trials, n_freqs, n_times)."""
        self.n_trials += len(spectrograms)
        self.total += np.rint(spectrograms.sum(axis=0, dtype=np.float64) * UNIT) / UNIT

    def mean(self) -> NDArray[np.float64]:
        """Return the mean spectrogram, float64 of shape (n_freqs, n_times)."""
        return self.total / self.n_trials
