"""Whether the sampling rate fits the mains hum, and the onset the evoked response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.sessions import MAD_TO_STD

MAINS = (50.0, 60.0)
FACTORS = (0.1, 0.2, 0.5, 2.0, 5.0, 10.0)
#: Rates that amplifiers offer, those of Tucker-Davis systems (24414.0625 Hz and parts) included.
USUAL_RATES = (
    *(200.0, 250.0, 256.0, 400.0, 500.0, 512.0, 1000.0, 1017.2526, 1024.0, 1250.0),
    *(2000.0, 2034.5052, 2048.0, 2500.0, 4000.0, 5000.0, 8000.0, 10000.0, 12207.03125, 16000.0),
    *(20000.0, 24414.0625, 25000.0, 30000.0, 32000.0, 40000.0, 50000.0),
)
#: No LFP is recorded outside: nothing else is proposed.
LOWEST_RATE, HIGHEST_RATE = USUAL_RATES[0], USUAL_RATES[-1]
MAX_HARMONIC = 9
#: Mains frequency strays by up to 0.3 %; the peak is located to a third of a bin.
MAINS_TOLERANCE = 0.003
BIN_TOLERANCE = 0.35
#: A rate that is no clean multiple of the assumed one is proposed only by a peak that is located
#: as well as this: some usual rate is near any peak of a short baseline.
USUAL_RATE_TOLERANCE = 0.015
#: Where the first trough of auditory cortex is expected, seconds after the tone.
EXPECTED_LATENCY = (0.015, 0.060)
#: Deflections of the mean response below this many robust standard deviations are taken as noise.
MIN_EVOKED_SCORE = 6.0
MANY_DEFLECTIONS = 8


@dataclass(frozen=True)
class SpectralPeak:
    """A peak a few bins wide.

    Attributes
    ----------
    cycles_per_sample : float
        Frequency over the sampling rate, which is known even where the rate is not.
    prominence_db : float
        Power over that of the bins 3 to 8 to either side.
    """

    cycles_per_sample: float
    prominence_db: float


class RateVerdict(StrEnum):
    """What the sharp peaks say of the assumed sampling rate."""

    FITS = "fits"
    HARMONIC_ONLY = "harmonic_only"
    OTHER_RATE = "other_rate"
    UNEXPLAINED = "unexplained"
    NO_PEAK = "no_peak"
    RATE_UNKNOWN = "rate_unknown"


@dataclass(frozen=True)
class RateFit:
    """A sampling rate that explains sharp peaks.

    Attributes
    ----------
    sfreq, mains : float
        The rate, and the mains frequency that goes with it; Hz.
    peak : SpectralPeak or None
        The peak that the rate puts at the mains frequency itself.
    score : float
        Sum of the prominences of all peaks that it explains, dB; 0 without `peak`.
    """

    sfreq: float
    mains: float
    peak: SpectralPeak | None
    score: float


@dataclass(frozen=True)
class LineNoise:
    """Mains hum in the mean spectrum.

    Attributes
    ----------
    verdict : RateVerdict
    peak : SpectralPeak or None
        The peak that is explained, else the strongest sharp peak.
    mains : float or None
        50 or 60 Hz where the assumed rate fits.
    fits : tuple of RateFit
        Rates that would explain the peaks, the best first.
    """

    verdict: RateVerdict
    peak: SpectralPeak | None
    mains: float | None
    fits: tuple[RateFit, ...]


@dataclass(frozen=True)
class EvokedPeak:
    """First large deflection of the mean response.

    Attributes
    ----------
    sample : int
        Where it is largest, from the start of the trace.
    value : float
        In standard deviations of a single trace.
    score : float
        In robust standard deviations of the mean response before the onset (of the whole mean
        response where the onset is unknown).
    goes_on : bool
        `MANY_DEFLECTIONS` as large follow each other, as in a response to a train of stimuli:
        which of them the latency belongs to, nobody can tell.
    """

    sample: int
    value: float
    score: float
    goes_on: bool = False

    @property
    def is_clear(self) -> bool:
        """Tell whether it stands out of the noise."""
        return self.score >= MIN_EVOKED_SCORE


def sharp_peaks(power: NDArray[np.float64], n_samples: int, n_trials: int) -> list[SpectralPeak]:
    """Find peaks a few bins wide, the most prominent first.

    Parameters
    ----------
    power : float64 array of shape (n_samples // 2 + 1,)
        Mean Hann periodogram.
    n_samples : int
        Samples behind each periodogram.
    n_trials : int
        Traces behind the mean: fewer traces leave more noise, and need higher peaks.

    Returns
    -------
    list of SpectralPeak
        Located by a parabola through the logarithm of three bins.
    """
    log_power = np.log(np.maximum(power, np.finfo(np.float64).tiny))
    # A periodogram of noise has a relative standard deviation of 1 / sqrt(n_trials).
    threshold = np.log(max(2.0, 1 + 6 / np.sqrt(max(n_trials, 1))))
    peaks = []
    for k in range(5, len(power) - 5):
        if not log_power[k - 1] < log_power[k] >= log_power[k + 1]:
            continue
        left, right = log_power[max(k - 8, 1) : k - 2], log_power[k + 3 : k + 9]
        prominence = log_power[k] - (np.median(left) + np.median(right)) / 2
        if prominence >= threshold:
            a, b, c = log_power[k - 1 : k + 2]
            shift = 0.5 * (a - c) / (a - 2 * b + c)
            decibel = 10 * float(prominence) / np.log(10)
            peaks.append(SpectralPeak(float(k + shift) / n_samples, decibel))
    return sorted(peaks, key=lambda peak: -peak.prominence_db)


def line_noise(peaks: Sequence[SpectralPeak], n_samples: int, sfreq: float | None) -> LineNoise:
    """Judge a sampling rate by where the sharp peaks lie.

    A rate explains a peak that it puts at 50 or 60 Hz or at a harmonic of it, provided that it
    puts one at the fundamental as well: every rate has some harmonic near some peak. Proposed are
    multiples (`FACTORS`) of the assumed rate and `USUAL_RATES`. Rates that explain less than half
    of the strongest peak's prominence (in dB) are left out, and the assumed rate is believed unless
    another one explains more than twice as much.

    Parameters
    ----------
    peaks : sequence of SpectralPeak
        The most prominent first.
    n_samples : int
        Samples behind the spectrum.
    sfreq : float or None
        Assumed rate, Hz.
    """
    if not peaks:
        return LineNoise(RateVerdict.NO_PEAK, None, None, ())
    strongest = peaks[0]
    fits = _best_fits(peaks, n_samples, sfreq)
    if sfreq is None:
        return LineNoise(RateVerdict.RATE_UNKNOWN, _explained(fits) or strongest, None, fits)
    own = max((_fit(peaks, n_samples, sfreq, mains) for mains in MAINS), key=lambda f: f.score)
    if own.score > 0 and own.score >= 0.5 * max((fit.score for fit in fits), default=0.0):
        return LineNoise(RateVerdict.FITS, own.peak, own.mains, ())
    resolution = sfreq / n_samples
    for harmonic in (2, 3):
        for mains in MAINS:
            if _is_at(strongest.cycles_per_sample * sfreq, harmonic * mains, resolution):
                return LineNoise(RateVerdict.HARMONIC_ONLY, strongest, mains, fits)
    verdict = RateVerdict.OTHER_RATE if fits else RateVerdict.UNEXPLAINED
    return LineNoise(verdict, _explained(fits) or strongest, None, fits)


def _explained(fits: Sequence[RateFit]) -> SpectralPeak | None:
    return fits[0].peak if fits else None


def _candidate_rates(sfreq: float | None) -> list[float]:
    rates = [] if sfreq is None else [sfreq * factor for factor in FACTORS]
    for rate in USUAL_RATES:
        known = [*rates, sfreq] if sfreq is not None else rates
        if all(abs(rate - other) > MAINS_TOLERANCE * rate for other in known):
            rates.append(rate)
    return [rate for rate in rates if LOWEST_RATE <= rate <= HIGHEST_RATE]


def is_plausible(sfreq: float, assumed: float) -> bool:
    """Tell whether a rate may be proposed in the place of the assumed one."""
    return any(abs(sfreq - rate) <= MAINS_TOLERANCE * rate for rate in _candidate_rates(assumed))


def _best_fits(
    peaks: Sequence[SpectralPeak], n_samples: int, sfreq: float | None
) -> tuple[RateFit, ...]:
    clean = set() if sfreq is None else {sfreq * factor for factor in FACTORS}
    fits = [
        fit
        for rate in _candidate_rates(sfreq)
        for mains in MAINS
        for fit in [_fit(peaks, n_samples, rate, mains)]
        if rate in clean or BIN_TOLERANCE * rate / n_samples <= USUAL_RATE_TOLERANCE * mains
    ]
    best = max((fit.score for fit in fits), default=0.0)
    least = max(0.5 * peaks[0].prominence_db, 0.9 * best)
    # The sort is stable: equal scores keep the order of the candidates.
    good = [fit for fit in fits if fit.score >= least]
    return tuple(sorted(good, key=lambda fit: -round(fit.score, 6)))


def _fit(peaks: Sequence[SpectralPeak], n_samples: int, sfreq: float, mains: float) -> RateFit:
    resolution = sfreq / n_samples
    explained: dict[int, SpectralPeak] = {}
    for peak in peaks:
        frequency = peak.cycles_per_sample * sfreq
        harmonic = round(frequency / mains)
        if 1 <= harmonic <= MAX_HARMONIC and _is_at(frequency, harmonic * mains, resolution):
            explained.setdefault(harmonic, peak)
    score = sum(peak.prominence_db for peak in explained.values())
    return RateFit(sfreq, mains, explained.get(1), score if 1 in explained else 0.0)


def _is_at(frequency: float, expected: float, resolution: float) -> bool:
    tolerance = max(MAINS_TOLERANCE * expected, BIN_TOLERANCE * resolution)
    return abs(frequency - expected) <= tolerance


def evoked_peak(evoked: NDArray[np.float64], onset_sample: int | None) -> EvokedPeak:
    """Find the first large deflection of a mean response.

    Large is half of the largest, if that is clear. A response that goes on, as to a train of
    stimuli, may be largest anywhere. What comes before the onset is taken only where nothing large
    comes after it.

    Parameters
    ----------
    evoked : float64 array of shape (n_samples,)
    onset_sample : int or None
        The samples before it tell how large noise is, where there are at least ten.
    """
    quiet = evoked if onset_sample is None or onset_sample < 10 else evoked[:onset_sample]
    centre = float(np.median(quiet))
    spread = MAD_TO_STD * float(np.median(np.abs(quiet - centre)))
    values = evoked - centre
    sample = int(np.argmax(np.abs(values)))
    largest, clear = abs(float(values[sample])), MIN_EVOKED_SCORE * spread
    found = []
    if largest >= clear > 0:
        level = max(largest / 2, clear)
        found = _deflections(values, level, onset_sample or 0) or _deflections(values, level, 0)
        first, stop = found[0]
        sample = first + int(np.argmax(np.abs(values[first:stop])))
    value = float(values[sample])
    score = abs(value) / spread if spread > 0 else 0.0
    return EvokedPeak(sample, value, score, len(found) >= MANY_DEFLECTIONS)


def _deflections(values: NDArray[np.float64], level: float, start: int) -> list[tuple[int, int]]:
    """Return where the first deflections of at least `level` begin and end.

    They end where less than half of it is left: noise crosses a level more than once.
    """
    size, found = np.abs(values), list[tuple[int, int]]()
    while len(found) < MANY_DEFLECTIONS and np.any(size[start:] >= level):
        first = start + int(np.argmax(size[start:] >= level))
        ended = (size[first:] < level / 2) | (values[first:] * values[first] < 0)
        start = first + (int(np.argmax(ended)) or len(ended))
        found.append((first, start))
    return found


def rates_for_latency(n_samples: int) -> tuple[float, float]:
    """Return the lowest and highest rate (Hz) that put `n_samples` at the expected latency."""
    early, late = EXPECTED_LATENCY
    return n_samples / late, n_samples / early
