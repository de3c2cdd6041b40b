"""Canvas, colours and markers that all figures share, and SVG without timestamps."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from markupsafe import escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from lvlm.errors import one_of
from lvlm.report.rows import Report

# Okabe and Ito's colour-blind safe set without black and yellow, so that each shows on white and on
# near-black.
_COLOURS = ("#0080c8", "#d55e00", "#009e73", "#cc79a7", "#c98a00", "#56b4e9")

_MARKERS = "osD^vPX*"

CONTROL_COLOUR = "#808080"

GREY = "#57606a"

WIDTH = 7.2

FigureFormat = Literal["svg", "pdf"]

INK = "#010203"  # stands for the page's text colour until the SVG is written


class Style(NamedTuple):
    colour: str
    marker: str


@dataclass(frozen=True)
class Picture:
    """A figure: on a page, as SVG in the page's colours; as a file, in ink of its own.

    key    a word for its file, and in front of every id on a page
    alt    what it shows, in words and numbers
    note   how to read it
    """

    title: str
    key: str
    canvas: Canvas
    alt: str
    note: str

    @property
    def wide(self) -> bool:
        """Whether it takes the whole width of a page."""
        return self.canvas.get_figwidth() > WIDTH

    @property
    def svg(self) -> str:
        """An inline element: ids made unique on the page, ink made the page's own, XML preamble dropped."""
        svg = self.saved("svg").decode()
        svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
        svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{self.key}-", svg)
        svg = re.sub(
            r' xmlns(:\w+)?="[^"]*"', "", svg
        )  # HTML needs none; without 'http:' it is easy to check
        return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(self.alt)}" ', 1)

    def file(self, kind: FigureFormat) -> bytes:
        """A file of its own, whose grey ink stands out from white and black; the same bytes every time."""
        saved = self.saved(kind)
        return saved if kind == "pdf" else saved.replace(INK.encode(), GREY.encode())

    def saved(self, kind: FigureFormat) -> bytes:
        """As matplotlib writes it, without a date."""
        one_of(kind, FigureFormat, "format of figures")
        buffer = io.BytesIO()
        dated = {"svg": "Date", "pdf": "CreationDate"}[kind]
        with rc_context(SETTINGS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Creating legend")  # it takes a second where others compute
            self.canvas.savefig(buffer, format=kind, transparent=True, metadata={dated: None})
        return re.sub(rb"<metadata>.*?</metadata>", b"", buffer.getvalue(), flags=re.DOTALL)


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


def new_canvas(height: float, panels: int = 1, width: float = WIDTH) -> tuple[Canvas, list[Axes]]:
    canvas = Canvas(figsize=(width, height), layout="constrained")
    axes = canvas.subplots(1, panels, squeeze=False)
    for axis in axes[0]:
        axis.grid(color="#80808033", linewidth=0.6)
        axis.set_axisbelow(True)
    return canvas, list(axes[0])


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
