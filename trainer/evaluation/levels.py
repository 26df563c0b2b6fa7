"""Which units a result is counted in, and which of them are independent.

The label belongs to the animal. Sequences of one session share its electrode, its gain and its
animal, so what is resampled and relabelled is the animal, or the session where the table names no
animal; never the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.predictions import Predictions, PredictionsError, probabilities

LEVELS = ("sequence", "session", "subject")
#: Label of a group whose sessions are of several classes.
MIXED = -1


@dataclass(frozen=True, eq=False)
class Design:
    """How the sequences of a split belong together.

    Attributes
    ----------
    sessions : tuple of str
        Sorted.
    session : int64 array of shape (n_sequences,)
        Session of each sequence.
    session_label, session_group : int64 arrays of shape (n_sessions,)
    unit : {"subject", "session"}
        What a group is.
    groups : tuple of str
        Independent units, sorted: animals, or sessions that name none.
    group_label : int64 array of shape (n_groups,)
        Class of each group; `MIXED` where its sessions are of several.
    all_subjects_named : bool
    """

    sessions: tuple[str, ...]
    session: NDArray[np.int64]
    session_label: NDArray[np.int64]
    session_group: NDArray[np.int64]
    unit: str
    groups: tuple[str, ...]
    group_label: NDArray[np.int64]
    all_subjects_named: bool

    @property
    def mixed(self) -> bool:
        """Whether a group holds more than one class."""
        return bool((self.group_label == MIXED).any())

    @property
    def strata(self) -> NDArray[np.int64]:
        """Stratum of each group, int64 (n_groups,): its class, or 0 for all if any is mixed."""
        return np.zeros_like(self.group_label) if self.mixed else self.group_label

    def class_sizes(self, n_classes: int) -> NDArray[np.int64]:
        """Return the groups that hold each class, int64 (n_classes,); a mixed one has several."""
        pairs = np.unique(np.stack([self.session_label, self.session_group]), axis=1)
        return np.bincount(pairs[0], minlength=n_classes)

    @property
    def exchangeable(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """What may swap labels if the labels mean nothing.

        Animals may, anywhere. Where animals hold several classes, their sessions may instead, each
        with those of its own animal.

        Returns
        -------
        of_session : int64 array of shape (n_sessions,)
            Exchangeable unit of each session.
        label, block : int64 arrays of shape (n_units,)
            Labels are swapped inside a block only.
        """
        if self.mixed:
            return np.arange(len(self.sessions)), self.session_label, self.session_group
        return self.session_group, self.group_label, np.zeros_like(self.group_label)


@dataclass(frozen=True, eq=False)
class Level:
    """The units of one level, each with one set of class probabilities.

    Attributes
    ----------
    probability : float64 array of shape (n, n_classes)
    label : int64 array of shape (n,)
    session : int64 array of shape (n,)
        Index of each unit's session; of a subject's first session.
    group : int64 array of shape (n,)
        Index of each unit's group.
    """

    probability: NDArray[np.float64]
    label: NDArray[np.int64]
    session: NDArray[np.int64]
    group: NDArray[np.int64]

    @property
    def independent(self) -> bool:
        """Whether every unit is a group of its own."""
        return len(np.unique(self.group)) == len(self.group)


def study_design(predictions: Predictions) -> Design:
    """Return how the sequences belong to sessions and groups.

    Raises
    ------
    PredictionsError
        If a session has two labels or two subjects.
    """
    names, first, session = np.unique(
        np.array(predictions.session), return_index=True, return_inverse=True
    )
    label = predictions.label[first]
    subject = [predictions.subject[row] for row in first]
    for row, index in enumerate(session):
        if predictions.label[row] != label[index] or predictions.subject[row] != subject[index]:
            raise PredictionsError(
                f"session {predictions.session[row]!r} has two labels or two subjects"
            )
    # A subject and a session may have the same name.
    keys = [
        ("session", str(name)) if animal is None else ("subject", animal)
        for name, animal in zip(names, subject, strict=True)
    ]
    groups = sorted(set(keys))
    group = np.array([groups.index(key) for key in keys])
    group_label = np.full(len(groups), MIXED)
    for index in range(len(groups)):
        held = np.unique(label[group == index])
        group_label[index] = held[0] if len(held) == 1 else MIXED
    return Design(
        sessions=tuple(map(str, names)),
        session=session,
        session_label=label,
        session_group=group,
        unit="session" if all(animal is None for animal in subject) else "subject",
        groups=tuple(name for _, name in groups),
        group_label=group_label,
        all_subjects_named=all(animal is not None for animal in subject),
    )


def score_levels(
    predictions: Predictions, design: Design, temperature: float | None = None
) -> tuple[dict[str, Level], str]:
    """Return the units of each level.

    A session's class probabilities are the mean of its sequences'; a subject's are the mean of its
    sessions', so that a long session does not outvote the others.

    Parameters
    ----------
    predictions : Predictions
    design : Design
        Of these predictions.
    temperature : float, optional
        Divides the logits.

    Returns
    -------
    levels : dict of str to Level
        In the order of `LEVELS`.
    missing : str
        Why there is no subject level; empty if there is one.
    """
    probability = probabilities(predictions.logits, temperature)
    by_session = _group_means(probability, design.session, len(design.sessions))
    levels = {
        "sequence": Level(
            probability, predictions.label, design.session, design.session_group[design.session]
        ),
        "session": Level(
            by_session,
            design.session_label,
            np.arange(len(design.sessions)),
            design.session_group,
        ),
    }
    if design.unit == "session":
        return levels, "no subject level: the table names no subjects"
    if not design.all_subjects_named:
        return levels, (
            "no subject level: some sessions name no subject, and each of them counts as one"
        )
    if design.mixed:
        return levels, "no subject level: subjects hold sessions of several classes"
    n_groups = len(design.groups)
    first_session = np.unique(design.session_group, return_index=True)[1]
    by_subject = _group_means(by_session, design.session_group, n_groups)
    levels["subject"] = Level(by_subject, design.group_label, first_session, np.arange(n_groups))
    return levels, ""


def _group_means(
    values: NDArray[np.float64], group: NDArray[np.int64], n_groups: int
) -> NDArray[np.float64]:
    sums = np.zeros((n_groups, values.shape[1]))
    np.add.at(sums, group, values)
    means: NDArray[np.float64] = sums / np.bincount(group, minlength=n_groups)[:, None]
    return means
