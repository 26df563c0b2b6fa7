"""Power by the short-time Fourier transform, in bins or averaged over bands."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from beam_pipeline.power_estimator import Traces
from beam_pipeline.spectrogram_options import SpectrogramOptions

FRAMES_PER_BLOCK = 500
"""STFT frames transformed at once: few enough to stay in the cache. Not 512: the spectrum is filled
column by column, and rows a power of two apart share few places there (a third slower)."""


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
    window = _symmetric_window(options.window, options.nperseg)
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


def _symmetric_window(name: str, length: int) -> NDArray[np.float64]:
    """Return the symmetric window that SciPy calls `name`."""
    if name == "hann":
        return np.asarray(np.hanning(length))
    # Half a second to import in every process, which the default need not cost.
    from scipy.signal import get_window

    try:
        return np.asarray(get_window(name, length, fftbins=False), dtype=np.float64)
    except ValueError as error:
        raise ValueError(
            f"--window {name} cannot be made with --nperseg {length}: {error}"
        ) from error


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
