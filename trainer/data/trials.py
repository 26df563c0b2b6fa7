"""The trials of a split, ordered by session and trial number, and the blocks they come in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset_folder import SESSIONS, DatasetFolder
from trainer.data.storage import DatasetError


@dataclass(frozen=True)
class Trials:
    """One row a trial, ordered by (session, trial_num).

    Attributes
    ----------
    sessions : tuple of str
        Sorted.
    subjects : tuple of (str or None)
        Animal of each session.
    labels : int64 array of shape (n_sessions,)
        Class of each session.
    session : int32 array of shape (n_trials,)
        Index into `sessions`.
    trial_num : int64 array of shape (n_trials,)
    """

    sessions: tuple[str, ...]
    subjects: tuple[str | None, ...]
    labels: NDArray[np.int64]
    session: NDArray[np.int32]
    trial_num: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.trial_num)


@dataclass(frozen=True)
class BlockLayout:
    """Which rows each block of a split fills, known before a shard is read.

    Blocks are ordered by (session, number), so that their rows follow one another.

    Attributes
    ----------
    sessions : tuple of str
        Sorted.
    subjects : tuple of (str or None)
        Animal of each session.
    labels : int64 array of shape (n_sessions,)
        Class of each session.
    session : int32 array of shape (n_blocks,)
        Index into `sessions`.
    first_row : int64 array of shape (n_blocks + 1,)
        Row of each block's first trial, and the number of rows.
    blocks : dict
        {(session, block number): index of the block}.
    """

    sessions: tuple[str, ...]
    subjects: tuple[str | None, ...]
    labels: NDArray[np.int64]
    session: NDArray[np.int32]
    first_row: NDArray[np.int64]
    blocks: dict[tuple[str, int], int]

    @property
    def n_trials(self) -> int:
        """Trials of all blocks."""
        return int(self.first_row[-1])

    def with_trial_nums(self, trial_num: NDArray[np.int64]) -> Trials:
        """Return the trials, once their numbers are known.

        Parameters
        ----------
        trial_num : int64 array of shape (n_trials,)
        """
        session = np.repeat(self.session, np.diff(self.first_row))
        return Trials(self.sessions, self.subjects, self.labels, session, trial_num)


def block_layout(folder: DatasetFolder, split: str) -> BlockLayout:
    """Read the layout of a split from ``sessions.parquet``.

    Raises
    ------
    DatasetError
        If that table and the manifest contradict each other.
    """
    rows = [row for row in folder.read_sessions().to_pylist() if row["split"] == split]
    rows.sort(key=lambda row: row["session"])
    stated = folder.splits[split]
    sizes = [n for row in rows for n in row["block_trials"]]
    sessions = tuple(row["session"] for row in rows)
    unknown = {row["condition"] for row in rows} - set(folder.classes)
    if sessions != stated.sessions or sum(sizes) != stated.trials or unknown:
        raise DatasetError(
            f"{folder.storage.name(SESSIONS)} does not fit the manifest: {len(rows)} {split} "
            f"sessions with {sum(sizes):,} trials and unknown classes {sorted(unknown)}; the "
            f"manifest says {len(stated.sessions)} with {stated.trials:,}"
        )
    names = [(row["session"], number) for row in rows for number in row["blocks"]]
    return BlockLayout(
        sessions,
        tuple(row["subject"] for row in rows),
        np.array([folder.classes.index(row["condition"]) for row in rows], np.int64),
        np.repeat(np.arange(len(rows), dtype=np.int32), [len(row["blocks"]) for row in rows]),
        np.cumsum([0, *sizes], dtype=np.int64),
        {name: index for index, name in enumerate(names)},
    )
