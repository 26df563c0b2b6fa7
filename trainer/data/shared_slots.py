"""Memory that workers fill with batches and that is lent, without a copy, to who trains on them."""

from __future__ import annotations

import math
import mmap
import sys
import weakref
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Batches that may be in use at a time: in a loop, the last one is held while the next is made.
LENT = 2

FREE, FILLED, IN_USE = 0, 1, 2


class SharedSlots:
    """Slots of the size of a batch, each of which is free, filled, or lent.

    Every worker has slots of its own and fills the first that is free. So few of them go round
    that they stay in the processor's cache; memory that was never needed is never allocated. A
    slot is free again when nothing refers to the array that was lent any more.

    Parameters
    ----------
    shape : tuple of int
        Of a slot, float16.
    n_workers : int
        Processes that fill slots.
    ahead : int
        Batches that each of them may be asked for before the first one is taken.
    """

    def __init__(self, shape: tuple[int, ...], n_workers: int, ahead: int) -> None:
        self._per_worker = ahead + 1 + LENT
        n_slots = n_workers * self._per_worker
        self._memory = shared_zeros((n_slots, *shape), torch.float16)
        self._state = shared_zeros((n_slots,), torch.uint8)
        self._lent: dict[int, weakref.ref[NDArray[np.float16]]] = {}

    def drop_filled(self, worker: int) -> None:
        """Give up, as the worker, what it filled and nobody took: a new pass begins."""
        own = self._own(worker)
        own[own == FILLED] = FREE

    def fill_next(self, worker: int) -> tuple[int, memoryview]:
        """Return, to the worker, a slot to be filled, and its bytes."""
        own = self._own(worker)
        place = int(np.flatnonzero(own == FREE)[0])
        own[place] = FILLED
        slot = worker * self._per_worker + place
        return slot, self._memory[slot].numpy().data.cast("B")

    def take(self, slot: int) -> NDArray[np.float16]:
        """Return a batch that was filled; it is lent as long as the array is referred to.

        Where too many are in use already, it is a copy.
        """
        array = self._memory[slot].numpy()
        if len(self._lent) == LENT:
            copy = array.copy()
            self._state[slot] = FREE
            return copy
        self._state[slot] = IN_USE
        self._lent[slot] = weakref.ref(array, partial(self._give_back, slot))
        return array

    def _give_back(self, slot: int, _: object) -> None:
        del self._lent[slot]
        self._state[slot] = FREE

    def _own(self, worker: int) -> NDArray[np.uint8]:
        return self._state.numpy()[worker * self._per_worker :][: self._per_worker]


def shared_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return memory that processes begun later share with this one."""
    if sys.platform != "linux":
        return torch.zeros(shape, dtype=dtype).share_memory_()
    # Handed on by fork. Not in /dev/shm, of which a container has 64 MB.
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
