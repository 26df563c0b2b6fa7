"""Sessions that give no sequence: which, why, and what would keep them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from trainer.data.sequences import Index, Sequences, consecutive_runs
from trainer.data.trials import Trials
from trainer.plurals import plural

#: Sessions that a line names; of more it gives the number.
_MOST_NAMES = 5


@dataclass(frozen=True)
class LostSession:
    """A session of which nothing is learned or evaluated.

    Attributes
    ----------
    session : str
    subject : str or None
    label : int
        Class.
    is_last_of_subject : bool
        Whether no other session of its animal gives a sequence either.
    n_trials, longest_run : int
        Trials of the session, and most of them without a gap between them.
    sufficient_gap : int or None
        Least ``max_gap`` with which it gives a sequence; None where it is too short for any.
    """

    session: str
    subject: str | None
    label: int
    is_last_of_subject: bool
    n_trials: int
    longest_run: int
    sufficient_gap: int | None


def find_lost_sessions(
    trials: Trials, sequences: Sequences, max_gap: int
) -> tuple[LostSession, ...]:
    """Return the sessions that have trials and no sequence, in their order.

    Parameters
    ----------
    trials : Trials
    sequences : Sequences
        Cut from them.
    max_gap : int
        With which they were cut.
    """
    held = set(np.unique(sequences.session).tolist())
    seen = {trials.subjects[index] for index in held}
    runs = consecutive_runs(trials, max_gap)
    run_session, run_size = trials.session[runs[:-1]], np.diff(runs)
    lost = []
    for index, session in enumerate(trials.sessions):
        if index in held:
            continue
        numbers = trials.trial_num[trials.session == index]
        if not len(numbers):
            continue
        subject = trials.subjects[index]
        lost.append(
            LostSession(
                session,
                subject,
                int(trials.labels[index]),
                subject is not None and subject not in seen,
                len(numbers),
                int(run_size[run_session == index].max()),
                _sufficient_gap(numbers, sequences.rows.shape[1]),
            )
        )
    return tuple(lost)


def _sufficient_gap(trial_num: Index, n_trials: int) -> int | None:
    if len(trial_num) < n_trials:
        return None
    steps = sliding_window_view(np.diff(trial_num), n_trials - 1)
    return int(steps.max(axis=1).min()) - 1


def lost_note(
    trials: Trials, sequences: Sequences, max_gap: int, classes: Sequence[str]
) -> list[str]:
    """Return a note on the sessions of which metrics of these sequences say nothing, if any."""
    lost = find_lost_sessions(trials, sequences, max_gap)
    if not lost:
        return []
    n_sessions = len(np.unique(trials.session))
    verb = "is" if len(lost) == 1 else "are"
    what = describe_lost(lost, classes, sequences.rows.shape[1])
    return [
        f"{len(lost):,} of {plural(n_sessions, 'session')} {verb} in none of these numbers: {what}"
    ]


def describe_lost(lost: Sequence[LostSession], classes: Sequence[str], n_trials: int) -> str:
    """Return in one line which sessions give no sequence, and what would keep them.

    Parameters
    ----------
    lost : sequence of LostSession
        One or more.
    classes : sequence of str
    n_trials : int
        Of a sequence.
    """
    named = [
        f"{one.session} ({classes[one.label]}, {one.longest_run} of {one.n_trials} in a row)"
        for one in lost[:_MOST_NAMES]
    ]
    verb = "gives" if len(lost) == 1 else "give"
    line = f"{_listed(named, len(lost))} {verb} no sequence of {plural(n_trials, 'trial')}"
    subjects = sorted({one.subject for one in lost if one.is_last_of_subject and one.subject})
    if subjects:
        animals = "animal" if len(subjects) == 1 else "animals"
        verb = "has" if len(subjects) == 1 else "have"
        line += f", and {animals} {_listed(subjects[:_MOST_NAMES], len(subjects))} {verb} no other"
    return f"{line}: {' or '.join(_remedies(lost))} would keep {'it' if len(lost) == 1 else 'them'}"


def _remedies(lost: Sequence[LostSession]) -> list[str]:
    remedies = [f"--sequence.n_trials {min(one.longest_run for one in lost)}"]
    gaps = [one.sufficient_gap for one in lost]
    if None not in gaps:
        remedies.append(f"--sequence.max_gap {max(gap for gap in gaps if gap is not None)}")
    return remedies


def _listed(names: Sequence[str], n: int) -> str:
    return ", ".join(names) + (f" and {n - len(names)} more" if n > len(names) else "")
