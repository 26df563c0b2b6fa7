"""All trials of a split in one tensor, filled by streaming each shard once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.dataset_folder import DatasetFolder
from trainer.data.local_ranks import from_local_leader, local_rank, local_world_size
from trainer.data.sequences import Division, Index, Mask, Sequences
from trainer.data.shard_reader import Block
from trainer.data.split_index import SplitIndex
from trainer.data.split_scan import scan_split
from trainer.data.staging import Staging
from trainer.data.storage import DatasetError


class DeviceStore:
    """Batches gathered on the device that the trials lie on; see `Store`.

    Parameters
    ----------
    trials : float16 tensor of shape (n_trials, n_freqs, n_times)
    sequences : Sequences
    division : Division
    n_shards : int
        That `trials` was read from.
    """

    name = "device"

    def __init__(
        self, trials: Tensor, sequences: Sequences, division: Division, n_shards: int
    ) -> None:
        self._trials, self._sequences, self._division = trials, sequences, division
        self.n_bytes = trials.nbytes
        self.shards_per_rank = (n_shards,) * division.world_size

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Index, Mask, Tensor]]:
        """Yield the batches of an epoch; see `Store`."""
        for index, mask, rows in _row_batches(self._sequences, self._division, epoch, start_step):
            n_padded = len(index) * self._sequences.rows.shape[1] - len(rows)
            # Always of one length, so that the device sees one shape.
            full = torch.from_numpy(np.pad(rows, (0, n_padded))).to(self._trials.device)
            x = self._trials.index_select(0, full)
            x[len(rows) :] = 0
            yield index, mask, x


class MemoryStore:
    """Batches gathered in memory, then brought onto the device; see `Store`.

    Parameters
    ----------
    trials : float16 tensor of shape (n_trials, n_freqs, n_times)
        In memory.
    sequences : Sequences
    division : Division
    n_shards : int
        That `trials` was read from.
    device : torch.device
    """

    name = "memory"

    def __init__(
        self,
        trials: Tensor,
        sequences: Sequences,
        division: Division,
        n_shards: int,
        device: torch.device,
    ) -> None:
        self._trials, self._sequences, self._division = trials.numpy(), sequences, division
        self.n_bytes = trials.nbytes
        self.shards_per_rank = (n_shards,) * division.world_size
        n_rows = division.batch_size * sequences.rows.shape[1]
        self._staging = Staging((n_rows, *trials.shape[1:]), device)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Index, Mask, Tensor]]:
        """Yield the batches of an epoch; see `Store`."""
        for index, mask, rows in _row_batches(self._sequences, self._division, epoch, start_step):
            yield index, mask, self._staging.build(partial(_gather, self._trials, rows))


def _row_batches(
    sequences: Sequences, division: Division, epoch: int, start_step: int
) -> Iterator[tuple[Index, Mask, Index]]:
    for index, mask in division.batches(len(sequences), epoch, start_step):
        yield index, mask, sequences.rows[index[mask]].ravel()


def _gather(trials: NDArray[np.float16], rows: Index, out: NDArray[np.float16]) -> None:
    # Any mode but "raise" writes to `out` without a buffer between.
    np.take(trials, rows, axis=0, out=out[: len(rows)], mode="clip")
    out[len(rows) :] = 0


def load_trials(
    folder: DatasetFolder,
    split: str,
    device: torch.device,
    advance: Callable[[int], object] = lambda n_trials: None,
) -> tuple[Tensor, SplitIndex]:
    """Read a split into memory or onto a device.

    Several processes of one machine share one copy in memory, which the first of them fills.

    Parameters
    ----------
    folder : DatasetFolder
    split : str
    device : torch.device
    advance : callable
        Called with the number of trials of each block that is read, in the process that reads.

    Returns
    -------
    trials : float16 tensor of shape (n_trials, n_freqs, n_times)
        Rows in the order of the index's trials.
    index : SplitIndex

    Raises
    ------
    DatasetError
        If a shard is missing or damaged, or there is no room.
    """
    shape = (folder.splits[split].trials, *folder.shape)
    if local_world_size() > 1:
        trials, index = _load_shared(folder, split, shape, advance)
        return trials.to(device), index
    if device.type == "cpu":
        # NumPy asks for huge pages: fewer faults while they are filled.
        trials = torch.from_numpy(np.empty(shape, np.float16))
    else:
        trials = torch.empty(shape, dtype=torch.float16, device=device)
    return trials, _fill(folder, split, trials, advance)


def _fill(
    folder: DatasetFolder, split: str, trials: Tensor, advance: Callable[[int], object]
) -> SplitIndex:
    def keep(first_row: int, block: Block) -> None:
        rows = trials[first_row : first_row + len(block.spectrogram)]
        if rows.device.type == "cpu":
            np.copyto(rows.numpy(), block.spectrogram)
        else:
            # A copy, because PyTorch takes no array that is only read.
            rows.copy_(torch.tensor(block.spectrogram))

    return scan_split(folder, split, keep, advance)


def _load_shared(
    folder: DatasetFolder,
    split: str,
    shape: tuple[int, int, int],
    advance: Callable[[int], object],
) -> tuple[Tensor, SplitIndex]:
    """Let the machine's first process fill a file that all of them map."""

    def work() -> tuple[str, SplitIndex]:
        path = _reserve(int(np.prod(shape)) * torch.float16.itemsize)
        try:
            return str(path), _fill(folder, split, _map(path, shape), advance)
        except BaseException:
            path.unlink()
            raise

    name, index = from_local_leader(work)
    trials = _map(Path(name), shape)
    dist.barrier()
    if local_rank() == 0:
        # The memory lives as long as it is mapped, and not a moment longer, however that ends.
        Path(name).unlink()
    return trials, index


def _map(path: Path, shape: tuple[int, int, int]) -> Tensor:
    size = int(np.prod(shape))
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.float16).view(shape)


def _reserve(n_bytes: int) -> Path:
    """Make a file of a size, in memory where there is room, else on disk."""
    memory, disk = Path("/dev/shm"), Path(tempfile.gettempdir())
    fits = memory.is_dir() and shutil.disk_usage(memory).free > n_bytes
    handle, name = tempfile.mkstemp(prefix="lfp-vit-", dir=memory if fits else disk)
    try:
        if n_bytes:
            # A hole in the file would end the process that writes to it when the space is gone.
            os.posix_fallocate(handle, 0, n_bytes)
    except OSError as error:
        Path(name).unlink()
        raise DatasetError(
            f"{n_bytes / 1e9:.1f} GB for the trials do not fit into {Path(name).parent} "
            f"({error.strerror}): choose --loader.store stream"
        ) from error
    finally:
        os.close(handle)
    return Path(name)
