"""The chart of a benchmark: how many times as fast as the baseline, one bar per contestant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marcorank._drawing import Drawing, Palette
from marcorank._text import shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

_PEER = "#a3a8b0"
_BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1}
_WIDTH_INCHES, _ROW_INCHES, _EDGE_INCHES = 8.0, 0.34, 0.7


@dataclass(frozen=True, slots=True)
class Bar:
    """A contestant and its speed; or the name of a model, which is a line without a bar.

    Attributes:
        label: Stands at the left.
        speed: How many times as fast as the baseline; None for no bar.
        text: Stands at the end of the bar.
        is_own: Whether it is marcorank.
    """

    label: str
    speed: float | None = None
    text: str = ""
    is_own: bool = False


def speed_chart(bars: Sequence[Bar], title: str, caption: str) -> Drawing:
    """Draw the bars from top to bottom."""
    longest = max((bar.speed for bar in bars if bar.speed is not None), default=1.0)

    def paint(axes: Any, palette: Palette) -> None:
        for position, bar in enumerate(bars):
            if bar.speed is None:
                continue
            axes.barh(position, bar.speed, height=0.72, color=palette.gain if bar.is_own else _PEER)
            # The line of the baseline must not run through the text.
            axes.text(bar.speed + 0.015 * longest, position, bar.text, va="center", bbox=_BEHIND, fontsize=11)
        axes.set_yticks(range(len(bars)), [shorten(bar.label) for bar in bars])
        for label, bar in zip(axes.get_yticklabels(), bars, strict=True):
            # Names of models must not be read as formulas.
            label.set(parse_math=False, fontweight="bold" if bar.speed is None else "normal")
        axes.axvline(1, color=palette.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=0.5)
        axes.set_xlim(0, longest * 1.3)
        axes.set_ylim(max(1, len(bars)) - 0.4, -0.6)
        axes.tick_params(length=0)
        axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}x")
        axes.grid(visible=False, axis="y")
        axes.spines[:].set_visible(False)

    return Drawing(title, caption, paint, (_WIDTH_INCHES, _EDGE_INCHES + _ROW_INCHES * max(1, len(bars))))
