"""Which sessions and animals of a cross-validation no fold has predicted, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.dataset_folder import DatasetFolder, open_dataset
from trainer.data.storage import DatasetError
from trainer.plurals import plural


@dataclass(frozen=True)
class HeldSession:
    """A session that the dataset of a fold knows of.

    Attributes
    ----------
    session : str
    subject : str or None
    split : str or None
        None where the dataset has used none of its trials.
    """

    session: str
    subject: str | None
    split: str | None


def unpredicted(
    held: Mapping[str, Sequence[HeldSession]], predicted: Iterable[str], n_trials: int
) -> dict[str, Any]:
    """Return the sessions and subjects that are without a prediction, as plain JSON.

    Parameters
    ----------
    held : mapping
        {run: all sessions of its dataset}.
    predicted : iterable of str
        Sessions.
    n_trials : int
        Trials in a sequence.

    Returns
    -------
    dict
        ``sessions``: ``session``, ``subject`` and ``reason`` of each; ``subjects``: those that have
        no predicted session.
    """
    done = set(predicted)
    subject_of: dict[str, str | None] = {}
    tested_by: dict[str, str] = {}
    used: set[str] = set()
    for run, sessions in held.items():
        for entry in sessions:
            subject_of[entry.session] = entry.subject or subject_of.get(entry.session)
            if entry.split is not None:
                used.add(entry.session)
            if entry.split == "test":
                tested_by.setdefault(entry.session, run)

    def reason(session: str) -> str:
        if session in tested_by:
            return f"no sequence of {plural(n_trials, 'trial')} in {tested_by[session]}"
        return "in test of no fold" if session in used else "no usable trial"

    left = sorted(subject_of.keys() - done)
    seen = {subject_of[session] for session in subject_of.keys() & done}
    return {
        "sessions": [
            {"session": name, "subject": subject_of[name], "reason": reason(name)} for name in left
        ],
        "subjects": sorted(
            {subject for name in left if (subject := subject_of[name]) and subject not in seen}
        ),
    }


def open_fold_dataset(url: str, fingerprint: str) -> DatasetFolder:
    """Open the dataset of a fold.

    Parameters
    ----------
    url : str
    fingerprint : str
        That it must have.

    Raises
    ------
    DatasetError
        If it cannot be read, or is another one by now.
    """
    dataset = open_dataset(url)
    if dataset.fingerprint != fingerprint:
        raise DatasetError(f"{url} is another dataset now than the run was evaluated on")
    return dataset


def read_sessions(dataset: DatasetFolder) -> list[HeldSession]:
    """Return every session that a dataset knows of, those of rejected rows included.

    Raises
    ------
    DatasetError
        If it cannot be read.
    """
    rows = dataset.read_sessions().select(["session", "subject", "split"]).to_pylist()
    found = [HeldSession(row["session"], row["subject"], row["split"]) for row in rows]
    rejected = _rejected_sessions(dataset) - {entry.session for entry in found}
    return found + [HeldSession(session, None, None) for session in sorted(rejected)]


def _rejected_sessions(dataset: DatasetFolder) -> set[str]:
    paths = [path for path in dataset.files if path.startswith("rejects/")]
    lines = (line for path in paths for line in dataset.read_bytes(path).splitlines())
    named = (json.loads(line).get("session") for line in lines)
    return {str(session) for session in named if session is not None}
