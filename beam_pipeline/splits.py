"""Train/val/test assignment of sessions: grouped by subject, stratified by condition.

The label belongs to the animal, so a subject is never cut in two. A split is a pure function of
the sessions, the ratios and the seed, whatever the order of the sessions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from beam_pipeline.plurals import plural
from beam_pipeline.split_search import partition_groups

SPLITS = ("train", "val", "test")
MIN_FOLDS = 3

_SHOWN = 5


class SplitError(ValueError):
    """Sessions cannot be split as asked, or a splits file is wrong."""


@dataclass(frozen=True)
class SessionCount:
    """What one session brings into a split.

    Parameters
    ----------
    session : str
        Session id, unique in the table.
    subject : str or None
        Animal; None where the table has no subject column.
    condition : str
        Class of the session.
    n_trials : int
        Number of trials that are used.
    """

    session: str
    subject: str | None
    condition: str
    n_trials: int


def required_splits(ratios: Sequence[float]) -> tuple[str, ...]:
    """Return the splits that must hold every class: those with a ratio above zero.

    Parameters
    ----------
    ratios : sequence of float
        Shares of train, val and test.

    Returns
    -------
    tuple of str
        Names out of `SPLITS`, in that order.

    Raises
    ------
    SplitError
        If the ratios are not three non-negative numbers with the sum 1 (within 1e-6), or the
        share of train is zero.
    """
    valid = len(ratios) == len(SPLITS) and all(math.isfinite(r) and r >= 0 for r in ratios)
    if not valid or abs(math.fsum(ratios) - 1.0) > 1e-6 or ratios[0] <= 0:
        raise SplitError(
            f"split ratios {tuple(ratios)} are wrong: give three numbers for train,val,test, "
            "none negative, train above 0, with the sum 1, such as 0.7,0.15,0.15"
        )
    return tuple(name for name, ratio in zip(SPLITS, ratios, strict=True) if ratio > 0)


def assign_splits(
    sessions: Iterable[SessionCount],
    ratios: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> dict[str, str]:
    """Assign every session to train, val or test.

    Groups are subjects; a session without a subject is its own group. Each split gets about its
    ratio of the trials of each class, as nearly as whole groups allow: see `partition_groups`.

    Parameters
    ----------
    sessions : iterable of SessionCount
        One entry a session, in any order.
    ratios : sequence of float, shape (3,)
        Shares of the trials of each class for train, val and test. A split with ratio 0 stays
        empty; every other one holds every class.
    seed : int
        Another seed gives another split of about the same balance.

    Returns
    -------
    dict of str to str
        Split of each session, in the order of the session ids.

    Raises
    ------
    SplitError
        If the ratios or sessions are wrong, or if no assignment of whole groups gives every
        class to every split.
    """
    names = required_splits(ratios)
    ordered = checked_sessions(sessions)
    parts = _partition(ordered, [r for r in ratios if r > 0], seed)
    if parts is None:
        raise SplitError(
            f"no split gives every class to each of {', '.join(names)}: "
            f"{_impossible(ordered, len(names))}; add recordings of the scarce class, or set the "
            "ratio of a split to 0 (--split_ratios)"
        )
    return {session: names[part] for session, part in parts.items()}


def assign_folds(
    sessions: Iterable[SessionCount], n_folds: int = 5, seed: int = 0
) -> list[dict[str, str]]:
    """Assign every session to train, val or test, once a fold.

    Groups and balance are those of `assign_splits`. Every session is in test in one fold and in
    val in the fold before.

    Parameters
    ----------
    sessions : iterable of SessionCount
        One entry a session, in any order.
    n_folds : int
        At least 3, so that train is never empty.
    seed : int

    Returns
    -------
    list of dict of str to str, length n_folds
        Split of each session, in the order of the session ids.

    Raises
    ------
    SplitError
        If the sessions are wrong, or if no partition of whole groups gives every class to every
        fold.
    """
    if n_folds < MIN_FOLDS:
        raise SplitError(f"{n_folds} folds are too few: train, val and test need {MIN_FOLDS}")
    ordered = checked_sessions(sessions)
    parts = _partition(ordered, [1 / n_folds] * n_folds, seed)
    if parts is None:
        raise SplitError(
            f"no split gives every class to each of {n_folds} folds: "
            f"{_impossible(ordered, n_folds)}; add recordings, or ask for fewer folds (--n_folds)"
        )
    role = ["test", "val", *["train"] * (n_folds - 2)]
    return [
        {session: role[(part - fold) % n_folds] for session, part in parts.items()}
        for fold in range(n_folds)
    ]


def _partition(
    ordered: Sequence[SessionCount], shares: Sequence[float], seed: int
) -> dict[str, int] | None:
    """Return the part of each session; None where not every part can hold every class."""
    labels = sorted({s.condition for s in ordered})
    groups = sorted({_group(s) for s in ordered})
    row_of = {group: row for row, group in enumerate(groups)}
    column_of = {label: column for column, label in enumerate(labels)}
    trials = np.zeros((len(groups), len(labels)), dtype=np.int64)
    for s in ordered:
        trials[row_of[_group(s)], column_of[s.condition]] += s.n_trials
    names = ["\0".join(group) for group in groups]
    parts = partition_groups(names, trials, np.array(shares, np.float64), seed)
    return None if parts is None else {s.session: parts[row_of[_group(s)]] for s in ordered}


def check_splits(
    sessions: Iterable[SessionCount],
    assignment: Mapping[str, str],
    required: Sequence[str] = SPLITS,
) -> None:
    """Check that every required split holds trials of every class.

    Parameters
    ----------
    sessions : iterable of SessionCount
        One entry a session.
    assignment : mapping of str to str
        Split of each session.
    required : sequence of str
        Splits that must hold every class; see `required_splits`.

    Raises
    ------
    SplitError
        If a session has no split or an unknown one, or if a class is missing from a required
        split.
    """
    ordered = checked_sessions(sessions)
    for s in ordered:
        if assignment.get(s.session) not in SPLITS:
            raise SplitError(
                f"session {s.session!r} is in split {assignment.get(s.session)!r}: "
                f"assign it to one of {', '.join(SPLITS)}"
            )
    held = {(assignment[s.session], s.condition) for s in ordered if s.n_trials > 0}
    labels = sorted({s.condition for s in ordered})
    missing = [(n, c) for n in required for c in labels if (n, c) not in held]
    if not missing:
        return
    lacking = _listed([f"{name} has no trial of {label!r}" for name, label in missing])
    holders = _holders(ordered)
    there = _listed(
        [
            f"{label!r} has {_groups(len(holders[label]), ordered)} in all"
            for label in dict.fromkeys(label for _, label in missing)
        ]
    )
    raise SplitError(
        f"every split must hold every class, but {lacking} ({there}): move sessions of that class "
        "there in the splits file, or add recordings; a split whose ratio is 0 need not hold "
        "anything, such as val with --split_ratios 0.85,0,0.15"
    )


def checked_sessions(sessions: Iterable[SessionCount]) -> list[SessionCount]:
    """Return the sessions in the order of their ids.

    Raises
    ------
    SplitError
        If there is none, one is counted twice, or one has a negative number of trials.
    """
    ordered = sorted(sessions, key=lambda s: s.session)
    if not ordered:
        raise SplitError("there is no session to split: the table has no usable trial")
    for before, after in pairwise(ordered):
        if before.session == after.session:
            raise SplitError(
                f"session {after.session!r} is counted twice: give one entry a session"
            )
    for s in ordered:
        if s.n_trials < 0:
            raise SplitError(f"session {s.session!r} has {s.n_trials} trials: give 0 or more")
    return ordered


def _group(session: SessionCount) -> tuple[str, str]:
    if session.subject is None:
        return ("session", session.session)
    return ("subject", session.subject)


# ---- messages ------------------------------------------------------------------------------------


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _SHOWN
    return "; ".join(texts[:_SHOWN]) + (f"; and {more:,} more" if more > 0 else "")


def _holders(sessions: Sequence[SessionCount]) -> dict[str, set[tuple[str, str]]]:
    """Return the groups that have trials of each class, the classes sorted."""
    labels = sorted({s.condition for s in sessions})
    holders: dict[str, set[tuple[str, str]]] = {label: set() for label in labels}
    for s in sessions:
        if s.n_trials > 0:
            holders[s.condition].add(_group(s))
    return holders


def _groups(n: int, sessions: Sequence[SessionCount]) -> str:
    """Return ``2 animals``, or what else is never cut."""
    named = {s.subject is not None for s in sessions}
    noun = "group" if len(named) > 1 else "animal" if True in named else "session"
    return plural(n, noun)


def _impossible(sessions: Sequence[SessionCount], n_parts: int) -> str:
    """Return why no partition into so many parts has every class in every part."""
    holders = _holders(sessions)
    few = [
        f"{label!r} has {_groups(len(groups), sessions)}"
        for label, groups in holders.items()
        if len(groups) < n_parts
    ]
    need = f"{_groups(n_parts, sessions)} of each class with trials are needed"
    return f"{need}, but {_listed(few)}" if few else "too few groups hold several classes"
