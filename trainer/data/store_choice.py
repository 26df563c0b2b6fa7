"""Where the trials are kept: on the GPU, in memory, or in the shards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import psutil
import torch

from trainer.config import LoaderConfig
from trainer.data.dataset_folder import DatasetFolder
from trainer.data.local_ranks import share
from trainer.errors import TrainerError, UsageError

#: Of free memory: the rest is for the model, its gradients and activations.
DEVICE_SHARE = 0.5
#: Of available memory: the rest is for the processes themselves.
MEMORY_SHARE = 0.8
StoreName = Literal["device", "memory", "stream"]
#: Which store gives the same batches: device and memory do.
Order = Literal["resident", "stream"]
#: From the one that needs least to the one that needs most.
STORES: tuple[StoreName, ...] = ("stream", "memory", "device")
GB = 10**9


def choose_store(
    folder: DatasetFolder,
    splits: Iterable[str],
    config: LoaderConfig,
    device: torch.device,
    order: Order | None = None,
) -> StoreName:
    """Return where the trials of some splits are kept, the same for all ranks.

    Parameters
    ----------
    folder : DatasetFolder
    splits : iterable of str
        Those that are kept at the same time.
    config : LoaderConfig
    device : torch.device
        Of the batches.
    order : {"resident", "stream"}, optional
        What auto has to be.

    Raises
    ------
    UsageError
        If the store that the user chose is too small.
    TrainerError
        If auto has to be a store that is too small.
    """
    n_bytes = sum(folder.splits[split].trials for split in splits) * folder.trial_bytes
    memory = memory_budget(config.memory_gb)
    on_gpu = device.type == "cuda"
    room = int(DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]) if on_gpu else None
    choice: StoreName | TrainerError
    try:
        choice = store_that_fits(config.store, n_bytes, memory, room, order)
    except TrainerError as error:
        choice = error
    # Machines may differ; what one of them cannot do, none does.
    found = share(choice)
    for failure in found:
        if isinstance(failure, TrainerError):
            raise failure
    return STORES[min(map(STORES.index, found))]


def store_that_fits(
    wanted: Literal["auto"] | StoreName,
    n_bytes: int,
    memory: int,
    device: int | None,
    order: Order | None = None,
) -> StoreName:
    """Return the fastest store that has room, or the one that is wanted.

    Parameters
    ----------
    wanted : {"auto", "device", "memory", "stream"}
    n_bytes : int
        Of the trials.
    memory : int
        Bytes that they may take in memory.
    device : int or None
        Bytes that they may take on the GPU; None where there is none, and the device's memory is
        that of the machine.
    order : {"resident", "stream"}, optional
        What auto has to be.

    Raises
    ------
    UsageError
        If the wanted one has no room.
    TrainerError
        If auto has to be one that has no room.
    """
    room = {"stream": n_bytes, "memory": memory, "device": memory if device is None else device}
    if wanted == "auto":
        # Without a GPU, `device` is `memory` by another name.
        tried = STORES if device is not None else STORES[:2]
        allowed = {None: STORES, "resident": STORES[1:], "stream": STORES[:1]}[order]
        for store in reversed(tried):
            if store in allowed and n_bytes <= room[store]:
                return store
        raise TrainerError(
            f"the run began with its trials in memory and can only go on so: they take "
            f"{n_bytes / GB:.3g} GB, and there is room for {memory / GB:.3g} GB; free some memory, "
            "or allow more with --loader.memory_gb"
        )
    if n_bytes > room[wanted]:
        raise UsageError(
            f"the trials take {n_bytes / GB:.1f} GB; --loader.store {wanted} has room for "
            f"{room[wanted] / GB:.1f} GB: choose auto or stream"
        )
    return wanted


def memory_budget(memory_gb: float | None) -> int:
    """Return how many bytes trials may take in memory.

    Parameters
    ----------
    memory_gb : float or None
        What the user allows; most of what is available if None.
    """
    if memory_gb is not None:
        return int(memory_gb * GB)
    available = min(psutil.virtual_memory().available, container_available())
    return int(MEMORY_SHARE * available)


def container_available(control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return what a container's limit leaves; the machine's memory says nothing about that."""
    try:
        limit = (control_group / "memory.max").read_text().strip()
        used = int((control_group / "memory.current").read_text())
        stat = dict(
            line.split() for line in (control_group / "memory.stat").read_text().splitlines()
        )
    except (OSError, ValueError):
        return psutil.virtual_memory().total
    if limit == "max":
        return psutil.virtual_memory().total
    # Files that the kernel keeps only as long as nobody needs the memory.
    return int(limit) - used + int(stat.get("inactive_file", 0))
