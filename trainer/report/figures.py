"""The report's figures; each is a function of arrays and of a width in inches."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from trainer.attention.figures import shorten
from trainer.plurals import plural
from trainer.report.svg import INK, SERIES, SOFT_INK, WIDE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: More cannot be told apart on a screen, and would only make the page large.
MOST_POINTS = 600
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
#: One each for sequence, session and subject.
_LEVEL_STYLES: dict[str, dict[str, Any]] = {
    "sequence": {"color": SERIES[0], "linewidth": 1.4},
    "session": {"color": SERIES[1], "marker": "o", "markersize": 4, "linewidth": 1.0},
    "subject": {"color": SERIES[2], "marker": "s", "markersize": 4, "linewidth": 1.0},
}
_MARKERS = "osD^vP*X"


@dataclass(frozen=True)
class Bar:
    """A value with its interval, as a forest plot draws it.

    Attributes
    ----------
    name : str
    value : float
    low, high : float or None
        None where there is no interval.
    is_model : bool
        Whether it is what the report is about, or what that is compared with.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    is_model: bool


def forest_figure(bars: Sequence[Bar], label: str, chance: float | None, width: float) -> Figure:
    """Draw values with their intervals, the first on top.

    Parameters
    ----------
    bars : sequence of Bar
    label : str
        Of the axis.
    chance : float, optional
        Where guessing would be.
    width : float
    """
    names = [bar.name if width == WIDE else _two_lines(bar.name) for bar in bars]
    tall = 0.36 if any("\n" in name for name in names) else 0.27
    figure = Figure(figsize=(width, 0.75 + tall * len(bars)), layout="constrained")
    axes = figure.subplots()
    for row, bar in enumerate(bars):
        color = SERIES[0] if bar.is_model else SOFT_INK
        if bar.low is not None and bar.high is not None:
            axes.plot([bar.low, bar.high], [row, row], color=color, linewidth=2.2, alpha=0.55)
        axes.plot(bar.value, row, "o" if bar.is_model else "D", color=color, markersize=5.5)
    if chance is not None:
        axes.axvline(chance, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(
            "chance", (chance, 1.0), xycoords=("data", "axes fraction"), fontsize=7, ha="center"
        )
    axes.set_yticks(range(len(bars)), [shorten(name, 44) for name in names], linespacing=1.0)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
    return figure


def training_figure(
    losses: Mapping[str, Curve], scores: Mapping[str, Curve], best_step: int | None, width: float
) -> Figure:
    """Draw losses, and below them or beside them what val said at the end of each epoch.

    Parameters
    ----------
    losses, scores : mapping
        {name: (steps, values)}.
    best_step : int, optional
        Step of the best checkpoint.
    width : float
    """
    shape = (1, 2) if width == WIDE else (2, 1)
    figure = Figure(figsize=(width, 3.0 if width == WIDE else 4.6), layout="constrained")
    panels = figure.subplots(*shape, squeeze=False).ravel()
    for axes, curves, label in zip(panels, (losses, scores), ("loss", "val"), strict=True):
        for index, (name, curve) in enumerate(curves.items()):
            steps, values = map(_thin, curve)
            few = {"marker": _MARKERS[index], "markersize": 3.5} if len(steps) < 50 else {}
            axes.plot(steps, values, color=SERIES[index], linewidth=1.3, label=name, **few)
        if best_step is not None:
            axes.axvline(best_step, color=INK, linewidth=0.8, linestyle=":", label="best")
        axes.set_ylabel(label)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _legend(axes)
    return figure


def roc_figure(
    scores: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]],
    classes: Sequence[str],
    width: float,
) -> Figure:
    """Draw ROC curves: of class 1 of two, else of each class against the rest.

    Parameters
    ----------
    scores : mapping
        {level: (label (n,), probability (n, n_classes))}. A marker stands at every threshold
        between two sessions or subjects.
    classes : sequence of str
    width : float
    """
    shown = [1] if len(classes) == 2 else list(range(len(classes)))
    n_columns = min(len(shown), 3 if width == WIDE else 1)
    n_rows = -(-len(shown) // n_columns)
    side = 3.4 if len(shown) == 1 else width / n_columns
    figure = Figure(figsize=(min(width, side * n_columns), side * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, index in zip(panels, shown, strict=False):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":")
        for level, (label, probability) in scores.items():
            positive = label == index
            if positive.all() or not positive.any():
                continue
            # Every threshold that falls between two units, so that each step can be seen.
            score, drop = probability[:, index], level == "sequence"
            x, y, _ = roc_curve(positive, score, drop_intermediate=drop)
            if len(x) > MOST_POINTS:
                kept = np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int)
                x, y = x[kept], y[kept]
            axes.plot(x, y, label=level, **_LEVEL_STYLES[level], clip_on=False)
        axes.set_xlabel(f"other taken for {shorten(classes[index])}")
        axes.set_ylabel(f"{shorten(classes[index])} found")
        axes.set_aspect("equal")
        _legend(axes, loc="lower right")
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return figure


def reliability_figure(
    curves: Mapping[str, Mapping[str, Sequence[float | None]]], width: float
) -> Figure:
    """Draw how often predictions of each confidence are right, and how many there are.

    Parameters
    ----------
    curves : mapping
        {name: {"edges", "count", "confidence", "accuracy", "low", "high"}}, as in metrics JSON.
    width : float
    """
    figure = Figure(figsize=(min(width, 4.4), 4.4), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":")
    lowest = 1.0
    for index, (name, curve) in enumerate(curves.items()):
        color = SERIES[index]
        edges, count, x, y, low, high = (
            np.array(curve[key], dtype=np.float64)
            for key in ("edges", "count", "confidence", "accuracy", "low", "high")
        )
        filled = count > 0
        lowest = min(lowest, float(edges[:-1][filled].min(initial=1.0)))
        bounded = filled & np.isfinite(low) & np.isfinite(high)
        axes.vlines(x[bounded], low[bounded], high[bounded], color=color, alpha=0.4, linewidth=2)
        axes.plot(
            x[filled], y[filled], color=color, marker=_MARKERS[index], markersize=4, linewidth=1.2,
            label=name,
        )  # fmt: skip
        below.stairs(count, edges, color=color, linewidth=1.2)
    axes.set_xlim(lowest, 1.0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("right")
    below.set_xlabel("probability of the predicted class")
    below.set_ylabel("sequences")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    _legend(axes, loc="lower right")
    return figure


def session_figure(
    names: Sequence[str],
    label: NDArray[np.int64],
    probability: NDArray[np.float64],
    classes: Sequence[str],
    width: float,
) -> Figure:
    """Draw what the model says of each session, by true class.

    With two classes the probability of class 1, else that of the session's own class.

    Parameters
    ----------
    names : sequence of str
    label : int64 array of shape (n_sessions,)
    probability : float64 array of shape (n_sessions, n_classes)
    classes : sequence of str
    width : float
    """
    binary = len(classes) == 2
    score = probability[:, 1] if binary else probability[np.arange(len(label)), label]
    order = np.lexsort((score, label))
    figure = Figure(figsize=(width, 3.2), layout="constrained")
    axes = figure.subplots()
    right = probability.argmax(axis=1) == label
    styles: list[dict[str, Any]] = [
        {
            "marker": _MARKERS[index % len(_MARKERS)],
            "markeredgecolor": SERIES[index % len(SERIES)],
            "markerfacecolor": SERIES[index % len(SERIES)],
            "markersize": 6,
            "markeredgewidth": 1.5,
            "linestyle": "",
        }
        for index in range(len(classes))
    ]
    for index, style in enumerate(styles):
        for is_right in (True, False):
            x = np.flatnonzero((label[order] == index) & (right[order] == is_right))
            face = {} if is_right else {"markerfacecolor": "none"}
            axes.plot(x, score[order][x], **style | face, clip_on=False)
    if binary:
        axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1)
    axes.set_ylabel(f"probability of {shorten(classes[1]) if binary else 'the true class'}")
    if len(names) <= 40 and width == WIDE:
        ticks = [shorten(names[row]) for row in order]
        axes.set_xticks(range(len(names)), ticks, rotation=45, ha="right", fontsize=7)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{plural(len(names), 'session')}, by class and probability")
    axes.set_xlim(-0.7, len(names) - 0.3)
    handles = [Line2D([], [], **style) for style in styles]
    named = [shorten(name) for name in classes]
    figure.legend(handles, named, loc="outside upper right", ncols=1 if width < WIDE else 3)
    return figure


def _thin(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average runs of neighbours down to at most `MOST_POINTS` values."""
    starts = np.arange(0, len(values), -(-len(values) // MOST_POINTS))
    counts = np.diff(np.append(starts, len(values)))
    return np.asarray(np.add.reduceat(values, starts) / counts)


def _two_lines(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 18, max_lines=2, placeholder="…"))


def _legend(axes: Axes, **options: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, **options)
