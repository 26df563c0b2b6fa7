"""The command ``pool``: predictions of several models on data of their own, as one result."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.console import print_table
from trainer.data.dataset_folder import MANIFEST
from trainer.errors import TrainerError, UsageError
from trainer.evaluation.command import git_commit, print_metrics
from trainer.evaluation.predictions import Predictions, read_predictions, write_predictions
from trainer.evaluation.results import evaluate_predictions
from trainer.run_folder import is_remote, local_path, open_run, write_json
from trainer.trained_model import read_run_config

SPLIT = "test"


@dataclass(frozen=True)
class Fold:
    """What one run says of its test split.

    Attributes
    ----------
    url : str
    config : Config
    predictions : Predictions
    classes : tuple of str
    metrics : dict
        Content of ``metrics/test.json``.
    """

    url: str
    config: Config
    predictions: Predictions
    classes: tuple[str, ...]
    metrics: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``pool``."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, or gs:// URLs, one a fold"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="gets predictions/ and metrics/ of all folds, as a run folder has them",
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate the test predictions of all folds as one.

    Raises
    ------
    UsageError
        If there are fewer than two runs, they do not fit together, or the output is a run or a
        dataset.
    TrainerError
        If a run was not evaluated.
    """
    urls = [url.rstrip("/") for url in arguments.runs]
    _check_output(arguments.output, urls)
    with ExitStack() as stack:
        output = stack.enter_context(open_run(arguments.output, with_weights=False))
        for name, what in (("config.yaml", "run"), (MANIFEST, "dataset")):
            if (output.path / name).exists():
                raise UsageError(
                    f"--output {arguments.output} is a {what}: give the result a folder of its own"
                )
        folds = [
            _read(stack.enter_context(open_run(url, with_weights=False)).path, url) for url in urls
        ]
        pooled = pool([fold.predictions for fold in folds], urls)
        _check_alike(folds)
        first = folds[0]
        content = evaluate_predictions(
            pooled,
            first.classes,
            first.config.evaluation,
            first.config.train.seed,
            metadata={
                "split": SPLIT,
                "folds": [
                    {"run": fold.url, "dataset_fingerprint": fold.metrics["dataset_fingerprint"]}
                    for fold in folds
                ],
                "git_commit": git_commit(),
                "n_trials": first.config.sequence.n_trials,
            },
        )
        path = output.path / f"predictions/{SPLIT}.parquet"
        write_predictions(path, pooled, first.classes)
        write_json(output.path / f"metrics/{SPLIT}.json", content)
    _print_folds(folds)
    print_metrics(f"{SPLIT} of {len(folds)} folds, with 95 % intervals:", content)
    print(f"Written to {arguments.output}: predictions/ and metrics/")


def _check_output(output: str, urls: Sequence[str]) -> None:
    """Refuse to write over one of the runs, whatever it was evaluated with."""

    def place(url: str) -> str | Path:
        return url.rstrip("/") if is_remote(url) else local_path(url).resolve()

    if place(output) in [place(url) for url in urls]:
        raise UsageError(
            f"--output {output} is one of the runs: give the result a folder of its own"
        )


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


def _read(path: Path, url: str) -> Fold:
    metrics = path / f"metrics/{SPLIT}.json"
    if not metrics.exists():
        raise TrainerError(f"{url} holds no metrics/{SPLIT}.json: python -m trainer evaluate {url}")
    predictions, classes = read_predictions(path / f"predictions/{SPLIT}.parquet")
    return Fold(
        url, read_run_config(path)[0], predictions, classes, json.loads(metrics.read_text())
    )


def _check_alike(folds: Sequence[Fold]) -> None:
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


def _print_folds(folds: Sequence[Fold]) -> None:
    rows = []
    for fold in folds:
        groups, sequence = fold.metrics["groups"], fold.metrics["sequence"]
        shown = (sequence[name]["value"] for name in ("accuracy", "balanced_accuracy", "auc"))
        rows.append(
            [
                fold.url,
                f"{groups['n']:,}",
                f"{sequence['n']:,}",
                *("undefined" if value is None else f"{value:.3f}" for value in shown),
            ]
        )
    unit = folds[0].metrics["groups"]["unit"]
    header = ["run", f"{unit}s", "sequences", "accuracy", "balanced accuracy", "AUC"]
    print_table("Each fold's test split, at sequence level:", header, rows)
