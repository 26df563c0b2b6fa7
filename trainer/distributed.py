"""One process or several: what ``torchrun`` says, and the few things processes tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import TrainerError, UsageError
from trainer.vertex.container import NEEDS_GPU

T = TypeVar("T")

#: The main process may read all checksums of a large dataset while the others wait.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Process:
    """One process among those that train together; alone, every method returns at once.

    Attributes
    ----------
    rank, world_size : int
    device : torch.device
        Of the model and the batches.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this one writes the run folder and talks to the user."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> None:
        """Add up a tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, which have one shape, stacked by rank."""
        if self.world_size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.world_size == 1:
            return flag
        # On the CPU: asking costs no wait for the GPU.
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)

    def broadcast(self, value: T) -> T:
        """Return the main process's value, which must be one that pickle knows."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


@contextmanager
def process_group() -> Iterator[Process]:
    """Join the processes that ``torchrun`` started, or stand alone where it did not.

    Raises
    ------
    UsageError
        If a machine has GPUs, but fewer than processes.
    TrainerError
        If a job on Vertex AI has none of the GPUs that it asked for.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"this machine has {torch.cuda.device_count()} GPUs, too few for every process: "
                "lower torchrun's --nproc_per_node"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    elif os.environ.get(NEEDS_GPU):
        raise TrainerError(
            "this job is paid for with a GPU, but PyTorch finds none: the image's PyTorch is made "
            f"for CUDA {torch.version.cuda}, which the machine's driver may be too old for"
        )
    if world_size == 1:
        yield Process(0, 1, device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    yield Process(rank, world_size, device)
    # Not where the body failed: the others may wait for this one for ever, until torchrun,
    # which sees it end, ends them.
    dist.destroy_process_group()
