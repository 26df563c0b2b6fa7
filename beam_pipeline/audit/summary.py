"""From the tally of a trace table to the numbers of its audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from beam_pipeline.audit.averages import HumSpectrum, average, hum_spectrum
from beam_pipeline.audit.tally import AuditTally, SessionTally, Stimulus, Timing
from beam_pipeline.audit.timing import (
    EvokedPeak,
    LineNoise,
    SpectralPeak,
    evoked_peak,
    line_noise,
    sharp_peaks,
)
from beam_pipeline.rejects import Reason

MAX_GAPS = 5


@dataclass(frozen=True)
class SessionAudit:
    """One session.

    Attributes
    ----------
    session : str
    conditions : dict of str to int
        Rows by condition, sorted; more than one is an error of the table.
    subjects : tuple of str
        All that occur, sorted.
    rows, accepted : int
        All rows, and those that pass the screening by themselves.
    n_missing : int
        Numbers between the lowest and the highest `trial_num` that no row has.
    gaps : tuple of (int, int)
        First and last number of the first `MAX_GAPS` gaps.
    n_duplicates : int
        Rows whose `trial_num` an earlier row of the session has.
    repeats_stimuli : bool
        The duplicates vanish when trials are told apart by stimulus as well.
    amplitude : tuple of float or None
        5th, 50th and 95th percentile over trials of the trace's standard deviation.
    median_power : float or None
        Median over frequencies of the mean power spectral density.
    rejects : dict of Reason to int
    """

    session: str
    conditions: dict[str, int]
    subjects: tuple[str, ...]
    rows: int
    accepted: int
    n_missing: int
    gaps: tuple[tuple[int, int], ...]
    n_duplicates: int
    repeats_stimuli: bool
    amplitude: tuple[float, float, float] | None
    median_power: float | None
    rejects: dict[Reason, int]


@dataclass(frozen=True)
class ConditionAudit:
    """One condition.

    Attributes
    ----------
    condition : str
    sessions, subjects, rows, accepted : int
    evoked : float64 array of shape (n_samples,)
        Mean over sessions of each session's mean trace, relative to its mean before the onset
        (its mean, where the onset is unknown) and divided by the session's amplitude, so that
        no session counts for more because of its gain. Empty if no session was averaged.
    spectrum : float64 array of shape (n_freqs,)
        Geometric mean over sessions of each session's mean power spectral density.
    """

    condition: str
    sessions: int
    subjects: int
    rows: int
    accepted: int
    evoked: NDArray[np.float64]
    spectrum: NDArray[np.float64]


@dataclass(frozen=True)
class GainContrast:
    """How well a session's amplitude alone tells two conditions apart.

    Attributes
    ----------
    conditions : tuple of str
    auc : float
        Probability that a session of the second has a larger amplitude than one of the first.
    p_value : float
        Mann-Whitney, two-sided.
    n_sessions : tuple of int
    """

    conditions: tuple[str, str]
    auc: float
    p_value: float
    n_sessions: tuple[int, int]


@dataclass(frozen=True)
class TableAudit:
    """All numbers of an audit.

    Attributes
    ----------
    rows, accepted : int
    has_subjects : bool
    sessions : tuple of SessionAudit
        Sorted by name.
    conditions : tuple of ConditionAudit
        Sorted by name; sessions with two conditions are in none of them.
    stimuli : dict of Stimulus to int
        Accepted rows.
    timings : dict of Timing to int
        Accepted rows, the most common first.
    timing : Timing or None
        The most common one: means are over its traces alone.
    n_averaged : int
        Traces behind the means.
    evoked : EvokedPeak or None
        The clearest of the mean over all sessions and those of the conditions, which may cancel.
    peaks : tuple of SpectralPeak
        Sharp peaks of the spectrum in which mains hum is looked for; see `HumSpectrum`.
    line : LineNoise
    gain : tuple of GainContrast
        One for each pair of conditions.
    rejects : dict of Reason to int
        Rows that preprocessing would not use, whatever its window, by reason.
    """

    rows: int
    accepted: int
    has_subjects: bool
    sessions: tuple[SessionAudit, ...]
    conditions: tuple[ConditionAudit, ...]
    stimuli: dict[Stimulus, int]
    timings: dict[Timing, int]
    timing: Timing | None
    n_averaged: int
    evoked: EvokedPeak | None
    peaks: tuple[SpectralPeak, ...]
    line: LineNoise
    gain: tuple[GainContrast, ...]
    rejects: dict[Reason, int]


def summarize(tally: AuditTally) -> TableAudit:
    """Return the numbers of an audit."""
    tallies = dict(sorted(tally.sessions.items()))
    sessions = tuple(_session(name, own) for name, own in tallies.items())
    timings = Counter[Timing]()
    for own in tallies.values():
        timings.update(own.timings)
    # Equal counts must not leave the choice to the order of the rows.
    ordered = dict(sorted(timings.items(), key=lambda item: (-item[1], repr(item[0]))))
    timing = next(iter(ordered), None)
    evoked = np.empty(0)
    n_averaged = 0
    if timing is not None:
        evoked, _, n_averaged = average(tallies.values(), timing)
    hum = hum_spectrum(tallies.values(), timing) if timing else HumSpectrum.none()
    peaks = sharp_peaks(hum.power, hum.n_samples, hum.n_trials)
    conditions = _conditions(tallies, timing)
    return TableAudit(
        rows=tally.rows,
        accepted=sum(session.accepted for session in sessions),
        has_subjects=any(session.subjects for session in sessions),
        sessions=sessions,
        conditions=conditions,
        stimuli=_sorted_stimuli(tally.stimuli),
        timings=ordered,
        timing=timing,
        n_averaged=n_averaged,
        evoked=_clearest_peak([evoked, *(c.evoked for c in conditions)], timing),
        peaks=tuple(peaks),
        line=line_noise(peaks, hum.n_samples, timing and timing.sfreq),
        gain=tuple(_gain_contrasts(sessions)),
        rejects=_rejects(tally, tallies),
    )


def _session(name: str, tally: SessionTally) -> SessionAudit:
    numbers = np.unique(np.frombuffer(tally.trial_num, np.int64))
    # Not np.diff: numbers at both ends of int64 would overflow it.
    values = numbers.tolist()
    gaps = [(low + 1, high - 1) for low, high in pairwise(values) if high > low + 1]
    accepted = np.asarray(tally.accepted, np.int64)
    told_apart = np.unique(_trial_and_stimulus(tally), axis=0)
    repeated = len(accepted) - len(np.unique(accepted))
    level = np.asarray(tally.level, np.float64)
    powers = [np.median(sums.power[1:] / sums.n_trials) for sums in tally.sums.values()]
    quantiles = np.percentile(level, [5, 50, 95]).tolist() if len(level) else None
    return SessionAudit(
        session=name,
        conditions=dict(sorted(tally.conditions.items())),
        subjects=tuple(sorted(tally.subjects)),
        rows=tally.rows,
        accepted=len(accepted),
        n_missing=sum(last - first + 1 for first, last in gaps),
        gaps=tuple(gaps[:MAX_GAPS]),
        n_duplicates=len(tally.trial_num) - len(numbers),
        repeats_stimuli=repeated > 0 and len(accepted) - len(told_apart) < 0.1 * repeated,
        amplitude=None if quantiles is None else (quantiles[0], quantiles[1], quantiles[2]),
        median_power=float(np.median(powers)) if powers else None,
        rejects=dict(sorted(tally.rejects.items())),
    )


def _clearest_peak(
    responses: Sequence[NDArray[np.float64]], timing: Timing | None
) -> EvokedPeak | None:
    if timing is None:
        return None
    found = [evoked_peak(evoked, timing.onset_sample) for evoked in responses if len(evoked)]
    return max(found, key=lambda peak: peak.score, default=None)


def _conditions(
    tallies: Mapping[str, SessionTally], timing: Timing | None
) -> tuple[ConditionAudit, ...]:
    members: dict[str, list[SessionTally]] = {}
    for tally in tallies.values():
        if len(tally.conditions) == 1:
            members.setdefault(next(iter(tally.conditions)), []).append(tally)
    audits = []
    for condition, own in sorted(members.items()):
        evoked = spectrum = np.empty(0)
        if timing is not None:
            evoked, spectrum, _ = average(own, timing)
        audits.append(
            ConditionAudit(
                condition,
                sessions=len(own),
                subjects=len({subject for tally in own for subject in tally.subjects}),
                rows=sum(tally.rows for tally in own),
                accepted=sum(len(tally.accepted) for tally in own),
                evoked=evoked,
                spectrum=spectrum,
            )
        )
    return tuple(audits)


def _sorted_stimuli(stimuli: Mapping[Stimulus, int]) -> dict[Stimulus, int]:
    def key(item: tuple[Stimulus, int]) -> list[float]:
        return [-np.inf if value is None else value for value in item[0]]

    return dict(sorted(stimuli.items(), key=key))


def _gain_contrasts(sessions: Sequence[SessionAudit]) -> Iterable[GainContrast]:
    levels: dict[str, list[float]] = {}
    for session in sessions:
        if len(session.conditions) == 1 and session.amplitude is not None:
            levels.setdefault(next(iter(session.conditions)), []).append(session.amplitude[1])
    for first, second in combinations(sorted(levels), 2):
        a, b = levels[first], levels[second]
        test = stats.mannwhitneyu(b, a)
        auc = float(test.statistic) / (len(a) * len(b))
        yield GainContrast((first, second), auc, float(test.pvalue), (len(a), len(b)))


def _rejects(tally: AuditTally, tallies: Mapping[str, SessionTally]) -> dict[Reason, int]:
    """Count rejects in the order of preprocessing: row, session, duplicates, identical traces."""
    counts = Counter(tally.nameless)
    digests: list[NDArray[np.int64]] = []
    for own in tallies.values():
        counts.update(own.rejects)
        subjects = {subject for _, subject in own.labels} - {None}
        if len({condition for condition, _ in own.labels}) > 1:
            counts[Reason.SESSION_TWO_CONDITIONS] += len(own.accepted)
            continue
        if len(subjects) > 1:
            counts[Reason.SESSION_TWO_SUBJECTS] += len(own.accepted)
            continue
        # A session that names no subject at all is one of an unknown animal.
        kept = np.asarray(own.named, np.bool_) | (not subjects)
        counts[Reason.MISSING_ID] += int(np.count_nonzero(~kept))
        digests.append(_without_duplicates(own, kept))
        counts[Reason.DUPLICATE_TRIAL] += int(np.count_nonzero(kept)) - len(digests[-1])
    counts[Reason.DUPLICATE_TRACE] += _count_copies(digests)
    return {reason: counts[reason] for reason in Reason if counts[reason]}


def _trial_and_stimulus(tally: SessionTally) -> NDArray[np.int64]:
    """Return trial_num, frequency and amplitude of the accepted rows, int64 of shape (n, 3)."""
    stimuli = np.column_stack(
        [np.asarray(v, np.float64) for v in (tally.frequency, tally.amplitude)]
    )
    # As bits, of one NaN and of one zero: a stimulus that nobody states equals itself.
    bits = np.where(np.isnan(stimuli), np.nan, stimuli + 0.0).view(np.int64)
    return np.column_stack([np.asarray(tally.accepted, np.int64), bits])


def _without_duplicates(tally: SessionTally, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the digests of the trials that stay: of equal rows one, of differing rows none."""
    rows = np.column_stack([_trial_and_stimulus(tally), np.asarray(tally.digest, np.int64)])
    distinct = np.unique(rows[kept], axis=0)
    _, first, counts = np.unique(distinct[:, 0], return_index=True, return_counts=True)
    return np.asarray(distinct[first[counts == 1], -1])


def _count_copies(digests: Sequence[NDArray[np.int64]]) -> int:
    """Count traces that stand elsewhere too: all across sessions, all but one inside a session."""
    if not digests:
        return 0
    session = np.repeat(np.arange(len(digests)), [len(own) for own in digests])
    places = np.column_stack([np.concatenate(digests), session])
    pairs, rows = np.unique(places, axis=0, return_counts=True)
    _, inverse, sessions = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    return int(np.where(sessions[inverse] > 1, rows, rows - 1).sum())
