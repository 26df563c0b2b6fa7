"""The report's tables, as rows for the template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.console import format_p_value
from trainer.data.dataset_folder import DatasetFolder
from trainer.evaluation.levels import LEVELS, score_levels, study_design
from trainer.evaluation.predictions import Predictions
from trainer.report.analysis import MoreTrials, RunAnalysis
from trainer.report.contents import SPLITS, RunContents

#: {metric: (what a reader calls it, whether higher is better)}.
METRIC_TITLES = {
    "balanced_accuracy": ("balanced accuracy", True),
    "accuracy": ("accuracy", True),
    "auc": ("AUC", True),
    "f1": ("F1", True),
    "log_loss": ("log loss", False),
    "brier": ("Brier", False),
    "ece": ("ECE", False),
}
#: All but the AUC, which stands first.
OTHER_METRICS = tuple(name for name in METRIC_TITLES if name != "auc")


@dataclass(frozen=True)
class Cell:
    """A number and its 95 % interval as text; `best` where no row has a better one."""

    value: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class MetricRow:
    """The metrics of one model.

    Attributes
    ----------
    title : str
    is_model : bool
        Whether it is a run, not a baseline.
    auc : Cell
    others : list of Cell
        In the order of `OTHER_METRICS`.
    p_value : str
    difference : Cell or None
        AUC of the run minus that of this row.
    """

    title: str
    is_model: bool
    auc: Cell
    others: list[Cell]
    p_value: str
    difference: Cell | None


@dataclass(frozen=True)
class LevelTable:
    """Models side by side at one level of `LEVELS` with `n` units."""

    level: str
    n: int
    rows: list[MetricRow]


def baseline_tables(analysis: RunAnalysis) -> list[LevelTable]:
    """Return one table a level, that of the verdict first: the ViT and the baselines."""
    if analysis.metrics is None:
        return []
    named: list[tuple[str, Mapping[str, Any], Mapping[str, Any] | None]]
    named = [("ViT", analysis.metrics, None)]
    if analysis.baselines is not None:
        named += [
            (content["title"], content, analysis.differences.get(name))
            for name, content in analysis.baselines.contents.items()
        ]
    return _level_tables(named, n_models=1)


def run_tables(analyses: Sequence[RunAnalysis]) -> list[LevelTable]:
    """Return one table a level with every run that was evaluated on test."""
    named = [
        (a.run.name, a.metrics, None)
        for a in analyses
        if a.metrics is not None and a.split == "test"
    ]
    return _level_tables(named, n_models=len(named)) if named else []


def more_trials_tables(comparison: MoreTrials) -> list[LevelTable]:
    """Return one table a level: sequences of trials, and averages over the same trials."""
    named = [
        (comparison.longer.name, comparison.metrics, None),
        (f"{comparison.single.name}, averaged", comparison.averaged, comparison.difference),
    ]
    return _level_tables(named, n_models=1)


def _level_tables(
    named: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any] | None]], n_models: int
) -> list[LevelTable]:
    tables = []
    for level in reversed(LEVELS):
        held = [
            (
                row,
                title,
                content[level],
                format_p_value(content, level),
                None if difference is None else difference[level],
            )
            for row, (title, content, difference) in enumerate(named)
            if level in content
        ]
        if not held:
            continue
        contents = [content for _, _, content, _, _ in held]
        best = {metric: _best(metric, contents) for metric in METRIC_TITLES}
        rows = [
            MetricRow(
                title,
                row < n_models,
                metric_cell(content["auc"], best["auc"]),
                [metric_cell(content[metric], best[metric]) for metric in OTHER_METRICS],
                p_value,
                None if difference is None else metric_cell(difference["auc"], None, "+"),
            )
            for row, title, content, p_value, difference in held
        ]
        tables.append(LevelTable(level, held[0][2]["n"], rows))
    return tables


def metric_cell(
    entry: Mapping[str, float | None], best: float | None = None, sign: str = ""
) -> Cell:
    """Return a value and its interval as text.

    Parameters
    ----------
    entry : mapping
        ``value``, ``low`` and ``high``.
    best : float, optional
        The best value of the table.
    sign : {"", "+"}
        "+" shows the sign of positive numbers too.
    """
    value, low, high = entry["value"], entry["low"], entry["high"]
    if value is None:
        return Cell("undefined")
    interval = ""
    if low is not None and high is not None:
        # A dash would look like a minus before signed numbers.
        dash = " to " if sign else "–"  # noqa: RUF001
        interval = f"{low:{sign}.2f}{dash}{high:{sign}.2f}"
    return Cell(f"{value:{sign}.3f}", interval, best is not None and value == best)


def _best(metric: str, contents: Sequence[Mapping[str, Any]]) -> float | None:
    values = [content[metric]["value"] for content in contents]
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    return float(max(known) if METRIC_TITLES[metric][1] else min(known))


@dataclass(frozen=True)
class SplitRow:
    """What a split holds; numbers as text, empty where they are not known."""

    split: str
    sequences: str
    trials: str
    sessions: str
    subjects: str
    prevalence: list[str]


def split_rows(run: RunContents) -> list[SplitRow]:
    """Return one row a split that is known of."""
    return list(_split_rows(run))


def _split_rows(run: RunContents) -> Iterator[SplitRow]:
    for split in SPLITS:
        content, held = run.metrics.get(split), run.predictions.get(split)
        if run.dataset is not None:
            stated = run.dataset.splits[split]
            trials = max(1, stated.trials)
            yield SplitRow(
                split,
                n_sequences(run, run.dataset, split),
                f"{stated.trials:,}",
                f"{len(stated.sessions):,}",
                f"{len(stated.subjects):,}" if stated.subjects else "unknown",
                [f"{stated.trials_per_class.get(c, 0) / trials:.0%}" for c in run.classes],
            )
        elif content is not None and held is not None:
            subjects = {name for name in held.subject if name is not None}
            yield SplitRow(
                split,
                f"{content['sequence']['n']:,}",
                "unknown",
                f"{content['session']['n']:,}",
                f"{len(subjects):,}" if subjects else "unknown",
                [f"{content['sequence']['prevalence'][c]:.0%}" for c in run.classes],
            )


def n_sequences(run: RunContents, dataset: DatasetFolder, split: str) -> str:
    """Return the number of sequences of a split, as far as it is known without the shards.

    Before the evaluation there is the number of trials of each session, which does not say where
    numbers are missing among them.
    """
    if split in run.metrics:
        return f"{run.metrics[split]['sequence']['n']:,}"
    sequence = run.sequence
    rows = dataset.read_sessions().to_pylist()
    n_trials = [sum(row["block_trials"]) for row in rows if row["split"] == split]
    starts = [n - sequence.n_trials for n in n_trials if n >= sequence.n_trials]
    # Sequences start anew after a gap, so what a longer stride leaves out may hold more of them.
    stride = min(sequence.resolved_stride, sequence.n_trials)
    n = sum(start // stride + 1 for start in starts)
    is_known = n == 0 or sequence.n_trials == sequence.resolved_stride == 1
    return f"{n:,}" if is_known else f"up to {n:,}"


@dataclass(frozen=True)
class SessionRow:
    """What a model says of one session.

    Attributes
    ----------
    session, subject, true, predicted : str
    n : int
        Sequences.
    probability : list of float
        Of each class, the mean over the sequences.
    right : bool
    """

    session: str
    subject: str
    true: str
    predicted: str
    n: int
    probability: list[float]
    right: bool


def session_rows(predictions: Predictions, classes: Sequence[str]) -> list[SessionRow]:
    """Return one row a session, ordered by class and name."""
    design = study_design(predictions)
    level = score_levels(predictions, design)[0]["session"]
    counts = np.bincount(design.session)
    subjects = dict(zip(predictions.session, predictions.subject, strict=True))
    predicted = level.probability.argmax(axis=1)
    rows = [
        SessionRow(
            session,
            subjects[session] or "unknown",
            classes[label],
            classes[guess],
            int(n),
            probability,
            bool(label == guess),
        )
        for session, label, guess, n, probability in zip(
            design.sessions,
            level.label.tolist(),
            predicted.tolist(),
            counts,
            level.probability.tolist(),
            strict=True,
        )
    ]
    return sorted(rows, key=lambda row: (classes.index(row.true), row.session))


def config_rows(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (flag without dashes, value) of every field of a config."""
    rows = []
    for section, fields in config.items():
        if isinstance(fields, Mapping):
            rows += [(f"{section}.{name}", _plain(value)) for name, value in fields.items()]
        else:
            rows.append((section, _plain(fields)))
    return rows


def _plain(value: object) -> str:
    return "none" if value is None else str(value)


def origin_rows(analysis: RunAnalysis) -> list[tuple[str, str]]:
    """Return (what, value) of where a run's numbers come from."""
    run, content = analysis.run, analysis.metrics or {}
    rows = [("Command", run.command), ("Dataset", run.data)]
    for fold in run.folds:
        step, digest = fold["checkpoint"]["step"], fold["checkpoint"]["sha256"]
        rows += [
            (f"{fold['run']}, dataset", fold["data"]),
            (f"{fold['run']}, dataset fingerprint", fold["dataset_fingerprint"]),
            (f"{fold['run']}, checkpoint", f"step {step:,}, SHA-256 {digest}"),
        ]
    if not run.folds:
        rows.append(("Dataset fingerprint", run.fingerprint or "unknown"))
    if run.dataset is not None:
        options = run.dataset.options
        rows += [
            (f"--{name}", _plain(options[name]))
            for name in ("baseline_mode", "normalization", "gain_correction")
            if name in options
        ]
    if content:
        rows.append(("Git commit", content["git_commit"] or "unknown"))
    if content and not run.folds:
        checkpoint = content["checkpoint"]
        rows += [
            ("Checkpoint", f"epoch {checkpoint['epoch']}, step {checkpoint['step']:,}"),
            ("Checkpoint SHA-256", checkpoint["sha256"]),
            *content["versions"].items(),
        ]
    return [(name, value) for name, value in rows if value]
