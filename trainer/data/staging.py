"""Where batches that come from memory are built, and how they get onto the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: While the GPU copies one, the next is filled.
PINNED_BUFFERS = 2


class Staging:
    """Makes batches on a device out of what a function writes into an array.

    For a GPU the arrays are page-locked and used in turn, so that the copy runs while the next
    batch is being built; for the CPU each batch has an array of its own.

    Parameters
    ----------
    shape : tuple of int
        Of a batch, float16.
    device : torch.device
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._shape, self._device = shape, device
        self._turn = 0
        self._buffers: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        if device.type == "cuda":
            for _ in range(PINNED_BUFFERS):
                self._buffers.append(torch.empty(shape, dtype=torch.float16, pin_memory=True))
                self._copied.append(torch.cuda.Event())  # type: ignore[no-untyped-call]

    def build(self, fill: Callable[[NDArray[np.float16]], object]) -> Tensor:
        """Return a new float16 tensor on the device with what `fill` wrote."""
        if not self._buffers:
            array = np.empty(self._shape, np.float16)
            fill(array)
            return torch.from_numpy(array).to(self._device)
        turn = self._turn = (self._turn + 1) % PINNED_BUFFERS
        buffer, copied = self._buffers[turn], self._copied[turn]
        copied.synchronize()
        fill(buffer.numpy())
        batch = buffer.to(self._device, non_blocking=True)
        copied.record(torch.cuda.current_stream(self._device))
        return batch
