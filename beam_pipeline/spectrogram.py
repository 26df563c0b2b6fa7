"""Spectrograms of LFP traces: baseline, window, STFT / multitaper / Morlet, log power."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.power_estimator import PowerEstimator, Traces
from beam_pipeline.spectrogram_options import SpectrogramOptions
from beam_pipeline.stft import StftPower

__all__ = ["Spectrogram", "SpectrogramOptions"]


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
        self._estimator = _power_estimator(options, self.n_samples)
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
        means: NDArray[np.float64] = baseline.mean(axis=1, keepdims=True, dtype=np.float64)
        centred: NDArray[np.float64] = segments - means
        return centred

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


def _power_estimator(options: SpectrogramOptions, n_samples: int) -> PowerEstimator:
    """Return the STFT or the bank of wavelets that `options` ask for."""
    if options.method == "stft":
        return StftPower(options, n_samples)
    # Imports scipy.fft, which the STFT does without.
    from beam_pipeline.wavelets import wavelet_power

    return wavelet_power(options, n_samples)
