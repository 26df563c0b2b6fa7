"""The page itself: what the template is given, and every figure drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from trainer import __version__
from trainer.attention.figures import VIEWS, attention_figure, attention_title
from trainer.attention.file import METHODS, RANDOMIZED, AttentionMaps
from trainer.baselines.linear import meaning_of_probe
from trainer.console import format_p_value
from trainer.evaluation.calibration import meaning_of_temperature
from trainer.evaluation.intervals import FEW_GROUPS
from trainer.evaluation.levels import LEVELS, score_levels, study_design
from trainer.evaluation.predictions import Predictions
from trainer.plurals import plural
from trainer.report import figures, tables
from trainer.report.analysis import Missing, MoreTrials, RunAnalysis, fold_runs
from trainer.report.contents import RunContents
from trainer.report.finding import Tone
from trainer.report.fold_table import fold_rows
from trainer.report.svg import inline_figure
from trainer.report.verdict import CHANCE

TEMPLATES = Path(__file__).parent
#: More sessions than this are drawn, but not listed.
MOST_SESSIONS = 300


def render(analyses: Sequence[RunAnalysis], comparisons: Sequence[MoreTrials | Missing]) -> str:
    """Return the HTML page.

    Parameters
    ----------
    analyses : sequence of RunAnalysis
        One a run, in the order of the page.
    comparisons : sequence of MoreTrials or Missing
        What sequences of trials add to averages, or why that is not known.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["plural"] = plural
    environment.filters["flags"] = mark_flags
    compared = [c for c in comparisons if isinstance(c, MoreTrials)]
    parts = fold_runs([analysis.run for analysis in analyses])
    whole = [analysis for analysis in analyses if analysis.run not in parts]
    return environment.get_template("page.html").render(
        title=", ".join(analysis.run.name for analysis in whole),
        version=__version__,
        tones=Tone,
        metrics=[tables.METRIC_TITLES[name] for name in tables.OTHER_METRICS],
        run_tables=tables.run_tables(whole) if len(whole) > 1 else [],
        comparisons=[_comparison(index, c) for index, c in enumerate(compared)],
        not_compared=[c for c in comparisons if isinstance(c, Missing)],
        runs=[
            {**_run(index, analysis), "is_part": analysis.run in parts}
            for index, analysis in enumerate(analyses)
        ],
        most_sessions=MOST_SESSIONS,
    )


def mark_flags(text: str) -> Markup:
    """Return text, escaped, with its command line flags in ``<code>``."""
    return Markup(re.sub(r"--[a-z_.]*[a-z_]", r"<code>\g<0></code>", str(escape(text))))


def _comparison(index: int, comparison: MoreTrials) -> dict[str, Any]:
    found = tables.more_trials_tables(comparison)
    bars = []
    named = (
        (comparison.longer.name, comparison.metrics, True),
        (f"{comparison.single.name}, averaged", comparison.averaged, False),
    )
    for level in (table.level for table in found):
        for title, content, is_model in named:
            bars += _bars(f"{title} ({level})", content, level, is_model)
    return {
        "finding": comparison.finding,
        "title": f"{comparison.longer.name} and the average of {comparison.single.name}",
        "n_trials": comparison.longer.sequence.n_trials,
        "tables": found,
        "split": comparison.split,
        "notes": comparison.difference["notes"],
        "forest": inline_figure(
            f"more-trials-{index}",
            "AUC of sequences of trials and of averages over the same trials, with intervals",
            partial(figures.forest_figure, bars, "AUC", CHANCE),
        ),
    }


def _run(index: int, analysis: RunAnalysis) -> dict[str, Any]:
    """Return what the template shows of one run."""
    run, split = analysis.run, analysis.split
    predictions = run.predictions.get(split)
    drawn = dict(_figures(index, analysis))
    found = tables.baseline_tables(analysis)
    folds, best = fold_rows(analysis)
    probe = analysis.baselines.session_probe if analysis.baselines else None
    return {
        "analysis": analysis,
        "run": run,
        "name": run.name,
        "id": f"run-{index}",
        "split": split,
        "facts": _facts(analysis, predictions),
        "tables": found,
        "folds": folds,
        "fold_baseline": best,
        "splits": tables.split_rows(run),
        "sessions": tables.session_rows(predictions, run.classes) if predictions else [],
        "confusions": _confusions(analysis),
        "calibration": _calibration(analysis),
        "probe": probe,
        "probe_meaning": meaning_of_probe(probe) if probe else "",
        "attention": list(_attention(index, run)),
        "config": tables.config_rows(run.config),
        "origin": tables.origin_rows(analysis),
        "figures": drawn,
    }


def _facts(analysis: RunAnalysis, predictions: Predictions | None) -> list[tuple[str, str]]:
    run, metrics, level = analysis.run, analysis.metrics, analysis.level
    facts = [("Trials a sequence", f"{run.sequence.n_trials}")]
    if metrics is None or level is None:
        return facts
    cell = tables.metric_cell(metrics[level]["auc"])
    facts = [
        (f"AUC by {level}", f"{cell.value}"),
        ("95 % interval", cell.interval or "none"),
        ("p-value", format_p_value(metrics, level)),
        (f"{analysis.split} sessions", f"{metrics['session']['n']:,}"),
        *facts,
    ]
    if predictions is not None:
        subjects = {name for name in predictions.subject if name is not None}
        n_subjects = f"{len(subjects):,}" if subjects else "unknown"
        facts.insert(4, (f"{analysis.split} subjects", n_subjects))
    return facts


def _figures(index: int, analysis: RunAnalysis) -> Iterator[tuple[str, Markup]]:
    run, metrics, level = analysis.run, analysis.metrics, analysis.level

    def figure(name: str, alt: str, draw: Callable[[float], Any]) -> tuple[str, Markup]:
        return name, inline_figure(f"{name}-{index}", alt, draw)

    if metrics is not None and level is not None and analysis.baselines is not None:
        bars = _bars("ViT", metrics, level, is_model=True)
        for content in analysis.baselines.contents.values():
            bars += _bars(content["title"], content, level, is_model=False)
        if bars:
            draw = partial(figures.forest_figure, bars, f"AUC by {level}", CHANCE)
            yield figure("forest", "AUC of the ViT and the baselines, with intervals", draw)
    losses, scores = training_curves(run.log)
    if losses:
        draw = partial(figures.training_figure, losses, scores, run.best_step)
        yield figure("training", "Losses and validation metrics over the steps of training", draw)
    if analysis.split in run.predictions:
        predictions = run.predictions[analysis.split]
        design = study_design(predictions)
        levels, _ = score_levels(predictions, design)
        held = {name: (units.label, units.probability) for name, units in levels.items()}
        if len(np.unique(predictions.label)) > 1:
            draw = partial(figures.roc_figure, held, run.classes)
            yield figure("roc", "ROC curves of sequences, sessions and subjects", draw)
        draw = partial(figures.session_figure, design.sessions, *held["session"], run.classes)
        yield figure("sessions", "Mean probability of each session, by true class", draw)
    if metrics is not None:
        reliability = metrics["calibration"]["reliability"]
        named = {
            {"raw": "as it is", "calibrated": "with temperature"}[name]: curve
            for name, curve in reliability.items()
        }
        draw = partial(figures.reliability_figure, named)
        yield figure("reliability", "Accuracy of predictions by their probability", draw)


def training_curves(
    log: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, figures.Curve], dict[str, figures.Curve]]:
    """Return {name: (steps, values)} of losses, and of val's other metrics, from a run's log."""
    losses: dict[str, figures.Curve] = {}
    for split in ("train", "val"):
        losses |= _curve(log, split, "loss", split)
    scores: dict[str, figures.Curve] = {}
    for metric, title in (
        ("auc", "AUC of sessions"),
        ("balanced_accuracy", "balanced accuracy of sessions"),
        ("accuracy", "accuracy of sequences"),
    ):
        scores |= _curve(log, "val", metric, title)
    return losses, scores


def _curve(
    log: Sequence[Mapping[str, Any]], split: str, key: str, name: str
) -> dict[str, figures.Curve]:
    points = [
        (line["step"], line[key])
        for line in log
        if line["split"] == split and line.get(key) is not None
    ]
    if not points:
        return {}
    steps, values = np.array(points, dtype=np.float64).T
    return {name: (steps, values)}


def _bars(title: str, content: Mapping[str, Any], level: str, is_model: bool) -> list[figures.Bar]:
    entry = content.get(level, {}).get("auc")
    if entry is None or entry["value"] is None:
        return []
    return [figures.Bar(title, entry["value"], entry["low"], entry["high"], is_model)]


def _confusions(analysis: RunAnalysis) -> list[dict[str, Any]]:
    """Return, per level, the rows of the confusion matrix with the share of each true class."""
    if analysis.metrics is None:
        return []
    found = []
    for level in reversed(LEVELS):
        if level in analysis.metrics:
            matrix = analysis.metrics[level]["confusion_matrix"]
            rows = [[(n, n / max(1, sum(row))) for n in row] for row in matrix]
            found.append(
                {"level": level, "rows": list(zip(analysis.run.classes, rows, strict=True))}
            )
    return found


def _calibration(analysis: RunAnalysis) -> dict[str, Any] | None:
    if analysis.metrics is None:
        return None
    content = analysis.metrics["calibration"]
    rows = []
    if content["temperature"] is not None:
        for level in LEVELS:
            if level in content:
                before, after = analysis.metrics[level], content[level]
                cells = [
                    (tables.metric_cell(before[name]), tables.metric_cell(after[name]))
                    for name in after
                ]
                rows.append((level, cells))
    titles = [tables.METRIC_TITLES[name][0] for name in content.get("sequence", {})]
    temperature = content["temperature"]
    return {
        "temperature": temperature,
        "meaning": "" if temperature is None else meaning_of_temperature(temperature),
        "titles": titles,
        "rows": rows,
        **_val_units(analysis.run),
    }


def _val_units(run: RunContents) -> dict[str, Any]:
    """Return what a temperature rests on: ``rests_on`` as text, and whether that is ``few``."""
    content = run.metrics.get("val")
    if content is None:
        return {"rests_on": "", "few": False}
    groups, n = content["groups"], content["session"]["n"]
    rests_on = plural(n, "session")
    if groups["unit"] == "subject":
        rests_on += f" of {plural(groups['n'], 'animal')}"
    return {"rests_on": rests_on, "few": min(groups["per_class"].values()) < FEW_GROUPS}


def _attention(index: int, run: RunContents) -> Iterator[dict[str, Any]]:
    """Yield the figures of each split that was looked at, the headline first."""
    for split, maps in sorted(run.attention.items(), key=lambda item: item[0] != "test"):
        shown = []
        for method in METHODS:
            for view in VIEWS:
                title = attention_title(method, view)
                draw = partial(attention_figure, maps, method, view)
                name = f"attention-{split}-{method}-{view}-{index}"
                shown.append((title, inline_figure(name, title, draw)))
        yield {
            "split": split,
            "step": maps.step,
            "n_sequences": int(maps.n_sequences.sum()),
            "n_sessions": len(maps.sessions),
            "learned": [(METHODS[method], *learned(maps, method)) for method in METHODS],
            "figures": shown,
        }


def learned(maps: AttentionMaps, method: str) -> tuple[float, float, float]:
    """Return how uneven the map over all sessions is, trained and randomised, and how alike.

    Returns
    -------
    trained, randomized : float
        Coefficient of variation over the tokens; 0 where attention is spread evenly.
    correlation : float
        Pearson's, between the two maps; NaN where one is flat.
    """
    trained, control = (
        maps.maps[name].astype(np.float64).mean(axis=0).ravel()
        for name in (method, method + RANDOMIZED)
    )
    spread = [float(m.std() / m.mean()) for m in (trained, control)]
    flat = min(spread) == 0.0
    return spread[0], spread[1], math.nan if flat else float(np.corrcoef(trained, control)[0, 1])
