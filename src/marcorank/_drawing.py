"""Charts, each drawn by one function: as SVG for pages, and as a figure of matplotlib for notebooks and files."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marcorank.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from marcorank._figure import NotebookFigure

_CAPTION_CHARS = 72
# More labels do not fit beside each other.
_LEGEND_CHARS = 60
# More rows leave too little of the height to the chart, which is then made higher.
_LEGEND_ROWS, _ROW_INCHES = 6, 0.25
_LINE_INCHES = 0.17


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a chart, as matplotlib spells them."""

    ink: str
    muted: str
    grid: str
    gain: str
    loss: str
    models: tuple[str, ...]


LIGHT = Palette(
    ink="#1b1f24",
    muted="#5b6470",
    grid="#dfe3e8",
    gain="#0b62b0",
    loss="#c2500a",
    models=("#0b62b0", "#c2500a", "#0a7a5c", "#a23b86", "#7a6200", "#4b5563"),
)
"""For white paper. The style sheet of the report has the same colours, and others for dark screens."""

# matplotlib knows no CSS variables: it draws with these colours, which are then replaced by `var(--NAME)`, so that one
# picture serves light and dark pages.
_PAGE = Palette("#010101", "#020202", "#030303", "#040404", "#050505", tuple(f"#1{n}1{n}1{n}" for n in range(6)))
_CSS_NAMES = {getattr(_PAGE, name): name for name in ("ink", "muted", "grid", "gain", "loss")} | {
    colour: f"model-{index}" for index, colour in enumerate(_PAGE.models)
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart that is yet to be drawn.

    Attributes:
        title: What it shows.
        caption: A sentence or two about what can be seen.
        paint: Draws on the axes that it is called with, in the colours of a palette; None if there is nothing to draw.
        size: Width and height in inches, without title and caption.
    """

    title: str
    caption: str
    paint: Callable[[Any, Palette], None] | None
    size: tuple[float, float] = (5.6, 4.0)

    def svg(self) -> str:
        """Return SVG without title and caption, for a page whose style sheet has the colours as variables.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        if self.paint is None:
            return ""
        drawn = _figures()
        with drawn.settings(_style(_PAGE)):
            figure = drawn.NotebookFigure(figsize=self.size, layout="constrained")
            self._fill(figure, _PAGE)
            svg = drawn.svg_of(figure, title=self.title, transparent=True)
        return re.sub("|".join(_CSS_NAMES), lambda found: f"var(--{_CSS_NAMES[found[0]]})", svg)

    def figure(self) -> NotebookFigure:
        """Return a figure with title and caption on white, which pyplot does not know.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        drawn = _figures()
        caption = textwrap.wrap(self.caption, round(_CAPTION_CHARS * self.size[0] / 5.6))
        width, height = self.size
        with drawn.settings(_style(LIGHT)):
            size = (width, height + 0.4 + _LINE_INCHES * len(caption))
            figure: NotebookFigure = drawn.NotebookFigure(figsize=size, layout="constrained", facecolor="white")
            figure.title = self.title
            axes = self._fill(figure, LIGHT)
            look = {"fontsize": 13, "fontweight": "bold", "parse_math": False}
            if figure.legends:
                # Both would be drawn at the upper edge, one over the other.
                (legend,) = figure.legends
                legend.set(title=self.title, alignment="left")
                legend.get_title().set(**look)
            else:
                figure.suptitle(self.title, x=0.01, ha="left", **look)
            if caption:
                look = {"ha": "left", "fontsize": 9, "color": LIGHT.muted, "parse_math": False}
                figure.supxlabel("\n".join(caption), x=0.01, **look)
            # matplotlib makes further ticks when it draws, which may be under other settings.
            axes.tick_params(colors=LIGHT.ink, grid_color=LIGHT.grid, labelsize=12)
        return figure

    def _fill(self, figure: Any, palette: Palette) -> Any:
        axes = figure.subplots()
        if self.paint is not None:
            self.paint(axes, palette)
        if axes.get_legend_handles_labels()[0]:
            labels = axes.get_legend_handles_labels()[1]
            columns = max(1, min(6, _LEGEND_CHARS // max(1, *map(len, labels))))
            legend = figure.legend(loc="outside upper left", ncols=columns, handlelength=1.8, columnspacing=1)
            for text in legend.get_texts():
                text.set_parse_math(False)
            more_rows = -(-len(labels) // columns) - _LEGEND_ROWS
            figure.set_figheight(figure.get_figheight() + max(0, more_rows) * _ROW_INCHES)
        return axes


def whole_numbers(axis: Any) -> None:
    """Label an axis with whole numbers only."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def check_matplotlib(extra: str = "plot") -> None:
    """Check that charts can be drawn.

    Args:
        extra: The extra that brings matplotlib for this use, for the message.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 ICN001
    except ImportError as error:
        raise MissingExtraError(f'Plots need matplotlib: pip install "marcorank[{extra}]"') from error


def _figures() -> ModuleType:
    check_matplotlib()
    from marcorank import _figure

    return _figure


def _style(palette: Palette) -> dict[str, Any]:
    return {
        "font.family": "DejaVu Sans",
        "font.size": 12,
        "legend.frameon": False,
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.edgecolor": palette.muted,
        "xtick.color": palette.ink,
        "ytick.color": palette.ink,
        "grid.color": palette.grid,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
