"""The gate before training: nothing of val or test may have been seen, by any of the records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset_folder import MANIFEST, SESSIONS, SPLITS, DatasetFolder
from trainer.data.split_index import SplitIndex
from trainer.data.split_scan import scan_split
from trainer.data.statistics import session_statistics
from trainer.data.storage import DatasetError
from trainer.data.verified_shards import recall_index, remember_index
from trainer.plurals import plural

#: Of mean and standard deviation, which other programs may round in other ways.
TOLERANCE = 1e-9


class LeakageError(DatasetError):
    """Something of one split stands in another, or the statistics saw more than train."""


def check_dataset(
    folder: DatasetFolder,
    cache: Path | None = None,
    advance: Callable[[int], object] = lambda n_trials: None,
) -> None:
    """Check that a dataset is whole and that its splits share nothing.

    Parameters
    ----------
    folder : DatasetFolder
    cache : pathlib.Path, optional
        Where it is remembered which shards were read and found sound.
    advance : callable
        Called with the number of trials of each block that is read.

    Raises
    ------
    LeakageError
        If a session, a subject, a trial, or the values of one are in two splits, or if the
        normalisation was computed from other sessions than those of train, or is not what their
        sums give.
    DatasetError
        If the dataset is incomplete or damaged, or a class is missing from train.
    """
    check_manifest(folder)
    check_splits(folder, {}, cache, advance)


def check_splits(
    folder: DatasetFolder,
    known: Mapping[str, SplitIndex],
    cache: Path | None = None,
    advance: Callable[[int], object] = lambda n_trials: None,
) -> dict[str, SplitIndex]:
    """Check that the shards of no split share anything with those of another.

    Parameters
    ----------
    folder : DatasetFolder
        `check_manifest` has passed it.
    known : mapping
        Indices of the splits that were read anyway; the shards of the others are read here.
    cache, advance
        See `check_dataset`.

    Returns
    -------
    dict
        {split: its index} of all splits.

    Raises
    ------
    LeakageError, DatasetError
        As `check_dataset`.
    """
    indices = dict(known)
    for split in SPLITS:
        if split not in indices:
            indices[split] = verified_index(folder, split, cache, advance)
    check_indices(folder, indices)
    return indices


def verified_index(
    folder: DatasetFolder,
    split: str,
    cache: Path | None = None,
    advance: Callable[[int], object] = lambda n_trials: None,
) -> SplitIndex:
    """Return the index of a split whose shards are sound, now or when it was remembered.

    Parameters
    ----------
    folder : DatasetFolder
    split : str
    cache : pathlib.Path, optional
        Where it is remembered.
    advance : callable
        Called with the number of trials of each block that is read.

    Raises
    ------
    DatasetError
        If a shard is missing or damaged.
    """
    index = None if cache is None else recall_index(folder, split, cache)
    if index is None:
        index = scan_split(folder, split, advance=advance)
        if cache is not None:
            remember_index(folder, split, cache, index)
    return index


def check_manifest(folder: DatasetFolder) -> None:
    """Check all but what is in the shards, and that every shard is there in full size.

    Raises
    ------
    LeakageError, DatasetError
        As `check_dataset`.
    """
    splits = folder.splits
    for a, b in combinations(SPLITS, 2):
        for what in ("sessions", "subjects"):
            shared = set(getattr(splits[a], what)) & set(getattr(splits[b], what))
            if shared:
                raise _leak(folder, f"{what} {_some(shared)} are in {a} and in {b}")
    odd = set(folder.normalization["sessions"]) ^ set(splits["train"].sessions)
    if odd:
        raise _leak(
            folder,
            f"the normalisation was not computed from exactly the train sessions: {_some(odd)} "
            "make the difference",
        )
    _check_classes(folder)
    for split in SPLITS:
        folder.shard_states(split)
    folder.check_files()
    _check_statistics(folder)


def _check_statistics(folder: DatasetFolder) -> None:
    """Check that what was subtracted and divided is what the train sessions give."""
    table = folder.storage.name(SESSIONS)
    rows = [row for row in folder.read_sessions().to_pylist() if row["split"] == "train"]
    if {row["session"] for row in rows} != set(folder.splits["train"].sessions):
        raise DatasetError(
            f"{table} has other train sessions than {MANIFEST}: run the pipeline again"
        )
    stated = folder.normalization
    try:
        found = session_statistics(rows, stated["normalization"])
        for name, numbers in (("mean", found.mean), ("std", found.std)):
            said = stated[name] if isinstance(stated[name], list) else [stated[name]]
            for one, other in zip(said, numbers, strict=True):
                if not math.isclose(one, other, rel_tol=TOLERANCE):
                    raise _leak(
                        folder,
                        f"the values were normalised by another {name} than that of the train "
                        f"sessions ({one!r} in {MANIFEST}, {other!r} from {SESSIONS})",
                    )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"{table} and {MANIFEST} do not say what the values were normalised by "
            f"({type(error).__name__}: {error}): run the pipeline again"
        ) from error


def _check_classes(folder: DatasetFolder) -> None:
    where = folder.storage.name(MANIFEST)
    if len(folder.classes) < 2:
        raise DatasetError(f"{where}: there is one class, {folder.classes}: nothing to learn")
    trials = folder.splits["train"].trials_per_class
    missing = [name for name in folder.classes if not trials.get(name)]
    if missing:
        raise DatasetError(
            f"{where}: train has no trials of class {', '.join(missing)}: split the sessions "
            "otherwise (./run_dataflow.sh --split_seed, --split_ratios or --splits)"
        )


def check_indices(folder: DatasetFolder, indices: Mapping[str, SplitIndex]) -> None:
    """Check that no two splits hold the same session, subject, trial or values.

    Parameters
    ----------
    folder : DatasetFolder
    indices : mapping
        {split: index of its shards}.

    Raises
    ------
    LeakageError
        If they do.
    """
    for (a, first), (b, second) in combinations(indices.items(), 2):
        shared = set(first.trials.sessions) & set(second.trials.sessions)
        if shared:
            raise _leak(folder, f"sessions {_some(shared)} are in the shards of {a} and of {b}")
        subjects = {*first.trials.subjects} & {*second.trials.subjects} - {None}
        if subjects:
            raise _leak(folder, f"subjects {_some(subjects)} are in the shards of {a} and of {b}")
        for what in ("spectrogram", "baseline"):
            rows = _common_rows(getattr(first, f"{what}_digest"), getattr(second, f"{what}_digest"))
            if len(rows):
                one, other = (_trial(i, r) for i, r in zip((first, second), rows[0], strict=True))
                raise _leak(
                    folder,
                    f"{a} and {b} have the same {what} in {plural(len(rows), 'trial')}, such as "
                    f"{one} in {a} and {other} in {b}",
                )


def _common_rows(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return pairs of rows with equal digests, int64 of shape (n_common, 2); zeros are none."""
    width = f"S{a.shape[1]}"
    _, in_a, in_b = np.intersect1d(a.view(width), b.view(width), return_indices=True)
    pairs: NDArray[np.int64] = np.stack([in_a, in_b], axis=1)
    return pairs[a[in_a].any(axis=1)]


def _trial(index: SplitIndex, row: np.int64) -> str:
    trials = index.trials
    return f"trial {trials.trial_num[row]} of session {trials.sessions[trials.session[row]]}"


def _leak(folder: DatasetFolder, detail: str) -> LeakageError:
    return LeakageError(
        f"{folder.url} leaks: {detail}; split it anew, so that test is told nothing by train"
    )


def _some(names: Iterable[str | None]) -> str:
    ordered = sorted(map(str, names))
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + rest
