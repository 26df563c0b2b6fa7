"""Batches of sequences for the model, wherever the trials are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from trainer.data.dataset_folder import SPLITS, DatasetFolder
from trainer.data.leakage import check_manifest, check_splits, verified_index
from trainer.data.local_ranks import from_local_leader
from trainer.data.reading_progress import reading_progress
from trainer.data.resident_store import DeviceStore, MemoryStore, load_trials
from trainer.data.sequences import Division, Index, Mask, Sequences
from trainer.data.shard_cache import cache_shards
from trainer.data.split_index import SplitIndex
from trainer.data.split_plan import SplitPlan, cut_sequences, plan_split
from trainer.data.storage import DatasetError
from trainer.data.store_choice import Order, choose_store
from trainer.data.stream_store import StreamStore
from trainer.data.trials import Trials


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
        config: SequenceConfig,
        index: SplitIndex,
        sequences: Sequences,
        division: Division,
        device: torch.device,
        store: Store,
    ) -> None:
        self.folder, self.split, self.index, self.sequences = folder, split, index, sequences
        self._config = config
        self.batch_size = division.batch_size
        self.steps_per_epoch = division.n_steps(len(sequences))
        self._division, self._device, self._store = division, device, store
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
        plan = plan_split(
            self.folder, self.split, self._config, self.trials, self.sequences, self._division
        )
        store = self._store
        return replace(
            plan, store=store.name, n_bytes=store.n_bytes, shards_per_rank=store.shards_per_rank
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
        If a shard is missing or damaged, the split is empty, or a class has no sequence in train,
        or none in a split that has trials of it.
    UsageError
        If no sequence fits into any session, or the store that was asked for has no room.
    """
    if not folder.splits[split].trials:
        raise DatasetError(f"{folder.url} has no trials in {split}")
    folder = _cached(folder, (split,), loader, rank)
    division = Division(batch_size, seed, rank, world_size, shuffle)
    n_shards = len(folder.splits[split].shards)
    chosen = choose_store(folder, (split,), loader, device)
    cut = partial(cut_sequences, folder, split, sequence)
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
    return SequenceLoader(folder, split, sequence, index, sequences, division, device, store)


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
    order: Order | None = None,
) -> tuple[dict[str, SequenceLoader], dict[str, SplitPlan]]:
    """Open train and, if there is any, val, once all three splits have passed the leakage gate.

    Train is shuffled. Each shard is read once, whatever the store; those of test leave nothing
    but digests and trial numbers, which say whether test will do for the evaluation.

    Parameters
    ----------
    folder, sequence, loader, batch_size, device, seed, rank, world_size, cache
        See `make_loader`.
    order : {"resident", "stream"}, optional
        What store auto has to be, as where a run goes on that had begun with it.

    Returns
    -------
    loaders : dict of str to SequenceLoader
    plans : dict of str to SplitPlan
        Of every split that holds trials, test among them.

    Raises
    ------
    LeakageError
        If the splits share anything, or the normalisation saw more than train.
    DatasetError, UsageError
        As `make_loader`, of any split, and if a class is missing from train.
    TrainerError
        If store auto has no room for the order.
    """
    from_local_leader(lambda: check_manifest(folder))
    folder = _cached(folder, SPLITS, loader, rank)
    splits = [split for split in ("train", "val") if folder.splits[split].trials]
    store = choose_store(folder, splits, loader, device, order)
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
    plans = {split: opened.describe() for split, opened in loaders.items()}
    left = [split for split in SPLITS if folder.splits[split].trials and split not in loaders]
    division = Division(batch_size, seed, rank, world_size, shuffle=False)

    with _progress("Verifying test", folder, ("test",), rank) as advance:

        def check() -> dict[str, SplitPlan]:
            indices = check_splits(folder, known, cache, advance)
            found = {}
            for split in left:
                trials = indices[split].trials
                sequences = cut_sequences(folder, split, sequence, trials)
                found[split] = plan_split(folder, split, sequence, trials, sequences, division)
            return found

        plans |= from_local_leader(check)
    return loaders, plans


def _cached(
    folder: DatasetFolder, splits: Sequence[str], loader: LoaderConfig, rank: int
) -> DatasetFolder:
    """Return the dataset with its shards on this machine where they are to be kept there."""
    if loader.cache is None or folder.storage.is_local:
        return folder
    cache = Path(loader.cache)
    with _progress("Fetching shards", folder, splits, rank) as advance:
        return from_local_leader(lambda: cache_shards(folder, splits, cache, advance))


def _progress(
    name: str, folder: DatasetFolder, splits: Iterable[str], rank: int
) -> AbstractContextManager[Callable[[int], object]]:
    if rank:
        return nullcontext(lambda n_trials: None)
    return reading_progress(name, sum(folder.splits[split].trials for split in splits))
