"""Generate LFP-like trace tables whose ground truth is known.

Model of one trial, in units of the session's background standard deviation, before the gain::

    trace = background(1/f + noise floor) + line noise
            + exp(LATENT_SCALE * a) * (evoked response + gamma burst)

The class acts on the latent log amplitude ``a`` alone. Inside a session ``a`` is a stationary
Gaussian AR(1) process over trials with unit variance: WT has mean 0 and correlation ``-dynamics``,
FMR1 has mean ``effect`` and correlation ``+dynamics``. With opposite correlations both covariances
have the same determinant and the log likelihood ratio of two trials is a multiple of their product,
so that the best accuracy from two trials is ``1/2 + arcsin(dynamics) / pi``; with ``effect = 0``
every single-trial distribution is N(0, 1) in both classes, so that one trial is at chance.

All else (gain, background, noise, latency, tuning, stimuli) is drawn without looking at the class.
A trace therefore tells of the class only what it tells of ``a``, and `bayes_accuracy` bounds every
classifier that sees ``n`` consecutive trials of an animal it does not know. The bound is nearly
attainable: the gamma burst is scaled by the session's own background power at `GAMMA_FREQ` and
does not depend on the stimulus, hence the log power of that band after the onset, less the baseline
window's, gives ``a`` back with a correlation above 0.95 whatever the gain. It is an upper bound for
trials on both sides of a rejected row, because the process runs on through the gap.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy import fft, integrate, linalg, signal

FORMAT_VERSION: Final = 1
DURATION: Final = 5.0
ONSET: Final = 2.0
CONDITIONS: Final = ("WT", "FMR1")
STIMULUS_FREQUENCIES: Final = tuple(float(f) for f in np.geomspace(4000, 32000, 8).round())
STIMULUS_AMPLITUDES: Final = (40.0, 60.0, 80.0)
BAYES_N_TRIALS: Final = (1, 2, 4, 8, 16)

LATENT_SCALE: Final = 0.5
GAMMA_FREQ: Final = 85.0
GAMMA_BAND: Final = (75.0, 95.0)
GAMMA_LATENCY: Final = 0.25
GAMMA_WIDTH: Final = 0.08
GAMMA_WINDOW: Final = (0.1, 0.4)
# Burst energy at a = 0 over the background's energy in one degree of freedom of the band.
GAMMA_SNR: Final = 600.0
EVOKED_DEPTH: Final = 1.5
TROUGH_WIDTH: Final = 0.01
BACKGROUND_MICROVOLT: Final = 50.0
MIN_SFREQ: Final = 250.0

REASONS: Final = (
    "non_finite",
    "flat",
    "too_short",
    "railed",
    "duplicate_trial",
    "empty_trace",
    "truncated_trace",
)
# About 4 MB of traces are in memory at a time; the number is part of what makes the bytes.
SAMPLES_PER_CHUNK: Final = 1_000_000

LATENT_SCHEMA: Final = pa.schema(
    {"session": pa.string(), "trial_num": pa.int64(), "latent": pa.float64()}
)

TRUTH_FILE: Final = "ground_truth.json"
# Not Parquet: a reader of the folder takes every Parquet file for a part of the trace table.
LATENT_FILE: Final = "ground_truth.csv"


class _Stream(IntEnum):
    """Names of the independent random streams of one seed."""

    LAB = 0
    PAIR = 1
    SUBJECT = 2
    SESSION = 3
    LATENT = 4
    STIMULUS = 5
    BAD_ROWS = 6
    TRACES = 7


def _generator(seed: int, stream: _Stream, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), *key)))


@dataclass(frozen=True)
class SampleOptions:
    """What to generate; equal options give equal bytes.

    Attributes
    ----------
    sessions, trials : int
        Number of sessions, and of trials in each.
    effect : float
        Mean of the latent log amplitude of FMR1, in its standard deviations (WT has 0).
    dynamics : float
        Correlation of successive latents: ``+dynamics`` in FMR1, ``-dynamics`` in WT.
    seed : int
        Seed of every random choice.
    sfreq : float
        Sampling rate in Hz.
    format : {"list", "text", "bytes"}
        Encoding of the ``trace`` column.
    bad_fraction : float
        Share of the trials of each session that get a bad row.
    files : int
        Number of Parquet files; a session is never split over two.

    Raises
    ------
    ValueError
        If an option is out of its range.
    """

    sessions: int = 12
    trials: int = 120
    effect: float = 1.0
    dynamics: float = 0.0
    seed: int = 0
    sfreq: float = 1000.0
    format: Literal["list", "text", "bytes"] = "list"
    bad_fraction: float = 0.01
    files: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        rules = (
            ("sessions", self.sessions >= 2, "at least 2, one of each class"),
            ("trials", self.trials >= 1, "at least 1"),
            ("effect", bool(np.isfinite(self.effect)), "a finite number"),
            ("dynamics", -1 < self.dynamics < 1, "between -1 and 1, both excluded"),
            ("seed", self.seed >= 0, "0 or more"),
            (
                "sfreq",
                MIN_SFREQ <= self.sfreq < np.inf,
                f"a finite number of at least {MIN_SFREQ:g} Hz, to hold the gamma burst",
            ),
            ("format", self.format in ("list", "text", "bytes"), "list, text or bytes"),
            ("bad_fraction", 0 <= self.bad_fraction <= 1, "between 0 and 1"),
            ("files", 1 <= self.files <= self.sessions, "between 1 and the number of sessions"),
        )
        for name, valid, expected in rules:
            if not valid:
                raise ValueError(f"--{name} is {getattr(self, name)!r}, but must be {expected}")


# --- Latent amplitudes and the ceiling they set ---------------------------------------------------


def bayes_accuracy(n_trials: int, effect: float, dynamics: float) -> float:
    r"""Best accuracy, at equal priors, from the latents of consecutive trials.

    Parameters
    ----------
    n_trials : int
        Number of consecutive trials.
    effect, dynamics : float
        As in `SampleOptions`.

    Returns
    -------
    float
        One minus the error of the Gaussian likelihood ratio test, to about 1e-8.

    Notes
    -----
    With L the log likelihood ratio, the error is ``E0[min(1, exp(L))] / 2``. Write the minimum as
    ``exp(L/2) exp(-|L|/2)`` and the last factor by its Fourier transform ``1 / (1/4 + t^2)``; then

    .. math:: \mathrm{error} = \frac{1}{\pi} \int_0^{\pi/2}
              \mathrm{Re}\, M\!\left(\tfrac12 + \tfrac{i}{2} \tan\theta\right) d\theta

    where ``M(s)`` is the integral of ``p1^s p0^(1-s)``, known in closed form for two Gaussians. It
    is written here in the basis that makes both covariances diagonal (generalised eigenvalues). For
    equal covariances this is Craig's formula of the Gaussian tail, ``Phi(d'/2)`` (J. W. Craig,
    MILCOM 1991).
    """
    lag = np.abs(np.subtract.outer(np.arange(n_trials), np.arange(n_trials)))
    variances, basis = linalg.eigh(np.power(dynamics, lag), np.power(-dynamics, lag))
    squared_shifts = (effect * basis.sum(axis=0)) ** 2

    def hellinger(theta: float) -> float:
        s = 0.5 + 0.5j * np.tan(theta)
        log_terms = (
            np.log(s / variances + 1 - s)
            + s * np.log(variances)
            + s * (1 - s) * squared_shifts / (s + (1 - s) * variances)
        )
        return float(np.exp(-0.5 * log_terms.sum()).real)

    integral = integrate.quad(hellinger, 0, np.pi / 2, limit=1000, epsabs=1e-8)[0]
    return float(1 - integral / np.pi)


def latent_amplitudes(
    n_trials: int, mean: float, correlation: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw a stationary Gaussian AR(1) process of unit variance.

    Parameters
    ----------
    n_trials : int
        Number of trials.
    mean : float
        Mean of the process.
    correlation : float
        Correlation of successive values, inside (-1, 1).
    rng : numpy.random.Generator
        Source of the innovations.

    Returns
    -------
    ndarray of float64, shape (n_trials,)
        The latents.
    """
    innovations = rng.standard_normal(n_trials)
    innovations[1:] *= np.sqrt(1 - correlation**2)
    return np.asarray(mean + signal.lfilter([1.0], [1.0, -correlation], innovations))


# --- Sessions and their trials --------------------------------------------------------------------


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
    coin = int(_generator(seed, _Stream.PAIR, subject // 2).integers(2))
    lab = _generator(seed, _Stream.LAB)
    animal = _generator(seed, _Stream.SUBJECT, subject)
    own = _generator(seed, _Stream.SESSION, index)
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


# --- Bad rows -------------------------------------------------------------------------------------


def draw_bad_trials(
    n_trials: int, bad_fraction: float, reasons: Sequence[str], rng: np.random.Generator
) -> dict[int, str]:
    """Choose the trials that get a bad row; the reasons take turns.

    Parameters
    ----------
    n_trials : int
        Trials of the session.
    bad_fraction : float
        Expected share of them.
    reasons : sequence of str
        Reject reasons to use.
    rng : numpy.random.Generator
        Source of the choice.

    Returns
    -------
    dict of int to str
        Reject reason by index of the trial, in order.
    """
    n_bad = min(n_trials, int(n_trials * bad_fraction + rng.random()))
    first = int(rng.integers(len(reasons)))
    chosen = sorted(rng.choice(n_trials, n_bad, replace=False).tolist())
    return {trial: reasons[(first + i) % len(reasons)] for i, trial in enumerate(chosen)}


def damage(trace: NDArray[np.float32], reason: str, sfreq: float) -> NDArray[np.float32]:
    """Make a trace fit to be rejected for a reason.

    Parameters
    ----------
    trace : ndarray of float32, shape (n_samples,)
        A good trace; not changed.
    reason : str
        One of `REASONS`. ``duplicate_trial`` and ``truncated_trace`` leave the samples as they
        are: the fault lies in the table and in the text.
    sfreq : float
        Sampling rate in Hz.

    Returns
    -------
    ndarray of float32
        The bad trace; shorter for ``too_short`` and ``empty_trace``.
    """
    onset = round(ONSET * sfreq)
    if reason == "non_finite":
        bad = trace.copy()
        bad[onset : onset + len(trace) // 100] = np.nan
        return bad
    if reason == "flat":
        return np.full_like(trace, trace[0])
    if reason == "too_short":
        return trace[: onset // 2]
    if reason == "railed":
        rail = np.quantile(np.abs(trace), 0.3)
        return trace.clip(-rail, rail)
    if reason == "empty_trace":
        return trace[:0]
    return trace


# --- Tables ---------------------------------------------------------------------------------------


def encode_traces(
    traces: Sequence[NDArray[np.float32]], encoding: str, truncated: Iterable[int] = ()
) -> pa.Array:
    """Encode traces as an Arrow column.

    Parameters
    ----------
    traces : sequence of ndarray of float32
        Traces, of any length.
    encoding : {"list", "text", "bytes"}
        Lists of float, text with 6 significant digits, or little-endian float32 bytes.
    truncated : iterable of int
        Rows whose text shows only the ends, as a printed array does.

    Returns
    -------
    pyarrow.Array
        The column.
    """
    if encoding == "bytes":
        return pa.array([trace.astype("<f4").tobytes() for trace in traces], pa.binary())
    if encoding == "text":
        hidden = frozenset(truncated)
        return pa.array(
            [_text(trace, row in hidden) for row, trace in enumerate(traces)], pa.string()
        )
    offsets = np.concatenate([[0], np.cumsum([len(trace) for trace in traces])]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate(traces))


def _text(trace: NDArray[np.float32], truncated: bool) -> str:
    if truncated:
        return f"[{_numbers(trace[:3])}, ..., {_numbers(trace[-3:])}]"
    return f"[{_numbers(trace)}]"


def _numbers(values: NDArray[np.float32]) -> str:
    # One format call for the whole trace is twice as fast as one a number.
    text = ", ".join(["%.6g"] * len(values)) % tuple(values.tolist())
    # The spelling that JSON readers take as well.
    return text.replace("nan", "NaN")


def session_tables(
    options: SampleOptions, index: int
) -> tuple[Session, pa.Table, dict[int, str], Iterator[pa.Table]]:
    """Generate one session, a pure function of the options and its index.

    Parameters
    ----------
    options : SampleOptions
        What to generate.
    index : int
        Number of the session.

    Returns
    -------
    session : Session
        The session.
    latents : pyarrow.Table
        Columns ``session, trial_num, latent``; one row a trial.
    bad_trials : dict of int to str
        Reject reason by ``trial_num``.
    chunks : iterator of pyarrow.Table
        The trace table of contract 2.1 in pieces of about 4 MB. A duplicated trial follows its
        original and equals it.
    """
    session = draw_session(index, options.sessions, options.seed)
    fmr1 = session.condition == "FMR1"
    latent = latent_amplitudes(
        options.trials,
        mean=options.effect if fmr1 else 0.0,
        correlation=options.dynamics if fmr1 else -options.dynamics,
        rng=_generator(options.seed, _Stream.LATENT, index),
    )
    reasons = REASONS if options.format == "text" else REASONS[:-1]
    rng = _generator(options.seed, _Stream.BAD_ROWS, index)
    bad = draw_bad_trials(options.trials, options.bad_fraction, reasons, rng)
    latents = pa.table(
        {
            "session": [session.session] * options.trials,
            "trial_num": np.arange(1, options.trials + 1),
            "latent": latent,
        },
        schema=LATENT_SCHEMA,
    )
    bad_trials = {trial + 1: reason for trial, reason in bad.items()}
    return session, latents, bad_trials, _chunks(options, index, session, latent, bad)


def _chunks(
    options: SampleOptions,
    index: int,
    session: Session,
    latent: NDArray[np.float64],
    bad: dict[int, str],
) -> Iterator[pa.Table]:
    stimulus_rng = _generator(options.seed, _Stream.STIMULUS, index)
    frequency, amplitude = stimulus_order(options.trials, stimulus_rng)
    step = max(1, int(SAMPLES_PER_CHUNK / (DURATION * options.sfreq)))
    for start in range(0, options.trials, step):
        trials = np.arange(start, min(start + step, options.trials))
        rng = _generator(options.seed, _Stream.TRACES, index, start)
        traces = list(
            simulate(
                session, latent[trials], frequency[trials], amplitude[trials], options.sfreq, rng
            )
        )
        for trial in bad.keys() & set(trials.tolist()):
            traces[trial - start] = damage(traces[trial - start], bad[trial], options.sfreq)
        copies = [2 if bad.get(trial) == "duplicate_trial" else 1 for trial in trials.tolist()]
        rows = np.repeat(trials, copies)
        truncated = [i for i, row in enumerate(rows) if bad.get(int(row)) == "truncated_trace"]
        yield pa.table(
            {
                "session": [session.session] * len(rows),
                "subject": [session.subject] * len(rows),
                "condition": [session.condition] * len(rows),
                "trial_num": rows + 1,
                "frequency": frequency[rows],
                "amplitude": amplitude[rows],
                "sfreq": np.full(len(rows), options.sfreq),
                "onset": np.full(len(rows), ONSET),
                "trace": encode_traces(
                    [traces[row - start] for row in rows], options.format, truncated
                ),
            }
        )


# --- The folder -----------------------------------------------------------------------------------


def write_sample(
    options: SampleOptions,
    output: Path,
    overwrite: bool = False,
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> bool:
    """Write the trace table and its ground truth; ``ground_truth.json`` comes last, atomically.

    Parameters
    ----------
    options : SampleOptions
        What to generate.
    output : Path
        Folder; made if it is missing.
    overwrite : bool
        Replace a table that is already there.
    progress : callable
        Wraps the session numbers while they are worked on.

    Returns
    -------
    bool
        False if the folder already held exactly this sample and was left alone.

    Raises
    ------
    ValueError
        If the folder holds another table and `overwrite` is not set.
    """
    if _is_complete(options, output):
        return False
    # Its presence tells our own unfinished run, which may be replaced, from a user's table.
    unfinished = output / f"{TRUTH_FILE}.partial"
    present = _present_files(output)
    if present and not overwrite and not unfinished.exists():
        raise ValueError(
            f"{output} already holds {present[0].name}, made with other options; "
            "choose another --output or add --overwrite"
        )
    output.mkdir(parents=True, exist_ok=True)
    unfinished.write_text("")
    for path in present:
        path.unlink()
    truth = _write_tables(options, output, progress)
    unfinished.write_text(json.dumps(truth, indent=2) + "\n")
    unfinished.replace(output / TRUTH_FILE)
    return True


def _present_files(output: Path) -> list[Path]:
    patterns = (TRUTH_FILE, LATENT_FILE, "traces.parquet", "traces-?????-of-?????.parquet")
    return [path for pattern in patterns for path in sorted(output.glob(pattern))]


def _is_complete(options: SampleOptions, output: Path) -> bool:
    path = output / TRUTH_FILE
    if not path.exists():
        return False
    truth = json.loads(path.read_text())
    return (
        truth.get("format_version") == FORMAT_VERSION
        and truth.get("options") == asdict(options)
        and all((output / name).exists() for name in (*truth["files"], LATENT_FILE))
    )


def _file_names(n_files: int) -> list[str]:
    if n_files == 1:
        return ["traces.parquet"]
    return [f"traces-{i:05d}-of-{n_files:05d}.parquet" for i in range(n_files)]


def _write_tables(
    options: SampleOptions, output: Path, progress: Callable[[Sequence[int]], Iterable[int]]
) -> dict[str, Any]:
    names = _file_names(options.files)
    sessions: list[dict[str, Any]] = []
    bad_rows: list[dict[str, Any]] = []
    n_rows = 0
    with ExitStack() as stack:
        trace_writers: dict[str, pq.ParquetWriter] = {}
        latent_writer = stack.enter_context(pacsv.CSVWriter(output / LATENT_FILE, LATENT_SCHEMA))
        for index in progress(range(options.sessions)):
            session, latents, bad_trials, chunks = session_tables(options, index)
            latent_writer.write_table(latents)
            name = names[index * options.files // options.sessions]
            for chunk in chunks:
                if name not in trace_writers:
                    writer = _trace_writer(output / name, chunk.schema)
                    trace_writers[name] = stack.enter_context(writer)
                trace_writers[name].write_table(chunk)
                n_rows += chunk.num_rows
            sessions.append(asdict(session))
            bad_rows += [
                {"session": session.session, "trial_num": trial_num, "reason": reason}
                for trial_num, reason in bad_trials.items()
            ]
    return {
        "format_version": FORMAT_VERSION,
        "options": asdict(options),
        "files": names,
        "rows": n_rows,
        "bayes_accuracy": {
            str(n): round(bayes_accuracy(n, options.effect, options.dynamics), 6)
            for n in BAYES_N_TRIALS
        },
        "latent": {
            "mean": {"WT": 0.0, "FMR1": options.effect},
            "correlation": {"WT": 0.0 - options.dynamics, "FMR1": options.dynamics},
            "log_amplitude_per_unit": LATENT_SCALE,
            "gamma_band": GAMMA_BAND,
            "gamma_window": GAMMA_WINDOW,
        },
        "sessions": sessions,
        "bad_rows": bad_rows,
    }


def _trace_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        schema,
        use_dictionary=["session", "subject", "condition"],
        # Noise in floats does not compress; digits do.
        compression="zstd" if pa.types.is_string(schema.field("trace").type) else "none",
        write_statistics=[name for name in schema.names if name != "trace"],
    )


# --- Command line ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``sample``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Parser of the command.
    """
    default = SampleOptions()
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the trace table (traces.parquet) and what is true of it "
        "(ground_truth.json, written last; ground_truth.csv with the latent of each trial)",
    )
    parser.add_argument(
        "--sessions",
        type=int,
        default=default.sessions,
        help="recording sessions, two for each animal from 12 sessions on (default: %(default)s)",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=default.trials,
        help="trials in each session; the lab has about 2400 (default: %(default)s)",
    )
    parser.add_argument(
        "--effect",
        type=float,
        default=default.effect,
        help="how far the class shows in a single trial: FMR1 has its evoked and gamma log "
        "amplitude raised by this many standard deviations between trials; 0 puts one trial at "
        "chance (default: %(default)s)",
    )
    parser.add_argument(
        "--dynamics",
        type=float,
        default=default.dynamics,
        metavar="RHO",
        help="how far the class shows only from trial to trial: successive amplitudes correlate "
        "by +RHO in FMR1 and -RHO in WT while every single trial is distributed alike; try "
        "--effect 0 --dynamics 0.7 to see what a sequence model adds (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        help="equal arguments and seed give equal bytes (default: %(default)s)",
    )
    parser.add_argument(
        "--sfreq",
        type=float,
        default=default.sfreq,
        metavar="HZ",
        help="sampling rate; traces last 5 s with the tone at 2 s (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=("list", "text", "bytes"),
        default=default.format,
        help="encoding of the trace column: lists of float32, text such as '[0.1, 0.2]', or "
        "bytes of little-endian float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--bad_fraction",
        type=float,
        default=default.bad_fraction,
        metavar="SHARE",
        help="share of the trials with a bad row (NaN, flat, railed, too short, empty, "
        "duplicate, truncated text), listed with the expected reject reason in "
        "ground_truth.json (default: %(default)s)",
    )
    parser.add_argument(
        "--files",
        type=int,
        default=default.files,
        help="Parquet files to spread the sessions over (default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a table in --output that was made with other arguments",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of `add_arguments`.

    Returns
    -------
    int
        Exit status: 0 done, 1 failed, 2 wrong usage.
    """
    try:
        options = SampleOptions(
            **{name: getattr(args, name) for name in SampleOptions.__dataclass_fields__}
        )
    except ValueError as error:
        print(f"sample: {error}", file=sys.stderr)
        return 2
    try:
        written = write_sample(options, args.output, args.overwrite, _show_progress)
    except (OSError, ValueError) as error:
        print(f"sample: {error}", file=sys.stderr)
        return 1
    truth = json.loads((args.output / TRUTH_FILE).read_text())
    ceilings = ", ".join(f"{n}: {value:.3f}" for n, value in truth["bayes_accuracy"].items())
    state = "wrote" if written else "already complete, left as it is:"
    print(
        f"{state} {truth['rows']:,} rows of {options.sessions} sessions in {args.output} "
        f"({len(truth['bad_rows'])} bad)\n"
        f"best possible accuracy by number of trials: {ceilings}"
    )
    return 0


def _show_progress(sessions: Sequence[int]) -> Iterator[int]:
    if sys.stderr.isatty():
        yield from track(sessions, "sessions", console=Console(stderr=True))
        return
    every = max(1, len(sessions) // 10)
    for done, session in enumerate(sessions):
        if done and done % every == 0:
            print(f"sample: {done} of {len(sessions)} sessions", file=sys.stderr)
        yield session
