"""Canvas, colours and markers that all figures share, and SVG without timestamps."""

from __future__ import annotations

import io
import re
from typing import Any, NamedTuple

from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from lvlm.report.rows import Report

# Okabe and Ito's colour-blind safe set without black and yellow, so that each shows on white and on
# near-black.
_COLOURS = ("#0080c8", "#d55e00", "#009e73", "#cc79a7", "#c98a00", "#56b4e9")

_MARKERS = "osD^vPX*"

CONTROL_COLOUR = "#808080"

INK = "#010203"  # stands for the page's text colour until the SVG is written


class Style(NamedTuple):
    colour: str
    marker: str


class Picture(NamedTuple):
    title: str
    svg: str
    note: str  # how to read it


def styles(report: Report) -> dict[str, Style]:
    """One colour and one marker for each arm; past six arms the colours repeat with other markers."""
    others = [arm for arm in report.arms if arm != report.control]
    found = {
        arm: Style(_COLOURS[i % len(_COLOURS)], _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)])
        for i, arm in enumerate(others)
    }
    return {arm: found.get(arm, Style(CONTROL_COLOUR, "o")) for arm in report.arms}


_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lvlm",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # names may hold dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(_INKED, INK),
}


def new_canvas(height: float, panels: int = 1, width: float = 7.2) -> tuple[Canvas, list[Axes]]:
    canvas = Canvas(figsize=(width, height), layout="constrained")
    axes = canvas.subplots(1, panels, squeeze=False)
    for axis in axes[0]:
        axis.grid(color="#80808033", linewidth=0.6)
        axis.set_axisbelow(True)
    return canvas, list(axes[0])


def as_svg(canvas: Canvas, key: str, alt: str) -> str:
    """The figure as an inline element: ids made unique on the page, ink made the page's own, XML preamble
    dropped.

    key   goes in front of every id
    alt   what the figure shows, in words and numbers
    """
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", transparent=True)
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    svg = re.sub(
        r' xmlns(:\w+)?="[^"]*"', "", svg
    )  # HTML needs none; without 'http:' a page is easy to check
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)


def style_of(report: Report, arm: str, *, hollow: bool = False) -> dict[str, Any]:
    """Marker and colour of an arm; hollow where codes aren't read."""
    colour, marker = styles(report)[arm]
    return {"color": colour, "marker": marker, "markerfacecolor": "none" if hollow else colour}


def plain(text: str) -> str:
    """A name as a legend shows it: matplotlib hides labels that start with an underscore."""
    return text.lstrip("_") or "–"


def finish(axis: Axes, *, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=9)
