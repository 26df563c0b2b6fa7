"""Matplotlib figures as inline SVG whose colours follow the page, light or dark."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

#: Inches. Below 600 px the page shows the narrow drawing.
WIDE, NARROW = 8.6, 3.7
INK = "#010101"
SOFT_INK = "#020202"
#: Placeholders: what is drawn in the n-th of them has the page's CSS colour `--series-n`.
SERIES = tuple(f"#0100{index:02x}" for index in range(8))
_CSS = {INK: "currentColor", SOFT_INK: "var(--soft)"} | {
    color: f"var(--series-{index})" for index, color in enumerate(SERIES)
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_STYLE: dict[Any, Any] = {
    # Text stays text, and other people's names are not read as formulas.
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "image.interpolation": "none",
} | dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
)


@contextmanager
def page_style(name: str) -> Iterator[None]:
    """Draw and save figures in the page's style; `name` makes the ids of a figure its own."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        yield


def inline_figure(name: str, alt: str, draw: Callable[[float], Figure]) -> Markup:
    """Return a wide and a narrow drawing of a figure; style sheets choose between them.

    Parameters
    ----------
    name : str
        Unique on the page.
    alt : str
        What the figure shows, for those who cannot see it.
    draw : callable
        Returns the figure for a width in inches.
    """
    drawings = []
    for kind, width in (("wide", WIDE), ("narrow", NARROW)):
        with page_style(f"{name}-{kind}"):
            drawings.append(inline_svg(draw(width), f"{name}-{kind}", kind, alt))
    return Markup("\n").join(drawings)


def inline_svg(figure: Figure, prefix: str, css_class: str, alt: str) -> Markup:
    """Return a figure as an ``<svg>`` element for an HTML page.

    Matplotlib's own style sheet would reach the whole page and its ids (``axes_1``) would meet
    those of other figures, so the one is moved to the element and the others are prefixed.
    """
    buffer = io.BytesIO()
    # Twice the page's resolution, for the pictures in it.
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, dpi=144, metadata=metadata)
    root = ET.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{prefix}-{value}")
            elif key == f"{{{_XLINK}}}href" and value.startswith("#"):
                element.set(key, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{prefix}-"))
            if key == "style":
                element.set(key, _page_colors(element.attrib[key]))
    for key in ("width", "height"):
        del root.attrib[key]
    root.set("class", css_class)
    root.set("role", "img")
    root.set("aria-label", alt)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return Markup(ET.tostring(root, encoding="unicode"))


def _page_colors(style: str) -> str:
    return re.sub(r"#[0-9a-f]{6}", lambda match: _CSS.get(match[0], match[0]), style)
