"""What a spectrogram is made of: the options, their ranges, and what contradicts what."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BASELINE_MODES = ("trace", "mean", "ratio", "logratio", "percent", "zscore", "zlogratio")
METHODS = ("stft", "multitaper", "morlet")
FREQ_SCALES = ("linear", "log")
DETRENDS = ("constant", "linear", "none")
SCALINGS = ("density", "spectrum")

WAVELET_FMIN = 4.0
WAVELET_FMAX = 150.0
WAVELET_FMAX_OF_SFREQ = 0.45
WAVELET_N_FREQS = 64


@dataclass(frozen=True)
class SpectrogramOptions:
    """What a spectrogram is made of; every field is the command-line flag of that name.

    Parameters
    ----------
    sfreq : float
        Sampling rate in Hz.
    tmin, tmax : float
        Window in seconds relative to the onset; `tmax` itself is excluded.
    baseline : tuple of float
        Start and end of the baseline window in seconds relative to the onset.
    baseline_mode : str
        ``"trace"`` subtracts the mean of the trace in the baseline window and takes log
        power. The others are those of ``mne.baseline.rescale``, applied to the power.
    method : str
        ``"stft"``, ``"multitaper"`` or ``"morlet"``.
    fmin, fmax : float or None
        Frequency range in Hz. None means all STFT bins, or for wavelets 4 Hz and the
        lower of 150 Hz and 0.45 times the sampling rate.
    n_freqs : int or None
        Number of frequencies. For the STFT the number of bands to average bins in (None
        keeps the bins), for wavelets the number of wavelets (None means 64).
    freq_scale : str
        Spacing of the bands or wavelets, ``"linear"`` or ``"log"``.
    window, nperseg, noverlap, detrend, scaling : str or int
        As in ``scipy.signal.spectrogram``, with a symmetric window; STFT only.
    n_cycles, decim : float, int
        As in ``mne.time_frequency.tfr_array_morlet``; wavelets only.
    time_bandwidth : float
        As in ``mne.time_frequency.tfr_array_multitaper``; multitaper only.
    log_floor : float
        Added to the power before its logarithm.

    Raises
    ------
    ValueError
        If an option is out of range or contradicts another.
    """

    sfreq: float
    tmin: float = -2.0
    tmax: float = 3.0
    baseline: tuple[float, float] = (-2.0, 0.0)
    baseline_mode: str = "trace"
    method: str = "stft"
    fmin: float | None = None
    fmax: float | None = None
    n_freqs: int | None = None
    freq_scale: str = "linear"
    window: str = "hann"
    nperseg: int = 126
    noverlap: int = 116
    detrend: str = "constant"
    scaling: str = "density"
    n_cycles: float = 7.0
    time_bandwidth: float = 4.0
    decim: int = 10
    log_floor: float = 1e-10

    def __post_init__(self) -> None:
        """Check every option that the chosen method uses."""
        self._check_numbers()
        self._check_choices()
        self._check_times()
        self._check_freqs()
        if self.method == "stft":
            self._check_stft()
        else:
            self._check_wavelets()

    def freq_range(self) -> tuple[float, float]:
        """Return the lowest and highest frequency in Hz, defaults filled in."""
        nyquist = self.sfreq / 2.0
        if self.method == "stft":
            # A logarithmic scale has no place for 0 Hz, so it starts at the first bin above.
            lowest = self.sfreq / self.nperseg if self.freq_scale == "log" else 0.0
            highest = nyquist
        else:
            lowest = WAVELET_FMIN
            highest = min(WAVELET_FMAX, WAVELET_FMAX_OF_SFREQ * self.sfreq)
        fmin = lowest if self.fmin is None else self.fmin
        return fmin, highest if self.fmax is None else self.fmax

    def _check_numbers(self) -> None:
        if len(self.baseline) != 2:
            raise ValueError(f"--baseline needs two times, tmin,tmax; got {self.baseline}")
        numbers = {
            "sfreq": (self.sfreq,),
            "tmin": (self.tmin,),
            "tmax": (self.tmax,),
            "baseline": self.baseline,
            "fmin": (self.fmin,),
            "fmax": (self.fmax,),
            "n_cycles": (self.n_cycles,),
            "time_bandwidth": (self.time_bandwidth,),
            "log_floor": (self.log_floor,),
        }
        for flag, values in numbers.items():
            for value in values:
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"--{flag} must be a finite number, got {value}")
        if self.sfreq <= 0:
            raise ValueError(f"--sfreq {self.sfreq:g} must be above 0 Hz")
        # The floor is added in float32, where anything smaller would lose digits or vanish.
        smallest = float(np.finfo(np.float32).tiny)
        if self.log_floor < smallest:
            raise ValueError(f"--log_floor {self.log_floor:g} must be at least {smallest:.3g}")

    def _check_choices(self) -> None:
        choices = {
            "baseline_mode": BASELINE_MODES,
            "method": METHODS,
            "freq_scale": FREQ_SCALES,
            "detrend": DETRENDS,
            "scaling": SCALINGS,
        }
        for flag, allowed in choices.items():
            value = getattr(self, flag)
            if value not in allowed:
                raise ValueError(f"--{flag} {value} is unknown: choose one of {', '.join(allowed)}")

    def _check_times(self) -> None:
        if self.tmin >= self.tmax:
            raise ValueError(f"--tmin {self.tmin:g} must be smaller than --tmax {self.tmax:g}")
        bmin, bmax = self.baseline
        if bmin >= bmax:
            raise ValueError(
                f"--baseline {bmin:g},{bmax:g} is empty: its start must lie before its end"
            )

    def _check_freqs(self) -> None:
        nyquist = self.sfreq / 2.0
        for flag, value in (("fmin", self.fmin), ("fmax", self.fmax)):
            if value is not None and not 0.0 <= value <= nyquist:
                raise ValueError(
                    f"--{flag} {value:g} must lie between 0 and {nyquist:g} Hz, "
                    f"half of --sfreq {self.sfreq:g}"
                )
        if self.n_freqs is not None and self.n_freqs < 1:
            raise ValueError(f"--n_freqs {self.n_freqs} must be at least 1")

    def _check_freq_range(self, positive: bool) -> None:
        fmin, fmax = self.freq_range()
        if fmin >= fmax:
            raise ValueError(f"--fmin {fmin:g} must be smaller than --fmax {fmax:g}")
        if positive and fmin == 0.0:
            raise ValueError(
                f"--fmin 0 must be above 0 Hz with --method {self.method} "
                f"--freq_scale {self.freq_scale}"
            )

    def _check_stft(self) -> None:
        if self.nperseg < 2:
            raise ValueError(f"--nperseg {self.nperseg} must be at least 2")
        if self.noverlap < 0:
            raise ValueError(f"--noverlap {self.noverlap} must not be negative")
        if self.noverlap >= self.nperseg:
            raise ValueError(
                f"--noverlap {self.noverlap} must be smaller than --nperseg {self.nperseg}"
            )
        if self.freq_scale == "log" and self.n_freqs is None:
            raise ValueError("--freq_scale log needs --n_freqs with --method stft")
        self._check_freq_range(positive=self.freq_scale == "log")

    def _check_wavelets(self) -> None:
        if self.n_cycles <= 0:
            raise ValueError(f"--n_cycles {self.n_cycles:g} must be above 0")
        if self.decim < 1:
            raise ValueError(f"--decim {self.decim} must be at least 1")
        if self.method == "multitaper" and self.time_bandwidth < 2.0:
            raise ValueError(f"--time_bandwidth {self.time_bandwidth:g} must be at least 2")
        self._check_freq_range(positive=True)
