"""Spectrograms of LFP traces: baseline, window, STFT / multitaper / Morlet, log power."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.signal
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from beam_pipeline.wavelets import (
    Traces,
    WaveletPower,
    dpss_length,
    dpss_wavelets,
    morlet_length,
    morlet_wavelets,
)

BASELINE_MODES = ("trace", "mean", "ratio", "logratio", "percent", "zscore", "zlogratio")
METHODS = ("stft", "multitaper", "morlet")
FREQ_SCALES = ("linear", "log")
DETRENDS = ("constant", "linear", "none")
SCALINGS = ("density", "spectrum")

FRAMES_PER_BLOCK = 512
"""STFT frames transformed at once: few enough to stay in the cache."""

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


class PowerEstimator(Protocol):
    """Turns traces into power over frequency and time."""

    freqs: NDArray[np.float64]
    """Frequencies in Hz, shape (n_freqs,)."""
    centres: NDArray[np.float64]
    """Centres of the frames in samples from the start of the trace, shape (n_frames,)."""

    def powers(self, segments: Traces) -> Iterator[NDArray[np.float64]]:
        """Yield the power, shape (n_freqs, n_frames), of one trace after another."""


class Spectrogram:
    """Compute spectrograms of trials, all with the same options.

    A trial's result depends on that trial and the options alone: it has the same bits
    in any batch.

    Parameters
    ----------
    options : SpectrogramOptions
        What to compute.

    Attributes
    ----------
    options : SpectrogramOptions
        What is computed.
    segment : tuple of float
        Start and end, in seconds relative to the onset, of the stretch of the trace that
        the window and the baseline need together.
    n_samples : int
        Number of samples in that stretch; the sample at its end is excluded.
    freqs : ndarray of float64, shape (n_freqs,)
        Frequencies in Hz.
    times : ndarray of float64, shape (n_times,)
        Centres of the frames in seconds relative to the onset.

    Raises
    ------
    ValueError
        If the options do not fit the segment: no frame in the window or the baseline, a
        window or wavelet longer than the segment, a frequency band without a bin.
    """

    def __init__(self, options: SpectrogramOptions) -> None:
        self.options = options
        bmin, bmax = options.baseline
        self.segment = min(options.tmin, bmin), max(options.tmax, bmax)
        self.n_samples = round((self.segment[1] - self.segment[0]) * options.sfreq)
        self._estimator: PowerEstimator = (
            StftPower(options, self.n_samples)
            if options.method == "stft"
            else _wavelet_power(options, self.n_samples)
        )
        self._baseline_samples = self._sample_slice(bmin, bmax)
        # Rounded to a picosecond: a frame centred on an edge must compare equal to it.
        times = np.round(self.segment[0] + self._estimator.centres / options.sfreq, 12)
        self._baseline_frames = self._frame_slice(times, bmin, bmax, closed=True)
        self._window_frames = self._frame_slice(times, options.tmin, options.tmax, closed=False)
        self._check_frames(times)
        self.freqs = self._estimator.freqs
        self.times = times[self._window_frames]

    def __reduce__(self) -> tuple[type[Spectrogram], tuple[SpectrogramOptions]]:
        """Pickle the options only: a bank of wavelets is large and quickly rebuilt."""
        return type(self), (self.options,)

    def __call__(self, segments: Traces) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute spectrograms and baseline spectra.

        Parameters
        ----------
        segments : ndarray of float32 or float64, shape (n, n_samples)
            Traces over `segment`, as recorded. All arithmetic up to the power is in
            float64: float32 would show where power is tiny beside that of the strongest
            component of the trace.

        Returns
        -------
        values : ndarray of float32, shape (n, n_freqs, n_times)
            ``log10(power + log_floor)`` where `baseline_mode` is ``"trace"``, else the
            power rescaled by the baseline. Not finite where the input or the ratio to
            its baseline is not.
        baseline : ndarray of float32, shape (n, n_freqs)
            ``log10(mean power + log_floor)`` over the frames of the baseline window,
            before any rescaling.

        Raises
        ------
        ValueError
            If the shape is not (n, n_samples).
        """
        self._check_shape(segments.shape)
        baseline = np.empty((len(segments), self.freqs.size), dtype=np.float32)
        values = np.empty((*baseline.shape, self.times.size), dtype=np.float32)
        with np.errstate(all="ignore"):
            for i, power in enumerate(self._estimator.powers(self._baselined(segments))):
                mean = power[:, self._baseline_frames].mean(axis=1)
                baseline[i] = np.log10(mean + self.options.log_floor)
                if self.options.baseline_mode != "trace":
                    rescale(power, self._baseline_frames, self.options.baseline_mode)
                values[i] = power[:, self._window_frames]
                if self.options.baseline_mode == "trace":
                    _log10_in_place(values[i], self.options.log_floor)
        return values, baseline

    def _baselined(self, segments: Traces) -> Traces:
        """Subtract the mean of the baseline window where `baseline_mode` asks for it."""
        frames_are_detrended = self.options.method == "stft" and self.options.detrend != "none"
        # A constant means nothing to frames that are detrended one by one.
        if self.options.baseline_mode != "trace" or frames_are_detrended:
            return segments
        baseline = segments[:, self._baseline_samples]
        return segments - baseline.mean(axis=1, keepdims=True, dtype=np.float64)

    def _sample_slice(self, start: float, stop: float) -> slice:
        """Return the samples of the segment in [start, stop), in seconds."""
        first = round((start - self.segment[0]) * self.options.sfreq)
        last = min(round((stop - self.segment[0]) * self.options.sfreq), self.n_samples)
        if first >= last:
            raise ValueError(
                f"--baseline {start:g},{stop:g} is empty: it holds no sample at "
                f"--sfreq {self.options.sfreq:g}"
            )
        return slice(first, last)

    def _frame_slice(
        self, times: NDArray[np.float64], start: float, stop: float, *, closed: bool
    ) -> slice:
        """Return the frames in [start, stop), or in [start, stop] if `closed`."""
        tolerance = 1e-6 / self.options.sfreq
        last = stop + tolerance if closed else stop - tolerance
        return slice(
            int(np.searchsorted(times, start - tolerance)), int(np.searchsorted(times, last))
        )

    def _check_frames(self, times: NDArray[np.float64]) -> None:
        span = f"{times[0]:g} to {times[-1]:g} s" if times.size > 1 else f"{times[0]:g} s"
        bmin, bmax = self.options.baseline
        if self._baseline_frames.start >= self._baseline_frames.stop:
            raise ValueError(
                f"--baseline {bmin:g},{bmax:g} is empty: it holds the centre of no spectrogram "
                f"frame (the frames' centres: {span})"
            )
        if self._window_frames.start >= self._window_frames.stop:
            raise ValueError(
                f"--tmin {self.options.tmin:g} --tmax {self.options.tmax:g} hold the centre of no "
                f"spectrogram frame (the frames' centres: {span})"
            )

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != self.n_samples:
            raise ValueError(
                f"segments must have the shape (n_trials, {self.n_samples}), got {shape}"
            )


def rescale(power: NDArray[np.float64], baseline: slice, mode: str) -> None:
    """Rescale power by its own baseline, in place.

    The modes and formulas are those of ``mne.baseline.rescale``.

    Parameters
    ----------
    power : ndarray of float64, shape (..., n_frames)
        Power; overwritten with the result.
    baseline : slice
        Frames of the baseline window.
    mode : str
        ``"mean"``, ``"ratio"``, ``"logratio"``, ``"percent"``, ``"zscore"`` or
        ``"zlogratio"``.
    """
    mean = power[..., baseline].mean(axis=-1, keepdims=True)
    if mode in ("mean", "percent", "zscore"):
        power -= mean
    if mode in ("ratio", "logratio", "percent", "zlogratio"):
        power /= mean
    if mode in ("logratio", "zlogratio"):
        np.log10(power, out=power)
    if mode in ("zscore", "zlogratio"):
        power /= power[..., baseline].std(axis=-1, keepdims=True)


def _log10_in_place(power: NDArray[np.float32], floor: float) -> None:
    """Replace float32 power by ``log10(power + floor)``.

    NumPy's float32 `log` is vectorised by one algorithm on all x86 with AVX2 or AVX-512,
    its `log10` on AVX-512 only: elsewhere it is ten times slower.
    """
    power += np.float32(floor)
    np.log(power, out=power)
    power *= np.float32(1.0 / math.log(10.0))


class StftPower:
    """Short-time Fourier power, equal to ``scipy.signal.spectrogram`` with a symmetric window.

    Parameters
    ----------
    options : SpectrogramOptions
        The STFT's options.
    n_samples : int
        Length of the traces.

    Attributes
    ----------
    freqs : ndarray of float64, shape (n_freqs,)
        Frequencies in Hz of the bins or, for bands, the mean over the band's bins.
    centres : ndarray of float64, shape (n_frames,)
        Centres of the frames in samples from the start of the trace.

    Raises
    ------
    ValueError
        If a frame is longer than the trace, the window cannot be made or is zero, or
        the frequency range or a band of it holds no bin.
    """

    def __init__(self, options: SpectrogramOptions, n_samples: int) -> None:
        nperseg = options.nperseg
        if nperseg > n_samples:
            raise ValueError(
                f"--nperseg {nperseg} is longer than the {n_samples} samples of the window and "
                f"baseline at --sfreq {options.sfreq:g}"
            )
        self._detrend = options.detrend
        self._hop = nperseg - options.noverlap
        self._n_samples = n_samples
        self._window = _scaled_window(options)
        ends = np.arange(nperseg, n_samples + 1, self._hop, dtype=np.float64)
        self.centres: NDArray[np.float64] = ends - nperseg / 2.0
        slope = np.arange(nperseg) - (nperseg - 1) / 2.0
        self._slope = slope / np.sqrt(np.sum(slope**2))
        bins = np.asarray(np.fft.rfftfreq(nperseg, 1.0 / options.sfreq), dtype=np.float64)
        self._bins = _bins_in_range(options, bins)
        # 0 Hz and, for an even length, Nyquist have no negative twin to be doubled for.
        unpaired = [0, nperseg // 2] if nperseg % 2 == 0 else [0]
        self._unpaired = np.flatnonzero(np.isin(np.arange(bins.size)[self._bins], unpaired))
        self.freqs = bins[self._bins]
        self._band_starts: NDArray[np.intp] | None = None
        if options.n_freqs is not None:
            self._band_starts = _band_starts(options, self.freqs)
            self.freqs = self._band_means(self.freqs[:, np.newaxis])[:, 0]

    def powers(self, segments: Traces) -> Iterator[NDArray[np.float64]]:
        """Yield the power of one trace after another.

        Parameters
        ----------
        segments : ndarray of float32 or float64, shape (n, n_samples)
            Traces.

        Yields
        ------
        ndarray of float64, shape (n_freqs, n_frames)
            Power as SciPy scales it; valid until the next one is asked for.
        """
        # The frames are a view of `trace`, so copying a trace into it fills them.
        trace = np.empty(self._n_samples, dtype=np.float64)
        frames = sliding_window_view(trace, self._window.size)[:: self._hop]
        tapered = np.empty((min(len(frames), FRAMES_PER_BLOCK), self._window.size))
        spectrum = np.empty((self._window.size // 2 + 1, len(tapered)), dtype=np.complex128)
        power = np.empty((self._bins.stop - self._bins.start, len(frames)))
        # Blocks begin anew with each trace, so bits cannot depend on the batch.
        for segment in segments:
            trace[:] = segment
            for start in range(0, len(frames), FRAMES_PER_BLOCK):
                block = frames[start : start + FRAMES_PER_BLOCK]
                n = len(block)
                self._taper(block, out=tapered[:n])
                self._power(tapered[:n], spectrum[:, :n], out=power[:, start : start + n])
            power[self._unpaired] *= 0.5
            yield power if self._band_starts is None else self._band_means(power)

    def _taper(self, frames: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """Detrend frames of shape (n_frames, nperseg) and multiply them by the window."""
        if self._detrend == "none":
            np.multiply(frames, self._window, out=out)
            return
        # Unlike `mean` and `@`, einsum is both quick on short rows and free of BLAS.
        mean = np.einsum("ij->i", frames) / self._window.size
        np.subtract(frames, mean[:, np.newaxis], out=out)
        if self._detrend == "linear":
            out -= np.einsum("ij,j->i", out, self._slope)[:, np.newaxis] * self._slope
        np.multiply(out, self._window, out=out)

    def _power(
        self,
        tapered: NDArray[np.float64],
        spectrum: NDArray[np.complex128],
        out: NDArray[np.float64],
    ) -> None:
        """Write the power of frames of shape (n_frames, nperseg) to (n_bins, n_frames)."""
        # Written to a transposed view, the spectrum needs no transposing pass of its own.
        np.fft.rfft(tapered, axis=1, out=spectrum.T)
        parts = spectrum[self._bins].view(np.float64)
        np.multiply(parts, parts, out=parts)
        np.add(parts[:, ::2], parts[:, 1::2], out=out)

    def _band_means(self, bins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Average values of shape (n_bins, n) over the bins of each band."""
        assert self._band_starts is not None
        counts = np.diff(self._band_starts, append=len(bins))
        sums = np.add.reduceat(bins, self._band_starts, axis=0)
        means: NDArray[np.float64] = sums / counts[:, np.newaxis]
        return means


def _scaled_window(options: SpectrogramOptions) -> NDArray[np.float64]:
    """Return the window times the square root of the scale of one-sided power."""
    try:
        window = scipy.signal.get_window(options.window, options.nperseg, fftbins=False)
    except ValueError as error:
        raise ValueError(
            f"--window {options.window} cannot be made with --nperseg {options.nperseg}: {error}"
        ) from error
    if options.scaling == "density":
        total = options.sfreq * np.sum(window**2)
    else:
        total = np.sum(window) ** 2
    if not total > 0.0:
        raise ValueError(
            f"--window {options.window} with --nperseg {options.nperseg} is zero: raise --nperseg"
        )
    scaled: NDArray[np.float64] = window * np.sqrt(2.0 / total)
    return scaled


def _bins_in_range(options: SpectrogramOptions, bins: NDArray[np.float64]) -> slice:
    """Return the bins between `fmin` and `fmax`, both included."""
    fmin, fmax = options.freq_range()
    tolerance = 1e-9 * options.sfreq
    kept = slice(
        int(np.searchsorted(bins, fmin - tolerance)), int(np.searchsorted(bins, fmax + tolerance))
    )
    if kept.start == kept.stop:
        raise ValueError(
            f"no STFT bin lies between --fmin {fmin:g} and --fmax {fmax:g} Hz (the bins are "
            f"{bins[1]:.4g} Hz apart): widen the range or raise --nperseg"
        )
    return kept


def _band_starts(options: SpectrogramOptions, bins: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the first bin of each of `n_freqs` bands between `fmin` and `fmax`."""
    fmin, fmax = options.freq_range()
    n_freqs = 1 if options.n_freqs is None else options.n_freqs
    spacing = np.geomspace if options.freq_scale == "log" else np.linspace
    edges = spacing(fmin, fmax, n_freqs + 1)
    starts = np.searchsorted(bins, edges[:-1] - 1e-9 * options.sfreq)
    empty = np.flatnonzero(np.diff(starts, append=bins.size) == 0)
    if empty.size:
        low, high = edges[empty[0]], edges[empty[0] + 1]
        raise ValueError(
            f"--n_freqs {n_freqs} leaves the band {low:.4g}-{high:.4g} Hz without an STFT bin "
            f"(the bins are {options.sfreq / options.nperseg:.4g} Hz apart): ask for fewer bands, "
            f"raise --fmin or raise --nperseg"
        )
    return starts


def _wavelet_power(options: SpectrogramOptions, n_samples: int) -> WaveletPower:
    """Build the bank of wavelets that `options` ask for, for traces of `n_samples`."""
    fmin, fmax = options.freq_range()
    n_freqs = WAVELET_N_FREQS if options.n_freqs is None else options.n_freqs
    spacing = np.geomspace if options.freq_scale == "log" else np.linspace
    freqs = spacing(fmin, fmax, n_freqs)
    if options.decim > n_samples:
        raise ValueError(
            f"--decim {options.decim} is longer than the segment of {n_samples} samples"
        )
    # Before any is built: at a tiny --fmin a single wavelet would fill the memory.
    length_at = morlet_length if options.method == "morlet" else dpss_length
    length = length_at(options.sfreq, fmin, options.n_cycles)
    if length > n_samples:
        raise ValueError(
            f"--n_cycles {options.n_cycles:g} at --fmin {fmin:g} Hz needs a wavelet of {length} "
            f"samples, longer than the segment of {n_samples}: raise --fmin or lower --n_cycles"
        )
    if options.method == "morlet":
        bank = [morlet_wavelets(options.sfreq, freqs, options.n_cycles)]
    else:
        bank = dpss_wavelets(options.sfreq, freqs, options.n_cycles, options.time_bandwidth)
    return WaveletPower(bank, freqs, n_samples, options.decim)
