"""What the runs of a cross-validation must have in common, and what they are together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.baselines.folder import Baselines
from trainer.config import Config
from trainer.errors import UsageError
from trainer.evaluation.levels import LEVELS
from trainer.evaluation.predictions import Predictions

#: Options of a dataset that folds may differ in: who is where, and how it is stored.
_OWN_OPTIONS = {"splits", "split_ratios", "split_seed", "max_reject_fraction"}
_OWN_OPTIONS |= {"block_trials", "num_shards", "shard_mb", "columns", "input", "snapshot_time"}
#: Of each fold, these say how it did; with a few animals, intervals would say nothing.
_FOLD_METRICS = ("accuracy", "balanced_accuracy", "auc")


@dataclass(frozen=True)
class Fold:
    """What one run says of its test split.

    Attributes
    ----------
    url : str
    data : str
        Folder or URL of its dataset.
    config : Config
    predictions : Predictions
    classes : tuple of str
    metrics : dict
        Content of ``metrics/test.json``.
    baselines : Baselines or None
        On the same sequences, predictions of all of them included.
    unfit_baselines : dict
        {where others were found: what is wrong with them}, if there are none that fit.
    """

    url: str
    data: str
    config: Config
    predictions: Predictions
    classes: tuple[str, ...]
    metrics: dict[str, Any]
    baselines: Baselines | None
    unfit_baselines: dict[str, str]


def pool(parts: Sequence[Predictions], names: Sequence[str]) -> Predictions:
    """Return the predictions of several models on different animals as one set.

    Parameters
    ----------
    parts : sequence of Predictions
    names : sequence of str
        What the parts are called in messages.

    Raises
    ------
    UsageError
        If there are fewer than two parts, or a session or subject is in two of them: it would
        count twice, and one of the models may have been trained on it.
    """
    if len(parts) < 2:
        raise UsageError("give the runs of two folds or more")
    _check_disjoint([set(part.session) for part in parts], names, "session")
    _check_disjoint([set(part.subject) - {None} for part in parts], names, "subject")
    if len({part.trial_nums.shape[1] for part in parts}) > 1:
        raise UsageError("the runs differ in the trials of a sequence (sequence.n_trials)")
    return Predictions.concatenate(parts)


def _check_disjoint(members: Sequence[set[Any]], names: Sequence[str], unit: str) -> None:
    found: dict[str, str] = {}
    for ids, name in zip(members, names, strict=True):
        for member in sorted(ids):
            if member in found:
                raise UsageError(
                    f"{unit} {member} is in test in both {found[member]} and {name}: pool runs "
                    "whose test splits share no animal (python -m beam_pipeline folds)"
                )
            found[member] = name


def check_alike(folds: Sequence[Fold]) -> None:
    """Refuse runs that are not the same model on the same kind of sequences.

    Raises
    ------
    UsageError
        If classes, model or sequences differ.
    """
    first = folds[0]
    for fold in folds[1:]:
        if fold.classes != first.classes:
            raise UsageError(
                f"{first.url} tells {', '.join(first.classes)} apart, "
                f"{fold.url} {', '.join(fold.classes)}"
            )
        for part in ("model", "sequence"):
            if getattr(fold.config, part) != getattr(first.config, part):
                raise UsageError(
                    f"{fold.url} has another {part} than {first.url}: compare their config.yaml"
                )


def check_options(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse runs whose datasets were not computed alike.

    Parameters
    ----------
    options : mapping
        {run: options of its dataset, by flag}.

    Raises
    ------
    UsageError
        If an option that shapes the spectrograms differs.
    """
    runs = list(options)
    for run in runs[1:]:
        first, other = options[runs[0]], options[run]
        for name in sorted((first.keys() | other.keys()) - _OWN_OPTIONS):
            if first.get(name) != other.get(name):
                raise UsageError(
                    f"the dataset of {run} was made with --{name} {other.get(name)}, that of "
                    f"{runs[0]} with {first.get(name)}: preprocess all folds alike"
                )


def pooled_fingerprint(fingerprints: Sequence[str]) -> str:
    """Return what names the datasets of all folds together, in whatever order they are given."""
    return hashlib.sha256("\n".join(sorted(fingerprints)).encode()).hexdigest()


def shared_config(configs: Sequence[Config]) -> dict[str, dict[str, Any]]:
    """Return the fields that all runs have alike, and what the first says of the evaluation.

    Parameters
    ----------
    configs : sequence of Config

    Returns
    -------
    dict
        {section: {field: value}}. ``evaluation`` and ``train.seed``, which the pooled intervals
        are made with, are those of the first.
    """
    first, *others = (asdict(config) for config in configs)
    shared = {
        section: {
            name: value
            for name, value in fields.items()
            if section == "evaluation"
            or (section, name) == ("train", "seed")
            or all(other[section][name] == value for other in others)
        }
        for section, fields in first.items()
    }
    return {section: fields for section, fields in shared.items() if fields}


def fold_content(fold: Fold) -> dict[str, Any]:
    """Return what the pooled result keeps of a fold, as plain JSON."""
    baselines = fold.baselines.contents if fold.baselines else {}
    return {
        "run": fold.url,
        "data": fold.data,
        "dataset_fingerprint": fold.metrics["dataset_fingerprint"],
        "checkpoint": fold.metrics["checkpoint"],
        "groups": fold.metrics["groups"],
        "temperature": fold.metrics["calibration"]["temperature"],
        "unfit_baselines": fold.unfit_baselines,
        "metrics": _values(fold.metrics),
        "baselines": {name: _values(content) for name, content in baselines.items()},
    }


def _values(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        level: {
            "n": content[level]["n"],
            **{name: content[level][name]["value"] for name in _FOLD_METRICS},
        }
        for level in LEVELS
        if level in content
    }
