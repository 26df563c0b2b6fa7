"""Processes of one machine that train together: one of them reads, the others take what it read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from trainer.errors import TrainerError

T = TypeVar("T")


def local_rank() -> int:
    """Return this process's number on its machine, as ``torchrun`` says."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Return how many processes train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def from_local_leader(work: Callable[[], T]) -> T:
    """Do work on each machine's first process only, and return its result in all of them.

    Parameters
    ----------
    work : callable
        Returns what pickle knows.

    Raises
    ------
    TrainerError
        In every process, if the work of any raised one: none is left waiting.
    """
    if not dist.is_initialized():
        return work()
    result: T | None = None
    failure: TrainerError | None = None
    if local_rank() == 0:
        try:
            result = work()
        except TrainerError as error:
            failure = error
    gathered = share((result, failure))
    for _, found in gathered:
        if found is not None:
            raise found
    # torchrun numbers the processes of a machine one after the other.
    value: T = gathered[dist.get_rank() - local_rank()][0]
    return value


def share(value: Any) -> list[Any]:
    """Return the values of all ranks, which must be such as pickle knows."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
