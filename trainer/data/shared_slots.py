"""Memory that workers fill with batches and that is lent, without a copy, to who trains on them."""

from __future__ import annotations

import math
import mmap
import sys
import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Batches that may be in use at a time: in a loop, the last one is held while the next is made.
LENT = 2


class SharedSlots:
    """Slots of the size of a batch, each of which is to be filled, filled, lent, or free.

    The training process says, before a worker can begin with a batch, which slot that one goes
    to. A slot is free again when nothing refers to the tensor that was lent any more.

    Parameters
    ----------
    shape : tuple of int
        Of a slot, float16.
    ahead : int
        Batches that workers may be given before the first of them is taken.
    """

    def __init__(self, shape: tuple[int, ...], ahead: int) -> None:
        self.ahead = ahead
        self._memory = shared_zeros((ahead + 1 + LENT, *shape), torch.float16)
        self._assigned = shared_zeros((ahead + 1,), torch.int64)
        self._waiting: dict[int, int] = {}
        self._lent: dict[int, weakref.ref[NDArray[np.float16]]] = {}

    def begin(self) -> None:
        """Start a pass: nothing that was assigned before is waited for."""
        self._waiting.clear()
        for number in range(self.ahead):
            self.assign(number)

    def assign(self, number: int) -> None:
        """Choose the slot of a batch, counted from the start of the pass."""
        taken = {*self._waiting.values(), *self._in_use()}
        slot = next(slot for slot in range(len(self._memory)) if slot not in taken)
        self._waiting[number] = slot
        self._assigned[number % len(self._assigned)] = slot

    def buffer(self, number: int) -> memoryview:
        """Return, to a worker, the bytes of the slot that a batch goes to."""
        slot = int(self._assigned[number % len(self._assigned)])
        return self._memory[slot].numpy().data.cast("B")

    def take(self, number: int) -> NDArray[np.float16]:
        """Return a batch that was filled; it is lent as long as the array is referred to.

        Where too many are in use already, it is a copy.
        """
        slot = self._waiting.pop(number)
        array = self._memory[slot].numpy()
        if len(self._in_use()) == LENT:
            return array.copy()
        self._lent[slot] = weakref.ref(array)
        return array

    def _in_use(self) -> set[int]:
        self._lent = {slot: ref for slot, ref in self._lent.items() if ref() is not None}
        return set(self._lent)


def shared_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return memory that processes begun later share with this one."""
    if sys.platform != "linux":
        return torch.zeros(shape, dtype=dtype).share_memory_()
    # Handed on by fork. Not in /dev/shm, of which a container has 64 MB.
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
