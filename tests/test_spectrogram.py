import itertools
import pickle
from typing import Any

import mne
import numpy as np
import pytest
import scipy.signal
from mne.time_frequency import tfr_array_morlet, tfr_array_multitaper

from beam_pipeline.spectrogram import Spectrogram, SpectrogramOptions
from beam_pipeline.spectrogram_options import BASELINE_MODES

SFREQ = 1000.0
FLOOR = 1e-10


def options(**changes: Any) -> SpectrogramOptions:
    return SpectrogramOptions(**{"sfreq": SFREQ, **changes})


def short(**changes: Any) -> SpectrogramOptions:
    """Options for a trace of 1,200 samples, which the slower methods can do quickly."""
    return options(**{"tmin": -0.5, "tmax": 0.7, "baseline": (-0.5, -0.1), **changes})


def wavelets(**changes: Any) -> SpectrogramOptions:
    return short(**{"method": "morlet", "fmin": 12.0, "fmax": 90.0, "n_freqs": 7, **changes})


def traces(kind: str, n_samples: int = 5000, n: int = 3) -> np.ndarray:
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((n, n_samples))
    if kind == "walk":
        return noise.cumsum(axis=1)
    if kind == "sine":
        return 1000.0 * np.sin(2 * np.pi * 9.3 * np.arange(n_samples) / SFREQ) + noise
    if kind == "offset":
        return 1e6 + noise
    return noise


def scipy_spectrogram(x: np.ndarray, o: SpectrogramOptions) -> tuple[np.ndarray, ...]:
    kwargs: dict[str, Any] = {
        "window": scipy.signal.get_window(o.window, o.nperseg, fftbins=False),
        "nperseg": o.nperseg,
        "noverlap": o.noverlap,
        "detrend": False if o.detrend == "none" else o.detrend,
        "scaling": o.scaling,
    }
    return scipy.signal.spectrogram(x.astype(np.float64), o.sfreq, **kwargs)


def without_baseline(x: np.ndarray, o: SpectrogramOptions) -> np.ndarray:
    """Float64 traces less their mean in the baseline, with which the segment begins."""
    x = x.astype(np.float64)
    n_baseline = round((o.baseline[1] - o.baseline[0]) * o.sfreq)
    return x - x[:, :n_baseline].mean(axis=1, keepdims=True)


STFT_CHANGES: list[dict[str, Any]] = [
    {},
    {"nperseg": 125, "noverlap": 100},
    {"nperseg": 200, "noverlap": 0},
    {"window": "hamming"},
    {"window": "boxcar"},
    {"window": "blackman", "nperseg": 255, "noverlap": 254, "tmin": -0.5, "baseline": (-0.5, 0.0)},
    {"detrend": "linear"},
    {"detrend": "none"},
    {"scaling": "spectrum"},
    {"scaling": "spectrum", "nperseg": 63, "noverlap": 31, "detrend": "linear"},
]


@pytest.mark.parametrize("changes", STFT_CHANGES, ids=str)
@pytest.mark.parametrize("kind", ["white", "walk", "sine", "offset"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stft_equals_scipy_in_float64(
    dtype: type[np.floating], kind: str, changes: dict[str, Any]
) -> None:
    o = options(**changes)
    spectrogram = Spectrogram(o)
    x = traces(kind, spectrogram.n_samples).astype(dtype)
    # SciPy's own detrending stands for the baseline, or the test takes it off itself.
    expected_x = without_baseline(x, o) if o.detrend == "none" else x
    freqs, times, power = scipy_spectrogram(expected_x, o)

    values, baseline = spectrogram(x)

    np.testing.assert_allclose(spectrogram.freqs, freqs, rtol=1e-12)
    np.testing.assert_allclose(spectrogram.times, times + spectrogram.segment[0], atol=1e-9)
    np.testing.assert_allclose(values, np.log10(power + FLOOR), rtol=0, atol=1e-4)
    # A frame lies in the baseline if its centre does, edges included.
    in_baseline = times <= o.baseline[1] - o.baseline[0] + 1e-9
    expected = np.log10(power[..., in_baseline].mean(axis=-1) + FLOOR)
    np.testing.assert_allclose(baseline, expected, rtol=0, atol=1e-4)


def test_geometry_of_the_defaults() -> None:
    spectrogram = Spectrogram(options())
    assert spectrogram.n_samples == 5000
    assert spectrogram.segment == (-2.0, 3.0)
    assert spectrogram.freqs.shape == (64,)
    assert spectrogram.times.shape == (488,)
    assert spectrogram.freqs.dtype == spectrogram.times.dtype == np.float64
    np.testing.assert_allclose(spectrogram.times[[0, 1]], [-1.937, -1.927])
    values, baseline = spectrogram(np.zeros((2, 5000), dtype=np.float32))
    assert values.shape == (2, 64, 488)
    assert baseline.shape == (2, 64)
    assert values.dtype == baseline.dtype == np.float32
    np.testing.assert_allclose(values, -10.0, atol=1e-5)
    np.testing.assert_allclose(baseline, -10.0, atol=1e-5)


def test_odd_sampling_rate() -> None:
    o = SpectrogramOptions(
        173.61, tmin=0.0, tmax=23.6, baseline=(0.0, 23.6), nperseg=128, noverlap=64
    )
    spectrogram = Spectrogram(o)
    assert spectrogram.n_samples == 4097
    x = traces("walk", 4097)
    freqs, times, power = scipy_spectrogram(x, o)
    values, _ = spectrogram(x)
    np.testing.assert_allclose(spectrogram.freqs, freqs, rtol=1e-12)
    np.testing.assert_allclose(spectrogram.times, times, atol=1e-9)
    np.testing.assert_allclose(values, np.log10(power + FLOOR), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["stft", "morlet", "multitaper"])
def test_baseline_outside_the_window(method: str) -> None:
    o = wavelets(method=method, tmin=0.1, tmax=0.6, n_freqs=None, noverlap=125, decim=1)
    spectrogram = Spectrogram(o)
    assert spectrogram.segment == (-0.5, 0.6)
    assert spectrogram.n_samples == 1100
    whole = Spectrogram(wavelets(**{**vars(o), "tmin": -0.5}))
    x = traces("white", 1100)
    values, baseline = spectrogram(x)
    all_values, all_baseline = whole(x)
    kept = (whole.times >= 0.1) & (whole.times < 0.6)
    assert 0 < kept.sum() < whole.times.size
    # The frame on tmin itself belongs to the window.
    assert spectrogram.times[0] == 0.1
    np.testing.assert_array_equal(spectrogram.times, whole.times[kept])
    np.testing.assert_array_equal(values, all_values[..., kept])
    np.testing.assert_array_equal(baseline, all_baseline)


def test_end_of_the_window_is_excluded() -> None:
    spectrogram = Spectrogram(wavelets(tmax=0.3, baseline=(-0.5, 0.7), decim=100))
    np.testing.assert_allclose(spectrogram.times, np.arange(-5, 3) / 10)


def test_frequency_range_keeps_the_bins_inside() -> None:
    x = traces("walk")
    whole = Spectrogram(options())
    part = Spectrogram(options(fmin=whole.freqs[3], fmax=100.0))
    np.testing.assert_array_equal(part.freqs, whole.freqs[3:13])
    values, baseline = part(x)
    all_values, all_baseline = whole(x)
    np.testing.assert_array_equal(values, all_values[:, 3:13])
    np.testing.assert_array_equal(baseline, all_baseline[:, 3:13])


@pytest.mark.parametrize("nperseg", [125, 126])
@pytest.mark.parametrize(
    "band",
    [
        {"n_freqs": 10},
        {"n_freqs": 1},
        # Every edge is a bin of nperseg 126, but for rounding.
        {"n_freqs": 17, "fmax": np.fft.rfftfreq(126, 1 / SFREQ)[17]},
        {"n_freqs": 6, "freq_scale": "log"},
        {"n_freqs": 5, "freq_scale": "log", "fmin": 20.0, "fmax": 400.0},
    ],
    ids=str,
)
def test_bands_average_the_power_of_their_bins(band: dict[str, Any], nperseg: int) -> None:
    o = options(nperseg=nperseg, noverlap=100, **band)
    spectrogram = Spectrogram(o)
    x = traces("walk")
    freqs, _, power = scipy_spectrogram(x, o)
    log = o.freq_scale == "log"
    fmin = o.fmin if o.fmin is not None else (freqs[1] if log else 0.0)
    fmax = o.fmax if o.fmax is not None else SFREQ / 2
    edges = (np.geomspace if log else np.linspace)(fmin, fmax, band["n_freqs"] + 1)
    # A bin on an edge belongs to the band above, and the one on fmax to the last.
    edges -= 1e-6
    edges[-1] += 2e-6
    values, _ = spectrogram(x)
    assert values.shape[1] == band["n_freqs"]
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (freqs >= low) & (freqs < high)
        assert spectrogram.freqs[i] == pytest.approx(freqs[inside].mean())
        expected = np.log10(power[:, inside].mean(axis=1) + FLOOR)
        np.testing.assert_allclose(values[:, i], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["walk", "offset"])
@pytest.mark.parametrize("n_cycles", [3.0, 7.0])
@pytest.mark.parametrize("decim", [1, 3, 10])
@pytest.mark.parametrize("freq_scale", ["linear", "log"])
def test_morlet_equals_mne(
    freq_scale: str, decim: int, n_cycles: float, kind: str, dtype: type[np.floating]
) -> None:
    o = wavelets(n_cycles=n_cycles, decim=decim, freq_scale=freq_scale, log_floor=1e-30)
    spectrogram = Spectrogram(o)
    x = traces(kind, 1200).astype(dtype)
    spacing = np.geomspace if freq_scale == "log" else np.linspace
    freqs = spacing(12.0, 90.0, 7)
    expected = tfr_array_morlet(
        without_baseline(x, o)[:, None],
        SFREQ,
        freqs,
        n_cycles=n_cycles,
        zero_mean=True,
        decim=decim,
        output="power",
        verbose="error",
    )[:, 0]
    values, _ = spectrogram(x)
    np.testing.assert_allclose(spectrogram.freqs, freqs)
    np.testing.assert_allclose(spectrogram.times, -0.5 + np.arange(0, 1200, decim) / SFREQ)
    np.testing.assert_allclose(10.0 ** values.astype(np.float64), expected, rtol=1e-5)


@pytest.mark.parametrize("n_cycles", [4.0, 7.0])
@pytest.mark.parametrize("time_bandwidth", [2.0, 3.0, 4.0, 5.5])
@pytest.mark.parametrize("decim", [1, 7])
@pytest.mark.parametrize(("kind", "dtype"), [("walk", np.float32), ("offset", np.float64)])
def test_multitaper_equals_mne(
    kind: str, dtype: type[np.floating], decim: int, time_bandwidth: float, n_cycles: float
) -> None:
    o = wavelets(
        method="multitaper",
        n_cycles=n_cycles,
        time_bandwidth=time_bandwidth,
        decim=decim,
        log_floor=1e-30,
    )
    spectrogram = Spectrogram(o)
    x = traces(kind, 1200).astype(dtype)
    expected = tfr_array_multitaper(
        without_baseline(x, o)[:, None],
        SFREQ,
        np.linspace(12.0, 90.0, 7),
        n_cycles=n_cycles,
        time_bandwidth=time_bandwidth,
        zero_mean=True,
        decim=decim,
        output="power",
        verbose="error",
    )[:, 0]
    values, _ = spectrogram(x)
    np.testing.assert_allclose(10.0 ** values.astype(np.float64), expected, rtol=1e-5)


@pytest.mark.parametrize("sfreq", [173.61, 1000.0])
def test_wavelet_defaults(sfreq: float) -> None:
    spectrogram = Spectrogram(SpectrogramOptions(sfreq, method="morlet"))
    expected = np.linspace(4.0, min(150.0, 0.45 * sfreq), 64)
    np.testing.assert_allclose(spectrogram.freqs, expected)


@pytest.mark.parametrize("mode", [mode for mode in BASELINE_MODES if mode != "trace"])
@pytest.mark.parametrize("o", [short(noverlap=125), wavelets(decim=1)], ids=["stft", "morlet"])
def test_baseline_modes_equal_mne(mode: str, o: SpectrogramOptions) -> None:
    # With a frame on every sample, frames lie on both edges of the baseline.
    changed = SpectrogramOptions(**{**vars(o), "baseline_mode": mode})
    spectrogram = Spectrogram(changed)
    x = traces("walk", 1200)
    if o.method == "stft":
        _, _, power = scipy_spectrogram(x, o)
    else:
        power = tfr_array_morlet(
            x[:, None], SFREQ, spectrogram.freqs, zero_mean=True, output="power"
        )[:, 0]
    times = spectrogram.times
    assert {-0.1} <= set(times.tolist())
    expected = mne.baseline.rescale(power, times, o.baseline, mode, copy=True, verbose="error")
    values, baseline = spectrogram(x)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    inside = (times >= o.baseline[0]) & (times <= o.baseline[1])
    expected_baseline = np.log10(power[..., inside].mean(axis=-1) + FLOOR)
    np.testing.assert_allclose(baseline, expected_baseline, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "o",
    [
        options(),
        options(nperseg=125, noverlap=121, detrend="linear", n_freqs=9),
        options(detrend="none"),
        options(baseline_mode="zscore", tmin=-0.5),
        wavelets(),
        wavelets(method="multitaper", baseline_mode="logratio"),
    ],
    ids=["stft", "bands", "trace", "zscore", "morlet", "multitaper"],
)
def test_results_have_the_same_bits_in_any_batch(o: SpectrogramOptions) -> None:
    spectrogram = Spectrogram(o)
    x = traces("walk", spectrogram.n_samples, n=11)
    values, baseline = spectrogram(x)
    for size in (1, 2, 3, 5, 8):
        for start in range(0, 11, size):
            rows = slice(start, start + size)
            part_values, part_baseline = spectrogram(x[rows])
            assert part_values.tobytes() == values[rows].tobytes()
            assert part_baseline.tobytes() == baseline[rows].tobytes()


@pytest.mark.parametrize("o", [options(), options(detrend="none"), wavelets()], ids=str)
def test_results_do_not_depend_on_memory_layout(o: SpectrogramOptions) -> None:
    spectrogram = Spectrogram(o)
    x = traces("walk", spectrogram.n_samples, n=4)
    values, baseline = spectrogram(x)
    other_values, other_baseline = spectrogram(np.asfortranarray(x))
    assert other_values.tobytes() == values.tobytes()
    assert other_baseline.tobytes() == baseline.tobytes()


def test_input_is_left_as_it_is() -> None:
    x = traces("offset", 5000)
    before = x.copy()
    Spectrogram(options(detrend="none"))(x)
    np.testing.assert_array_equal(x, before)


def test_pickled_copy_gives_the_same_bits() -> None:
    spectrogram = Spectrogram(wavelets(method="multitaper"))
    data = pickle.dumps(spectrogram)
    assert len(data) < 2000
    x = traces("walk", 1200)
    copy = pickle.loads(data)  # noqa: S301 - our own bytes
    assert copy(x)[0].tobytes() == spectrogram(x)[0].tobytes()


@pytest.mark.parametrize("o", [options(), wavelets(baseline_mode="zlogratio")], ids=str)
def test_bad_trial_is_not_finite_and_leaves_others_alone(o: SpectrogramOptions) -> None:
    spectrogram = Spectrogram(o)
    x = traces("white", spectrogram.n_samples, n=4)
    x[1, 700] = np.nan
    x[2, 700] = 1e200
    values, baseline = spectrogram(x)
    assert not np.isfinite(values[1]).all()
    assert not np.isfinite(values[2]).all()
    good = [0, 3]
    alone, alone_baseline = spectrogram(x[good])
    assert np.isfinite(alone).all()
    np.testing.assert_array_equal(values[good], alone)
    np.testing.assert_array_equal(baseline[good], alone_baseline)


def test_flat_trial_has_no_ratio_to_its_baseline() -> None:
    spectrogram = Spectrogram(options(baseline_mode="ratio"))
    values, baseline = spectrogram(np.zeros((1, 5000)))
    assert np.isnan(values).all()
    np.testing.assert_allclose(baseline, -10.0, atol=1e-5)


def test_no_trials() -> None:
    spectrogram = Spectrogram(options())
    values, baseline = spectrogram(np.empty((0, 5000)))
    assert values.shape == (0, 64, 488)
    assert baseline.shape == (0, 64)


@pytest.mark.parametrize("shape", [(5000,), (2, 4999), (1, 2, 5000)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    spectrogram = Spectrogram(options())
    with pytest.raises(ValueError, match=r"shape \(n_trials, 5000\)"):
        spectrogram(np.zeros(shape, dtype=np.float32))


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"sfreq": 0.0}, "--sfreq 0 must be above 0 Hz"),
    ({"sfreq": float("nan")}, "--sfreq must be a finite number, got nan"),
    ({"tmax": float("inf")}, "--tmax must be a finite number, got inf"),
    ({"baseline": (-2.0, float("nan"))}, "--baseline must be a finite number, got nan"),
    ({"baseline": (-2.0,)}, "--baseline needs two times"),
    ({"log_floor": 0.0}, "--log_floor 0 must be at least"),
    ({"baseline_mode": "no"}, "--baseline_mode no is unknown: choose one of trace, mean, ratio"),
    ({"method": "fft"}, "--method fft is unknown: choose one of stft, multitaper, morlet"),
    ({"freq_scale": "mel"}, "--freq_scale mel is unknown: choose one of linear, log"),
    ({"detrend": "no"}, "--detrend no is unknown: choose one of constant, linear, none"),
    ({"scaling": "no"}, "--scaling no is unknown: choose one of density, spectrum"),
    ({"window": "hat"}, "--window hat cannot be made"),
    ({"nperseg": 2, "noverlap": 0}, "--window hann with --nperseg 2 is zero"),
    ({"tmin": 3.0}, "--tmin 3 must be smaller than --tmax 3"),
    ({"baseline": (0.0, 0.0)}, "--baseline 0,0 is empty"),
    ({"baseline": (0.0, -2.0)}, "--baseline 0,-2 is empty"),
    ({"baseline": (-2.0, -1.95)}, "--baseline -2,-1.95 is empty: it holds the centre of no"),
    ({"baseline": (0.0, 0.0001)}, "--baseline 0,0.0001 is empty: it holds no sample"),
    ({"tmin": 2.95}, "--tmin 2.95 --tmax 3 hold the centre of no"),
    ({"noverlap": 200}, "--noverlap 200 must be smaller than --nperseg 126"),
    ({"noverlap": -1}, "--noverlap -1 must not be negative"),
    ({"nperseg": 1, "noverlap": 0}, "--nperseg 1 must be at least 2"),
    ({"nperseg": 5001}, "--nperseg 5001 is longer than the 5000 samples"),
    ({"fmin": -1.0}, "--fmin -1 must lie between 0 and 500 Hz"),
    ({"fmax": 501.0}, "--fmax 501 must lie between 0 and 500 Hz"),
    ({"fmin": 50.0, "fmax": 20.0}, "--fmin 50 must be smaller than --fmax 20"),
    ({"fmin": 9.0, "fmax": 10.0}, "no STFT bin lies between --fmin 9 and --fmax 10 Hz"),
    ({"n_freqs": 0}, "--n_freqs 0 must be at least 1"),
    ({"n_freqs": 65}, "--n_freqs 65 leaves the band"),
    ({"freq_scale": "log"}, "--freq_scale log needs --n_freqs"),
    ({"freq_scale": "log", "n_freqs": 5, "fmin": 0.0}, "--fmin 0 must be above 0 Hz"),
    ({"method": "morlet", "fmin": 0.0}, "--fmin 0 must be above 0 Hz with --method morlet"),
    ({"method": "morlet", "fmin": 1.0}, "--n_cycles 7 at --fmin 1 Hz needs a wavelet of 11141"),
    ({"method": "multitaper", "fmin": 1.0}, "needs a wavelet of 7000 samples, longer than"),
    ({"method": "morlet", "n_cycles": 0.0}, "--n_cycles 0 must be above 0"),
    ({"method": "morlet", "decim": 0}, "--decim 0 must be at least 1"),
    ({"method": "morlet", "decim": 5001}, "--decim 5001 is longer than the segment of 5000"),
    ({"method": "multitaper", "time_bandwidth": 1.9}, "--time_bandwidth 1.9 must be at least 2"),
    ({"method": "multitaper", "fmax": 500.0, "n_cycles": 1.0}, "too few for --time_bandwidth 4"),
]


@pytest.mark.parametrize(("changes", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_impossible_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        Spectrogram(options(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize("method", ["morlet", "multitaper"])
def test_options_of_another_method_are_not_checked(method: str) -> None:
    Spectrogram(wavelets(method=method, nperseg=50))
