"""Charts for notebooks and reports: how reranking moved the candidates of a query.

    from marcorank.plots import plot_rank_changes

    plot_rank_changes(retriever.invoke(question), reranked)

It needs the extra `plot`. The charts of an evaluation are drawn by `Evaluation.plot`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from marcorank._arguments import finite_number, text_or_none, whole_number
from marcorank._drawing import Drawing, Palette
from marcorank._text import one_line, quoted, shorten
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from marcorank._figure import NotebookFigure

__all__ = ["plot_rank_changes"]

_RULE = re.compile(r"([^\w\s])\1{3,}\s*")
_READ_CHARS = 400
_TITLE_CHARS = 80
_LABEL_CHARS = 36
_WIDTH_INCHES, _ROW_INCHES = 9.0, 0.27
# With more rows only the best have a text, and the scale is logarithmic, so that they do not lie on each other.
_MAX_LABELS = 60
# How many ranks the caption names.
_MAX_RANKS = 12
# Fewer would leave no room for the curves.
_MIN_ROWS = 4


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A candidate with its ranks, from 1; the new one is None if it was left out."""

    id: str | None
    text: str
    score: float | None
    old_rank: int
    new_rank: int | None = None
    label: str = ""


def plot_rank_changes(
    before: Iterable[Any],
    after: Iterable[Any] | None = None,
    *,
    top_n: int = 3,
    title: str | None = None,
    label: Callable[[Any], str] | None = None,
) -> NotebookFigure:
    """Draw how candidates moved: their ranks in the first stage on the left, after reranking on the right.

    Candidates are texts, documents of LangChain, nodes of LlamaIndex, or passages of a `Ranking`. The two orders are
    matched by the ids and texts of documents and nodes, else by id, else by text.

    Args:
        before: The candidates in first-stage order.
        after: The same candidates, or the best of them, in the new order. None if `before` is a `Ranking`, which
            knows the positions of its passages in the input.
        top_n: How many of the best results are highlighted, with those that they replaced.
        title: Title of the chart; None for the query of a `Ranking`, or a general one.
        label: Returns the text that stands beside a candidate; None for the beginning of its own text.

    Returns:
        A figure of matplotlib. Notebooks show it, and `savefig` writes it to a file. pyplot does not know it.

    Raises:
        InvalidInputError: An argument is invalid, or `after` has a candidate that is not in `before`.
        MissingExtraError: matplotlib is not installed.
    """
    top_n = whole_number("top_n", top_n, 1)
    query = text_or_none("title", title) or getattr(before if after is None else after, "query", None)
    given = _items("before", before)
    candidates = [_candidate("before", index, one, label) for index, one in enumerate(given)]
    if after is None:
        moved = [_own_move(index, one, given[index]) for index, one in enumerate(candidates)]
    else:
        new = [_candidate("after", index, one, None) for index, one in enumerate(_items("after", after))]
        moved = _matched(candidates, new)
    heading = "Ranks before and after reranking" if query is None else shorten(one_line(query), _TITLE_CHARS)
    return _drawing(moved, top_n, heading).figure()


def _items(name: str, value: object) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidInputError(f"`{name}` is {quoted(value)}; expected candidates, best first.")
    return list(value)


def _candidate(name: str, index: int, value: Any, label: Callable[[Any], str] | None) -> _Candidate:
    """Read a text, a document, a node with its score, or a passage of a ranking."""
    key: object = None
    if isinstance(value, str):
        text, score = value, None
    elif hasattr(value, "page_content"):
        key, text, score = value.id, value.page_content, value.metadata.get("relevance_score")
    elif hasattr(value, "node"):
        key, text, score = value.node.node_id, value.node.get_content(), value.score
    elif hasattr(value, "text") and hasattr(value, "score"):
        text, score = value.text, value.score
    else:
        raise InvalidInputError(
            f"`{name}[{index}]` is {quoted(value)}; expected a text, a document, a node with its score, or a passage "
            "of a `Ranking`."
        )
    shown = text if label is None else str(label(value))
    # The rules under headings say nothing.
    shown = one_line(_RULE.sub("", shown[:_READ_CHARS]))
    identity = None if key is None else str(key)
    return _Candidate(identity, text, finite_number(score), index + 1, label=shorten(shown, _LABEL_CHARS))


def _own_move(index: int, candidate: _Candidate, passage: Any) -> _Candidate:
    """Return the move of a passage that knows its position in the input."""
    if not (hasattr(passage, "rank") and hasattr(passage, "index")):
        raise InvalidInputError(
            f"`before[{index}]` is {quoted(passage)} and `after` is missing; expected the candidates in the new order, "
            "unless `before` is a `Ranking`."
        )
    return replace(candidate, old_rank=passage.index + 1, new_rank=passage.rank)


def _matched(before: Sequence[_Candidate], after: Sequence[_Candidate]) -> list[_Candidate]:
    """Match by id and text, since chunks may share an id, then what is left by id, then by text."""
    old_indices: dict[int, int] = {}
    moved = list(before)
    for key_of in (_id_and_text, _id, _text):
        left: dict[object, list[int]] = {}
        # Of equal ones the first that is left.
        for old_index in reversed(range(len(before))):
            if moved[old_index].new_rank is None:
                left.setdefault(key_of(before[old_index]), []).append(old_index)
        left.pop(None, None)
        for new_index, one in enumerate(after):
            if new_index not in old_indices and (indices := left.get(key_of(one))):
                old_index = old_indices[new_index] = indices.pop()
                moved[old_index] = replace(before[old_index], new_rank=new_index + 1, score=one.score)
    for new_index, one in enumerate(after):
        if new_index not in old_indices:
            raise InvalidInputError(
                f"`after[{new_index}]` is not in `before`: {quoted(one.text)}. Expected the same candidates, or "
                "some of them, in the new order."
            )
    return [one if one.new_rank is not None else replace(one, score=None) for one in moved]


def _id_and_text(candidate: _Candidate) -> object:
    return None if candidate.id is None else (candidate.id, candidate.text)


def _id(candidate: _Candidate) -> object:
    return candidate.id


def _text(candidate: _Candidate) -> object:
    return candidate.text


def _drawing(moved: Sequence[_Candidate], top_n: int, title: str) -> Drawing:
    rows = max((max(one.old_rank, one.new_rank or 1) for one in moved), default=1)
    best = sorted((one for one in moved if 0 < (one.new_rank or 0) <= top_n), key=lambda one: one.new_rank or 0)
    # Candidates that are missing in the new order have left the best, too.
    rest = [one for one in moved if not 0 < (one.new_rank or 0) <= top_n]
    replaced = [one for one in rest if one.old_rank <= top_n]
    others = [one for one in rest if one.old_rank > top_n]
    caption = "No candidates."
    if best:
        where = "they were at ranks" if len(best) > 1 else "it was at rank"
        ranks = ", ".join(f"{one.old_rank}" for one in best[:_MAX_RANKS])
        if len(best) > _MAX_RANKS:
            ranks += " and so on"
        caption = f"Blue: the best {len(best)} after reranking. Before, {where} {ranks}."
        if replaced:
            caption += f" Orange: what they replaced among the best {top_n}."
        if rows > _MAX_LABELS:
            caption += f" Ranks 1 to {rows:,}, on a logarithmic scale."
    is_long = rows > _MAX_LABELS
    shown_rows = _MAX_LABELS // 2 if is_long else max(rows, _MIN_ROWS)
    head = 0.75 if is_long else 0
    legible = [set(range(rows + 1))] * 2
    if is_long:
        sides = [one.old_rank for one in (*best, *replaced)], [one.new_rank or 0 for one in best]
        legible = [_legible(ranks, rows, shown_rows) for ranks in sides]

    def paint(axes: Any, palette: Palette) -> None:
        axes.set(xlim=(0, 1), ylim=(rows * 1.05, 0.65) if is_long else (shown_rows + 0.6, -0.4))
        if is_long:
            axes.set_yscale("log")
        axes.set_axis_off()
        score = ", score" if any(one.score is not None for one in moved) else ""
        _write(axes, 0, head, 6, "first stage", color=palette.ink, fontweight="bold")
        _write(axes, 1, head, 6, f"reranked{score}", color=palette.ink, fontweight="bold")
        axes.plot([0, 1], [top_n + 0.5] * 2, color=palette.muted, linewidth=0.8, linestyle=":", clip_on=False)
        # What is drawn later lies above.
        _draw_moves(axes, others, palette.muted, size=2.5, linewidth=0.9, alpha=0.55)
        _draw_moves(axes, replaced, palette.loss, size=3.5, linewidth=1.6)
        _draw_moves(axes, best, palette.gain, size=3.5, linewidth=2.4)
        if not is_long:
            _label(axes, others, legible, palette.muted, palette.ink)
        _label(axes, replaced, legible, palette.loss, palette.loss)
        _label(axes, best, legible, palette.gain, palette.gain, fontweight="bold")
        for one in best:
            if one.new_rank in legible[1]:
                _write(axes, 1, one.new_rank or 0, 32 if one.score is None else 76, one.label, color=palette.gain)

    return Drawing(title, caption, paint, (_WIDTH_INCHES, 0.4 + _ROW_INCHES * (shown_rows + 1)))


def _draw_moves(axes: Any, moved: Sequence[_Candidate], colour: str, *, size: float, **look: Any) -> None:
    """Draw curves with a dot at each end; of a candidate that was left out, the dot at the left."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    moves = [(one.old_rank, one.new_rank) for one in moved if one.new_rank is not None]
    # One shape for all: with a thousand candidates one for each takes seconds.
    corners = [corner for old, new in moves for corner in ((0, old), (0.45, old), (0.55, new), (1, new))]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3] * len(moves)
    if moves:
        axes.add_patch(PathPatch(Path(corners, codes), facecolor="none", edgecolor=colour, clip_on=False, **look))
    for x, ranks in ((0, [one.old_rank for one in moved]), (1, [new for _, new in moves])):
        axes.plot([x] * len(ranks), ranks, "o", color=colour, markersize=size, clip_on=False)


def _legible(ranks: Sequence[int], rows: int, height: int) -> set[int]:
    """Return the ranks whose texts do not lie on each other on a logarithmic scale; earlier ones have precedence."""
    kept: dict[int, float] = {}
    for rank in ranks:
        row = math.log(rank) / math.log(rows) * height
        if all(abs(row - other) >= 1 for other in kept.values()):
            kept[rank] = row
    return set(kept)


def _label(
    axes: Any, moved: Sequence[_Candidate], legible: Sequence[set[int]], colour: str, text_colour: str, **look: Any
) -> None:
    """Write ranks and texts at those ranks of the left and of the right where they are legible."""
    left, right = legible
    for one in moved:
        if one.old_rank in left:
            _write(axes, 0, one.old_rank, 6, f"{one.old_rank}", color=colour, **look)
            _write(axes, 0, one.old_rank, 32, one.label, color=text_colour)
        if one.new_rank in right:
            _write(axes, 1, one.new_rank or 0, 6, f"{one.new_rank}", color=colour, **look)
            if one.score is not None:
                _write(axes, 1, one.new_rank or 0, 66, f"{one.score:.2f}", color=text_colour, ha="right")


def _write(axes: Any, x: int, row: float, offset: int, text: str, **look: Any) -> None:
    """Write a text so many points beside the left or the right end of a row."""
    look = {"ha": "left" if x else "right", "va": "center", "fontsize": 10, "parse_math": False, **look}
    axes.annotate(
        text, (x, row), (offset if x else -offset, 0), textcoords="offset points", annotation_clip=False, **look
    )
