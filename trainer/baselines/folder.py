"""What ``baselines`` leaves in a folder, and whether it may stand beside something else."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import SequenceConfig
from trainer.errors import TrainerError, UsageError
from trainer.evaluation.predictions import Predictions, read_predictions, write_predictions
from trainer.run_folder import RunFolder, check_fields, open_run, read_json, write_json

BASELINES = "baselines.json"
SESSION_PROBE = "session_probe.json"
#: What the metrics of every baseline hold.
_FIELDS = {"split", "dataset_fingerprint", "n_trials", "stride", "max_gap", "title", "classes"}
_FIELDS |= {"groups", "permutation", "calibration", "notes", "sequence", "session"}


@dataclass(frozen=True, eq=False)
class Baselines:
    """What simple models make of a split.

    Attributes
    ----------
    url : str
        Where they were found.
    contents : dict
        {name: metrics as of a run}.
    predictions : dict
        {name: predictions}; those that are there.
    session_probe : dict or None
        How well single sequences tell their session.
    """

    url: str
    contents: dict[str, dict[str, Any]]
    predictions: dict[str, Predictions]
    session_probe: dict[str, Any] | None


def read_baselines(folder: RunFolder) -> Baselines | None:
    """Read what ``baselines`` has written to a folder; None where it holds none.

    Raises
    ------
    TrainerError
        If a file is damaged.
    """
    path = folder.path / BASELINES
    if not path.is_file():
        return None
    contents = read_json(path)
    if not contents or not isinstance(contents, dict):
        raise TrainerError(f"{path} holds no baseline: python -m trainer baselines makes it again")
    for content in contents.values():
        check_fields(path, content, frozenset(_FIELDS))
    tables = {name: _table(folder, name) for name in contents}
    probe = folder.path / SESSION_PROBE
    return Baselines(
        folder.url,
        contents,
        {name: read_predictions(table)[0] for name, table in tables.items() if table.is_file()},
        read_json(probe) if probe.is_file() else None,
    )


def open_baselines(stack: ExitStack, url: str) -> Baselines:
    """Read the baselines that a user names, by their folder or their file.

    Parameters
    ----------
    stack : contextlib.ExitStack
        Holds the folder open.
    url : str

    Raises
    ------
    UsageError
        If there are none.
    """
    inner = url.removesuffix(BASELINES).rstrip("/") or "."
    found = read_baselines(stack.enter_context(open_run(inner, with_weights=False)))
    if found is None:
        raise UsageError(
            f"--baselines {url} holds no {BASELINES} (python -m trainer baselines writes one)"
        )
    return found


def write_baselines(folder: RunFolder, found: Baselines) -> None:
    """Write baselines to a folder in place of any others; the metrics, which name them, go last."""
    # Else those of before would stand beside new predictions if this were cut off.
    remove_baselines(folder)
    for name, predictions in found.predictions.items():
        write_predictions(_table(folder, name), predictions, found.contents[name]["classes"])
    if found.session_probe is not None:
        write_json(folder.path / SESSION_PROBE, found.session_probe)
    write_json(folder.path / BASELINES, found.contents)


def remove_baselines(folder: RunFolder) -> None:
    """Remove what says that a folder holds baselines."""
    for name in (BASELINES, SESSION_PROBE):
        (folder.path / name).unlink(missing_ok=True)


def baselines_key(fingerprint: str, split: str, sequence: SequenceConfig) -> dict[str, Any]:
    """Return what baselines must have been made with to stand beside a run."""
    return {
        "dataset_fingerprint": fingerprint,
        "split": split,
        "n_trials": sequence.n_trials,
        "stride": sequence.resolved_stride,
        "max_gap": sequence.max_gap,
    }


def baselines_command(
    data: str,
    output: str,
    split: str,
    sequence: SequenceConfig,
    *,
    cache: str | None = None,
    overwrite: bool = False,
) -> str:
    """Return the command that puts baselines on a run's sequences into its folder."""
    words = [data, "--output", output, "--sequence.n_trials", str(sequence.n_trials)]
    words += ["--sequence.stride", str(sequence.resolved_stride)]
    if sequence.max_gap:
        words += ["--sequence.max_gap", str(sequence.max_gap)]
    words += [] if split == "test" else ["--split", split]
    words += [] if cache is None else ["--cache", cache]
    words += ["--overwrite"] if overwrite else []
    return f"python -m trainer baselines {shlex.join(words)}"


def mismatch(content: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return what tells baselines from those that are wanted; empty if nothing does.

    Parameters
    ----------
    content : mapping
        Metrics of one of the baselines.
    wanted : mapping
        ``dataset_fingerprint``, ``split`` and whatever else must be alike.

    Returns
    -------
    str
        To be read after "are", as in "of val, not test".
    """
    held, given = content["dataset_fingerprint"], wanted["dataset_fingerprint"]
    if held != given:
        return f"of another dataset (fingerprint {held[:12]}, not {given[:12]})"
    if content["split"] != wanted["split"]:
        return f"of {content['split']}, not {wanted['split']}"
    differing = [
        f"{name} {content[name]}, not {value}"
        for name, value in wanted.items()
        if name in content and content[name] != value
    ]
    return f"made with {', '.join(differing)}" if differing else ""


def list_unfit(unfit: Mapping[str, str]) -> str:
    """Return, in brackets, where baselines were found that do not fit, and why; or nothing.

    Parameters
    ----------
    unfit : mapping
        {where: why, to be read after "those"}.
    """
    reasons = "; ".join(f"those in {url} {reason}" for url, reason in unfit.items())
    return f" ({reasons})" if reasons else ""


def check_free(
    folder: RunFolder,
    wanted: Mapping[str, Any],
    advice: str = "give another --output, or --overwrite to replace them",
) -> None:
    """Refuse a folder that holds other baselines than those that are to be written.

    Parameters
    ----------
    folder : RunFolder
    wanted : mapping
        As of `mismatch`.
    advice : str
        What to do about others.

    Raises
    ------
    UsageError
        If it does. Equal ones may be made again, and what cannot be read is no loss.
    """
    path = folder.path / BASELINES
    if not path.is_file():
        return
    try:
        contents = read_json(path)
        reasons: Iterable[str] = {mismatch(content, wanted) for content in contents.values()}
    except (TrainerError, AttributeError, KeyError, TypeError):
        return
    for reason in filter(None, reasons):
        raise UsageError(f"{folder.url} holds baselines {reason}: {advice}")


def _table(folder: RunFolder, name: str) -> Path:
    return folder.path / f"predictions/{name}.parquet"
