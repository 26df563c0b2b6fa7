"""Attention maps of a split's sessions, and the file they are kept in."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from trainer.errors import TrainerError
from trainer.run_folder import write_atomically

#: How attention is read, and what it is called.
METHODS = {"rollout": "attention rollout", "class_attention": "class-token attention, last block"}
RANDOMIZED = "_randomized"
#: Every map of a file: each method for the trained and for randomised weights.
MAPS = tuple(f"{method}{suffix}" for suffix in ("", RANDOMIZED) for method in METHODS)


@dataclass(frozen=True)
class AttentionMaps:
    """Where a model looks, per session.

    A map is a distribution over the tokens of the grid: it adds up to 1, so that multiplied by
    the number of tokens it is 1 where attention is spread evenly.

    Attributes
    ----------
    step : int
        Training steps behind the weights.
    classes : tuple of str
        In label order.
    sessions : tuple of str
    labels : int64 array of shape (n_sessions,)
    n_sequences : int64 array of shape (n_sessions,)
        Sequences behind each session's maps.
    trials : float64 array of shape (t,)
        Trial positions of the tokens' centres; the first trial of a sequence is 1.
    freqs : float64 array of shape (f,)
        Hz.
    times : float64 array of shape (w,)
        Seconds from the onset.
    maps : mapping
        For each name of `MAPS` a float32 array of shape (n_sessions, t, f, w): the mean over the
        session's sequences.
    """

    step: int
    classes: tuple[str, ...]
    sessions: tuple[str, ...]
    labels: NDArray[np.int64]
    n_sequences: NDArray[np.int64]
    trials: NDArray[np.float64]
    freqs: NDArray[np.float64]
    times: NDArray[np.float64]
    maps: Mapping[str, NDArray[np.float32]]

    def class_means(self, name: str) -> NDArray[np.float64]:
        """Return the mean of each class's sessions, each counted once, (n_classes, t, f, w).

        NaN for a class that has no session.
        """
        maps = self.maps[name].astype(np.float64)
        means = np.full((len(self.classes), *maps.shape[1:]), np.nan)
        for label in np.unique(self.labels):
            means[label] = maps[self.labels == label].mean(axis=0)
        return means


def write_maps(path: Path, maps: AttentionMaps) -> None:
    """Write maps as an npz file, atomically.

    Beside the fields of `AttentionMaps`, with ``session_`` before the names of per-session maps,
    it holds the means of each class under the maps' own names, (n_classes, t, f, w).
    """
    arrays: dict[str, NDArray[Any]] = {
        "step": np.array(maps.step),
        "classes": np.array(maps.classes),
        "sessions": np.array(maps.sessions),
        "labels": maps.labels,
        "n_sequences": maps.n_sequences,
        "trials": maps.trials,
        "freqs": maps.freqs,
        "times": maps.times,
    }
    for name in MAPS:
        arrays[name] = maps.class_means(name).astype(np.float32)
        arrays[f"session_{name}"] = maps.maps[name]
    buffer = io.BytesIO()
    # Its stub takes the arrays for the flag allow_pickle.
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def read_maps(path: Path) -> AttentionMaps:
    """Read what `write_maps` has written.

    Raises
    ------
    TrainerError
        If the file holds something else.
    """
    try:
        # NumPy leaves a file that is no archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return AttentionMaps(
                int(arrays["step"]),
                tuple(map(str, arrays["classes"])),
                tuple(map(str, arrays["sessions"])),
                arrays["labels"],
                arrays["n_sequences"],
                arrays["trials"],
                arrays["freqs"],
                arrays["times"],
                {name: arrays[f"session_{name}"] for name in MAPS},
            )
    except (BadZipFile, KeyError, OSError, ValueError) as error:
        raise TrainerError(
            f"{path} holds no attention maps ({error}): make them again with "
            f"`python -m trainer attention`"
        ) from error
