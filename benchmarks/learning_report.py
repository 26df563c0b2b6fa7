"""What the learning benchmark makes of its runs: targets, and a report in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from measure import Usage
from preprocess_report import Target

from trainer.console import format_p_value

WAY_LIMIT = 0.9
SECONDS_LIMIT = 15 * 60
AUC_LIMIT = 0.95
TITLES = {
    "effect": "generated, class in every single trial",
    "dynamics": "generated, class in the dynamics alone",
    "bonn_seizure": "bonn_seizure",
    "muse_site": "muse_site, each subject in test once",
}
MODELS = {"e1": "E1", "e3": "E3", "e1 averaged": "E1, averaged over the trials of E3"}
GENERATED = ("effect", "dynamics")


@dataclass(frozen=True)
class Command:
    """A command that was run for some data, and what it took."""

    data: str
    name: str
    usage: Usage


@dataclass(frozen=True)
class Result:
    """What a model reached on the test split.

    Attributes
    ----------
    data, model : str
        Keys of `TITLES` and `MODELS`.
    metrics : mapping
        As in ``metrics/test.json``.
    optimum : float or None
        Best possible accuracy; None where it is not known.
    """

    data: str
    model: str
    metrics: Mapping[str, Any]
    optimum: float | None = None

    def of_sequences(self, metric: str) -> tuple[float, float, float]:
        """Return a metric of single sequences, and the ends of its interval."""
        entry = self.metrics["sequence"][metric]
        return entry["value"], entry["low"], entry["high"]

    @property
    def title(self) -> str:
        return f"{TITLES[self.data]}, {MODELS[self.model]}"

    @property
    def majority(self) -> float:
        """Accuracy of naming the most frequent class of the test split every time."""
        return float(max(self.metrics["sequence"]["prevalence"].values()))

    @property
    def way(self) -> tuple[float, float, float] | None:
        """Way from 0.5 to the best possible accuracy, and the ends of its interval.

        None where the best possible accuracy is not known, or is 0.5.
        """
        if self.optimum is None or self.optimum <= 0.5:
            return None
        value, low, high = ((a - 0.5) / (self.optimum - 0.5) for a in self.of_sequences("accuracy"))
        return value, low, high


def judge(results: Sequence[Result], commands: Sequence[Command]) -> list[Target]:
    """Compare what was reached with what was asked for; no time is asked for of recordings."""
    found = {(result.data, result.model): result for result in results}
    targets = []
    for key in (("dynamics", "e3"), ("effect", "e1")):
        if (learned := found.get(key)) and learned.way:
            text = f"{learned.title}: way from 0.5 to the best possible accuracy"
            targets.append(Target(text, learned.way[0], WAY_LIMIT, at_most=False))
    if chance := found.get(("dynamics", "e1")):
        _, low, high = chance.of_sequences("accuracy")
        text = f"{chance.title}: {{}} end of the accuracy's interval"
        targets.append(Target(text.format("lower"), low, 0.5, at_most=True))
        targets.append(Target(text.format("upper"), high, 0.5, at_most=False))
    if bonn := found.get(("bonn_seizure", "e1")):
        auc = bonn.of_sequences("auc")[0]
        targets.append(Target(f"{bonn.title}: AUC", auc, AUC_LIMIT, at_most=False))
    if muse := found.get(("muse_site", "e1")):
        text = f"{muse.title}: accuracy, against the majority class"
        accuracy = muse.of_sequences("accuracy")[0]
        targets.append(Target(text, accuracy, muse.majority, at_most=False))
    for data in GENERATED:
        if of_data := [command.usage for command in commands if command.data == data]:
            text = f"{TITLES[data]}: wall seconds of all commands"
            wall = sum(usage.wall for usage in of_data)
            targets.append(Target(text, wall, SECONDS_LIMIT, at_most=True))
    return targets


def report(
    results: Sequence[Result],
    commands: Sequence[Command],
    machine: Mapping[str, str],
    versions: Mapping[str, str],
) -> str:
    """Return the whole report."""
    lines = ["# Learning", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines.append(f"- versions: {', '.join(f'{k} {v}' for k, v in versions.items())}")
    lines += ["", "| target | found | asked | |", "|---|---:|---:|---|"]
    for target in judge(results, commands):
        value = "" if target.value is None else f"{target.value:,.4g}"
        sign = "≤" if target.at_most else "≥"
        lines.append(f"| {target.text} | {value} | {sign} {target.limit:,.3g} | {target.verdict} |")
    lines += [
        "",
        "| data | model | test subjects | sequences | majority class | best possible | accuracy "
        "| of the way | AUC | p |",
        "|---|---|---:|---:|---:|---:|---|---|---|---:|",
    ]
    for result in results:
        optimum = "" if result.optimum is None else f"{result.optimum:.3f}"
        way = "" if result.way is None else _interval(*result.way)
        lines.append(
            f"| {TITLES[result.data]} | {MODELS[result.model]} "
            f"| {result.metrics['groups']['n']} | {result.metrics['sequence']['n']:,} "
            f"| {result.majority:.3f} | {optimum} | {_interval(*result.of_sequences('accuracy'))} "
            f"| {way} | {_interval(*result.of_sequences('auc'))} "
            f"| {format_p_value(result.metrics, 'sequence')} |"
        )
    lines += [
        "",
        "Of single sequences in the test split, with 95 % intervals of a cluster bootstrap over "
        "subjects and p-values of labels permuted over them.",
    ]
    for result in results:
        across = (
            [result.metrics["across_folds"]["note"]] if "across_folds" in result.metrics else []
        )
        lines += [f"{result.title}: {note}." for note in [*result.metrics["notes"], *across]]
    return "\n".join([*lines, "", *_times(commands)])


def _times(commands: Sequence[Command]) -> list[str]:
    """Table of what each command took; where one is run several times, of all of them."""
    lines = ["| data | command | runs | wall, s | CPU, s |", "|---|---|---:|---:|---:|"]
    for data in dict.fromkeys(command.data for command in commands):
        of_data = [command for command in commands if command.data == data]
        for name in dict.fromkeys(command.name for command in of_data):
            usages = [command.usage for command in of_data if command.name == name]
            lines.append(f"| {TITLES[data]} | {name} {_seconds(usages)}")
        lines.append(f"| {TITLES[data]} | all {_seconds([c.usage for c in of_data])}")
    return lines


def _seconds(usages: Sequence[Usage]) -> str:
    wall, cpu = (sum(getattr(usage, name) for usage in usages) for name in ("wall", "cpu"))
    return f"| {len(usages)} | {wall:.0f} | {cpu:.0f} |"


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
