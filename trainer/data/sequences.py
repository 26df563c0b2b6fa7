"""Sequences of consecutive trials, their order in an epoch, and their division over ranks.

Everything here is a pure function of its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.trials import Trials

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Sequences:
    """The sequences of a split.

    Attributes
    ----------
    rows : int64 array of shape (n_sequences, n_trials)
        Rows of `Trials`, consecutive; ordered by (session, first trial).
    session : int32 array of shape (n_sequences,)
        Index into the sessions of `Trials`.
    dropped : dict of str to int
        Trials that are in no sequence: because their session is shorter than one
        (``trials_short_session``), because they lie between two gaps, or a gap and an end of the
        session, that leave no room for one (``trials_gap``), or because no window reaches them, at
        the end of a run or between windows (``trials_tail``).
    """

    rows: Index
    session: NDArray[np.int32]
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.rows)


def build_sequences(trials: Trials, n_trials: int, stride: int, max_gap: int = 0) -> Sequences:
    """Cut every session into windows of trials that are consecutive in ``trial_num``.

    A gap ends a run of trials, and windows start anew after it: one at every `stride`-th trial of
    a run, as long as the run has room for it.

    Parameters
    ----------
    trials : Trials
    n_trials, stride : int
        Length of a window, and trials from one start to the next.
    max_gap : int
        Trial numbers that may be missing between two neighbours of a window.
    """
    edges = consecutive_runs(trials, max_gap)
    size = np.diff(edges)
    # First trial of each run's windows: 0, stride, 2 * stride, ...
    n_windows = np.maximum(0, (size - n_trials) // stride + 1)
    number = np.arange(n_windows.sum()) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    starts = np.repeat(edges[:-1], n_windows) + stride * number
    rows = starts[:, None] + np.arange(n_trials)

    used = np.zeros(len(trials), bool)
    used[rows.ravel()] = True
    in_short_run = np.repeat(size < n_trials, size)
    in_short_session = np.bincount(trials.session)[trials.session] < n_trials
    dropped = {
        "trials_short_session": int(np.count_nonzero(in_short_session)),
        "trials_gap": int(np.count_nonzero(in_short_run & ~in_short_session)),
        "trials_tail": int(np.count_nonzero(~used & ~in_short_run)),
    }
    return Sequences(rows, trials.session[starts], dropped)


def consecutive_runs(trials: Trials, max_gap: int) -> Index:
    """Return the first row of each run of trials without a larger gap, and the number of rows.

    Parameters
    ----------
    trials : Trials
    max_gap : int
        Trial numbers that may be missing between two neighbours of a run.

    Returns
    -------
    int64 array of shape (n_runs + 1,)
        A run never crosses sessions.
    """
    begins = np.ones(len(trials), bool)
    begins[1:] = (np.diff(trials.trial_num) > 1 + max_gap) | (np.diff(trials.session) != 0)
    return np.append(np.flatnonzero(begins), len(trials))


@dataclass(frozen=True)
class Division:
    """How sequences are divided into batches and over ranks.

    Attributes
    ----------
    batch_size : int
        Of one rank.
    seed : int
    rank, world_size : int
    shuffle : bool
        Another order in every epoch; else one order in all.
    """

    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    shuffle: bool = True

    def n_steps(self, n_sequences: int) -> int:
        """Return the batches of an epoch, the same for every rank."""
        return -(-n_sequences // (self.batch_size * self.world_size))

    def batches(
        self, n_sequences: int, epoch: int, start_step: int = 0
    ) -> Iterator[tuple[Index, Mask]]:
        """Yield this rank's batches of an epoch; see `rank_batches`."""
        order = np.arange(n_sequences)
        if self.shuffle:
            order = epoch_order(n_sequences, self.seed, epoch)
        return rank_batches(order, self.batch_size, self.rank, self.world_size, start_step)


def epoch_order(n: int, seed: int, epoch: int) -> Index:
    """Return the order of an epoch, a permutation of ``range(n)``."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def rank_batches(
    order: Index, batch_size: int, rank: int, world_size: int, start_step: int = 0
) -> Iterator[tuple[Index, Mask]]:
    """Yield one rank's batches of an epoch.

    Step s takes the next ``batch_size * world_size`` sequences of the order, whatever the number
    of ranks, and deals them out to the ranks in turn. So every rank takes the same number of
    steps, and all of them together see each sequence once.

    Parameters
    ----------
    order : int64 array of shape (n_sequences,)
    batch_size : int
        Of one rank.
    rank, world_size : int
    start_step : int
        Steps to leave out, to resume an epoch.

    Yields
    ------
    index : int64 array of shape (batch_size,)
        Sequences; -1 where the last batch is padded.
    mask : bool array of shape (batch_size,)
        False where it is padded.
    """
    size = batch_size * world_size
    for step in range(start_step, -(-len(order) // size)):
        yield padded(order[step * size : (step + 1) * size][rank::world_size], batch_size)


def padded(index: Index, batch_size: int) -> tuple[Index, Mask]:
    """Return a batch of full size, -1 where there is no sequence, and the mask of those there."""
    mask = np.arange(batch_size) < len(index)
    full = np.full(batch_size, -1, np.int64)
    full[mask] = index
    return full, mask
