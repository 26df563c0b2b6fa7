"""Which process reads what, and in which order, when every epoch is read from the shards.

Everything here is a pure function of its arguments, so that the training process and its workers
agree without a word, and a resumed epoch goes on with the batches of the unbroken one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.data.sequences import Division, Index, Mask, Sequences, epoch_order, padded
from trainer.data.split_index import SplitIndex


@dataclass(frozen=True)
class WorkerPlan:
    """What one worker delivers in an epoch.

    Attributes
    ----------
    order : int64 array of shape (n_sequences,)
        Sequences as they are delivered.
    place : int64 array of shape (n_sequences,)
        Place of the block in which each one begins, in the worker's order of reading; a sequence
        is delivered before the worker has gone far beyond that.
    """

    order: Index
    place: Index

    def batch(self, number: int, batch_size: int) -> slice:
        """Return where the worker's batch of that number stands in the arrays."""
        return slice(number * batch_size, (number + 1) * batch_size)


@dataclass(frozen=True)
class StreamPlan:
    """How a split is streamed to one rank.

    Attributes
    ----------
    index : SplitIndex
    sequences : Sequences
    division : Division
    shuffle_blocks : int
        Blocks among which sequences are shuffled, if they are.
    n_workers : int
        Of each rank.
    """

    index: SplitIndex
    sequences: Sequences
    division: Division
    shuffle_blocks: int
    n_workers: int

    @property
    def batch_size(self) -> int:
        """Sequences of a batch."""
        return self.division.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same for every rank."""
        return self.division.n_steps(len(self.sequences))

    def reading_order(self, epoch: int) -> Index:
        """Return all sequences by the shard and the byte at which they begin.

        The order of the shards is another in every epoch if there is shuffling.
        """
        index = self.index
        n_shards = int(index.shard.max()) + 1
        shards = np.arange(n_shards)
        if self.division.shuffle:
            shards = np.argsort(epoch_order(n_shards, self.division.seed, epoch))
        blocks = np.argsort(np.lexsort((index.offset, shards[index.shard])))
        return np.argsort(blocks[self.first_blocks()], kind="stable")

    def first_blocks(self) -> Index:
        """Return the block in which each sequence begins, int64 of shape (n_sequences,)."""
        return self.index.block_of(self.sequences.rows[:, 0])

    def rank_part(self, epoch: int, rank: int) -> Index:
        """Return the sequences of a rank: a run of the reading order.

        Ranks have equally many, give or take one, so that they take the same number of steps.
        """
        n, n_ranks = len(self.sequences), self.division.world_size
        return self.reading_order(epoch)[n * rank // n_ranks : n * (rank + 1) // n_ranks]

    def shards_per_rank(self, epoch: int) -> tuple[int, ...]:
        """Return from how many shards each rank reads sequences' beginnings in an epoch."""
        shard = self.index.shard[self.first_blocks()]
        ranks = range(self.division.world_size)
        return tuple(len(np.unique(shard[self.rank_part(epoch, rank)])) for rank in ranks)

    def workers(self, epoch: int) -> list[WorkerPlan]:
        """Return the plan of each worker: batch b of the rank is the next one of worker b mod n.

        Each takes a run of the rank's sequences that fills its batches; only the last batch of
        the rank is short, or empty where another rank has one sequence more.
        """
        part, steps = self.rank_part(epoch, self.division.rank), self.steps_per_epoch
        sizes = [len(range(w, steps, self.n_workers)) for w in range(self.n_workers)]
        counts = np.array(sizes) * self.batch_size
        counts[(steps - 1) % self.n_workers] -= steps * self.batch_size - len(part)
        runs = np.split(part, np.cumsum(counts)[:-1])
        return [self._shuffled(run, epoch, worker) for worker, run in enumerate(runs)]

    def _shuffled(self, run: Index, epoch: int, worker: int) -> WorkerPlan:
        new_block = np.diff(self.first_blocks()[run], prepend=-1) != 0
        place = np.cumsum(new_block) - 1
        if not self.division.shuffle:
            return WorkerPlan(run, place)
        # Each sequence comes up at a random time while its block is among the last ones read.
        rng = np.random.default_rng([self.division.seed, epoch, self.division.rank, worker])
        due = np.argsort(place + self.shuffle_blocks * rng.random(len(run)), kind="stable")
        return WorkerPlan(run[due], place[due])

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Index, Mask]]:
        """Yield the rank's batches of an epoch, as `rank_batches` does."""
        workers = self.workers(epoch)
        for step in range(start_step, self.steps_per_epoch):
            number, worker = divmod(step, self.n_workers)
            plan = workers[worker]
            yield padded(plan.order[plan.batch(number, self.batch_size)], self.batch_size)
