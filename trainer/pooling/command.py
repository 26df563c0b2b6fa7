"""The command ``pool``: predictions of several models on data of their own, as one result."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from trainer.baselines.folder import (
    BASELINES,
    Baselines,
    baselines_command,
    baselines_key,
    check_free,
    list_unfit,
    open_baselines,
    read_baselines,
    remove_baselines,
    write_baselines,
)
from trainer.console import format_estimate, print_table
from trainer.data.dataset_folder import MANIFEST
from trainer.data.storage import DatasetError
from trainer.errors import TrainerError, UsageError
from trainer.evaluation.across_folds import difference_across_folds, metrics_across_folds
from trainer.evaluation.command import git_commit, print_metrics
from trainer.evaluation.levels import LEVELS
from trainer.evaluation.predictions import Predictions, read_predictions, write_predictions
from trainer.evaluation.results import evaluate_predictions, paired_difference
from trainer.pooling.baselines import choose_baselines, note_left_out, pool_baselines
from trainer.pooling.coverage import HeldSession, open_fold_dataset, read_sessions, unpredicted
from trainer.pooling.folds import (
    Fold,
    check_alike,
    check_options,
    fold_content,
    pool,
    pooled_fingerprint,
    shared_config,
)
from trainer.report.contents import METRIC_FIELDS
from trainer.report.finding import Score
from trainer.report.verdict import judge, verdict_level
from trainer.run_folder import (
    RunFolder,
    check_fields,
    is_remote,
    local_path,
    open_run,
    read_json,
    write_json,
)
from trainer.trained_model import read_run_config

SPLIT = "test"
METRICS = f"metrics/{SPLIT}.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``pool``."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, or gs:// URLs, one a fold"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="gets predictions/, metrics/ and baselines.json of all folds, as a run folder has "
        "them; `report` makes a page of it",
    )
    parser.add_argument(
        "--baselines",
        action="append",
        default=[],
        metavar="DIR",
        help=f"folder that `baselines` wrote for one of the folds, or its {BASELINES}; may be "
        "given more than once (default: the run folders)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate the test predictions of all folds as one, beside those of the baselines.

    Raises
    ------
    UsageError
        If there are fewer than two runs, they do not fit together, or the output is a run, a
        dataset, or holds other baselines or the result of other runs.
    TrainerError
        If a run was not evaluated.
    """
    urls = [url.rstrip("/") for url in arguments.runs]
    _check_output(arguments.output, urls)
    with ExitStack() as stack:
        output = stack.enter_context(open_run(arguments.output, with_weights=False))
        _check_content(output, urls)
        given = [open_baselines(stack, url) for url in arguments.baselines]
        folders = [stack.enter_context(open_run(url, with_weights=False)) for url in urls]
        folds = [_read(folder, url, given) for folder, url in zip(folders, urls, strict=True)]
        pooled = pool([fold.predictions for fold in folds], urls)
        check_alike(folds)
        content, baselines = evaluate_folds(folds, pooled, arguments.baselines)
        _check_baselines(output, content, folds[0])
        # Else those of before would stand beside new predictions if this were cut off.
        (output.path / METRICS).unlink(missing_ok=True)
        if baselines is None:
            remove_baselines(output)
        else:
            write_baselines(output, baselines)
        write_predictions(output.path / f"predictions/{SPLIT}.parquet", pooled, content["classes"])
        # Last: it says that all the rest is there.
        write_json(output.path / METRICS, content)
    _print_folds(folds)
    print_metrics(f"{SPLIT} of {len(folds)} folds", content)
    print(f"Note: {content['across_folds']['note']}.")
    _print_verdict(folds, pooled, content, baselines)
    print(
        f"Written to {arguments.output}: predictions/ and metrics/; one page of it: "
        f"python -m trainer report {shlex.quote(arguments.output)}"
    )


def evaluate_folds(
    folds: Sequence[Fold], pooled: Predictions, given: Sequence[str]
) -> tuple[dict[str, Any], Baselines | None]:
    """Return the pooled metrics, and the pooled baselines where every fold has them.

    Parameters
    ----------
    folds : sequence of Fold
    pooled : Predictions
        Of their models.
    given : sequence of str
        Where the user looked for baselines, beside the runs.

    Raises
    ------
    UsageError
        If their datasets were not computed alike.
    """
    first = folds[0]
    config, seed = first.config, first.config.train.seed
    fingerprint = pooled_fingerprint([fold.metrics["dataset_fingerprint"] for fold in folds])
    metadata = {
        **baselines_key(fingerprint, SPLIT, config.sequence),
        "git_commit": git_commit(),
    }
    held, unknown = _held_sessions(folds)
    content = evaluate_predictions(
        pooled,
        first.classes,
        config.evaluation,
        seed,
        metadata={
            **metadata,
            "folds": [fold_content(fold) for fold in folds],
            "given_baselines": list(given),
            "config": shared_config([fold.config for fold in folds]),
            "unpredicted": {
                **unpredicted(held, pooled.session, config.sequence.n_trials),
                "unknown": unknown,
            },
        },
    )
    content = metrics_across_folds(content, len(folds))
    found = [fold.baselines for fold in folds if fold.baselines is not None]
    if len(found) < len(folds):
        return content, None
    content["notes"] += note_left_out(found)
    return content, pool_baselines(found, first.classes, config.evaluation, seed, metadata)


def _held_sessions(folds: Sequence[Fold]) -> tuple[dict[str, list[HeldSession]], list[str]]:
    """Return the sessions of every fold's dataset, and why those of others are not known.

    Raises
    ------
    UsageError
        If the datasets were not computed alike.
    """
    held, options, unknown = {}, {}, []
    for fold in folds:
        try:
            dataset = open_fold_dataset(fold.data, fold.metrics["dataset_fingerprint"])
            held[fold.url], options[fold.url] = read_sessions(dataset), dataset.options
        except DatasetError as error:
            unknown.append(str(error))
    check_options(options)
    return held, unknown


def _place(url: str) -> str:
    return url.rstrip("/") if is_remote(url) else str(local_path(url).resolve())


def _check_output(output: str, urls: Sequence[str]) -> None:
    """Refuse to write over one of the runs, whatever it was evaluated with."""
    if _place(output) in map(_place, urls):
        raise UsageError(
            f"--output {output} is one of the runs: give the result a folder of its own"
        )


def _check_content(output: RunFolder, urls: Sequence[str]) -> None:
    """Refuse to write over a run, a dataset or the pooled result of other runs."""
    for name, what in (("config.yaml", "run"), (MANIFEST, "dataset")):
        if (output.path / name).exists():
            raise UsageError(
                f"--output {output.url} is a {what}: give the result a folder of its own"
            )
    try:
        pooled = [fold["run"] for fold in read_json(output.path / METRICS)["folds"]]
    except (TrainerError, KeyError, TypeError):
        return
    left = [url for url in pooled if _place(url) not in map(_place, urls)]
    if left:
        raise UsageError(
            f"--output {output.url} holds the result of other runs ({', '.join(left)}): give this "
            "one a folder of its own, or remove that one"
        )


def _check_baselines(output: RunFolder, content: Mapping[str, Any], fold: Fold) -> None:
    """Refuse to write over baselines that are no part of a pooled result of these runs."""
    if (output.path / METRICS).exists():
        return
    key = baselines_key(content["dataset_fingerprint"], SPLIT, fold.config.sequence)
    check_free(output, key, "give the pooled result a folder of its own")


def _read(folder: RunFolder, url: str, given: Sequence[Baselines]) -> Fold:
    path = folder.path / METRICS
    if not path.exists():
        raise TrainerError(f"{url} holds no {METRICS}: python -m trainer evaluate {url}")
    config, data = read_run_config(folder.path)
    metrics = check_fields(path, read_json(path), METRIC_FIELDS)
    predictions, classes = read_predictions(folder.path / f"predictions/{SPLIT}.parquet")
    own = read_baselines(folder)
    baselines, unfit = choose_baselines(
        [*([own] if own else []), *given],
        baselines_key(metrics["dataset_fingerprint"], SPLIT, config.sequence),
        predictions,
    )
    return Fold(url, data, config, predictions, classes, metrics, baselines, unfit)


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


def _print_verdict(
    folds: Sequence[Fold],
    pooled: Predictions,
    content: Mapping[str, Any],
    baselines: Baselines | None,
) -> None:
    """Print the model beside the baselines, and in one line each what follows from it."""
    level, first = verdict_level(content), folds[0].config
    differences: dict[str, Score] = {}
    if baselines is not None:
        for name, predictions in baselines.predictions.items():
            paired = paired_difference(pooled, predictions, first.evaluation, first.train.seed)
            paired = difference_across_folds(paired, len(folds))
            if (score := Score.of(paired, level)) is not None:
                differences[name] = score
        _print_baselines(content, baselines, differences, level)
    headline, *others = judge(content, baselines.contents if baselines else {}, differences)
    print(f"Verdict: {headline.title}. {headline.text}")
    for finding in others:
        # Notes stand below the metrics already.
        if finding.tone != "note":
            print(f"{finding.tone.capitalize()}: {finding.title}. {finding.text}")
    for fold in folds:
        if fold.baselines is None:
            print(
                f"{fold.url} has no baselines of its sequences{list_unfit(fold.unfit_baselines)}. "
                f"Run: {fold_baselines_command(fold)}"
            )


def fold_baselines_command(fold: Fold) -> str:
    """Return the command that puts baselines on a fold's sequences into its run's folder."""
    return baselines_command(
        fold.data,
        fold.url,
        SPLIT,
        fold.config.sequence,
        cache=fold.config.loader.cache,
        # Others that stand there are in the way.
        overwrite=fold.url in fold.unfit_baselines,
    )


def _print_baselines(
    content: Mapping[str, Any],
    baselines: Baselines,
    differences: Mapping[str, Score],
    level: str,
) -> None:
    levels = [name for name in LEVELS if name in content]
    named = {"": {"title": "ViT", **content}, **baselines.contents}
    rows = [
        [
            entry["title"],
            *(format_estimate(entry[name]["auc"], decimals=2) for name in levels),
            differences[name].signed() if name in differences else "",
        ]
        for name, entry in named.items()
    ]
    header = ["", *(f"AUC, {name}" for name in levels), f"ViT minus this, {level}"]
    print_table("Beside the baselines, on the same sequences:", header, rows)
