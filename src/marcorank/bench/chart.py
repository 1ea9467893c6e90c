"""The chart: how many times as fast as the baseline, a bar each."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank.bench.records import MARCORANK
from marcorank.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    from marcorank.bench.records import Results, Row

FORMATS = (".png", ".svg")
_OTHERS = "#a3a8b0"
_COLOURS = {"fp32": "#3b6fb6", "bf16": "#2a9d74", "fp16": "#8d63b8", "int8": "#e0842f"}
_INK, _MUTED = "#1f2328", "#646b74"
_NAMES = {
    "langchain": "LangChain",
    "llama-index": "LlamaIndex",
    "llama-index-sbert": "LlamaIndex sbert-rerank",
    "flashrank": "FlashRank",
}
_WIDTH_INCHES, _ROW_INCHES, _EDGE_INCHES = 8.0, 0.34, 1.75
_BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
_STYLE = {"svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 11, "svg.hashsalt": "bench"}
# matplotlib's settings belong to the process.
_lock = threading.Lock()


def check_chart_path(path: str) -> None:
    """Check that a chart can be drawn to a path, before an hour is spent on what it shows.

    Raises:
        InvalidInputError: The ending is not a known format.
        MissingExtraError: matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise InvalidInputError(f"The chart's file is {path!r}; expected a name that ends in {' or '.join(FORMATS)}.")
    if not Path(path).absolute().parent.is_dir():
        raise InvalidInputError(f"{path!r} cannot be written: its folder does not exist.")
    try:
        import matplotlib  # noqa: F401 ICN001
    except ImportError as error:
        raise MissingExtraError('The chart needs matplotlib: pip install "marcorank[bench]"') from error


def write_chart(results: Results, path: str | os.PathLike[str]) -> None:
    """Draw the contestants that were measured, fastest first for each model.

    Raises:
        InvalidInputError: The ending is unknown, or the path cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    check_chart_path(os.fspath(path))
    from matplotlib import style
    from matplotlib.figure import Figure

    groups = _groups(results)
    lines = sum(len(rows) + (len(groups) > 1) for _, rows in groups) + 0.5 * max(0, len(groups) - 1)
    size = (_WIDTH_INCHES, _EDGE_INCHES + _ROW_INCHES * max(1.0, lines))
    with _lock, style.context(["default", _STYLE]):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        _paint(figure.subplots(), results, groups)
        _frame(figure, results, [row for _, rows in groups for row in rows])
        try:
            figure.savefig(path, dpi=160, metadata={"Date": None} if f"{path}".lower().endswith(".svg") else None)
        except OSError as error:
            raise InvalidInputError(f"{os.fspath(path)!r} cannot be written: {error.strerror or error}.") from error


def _groups(results: Results) -> list[tuple[str, list[Row]]]:
    groups = []
    for model in results.settings.models:
        rows = [row for row in results.rows if row.measured and row.contestant.model == model]
        if rows:
            groups.append((model, sorted(rows, key=lambda row: row.p50_s)))
    return groups


def _paint(axes: Any, results: Results, groups: list[tuple[str, list[Row]]]) -> None:
    speeds = [results.figures(row)["speed"] for _, rows in groups for row in rows]
    longest = max(speeds, default=1.0)
    position = 0.0
    for model, rows in groups:
        if len(groups) > 1:
            # Paths and names of others must not be read as formulas.
            axes.text(
                *(0, position, Path(model).name),
                va="center",
                color=_INK,
                fontweight="bold",
                parse_math=False,
                bbox=_BEHIND,
                zorder=4,
            )
            position += 1
        for row in rows:
            _bar(axes, results, row, position, longest)
            position += 1
        position += 0.5
    axes.axvline(1, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    axes.set_xlim(0, longest * 1.3)
    axes.set_ylim(position - 0.9, -0.7)
    axes.set_yticks([])
    axes.tick_params(axis="x", colors=_MUTED, length=0)
    axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}x")
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    baselines = [found for model, _ in groups if (found := results.baseline(model)) is not None]
    names = dict.fromkeys(_name(row) for row in baselines)
    passages = len(results.workload["passages"])
    axes.set_xlabel(f"speed, {' or '.join(names)} = 1, and the median of a {passages}-passage request", color=_MUTED)


def _bar(axes: Any, results: Results, row: Row, position: float, longest: float) -> None:
    contestant, figures = row.contestant, results.figures(row)
    own = contestant.engine == MARCORANK
    speed = figures["speed"]
    axes.barh(position, speed, height=0.72, color=_COLOURS.get(contestant.precision, _OTHERS) if own else _OTHERS)
    axes.text(
        -0.012 * longest,
        position,
        _name(row),
        ha="right",
        va="center",
        color=_INK if own else _MUTED,
        clip_on=False,
    )
    axes.text(
        speed + 0.012 * longest,
        position,
        f"{speed:.1f}x   {milliseconds(figures['p50_ms'])}",
        va="center",
        color=_INK if own else _MUTED,
        # Where the line of the baseline runs through it, it stays readable.
        bbox=_BEHIND,
        zorder=4,
    )


def _name(row: Row) -> str:
    return _NAMES.get(row.contestant.engine, row.contestant.label)


def milliseconds(value: float) -> str:
    """Return a time for people."""
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _frame(figure: Any, results: Results, rows: list[Row]) -> None:
    from matplotlib.patches import Patch

    machine = results.machine
    cores = f"{machine['usable_cores']} core{'s' if machine['usable_cores'] > 1 else ''}"
    figure.suptitle(
        f"Reranking on {machine['processor']}, {cores}",
        x=0.012,
        ha="left",
        color=_INK,
        fontsize=13,
        fontweight="bold",
        parse_math=False,
    )
    used = {row.contestant.precision for row in rows if row.contestant.engine == MARCORANK}
    patches = [Patch(color=colour, label=f"marcorank {name}") for name, colour in _COLOURS.items() if name in used]
    if any(row.contestant.engine != MARCORANK for row in rows):
        patches.append(Patch(color=_OTHERS, label="others, fp32"))
    # Outside the axes, where it can hide no bar.
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=max(1, len(patches)),
        frameon=False,
        labelcolor=_INK,
        fontsize=10,
        handlelength=1.2,
    )
