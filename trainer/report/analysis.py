"""From what runs hold to what is said of them: comparisons, findings, and what is missing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.baselines.folder import (
    Baselines,
    baselines_command,
    baselines_key,
    list_unfit,
    mismatch,
)
from trainer.evaluation.across_folds import difference_across_folds, metrics_across_folds
from trainer.evaluation.predictions import Predictions, PredictionsError, average_over_windows
from trainer.evaluation.results import evaluate_predictions, paired_difference
from trainer.report.contents import RunContents
from trainer.report.finding import Finding, Score
from trainer.report.verdict import is_hopeless, judge, more_trials_finding, verdict_level


@dataclass(frozen=True)
class Missing:
    """Something that a report would show if it were there.

    Attributes
    ----------
    what : str
        One sentence.
    command : str
        What makes it; empty where no command does.
    """

    what: str
    command: str = ""


@dataclass(frozen=True, eq=False)
class RunAnalysis:
    """A run, and what there is to say of it.

    Attributes
    ----------
    run : RunContents
    split : str
        The split that is judged: test, or val of a dataset that has no test.
    metrics : dict or None
        Of that split; None before the evaluation.
    baselines : Baselines or None
        On the same sequences.
    differences : dict
        {baseline: `paired_difference` of the run and it}.
    findings : list of Finding
        The headline first.
    missing : list of Missing
    """

    run: RunContents
    split: str
    metrics: dict[str, Any] | None
    baselines: Baselines | None
    differences: dict[str, dict[str, Any]]
    findings: list[Finding]
    missing: list[Missing]

    @property
    def level(self) -> str | None:
        """Level of the verdict; None before the evaluation."""
        return None if self.metrics is None else verdict_level(self.metrics)


@dataclass(frozen=True, eq=False)
class MoreTrials:
    """A run on sequences of trials, beside a one-trial run averaged over the same trials.

    Attributes
    ----------
    single, longer : RunContents
    split : str
    metrics, averaged : dict
        Metrics of the longer run, and of the averages.
    difference : dict
        `paired_difference` of the two.
    finding : Finding
    """

    single: RunContents
    longer: RunContents
    split: str
    metrics: dict[str, Any]
    averaged: dict[str, Any]
    difference: dict[str, Any]
    finding: Finding


def analyse(run: RunContents, candidates: Sequence[Baselines]) -> RunAnalysis:
    """Compare a run with the baselines of its sequences, and say what can be said.

    Parameters
    ----------
    run : RunContents
    candidates : sequence of Baselines
        The first that was judged on the run's sequences is taken.
    """
    split = judged_split(run)
    metrics = run.metrics.get(split)
    unfit = {candidate.url: why_unfit(run, split, candidate) for candidate in candidates}
    baselines = next((c for c in candidates if not unfit[c.url]), None)
    differences: dict[str, dict[str, Any]] = {}
    if baselines is not None and split in run.predictions:
        differences = {
            name: _paired(run, split, predictions)
            for name, predictions in baselines.predictions.items()
        }
    scores = {}
    if metrics is not None:
        level = verdict_level(metrics)
        found = {name: Score.of(content, level) for name, content in differences.items()}
        scores = {name: score for name, score in found.items() if score is not None}
    findings = judge(metrics, baselines.contents if baselines else {}, scores)
    unfit = {} if baselines else unfit
    missing = list(
        _missing_of_pooled(run, baselines) if run.folds else _missing(run, split, baselines, unfit)
    )
    return RunAnalysis(run, split, metrics, baselines, differences, findings, missing)


def _paired(run: RunContents, split: str, other: Predictions) -> dict[str, Any]:
    """Return the paired difference of a run from others on its sequences."""
    found = paired_difference(run.predictions[split], other, run.evaluation, run.seed)
    return difference_across_folds(found, len(run.folds)) if run.folds else found


def judged_split(run: RunContents) -> str:
    """Return test, or val where the dataset has no test split."""
    no_test = run.dataset is not None and not run.dataset.splits["test"].trials
    return "val" if no_test else "test"


def why_unfit(run: RunContents, split: str, baselines: Baselines) -> str:
    """Return why baselines cannot stand beside a run; empty if they can."""
    if run.fingerprint is None:
        return "cannot be compared: nothing says which dataset the run is of"
    wanted = baselines_key(run.fingerprint, split, run.sequence)
    reason = mismatch(next(iter(baselines.contents.values())), wanted)
    return f"are {reason}" if reason else ""


def fold_runs(runs: Sequence[RunContents]) -> list[RunContents]:
    """Return the runs that are folds of a cross-validation among them."""
    tested = {fold["dataset_fingerprint"] for run in runs for fold in run.folds}
    return [run for run in runs if not run.folds and run.fingerprint in tested]


def compare_with_averages(runs: Sequence[RunContents]) -> Iterator[MoreTrials | Missing]:
    """Compare every run on sequences of trials with every one-trial run on the same dataset.

    What k trials add is only shown against a one-trial model that is averaged over the same k.
    """
    singles = [run for run in runs if run.sequence.n_trials == 1]
    for longer in runs:
        split = judged_split(longer)
        evaluated = split in longer.predictions and split in longer.metrics
        if longer.sequence.n_trials == 1 or not evaluated:
            continue
        if not singles and longer.folds:
            yield Missing(
                f"No pooled one-trial runs to average stand beside {longer.name}: train one on "
                "each fold, pool them and give the report both."
            )
        elif not singles:
            both = _command("report", longer.url, _single_url(longer))
            yield Missing(
                f"No one-trial run to average stands beside {longer.name}: train one alike and "
                "give the report both.",
                f"{single_command(longer)} && {both}",
            )
        for single in singles:
            if split not in single.predictions:
                yield Missing(
                    f"{longer.name} is not compared with averages of {single.name}, which has no "
                    f"predictions of {split}.",
                    evaluate_command(single, split),
                )
            elif single.fingerprint != longer.fingerprint:
                yield Missing(
                    f"{longer.name} is not compared with averages of {single.name}: they are of "
                    "different datasets."
                )
            else:
                yield _compare(single, longer, split)


def _compare(single: RunContents, longer: RunContents, split: str) -> MoreTrials | Missing:
    predictions = longer.predictions[split]
    try:
        averages = average_over_windows(single.predictions[split], predictions)
    except PredictionsError as error:
        return Missing(f"{longer.name} is not compared with averages of {single.name}: {error}.")
    metrics = longer.metrics[split]
    averaged = evaluate_predictions(averages, longer.classes, longer.evaluation, longer.seed)
    if longer.folds:
        averaged = metrics_across_folds(averaged, len(longer.folds))
    difference = _paired(longer, split, averages)
    level = verdict_level(metrics)
    score, average = Score.of(metrics, level), Score.of(averaged, level)
    if score is None or average is None:
        return Missing(f"{longer.name} has no AUC on {split} to compare with that of averages.")
    finding = more_trials_finding(
        longer.sequence.n_trials,
        score,
        average,
        Score.of(difference, level),
        level,
        longer.name,
        hopeless=is_hopeless(metrics),
    )
    finding = replace(finding, advice=_trained_otherwise(single, longer))
    return MoreTrials(single, longer, split, metrics, averaged, difference, finding)


def _trained_otherwise(single: RunContents, longer: RunContents) -> str:
    """Return what else than the trials of a sequence may make two runs differ; empty if nothing."""
    one, other = _learning(single.config), _learning(longer.config)
    differing = [
        f"--{name} {json.dumps(one[name])} and {json.dumps(value)}"
        for name, value in other.items()
        if name in one and one[name] != value
    ]
    if not differing:
        return ""
    return (
        f"They were not trained alike ({', '.join(differing)}), so the difference need not "
        "come from the trials."
    )


def _learning(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return {flag: value} of what shapes a model and what it learns, apart from its trials."""
    sections = ("model", "augment", "optim")
    found = {f"{part}.{name}": v for part in sections for name, v in config.get(part, {}).items()}
    train = config.get("train", {})
    found |= {f"train.{name}": train[name] for name in ("epochs", "patience") if name in train}
    # A patch of several trials does not fit into one.
    found.pop("model.patch_trial", None)
    return found


def _missing(
    run: RunContents, split: str, baselines: Baselines | None, unfit: Mapping[str, str]
) -> Iterator[Missing]:
    make_baselines = baselines_command(
        run.data,
        run.url,
        split,
        run.sequence,
        cache=run.config.get("loader", {}).get("cache"),
        # Others that stand there are in the way.
        overwrite=run.url in unfit,
    )
    if run.best_step is None and not run.metrics:
        yield Missing("No epoch of the training is done.", run.command or train_command(run))
    if run.dataset is None:
        yield Missing(f"The dataset cannot be looked at: {run.dataset_error}.")
    if split not in run.metrics or split not in run.predictions:
        yield Missing(f"The run has not been evaluated on {split}.", evaluate_command(run, split))
    elif run.best_step not in (None, run.metrics[split]["checkpoint"]["step"]):
        evaluated = run.metrics[split]["checkpoint"]["step"]
        yield Missing(
            "The training went on after the evaluation: the numbers are those of step "
            f"{evaluated:,}, the best is now step {run.best_step:,}.",
            evaluate_command(run, split),
        )
    if baselines is None:
        yield Missing(
            f"There are no baselines of the same sequences{list_unfit(unfit)}.", make_baselines
        )
    elif baselines.contents.keys() - baselines.predictions.keys():
        yield Missing(
            f"Without the predictions in {baselines.url}/predictions the ViT and a baseline are "
            "compared by their intervals, which see less than a paired difference.",
            make_baselines,
        )
    if not run.attention:
        yield Missing("There are no attention maps.", attention_command(run, split))
    elif run.best_step not in (None, *(maps.step for maps in run.attention.values())):
        yield Missing(
            "The attention maps are of an earlier checkpoint.", attention_command(run, split)
        )


def _missing_of_pooled(run: RunContents, baselines: Baselines | None) -> Iterator[Missing]:
    if baselines is not None:
        return
    lacking = [fold for fold in run.folds if not fold["baselines"]]
    for fold in lacking:
        unfit = fold["unfit_baselines"]
        yield Missing(
            f"{fold['run']} has no baselines of its sequences{list_unfit(unfit)}.",
            baselines_command(
                fold["data"],
                fold["run"],
                judged_split(run),
                run.sequence,
                cache=run.config.get("loader", {}).get("cache"),
                overwrite=fold["run"] in unfit,
            ),
        )
    if not lacking and not set.intersection(*(set(fold["baselines"]) for fold in run.folds)):
        yield Missing("No baseline is of every fold: make the same ones for each.")
        return
    when = "When every fold has them, pool" if lacking else "Pool"
    yield Missing(
        f"There are no baselines of the sequences of all folds. {when} the runs again.", run.command
    )


def train_command(run: RunContents) -> str:
    """Return the command that goes on with a run."""
    return _command("train", "--config", f"{run.url}/config.yaml", "--output", run.url)


def single_command(run: RunContents) -> str:
    """Return the command that trains on single trials what a run was trained on sequences."""
    words = ["--config", f"{run.url}/config.yaml", "--output", _single_url(run)]
    flags = ["sequence.n_trials", "sequence.stride", "model.patch_trial"]
    return _command("train", *words, *(word for flag in flags for word in (f"--{flag}", "1")))


def _single_url(run: RunContents) -> str:
    return f"{run.url}-one-trial"


def evaluate_command(run: RunContents, split: str) -> str:
    """Return the command that evaluates a run."""
    return _command("evaluate", run.url, *([] if split == "test" else ["--split", split]))


def attention_command(run: RunContents, split: str) -> str:
    """Return the command that makes a run's attention maps."""
    return _command("attention", run.url, *([] if split == "test" else ["--split", split]))


def _command(*words: str) -> str:
    return f"python -m trainer {shlex.join(words)}"
