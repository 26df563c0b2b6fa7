"""Batches of sequences for the model, wherever the trials are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import LoaderConfig, SequenceConfig
from trainer.data.dataset_folder import DatasetFolder
from trainer.data.leakage import check_dataset, check_manifest, verified_index
from trainer.data.local_ranks import from_local_leader
from trainer.data.reading_progress import reading_progress
from trainer.data.resident_store import DeviceStore, MemoryStore, load_trials
from trainer.data.sequences import Division, Index, Mask, Sequences, build_sequences
from trainer.data.split_index import SplitIndex
from trainer.data.storage import DatasetError
from trainer.data.store_choice import choose_store
from trainer.data.stream_store import StreamStore
from trainer.data.trials import Trials
from trainer.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """What one rank sees in one step; shapes never change.

    Attributes
    ----------
    x : float16 tensor of shape (batch_size, n_trials, n_freqs, n_times)
        Normalised log power; 0 where the batch is padded.
    label : int64 tensor of shape (batch_size,)
        0 where it is padded.
    mask : bool tensor of shape (batch_size,)
        False where it is padded.
    index : int64 tensor of shape (batch_size,)
        Into the loader's `sequences`; -1 where it is padded.
    """

    x: Tensor
    label: Tensor
    mask: Tensor
    index: Tensor


@dataclass(frozen=True)
class SplitPlan:
    """What a loader is going to deliver, to be shown before the first step.

    Attributes
    ----------
    split, store : str
    n_trials, n_sequences : int
        Trials of the split, and sequences made of them.
    sequences_per_class : dict
        {class: sequences}, in label order.
    n_bytes : int
        What the trials take where they are kept; 0 for a stream.
    batch_size, steps_per_epoch : int
        Of each rank.
    shards : int
    shards_per_rank : tuple of int
        Shards that each rank reads: in the first epoch for a stream, else once before it.
    dropped : dict
        See `Sequences`.
    """

    split: str
    store: str
    n_trials: int
    n_sequences: int
    sequences_per_class: dict[str, int]
    n_bytes: int
    batch_size: int
    steps_per_epoch: int
    shards: int
    shards_per_rank: tuple[int, ...]
    dropped: dict[str, int]


class Store(Protocol):
    """Where the trials of a split are kept, and how batches come of them."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def n_bytes(self) -> int:
        """What it holds."""

    @property
    def shards_per_rank(self) -> tuple[int, ...]:
        """Shards that each rank reads."""

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Index, Mask, Tensor]]:
        """Yield index, mask and float16 (batch_size * n_trials, n_freqs, n_times) of each batch."""


class SequenceLoader:
    """The sequences of one split, in batches.

    Attributes
    ----------
    folder : DatasetFolder
    split : str
    index : SplitIndex
    sequences : Sequences
    batch_size : int
        Of this rank.
    steps_per_epoch : int
        The same for every rank and every store.
    """

    def __init__(
        self,
        folder: DatasetFolder,
        split: str,
        index: SplitIndex,
        sequences: Sequences,
        division: Division,
        device: torch.device,
        store: Store,
    ) -> None:
        self.folder, self.split, self.index, self.sequences = folder, split, index, sequences
        self.batch_size = division.batch_size
        self.steps_per_epoch = division.n_steps(len(sequences))
        self._device, self._store = device, store
        self._labels = index.trials.labels[sequences.session]
        self._batch_shape = (division.batch_size, sequences.rows.shape[1], *folder.shape)

    @property
    def trials(self) -> Trials:
        """The trials that `sequences` are made of."""
        return self.index.trials

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each sequence, int64 of shape (n_sequences,)."""
        return self._labels

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch.

        All ranks together deliver every sequence once, in as many steps each. What is delivered
        is a function of (seed, epoch) alone, for one number of ranks and, if streamed, of
        workers.

        Parameters
        ----------
        epoch : int
        start_step : int
            Batches to leave out: the rest are those of the unbroken epoch.

        Raises
        ------
        DatasetError
            If a shard that is streamed cannot be read any more.
        """
        for index, mask, x in self._store.batches(epoch, start_step):
            label = np.where(mask, self._labels[index], 0)
            small = (torch.from_numpy(array).to(self._device) for array in (label, mask, index))
            yield Batch(x.view(self._batch_shape), *small)

    def describe(self) -> SplitPlan:
        """Return what is going to be delivered."""
        counts = np.bincount(self._labels, minlength=len(self.folder.classes)).tolist()
        return SplitPlan(
            self.split,
            self._store.name,
            len(self.trials),
            len(self.sequences),
            dict(zip(self.folder.classes, counts, strict=True)),
            self._store.n_bytes,
            self.batch_size,
            self.steps_per_epoch,
            len(self.folder.splits[self.split].shards),
            self._store.shards_per_rank,
            self.sequences.dropped,
        )


def make_loader(
    folder: DatasetFolder,
    split: str,
    sequence: SequenceConfig,
    loader: LoaderConfig,
    *,
    batch_size: int,
    device: torch.device,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool,
    cache: Path | None = None,
) -> SequenceLoader:
    """Open one split; whether it shares anything with another one is `open_loaders`' to ask.

    Parameters
    ----------
    folder : DatasetFolder
    split : str
    sequence : SequenceConfig
    loader : LoaderConfig
    batch_size : int
        Of each rank.
    device : torch.device
        Where the batches are to be.
    seed : int
    rank, world_size : int
        Every rank must call this.
    shuffle : bool
        Another order in every epoch; else one order in all.
    cache : pathlib.Path, optional
        Folder that remembers which shards a stream has verified.

    Raises
    ------
    DatasetError
        If a shard is missing or damaged, the split is empty, or a class has no sequence in train.
    UsageError
        If no sequence fits into any session, or the store that was asked for has no room.
    """
    if not folder.splits[split].trials:
        raise DatasetError(f"{folder.url} has no trials in {split}")
    division = Division(batch_size, seed, rank, world_size, shuffle)
    n_shards = len(folder.splits[split].shards)
    chosen = choose_store(folder, (split,), loader, device)
    cut = partial(_cut, folder, split, sequence)
    store: Store
    if chosen == "stream":
        with _progress(f"Verifying {split}", folder, (split,), rank) as advance:
            index = from_local_leader(lambda: verified_index(folder, split, cache, advance))
        sequences = cut(index.trials)
        store = StreamStore(folder, split, index, sequences, division, device, loader.num_workers)
    else:
        place = device if chosen == "device" else torch.device("cpu")
        with _progress(f"Loading {split}", folder, (split,), rank) as advance:
            trials, index = load_trials(folder, split, place, advance)
        sequences = cut(index.trials)
        if chosen == "device":
            store = DeviceStore(trials, sequences, division, n_shards)
        else:
            store = MemoryStore(trials, sequences, division, n_shards, device)
    return SequenceLoader(folder, split, index, sequences, division, device, store)


def open_loaders(
    folder: DatasetFolder,
    sequence: SequenceConfig,
    loader: LoaderConfig,
    *,
    batch_size: int,
    device: torch.device,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    cache: Path | None = None,
) -> dict[str, SequenceLoader]:
    """Open train and, if there is any, val, once all three splits have passed the leakage gate.

    Train is shuffled. Each shard is read once, whatever the store; those of test leave nothing
    but digests.

    Parameters
    ----------
    folder, sequence, loader, batch_size, device, seed, rank, world_size, cache
        See `make_loader`.

    Returns
    -------
    dict of str to SequenceLoader

    Raises
    ------
    LeakageError
        If the splits share anything, or the normalisation saw more than train.
    DatasetError, UsageError
        As `make_loader`, and if a class is missing from train.
    """
    from_local_leader(lambda: check_manifest(folder))
    splits = [split for split in ("train", "val") if folder.splits[split].trials]
    store = choose_store(folder, splits, loader, device)
    loaders = {
        split: make_loader(
            folder,
            split,
            sequence,
            replace(loader, store=store),
            batch_size=batch_size,
            device=device,
            seed=seed,
            rank=rank,
            world_size=world_size,
            shuffle=split == "train",
            cache=cache,
        )
        for split in splits
    }
    known = {split: opened.index for split, opened in loaders.items()}
    with _progress("Verifying test", folder, ("test",), rank) as advance:
        from_local_leader(lambda: check_dataset(folder, known, cache, advance))
    return loaders


def _progress(
    name: str, folder: DatasetFolder, splits: Iterable[str], rank: int
) -> AbstractContextManager[Callable[[int], object]]:
    if rank:
        return nullcontext(lambda n_trials: None)
    return reading_progress(name, sum(folder.splits[split].trials for split in splits))


def _cut(folder: DatasetFolder, split: str, config: SequenceConfig, trials: Trials) -> Sequences:
    """Build the sequences of a split, and refuse one that has none to learn from."""
    sequences = build_sequences(trials, config.n_trials, config.resolved_stride, config.max_gap)
    longest = int(np.bincount(trials.session).max())
    if longest < config.n_trials:
        raise UsageError(
            f"--sequence.n_trials {config.n_trials} is longer than every session of {split}: the "
            f"longest has {longest} trials"
        )
    if not len(sequences):
        raise UsageError(
            f"every sequence of {config.n_trials} trials in {split} has more than "
            f"{config.max_gap} missing trials in a row: raise --sequence.max_gap"
        )
    there = np.unique(trials.labels[sequences.session])
    missing = [name for label, name in enumerate(folder.classes) if label not in there]
    if split == "train" and missing:
        raise DatasetError(
            f"{folder.url}: train has no sequence of {config.n_trials} trials of class "
            f"{', '.join(missing)}: lower --sequence.n_trials or raise --sequence.max_gap"
        )
    return sequences
