"""The lab's spectrogram of one trace, as SciPy computes it."""

from __future__ import annotations

import numpy as np
import scipy.signal
from job import SFREQ
from numpy.typing import ArrayLike, NDArray

BASELINE_SAMPLES = 2000


def log_spectrogram(trace: ArrayLike) -> NDArray[np.float64]:
    """Return the lab's 64 x 488 log-power spectrogram of one trace."""
    # BigQuery's only float type is float64.
    trace = np.asarray(trace, np.float64)
    trace = trace - np.mean(trace[:BASELINE_SAMPLES])
    _, _, power = scipy.signal.spectrogram(
        trace,
        fs=SFREQ,
        window=scipy.signal.windows.hann(126),
        nperseg=126,
        noverlap=116,
        scaling="density",
    )
    return np.asarray(np.log10(power + 1e-10))
