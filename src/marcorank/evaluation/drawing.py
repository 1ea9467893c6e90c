"""Draws the figures of the report as SVG whose text stays text and whose colours come from the page's style sheet."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from marcorank.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

# matplotlib knows no CSS variables: it draws with these colours, which are then replaced by `var(--NAME)`, so that one
# picture serves light and dark pages.
INK, MUTED, GRID, GAIN, LOSS = (f"#0{n}0{n}0{n}" for n in range(1, 6))
MODEL_COLOURS = tuple(f"#1{n}1{n}1{n}" for n in range(6))
_CSS_NAMES = dict(zip((INK, MUTED, GRID, GAIN, LOSS), ("ink", "muted", "grid", "gain", "loss"), strict=True)) | {
    colour: f"model-{index}" for index, colour in enumerate(MODEL_COLOURS)
}

_STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# matplotlib writes nothing but the picture.
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
# matplotlib's settings belong to the process; two reports at a time would draw in each other's.
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture, which is empty if there is nothing to draw, with a caption that explains what it shows."""

    title: str
    svg: str
    caption: str


def draw(title: str, caption: str, paint: Callable[[Any], None]) -> Figure:
    """Return what `paint` draws on the axes that it is called with; the legend goes above the axes."""
    try:
        from matplotlib import figure, style
    except ImportError as error:
        raise MissingExtraError(
            'The report needs matplotlib and jinja2: pip install "marcorank[evaluation]"'
        ) from error
    buffer = StringIO()
    # The salt keeps the ids of one page's pictures apart, and the same from run to run.
    with _lock, style.context(["default", {**_STYLE, "svg.hashsalt": title}]):
        canvas = figure.Figure(figsize=(5.6, 4), layout="constrained")
        axes = canvas.subplots()
        paint(axes)
        if axes.get_legend_handles_labels()[0]:
            canvas.legend(loc="outside upper left", ncols=6, handlelength=1.8, columnspacing=1)
        canvas.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :]
    # This style would apply to the whole page, and these ids occur in every picture.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub("|".join(_CSS_NAMES), lambda found: f"var(--{_CSS_NAMES[found[0]]})", svg)
    return Figure(title, svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1), caption)


def whole_numbers(axis: Any) -> None:
    """Label an axis with whole numbers only."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
