"""Attention maps as figures: trained next to randomised weights, in one colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from trainer.attention.file import METHODS, RANDOMIZED, AttentionMaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What a figure shows of (trial, freq, time): the axis that is summed over, and the one upwards.
VIEWS = {"time-trial": (1, "trial"), "time-frequency": (0, "frequency (Hz)")}
#: Names longer than this are cut in figures.
LONGEST_NAME = 20
NARROW = 5.0
Map = NDArray[np.float64]


def relative_maps(maps: AttentionMaps, name: str, view: str) -> Map:
    """Return each class's map in units of attention that is spread evenly.

    Returns
    -------
    float64 array of shape (n_classes, rows, n_times)
        1 where a token gets what each would get of evenly spread attention.
    """
    summed, _ = VIEWS[view]
    means = maps.class_means(name)
    return np.asarray(means.mean(axis=1 + summed) * means[0].size)


def differences(relative: Map, names: Sequence[str]) -> list[tuple[str, Map]]:
    """Return (title, difference of maps): of two classes one, else each from the mean of all."""
    if len(names) == 2:
        return [(f"{names[1]} minus {names[0]}", relative[1] - relative[0])]
    centre = np.nanmean(relative, axis=0)
    return [
        (f"{name} minus the mean", row - centre) for name, row in zip(names, relative, strict=True)
    ]


def attention_figure(maps: AttentionMaps, method: str, view: str, width: float) -> Figure:
    """Draw the map of each class and what differs between classes.

    The trained model stands on the left, randomised weights on the right, or on a narrow figure
    one below the other. All classes, of both, share one colour scale, and so do all differences.

    Parameters
    ----------
    maps : AttentionMaps
    method : str
        Of `METHODS`.
    view : str
        Of `VIEWS`.
    width : float
        Inches.
    """
    is_narrow = width < NARROW
    names = [shorten(name, 12 if is_narrow else LONGEST_NAME) for name in maps.classes]
    columns = []
    for suffix, weights in (("", "trained"), (RANDOMIZED, "randomised weights")):
        relative = relative_maps(maps, method + suffix, view)
        means = zip(names, relative, strict=True)
        panels = [(f"{name}, {weights}", panel, False) for name, panel in means]
        panels += [
            (f"{title}, {weights}", panel, True) for title, panel in differences(relative, names)
        ]
        columns.append(panels)
    every = [panel for column in columns for panel in column]
    styles = {
        signed: _color_scale(np.array([panel for _, panel, s in every if s == signed]), signed)
        for signed in (False, True)
    }
    n_rows, n_columns = len(columns[0]), 2
    if is_narrow:
        columns, n_rows, n_columns = [columns[0] + columns[1]], 2 * n_rows, 1

    tall = 0.45 + 0.06 * min(columns[0][0][1].shape[0], 16)
    figure = Figure(figsize=(width, 0.9 + n_rows * (tall + 0.3)), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for column, panels in enumerate(columns):
        for row, (title, panel, signed) in enumerate(panels):
            _draw(axes[row, column], panel, maps, view, title, styles[signed])
    for bottom in axes[-1]:
        bottom.set_xlabel("time from the onset (s)")
    rows = np.array([signed for _, _, signed in columns[0]])
    for signed in styles:
        beside = axes[rows == signed]
        label = "difference" if signed else "1 = spread evenly"
        place: dict[str, Any] = {"ax": beside.ravel().tolist(), "aspect": 12, "pad": 0.02}
        if is_narrow:
            place = {"ax": axes.ravel().tolist(), "location": "bottom", "aspect": 40, "pad": 0.01}
        bar = figure.colorbar(beside[0, 0].images[0], **place)
        bar.set_label(label, fontsize=7)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(4)
        bar.update_ticks()
    figure.supylabel(VIEWS[view][1], fontsize=9)
    return figure


def attention_title(method: str, view: str) -> str:
    """Return what `attention_figure` shows, in words."""
    return f"{METHODS[method]}, {view.replace('-', ' x ')}"


def shorten(name: str, longest: int = LONGEST_NAME) -> str:
    """Cut a name that would not fit in a figure."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _color_scale(panels: Map, signed: bool) -> dict[str, Any]:
    finite = panels[np.isfinite(panels)]
    if signed:
        limit = float(np.abs(finite).max(initial=0.0)) or 1e-6
        return {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    low, high = float(finite.min(initial=1.0)), float(finite.max(initial=1.0))
    return {"cmap": "viridis", "vmin": low, "vmax": max(high, low + 1e-6)}


def _draw(
    axes: Axes, panel: Map, maps: AttentionMaps, view: str, title: str, style: dict[str, Any]
) -> None:
    # Tokens are drawn equally large, whatever they cover; the ticks say where they lie.
    axes.imshow(panel, origin="lower", aspect="auto", **style)
    axes.set_title(title, fontsize=8, loc="left", pad=3)
    axes.set_xticks(*_ticks(maps.times, 6))
    if view == "time-trial":
        names = trial_names(maps.trials)
        step = -(-len(names) // 4)
        axes.set_yticks(range(0, len(names), step), names[::step])
    else:
        axes.set_yticks(*_ticks(maps.freqs, 3))
    axes.tick_params(labelsize=7)
    onset = _position(maps.times, 0.0)
    if 0 <= onset <= len(maps.times) - 1:
        axes.axvline(onset, color="white", linewidth=1.6)
        axes.axvline(onset, color="black", linewidth=0.7)


def trial_names(centres: Map) -> list[str]:
    """Return which trials each token covers, from the mean of their numbers: "1-2", "3-4", "5"."""
    names, first = [], 1
    for centre in centres:
        last = round(2 * centre) - first
        names.append(f"{first}" if first == last else f"{first}-{last}")
        first = last + 1
    return names


def _ticks(values: Map, most: int) -> tuple[Map, list[str]]:
    """Return round values within an axis, as positions among its tokens, and their names."""
    found = MaxNLocator(most).tick_values(values[0], values[-1])
    inside = found[(found >= values[0]) & (found <= values[-1])]
    if not len(inside):
        inside = values[:1]
    return np.array([_position(values, value) for value in inside]), [f"{v:g}" for v in inside]


def _position(values: ArrayLike, value: float) -> float:
    """Return where a value lies among ascending ones, as a fractional index; -1 outside."""
    known = np.asarray(values, dtype=np.float64)
    return float(np.interp(value, known, np.arange(len(known)), left=-1.0, right=-1.0))
