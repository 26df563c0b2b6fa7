"""Features of trials, taken while the shards stream by, and of sequences, made from them.

What is kept of a trial is a few kB, so that a dataset far beyond memory can still be judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.shard_reader import Block

#: Hz, the upper end not included.
BANDS = {
    "delta": (1.0, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 13.0),
    "beta": (13.0, 30.0),
    "low gamma": (30.0, 60.0),
    "high gamma": (60.0, 120.0),
}
#: The most rows and columns of a spectrogram that is averaged down.
POOLED_FREQS, POOLED_TIMES = 32, 64

Floats = NDArray[np.float64]
Index = NDArray[np.int64]


def pool_axis(values: NDArray[np.float32], n: int, axis: int) -> NDArray[np.float32]:
    """Return means over n runs of neighbours of nearly equal length; no more than there are."""
    length = values.shape[axis]
    edges = np.arange(n) * length // n if n < length else np.arange(length)
    widths = np.diff(edges, append=length).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = -1
    sums = np.add.reduceat(values, edges, axis=axis)
    return np.asarray(sums / widths.reshape(shape), np.float32)


@dataclass(frozen=True, eq=False)
class TrialFeatures:
    """What is kept of each trial of a split, by row of its `Trials`.

    Attributes
    ----------
    baseline : float64 array of shape (n_trials, n_freqs)
        log10 power of the baseline window, before any normalisation.
    mean, mean_square : float64 arrays of shape (n_trials, n_freqs)
        Of the normalised values over the frames.
    pooled : float16 array of shape (n_trials, <= POOLED_FREQS, <= POOLED_TIMES)
        Normalised spectrograms, averaged down.
    """

    baseline: Floats
    mean: Floats
    mean_square: Floats
    pooled: NDArray[np.float16]

    @classmethod
    def empty(cls, n_trials: int, n_freqs: int, n_times: int) -> TrialFeatures:
        """Return room for the trials of a split."""
        baseline, mean, mean_square = np.zeros((3, n_trials, n_freqs))
        shape = n_trials, min(n_freqs, POOLED_FREQS), min(n_times, POOLED_TIMES)
        return cls(baseline, mean, mean_square, np.zeros(shape, np.float16))

    def add(self, first_row: int, block: Block) -> None:
        """Take in a block; blocks fill rows of their own, so threads may do this at once."""
        rows = slice(first_row, first_row + len(block.trial_num))
        values = block.spectrogram.astype(np.float32)
        self.baseline[rows] = block.baseline
        self.mean[rows] = values.mean(axis=2, dtype=np.float64)
        self.mean_square[rows] = np.square(values).mean(axis=2, dtype=np.float64)
        self.pooled[rows] = pool_axis(pool_axis(values, POOLED_TIMES, 2), POOLED_FREQS, 1)


def sequence_means(values: NDArray[Any], rows: Index) -> NDArray[Any]:
    """Return the mean over the trials of each sequence.

    Parameters
    ----------
    values : array of shape (n_trials_of_split, ...)
    rows : int64 array of shape (n_sequences, n_trials)

    Returns
    -------
    array of shape (n_sequences, ...)
        float64, or float32 where the values are float16.
    """
    # Trial by trial: all trials of all sequences at once would not fit.
    total: NDArray[Any] = np.zeros(
        (len(rows), *values.shape[1:]), np.result_type(values, np.float32)
    )
    for column in rows.T:
        total += values[column]
    total /= rows.shape[1]
    return total


def session_gain(baseline: Floats, rows: Index, session: NDArray[np.int32]) -> Floats:
    """Return each sequence's session gain: mean log10 baseline power of the session's trials.

    Parameters
    ----------
    baseline : float64 array of shape (n_trials_of_split, n_freqs)
    rows : int64 array of shape (n_sequences, n_trials)
    session : int32 array of shape (n_trials_of_split,)
        Session of each trial.

    Returns
    -------
    float64 array of shape (n_sequences, 1)
    """
    levels = np.bincount(session, baseline.mean(axis=1)) / np.maximum(1, np.bincount(session))
    gain: Floats = levels[session[rows[:, 0]], None]
    return gain


def mean_and_std(mean: Floats, mean_square: Floats, rows: Index) -> Floats:
    """Return mean and standard deviation over trials and frames, per frequency.

    The lab's own baseline, which its transformer did not beat.

    Parameters
    ----------
    mean, mean_square : float64 arrays of shape (n_trials_of_split, n_freqs)
        Over the frames of each trial.
    rows : int64 array of shape (n_sequences, n_trials)

    Returns
    -------
    float64 array of shape (n_sequences, 2 * n_freqs)
    """
    means: Floats = sequence_means(mean, rows)
    variance = sequence_means(mean_square, rows) - np.square(means)
    return np.concatenate([means, np.sqrt(np.maximum(variance, 0.0))], axis=1)


def band_power(mean: Floats, rows: Index, freqs: Floats, std: float | list[float]) -> Floats:
    """Return the mean log power of each band that holds a frequency; see `BANDS`.

    Parameters
    ----------
    mean : float64 array of shape (n_trials_of_split, n_freqs)
        Of the normalised values over the frames of each trial.
    rows : int64 array of shape (n_sequences, n_trials)
    freqs : float64 array of shape (n_freqs,)
        Hz.
    std : float or list of float
        What the values were divided by. What was subtracted shifts all sequences alike.

    Returns
    -------
    float64 array of shape (n_sequences, n_bands)
        log10 power; n_bands may be 0.
    """
    power = sequence_means(mean, rows) * np.asarray(std)
    inside = [(low <= freqs) & (freqs < high) for low, high in BANDS.values()]
    bands = [power[:, chosen].mean(axis=1) for chosen in inside if chosen.any()]
    return np.stack(bands, axis=1) if bands else np.zeros((len(rows), 0))
