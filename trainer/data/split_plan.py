"""What a split holds for a training: the sequences that its trials make, counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.config import SequenceConfig
from trainer.data.dataset_folder import DatasetFolder
from trainer.data.lost_sessions import LostSession, find_lost_sessions
from trainer.data.sequences import Division, Sequences, build_sequences
from trainer.data.storage import DatasetError
from trainer.data.trials import Trials
from trainer.errors import UsageError
from trainer.plurals import plural


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
    sessions_per_class : dict
        {class: sessions that give sequences}, in label order.
    lost : tuple of LostSession
        Sessions that give none.
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
    sessions_per_class: dict[str, int]
    lost: tuple[LostSession, ...]


def plan_split(
    folder: DatasetFolder,
    split: str,
    config: SequenceConfig,
    trials: Trials,
    sequences: Sequences,
    division: Division,
) -> SplitPlan:
    """Return what is going to be delivered of a split, wherever its trials will be kept."""

    def per_class(labels: NDArray[np.int64]) -> dict[str, int]:
        counts = np.bincount(labels, minlength=len(folder.classes)).tolist()
        return dict(zip(folder.classes, counts, strict=True))

    return SplitPlan(
        split=split,
        store="",
        n_trials=len(trials),
        n_sequences=len(sequences),
        sequences_per_class=per_class(trials.labels[sequences.session]),
        n_bytes=0,
        batch_size=division.batch_size,
        steps_per_epoch=division.n_steps(len(sequences)),
        shards=len(folder.splits[split].shards),
        shards_per_rank=(),
        dropped=sequences.dropped,
        sessions_per_class=per_class(trials.labels[np.unique(sequences.session)]),
        lost=find_lost_sessions(trials, sequences, config.max_gap),
    )


def cut_sequences(
    folder: DatasetFolder, split: str, config: SequenceConfig, trials: Trials
) -> Sequences:
    """Cut the sequences of a split, and refuse one that loses a class by it.

    Raises
    ------
    UsageError
        If no sequence fits into any session.
    DatasetError
        If a class has no sequence in train, or none in a split that has trials of it.
    """
    sequences = build_sequences(trials, config.n_trials, config.resolved_stride, config.max_gap)
    longest = int(np.bincount(trials.session).max())
    if longest < config.n_trials:
        raise UsageError(
            f"--sequence.n_trials {config.n_trials} is longer than every session of {split}: the "
            f"longest has {plural(longest, 'trial')}"
        )
    if not len(sequences):
        raise UsageError(
            f"trials are missing so often that no session of {split} has {config.n_trials} in a "
            f"row with gaps of at most {config.max_gap}: lower --sequence.n_trials or raise "
            "--sequence.max_gap"
        )
    check_classes(folder, split, config, trials, sequences)
    return sequences


def check_classes(
    folder: DatasetFolder,
    split: str,
    config: SequenceConfig,
    trials: Trials,
    sequences: Sequences,
) -> None:
    """Refuse sequences that lack a class: it cannot be learned, or is left out of the metrics.

    Raises
    ------
    DatasetError
        If a class has no sequence in train, or none in a split that has trials of it.
    """
    there = np.unique(trials.labels[sequences.session])
    expected = range(len(folder.classes)) if split == "train" else np.unique(trials.labels).tolist()
    for label in expected:
        if label not in there:
            raise _class_is_missing(folder, split, label, config, trials)


def _class_is_missing(
    folder: DatasetFolder, split: str, label: int, config: SequenceConfig, trials: Trials
) -> DatasetError:
    of_class = trials.labels[trials.session] == label
    longest = int(np.bincount(trials.session[of_class]).max(initial=0))
    advice = "raise --sequence.max_gap or lower --sequence.n_trials, because trials are missing"
    if longest < config.n_trials:
        advice = (
            f"lower --sequence.n_trials, because its longest session has {plural(longest, 'trial')}"
        )
    what = "cannot be learned so" if split == "train" else "would be missing from every metric"
    return DatasetError(
        f"{folder.url}: {split} has no sequence of {plural(config.n_trials, 'trial')} of class "
        f"{folder.classes[label]}, which {what}: {advice}; or give {split} another session of it"
    )
