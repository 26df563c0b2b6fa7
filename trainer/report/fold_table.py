"""The folds of a cross-validation side by side, as rows for the template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.report.analysis import RunAnalysis
from trainer.report.tables import Cell
from trainer.report.verdict import strongest


@dataclass(frozen=True)
class FoldRow:
    """One fold of a cross-validation; numbers as text.

    Attributes
    ----------
    name : str
    units : str
        Of the level of the verdict.
    sequences : str
    scores : list of (Cell, Cell)
        AUC of the ViT and of a baseline, at the level of the verdict and at that of sequences.
    accuracy : str
        Balanced, of the ViT, at the level of sequences.
    temperature : str
    """

    name: str
    units: str
    sequences: str
    scores: list[tuple[Cell, Cell]]
    accuracy: str
    temperature: str


def fold_rows(analysis: RunAnalysis) -> tuple[list[FoldRow], str]:
    """Return one row a fold, and the title of the baseline in it: the strongest of all folds."""
    level = analysis.level or "sequence"
    contents = analysis.baselines.contents if analysis.baselines else {}
    best = strongest(contents, level)
    rows = []
    for fold in analysis.run.folds:
        ours, theirs = fold["metrics"], fold["baselines"].get(best, {})
        pairs = [
            _compared(_fold_value(ours, name, "auc"), _fold_value(theirs, name, "auc"))
            for name in (level, "sequence")
        ]
        temperature = fold["temperature"]
        rows.append(
            FoldRow(
                fold["run"],
                f"{ours[level]['n']:,}" if level in ours else "",
                f"{ours['sequence']['n']:,}",
                pairs,
                _three(_fold_value(ours, "sequence", "balanced_accuracy")),
                "none" if temperature is None else f"{temperature:.2f}",
            )
        )
    return rows, contents[best]["title"] if best else ""


def _fold_value(metrics: Mapping[str, Any], level: str, metric: str) -> float | None:
    value = metrics.get(level, {}).get(metric)
    return None if value is None else float(value)


def _compared(ours: float | None, theirs: float | None) -> tuple[Cell, Cell]:
    known = [value for value in (ours, theirs) if value is not None]
    best = max(known) if len(known) == 2 else None
    return Cell(_three(ours), best=best is not None and ours == best), Cell(
        _three(theirs), best=best is not None and theirs == best
    )


def _three(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
