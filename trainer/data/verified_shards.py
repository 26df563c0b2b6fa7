"""Remembers that a split's shards were verified, so that a resumed run need not reread them."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from trainer.data.dataset_folder import DatasetFolder
from trainer.data.split_index import SplitIndex
from trainer.data.trials import block_layout
from trainer.run_folder import write_atomically

FORMAT_VERSION = 1
ARRAYS = ("trial_num", "shard", "offset", "spectrogram_digest", "baseline_digest")


def recall_index(folder: DatasetFolder, split: str, cache: Path) -> SplitIndex | None:
    """Return the index of a split that was verified before.

    Parameters
    ----------
    folder : DatasetFolder
    split : str
    cache : pathlib.Path
        Folder that `remember_index` wrote to.

    Returns
    -------
    SplitIndex or None
        None where nothing is remembered, or where manifest, sizes or times are others now.

    Raises
    ------
    DatasetError
        If a shard is missing or has another size than the manifest says.
    """
    key = _key(folder, split)
    try:
        with _path(cache, split).open("rb") as file, np.load(file, allow_pickle=False) as content:
            if content["key"].item() != key:
                return None
            arrays = {name: content[name] for name in ARRAYS}
    # Not there, or damaged: what it would have said is found out again.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    layout = block_layout(folder, split)
    trials = layout.with_trial_nums(arrays.pop("trial_num"))
    return SplitIndex(trials=trials, first_row=layout.first_row, **arrays)


def remember_index(folder: DatasetFolder, split: str, cache: Path, index: SplitIndex) -> None:
    """Write down that a split was verified; see `recall_index`.

    Raises
    ------
    TrainerError
        If it cannot be written.
    """
    arrays = {name: getattr(index, name) for name in ARRAYS[1:]}
    buffer = io.BytesIO()
    np.savez(buffer, key=_key(folder, split), trial_num=index.trials.trial_num, **arrays)
    write_atomically(_path(cache, split), buffer.getbuffer())


def _path(cache: Path, split: str) -> Path:
    return cache / f"verified-{split}.npz"


def _key(folder: DatasetFolder, split: str) -> str:
    state = [FORMAT_VERSION, folder.url, folder.fingerprint, folder.shard_states(split)]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
