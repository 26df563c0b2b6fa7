"""Checkpoints that are whole or not there.

``checkpoints/`` holds ``last-STEP-DIGEST.pt``, ``best-STEP-DIGEST.pt`` and ``committed.json``,
which names them. Files are written under names that were not in use, and the commit marker after
them, atomically: whenever a process is killed, the marker names files that are whole. Files that it
does not name are what a killed process left, and go with the next save.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config import Config
from trainer.errors import TrainerError
from trainer.run_folder import COMMIT_MARKER, write_atomically

FORMAT_VERSION = 1
MARKER = Path(COMMIT_MARKER).name
#: What may change between two parts of a run: it moves no weight at a given step, or, as the
#: number of epochs, is what a user wants to change in a run that has ended.
MAY_CHANGE = {
    "loader",
    "evaluation",
    *(f"train.{name}" for name in ("epochs", "patience", "log_every", "checkpoint_every")),
    *(f"train.{name}" for name in ("top_k", "compile", "peak_tflops")),
}

#: Differences that a message names.
SHOWN_CHANGES = 4


@dataclass(frozen=True)
class Entry:
    """A checkpoint that the marker names.

    Attributes
    ----------
    path : str
        Name of the file.
    step, epoch : int
        Steps and whole epochs done.
    bytes : int
    sha256 : str
    score : tuple of float
        What the best is the highest of, in this order; empty for the last.
    """

    path: str
    step: int
    epoch: int
    bytes: int
    sha256: str
    score: tuple[float, ...] = ()


@dataclass(frozen=True)
class Marker:
    """The checkpoints of a run: the last, and the best with the highest score first."""

    last: Entry
    best: tuple[Entry, ...]


def read_marker(folder: Path) -> Marker | None:
    """Return what the commit marker of a ``checkpoints`` folder names, None where there is none.

    Raises
    ------
    TrainerError
        If it is not one that this version wrote.
    """
    path = folder / MARKER
    try:
        content = json.loads(path.read_text())
        if content["format_version"] != FORMAT_VERSION:
            raise TrainerError(
                f"{path} has format {content['format_version']}, this version reads "
                f"{FORMAT_VERSION}: go on with the version that wrote it"
            )
        entries = [content["last"], *content["best"]]
        last, *best = (Entry(**{**entry, "score": tuple(entry["score"])}) for entry in entries)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainerError(
            f"{path} is damaged ({error}): restore it, or remove {folder}"
        ) from error
    return Marker(last, tuple(best))


def save_checkpoint(
    folder: Path, state: Mapping[str, Any], *, score: tuple[float, ...] | None, top_k: int
) -> Marker:
    """Write a checkpoint as the last, and as one of the best where its score says so.

    Parameters
    ----------
    folder : pathlib.Path
        ``checkpoints`` of the run.
    state : mapping
        Tensors, numbers, strings, lists and dicts of them; `step` and `epoch` among them.
    score : tuple of float, optional
        Higher is better, the first number first; None in the middle of an epoch. Of two equal
        ones, the earlier is better.
    top_k : int
        Best checkpoints to keep.

    Raises
    ------
    TrainerError
        If it cannot be written, as on a full disk; the checkpoints that were there still are.
    """
    # In memory first: PyTorch's writer ends the process where a disk is full.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getbuffer()
    digest = hashlib.sha256(content).hexdigest()
    name = f"{state['step']:08d}-{digest[:8]}.pt"
    before = read_marker(folder)
    best = list(before.best) if before else []

    last = Entry(f"last-{name}", state["step"], state["epoch"], len(content), digest)
    if score is not None:
        entry = Entry(**{**asdict(last), "path": f"best-{name}", "score": score})
        best = sorted([*best, entry], key=lambda entry: (entry.score, -entry.step), reverse=True)
    best = best[:top_k]
    marker = Marker(last, tuple(best))
    try:
        for entry in (last, *best):
            if entry.sha256 == digest:
                write_atomically(folder / entry.path, content)
        text = json.dumps({"format_version": FORMAT_VERSION, **asdict(marker)}, indent=1)
        write_atomically(folder / MARKER, text.encode())
    except TrainerError as error:
        _remove_all_but(before, folder)
        kept = f"; the run will go on from step {before.last.step}" if before else ""
        raise TrainerError(f"{error}: make room there and run the command again{kept}") from error
    _remove_all_but(marker, folder)
    return marker


def _remove_all_but(marker: Marker | None, folder: Path) -> None:
    named = {entry.path for entry in (marker.last, *marker.best)} if marker else set()
    for path in folder.glob("*"):
        if path.suffix in (".pt", ".partial") and path.name not in named:
            path.unlink()


def load_checkpoint(folder: Path, entry: Entry) -> dict[str, Any]:
    """Return the state in a checkpoint, its tensors on the CPU.

    Raises
    ------
    TrainerError
        If the file is missing or is not the one that was written.
    """
    path = folder / entry.path
    advice = f"restore it, or remove {folder} to start again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrainerError(f"cannot read {path}: {error.strerror}: {advice}") from error
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise TrainerError(f"{path} is damaged: its SHA-256 is not that in {MARKER}; {advice}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise TrainerError(f"{path} cannot be loaded ({first}): {advice}") from error
    assert isinstance(state, dict)
    return state


def check_same_run(
    state: Mapping[str, Any], config: Config, identity: Mapping[str, Any], output: str
) -> None:
    """Refuse to go on from the checkpoint of another run.

    Parameters
    ----------
    state : mapping
        Of the checkpoint: it holds `config` as nested dicts, and `identity`.
    config : Config
        Of the run that would go on.
    identity : mapping
        {what: value} of what else must be the same, the dataset's fingerprint for one.
    output : str
        The run folder, for the message.

    Raises
    ------
    TrainerError
        If anything but `MAY_CHANGE` differs.
    """
    pairs = [(what, state["identity"].get(what), value) for what, value in identity.items()]
    for section, fields in asdict(config).items():
        for name, value in fields.items():
            if not MAY_CHANGE & {section, f"{section}.{name}"}:
                before = state["config"].get(section, {}).get(name)
                pairs.append((f"{section}.{name}", before, value))
    changed = [
        f"{what} was {_short(before)} and is {_short(after)}"
        for what, before, after in pairs
        if before != after
    ]
    if changed:
        more = len(changed) - SHOWN_CHANGES
        said = "; ".join(changed[:SHOWN_CHANGES]) + (f"; and {more} more" if more > 0 else "")
        raise TrainerError(
            f"{output} holds another run: {said}. Give a new --output, or what was given then"
        )


def _short(value: object) -> object:
    """Return what is enough to tell a fingerprint from another."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{32,}", value):
        return value[:12]
    return value
