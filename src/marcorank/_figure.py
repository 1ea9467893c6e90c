"""Figures of matplotlib that notebooks show without pyplot, and their SVG."""

from __future__ import annotations

import re
import threading
import warnings
from contextlib import contextmanager
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context, style
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# matplotlib writes nothing but the picture.
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
# matplotlib's settings belong to the process; two charts at a time would be drawn in each other's.
_lock = threading.RLock()


class NotebookFigure(Figure):
    """A figure that a notebook shows as SVG, whether or not pyplot is in use.

    Attributes:
        title: What it shows, for screen readers.
    """

    title = "chart"

    def to_svg(self) -> str:
        """Return the figure as SVG whose text stays text."""
        with settings({"font.family": "DejaVu Sans"}):
            return svg_of(self, title=self.title)

    def _repr_svg_(self) -> str:
        return self.to_svg()


@contextmanager
def settings(given: Mapping[str, Any]) -> Iterator[None]:
    """Draw with matplotlib's defaults and these settings, whatever the process has set, and then restore those."""
    with _lock, style.context(["default", dict(given)]):
        yield


def svg_of(figure: Figure, *, title: str, transparent: bool = False) -> str:
    """Return a figure as one element whose text stays text, the same from run to run."""
    buffer = StringIO()
    # The salt keeps the ids of one page's pictures apart.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}), warnings.catch_warnings():
        # Whoever shows the text has fonts for it.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=transparent, metadata=_NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :]
    # This style would apply to the whole page, and these ids occur in every picture.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # Letters of Verdana are as wide.
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    root = f'<svg role="img" aria-label="{escape(title)}" style="stroke-linejoin: round; stroke-linecap: butt" '
    return svg.replace("<svg ", root, 1)
