"""What a split holds for a training: the sequences that its trials make, counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.config import SequenceConfig
from trainer.data.dataset_folder import DatasetFolder
from trainer.data.sequences import Division, Sequences, build_sequences
from trainer.data.storage import DatasetError
from trainer.data.trials import Trials
from trainer.errors import UsageError


@dataclass(frozen=True)
class SplitPlan:
    """What is going to be delivered of a split, to be shown before the first step.

    Attributes
    ----------
    split, store : str
        No store for a split that is opened only when the training is done.
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
        Shards that each rank reads: in the first epoch for a stream, else once before it. Empty
        without a store.
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


def plan_split(
    folder: DatasetFolder, split: str, trials: Trials, sequences: Sequences, division: Division
) -> SplitPlan:
    """Return what is going to be delivered of a split, wherever its trials will be kept."""
    counts = np.bincount(trials.labels[sequences.session], minlength=len(folder.classes)).tolist()
    return SplitPlan(
        split=split,
        store="",
        n_trials=len(trials),
        n_sequences=len(sequences),
        sequences_per_class=dict(zip(folder.classes, counts, strict=True)),
        n_bytes=0,
        batch_size=division.batch_size,
        steps_per_epoch=division.n_steps(len(sequences)),
        shards=len(folder.splits[split].shards),
        shards_per_rank=(),
        dropped=sequences.dropped,
    )


def cut_sequences(
    folder: DatasetFolder, split: str, config: SequenceConfig, trials: Trials
) -> Sequences:
    """Cut the sequences of a split, and refuse one that has none to learn from.

    Raises
    ------
    UsageError
        If no sequence fits into any session.
    DatasetError
        If a class has no sequence in train.
    """
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
    for label, name in enumerate(folder.classes):
        if split == "train" and label not in there:
            raise _class_is_missing(folder, name, config, trials)
    return sequences


def _class_is_missing(
    folder: DatasetFolder, name: str, config: SequenceConfig, trials: Trials
) -> DatasetError:
    of_class = trials.labels[trials.session] == folder.classes.index(name)
    longest = int(np.bincount(trials.session[of_class]).max(initial=0))
    advice = "raise --sequence.max_gap or lower --sequence.n_trials, because trials are missing"
    if longest < config.n_trials:
        advice = f"lower --sequence.n_trials, because its longest session has {longest} trials"
    return DatasetError(
        f"{folder.url}: train has no sequence of {config.n_trials} trials of class {name}, which "
        f"cannot be learned so: {advice}; or give train another session of it"
    )
