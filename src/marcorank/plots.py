"""Charts for notebooks and reports: how reranking moved the candidates of a query.

    from marcorank.plots import plot_rank_changes

    plot_rank_changes(retriever.invoke(question), reranked)

It needs the extra `plot`. The charts of an evaluation are drawn by `Evaluation.plot`.
"""

from __future__ import annotations

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
_WIDTH_INCHES, _ROW_INCHES, _MAX_INCHES = 9.0, 0.27, 16.0
# More rows leave no room for a line of text each.
_MAX_LABELS = 60


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
    matched by the ids of documents and nodes, else by text.

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
    # The rules under headings say nothing.
    shown = one_line(_RULE.sub("", text[:_READ_CHARS]) if label is None else str(label(value)))
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
    by_id: dict[str, list[int]] = {}
    by_text: dict[str, list[int]] = {}
    for index in reversed(range(len(before))):
        by_text.setdefault(before[index].text, []).append(index)
        if (key := before[index].id) is not None:
            by_id.setdefault(key, []).append(index)
    moved = list(before)
    for new_rank, one in enumerate(after, 1):
        places = by_id.get(one.id or "") or by_text.get(one.text) or []
        # Of equal texts the first one that is left.
        while places and moved[places[-1]].new_rank is not None:
            places.pop()
        if not places:
            raise InvalidInputError(
                f"`after[{new_rank - 1}]` is not in `before`: {quoted(one.text)}. Expected the same candidates, or "
                "some of them, in the new order."
            )
        index = places.pop()
        moved[index] = replace(moved[index], new_rank=new_rank, score=one.score)
    return [one if one.new_rank is not None else replace(one, score=None) for one in moved]


def _drawing(moved: Sequence[_Candidate], top_n: int, title: str) -> Drawing:
    rows = max((max(one.old_rank, one.new_rank or 1) for one in moved), default=1)
    best = sorted((one.new_rank, one.old_rank) for one in moved if one.new_rank is not None and one.new_rank <= top_n)
    # Of a ranking that holds the best results only, nothing is known of the others.
    replaced = [one for one in moved if one.old_rank <= top_n < (one.new_rank or rows + 1)]
    caption = "No candidates."
    if best:
        ranks = ", ".join(f"{old}" for _, old in best)
        caption = (
            f"Blue: the best {len(best)} after reranking. Before, {'they were' if len(best) > 1 else 'it was'} at "
        )
        caption += f"{'ranks' if len(best) > 1 else 'rank'} {ranks}."
        if replaced:
            caption += f" Orange: what they replaced among the best {top_n}."

    def paint(axes: Any, palette: Palette) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        axes.set(xlim=(0, 1), ylim=(rows + 0.6, -0.4))
        axes.set_axis_off()

        def write(x: int, row: int, offset: int, text: str, colour: str, **look: Any) -> None:
            """Write a text so many points beside the left or the right end of a row."""
            look = {"ha": "left" if x else "right", "va": "center", "fontsize": 10, "color": colour, **look}
            place = {"xytext": (offset if x else -offset, 0), "textcoords": "offset points", "annotation_clip": False}
            axes.annotate(text, (x, row), parse_math=False, **place, **look)

        write(0, 0, 6, "first stage", palette.ink, fontweight="bold")
        write(
            1,
            0,
            6,
            "reranked" + ", score" * any(one.score is not None for one in moved),
            palette.ink,
            fontweight="bold",
        )
        axes.plot([0, 1], [top_n + 0.5] * 2, color=palette.muted, linewidth=0.8, linestyle=":", clip_on=False)
        for one in sorted(moved, key=lambda one: one.new_rank or rows + 1, reverse=True):
            is_best = one.new_rank is not None and one.new_rank <= top_n
            strong = is_best or one in replaced
            colour = palette.gain if is_best else palette.loss if strong else palette.muted
            weight = {"fontweight": "bold" if is_best else "normal"}
            write(0, one.old_rank, 6, f"{one.old_rank}", colour, **weight)
            if rows <= _MAX_LABELS or strong:
                write(0, one.old_rank, 28, one.label, colour if strong else palette.ink)
            axes.plot([0], [one.old_rank], "o", color=colour, markersize=3.5 if strong else 2.5, clip_on=False)
            if one.new_rank is None:
                continue
            ends = [(0, one.old_rank), (0.45, one.old_rank), (0.55, one.new_rank), (1, one.new_rank)]
            curve = Path(ends, [Path.MOVETO, *[Path.CURVE4] * 3])
            look = {"linewidth": 2.4 if is_best else 1.6, "alpha": 1} if strong else {"linewidth": 0.9, "alpha": 0.55}
            axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=colour, clip_on=False, **look))
            axes.plot([1], [one.new_rank], "o", color=colour, markersize=3.5 if strong else 2.5, clip_on=False)
            write(1, one.new_rank, 6, f"{one.new_rank}", colour, **weight)
            if one.score is not None and (rows <= _MAX_LABELS or strong):
                write(1, one.new_rank, 62, f"{one.score:.2f}", colour if strong else palette.ink, ha="right")
            if is_best:
                write(1, one.new_rank, 28 if one.score is None else 72, one.label, colour)

    return Drawing(title, caption, paint, (_WIDTH_INCHES, min(_MAX_INCHES, 0.4 + _ROW_INCHES * (rows + 1))))
