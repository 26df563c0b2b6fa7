"""Time-resolved power from banks of complex wavelets: Morlet and DPSS tapers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from beam_pipeline.power_estimator import Traces
from beam_pipeline.spectrogram_options import WAVELET_N_FREQS, SpectrogramOptions

MORLET_WIDTH = 5.0
"""Half length of a Morlet wavelet in standard deviations of its Gaussian, as in MNE."""


def morlet_length(sfreq: float, freq: float, n_cycles: float) -> int:
    """Return the number of samples of the Morlet wavelet at `freq` Hz."""
    return 2 * math.ceil(MORLET_WIDTH * n_cycles / (2.0 * math.pi * freq) * sfreq) - 1


def dpss_length(sfreq: float, freq: float, n_cycles: float) -> int:
    """Return the number of samples of the tapered oscillation at `freq` Hz."""
    return math.ceil(n_cycles / freq * sfreq)


def morlet_wavelets(
    sfreq: float, freqs: NDArray[np.float64], n_cycles: float
) -> list[NDArray[np.complex128]]:
    """Build one Morlet wavelet per frequency.

    The Gaussian's standard deviation is ``n_cycles / (2 pi f)``. The constant that
    makes the mean vanish (the admissibility criterion) is taken off the oscillation, and
    the norm is sqrt(2), so that the real part has norm 1: the conventions of
    ``mne.time_frequency.morlet(zero_mean=True)``.

    Parameters
    ----------
    sfreq : float
        Sampling rate in Hz.
    freqs : ndarray of float64, shape (n_freqs,)
        Centre frequencies in Hz, all positive.
    n_cycles : float
        Number of cycles of every wavelet.

    Returns
    -------
    list of ndarray of complex128
        One wavelet per frequency, each of odd length.

    References
    ----------
    Tallon-Baudry, C. et al. (1997). Oscillatory gamma-band (30-70 Hz) activity induced by
    a visual search task in humans. Journal of Neuroscience 17, 722-734.
    """
    wavelets = []
    for freq in freqs:
        sigma = n_cycles / (2.0 * np.pi * freq)
        half = np.arange(0.0, MORLET_WIDTH * sigma, 1.0 / sfreq)
        time = np.concatenate([-half[:0:-1], half])
        offset = np.exp(-2.0 * (np.pi * freq * sigma) ** 2)
        wavelet = np.exp(-(time**2) / (2.0 * sigma**2)) * (
            np.exp(2j * np.pi * freq * time) - offset
        )
        wavelets.append(_unit_power(wavelet))
    return wavelets


def dpss_wavelets(
    sfreq: float, freqs: NDArray[np.float64], n_cycles: float, time_bandwidth: float
) -> list[list[NDArray[np.complex128]]]:
    """Build ``floor(time_bandwidth - 1)`` tapered oscillations per frequency.

    Each oscillation of ``n_cycles`` cycles is multiplied by a discrete prolate spheroidal
    sequence, has its mean removed and its norm set to sqrt(2). It is then weighted so
    that the sum over tapers of the squared magnitudes is the eigenvalue-weighted mean
    power, in the convention of ``mne.time_frequency.tfr_array_multitaper``.

    Parameters
    ----------
    sfreq : float
        Sampling rate in Hz.
    freqs : ndarray of float64, shape (n_freqs,)
        Centre frequencies in Hz, all positive.
    n_cycles : float
        Number of cycles in every window.
    time_bandwidth : float
        Product of window length and full bandwidth, at least 2.

    Returns
    -------
    list of list of ndarray of complex128
        The wavelets, first by taper, then by frequency.

    Raises
    ------
    ValueError
        If a window has too few samples for `time_bandwidth`.

    References
    ----------
    Thomson, D. J. (1982). Spectrum estimation and harmonic analysis. Proceedings of the
    IEEE 70, 1055-1096.
    """
    # Half a second to import, which only multitaper should cost.
    from scipy.signal.windows import dpss

    n_tapers = int(time_bandwidth - 1.0)
    bank: list[list[NDArray[np.complex128]]] = [[] for _ in range(n_tapers)]
    for freq in freqs:
        duration = n_cycles / freq
        time = np.arange(0.0, duration, 1.0 / sfreq)
        if time.size <= time_bandwidth:
            raise ValueError(
                f"--n_cycles {n_cycles:g} gives a window of {time.size} samples at {freq:g} Hz, "
                f"too few for --time_bandwidth {time_bandwidth:g}: raise --n_cycles or lower --fmax"
            )
        tapers, ratios = dpss(
            time.size, time_bandwidth / 2.0, n_tapers, sym=False, norm=2, return_ratios=True
        )
        # MNE leaves out this normalisation, of power by the sum of weights, for a single taper.
        total = ratios.sum() / 2.0 if n_tapers > 1 else 1.0
        oscillation = np.exp(2j * np.pi * freq * (time - duration / 2.0))
        for wavelets, taper, ratio in zip(bank, tapers, ratios, strict=True):
            tapered = oscillation * taper
            wavelets.append(_unit_power(tapered - tapered.mean()) * np.sqrt(ratio / total))
    return bank


def _unit_power(wavelet: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Scale a wavelet to norm sqrt(2)."""
    scaled: NDArray[np.complex128] = wavelet * (np.sqrt(2.0) / np.linalg.norm(wavelet))
    return scaled


class WaveletPower:
    """Power of traces convolved with a bank of wavelets, at every `decim`-th sample.

    Parameters
    ----------
    bank : sequence of sequence of ndarray of complex128
        Wavelets by taper, then by frequency; powers are summed over tapers.
    freqs : ndarray of float64, shape (n_freqs,)
        Frequencies in Hz that the wavelets stand for.
    n_samples : int
        Length of the traces.
    decim : int
        Keep every `decim`-th sample.

    Attributes
    ----------
    freqs : ndarray of float64, shape (n_freqs,)
        Frequencies in Hz.
    centres : ndarray of float64, shape (n_frames,)
        Positions of the frames in samples.

    Notes
    -----
    Circular convolution by FFT with zero padding, centred as ``numpy.convolve(mode="same")``.
    Keeping every `decim`-th sample folds the spectrum `decim` times onto itself, so the
    product is folded first and the inverse transform is `decim` times shorter; the
    result is the same as that of decimating afterwards.
    """

    def __init__(
        self,
        bank: Sequence[Sequence[NDArray[np.complex128]]],
        freqs: NDArray[np.float64],
        n_samples: int,
        decim: int,
    ) -> None:
        self.freqs = freqs
        self.centres: NDArray[np.float64] = np.arange(0, n_samples, decim, dtype=np.float64)
        self._decim = decim
        longest = max(wavelet.size for wavelets in bank for wavelet in wavelets)
        # Only the centred part is read, so half a wavelet of padding keeps it free of wrap-around.
        self._n_folded = scipy.fft.next_fast_len(-(-(n_samples + longest // 2) // decim))
        self._spectra = [
            np.stack([self._spectrum(wavelet) for wavelet in wavelets]) for wavelets in bank
        ]

    def _spectrum(self, wavelet: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Transform a wavelet whose centre is moved to sample 0; shape (decim, n_folded)."""
        padded = np.zeros(self._decim * self._n_folded, dtype=np.complex128)
        padded[: wavelet.size] = wavelet
        centred = np.roll(padded, -((wavelet.size - 1) // 2))
        spectrum: NDArray[np.complex128] = scipy.fft.fft(centred) / self._decim
        return spectrum.reshape(self._decim, self._n_folded)

    def powers(self, segments: Traces) -> Iterator[NDArray[np.float64]]:
        """Yield the power of one trace after another.

        Parameters
        ----------
        segments : ndarray of float32 or float64, shape (n, n_samples)
            Traces.

        Yields
        ------
        ndarray of float64, shape (n_freqs, n_frames)
            Power in squared units of the trace; valid until the next one is asked for.
        """
        n_frames = self.centres.size
        product = np.empty((self._decim, self._n_folded), dtype=np.complex128)
        folded = np.empty((self.freqs.size, self._n_folded), dtype=np.complex128)
        power = np.empty((self.freqs.size, n_frames), dtype=np.float64)
        # One trace at a time: memory stays small, and bits cannot depend on the batch.
        for segment in segments:
            trace = scipy.fft.fft(segment.astype(np.float64), product.size).reshape(product.shape)
            power.fill(0.0)
            for spectra in self._spectra:
                for spectrum, fold in zip(spectra, folded, strict=True):
                    np.multiply(spectrum, trace, out=product)
                    np.add.reduce(product, axis=0, out=fold)
                amplitude = scipy.fft.ifft(folded, axis=1)[:, :n_frames]
                power += amplitude.real**2
                power += amplitude.imag**2
            yield power


def wavelet_power(options: SpectrogramOptions, n_samples: int) -> WaveletPower:
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
