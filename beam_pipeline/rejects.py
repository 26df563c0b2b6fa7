"""Rows that are not used, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """The closed list of reasons for which a row is not used, in the order they are looked for.

    One is looked for twice: a row without a subject, where other rows of its session have one, is
    found with what shows in the whole session, and has `MISSING_ID` too.
    """

    MISSING_ID = "missing_id"
    MISSING_CONDITION = "missing_condition"
    MISSING_TIMING = "missing_timing"
    SFREQ_MISMATCH = "sfreq_mismatch"
    TRUNCATED_TRACE = "truncated_trace"
    UNPARSABLE_TRACE = "unparsable_trace"
    EMPTY_TRACE = "empty_trace"
    TOO_SHORT = "too_short"
    NON_FINITE = "non_finite"
    FLAT = "flat"
    RAILED = "railed"
    SESSION_TWO_CONDITIONS = "session_two_conditions"
    UNKNOWN_CONDITION = "unknown_condition"
    SESSION_TWO_SUBJECTS = "session_two_subjects"
    DUPLICATE_TRIAL = "duplicate_trial"
    DUPLICATE_TRACE = "duplicate_trace"
    AMPLITUDE_OUTLIER = "amplitude_outlier"
    UNUSABLE_SPECTROGRAM = "unusable_spectrogram"


@dataclass(frozen=True)
class Reject:
    """One row that is not used, and why."""

    session: str | None
    trial_num: int | None
    reason: Reason
    detail: str
