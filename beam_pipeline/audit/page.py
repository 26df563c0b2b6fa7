"""The audit as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from beam_pipeline.audit.summary import SessionAudit, TableAudit
from beam_pipeline.audit.table_warnings import AuditWarning, Severity
from beam_pipeline.audit.tally import Stimulus
from beam_pipeline.audit.timing import MAINS, RateVerdict
from beam_pipeline.plurals import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATES = Path(__file__).parent
#: Told apart with every common kind of colour blindness.
COLORS = ("#2166ac", "#d95f02", "#1b9e77", "#7b3294", "#a6761d", "#666666")
WIDE, NARROW = 8.6, 3.7
MAX_POINTS = 600
MAX_NAMED_SESSIONS = 60
MAX_TABLE_ROWS = 300
MAX_GRID_COLUMNS = 40
_STYLE: dict[Any, Any] = {
    # Text stays text. Names from the table must not be read as formulas, and equal pages need
    # equal element ids.
    "svg.fonttype": "none",
    "svg.hashsalt": "audit",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def audit_page(audit: TableAudit, warnings: Sequence[AuditWarning], uri: str) -> str:
    """Return the HTML page.

    Parameters
    ----------
    audit : TableAudit
    warnings : sequence of AuditWarning
        The worst first.
    uri : str
        What to call the table.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["flags"] = mark_flags
    environment.filters["short"] = lambda value: f"{value:.3g}"
    return environment.get_template("page.html").render(
        uri=uri,
        summary=summary_sentence(audit, warnings),
        audit=audit,
        warnings=warnings,
        subjects=len({name for session in audit.sessions for name in session.subjects}),
        classes=sorted({name for session in audit.sessions for name in session.conditions}),
        shown_sessions=audit.sessions[:MAX_TABLE_ROWS],
        most_rows=max((session.rows for session in audit.sessions), default=1),
        grid=stimulus_grid(audit),
        facts=timing_facts(audit),
        figures=_figures(audit),
    )


def mark_flags(text: str) -> Markup:
    """Return text, escaped, with its command line flags in ``<code>``."""
    return Markup(re.sub(r"--[a-z_]+", r"<code>\g<0></code>", str(escape(text))))


def summary_sentence(audit: TableAudit, warnings: Sequence[AuditWarning]) -> str:
    """Return the page's first sentence: how much there is, and how bad it is."""
    found = []
    for severity in Severity:
        n = sum(warning.severity == severity for warning in warnings)
        if n:
            found.append(plural(n, severity))
    if not found:
        return "Nothing stands out."
    return f"{', '.join(found)}. First: {warnings[0].title[0].lower()}{warnings[0].title[1:]}."


def stimulus_grid(audit: TableAudit) -> dict[str, Any] | None:
    """Return rows (amplitude), columns (frequency) and counts, or None without stimuli."""
    if all(stimulus == (None, None) for stimulus in audit.stimuli):
        return None

    def values(index: int) -> list[float | None]:
        found = {stimulus[index] for stimulus in audit.stimuli}
        return sorted(found, key=lambda value: -np.inf if value is None else value)

    frequencies, amplitudes = values(0), values(1)
    return {
        "frequencies": frequencies[:MAX_GRID_COLUMNS],
        "amplitudes": amplitudes[:MAX_GRID_COLUMNS],
        "is_cut": max(len(frequencies), len(amplitudes)) > MAX_GRID_COLUMNS,
        "n_cells": len(frequencies) * len(amplitudes),
        "n_filled": len(audit.stimuli),
        "most": max(audit.stimuli.values()),
        "least": min(audit.stimuli.values()),
        "count": lambda frequency, amplitude: audit.stimuli.get(Stimulus(frequency, amplitude), 0),
    }


def timing_facts(audit: TableAudit) -> list[tuple[str, str]]:
    """Return (name, value) of what is known of rate, onset, hum and response."""
    timing = audit.timing
    if timing is None:
        return []
    rate, onset = timing.sfreq, timing.onset_sample
    facts = [
        ("Sampling rate", "unknown: axes are in samples" if rate is None else f"{rate:,.9g} Hz"),
        ("Trace", _extent(timing.n_samples, rate)),
        ("Onset", "unknown" if onset is None else f"sample {onset:,}, {timing.onset:g} s"),
        ("Means are over", f"{audit.n_averaged:,} of {audit.accepted:,} usable traces"),
        (f"Sharp spectral peak{'' if onset is None else ' before the onset'}", _line_fact(audit)),
    ]
    if audit.evoked is not None:
        kind = "trough" if audit.evoked.value < 0 else "peak"
        where = f"{kind} at sample {audit.evoked.sample:,}"
        if onset is not None and rate is not None:
            after = audit.evoked.sample - onset
            where += f", {plural(after, 'sample')} or {1000 * after / rate:.4g} ms after the onset"
        doubt = "" if audit.evoked.is_clear else " (not clearly above noise)"
        doubt = ", the first of many" if audit.evoked.goes_on else doubt
        facts.append(("Evoked response", where + doubt))
    return facts


def _extent(n_samples: int, sfreq: float | None) -> str:
    return plural(n_samples, "sample") + ("" if sfreq is None else f", {n_samples / sfreq:.4g} s")


def _line_fact(audit: TableAudit) -> str:
    line, timing = audit.line, audit.timing
    if line.peak is None or timing is None:
        return "none: mains hum cannot be seen"
    if timing.sfreq is None:
        return f"{line.peak.cycles_per_sample:.5g} cycles a sample"
    text = f"{line.peak.cycles_per_sample * timing.sfreq:.4g} Hz"
    verdicts = {
        RateVerdict.FITS: f": fits {line.mains or 0:g} Hz mains",
        RateVerdict.HARMONIC_ONLY: f": a harmonic of {line.mains or 0:g} Hz mains",
        RateVerdict.OTHER_RATE: ": no mains frequency at this sampling rate",
    }
    return text + verdicts.get(line.verdict, ": no mains frequency")


# --- Figures --------------------------------------------------------------------------------------


def _figures(audit: TableAudit) -> dict[str, dict[str, str]]:
    drawn: dict[str, Callable[[TableAudit, float], Figure]] = {}
    if any(session.amplitude is not None for session in audit.sessions):
        drawn["amplitude"] = amplitude_figure
    if any(len(condition.evoked) for condition in audit.conditions):
        drawn["evoked"] = evoked_figure
        drawn["spectrum"] = spectrum_figure
    figures = {}
    with matplotlib.rc_context(_STYLE):
        for name, draw in drawn.items():
            figures[name] = {
                "wide": _data_uri(draw(audit, WIDE)),
                "narrow": _data_uri(draw(audit, NARROW)),
            }
    return figures


def _data_uri(figure: Figure) -> str:
    """Return the figure as an image of its own, whose ids and text cannot meet the page's."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _colors(audit: TableAudit) -> dict[str, str]:
    names = sorted({name for session in audit.sessions for name in session.conditions})
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}


def amplitude_figure(audit: TableAudit, width: float) -> Figure:
    """Draw each session's amplitude on a log scale: median, and 5 to 95 % of its trials."""
    colors = _colors(audit)

    def place(session: SessionAudit) -> tuple[str, float]:
        assert session.amplitude is not None
        return "".join(session.conditions), session.amplitude[1]

    sessions = sorted((s for s in audit.sessions if s.amplitude is not None), key=place)
    figure = Figure(figsize=(width, 3.4 if width < WIDE else 3.8), layout="constrained")
    axes = figure.subplots()
    seen: set[str] = set()
    for x, session in enumerate(sessions):
        assert session.amplitude is not None
        low, middle, high = (max(value, 1e-300) for value in session.amplitude)
        condition = next(iter(session.conditions), "")
        color = colors.get(condition, COLORS[-1]) if len(session.conditions) == 1 else "black"
        label = condition if len(session.conditions) == 1 else "several conditions"
        axes.plot([x, x], [low, high], color=color, alpha=0.45, linewidth=2.5)
        axes.plot(x, middle, "o", color=color, markersize=5, label=None if label in seen else label)
        seen.add(label)
    middles = [session.amplitude[1] for session in sessions if session.amplitude is not None]
    typical = float(np.median(middles))
    axes.axhspan(typical / 10**0.5, typical * 10**0.5, color="black", alpha=0.06, linewidth=0)
    axes.set_yscale("log")
    _plain_log_ticks(axes.yaxis)
    if max(middles) < 100 * min(middles):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.set_ylabel("standard deviation of a trace (log)")
    if len(sessions) <= MAX_NAMED_SESSIONS and width == WIDE:
        names = [_cut(session.session) for session in sessions]
        axes.set_xticks(range(len(sessions)), names, rotation=60, ha="right", fontsize=7)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{plural(len(sessions), 'session')}, ordered by condition and amplitude")
    _legend(axes)
    return figure


def evoked_figure(audit: TableAudit, width: float) -> Figure:
    """Draw the mean response of each condition; below, its first part after the onset."""
    assert audit.timing is not None
    timing = audit.timing
    onset = timing.onset_sample
    scale = 1.0 if timing.sfreq is None else timing.sfreq
    times = (np.arange(timing.n_samples) - (onset or 0)) / scale
    # Wide enough for a response whose rate is taken ten times too low.
    start, stop = max(0, (onset or 0) - 100), min(timing.n_samples, (onset or 0) + 600)
    is_zoomed = onset is not None and stop - start < timing.n_samples / 2
    figure = Figure(figsize=(width, 5.0 if is_zoomed else 3.0), layout="constrained")
    panels = figure.subplots(2 if is_zoomed else 1, squeeze=False)[:, 0]
    unit = "samples" if timing.sfreq is None else "s"
    _draw_evoked(panels[0], audit, times)
    panels[0].set_xlabel(
        f"time from {'the start of the trace' if onset is None else 'the onset'} ({unit})"
    )
    _legend(panels[0])
    if is_zoomed:
        _draw_evoked(panels[1], audit, times, slice(start, stop))
        panels[1].set_xlabel(f"time from the onset (s), samples {start:,} to {stop:,}")
    if onset is not None:
        for axes in panels:
            axes.axvline(0, color="black", linewidth=0.8)
    if audit.evoked is not None and audit.evoked.is_clear:
        panels[-1].axvline(times[audit.evoked.sample], color="black", linewidth=0.8, linestyle=":")
    figure.supylabel("mean trace / session amplitude", fontsize=9)
    return figure


def _draw_evoked(
    axes: Axes, audit: TableAudit, times: NDArray[np.float64], shown: slice = slice(None)
) -> None:
    colors = _colors(audit)
    axes.axhline(0, color="black", linewidth=0.5, alpha=0.4)
    for condition in audit.conditions:
        if len(condition.evoked):
            x, y = _thin(times[shown]), _thin(condition.evoked[shown])
            axes.plot(
                x, y, color=colors[condition.condition], linewidth=1.2, label=condition.condition
            )


def spectrum_figure(audit: TableAudit, width: float) -> Figure:
    """Draw the mean spectrum of each condition and where mains hum belongs."""
    assert audit.timing is not None
    timing, colors = audit.timing, _colors(audit)
    figure = Figure(figsize=(width, 3.4), layout="constrained")
    axes = figure.subplots()
    freqs = np.arange(timing.n_samples // 2 + 1) / timing.n_samples * (timing.sfreq or 1.0)
    for condition in audit.conditions:
        # The mean is taken off each trace, and the Hann window spreads that to the second bin;
        # the Nyquist bin holds half of the density.
        if len(condition.spectrum) > 3:
            x, y = _thin_logarithmically(freqs[2:-1], condition.spectrum[2:-1])
            axes.plot(
                x, y, color=colors[condition.condition], linewidth=1.2, label=condition.condition
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_log_ticks(axes.xaxis)
    _plain_log_ticks(axes.yaxis)
    if timing.sfreq is None:
        axes.set_xlabel("frequency (cycles a sample)")
        axes.set_ylabel("unit² per cycle a sample")
    else:
        axes.set_xlabel("frequency (Hz)")
        axes.set_ylabel("unit² / Hz")
        for mains in MAINS:
            if mains < freqs[-1]:
                axes.axvline(mains, color="black", linewidth=0.8, linestyle=":")
                axes.annotate(
                    f"{mains:g}",
                    (mains, 1.0),
                    xycoords=("data", "axes fraction"),
                    ha="right" if mains == MAINS[0] else "left",
                    va="bottom",
                    fontsize=7,
                )
    if audit.line.peak is not None:
        at = audit.line.peak.cycles_per_sample * (timing.sfreq or 1.0)
        axes.axvline(at, color="#c51b7d", linewidth=5, alpha=0.2, label="sharp peak")
    _legend(axes)
    return figure


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    named = [(h, _cut(label)) for h, label in zip(handles, labels, strict=True) if label]
    if named:
        axes.legend(*zip(*named, strict=True), frameon=False, fontsize=8)


def _cut(name: str, length: int = 24) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _plain_log_ticks(axis: Any) -> None:
    # Matplotlib writes powers of ten as formulas, which are switched off.
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _thin(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average runs of neighbours down to at most `MAX_POINTS` values."""
    step = -(-len(values) // MAX_POINTS)
    starts = np.arange(0, len(values), step)
    counts = np.diff(np.append(starts, len(values)))
    return np.asarray(np.add.reduceat(values, starts) / counts)


def _thin_logarithmically(
    freqs: NDArray[np.float64], power: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average bins that lie close on a log axis."""
    edges = np.geomspace(freqs[0], freqs[-1], MAX_POINTS)
    starts = np.unique(np.searchsorted(freqs, edges))
    starts = starts[starts < len(freqs)]
    counts = np.diff(np.append(starts, len(freqs)))
    return np.add.reduceat(freqs, starts) / counts, np.add.reduceat(power, starts) / counts
