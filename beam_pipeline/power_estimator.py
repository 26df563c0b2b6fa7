"""What the STFT and the wavelets have in common: traces in, power over frequency and time out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Traces = NDArray[np.float32] | NDArray[np.float64]


class PowerEstimator(Protocol):
    """Turns traces into power over frequency and time."""

    freqs: NDArray[np.float64]
    """Frequencies in Hz, shape (n_freqs,)."""
    centres: NDArray[np.float64]
    """Centres of the frames in samples from the start of the trace, shape (n_frames,)."""

    def powers(self, segments: Traces) -> Iterator[NDArray[np.float64]]:
        """Yield the power, shape (n_freqs, n_frames), of one trace after another."""
