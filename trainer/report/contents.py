"""What a run folder holds so far."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.attention.file import AttentionMaps, read_maps
from trainer.config import EvaluationConfig, SequenceConfig
from trainer.data.dataset_folder import DatasetFolder, open_dataset
from trainer.data.storage import DatasetError
from trainer.errors import TrainerError
from trainer.evaluation.predictions import Predictions, read_predictions
from trainer.run_folder import RunFolder
from trainer.training.checkpoint import read_marker

SPLITS = ("train", "val", "test")
BASELINES = "baselines.json"
SESSION_PROBE = "session_probe.json"
#: What every evaluation writes, what that of a run adds, and what that of a baseline adds.
_FIELDS = {"split", "dataset_fingerprint", "n_trials", "classes", "groups", "permutation"}
_FIELDS |= {"calibration", "notes", "sequence", "session"}
METRIC_FIELDS = frozenset(_FIELDS | {"checkpoint", "git_commit", "versions"})
BASELINE_FIELDS = frozenset(_FIELDS | {"title", "stride", "max_gap"})


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


@dataclass(frozen=True, eq=False)
class RunContents:
    """A run folder as the report reads it; whatever is not there is empty or None.

    Attributes
    ----------
    url : str
        What the user called it.
    name : str
        Short, and unique in the report.
    config : dict
        ``config.yaml``.
    command : str
        What started the run, the first line of ``config.yaml``.
    log : tuple of dict
        Lines of ``metrics.jsonl``.
    metrics : dict
        {split: content of ``metrics/SPLIT.json``}.
    predictions : dict
        {split: predictions}.
    attention : dict
        {split: maps}.
    classes : tuple of str
        In label order; none where nothing says them.
    best_step : int, optional
        Of the best checkpoint.
    dataset : DatasetFolder, optional
        None where it cannot be opened, or is no longer what the run was trained on.
    dataset_error : str
        Why not.
    """

    url: str
    name: str
    config: dict[str, Any]
    command: str
    log: tuple[dict[str, Any], ...]
    metrics: dict[str, dict[str, Any]]
    predictions: dict[str, Predictions]
    attention: dict[str, AttentionMaps]
    classes: tuple[str, ...]
    best_step: int | None
    dataset: DatasetFolder | None
    dataset_error: str

    @property
    def data(self) -> str:
        """Folder or URL of the dataset."""
        return str(self.config["data"])

    @property
    def fingerprint(self) -> str | None:
        """Of the dataset; None where nothing says it."""
        known = [content["dataset_fingerprint"] for content in self.metrics.values()]
        if self.dataset is not None:
            known.append(self.dataset.fingerprint)
        return known[0] if known else None

    @property
    def sequence(self) -> SequenceConfig:
        """How trials were made to sequences."""
        return SequenceConfig(**self.config["sequence"])

    @property
    def evaluation(self) -> EvaluationConfig:
        """How its intervals were made."""
        return EvaluationConfig(**self.config["evaluation"])

    @property
    def seed(self) -> int:
        """Of the bootstrap, among others."""
        return int(self.config["train"]["seed"])


def read_run(folder: RunFolder, name: str) -> RunContents:
    """Read all that a run folder holds for a report.

    Parameters
    ----------
    folder : RunFolder
    name : str
        What to call it.

    Raises
    ------
    TrainerError
        If it is no run folder, or a file in it is damaged.
    """
    path = folder.path / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TrainerError(
            f"{folder.url} has no config.yaml: it is no run folder "
            "(python -m trainer train makes one)"
        ) from error
    config = _parse_config(path, text)
    metrics = {
        split: _checked(path, read_json(path), METRIC_FIELDS)
        for split, path in _files(folder, "metrics", ".json")
    }
    dataset, dataset_error = _find_dataset(config["data"], metrics)
    read = {
        split: read_predictions(path) for split, path in _files(folder, "predictions", ".parquet")
    }
    classes = [tuple(content["classes"]) for content in metrics.values()]
    classes += [named for _, named in read.values()]
    classes += [dataset.classes] if dataset is not None else []
    marker = read_marker(folder.path / "checkpoints")
    return RunContents(
        url=folder.url,
        name=name,
        config=config,
        command=text.splitlines()[0].removeprefix("#").strip() if text.startswith("#") else "",
        log=tuple(_read_log(folder.path / "metrics.jsonl")),
        metrics=metrics,
        predictions={split: predictions for split, (predictions, _) in read.items()},
        attention={split: read_maps(path) for split, path in _files(folder, "attention", ".npz")},
        classes=classes[0] if classes else (),
        best_step=marker.best[0].step if marker and marker.best else None,
        dataset=dataset,
        dataset_error=dataset_error,
    )


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
        _checked(path, content, BASELINE_FIELDS)
    tables = {name: folder.path / f"predictions/{name}.parquet" for name in contents}
    probe = folder.path / SESSION_PROBE
    return Baselines(
        folder.url,
        contents,
        {name: read_predictions(table)[0] for name, table in tables.items() if table.is_file()},
        read_json(probe) if probe.is_file() else None,
    )


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises
    ------
    TrainerError
        If it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainerError(f"{path} cannot be read ({error}): make it again") from error


def _checked(path: Path, content: Any, fields: frozenset[str]) -> Any:
    missing = sorted(fields - set(content)) if isinstance(content, dict) else sorted(fields)
    if missing:
        raise TrainerError(
            f"{path} lacks {', '.join(missing)}: it was not written by this version; make it again"
        )
    return content


def _parse_config(path: Path, text: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
        SequenceConfig(**config["sequence"])
        EvaluationConfig(**config["evaluation"])
        int(config["train"]["seed"])
        str(config["data"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TrainerError(f"{path} is not the config of a run ({reason}): restore it") from error
    assert isinstance(config, dict)
    return config


def _files(folder: RunFolder, kind: str, suffix: str) -> Iterator[tuple[str, Path]]:
    for split in SPLITS:
        path = folder.path / kind / f"{split}{suffix}"
        if path.is_file():
            yield split, path


def _read_log(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            # A run that goes on, or was killed, may be in the middle of its last line.
            if number < len(lines):
                raise TrainerError(f"{path}, line {number} is damaged: {error}") from error


def _find_dataset(
    url: str, metrics: Mapping[str, Mapping[str, Any]]
) -> tuple[DatasetFolder | None, str]:
    try:
        dataset = open_dataset(url)
    except DatasetError as error:
        return None, str(error)
    for content in metrics.values():
        if content["dataset_fingerprint"] != dataset.fingerprint:
            return None, f"{url} is another dataset now than the run was evaluated on"
    return dataset, ""
