"""Evaluation: the best checkpoint over a split, to predictions and metrics with intervals."""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer import __version__
from trainer.config import Config
from trainer.console import Display, display, format_estimate, format_p_value, print_table
from trainer.data.dataset_folder import DatasetFolder, open_dataset
from trainer.data.loader import SequenceLoader, make_loader
from trainer.data.lost_sessions import lost_note
from trainer.distributed import Process, process_group
from trainer.evaluation.calibration import fit_temperature
from trainer.evaluation.levels import LEVELS
from trainer.evaluation.metrics import METRICS
from trainer.evaluation.predict import predict
from trainer.evaluation.predictions import write_predictions
from trainer.evaluation.results import evaluate_predictions
from trainer.hardware import use_bfloat16
from trainer.plurals import plural
from trainer.run_folder import RunFolder, open_run, write_json
from trainer.trained_model import TrainedModel, build_model, read_best, read_run_config

SPLITS = ("val", "test", "train")
#: What a split that is no test had to do with the model.
FLATTERING = {
    "train": "the model learned from train",
    "val": "the epoch and the temperature were chosen on val",
}
NO_TEMPERATURE = "val lacks a class, so no temperature was fitted: probabilities are as they came"
_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "pyarrow", "webdataset")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``evaluate``."""
    parser.epilog = (
        "With --vertex it is done in a job of Vertex AI: python -m trainer evaluate --vertex --help"
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or gs:// URL")
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="what to evaluate (default: %(default)s)"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="the dataset, if it is no longer where the run found it"
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate a run's best checkpoint as the command line asks."""
    with process_group() as process, _open_by_main(arguments.run, process) as folder:
        config, data = process.broadcast(
            read_run_config(folder.path) if process.is_main else (Config(), "")
        )
        dataset = open_dataset(arguments.data or data)
        contents = evaluate_best(folder, dataset, config, process, [arguments.split])
        if process.is_main:
            print_summary(arguments.split, contents[arguments.split])
            print(f"Written to {arguments.run}: predictions/ and metrics/ of {', '.join(contents)}")


@contextmanager
def _open_by_main(url: str, process: Process) -> Iterator[RunFolder]:
    """Open a run folder in the main process, the only one that reads and writes it."""
    if not process.is_main:
        yield RunFolder(url, Path())
        return
    with open_run(url, only_best=True) as folder:
        yield folder


def evaluate_best(
    folder: RunFolder,
    dataset: DatasetFolder,
    config: Config,
    process: Process,
    splits: Sequence[str],
    loaders: Mapping[str, SequenceLoader] | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate the best checkpoint on splits; write ``predictions/`` and ``metrics/`` of each.

    val is always evaluated, and first: the temperature comes from it.

    Parameters
    ----------
    folder : RunFolder
    dataset : DatasetFolder
    config : Config
        For the loader, the batch size and the intervals; the model has its own.
    process : Process
    splits : sequence of str
        A split that holds no sequence is an error.
    loaders : mapping, optional
        Loaders that are there already, by split.

    Returns
    -------
    dict
        {split: content of ``metrics/SPLIT.json``} in the order evaluated.

    Raises
    ------
    TrainerError
        If the run has no best checkpoint or belongs to another dataset.
    """
    best = process.broadcast(read_best(folder.path) if process.is_main else None)
    assert best is not None
    trained = build_model(*best)
    trained.check_dataset(dataset)
    model = trained.model.to(process.device)
    bfloat16 = use_bfloat16(trained.config.train.precision, process.device)
    temperature = None
    contents = {}
    with_val = ["val"] if dataset.splits["val"].trials else []
    for split in dict.fromkeys([*with_val, *splits]):
        loader = (loaders or {}).get(split) or evaluation_loader(
            dataset, split, trained.config, config, process
        )
        with display(loader.steps_per_epoch, silent=not process.is_main) as shown:
            advance = partial(_show_batches, shown, split)
            predictions = predict(model, loader, process, bfloat16, advance)
        if split == "val":
            temperature = fit_temperature(predictions.logits, predictions.label)
        if not process.is_main:
            continue
        contents[split] = evaluate_predictions(
            predictions,
            dataset.classes,
            config.evaluation,
            config.train.seed,
            temperature,
            _metadata(trained, dataset, split),
        )
        if with_val and temperature is None:
            contents[split]["notes"].append(NO_TEMPERATURE)
        contents[split]["notes"] += lost_note(
            loader.trials, loader.sequences, trained.config.sequence.max_gap, dataset.classes
        )
        write_predictions(
            folder.path / f"predictions/{split}.parquet", predictions, dataset.classes
        )
        write_json(folder.path / f"metrics/{split}.json", contents[split])
        folder.push()
    return contents


def _show_batches(shown: Display, split: str, done: int) -> None:
    shown.update(done, f"predicting {split}", "batches")


def evaluation_loader(
    dataset: DatasetFolder, split: str, trained: Config, config: Config, process: Process
) -> SequenceLoader:
    """Return a loader of every sequence of a split in their order.

    Parameters
    ----------
    dataset : DatasetFolder
    split : str
    trained : Config
        Its sequences and batch size.
    config : Config
        Its way of loading.
    process : Process
    """
    return make_loader(
        dataset,
        split,
        trained.sequence,
        config.loader,
        batch_size=trained.train.batch_size,
        device=process.device,
        seed=trained.train.seed,
        rank=process.rank,
        world_size=process.world_size,
        shuffle=False,
    )


def print_summary(split: str, content: Mapping[str, Any]) -> None:
    """Print what the best checkpoint reached on a split."""
    best = content["checkpoint"]
    print_metrics(f"{split}, best epoch {best['epoch']} (step {best['step']:,})", content)
    if split in FLATTERING:
        print(f"Note: these numbers flatter: {FLATTERING[split]}.")


def print_metrics(title: str, content: Mapping[str, Any]) -> None:
    """Print the metrics at each level, with their intervals, and what a reader must know."""
    groups = content["groups"]
    title += f", with 95 % intervals over {plural(groups['n'], groups['unit'])}"
    title += ":" if "across_folds" in content else " and one-sided p-values of the AUC:"
    levels = [level for level in LEVELS if level in content]
    header = ["", *(f"{level} (n={content[level]['n']:,})" for level in levels)]
    rows = [
        [name.replace("_", " "), *(format_estimate(content[level][name]) for level in levels)]
        for name in METRICS
    ]
    rows.append(["p-value", *(format_p_value(content, level, digits=3) for level in levels)])
    print_table(title, header, rows)
    for note in content["notes"]:
        print(f"Note: {note}.")


def _metadata(trained: TrainedModel, dataset: DatasetFolder, split: str) -> dict[str, Any]:
    return {
        "split": split,
        "dataset_fingerprint": dataset.fingerprint,
        "git_commit": git_commit(),
        "checkpoint": {
            "epoch": trained.entry.epoch,
            "step": trained.entry.step,
            "sha256": trained.entry.sha256,
        },
        "n_trials": trained.config.sequence.n_trials,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {"trainer": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Return the commit that this code is of, with ``-dirty`` where files differ from it.

    A container has no repository: there it is what ``GIT_COMMIT`` says. None where nobody knows.
    """
    root = Path(__file__).resolve().parents[2]
    # Without tags, so that it is the commit's hash.
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "-C", str(root), *describe]
    if (root / ".git").exists():
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return os.environ.get("GIT_COMMIT") or None
