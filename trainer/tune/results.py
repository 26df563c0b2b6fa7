"""What a search has found: a table for the terminal, a file for machines, and a picture."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from trainer.console import print_table
from trainer.plurals import plural
from trainer.tune.space import Parameter

DONE, FAILED, UNFINISHED = "done", "failed", "unfinished"


@dataclass(frozen=True)
class TrialResult:
    """One trial.

    Attributes
    ----------
    name : str
        Of the trial and its folder.
    state : {"done", "failed", "unfinished"}
    auc : float, optional
        AUC of val's sessions at the best epoch; None where the trial has none.
    values : dict
        {parameter: value}.
    folder : str
        Its run folder.
    """

    name: str
    state: str
    auc: float | None
    values: dict[str, float]
    folder: str


def best_of(results: Sequence[TrialResult]) -> TrialResult | None:
    """Return the trial with the highest AUC, the first of equal ones; None where none is done."""
    done = [result for result in results if result.state == DONE and result.auc is not None]
    return max(done, key=lambda result: result.auc or 0.0, default=None)


def print_results(results: Sequence[TrialResult], parameters: Sequence[Parameter]) -> None:
    """Print all trials, the best first, and what the best one's number is worth."""
    ordered = sorted(results, key=lambda r: (r.auc is None, -(r.auc or 0.0)))
    names = [parameter.name.rpartition(".")[2] for parameter in parameters]
    rows = [
        [
            result.name,
            result.state if result.auc is None else f"{result.auc:.3f}",
            *(_short(result.values.get(parameter.name)) for parameter in parameters),
        ]
        for result in ordered
    ]
    title = f"{plural(len(results), 'trial')}, by the AUC of val's sessions:"
    print_table(title, ["trial", "val AUC", *names], rows)
    best = best_of(results)
    if best is None:
        print("No trial is done: there is no best one.")
        return
    flags = " ".join(f"--{name} {value:.6g}" for name, value in best.values.items())
    print(f"Best: trial {best.name} in {best.folder}: {flags}")
    equal = sum(result.auc == best.auc for result in results)
    ties = f"{equal} trials reach it: val does not tell which is best. " if equal > 1 else ""
    print(
        f"Its {best.auc:.3f} is the highest of {len(results)} on the same val sessions, so it is "
        f"too good. {ties}No trial has seen test; when the search is over, and for this trial "
        f"alone: python -m trainer evaluate {shlex.quote(best.folder)}"
    )


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def results_csv(results: Sequence[TrialResult], parameters: Sequence[Parameter]) -> bytes:
    """Return one line a trial, in their order, with every digit."""
    names = [parameter.name for parameter in parameters]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "val_session_auc", *names, "folder"])
    for result in results:
        values = [result.values.get(name, "") for name in names]
        auc = "" if result.auc is None else result.auc
        writer.writerow([result.name, result.state, auc, *values, result.folder])
    return text.getvalue().encode()


def results_png(results: Sequence[TrialResult], parameters: Sequence[Parameter]) -> bytes:
    """Return a picture of the AUC, over the trials and over each parameter."""
    done = [(index, r) for index, r in enumerate(results) if r.state == DONE and r.auc is not None]
    aucs = [result.auc or 0.0 for _, result in done]
    figure = Figure(figsize=(3.2 * (1 + len(parameters)), 3.2), layout="constrained")
    panels = figure.subplots(1, 1 + len(parameters), sharey=True)
    panels = [panels] if not parameters else list(panels)
    order = [index for index, _ in done]
    so_far = [max(aucs[: n + 1]) for n in range(len(aucs))]
    panels[0].step(order, so_far, where="post", color="0.6", label="best so far")
    panels[0].plot(order, aucs, "o", color="C0")
    panels[0].set(xlabel="trial", ylabel="AUC of val's sessions")
    panels[0].legend(loc="lower right", frameon=False)
    for panel, parameter in zip(panels[1:], parameters, strict=True):
        panel.plot([result.values[parameter.name] for _, result in done], aucs, "o", color="C0")
        panel.set_xlabel(parameter.name)
        panel.set_xscale("log" if parameter.log else "linear")
        panel.set_xlim(parameter.low, parameter.high)
    for panel in panels:
        # Chance.
        panel.axhline(0.5, color="0.8", zorder=0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
