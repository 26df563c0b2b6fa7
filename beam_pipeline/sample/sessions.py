"""Generated recording sessions: class, animal, random effects, order of the stimuli."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.sample.model import CONDITIONS
from beam_pipeline.sample.streams import Stream, generator

STIMULUS_FREQUENCIES: Final = tuple(float(f) for f in np.geomspace(4000, 32000, 8).round())
STIMULUS_AMPLITUDES: Final = (40.0, 60.0, 80.0)
BACKGROUND_MICROVOLT: Final = 50.0


@dataclass(frozen=True)
class Session:
    """One recording session and its random effects.

    Attributes
    ----------
    session, subject, condition : str
        Names; the sessions of a subject share the condition.
    gain : float
        Microvolt for one background standard deviation; log-normal over sessions.
    exponent : float
        Exponent of the 1/f background.
    noise_floor : float
        White noise density over the density of the 1/f part at 150 Hz.
    line_freq, line_amplitude : float
        Mains frequency in Hz, amplitude in background standard deviations.
    trough_latency : float
        Seconds from the onset to the evoked trough.
    best_frequency : float
        Tone to which the site responds most, Hz.
    """

    session: str
    subject: str
    condition: str
    gain: float
    exponent: float
    noise_floor: float
    line_freq: float
    line_amplitude: float
    trough_latency: float
    best_frequency: float


def draw_session(index: int, n_sessions: int, seed: int) -> Session:
    """Draw a session: class, then the random effects of its animal and its own.

    Animals have two sessions each; below 12 sessions they have fewer, so that up to six animals
    are left to split.

    Parameters
    ----------
    index, n_sessions : int
        Number of the session, and of all sessions.
    seed : int
        Seed.

    Returns
    -------
    Session
        The session.
    """
    n_subjects = max(min(n_sessions, 6), (n_sessions + 1) // 2)
    subject = index * n_subjects // n_sessions
    # Classes alternate within pairs of animals: balanced, yet the number tells nothing.
    coin = int(generator(seed, Stream.PAIR, subject // 2).integers(2))
    lab = generator(seed, Stream.LAB)
    animal = generator(seed, Stream.SUBJECT, subject)
    own = generator(seed, Stream.SESSION, index)
    log_gain = animal.normal(0, 0.6) + own.normal(0, 0.8)
    return Session(
        session=f"session-{index + 1:05d}",
        subject=f"mouse-{subject + 1:05d}",
        condition=CONDITIONS[(subject + coin) % 2],
        gain=float(BACKGROUND_MICROVOLT * np.exp(log_gain)),
        exponent=animal.normal(1.5, 0.15) + own.normal(0, 0.1),
        noise_floor=float(np.exp(own.normal(0, 0.5))),
        line_freq=float(lab.choice([50.0, 60.0])),
        line_amplitude=float(0.2 * np.exp(own.normal(0, 0.5))),
        trough_latency=animal.uniform(0.025, 0.04),
        best_frequency=float(np.exp(animal.uniform(*np.log(STIMULUS_FREQUENCIES)[[0, -1]]))),
    )


def stimulus_order(
    n_trials: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Present the whole stimulus grid in a new random order, again and again.

    Parameters
    ----------
    n_trials : int
        Number of trials.
    rng : numpy.random.Generator
        Source of the order.

    Returns
    -------
    frequency, amplitude : ndarray of float64, shape (n_trials,)
        Tone frequency in Hz, level in dB.
    """
    n_levels = len(STIMULUS_AMPLITUDES)
    grid = np.arange(len(STIMULUS_FREQUENCIES) * n_levels)
    n_rounds = -(-n_trials // len(grid))
    cells = rng.permuted(np.tile(grid, (n_rounds, 1)), axis=1).ravel()[:n_trials]
    return (
        np.array(STIMULUS_FREQUENCIES)[cells // n_levels],
        np.array(STIMULUS_AMPLITUDES)[cells % n_levels],
    )
