"""What a table says of its sampling rate and stimulus onset, beside what the flags say."""

from __future__ import annotations

import math

from beam_pipeline.errors import UsageError
from beam_pipeline.screening import SFREQ_TOLERANCE
from beam_pipeline.sources import SourceError, TraceSource
from beam_pipeline.spectrogram_options import SpectrogramOptions


def resolve_sfreq(source: TraceSource, sfreq: float | None) -> float:
    """Return the dataset's sampling rate: the flag's, or the only one in the table.

    Rates that differ by less than `SFREQ_TOLERANCE` are one rate in several precisions.

    Raises
    ------
    SourceError
        If neither says it, or the table holds several rates.
    """
    if sfreq is not None:
        return sfreq
    if "sfreq" not in source.columns:
        raise SourceError(
            "the sampling rate is unknown: the table has no sfreq column; pass --sfreq HZ "
            "(or --columns sfreq=COLUMN)"
        )
    rates = sorted(rate for rate in _distinct(source, "sfreq") if 0 < rate < math.inf)
    if not rates or rates[-1] - rates[0] > SFREQ_TOLERANCE * rates[0]:
        found = ", ".join(f"{rate:g}" for rate in rates[:5]) or "no valid rate"
        raise SourceError(
            f"the table holds {found} Hz: pass --sfreq HZ, with --resample to bring other rates "
            "to it or without to reject them"
        )
    # Fewest digits: what the others are in another precision.
    return min(rates, key=lambda rate: (len(repr(rate)), rate))


def check_onset(source: TraceSource, onset: float | None, spectrogram: SpectrogramOptions) -> None:
    """Check that the onset is known and leaves room for a baseline.

    Raises
    ------
    SourceError
        If no onset is given, or the baseline begins before every trace does.
    UsageError
        If it does by the flag.
    """
    stated = _distinct(source, "onset") if "onset" in source.columns else [math.nan]
    onsets = [value if onset is None or not math.isnan(value) else onset for value in stated]
    latest = max(filter(math.isfinite, onsets), default=None)
    if latest is None:
        raise SourceError(
            "the stimulus onset is unknown: the table has no onset column, or no number in it; "
            "pass --onset SECONDS from the start of the trace (or --columns onset=COLUMN)"
        )
    start = spectrogram.baseline[0]
    # Half a sample: onsets and windows are rounded to samples.
    if latest + start < -0.5 / spectrogram.sfreq:
        raise (UsageError if latest == onset else SourceError)(
            f"the baseline {start:g} to {spectrogram.baseline[1]:g} s is empty: the onset is "
            f"{latest:g} s after the start of the trace, so nothing was recorded "
            f"{-start:g} s before it; pass a --baseline inside the trace"
        )


def _distinct(source: TraceSource, column: str) -> list[float]:
    """Return the distinct values of a column of numbers, NaN for null."""
    values = source.read_columns([column]).column(column).unique().to_pylist()
    return [math.nan if value is None else float(value) for value in values]
