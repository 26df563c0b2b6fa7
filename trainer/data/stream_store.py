"""Trials read anew from the shards in every epoch, by worker processes, into shared memory."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import weakref
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainer.data.dataset_folder import DatasetFolder
from trainer.data.range_reader import open_reader
from trainer.data.sequences import Division, Index, Mask, Sequences
from trainer.data.shared_slots import SharedSlots, shared_zeros
from trainer.data.split_index import SplitIndex
from trainer.data.staging import Staging
from trainer.data.storage import DatasetError
from trainer.data.stream_plan import StreamPlan
from trainer.data.stream_worker import deliver
from trainer.errors import TrainerError

#: Trials among which sequences are shuffled. Shards mix sessions already: blocks stand in them by
#: the hash of their key.
SHUFFLE_TRIALS = 2048
#: How long workers live on when they are told to stop: the training process saves meanwhile.
GRACE_SECONDS = 60
#: Batches of each worker that are read before they are asked for.
PREFETCH = 2
HELD_BACK = {signal.SIGINT, signal.SIGTERM}


class StreamStore:
    """Batches of one rank, read by `DataLoader` workers as `StreamPlan` says.

    Only the number of a filled slot goes through the `DataLoader`; the trials lie in memory that
    the workers share with this process.

    Parameters
    ----------
    folder : DatasetFolder
    split : str
    index : SplitIndex
    sequences : Sequences
    division : Division
    device : torch.device
    num_workers : int
        0 reads in this process.
    """

    name = "stream"
    n_bytes = 0

    def __init__(
        self,
        folder: DatasetFolder,
        split: str,
        index: SplitIndex,
        sequences: Sequences,
        division: Division,
        device: torch.device,
        num_workers: int,
    ) -> None:
        shuffle_blocks = max(1, SHUFFLE_TRIALS // folder.block_trials)
        plan = StreamPlan(index, sequences, division, shuffle_blocks, max(1, num_workers))
        self._plan, self._passes, self._device = plan, 0, device
        self._n_trials = sequences.rows.shape[1]
        shape = (division.batch_size * self._n_trials, *folder.shape)
        self._slots = SharedSlots(shape, plan.n_workers, PREFETCH if num_workers else 0)
        deliveries = _Deliveries(folder, split, plan, self._slots)
        self._source = _Source(deliveries, num_workers)
        self._staging = Staging(shape, device)
        # Neither by the garbage collector, which may take the queues before the workers, nor after
        # multiprocessing has asked all processes to stop, which ours survive for a while.
        atexit.register(weakref.finalize(self, self._source.close))

    @property
    def shards_per_rank(self) -> tuple[int, ...]:
        """Shards that each rank reads in the first epoch."""
        return self._plan.shards_per_rank(0)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Index, Mask, Tensor]]:
        """Yield the batches of an epoch; see `Store`. Only the pass begun last can go on.

        Raises
        ------
        DatasetError
            If a shard cannot be read or ends early.
        TrainerError
            If a worker was ended from outside.
        """
        self._passes += 1
        own = self._passes
        self._source.begin(epoch, start_step)
        for index, mask in self._plan.batches(epoch, start_step):
            if own != self._passes:
                raise RuntimeError("another pass over this stream was begun")
            trials = self._slots.take(self._source.next_slot())
            trials[np.count_nonzero(mask) * self._n_trials :] = 0
            if self._device.type == "cpu":
                yield index, mask, torch.from_numpy(trials)
            else:
                yield index, mask, self._staging.build(partial(np.copyto, src=trials))
            del trials


class _Deliveries(IterableDataset[int | str]):
    """What a worker does: fill slots, and say so, or why it cannot."""

    def __init__(
        self, folder: DatasetFolder, split: str, plan: StreamPlan, slots: SharedSlots
    ) -> None:
        self._storage, self._trial_bytes = folder.storage, folder.trial_bytes
        self._paths = [shard.path for shard in folder.splits[split].shards]
        self._plan, self._slots = plan, slots
        #: Epoch and first step; the workers live longer than an epoch.
        self.position = shared_zeros((2,), torch.int64)
        #: Whether the workers are not needed any more.
        self.ending = shared_zeros((1,), torch.bool)

    def __iter__(self) -> Iterator[int | str]:
        info = get_worker_info()
        process = 0 if info is None else info.id
        epoch, start_step = self.position.tolist()
        n_workers, steps = self._plan.n_workers, self._plan.steps_per_epoch
        # DataLoader takes the first batch from process 0, whichever that one is.
        worker = (process + start_step) % n_workers
        numbers = range(*(len(range(worker, step, n_workers)) for step in (start_step, steps)))
        self._slots.drop_filled(process)
        fill_next = partial(self._slots.fill_next, process)
        own = self._plan.workers(epoch)[worker]
        reader = open_reader(self._storage, self._paths, self._plan.index, self._trial_bytes)
        with contextlib.closing(reader):
            try:
                yield from deliver(reader, self._plan, own, numbers, self._trial_bytes, fill_next)
            # As text: an exception would come out of the DataLoader with a traceback in it.
            except DatasetError as error:
                yield str(error)


class _Source:
    """Whoever fills the slots: workers, or this process where there are none."""

    def __init__(self, deliveries: _Deliveries, num_workers: int) -> None:
        self._deliveries, self._num_workers = deliveries, num_workers
        self._loader: DataLoader[int | str] | None = None
        self._filled: Iterator[int | str] = iter(())

    def begin(self, epoch: int, start_step: int) -> None:
        """Start a pass; the workers of the last one go on."""
        self._deliveries.position[:] = torch.tensor([epoch, start_step])
        if self._num_workers and self._loader is None:
            self._deliveries.ending[0] = False
            self._loader = DataLoader(
                self._deliveries,
                batch_size=None,
                num_workers=self._num_workers,
                prefetch_factor=PREFETCH,
                persistent_workers=True,
                worker_init_fn=partial(_outlive_signals, self._deliveries.ending),
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                # Else it would take from torch's own generator, and a run that resumes in the
                # middle of an epoch would go on with other random numbers.
                generator=torch.Generator(),
            )
        with _held_back_signals():
            self._filled = iter(self._deliveries if self._loader is None else self._loader)

    def next_slot(self) -> int:
        """Return the next slot when it is filled; where that fails, the workers are ended."""
        lost = ""
        try:
            filled = next(self._filled)
        # What DataLoader raises where a worker is gone. What is raised for it must not refer to
        # it: the workers end with the last reference to their iterator.
        except RuntimeError as error:
            filled, lost = "", str(error).partition("\n")[0]
        if isinstance(filled, int):
            return filled
        self.close()
        if lost:
            raise TrainerError(f"a process that reads shards is gone (out of memory?): {lost}")
        raise DatasetError(filled)

    def close(self) -> None:
        """End the workers."""
        self._deliveries.ending[0] = True
        self._filled, self._loader = iter(()), None


@contextlib.contextmanager
def _held_back_signals() -> Iterator[None]:
    """Let a signal that comes while workers start wait, in them until `_outlive_signals`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlive_signals(ending: Tensor, worker: int) -> None:
    """Leave it to the training process what to do when all processes are told to stop."""

    def on_terminate(*_: object) -> None:
        if ending.item():
            os._exit(0)
        signal.alarm(GRACE_SECONDS)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_terminate)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
