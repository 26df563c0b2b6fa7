"""Generated rows that a reader must reject, each for a known reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.sample.traces import ONSET

REASONS: Final = (
    "non_finite",
    "flat",
    "too_short",
    "railed",
    "duplicate_trial",
    "empty_trace",
    "truncated_trace",
)


def draw_bad_trials(
    n_trials: int, bad_fraction: float, reasons: Sequence[str], rng: np.random.Generator
) -> dict[int, str]:
    """Choose the trials that get a bad row; the reasons take turns.

    Parameters
    ----------
    n_trials : int
        Trials of the session.
    bad_fraction : float
        Expected share of them.
    reasons : sequence of str
        Reject reasons to use.
    rng : numpy.random.Generator
        Source of the choice.

    Returns
    -------
    dict of int to str
        Reject reason by index of the trial, in order.
    """
    n_bad = min(n_trials, int(n_trials * bad_fraction + rng.random()))
    first = int(rng.integers(len(reasons)))
    chosen = sorted(rng.choice(n_trials, n_bad, replace=False).tolist())
    return {trial: reasons[(first + i) % len(reasons)] for i, trial in enumerate(chosen)}


def damage(trace: NDArray[np.float32], reason: str, sfreq: float) -> NDArray[np.float32]:
    """Make a trace fit to be rejected for a reason.

    Parameters
    ----------
    trace : ndarray of float32, shape (n_samples,)
        A good trace; not changed.
    reason : str
        One of `REASONS`. ``duplicate_trial`` and ``truncated_trace`` leave the samples as they
        are: the fault lies in the table and in the text.
    sfreq : float
        Sampling rate in Hz.

    Returns
    -------
    ndarray of float32
        The bad trace; shorter for ``too_short`` and ``empty_trace``.
    """
    onset = round(ONSET * sfreq)
    if reason == "non_finite":
        bad = trace.copy()
        bad[onset : onset + len(trace) // 100] = np.nan
        return bad
    if reason == "flat":
        return np.full_like(trace, trace[0])
    if reason == "too_short":
        return trace[: onset // 2]
    if reason == "railed":
        rail = np.quantile(np.abs(trace), 0.3)
        return trace.clip(-rail, rail)
    if reason == "empty_trace":
        return trace[:0]
    return trace
