"""The trials of a split and the bytes of the shards that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.trials import Trials


@dataclass(frozen=True)
class SplitIndex:
    """What one pass over a split's shards leaves behind.

    Attributes
    ----------
    trials : Trials
    first_row : int64 array of shape (n_blocks + 1,)
        Row of each block's first trial, and the number of rows. Rows of a block are contiguous
        in its shard.
    shard : int32 array of shape (n_blocks,)
        Index into the split's shards.
    offset : int64 array of shape (n_blocks,)
        Byte of the shard at which the block's first spectrogram begins.
    spectrogram_digest, baseline_digest : uint8 arrays of shape (n_trials, 16)
        BLAKE2b of each trial's values; zeros where they tell no trial from another.
    """

    trials: Trials
    first_row: NDArray[np.int64]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    spectrogram_digest: NDArray[np.uint8]
    baseline_digest: NDArray[np.uint8]

    def block_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the block that holds each row."""
        return np.searchsorted(self.first_row, rows, side="right") - 1


@dataclass(frozen=True)
class ByteRuns:
    """Trials that lie one after the other in a shard; one entry a run.

    Attributes
    ----------
    at : int64 array of shape (n_runs,)
        Which of the trials that were asked for is the run's first.
    shard : int32 array of shape (n_runs,)
    start, size : int64 arrays of shape (n_runs,)
        First byte in the shard, and number of bytes.
    """

    at: NDArray[np.int64]
    shard: NDArray[np.int32]
    start: NDArray[np.int64]
    size: NDArray[np.int64]


def byte_runs(
    index: SplitIndex, rows: NDArray[np.int64], group: NDArray[np.int64], trial_bytes: int
) -> ByteRuns:
    """Return where the spectrograms of trials lie; a run ends with its block and with its group.

    Parameters
    ----------
    index : SplitIndex
    rows : int64 array of shape (n_rows,)
        Consecutive inside a group.
    group : int64 array of shape (n_rows,)
        Of each row; another one than before where a group begins.
    trial_bytes : int
        Size of a spectrogram.
    """
    block = index.block_of(rows)
    begins = np.ones(len(rows) + 1, bool)
    begins[1:-1] = (block[1:] != block[:-1]) | (group[1:] != group[:-1])
    edges = np.flatnonzero(begins)
    at, size = edges[:-1], np.diff(edges) * trial_bytes
    block = block[at]
    start = index.offset[block] + (rows[at] - index.first_row[block]) * trial_bytes
    return ByteRuns(at, index.shard[block], start, size)
