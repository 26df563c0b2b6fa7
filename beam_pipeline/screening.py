"""Rows of the trace table to trials: timing, and what a row can fail by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from beam_pipeline.rejects import Reason, Reject
from beam_pipeline.trace_column import decode_traces

Segments = NDArray[np.float32] | NDArray[np.float64]

DIGEST_BYTES = 16
#: Rates closer than this are one rate: a float written and read through text differs by less.
SFREQ_TOLERANCE = 1e-6
#: Rates further apart than this are a mistake in the unit, not something to resample.
MAX_RATE_RATIO = 1000.0


@dataclass(frozen=True)
class ScreeningOptions:
    """What a row must satisfy by itself.

    Attributes
    ----------
    sfreq : float
        Sampling rate of every segment, Hz; also the rate of rows that state none.
    onset : float or None
        Stimulus onset of rows that state none, seconds from the start of the trace.
    resample : bool
        Bring rows of another rate to `sfreq`; otherwise they are rejected.
    max_railed_fraction : float
        Largest share of samples that may sit at the segment's maximum or minimum.
    segment : tuple of float
        Start and stop of the stretch to keep, seconds relative to the onset.
    n_samples : int
        Samples in that stretch.
    dtype : str
        ``float32`` or ``float64``: what holds the table's samples without rounding.
    """

    sfreq: float
    onset: float | None
    resample: bool
    max_railed_fraction: float
    segment: tuple[float, float]
    n_samples: int
    dtype: str


@dataclass(frozen=True)
class TrialBatch:
    """Accepted rows as columns, all of length ``n``.

    Attributes
    ----------
    session, condition : list of str
    subject : list of (str or None)
    trial_num : int64 array
    frequency, amplitude : float64 arrays
        Stimulus of each trial; NaN where the table has none.
    level : float64 array
        Standard deviation of the segment, in the unit of the trace.
    digest : uint8 array of shape (n, 16)
        BLAKE2b of the segment's bytes, to recognise identical traces.
    segments : float32 or float64 array of shape (n, n_samples)
        The samples as recorded.
    """

    session: list[str]
    subject: list[str | None]
    condition: list[str]
    trial_num: NDArray[np.int64]
    frequency: NDArray[np.float64]
    amplitude: NDArray[np.float64]
    level: NDArray[np.float64]
    digest: NDArray[np.uint8]
    segments: Segments


@lru_cache(maxsize=64)
def resampling_ratio(sfreq: float, target: float) -> tuple[int, int]:
    """Return (up, down) of a polyphase resampler from `sfreq` to `target`.

    Neither is above 10,000, so that the filter is built at once. Rates of few digits are met
    exactly; at worst the fraction is off by 5e-5, a quarter of a sample after 5,000.
    """
    slow, fast = sorted((sfreq, target))
    ratio = Fraction(slow / fast).limit_denominator(10_000)
    up, down = ratio.numerator, ratio.denominator
    return (up, down) if target <= sfreq else (down, up)


def _resample(trace: NDArray[np.generic], up: int, down: int) -> NDArray[np.float64]:
    # Half a second to import in every process, which only --resample should cost.
    from scipy import signal

    values = trace.astype(np.float64)
    # The filter passes a constant with a ripple of 1e-3, which on a trace far from zero would
    # exceed the signal. Padding goes on as the trace does: zeros would put a step at both ends.
    offset = values.mean()
    resampled: NDArray[np.float64] = signal.resample_poly(values - offset, up, down, padtype="line")
    resampled += offset
    return resampled


def _optional(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    return batch.column(name) if name in batch.schema.names else None


def _strings(column: pa.Array | None, n_rows: int) -> list[str | None]:
    if column is None:
        return [None] * n_rows
    values = column.cast(pa.string()).to_pylist()
    return [value if value else None for value in values]


def _floats(column: pa.Array | None, n_rows: int) -> NDArray[np.float64]:
    if column is None:
        return np.full(n_rows, np.nan)
    values: NDArray[np.float64] = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
    return values


def screen(batch: pa.RecordBatch, options: ScreeningOptions) -> tuple[TrialBatch, list[Reject]]:
    """Check every row of a record batch by itself and cut the segment around its onset.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        Columns named as in contract 2.1.
    options : ScreeningOptions

    Returns
    -------
    trials : TrialBatch
        The accepted rows, in the order of the batch.
    rejects : list of Reject
        The others; accepted and rejected rows add up to the rows of the batch.
    """
    n_rows = batch.num_rows
    session = _strings(batch.column("session"), n_rows)
    subject = _strings(_optional(batch, "subject"), n_rows)
    condition = _strings(batch.column("condition"), n_rows)
    trial_num = batch.column("trial_num").cast(pa.int64()).to_pylist()
    sfreq = _floats(_optional(batch, "sfreq"), n_rows)
    sfreq = np.where(np.isnan(sfreq), options.sfreq, sfreq)
    onset = _floats(_optional(batch, "onset"), n_rows)
    if options.onset is not None:
        onset = np.where(np.isnan(onset), options.onset, onset)
    traces = decode_traces(batch.column("trace"))

    problems: dict[int, tuple[Reason, str]] = {}
    segments: list[NDArray[np.generic]] = []
    kept: list[int] = []
    for row in range(n_rows):
        found = (
            _check_labels(session[row], trial_num[row], condition[row])
            or _check_timing(sfreq[row], onset[row], options)
            or traces.problems.get(row)
        )
        segment = found or _cut(traces.row(row), sfreq[row], onset[row], options)
        if isinstance(segment, tuple):
            problems[row] = segment
        else:
            kept.append(row)
            segments.append(segment)

    stacked = np.empty((len(segments), options.n_samples), options.dtype)
    for place, segment in zip(stacked, segments, strict=True):
        place[:] = segment
    bad = dict(_sample_problems(stacked, options.max_railed_fraction))
    problems.update({kept[index]: found for index, found in bad.items()})
    good = [index for index in range(len(kept)) if index not in bad]
    rows = [kept[index] for index in good]
    accepted = stacked[good] if bad else stacked
    with np.errstate(over="ignore"):
        level = accepted.std(axis=1, dtype=np.float64)
    trials = TrialBatch(
        session=[str(session[row]) for row in rows],
        subject=[subject[row] for row in rows],
        condition=[str(condition[row]) for row in rows],
        trial_num=np.array([trial_num[row] for row in rows], dtype=np.int64),
        frequency=_floats(_optional(batch, "frequency"), n_rows)[rows],
        amplitude=_floats(_optional(batch, "amplitude"), n_rows)[rows],
        level=level,
        digest=digests(accepted),
        segments=accepted,
    )
    rejects = [Reject(session[row], trial_num[row], *problems[row]) for row in sorted(problems)]
    return trials, rejects


def digests(segments: Segments) -> NDArray[np.uint8]:
    """Return the 128-bit BLAKE2b digest of each row, uint8 of shape (n, 16)."""
    joined = b"".join(
        hashlib.blake2b(row.tobytes(), digest_size=DIGEST_BYTES).digest() for row in segments
    )
    return np.frombuffer(joined, np.uint8).reshape(len(segments), DIGEST_BYTES)


def _check_labels(
    session: str | None, trial_num: int | None, condition: str | None
) -> tuple[Reason, str] | None:
    if session is None or trial_num is None:
        return Reason.MISSING_ID, f"{'session' if session is None else 'trial_num'} is missing"
    if condition is None:
        return Reason.MISSING_CONDITION, "condition is missing"
    return None


def _check_timing(
    sfreq: float, onset: float, options: ScreeningOptions
) -> tuple[Reason, str] | None:
    if not (np.isfinite(sfreq) and sfreq > 0):
        return Reason.MISSING_TIMING, f"sfreq is {sfreq:g}"
    if not np.isfinite(onset):
        return Reason.MISSING_TIMING, "onset is missing"
    if not options.resample and not _same_rate(sfreq, options.sfreq):
        return Reason.SFREQ_MISMATCH, f"{sfreq:g} Hz, the dataset is at {options.sfreq:g} Hz"
    if not 1 / MAX_RATE_RATIO <= sfreq / options.sfreq <= MAX_RATE_RATIO:
        return Reason.SFREQ_MISMATCH, f"{sfreq:g} Hz is too far from {options.sfreq:g} Hz"
    return None


def _same_rate(sfreq: float, target: float) -> bool:
    return abs(sfreq - target) <= SFREQ_TOLERANCE * target


def _cut(
    trace: NDArray[np.generic], sfreq: float, onset: float, options: ScreeningOptions
) -> NDArray[np.generic] | tuple[Reason, str]:
    if len(trace) == 0:
        return Reason.EMPTY_TRACE, "the trace has no samples"
    duration = len(trace) / sfreq
    same_rate = _same_rate(sfreq, options.sfreq)
    up, down = (1, 1) if same_rate else resampling_ratio(sfreq, options.sfreq)
    start = round((onset + options.segment[0]) * options.sfreq)
    stop = start + options.n_samples
    if start < 0 or stop > -(-len(trace) * up // down):
        return (
            Reason.TOO_SHORT,
            f"{duration:g} s hold {-onset:g} to {duration - onset:g} s around the onset; "
            f"needed are {options.segment[0]:g} to {options.segment[1]:g} s",
        )
    if same_rate:
        return trace[start:stop]
    # The filter would smear a single NaN over its neighbours, and round off a railed stretch.
    if not np.isfinite(trace).all():
        return Reason.NON_FINITE, _describe_non_finite(trace)
    recorded = trace[start * down // up : -(-stop * down // up)].astype(np.float64)
    for _, problem in _sample_problems(recorded[None], options.max_railed_fraction):
        return problem
    return _resample(trace, up, down)[start:stop]


def _sample_problems(
    segments: Segments, max_railed_fraction: float
) -> Iterator[tuple[int, tuple[Reason, str]]]:
    n_bad = np.count_nonzero(~np.isfinite(segments), axis=1)
    low, high = segments.min(axis=1), segments.max(axis=1)
    n_low = np.count_nonzero(segments == low[:, None], axis=1)
    n_high = np.count_nonzero(segments == high[:, None], axis=1)
    railed = np.maximum(n_low, n_high) / segments.shape[1]
    suspects = (n_bad > 0) | (low == high) | (railed > max_railed_fraction)
    for row in np.flatnonzero(suspects):
        if n_bad[row]:
            problem = Reason.NON_FINITE, _describe_non_finite(segments[row])
        elif low[row] == high[row]:
            problem = Reason.FLAT, f"every sample is {low[row]:g}"
        else:
            extreme = high[row] if n_high[row] >= n_low[row] else low[row]
            problem = Reason.RAILED, f"{railed[row]:.1%} of the samples are {extreme:g}"
        yield int(row), problem


def _describe_non_finite(trace: NDArray[np.generic]) -> str:
    bad = np.flatnonzero(~np.isfinite(trace))
    if len(bad) == 1:
        return f"sample {bad[0]} is not finite"
    return f"{len(bad)} samples are not finite, the first at sample {bad[0]}"
