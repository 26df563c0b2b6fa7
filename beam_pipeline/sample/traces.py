"""Generated traces: background, line noise, evoked response and gamma burst of each trial."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from beam_pipeline.sample.model import LATENT_SCALE
from beam_pipeline.sample.sessions import STIMULUS_AMPLITUDES, Session

DURATION: Final = 5.0
ONSET: Final = 2.0

GAMMA_FREQ: Final = 85.0
GAMMA_BAND: Final = (75.0, 95.0)
GAMMA_LATENCY: Final = 0.25
GAMMA_WIDTH: Final = 0.08
GAMMA_WINDOW: Final = (0.1, 0.4)
# Burst energy at a = 0 over the background's energy in one degree of freedom of the band.
GAMMA_SNR: Final = 600.0
EVOKED_DEPTH: Final = 1.5
TROUGH_WIDTH: Final = 0.01


def background_density(
    freqs: NDArray[np.float64], exponent: float, noise_floor: float
) -> NDArray[np.float64]:
    """Power spectral density of the background, whose 1/f part has unit variance.

    Parameters
    ----------
    freqs : ndarray of float64, shape (n_freqs,)
        Evenly spaced frequencies from 0 Hz to Nyquist.
    exponent, noise_floor : float
        As in `Session`. The 1/f part is level below 1 Hz.

    Returns
    -------
    ndarray of float64, shape (n_freqs,)
        One-sided density per Hz; 0 at 0 Hz.
    """
    shape = np.maximum(freqs, 1.0) ** -exponent
    density = (shape + noise_floor * 150.0**-exponent) / (shape[1:].sum() * (freqs[1] - freqs[0]))
    density[0] = 0.0
    return np.asarray(density)


def simulate(
    session: Session,
    latent: NDArray[np.float64],
    frequency: NDArray[np.float64],
    amplitude: NDArray[np.float64],
    sfreq: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Generate the traces of some trials of one session.

    Parameters
    ----------
    session : Session
        The session.
    latent, frequency, amplitude : ndarray of float64, shape (n_trials,)
        Latent log amplitude, tone frequency (Hz) and level (dB) of each trial.
    sfreq : float
        Sampling rate in Hz.
    rng : numpy.random.Generator
        Source of the noise and the phases.

    Returns
    -------
    ndarray of float32, shape (n_trials, n_samples)
        Traces of `DURATION` seconds in microvolts, the stimulus at `ONSET`.
    """
    n_trials, n_samples = len(latent), round(DURATION * sfreq)
    freqs = np.asarray(np.fft.rfftfreq(n_samples, 1 / sfreq), dtype=np.float64)
    density = background_density(freqs, session.exponent, session.noise_floor)
    # A unit complex normal has variance 2, and a one-sided density counts each bin twice.
    scale = (session.gain * np.sqrt(n_samples * sfreq * density / 4)).astype(np.float32)
    normals = rng.standard_normal((n_trials, 2 * len(freqs)), dtype=np.float32)
    traces: NDArray[np.float32] = fft.irfft(normals.view(np.complex64) * scale, n=n_samples)

    times = np.arange(n_samples) / sfreq - ONSET
    line_phase, gamma_phase = rng.uniform(0, 2 * np.pi, (2, n_trials))
    strength = np.exp(LATENT_SCALE * latent)
    gamma_density = np.interp(GAMMA_FREQ, freqs, density)
    burst = np.sqrt(GAMMA_SNR * gamma_density / (GAMMA_WIDTH * np.sqrt(np.pi)))
    gamma_envelope = burst * _bump(times, GAMMA_LATENCY, GAMMA_WIDTH)
    gamma_angle = 2 * np.pi * GAMMA_FREQ * times
    line_angle = 2 * np.pi * session.line_freq * times
    components = (
        (session.line_amplitude * np.cos(line_phase), np.cos(line_angle)),
        (session.line_amplitude * np.sin(line_phase), np.sin(line_angle)),
        (strength * np.cos(gamma_phase), gamma_envelope * np.cos(gamma_angle)),
        (strength * np.sin(gamma_phase), gamma_envelope * np.sin(gamma_angle)),
        (
            strength * _tuning(session, frequency, amplitude),
            _evoked_response(times, session.trough_latency),
        ),
    )
    # Not a matrix product: BLAS may round differently with another number of threads.
    for weights, waveform in components:
        support = slice(*(np.flatnonzero(waveform)[[0, -1]] + [0, 1]))
        weights_32 = (session.gain * weights).astype(np.float32)
        traces[:, support] += weights_32[:, None] * waveform[support].astype(np.float32)
    return traces


def _bump(times: NDArray[np.float64], centre: float, width: float) -> NDArray[np.float64]:
    offset = (times - centre) / width
    return np.where((times >= 0) & (np.abs(offset) < 6), np.exp(-0.5 * offset**2), 0.0)


def _evoked_response(times: NDArray[np.float64], trough_latency: float) -> NDArray[np.float64]:
    trough = _bump(times, trough_latency, TROUGH_WIDTH)
    rebound = _bump(times, trough_latency + 0.1, 3 * TROUGH_WIDTH)
    return EVOKED_DEPTH * (0.4 * rebound - trough)


def _tuning(
    session: Session, frequency: NDArray[np.float64], amplitude: NDArray[np.float64]
) -> NDArray[np.float64]:
    octaves = np.log2(frequency / session.best_frequency)
    return amplitude / max(STIMULUS_AMPLITUDES) * (0.5 + 0.5 * np.exp(-0.5 * octaves**2))
