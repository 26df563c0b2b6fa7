"""Means over the sessions of a trace table, in which each session counts once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.audit.tally import SessionTally, Timing


def average(
    tallies: Iterable[SessionTally], timing: Timing
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return mean response, mean spectrum and number of traces; see `summary.ConditionAudit`."""
    evoked = np.zeros(timing.n_samples)
    log_power = np.zeros(timing.n_samples // 2 + 1)
    n_sessions = n_trials = 0
    for tally in tallies:
        sums = tally.sums.get(timing)
        if sums is None:
            continue
        trace = sums.trace / sums.n_trials
        if timing.onset_sample:
            trace = trace - trace[: timing.onset_sample].mean()
        evoked += trace / np.median(np.asarray(tally.level, np.float64))
        log_power += np.log(np.maximum(sums.power / sums.n_trials, np.finfo(np.float64).tiny))
        n_sessions += 1
        n_trials += sums.n_trials
    if n_sessions == 0:
        return np.empty(0), np.empty(0), 0
    return evoked / n_sessions, np.exp(log_power / n_sessions), n_trials


@dataclass(frozen=True)
class HumSpectrum:
    """The mean spectrum in which mains hum is looked for.

    Attributes
    ----------
    power : float64 array of shape (n_samples // 2 + 1,)
        Geometric mean over sessions.
    n_samples : int
        Samples of the stretch of each trace that was looked at.
    n_trials : int
    """

    power: NDArray[np.float64]
    n_samples: int
    n_trials: int

    @classmethod
    def none(cls) -> HumSpectrum:
        """Return the spectrum of no trace."""
        return cls(np.empty(0), 0, 0)


def hum_spectrum(tallies: Iterable[SessionTally], timing: Timing) -> HumSpectrum:
    """Return the spectrum of what no stimulus has caused.

    That is what comes before the onset: a response that follows a train of stimuli, as at 40 Hz,
    is as sharp as hum. Where nobody says when the stimulus came, the mean trace of each session is
    taken off, which holds such a response, but not hum that comes in any phase.
    """
    onset = timing.onset_sample
    n_samples = timing.n_samples if onset is None else onset
    log_power = np.zeros(n_samples // 2 + 1)
    n_sessions = n_trials = 0
    for tally in tallies:
        sums = tally.sums.get(timing)
        if sums is None or (onset is None and sums.n_trials < 2):
            continue
        power = (
            sums.induced_power(timing.sfreq)
            if onset is None
            else sums.baseline_power / sums.n_trials
        )
        log_power += np.log(np.maximum(power, np.finfo(np.float64).tiny))
        n_sessions += 1
        n_trials += sums.n_trials
    if n_sessions == 0:
        return HumSpectrum.none()
    return HumSpectrum(np.exp(log_power / n_sessions), n_samples, n_trials)
