"""``audit``: look at a trace table before anything is made of it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from beam_pipeline import console
from beam_pipeline.audit.summary import TableAudit, summarize
from beam_pipeline.audit.table_warnings import AuditWarning, Severity, table_warnings
from beam_pipeline.audit.tally import AuditTally, Timing
from beam_pipeline.audit.timing_warnings import timing_warnings
from beam_pipeline.errors import UsageError
from beam_pipeline.flags.table import add_source_arguments, find_source
from beam_pipeline.plurals import plural
from beam_pipeline.screening import SFREQ_TOLERANCE
from beam_pipeline.sources import TraceSource
from beam_pipeline.storage.locations import locate
from beam_pipeline.storage.places import AnyPath, write_atomically

FORMAT_VERSION = 1
PAGE = "index.html"
NUMBERS = "audit.json"
BATCH_ROWS = 64
_COLORS = {Severity.PROBLEM: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


class OutputExistsError(RuntimeError):
    """The output folder holds something that must not be lost."""


def tally_table(source: TraceSource, sfreq: float | None, onset: float | None) -> AuditTally:
    """Read a whole table once and return what an audit needs of it.

    Memory grows with the number of sessions and trials, not with the samples.

    Parameters
    ----------
    source : TraceSource
    sfreq, onset : float or None
        Hz and seconds, for rows that state none.
    """
    tally = AuditTally(sfreq, onset)
    with console.watch({"read": "Reading traces"}, source.n_rows, lambda: {"read": tally.rows}):
        for piece in source.splits(1):
            for batch in source.read(piece, BATCH_ROWS):
                tally.add(batch)
    return tally


def audit_warnings(audit: TableAudit, source: TraceSource) -> list[AuditWarning]:
    """Return all warnings, the worst first."""
    found = [
        *timing_warnings(audit, "sfreq" in source.columns),
        *table_warnings(audit, source.animal_column),
    ]
    order = list(Severity)
    return sorted(found, key=lambda warning: order.index(warning.severity))


def contradictions(
    audit: TableAudit, source: TraceSource, sfreq: float | None
) -> list[AuditWarning]:
    """Warn where ``--sfreq`` is not the rate that the table itself states."""
    rate = None if audit.timing is None else audit.timing.sfreq
    if sfreq is None or rate is None or "sfreq" not in source.columns:
        return []
    if abs(rate - sfreq) <= SFREQ_TOLERANCE * sfreq:
        return []
    return [
        AuditWarning(
            "sfreq_flag_differs",
            Severity.PROBLEM,
            f"--sfreq {sfreq:g} is not the rate in the table",
            f"Most rows state {rate:g} Hz, which this audit goes by; preprocess would reject them.",
            f"Leave --sfreq out to work at {rate:g} Hz, pass --resample to bring the rows to "
            f"{sfreq:g} Hz, or correct the column.",
        )
    ]


def audit_table(
    source: TraceSource, sfreq: float | None = None, onset: float | None = None
) -> tuple[TableAudit, list[AuditWarning]]:
    """Read a table once; return its numbers and what they mean, the worst first."""
    audit = summarize(tally_table(source, sfreq, onset))
    return audit, audit_warnings(audit, source)


def audit_data(
    audit: TableAudit, warnings: Sequence[AuditWarning], source: TraceSource
) -> dict[str, Any]:
    """Return the contents of ``audit.json``."""
    sessions = [asdict(session) | {"gaps": list(session.gaps)} for session in audit.sessions]
    for session in sessions:
        levels = session.pop("amplitude")
        session["amplitude"] = (
            None if levels is None else dict(zip(("p5", "median", "p95"), levels, strict=True))
        )
    timing = audit.timing
    return {
        "format_version": FORMAT_VERSION,
        "source": {"kind": source.kind, "uri": source.uri, "columns": list(source.columns)},
        "rows": audit.rows,
        "accepted": audit.accepted,
        "warnings": [asdict(warning) for warning in warnings],
        "rejects": audit.rejects,
        "conditions": [
            {
                "condition": condition.condition,
                "sessions": condition.sessions,
                "subjects": condition.subjects,
                "rows": condition.rows,
                "accepted": condition.accepted,
                "mean_evoked": _rounded(condition.evoked),
                "mean_spectrum": _rounded(condition.spectrum),
            }
            for condition in audit.conditions
        ],
        "timing": None if timing is None else _timing_data(timing, audit.n_averaged),
        "trace_timings": [
            timing._asdict() | {"rows": count} for timing, count in audit.timings.items()
        ],
        "stimuli": [
            stimulus._asdict() | {"rows": count} for stimulus, count in audit.stimuli.items()
        ],
        "line_noise": asdict(audit.line),
        "sharp_peaks": [asdict(peak) for peak in audit.peaks[:20]],
        "evoked_peak": _evoked_data(audit),
        "gain": [asdict(gain) for gain in audit.gain],
        "sessions": sessions,
    }


def _timing_data(timing: Timing, n_averaged: int) -> dict[str, Any]:
    rate = timing.sfreq
    return timing._asdict() | {
        "onset_sample": timing.onset_sample,
        "n_averaged": n_averaged,
        "evoked_unit": "session amplitude",
        "spectrum_unit": "unit^2/Hz" if rate is not None else "unit^2 per cycle a sample",
        "spectrum_step": (1.0 if rate is None else rate) / timing.n_samples,
    }


def _evoked_data(audit: TableAudit) -> dict[str, Any] | None:
    if audit.evoked is None or audit.timing is None:
        return None
    onset, rate = audit.timing.onset_sample, audit.timing.sfreq
    after = None if onset is None else audit.evoked.sample - onset
    return asdict(audit.evoked) | {
        "is_clear": audit.evoked.is_clear,
        "samples_after_onset": after,
        "latency": None if after is None or rate is None else after / rate,
    }


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.7g}") for value in values.tolist()]


def to_json(data: dict[str, Any]) -> str:
    """Write JSON with one line for each entry, so that long arrays stay out of the way."""
    lines = (
        f" {json.dumps(key)}: {json.dumps(_finite(value), allow_nan=False)}"
        for key, value in data.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold: a rate or onset column may say infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add_source_arguments(parser)
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help=f"folder, here or on gs://, for {PAGE} (one self-contained page) and {NUMBERS} (the "
        "same numbers)",
    )


def check_output(output: AnyPath) -> None:
    """Check that an audit may be written to a folder.

    Raises
    ------
    OutputExistsError
        If it is a file, or holds anything else than an earlier audit. Names that begin with a
        dot do not count: nothing is written over them.
    """
    if output.is_file():
        raise OutputExistsError(f"{output} is a file; --output needs a folder")
    if not output.is_dir():
        return
    foreign = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    if foreign and not _is_audit(output / NUMBERS):
        raise OutputExistsError(
            f"{output} is neither empty nor an audit: it holds {', '.join(foreign[:5])}; "
            "choose another --output"
        )


def _is_audit(path: AnyPath) -> bool:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("format_version") == FORMAT_VERSION


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of `add_arguments`.

    Returns
    -------
    int
        Exit status: 0 done. What is wrong with the table is no failure.

    Raises
    ------
    UsageError
        If a flag has a value that it cannot have.
    SourceError
        If the table cannot be read.
    OutputExistsError
        If the output folder holds something else.
    """
    # Matplotlib takes a second to load, which other commands need not wait for.
    from beam_pipeline.audit.page import audit_page

    if args.sfreq is not None and not 0 < args.sfreq < np.inf:
        raise UsageError(f"--sfreq is {args.sfreq:g}, but must be a finite rate above 0 Hz")
    if args.onset is not None and not np.isfinite(args.onset):
        raise UsageError(f"--onset is {args.onset:g}, but must be a finite time in seconds")
    output = locate(args.output)
    check_output(output)
    source = find_source(args)
    output.mkdir(parents=True, exist_ok=True)
    audit, warnings = audit_table(source, args.sfreq, args.onset)
    warnings = [*contradictions(audit, source, args.sfreq), *warnings]
    write_atomically(output / NUMBERS, to_json(audit_data(audit, warnings, source)))
    write_atomically(output / PAGE, audit_page(audit, warnings, source.uri))
    _print_warnings(warnings)
    rows, sessions = plural(audit.rows, "row"), plural(len(audit.sessions), "session")
    print(f"{rows}, {sessions}: see {output / PAGE}")
    return 0


def _print_warnings(warnings: Sequence[AuditWarning]) -> None:
    # A pipe has no width: without one, rich would wrap at 80 columns.
    terminal = Console() if sys.stdout.isatty() else Console(width=120)
    for warning in warnings:
        severity = str(warning.severity), _COLORS[warning.severity]
        terminal.print(Text.assemble(severity, "  ", (warning.title, "bold")))
        # As plain text: rich would read a session named `[b]` as markup.
        terminal.print(Text(f"  {warning.text}"))
        terminal.print(Text(f"  -> {warning.advice}"))
