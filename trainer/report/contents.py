"""What a run folder, or the pooled one of a cross-validation, holds so far."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.attention.file import AttentionMaps, read_maps
from trainer.baselines.folder import BASELINES
from trainer.config import EvaluationConfig, SequenceConfig
from trainer.data.dataset_folder import MANIFEST, DatasetFolder, open_dataset
from trainer.data.storage import DatasetError
from trainer.errors import TrainerError
from trainer.evaluation.predictions import Predictions, read_predictions
from trainer.run_folder import RunFolder, check_fields, read_json
from trainer.training.checkpoint import read_marker

SPLITS = ("train", "val", "test")
CONFIG = "config.yaml"
#: Written last by `pool`.
POOLED = "metrics/test.json"
_FIELDS = {"split", "dataset_fingerprint", "n_trials", "classes", "groups", "permutation"}
_FIELDS |= {"calibration", "notes", "sequence", "session", "git_commit"}
#: What every evaluation of a run writes, and what `pool` does.
METRIC_FIELDS = frozenset(_FIELDS | {"checkpoint", "versions"})
POOLED_FIELDS = frozenset(
    _FIELDS | {"config", "folds", "unpredicted", "given_baselines", "across_folds"}
)


@dataclass(frozen=True, eq=False)
class RunContents:
    """A run folder, or a pooled one, as the report reads it.

    Whatever is not there is empty or None.

    Attributes
    ----------
    url : str
        What the user called it.
    name : str
        Short, and unique in the report.
    config : dict
        ``config.yaml``; of a pooled folder, what its runs have alike.
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
    folds : tuple of dict
        What a pooled folder says of each of its runs; empty of a run.
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
    folds: tuple[dict[str, Any], ...] = ()

    @property
    def data(self) -> str:
        """Folder or URL of the dataset; empty of a pooled folder, which has several."""
        return str(self.config.get("data", ""))

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


def read_folder(folder: RunFolder, name: str) -> RunContents:
    """Read all that a run folder, or a pooled one, holds for a report.

    Parameters
    ----------
    folder : RunFolder
    name : str
        What to call it.

    Raises
    ------
    TrainerError
        If it is neither, or a file in it is damaged.
    """
    if (folder.path / CONFIG).is_file():
        return _read_run(folder, name)
    if _is_pooled(folder.path / POOLED):
        return _read_pooled(folder, name)
    raise TrainerError(
        f"{folder.url} {_what_it_is(folder)}: give a run folder (python -m trainer train makes "
        "one) or the folds of a cross-validation (python -m trainer pool)"
    )


def _what_it_is(folder: RunFolder) -> str:
    if not folder.path.exists():
        return "does not exist"
    if not folder.path.is_dir():
        return "is a file"
    if (folder.path / MANIFEST).is_file():
        return "is a dataset, not a run"
    if (folder.path / BASELINES).is_file():
        return "holds baselines alone (--baselines takes them), not a run"
    return f"has no {CONFIG}: it is no run folder"


def _is_pooled(path: Path) -> bool:
    content = read_json(path) if path.is_file() else None
    return isinstance(content, dict) and "folds" in content


def _read_run(folder: RunFolder, name: str) -> RunContents:
    path = folder.path / CONFIG
    text = path.read_text(encoding="utf-8")
    config = _parse_config(path, text)
    metrics = {
        split: check_fields(path, read_json(path), METRIC_FIELDS)
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


def _read_pooled(folder: RunFolder, name: str) -> RunContents:
    path = folder.path / POOLED
    content = check_fields(path, read_json(path), POOLED_FIELDS)
    try:
        config = _checked_config(content["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise TrainerError(f"{path} is damaged ({error}): pool the runs again") from error
    read = {
        split: read_predictions(path) for split, path in _files(folder, "predictions", ".parquet")
    }
    words = [*(fold["run"] for fold in content["folds"]), "--output", folder.url]
    words += [word for url in content["given_baselines"] for word in ("--baselines", url)]
    return RunContents(
        url=folder.url,
        name=name,
        config=config,
        command=f"python -m trainer pool {shlex.join(words)}",
        log=(),
        metrics={content["split"]: content},
        predictions={split: predictions for split, (predictions, _) in read.items()},
        attention={},
        classes=tuple(content["classes"]),
        best_step=None,
        dataset=None,
        dataset_error="",
        folds=tuple(content["folds"]),
    )


def _parse_config(path: Path, text: str) -> dict[str, Any]:
    try:
        config = _checked_config(yaml.safe_load(text))
        str(config["data"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TrainerError(f"{path} is not the config of a run ({reason}): restore it") from error
    return config


def _checked_config(config: Any) -> dict[str, Any]:
    SequenceConfig(**config["sequence"])
    EvaluationConfig(**config["evaluation"])
    int(config["train"]["seed"])
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
