"""Plain words on whether sampling rate and onset can be right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from beam_pipeline.audit.summary import TableAudit
from beam_pipeline.audit.table_warnings import AuditWarning, Severity
from beam_pipeline.audit.timing import (
    EXPECTED_LATENCY,
    FACTORS,
    MAINS,
    LineNoise,
    RateFit,
    RateVerdict,
    is_plausible,
    rates_for_latency,
)
from beam_pipeline.plurals import plural


def timing_warnings(audit: TableAudit, sfreq_in_table: bool) -> Iterator[AuditWarning]:
    """Yield what is to be said of sampling rate and onset.

    Parameters
    ----------
    audit : TableAudit
    sfreq_in_table : bool
        The rate is a column, which the command line does not override.
    """
    yield from _sampling_rate(audit, sfreq_in_table)
    yield from _onset(audit)


def _sampling_rate(audit: TableAudit, in_table: bool) -> Iterator[AuditWarning]:
    line, timing = audit.line, audit.timing
    if timing is None:
        return
    if timing.sfreq is None:
        yield _unknown_rate(audit)
        return
    if line.peak is None or line.verdict == RateVerdict.FITS:
        return
    frequency = line.peak.cycles_per_sample * timing.sfreq
    where = "before the onset" if timing.onset_sample is not None else "of the mean spectrum"
    seen = f"At the assumed {timing.sfreq:,.9g} Hz, a sharp peak {where} lies at {frequency:.4g} Hz"
    if line.verdict == RateVerdict.OTHER_RATE:
        yield AuditWarning(
            "sampling_rate",
            Severity.WARNING,
            f"The sampling rate may be {_rates(line.fits)}, not {timing.sfreq:,.9g} Hz",
            f"{seen}. Mains hum is at 50 or 60 Hz: {_explain_fits(line.fits, timing.sfreq)}."
            + (
                " But the latency of the evoked response fits the assumed rate."
                if _latency_fits(audit, timing.sfreq)
                else _latency_agrees(audit, line.fits)
            ),
            _rate_advice(audit, line.fits[0].sfreq, in_table),
        )
    elif line.verdict == RateVerdict.HARMONIC_ONLY:
        yield _harmonic_only(line, timing.sfreq, frequency, seen)
    elif line.verdict == RateVerdict.UNEXPLAINED:
        hum = " or ".join(f"{mains / line.peak.cycles_per_sample:,.5g} Hz" for mains in MAINS)
        yield AuditWarning(
            "sharp_peak",
            Severity.NOTE,
            f"A sharp spectral peak at {frequency:.4g} Hz is no mains hum",
            f"{seen}, which is neither 50 nor 60 Hz nor a harmonic, and no usual rate would put "
            f"it there. If it is mains hum all the same, the true rate is {hum}.",
            "Look for a source of interference, or check the amplifier's rate.",
        )


def _harmonic_only(line: LineNoise, sfreq: float, frequency: float, seen: str) -> AuditWarning:
    mains = line.mains or MAINS[0]
    harmonic = round(frequency / mains)
    rate = sfreq / harmonic
    possible = is_plausible(rate, sfreq)
    other = f", and so does a true rate of {rate:,.9g} Hz" if possible else ""
    return AuditWarning(
        "line_harmonic_only",
        Severity.WARNING if possible else Severity.NOTE,
        f"The sampling rate may be {rate:,.9g} Hz"
        if possible
        else f"Mains hum is seen at {harmonic} times {mains:g} Hz alone",
        f"{seen}, {harmonic} times {mains:g} Hz, and nothing at {mains:g} Hz itself. "
        f"A notch filter does that{other}.",
        "Check whether the recordings were notch-filtered, or what rate the amplifier had.",
    )


def _unknown_rate(audit: TableAudit) -> AuditWarning:
    line = audit.line
    if line.fits:
        text = (
            "The table states no sampling rate and --sfreq was not given. A sharp peak of the "
            f"mean spectrum looks like mains hum: {_explain_fits(line.fits, None)}."
            f"{_latency_agrees(audit, line.fits)}"
        )
        advice = f"If the amplifier's rate agrees, pass --sfreq {line.fits[0].sfreq:.9g}."
    else:
        text = (
            "The table states no sampling rate, --sfreq was not given, and no mains hum tells it. "
            "All axes are in samples."
        )
        advice = "Pass --sfreq HZ, as the amplifier had it."
    return AuditWarning(
        "sampling_rate_unknown", Severity.WARNING, "The sampling rate is unknown", text, advice
    )


def _rates(fits: Sequence[RateFit]) -> str:
    return " or ".join(dict.fromkeys(f"{fit.sfreq:,.9g} Hz" for fit in fits[:3]))


def _explain_fits(fits: Sequence[RateFit], assumed: float | None) -> str:
    parts = []
    for fit in fits[:3]:
        times = ""
        for factor in FACTORS:
            if assumed is not None and abs(fit.sfreq / assumed - factor) < 1e-6:
                times = f" ({factor:g} times the assumed)"
        parts.append(f"a true rate of {fit.sfreq:,.9g} Hz{times} would fit {fit.mains:g} Hz mains")
    return "; ".join(parts)


def _latency_agrees(audit: TableAudit, fits: Sequence[RateFit]) -> str:
    samples = _samples_after_onset(audit)
    if samples is None or samples <= 0:
        return ""
    agreeing = [fit for fit in fits[:3] if _latency_fits(audit, fit.sfreq)]
    if not agreeing:
        return ""
    rate = agreeing[0].sfreq
    return (
        f" The evoked response agrees: {plural(samples, 'sample', 'is', 'are')} after the onset: "
        f"{1000 * samples / rate:.0f} ms at {rate:,.9g} Hz, where a response of auditory cortex "
        "is expected."
    )


def _rate_advice(audit: TableAudit, sfreq: float, in_table: bool) -> str:
    onset_sample = audit.timing.onset_sample if audit.timing else None
    onset = "" if onset_sample is None else f" --onset {onset_sample / sfreq:.9g}"
    same = "" if onset_sample is None else f" (the onset stays at sample {onset_sample:,})"
    where = "correct the table's sfreq and onset columns to" if in_table else "pass"
    return f"Look up the amplifier's rate; if it agrees, {where} --sfreq {sfreq:.9g}{onset}{same}."


def _samples_after_onset(audit: TableAudit) -> int | None:
    if audit.timing is None or audit.evoked is None or not audit.evoked.is_clear:
        return None
    onset = audit.timing.onset_sample
    return None if onset is None else audit.evoked.sample - onset


def _latency_fits(audit: TableAudit, sfreq: float) -> bool:
    samples = _samples_after_onset(audit)
    if samples is None or audit.evoked is None or audit.evoked.goes_on:
        return False
    early, late = EXPECTED_LATENCY
    return early <= samples / sfreq <= late


def _onset(audit: TableAudit) -> Iterator[AuditWarning]:
    timing, evoked = audit.timing, audit.evoked
    if timing is None or evoked is None:
        return
    onset = timing.onset_sample
    if onset is None:
        yield _unknown_onset(audit)
        return
    samples = _samples_after_onset(audit)
    sfreq = timing.sfreq or 1.0
    if samples is None:
        yield AuditWarning(
            "no_evoked_response",
            Severity.NOTE,
            "No clear evoked response",
            f"The largest deflection of the mean response is {evoked.score:.1f} robust standard "
            "deviations of its baseline: the onset cannot be checked.",
            "Nothing to do if no response is expected.",
        )
    elif samples < 0:
        yield AuditWarning(
            "onset",
            Severity.WARNING,
            "The onset may be wrong: the response comes before it",
            f"The mean response peaks at sample {evoked.sample:,}, {plural(-samples, 'sample')} "
            f"({-1000 * samples / sfreq:.4g} ms) before the onset at sample {onset:,}, and nothing "
            "as large comes after it.",
            "Check --onset: it is in seconds from the start of the trace. Nothing to do if another "
            "stimulus comes there.",
        )
    elif not evoked.goes_on and not _latency_fits(audit, sfreq):
        yield _unusual_latency(audit, samples, sfreq)


def _unknown_onset(audit: TableAudit) -> AuditWarning:
    timing, evoked = audit.timing, audit.evoked
    assert timing is not None
    assert evoked is not None
    outside = timing.sfreq is not None and timing.onset is not None
    text = "Neither the table nor --onset says when the stimulus came."
    if outside:
        samples = plural(timing.n_samples, "sample")
        text = f"The onset, {timing.onset:g} s, is outside the trace of {samples}."
    elif timing.onset is not None:
        text = "The onset is given in seconds, which needs a sampling rate to be placed."
    if evoked.is_clear:
        text += (
            f" The mean trace peaks at sample {evoked.sample:,} of {timing.n_samples:,}; "
            "a tone would have come shortly before."
        )
    return AuditWarning(
        "onset_outside" if outside else "onset_unknown",
        Severity.PROBLEM if outside else Severity.WARNING,
        "The onset lies outside the trace" if outside else "The stimulus onset is unknown",
        text,
        "Pass --onset SECONDS from the start of the trace, or correct the onset column.",
    )


def _unusual_latency(audit: TableAudit, samples: int, sfreq: float) -> AuditWarning:
    early, late = (f"{1000 * edge:g}" for edge in EXPECTED_LATENCY)
    low, high = rates_for_latency(samples)
    confirmed = audit.line.verdict == RateVerdict.FITS
    usual = [
        f"{rate:,.9g}" for rate in (1e3, 2e3, 5e3, 1e4, 2e4, 2.5e4, 3e4) if low <= rate <= high
    ]
    text = (
        f"The mean response first peaks {plural(samples, 'sample')} after the onset, "
        f"{1000 * samples / sfreq:.4g} ms at {sfreq:,.9g} Hz. In auditory cortex {early} to "
        f"{late} ms are expected"
    )
    if confirmed:
        text += f"; the {audit.line.mains:g} Hz mains hum confirms the rate, so look at the onset."
        advice = "Check --onset. Nothing to do for another area or kind of stimulus."
    else:
        text += f", which a rate between {low:,.0f} and {high:,.0f} Hz would give"
        text += f" (such as {', '.join(usual)} Hz)." if usual else "."
        advice = (
            "Check --sfreq against the amplifier, then --onset. Nothing to do for another area or "
            "kind of stimulus."
        )
    when = "early" if samples / sfreq < EXPECTED_LATENCY[0] else "late"
    suspect = "the onset" if confirmed else "the sampling rate or the onset"
    return AuditWarning(
        "evoked_latency",
        Severity.NOTE if confirmed else Severity.WARNING,
        f"The evoked response is {when}: {suspect} may be wrong",
        text,
        advice,
    )
