"""The chart of a benchmark: how many times as fast as the baseline, one bar per contestant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from marcorank._files import errors_of_writing
from marcorank._text import quoted_path
from marcorank.bench.records import MARCORANK
from marcorank.errors import InvalidInputError, MissingExtraError

if TYPE_CHECKING:
    import os

    from marcorank.bench.records import Results, Row

_NAMES = {"langchain": "LangChain", "llama-index": "LlamaIndex", "flashrank": "FlashRank"}
_FORMATS = (".png", ".svg")
_OWN, _PEER, _INK, _MUTED, _GRID = "#3b6fb6", "#a3a8b0", "#1f2328", "#646b74", "#e4e7eb"
_BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1}
_WIDTH_INCHES, _ROW_INCHES, _EDGE_INCHES = 8.0, 0.34, 1.2
_STYLE = {"svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 11, "svg.hashsalt": "bench"}


def check_chart_path(path: str | os.PathLike[str]) -> None:
    """Check the ending of the path, and that matplotlib is installed, before an hour is spent on measuring."""
    if Path(path).suffix.lower() not in _FORMATS:
        raise InvalidInputError(
            f"The file of the chart is {quoted_path(path)}; expected a name that ends in {' or '.join(_FORMATS)}."
        )
    try:
        import matplotlib  # noqa: F401 ICN001
    except ImportError as error:
        raise MissingExtraError('The chart needs matplotlib: pip install "marcorank[bench]"') from error


def write_chart(results: Results, path: str | os.PathLike[str]) -> None:
    """Draw the measured contestants of each model, fastest first.

    Raises:
        InvalidInputError: The path does not end in .png or .svg, or cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    check_chart_path(path)
    from matplotlib import style
    from matplotlib.figure import Figure

    models = [model for model in dict.fromkeys(results.settings.models) if results.measured(model)]
    lines: list[tuple[str, Row | None]] = []
    for model in models:
        # The name of a model is a line without a bar.
        lines += [(Path(model).name, None)] if len(models) > 1 else []
        lines += [(_name(row), row) for row in results.measured(model)]
    baselines = " or ".join(dict.fromkeys(_name(results.baseline(model)) for model in models))
    speeds = {row.name: results.figures(row)["speed"] for _, row in lines if row is not None}
    longest = max(speeds.values(), default=1.0)
    with style.context(["default", _STYLE]):
        height = _EDGE_INCHES + _ROW_INCHES * max(1, len(lines))
        figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained", facecolor="white")
        axes = figure.subplots()
        for position, (_, row) in enumerate(lines):
            if row is None:
                continue
            axes.barh(position, speeds[row.name], height=0.72, color=_OWN if row.contestant == MARCORANK else _PEER)
            text = f"{speeds[row.name]:.1f}x, {row.p50_s * 1e3:,.{0 if row.p50_s >= 0.01 else 1}f} ms"
            # The line of the baseline must not run through the text.
            axes.text(speeds[row.name] + 0.015 * longest, position, text, va="center", color=_INK, bbox=_BEHIND)
        axes.set_yticks(range(len(lines)), [label for label, _ in lines])
        for label, (_, row) in zip(axes.get_yticklabels(), lines, strict=True):
            # Names of models must not be read as formulas.
            label.set(parse_math=False, color=_INK, fontweight="bold" if row is None else "normal")
        axes.axvline(1, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0.5)
        axes.set_xlim(0, longest * 1.3)
        axes.set_ylim(max(1, len(lines)) - 0.4, -0.6)
        axes.tick_params(length=0)
        axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}x")
        axes.grid(axis="x", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        passages = len(results.workload["passages"])
        caption = f"speed ({baselines} = 1) and median time of a request with {passages} passages"
        axes.set_xlabel(caption, color=_MUTED)
        axes.set_title(f"Reranking on {results.processor}", loc="left", color=_INK, fontweight="bold", parse_math=False)
        with errors_of_writing(path):
            is_svg = Path(path).suffix.lower() == ".svg"
            figure.savefig(path, dpi=160, metadata={"Date": None} if is_svg else None)


def _name(row: Row) -> str:
    return _NAMES.get(row.contestant, row.label)
