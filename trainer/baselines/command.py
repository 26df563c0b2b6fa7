"""The command: read the shards once, fit every baseline, judge all on one split."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from trainer.baselines.features import TrialFeatures
from trainer.baselines.fitting import (
    TITLES,
    FittedBaseline,
    SplitFeatures,
    fit_baselines,
    mean_std_features,
    missing_baselines,
)
from trainer.baselines.folder import Baselines, baselines_key, check_free, write_baselines
from trainer.baselines.linear import meaning_of_probe, session_probe
from trainer.config import EvaluationConfig, SequenceConfig
from trainer.console import format_estimate, format_p_value, print_table
from trainer.data.dataset_folder import MANIFEST, SPLITS, DatasetFolder, open_dataset
from trainer.data.leakage import check_indices, check_manifest
from trainer.data.lost_sessions import lost_note
from trainer.data.reading_progress import reading_progress
from trainer.data.sequences import build_sequences
from trainer.data.shard_cache import cache_shards
from trainer.data.split_plan import check_classes
from trainer.data.split_scan import scan_split
from trainer.errors import TrainerError, UsageError
from trainer.evaluation.calibration import fit_temperature
from trainer.evaluation.command import git_commit
from trainer.evaluation.levels import LEVELS
from trainer.evaluation.predictions import Predictions, predictions_of
from trainer.evaluation.results import evaluate_predictions
from trainer.plurals import plural
from trainer.run_folder import open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``baselines``; those of sequences are ``train``'s."""
    parser.add_argument("data", metavar="DATA", help="dataset folder, or gs:// URL")
    parser.add_argument(
        "--output",
        default="out/baselines",
        metavar="DIR",
        help="folder or gs:// URL for baselines.json, session_probe.json and predictions/ "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace baselines in --output that are of another dataset, or made otherwise",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="folder on a disk of this machine that keeps the shards of a dataset behind a URL; "
        "their SHA-256 is checked every time",
    )
    parser.add_argument(
        "--split",
        choices=("val", "test"),
        default="test",
        help="what to judge; val also chooses the settings, so it flatters (default: %(default)s)",
    )
    default = SequenceConfig()
    parser.add_argument(
        "--sequence.n_trials",
        dest="n_trials",
        type=int,
        default=default.n_trials,
        metavar="N",
        help="consecutive trials in a sequence, as of the run to compare with "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--sequence.stride",
        dest="stride",
        type=int,
        default=default.stride,
        metavar="N",
        help="trials from one sequence to the next (default: half of n_trials)",
    )
    parser.add_argument(
        "--sequence.max_gap",
        dest="max_gap",
        type=int,
        default=default.max_gap,
        metavar="N",
        help="missing trial numbers tolerated between two neighbours (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of weights, order and bootstrap (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Fit and judge all baselines as the command line asks.

    Raises
    ------
    UsageError
        If a flag has a value that it cannot have, or the output holds other baselines.
    TrainerError
        If the dataset is damaged or leaks, or a split holds no sequence.
    """
    if arguments.seed < 0:
        raise UsageError(f"--seed is {arguments.seed}: it must be at least 0")
    sequence = SequenceConfig(arguments.n_trials, arguments.stride, arguments.max_gap)
    dataset = open_dataset(arguments.data)
    key = baselines_key(dataset.fingerprint, arguments.split, sequence) | {"seed": arguments.seed}
    # What a library warns of is said once, in the summary.
    with (
        warnings.catch_warnings(record=True) as caught,
        open_run(arguments.output, with_weights=False) as folder,
    ):
        warnings.simplefilter("default")
        if (folder.path / MANIFEST).exists():
            raise UsageError(
                f"--output {arguments.output} is a dataset: give the baselines a folder of their "
                "own, or that of a run"
            )
        if not arguments.overwrite:
            check_free(folder, key)
        splits = read_splits(dataset, sequence, arguments.split, arguments.cache)
        found = fit_and_judge(dataset, splits, arguments, key)
        write_baselines(folder, found)
    print_summary(found.contents, missing_baselines(dataset), found.session_probe)
    for text in dict.fromkeys(str(warning.message).partition("\n")[0] for warning in caught):
        print(f"note: some of the fits are ill-posed, with too little data: {text}")
    print(f"All numbers and predictions are in {arguments.output}")


def fit_and_judge(
    dataset: DatasetFolder,
    splits: Mapping[str, SplitFeatures],
    arguments: argparse.Namespace,
    key: Mapping[str, Any],
) -> Baselines:
    """Return every baseline that the dataset allows, and the session probe.

    Parameters
    ----------
    dataset : DatasetFolder
    splits : mapping
        Of `read_splits`.
    arguments : argparse.Namespace
    key : mapping
        What tells these baselines from others; it goes into the metrics of each.
    """
    metadata = {**key, "git_commit": git_commit()}
    contents, predictions = {}, {}
    for fitted in track(
        fit_baselines(dataset, splits, arguments.split, arguments.seed),
        description="Fitting",
        total=len(TITLES) - len(missing_baselines(dataset)),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ):
        judged = judge(fitted, dataset, splits, arguments, metadata)
        contents[fitted.name], predictions[fitted.name] = judged
    train = splits["train"]
    probe = session_probe(mean_std_features(train), train.sequences.rows, train.sequences.session)
    return Baselines(arguments.output, contents, predictions, probe)


def read_splits(
    dataset: DatasetFolder, sequence: SequenceConfig, judged: str, cache: str | None = None
) -> dict[str, SplitFeatures]:
    """Read every shard once, refuse a dataset that leaks, and cut its trials into sequences.

    Parameters
    ----------
    dataset : DatasetFolder
    sequence : SequenceConfig
    judged : str
    cache : str, optional
        Folder on a disk of this machine for the shards of a dataset behind a URL.

    Returns
    -------
    dict
        Train, the judged split, and val where it holds a sequence.

    Raises
    ------
    DatasetError
        If the dataset is damaged or leaks.
    TrainerError
        If train lacks sequences of a class, or the judged split holds none.
    """
    check_manifest(dataset)
    features = {
        split: TrialFeatures.empty(dataset.splits[split].trials, *dataset.shape) for split in SPLITS
    }
    n_trials = sum(split.trials for split in dataset.splits.values())
    if cache is not None and not dataset.storage.is_local:
        with reading_progress("Fetching shards", n_trials) as advance:
            dataset = cache_shards(dataset, SPLITS, Path(cache), advance)
    with reading_progress(f"Reading {dataset.url}", n_trials) as advance:
        indices = {
            split: scan_split(dataset, split, partial(TrialFeatures.add, features[split]), advance)
            for split in SPLITS
        }
    check_indices(dataset, indices)
    found = {}
    for split in SPLITS:
        trials = indices[split].trials
        sequences = build_sequences(
            trials, sequence.n_trials, sequence.resolved_stride, sequence.max_gap
        )
        if len(sequences) and split in ("train", "val", judged):
            found[split] = SplitFeatures(trials, sequences, features[split])
    _check_sequences(dataset, found, sequence, judged)
    return found


def _check_sequences(
    dataset: DatasetFolder,
    splits: Mapping[str, SplitFeatures],
    sequence: SequenceConfig,
    judged: str,
) -> None:
    held = set(splits["train"].label.tolist()) if "train" in splits else set()
    lacking = [name for index, name in enumerate(dataset.classes) if index not in held]
    wanted = f"sequence of {plural(sequence.n_trials, 'trial')}"
    advice = "lower --sequence.n_trials or raise --sequence.max_gap"
    if lacking:
        raise TrainerError(f"train holds no {wanted} of class {', '.join(lacking)}: {advice}")
    if judged in splits:
        check_classes(dataset, judged, sequence, splits[judged].trials, splits[judged].sequences)
        return
    if not dataset.splits[judged].trials:
        other = next((name for name in ("test", "val") if name in splits), None)
        advice = f"use --split {other}" if other else "make the dataset with another --split_ratios"
    raise TrainerError(f"{judged} holds no {wanted}: {advice}")


def judge(
    fitted: FittedBaseline,
    dataset: DatasetFolder,
    splits: Mapping[str, SplitFeatures],
    arguments: argparse.Namespace,
    metadata: Mapping[str, Any],
) -> tuple[dict[str, Any], Predictions]:
    """Return a baseline's metrics, as those of a run, and its predictions."""
    test, val = splits[arguments.split], splits.get("val")
    predictions = predictions_of(test.trials, test.sequences, fitted.logits)
    temperature = None
    if val is not None and fitted.val_logits is not None:
        temperature = fit_temperature(fitted.val_logits, val.label)
    content = evaluate_predictions(
        predictions,
        dataset.classes,
        EvaluationConfig(),
        arguments.seed,
        temperature,
        {"title": TITLES[fitted.name], "settings": fitted.settings, **metadata},
    )
    content["notes"] += lost_note(test.trials, test.sequences, arguments.max_gap, dataset.classes)
    return content, predictions


def print_summary(
    contents: Mapping[str, Mapping[str, Any]],
    missing: Mapping[str, str],
    probe: Mapping[str, float | int] | None,
) -> None:
    """Print one table of all baselines, and what a reader must know."""
    first = next(iter(contents.values()))
    levels = [level for level in LEVELS if level in first]
    top = levels[-1]
    header = [
        f"{first['split']}, {plural(first['n_trials'], 'trial')} a sequence",
        *(f"AUC, {level} (n={first[level]['n']:,})" for level in levels),
        f"p, {top}",
    ]
    rows = [
        [
            content["title"],
            *(format_estimate(content[level]["auc"], decimals=2) for level in levels),
            format_p_value(content, top, digits=3),
        ]
        for content in contents.values()
    ]
    print_table("", header, rows)
    for line in _remarks(first, missing, probe):
        print(line)


def _remarks(
    first: Mapping[str, Any], missing: Mapping[str, str], probe: Mapping[str, float | int] | None
) -> Sequence[str]:
    groups = first["groups"]
    lines = [
        f"AUC with 95 % intervals over {plural(groups['n'], groups['unit'])}; p-values cannot be "
        f"below {first['permutation']['smallest_p_value']:.3g}",
        *(f"note: {note}" for note in first["notes"]),
        *(f"left out: {TITLES[name]}: {reason}" for name, reason in missing.items()),
    ]
    if first["calibration"]["temperature"] is None:
        lines.append(
            "note: val is missing or lacks a class: every C is 1, the net is that of its last "
            "epoch, and probabilities are not calibrated"
        )
    if probe is not None:
        lines.append(
            f"session probe: mean/std of one train sequence names its session in "
            f"{probe['accuracy']:.0%} of cases, by chance {probe['chance']:.0%} "
            f"({plural(int(probe['n_sessions']), 'session')}); {meaning_of_probe(probe)}"
        )
    return lines
