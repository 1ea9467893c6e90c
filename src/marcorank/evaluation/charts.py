"""Charts of the report, as SVG for a page: text stays text, and colours come from the page's style sheet.

matplotlib draws with marker colours that stand for CSS variables; they are replaced by `var(--NAME)` afterwards, so
that one picture serves light and dark pages. Names of models and texts of people never get into a picture: models are
letters.
"""

from __future__ import annotations

import math
import re
import threading
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

MODEL_COLOURS = 6
"""How many models have a colour of their own; the next begin anew, distinguished by their letters."""

_INK, _MUTED, _GRID, _GAIN, _LOSS = (f"#0{n}0{n}0{n}" for n in range(1, 6))
_MODELS = tuple(f"#1{n}1{n}1{n}" for n in range(MODEL_COLOURS))
_VARIABLES = {
    _INK: "ink",
    _MUTED: "muted",
    _GRID: "grid",
    _GAIN: "gain",
    _LOSS: "loss",
    **{colour: f"model-{index}" for index, colour in enumerate(_MODELS)},
}
_MARKERS = "os^Dvp"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))

_WIDTH, _HEIGHT = 400, 270
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 13,
    "axes.labelsize": 13,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "lines.linewidth": 2,
}
# matplotlib's settings belong to the process; two reports at a time would draw in each other's.
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with what it says.

    Attributes:
        title: Of the picture.
        picture: SVG; empty where there is nothing to draw.
        caption: How to read it, and what it says here.
    """

    title: str
    picture: str
    caption: str


@dataclass(frozen=True, slots=True)
class Track:
    """One model's way through the depths.

    Attributes:
        letter: Stands for the model.
        colour: Number of the model's colour.
        x: Milliseconds or candidates, one a depth.
        y: Values of a measure, one a depth.
        depths: The depths.
    """

    letter: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    depths: Sequence[int]


def gains(title: str, differences: Sequence[float], *, measure: str) -> str:
    """Draw the difference of each query, greatest gain first."""
    values = np.sort(np.asarray(differences, dtype=float))[::-1]

    def paint(axes: Any) -> None:
        for keep, colour in ((values > 0, _GAIN), (values < 0, _LOSS)):
            if keep.any():
                # One path for all queries of a side: thousands of bars would be megabytes.
                first, last = np.flatnonzero(keep)[[0, -1]]
                edges = np.arange(first, last + 2) + 0.5
                axes.stairs(values[first : last + 1], edges, fill=True, color=colour)
        axes.axhline(0, color=_INK, linewidth=1)
        axes.set(xlabel="queries, greatest gain first", ylabel=f"difference in {measure}")
        axes.set_xlim(0.5, len(values) + 0.5)
        _whole_numbers(axes.xaxis)
        axes.grid(visible=False, axis="x")
        low, high = min(float(values.min(initial=0)), 0), max(float(values.max(initial=0)), 0)
        room = 0.06 * (high - low) or 0.05
        axes.set_ylim(low - room, high + room)

    return _draw("gains", title, paint)


def moves(title: str, counts: NDArray[np.int64], labels: Sequence[str]) -> str:
    """Draw how many relevant passages went from which first-stage ranks to which new ranks.

    Args:
        title: For those who cannot see the picture.
        counts: Passages by first-stage ranks and new ranks.
            Shape: (ranks, ranks) int64.
        labels: Of the ranks.
    """

    def paint(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        of_row = counts.sum(axis=1, keepdims=True)
        shares = counts / np.maximum(of_row, 1)
        size = min(12, 460 / (len(labels) * len(str(counts.max()))))
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = _GAIN if column < row else _LOSS if column > row else _MUTED
            alpha = 0.12 + 0.43 * shares[row, column]
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=alpha, linewidth=0))
            count = counts[row, column]
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=size)
        for index in range(len(labels)):
            axes.add_patch(Rectangle((index - 0.5, index - 0.5), 1, 1, fill=False, edgecolor=_MUTED, linewidth=1))
        axes.set_xticks(range(len(labels)), labels, rotation=0 if len(labels) < 8 else 60)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.tick_params(length=0, labelsize=12 if len(labels) < 7 else 10.5)
        axes.grid(visible=False)
        axes.set(xlabel="rank after reranking", ylabel="rank of the first stage")

    return _draw("moves", title, paint, height=320)


def scores(title: str, relevant: NDArray[np.float64], others: NDArray[np.float64], *, cut: float | None) -> str:
    """Draw how the logits of relevant and of other passages are spread, each as shares of its kind.

    Args:
        title: For those who cannot see the picture.
        relevant: Logits.
            Shape: (passages,) float64.
        others: Logits.
            Shape: (passages,) float64.
        cut: Threshold to mark.
    """

    def paint(axes: Any) -> None:
        every = np.concatenate([relevant, others])
        low, high = float(every.min()), float(every.max())
        if high - low < 1e-6:
            low, high = low - 0.5, high + 0.5
        bins = np.linspace(low, high, 31)
        kinds = (
            (others, {"color": _LOSS, "linestyle": "--", "linewidth": 1.8}, "other"),
            (relevant, {"color": _GAIN, "alpha": 0.55, "fill": True}, "relevant"),
        )
        for logits, look, name in kinds:
            if len(logits):
                shares = 100 * np.histogram(logits, bins)[0] / len(logits)
                axes.stairs(shares, bins, label=f"{name} ({len(logits):,})", **look)
        if cut is not None:
            axes.axvline(cut, color=_INK, linewidth=1.5, linestyle=":", label="cut")
        axes.set(xlabel="logit", ylabel="share of passages of its kind, %")
        axes.set_ylim(bottom=0)
        _legend(axes)

    return _draw("scores", title, paint)


def thresholds(
    title: str,
    points: Sequence[float],
    recall: Sequence[float],
    precision: Sequence[float | None],
    *,
    cut: float | None,
) -> str:
    """Draw recall and precision by threshold."""

    def paint(axes: Any) -> None:
        axes.plot(points, recall, color=_GAIN, label="recall")
        gaps = [math.nan if value is None else value for value in precision]
        axes.plot(points, gaps, color=_LOSS, linestyle="--", label="precision")
        if cut is not None:
            axes.axvline(cut, color=_INK, linewidth=1.5, linestyle=":", label="cut")
        axes.set(xlabel="score_threshold, in logits", ylabel="share, 0 to 1", ylim=(-0.03, 1.03))
        _legend(axes)

    return _draw("thresholds", title, paint)


def trade(title: str, recall: Sequence[float], precision: Sequence[float | None]) -> str:
    """Draw precision against recall over all thresholds."""

    def paint(axes: Any) -> None:
        known = [(x, y) for x, y in zip(recall, precision, strict=True) if y is not None]
        axes.plot([x for x, _ in known], [y for _, y in known], color=_GAIN, marker="o" if len(known) < 12 else None)
        axes.set(xlabel="recall, 0 to 1", ylabel="precision, 0 to 1", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))

    return _draw("trade", title, paint)


def steps(
    chosen: tuple[str, int | None], title: str, values: Mapping[int, float], *, xlabel: str, ylabel: str, whole: bool
) -> str:
    """Draw what a number of passages gives, and mark the number that is enough.

    Args:
        chosen: Name and value of the number that is enough.
        title: For those who cannot see the picture.
        values: By number.
        xlabel: What is counted.
        ylabel: What it gives.
        whole: Whether to show all of 0 to 1.
    """
    name, enough = chosen

    def paint(axes: Any) -> None:
        positions = sorted(values)
        axes.plot(positions, [values[n] for n in positions], color=_GAIN, marker="o", markersize=4)
        if enough is not None and enough in values:
            axes.plot(
                [enough],
                [values[enough]],
                color=_LOSS,
                marker="D",
                markersize=9,
                linestyle="none",
                label=f"{name} = {enough}",
            )
            _legend(axes)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if whole:
            axes.set_ylim(0, 1.03)
        _whole_numbers(axes.xaxis)

    return _draw(name, title, paint)


def reliability(title: str, series: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> str:
    """Draw the share of relevant passages by the probability that was said, for the fitted map and the plain sigmoid.

    Args:
        title: For those who cannot see the picture.
        series: Name, probabilities and shares of each.
    """

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1.2, linestyle=":", label="ideal")
        looks = ({"color": _GAIN, "marker": "o"}, {"color": _LOSS, "marker": "s", "linestyle": "--"})
        for (name, said, found), look in zip(series, looks, strict=True):
            axes.plot(said, found, label=name, markersize=6, **look)
        axes.set(xlabel="probability said, 0 to 1", ylabel="share relevant, 0 to 1")
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        _legend(axes)

    return _draw("reliability", title, paint)


def quality(title: str, tracks: Sequence[Track], *, first_stage: float, measure: str, xlabel: str, timed: bool) -> str:
    """Draw a measure against the time that it costs, or against the depth where nothing was timed."""

    def paint(axes: Any) -> None:
        axes.axhline(first_stage, color=_MUTED, linestyle=":", label="first stage")
        for track in tracks:
            colour = track.colour % MODEL_COLOURS
            axes.plot(
                track.x,
                track.y,
                color=_MODELS[colour],
                marker=_MARKERS[colour],
                linestyle=_DASHES[colour],
                markersize=7,
            )
        xs = [x for track in tracks for x in track.x]
        # A logarithmic axis has too few round numbers in a narrow range.
        if timed and max(xs) > 4 * min(xs) > 0:
            axes.set_xscale("log")
            _plain_log_ticks(axes, min(xs), max(xs))
        elif not timed:
            _whole_numbers(axes.xaxis)
        axes.set(xlabel=xlabel, ylabel=measure)
        axes.margins(x=0.1, y=0.14)
        _legend(axes)
        if len(tracks) > 1:
            _letters(axes, tracks)
        else:
            for x, y, depth in zip(tracks[0].x, tracks[0].y, tracks[0].depths, strict=True):
                axes.annotate(f"{depth}", (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=12)

    return _draw("quality", title, paint, height=300)


def _letters(axes: Any, tracks: Sequence[Track]) -> None:
    """Write each model's letter beside its last point, apart from each other where the points are not."""
    low, high = axes.get_ylim()
    least = (high - low) * 0.075
    placed: list[tuple[float, float]] = []
    to_axes = axes.transData.transform
    width = axes.bbox.width
    for track in sorted(tracks, key=lambda track: track.y[-1]):
        x, y = track.x[-1], track.y[-1]
        across = float(to_axes((x, y))[0])
        for other, height in placed:
            if abs(other - across) < 0.08 * width and y - height < least:
                y = height + least
        placed.append((across, y))
        axes.annotate(
            track.letter,
            (x, y),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
            color=_MODELS[track.colour % MODEL_COLOURS],
        )


def _legend(axes: Any) -> None:
    """Put the legend above the axes, where it can hide no data."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.2, handlelength=2.2, columnspacing=1.2
    )


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _plain_log_ticks(axes: Any, low: float, high: float) -> None:
    """Label a logarithmic axis with plain numbers: 5, 10, 20, 50."""
    from matplotlib.ticker import FixedLocator, NullLocator

    ticks = [m * 10.0**p for p in range(-4, 8) for m in (1, 2, 5)]
    near = [tick for tick in ticks if low / 2.5 <= tick <= high * 2.5]
    near = near[:: math.ceil(len(near) / 7)]
    axes.xaxis.set_major_locator(FixedLocator(near))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:,g}")


def _draw(name: str, title: str, paint: Callable[[Any], None], *, height: int = _HEIGHT) -> str:
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            'The report needs matplotlib and jinja2: pip install "marcorank[evaluation]"'
        ) from error
    buffer = StringIO()
    # The salt keeps the ids of one page's pictures apart, and the same from run to run.
    with _lock, style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
        paint(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(buffer.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
    """Return a picture without what only a file needs, with CSS variables for colours, and with a name."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r" transform=\"rotate\(-0 [^\"]*\"", "", svg)
    svg = re.sub(r"font-family: 'DejaVu Sans'(; )?", "", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    svg = svg.replace(">", f">\n <title>{escape(title)}</title>", 1)
    return re.sub("|".join(_VARIABLES), lambda found: f"var(--{_VARIABLES[found[0]]})", svg).strip()
