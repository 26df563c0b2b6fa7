"""What a person should know before trusting a trace table, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from beam_pipeline.audit.summary import TableAudit
from beam_pipeline.plurals import plural
from beam_pipeline.spectrogram import SpectrogramOptions

MAX_NAMED = 5
MIN_GAIN_RATIO = 1.5
GAIN_RATIO = 10.0
SEVERE_GAIN_RATIO = 100.0
CLASS_RATIO = 1.5
SEVERE_CLASS_RATIO = 3.0
GAIN_AUC = 0.7
SEVERE_REJECT_FRACTION = 0.05


class Severity(StrEnum):
    """How much a warning matters, the worst first."""

    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class AuditWarning:
    """One thing to know.

    Attributes
    ----------
    kind : str
        Stable name for programs.
    severity : Severity
    title, text, advice : str
        What it is, what was seen, what to do.
    """

    kind: str
    severity: Severity
    title: str
    text: str
    advice: str


def table_warnings(audit: TableAudit, animal_column: str | None = None) -> Iterator[AuditWarning]:
    """Yield what is to be said of labels, amplitudes and rows.

    Parameters
    ----------
    audit : TableAudit
    animal_column : str or None
        A column that seems to say which animal a row is from, where the table has no subject.
    """
    yield from _labels(audit)
    yield from _subjects(audit, animal_column)
    yield from _class_balance(audit)
    yield from _gain(audit)
    yield from _gain_shortcut(audit)
    yield from _power_floor(audit)
    yield from _trial_numbers(audit)
    yield from _trace_lengths(audit)
    yield from _rejects(audit)


def _names(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")


# --- Labels ---------------------------------------------------------------------------------------


def _labels(audit: TableAudit) -> Iterator[AuditWarning]:
    conflicts = {
        "condition": [s.session for s in audit.sessions if len(s.conditions) > 1],
        "subject": [s.session for s in audit.sessions if len(s.subjects) > 1],
    }
    for label, names in conflicts.items():
        if names:
            yield AuditWarning(
                f"session_two_{label}s",
                Severity.PROBLEM,
                f"{plural(len(names), 'session', 'has', 'have')} more than one {label}",
                f"{_names(names)}. Preprocessing rejects all trials of such a session.",
                f"Give each session one {label}, or split it into two sessions.",
            )
    unlabelled = [s.session for s in audit.sessions if not s.conditions]
    if unlabelled:
        yield AuditWarning(
            "session_without_condition",
            Severity.WARNING,
            f"{plural(len(unlabelled), 'session', 'has', 'have')} no condition",
            f"{_names(unlabelled)}. Preprocessing rejects rows without a condition.",
            "Fill the condition column in, or leave these sessions out on purpose.",
        )


def _subjects(audit: TableAudit, animal_column: str | None) -> Iterator[AuditWarning]:
    if not audit.has_subjects:
        yield AuditWarning(
            "no_subjects",
            Severity.WARNING,
            "The table does not say which animal a session is from",
            "Without a subject column the splits are made by session. Sessions of one animal can "
            "then stand in train and test at once, and a model that knows the animal scores well "
            "without knowing anything about the condition.",
            "Add a subject column (--columns subject=COLUMN)."
            if animal_column is None
            else f"Pass --columns subject={animal_column}, if that column names the animals.",
        )
        return
    conditions: dict[str, set[str]] = {}
    for session in audit.sessions:
        for subject in session.subjects:
            conditions.setdefault(subject, set()).update(session.conditions)
    several = sorted(name for name, found in conditions.items() if len(found) > 1)
    if several:
        yield AuditWarning(
            "subject_several_conditions",
            Severity.WARNING,
            f"{plural(len(several), 'subject', 'is', 'are')} in several conditions",
            f"{_names(several)}. A genotype belongs to the animal and cannot change; a treatment "
            "or an electrode can.",
            "Check the labels if the condition is a genotype.",
        )
    missing = [s.session for s in audit.sessions if not s.subjects]
    if missing:
        yield AuditWarning(
            "session_without_subject",
            Severity.WARNING,
            f"{plural(len(missing), 'session', 'names', 'name')} no subject",
            f"{_names(missing)}. They cannot be kept out of the other splits of their animal.",
            "Fill the subject column in.",
        )


def _class_balance(audit: TableAudit) -> Iterator[AuditWarning]:
    counts = {c.condition: c.accepted for c in audit.conditions if c.accepted}
    if len(counts) < 2:
        found = f"only {next(iter(counts))}" if counts else "no usable condition"
        yield AuditWarning(
            "one_condition",
            Severity.PROBLEM,
            "There are not two conditions to tell apart",
            f"The table holds {found}.",
            "Check --columns condition=COLUMN.",
        )
        return
    large, small = max(counts, key=lambda c: counts[c]), min(counts, key=lambda c: counts[c])
    ratio = counts[large] / counts[small]
    if ratio >= CLASS_RATIO:
        chance = counts[large] / sum(counts.values())
        yield AuditWarning(
            "unbalanced",
            Severity.WARNING if ratio >= SEVERE_CLASS_RATIO else Severity.NOTE,
            f"The conditions are unbalanced {ratio:.1f} : 1",
            f"{plural(counts[large], 'trial')} of {large}, {counts[small]:,} of {small}. Always "
            f"saying {large} is right in {chance:.0%} of the trials.",
            "Judge by balanced accuracy and AUC, and weight the classes in training.",
        )


# --- Amplitude ------------------------------------------------------------------------------------


def _gain(audit: TableAudit) -> Iterator[AuditWarning]:
    levels = [(s.amplitude[1], s.session) for s in audit.sessions if s.amplitude is not None]
    if len(levels) < 2:
        return
    (low, smallest), (high, largest) = min(levels), max(levels)
    ratio = high / low if low > 0 else np.inf
    if ratio > GAIN_RATIO:
        middle = float(np.median([level for level, _ in levels]))
        far = sum(max(level / middle, middle / level) > GAIN_RATIO for level, _ in levels)
        outlying = (
            f" {plural(far, 'session', 'is', 'are')} more than 10-fold away from the middle one."
            if far
            else ""
        )
        yield AuditWarning(
            "gain",
            Severity.PROBLEM if ratio >= SEVERE_GAIN_RATIO else Severity.WARNING,
            f"Amplitudes differ {ratio:,.0f}-fold between sessions",
            f"The median standard deviation of a trace is {high:.3g} in {largest}, the largest, "
            f"and {low:.3g} in {smallest}, the smallest.{outlying} "
            "Different units, amplifier gains or dead channels look like this, and a classifier "
            "learns them first.",
            "Bring all sessions to one unit, leave dead channels out, or pass "
            "--gain_correction session.",
        )


def _gain_shortcut(audit: TableAudit) -> Iterator[AuditWarning]:
    levels = [s.amplitude[1] for s in audit.sessions if s.amplitude is not None]
    for gain in audit.gain:
        first, second = gain.conditions
        separation = max(gain.auc, 1 - gain.auc)
        larger = second if gain.auc >= 0.5 else first
        clear = gain.p_value < 0.05
        # A few sessions of nearly one amplitude are in some order, too.
        matters = clear or max(levels) > MIN_GAIN_RATIO * min(levels)
        if separation < GAIN_AUC or not matters:
            continue
        doubt = (
            ""
            if clear
            else f" With {' and '.join(map(str, gain.n_sessions))} sessions this can be chance."
        )
        yield AuditWarning(
            "gain_shortcut",
            Severity.WARNING if clear else Severity.NOTE,
            f"Amplitude alone tells {first} from {second} (AUC {separation:.2f})",
            f"Sessions of {larger} tend to be larger (Mann-Whitney p = {gain.p_value:.2g}, "
            "sessions taken as independent). A model can score this well from the gain without "
            f"looking at the response.{doubt}",
            "Compare every result with the gain-only baseline, and with --gain_correction session.",
        )


def _power_floor(audit: TableAudit) -> Iterator[AuditWarning]:
    if audit.timing is None:
        return
    floor = SpectrogramOptions.log_floor
    # A density per cycle a sample is the density per Hz times the rate: 1 kHz is a fair guess.
    scale = 1e-3 if audit.timing.sfreq is None else 1.0
    powers = {
        s.session: s.median_power * scale for s in audit.sessions if s.median_power is not None
    }
    low = [name for name, power in powers.items() if power < floor]
    if not low:
        return
    most = len(low) > len(powers) / 2
    middle = float(np.median(list(powers.values())))
    yield AuditWarning(
        "power_floor",
        Severity.PROBLEM if most else Severity.WARNING,
        f"The power of {plural(len(low), 'session')} drowns in the floor of {floor:g}",
        f"{_names(low)}: the median power spectral density is below --log_floor, which is added "
        f"before the logarithm, so that most of the spectrogram would be constant. The median "
        f"over all sessions is {middle:.2g}.",
        f"Traces in volts look like this: convert them to microvolts, or pass a --log_floor far "
        f"below {min(powers.values()):.1g}."
        if most
        else "Look whether these are dead channels or in another unit.",
    )


# --- Rows -----------------------------------------------------------------------------------------


def _trial_numbers(audit: TableAudit) -> Iterator[AuditWarning]:
    repeating = [s.session for s in audit.sessions if s.repeats_stimuli]
    duplicated = [s for s in audit.sessions if s.n_duplicates and not s.repeats_stimuli]
    if repeating:
        yield AuditWarning(
            "trial_num_counts_repeats",
            Severity.PROBLEM,
            "trial_num seems to count repeats of each stimulus",
            f"In {plural(len(repeating), 'session')} ({_names(repeating)}) the same trial_num "
            "occurs with several stimuli. It must order the trials of the session, and "
            "preprocessing rejects rows that share one.",
            "Number the trials of each session in the order of recording.",
        )
    if duplicated:
        n_rows = sum(s.n_duplicates for s in duplicated)
        yield AuditWarning(
            "duplicate_trials",
            Severity.WARNING,
            f"{plural(n_rows, 'row', 'repeats', 'repeat')} a trial_num of the same session",
            f"In {_names([s.session for s in duplicated])}. Of equal rows one is kept, of "
            "differing rows none.",
            "Find out why rows were delivered twice.",
        )
    gaps = [s for s in audit.sessions if s.n_missing]
    if gaps:
        n_missing = sum(s.n_missing for s in gaps)
        expected = n_missing + audit.rows
        yield AuditWarning(
            "missing_trials",
            Severity.WARNING if n_missing > 0.05 * expected else Severity.NOTE,
            f"{plural(n_missing, 'trial number', 'is', 'are')} missing",
            f"{plural(len(gaps), 'session', 'has', 'have')} gaps in trial_num: "
            f"{_names([s.session for s in gaps])}. Sequences of trials are cut at long gaps.",
            "Check whether the trials were left out on purpose.",
        )


def _trace_lengths(audit: TableAudit) -> Iterator[AuditWarning]:
    lengths: dict[int, int] = {}
    for timing, count in audit.timings.items():
        lengths[timing.n_samples] = lengths.get(timing.n_samples, 0) + count
    if len(lengths) > 1:
        common = max(lengths, key=lambda length: lengths[length])
        others = audit.accepted - lengths[common]
        rest = lengths.keys() - {common}
        span = f"{min(rest):,}" + (f" to {max(rest):,}" if len(rest) > 1 else "")
        yield AuditWarning(
            "trace_lengths",
            Severity.WARNING if others > SEVERE_REJECT_FRACTION * audit.accepted else Severity.NOTE,
            f"{plural(others, 'trace', 'has', 'have')} another length",
            f"Most traces have {common:,} samples; the others have {span}. The means on "
            "this page are over the most common length and timing.",
            "Rows too short for the window are rejected as too_short.",
        )
    rates = {timing.sfreq for timing in audit.timings}
    if len(rates) > 1:
        found = ", ".join("none" if r is None else f"{r:,.9g}" for r in sorted(rates, key=str)[:5])
        yield AuditWarning(
            "several_rates",
            Severity.WARNING,
            "The table holds several sampling rates",
            f"{found} Hz.",
            "Pass --resample to preprocessing to bring them to --sfreq.",
        )


def _rejects(audit: TableAudit) -> Iterator[AuditWarning]:
    n_rows = sum(audit.rejects.values())
    if n_rows:
        fraction = n_rows / audit.rows
        listed = ", ".join(f"{reason} {count:,}" for reason, count in audit.rejects.items())
        yield AuditWarning(
            "rejects",
            Severity.WARNING if fraction > SEVERE_REJECT_FRACTION else Severity.NOTE,
            f"{plural(n_rows, 'row')} ({fraction:.2%}) would be rejected",
            f"{listed}. Rows too short for the window come on top.",
            "Preprocessing lists each of them in rejects/; it fails above --max_reject_fraction "
            "(default 0.05).",
        )
