"""The figures of a report."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._drawing import Drawing, Palette, whole_numbers
from marcorank._text import shorten
from marcorank.evaluation.thresholds import SHOWN_RECALL
from marcorank.evaluation.wording import milliseconds, percent, signed, value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from marcorank.evaluation.records import Choices, Cuts, MeasureResult, ModelResult
    from marcorank.evaluation.thresholds import Candidates

_MARKERS = "os^Dvp"
_RANK_ENDS = (1, 3, 5, 10, 20, 50, 100, 200, 500, 1000)


def quality(models: Sequence[ModelResult], *, named: bool = False) -> Drawing:
    """Draw the first measure of each model and depth against latency, or against depth if nothing was timed.

    Models have their number in the report as a label, or also their name.
    """
    points = [(model, depth, depth.measures[0]) for model in models for depth in model.depths]
    timed = any(depth.latency_p50_ms is not None for _, depth, _ in points)
    measure, first_stage = points[0][2].measure, points[0][2].first_stage
    best, best_depth, best_found = max(points, key=lambda point: point[2].value)
    caption = (
        f"Each point is one top_k. Highest value: {value(best_found.value)}, {best.label} with top_k {best_depth.top_k}"
    )
    if best_depth.latency_p50_ms is not None:
        caption += f", {milliseconds(best_depth.latency_p50_ms)} ms"
    caption += "."
    if not timed:
        caption += " Nothing was timed."
    elif any(depth.latency_p50_ms is None for _, depth, _ in points):
        caption += " Depths that were not timed are left out."

    def paint(axes: Any, palette: Palette) -> None:
        axes.axhline(first_stage, color=palette.muted, linestyle=":", label="first stage")
        every_x: list[float] = []
        for index, model in enumerate(models):
            depths = [depth for depth in model.depths if not timed or depth.latency_p50_ms is not None]
            x = [depth.latency_p50_ms or depth.top_k for depth in depths]
            y = [depth.measures[0].value for depth in depths]
            laps, colour = divmod(index, len(palette.models))
            look = {"color": palette.models[colour], "marker": _MARKERS[(colour + laps) % len(_MARKERS)]}
            label = f"{index + 1} {shorten(model.label)}" if named else f"{index + 1}"
            axes.plot(x, y, label=label, markersize=7, **look)
            every_x += x
            if len(models) == 1:
                for depth, *point in zip(depths, x, y, strict=True):
                    axes.annotate(depth.top_k, point, xytext=(0, 8), textcoords="offset points", ha="center")
        # A logarithmic axis has too few round numbers in a narrow range.
        if timed and max(every_x) > 4 * min(every_x):
            _logarithmic(axes)
        elif not timed:
            whole_numbers(axes.xaxis)
        axes.set(xlabel="median latency of a query, ms" if timed else "candidates reranked (top_k)", ylabel=measure)
        axes.margins(x=0.1, y=0.14)

    return Drawing(f"{measure} against {'latency' if timed else 'top_k'}", caption, paint)


def sweep(choices: Choices) -> Drawing:
    """Draw the settings that read fewer passages by quality and latency."""
    unblended = [point for point in choices.sweep if not point.blend]
    timed = any(point.latency_p50_ms is not None for point in unblended)
    shown = [point for point in unblended if not timed or point.latency_p50_ms is not None]
    cascades = [point for point in shown if point.skim_keep is not None]
    kinds = [("top_k", [point for point in shown if point.skim_keep is None], "gain", {"marker": "o"})]
    caption = "Each circle is one top_k of the model alone."
    if cascades:
        kinds.append(("skim_keep", cascades, "loss", {"marker": "s", "linestyle": "--"}))
        caption += f" Each square is one skim_keep after {choices.skim} has read {choices.top_k}."
    if cascades and timed:
        caption += (
            " The times of cascades are not measured but added: the median of the skimming model for all candidates, "
            "and that of the model for as many as it keeps."
        )
    if len(shown) < len(unblended):
        caption += " Settings that were not timed are left out."

    def paint(axes: Any, palette: Palette) -> None:
        labels: list[tuple[float, float, str, str]] = []
        for name, points, colour, look in kinds:
            look["color"] = getattr(palette, colour)
            x = [point.latency_p50_ms or float(point.skim_keep or point.top_k) for point in points]
            y = [point.value for point in points]
            axes.plot(x, y, label=name, markersize=7, **look)
            numbers = [f"{point.skim_keep or point.top_k}" for point in points]
            labels += zip(x, y, numbers, [look["color"]] * len(points), strict=True)
        every_x = [x for x, *_ in labels]
        if max(every_x) > 4 * min(every_x):
            _logarithmic(axes)
        axes.set(
            xlabel="median latency of a query, ms" if timed else "passages that the model reads",
            ylabel=choices.measure,
        )
        axes.margins(x=0.1, y=0.16)
        _label(axes, labels)

    title = f"{choices.measure} against {'latency' if timed else 'passages read'}: top_k and skim_keep"
    return Drawing(title, caption, paint)


def blend(choices: Choices) -> Drawing:
    """Draw the weights of `blend` by quality."""
    by_weight: dict[float, float] = {
        point.blend: point.value for point in choices.sweep if (point.top_k, point.skim_keep) == (choices.top_k, None)
    }
    chosen = next((one.recommended or 0.0 for one in choices.options if one.option == "blend"), 0.0)
    caption = "0 is the model alone, 1 the first stage alone. Values of all queries, of which none is held out."
    return _choice("blend", chosen, by_weight, choices.measure, caption)


def gains(found: MeasureResult) -> Drawing:
    """Draw the difference of each query, greatest gain first."""
    differences = [after - found.per_query_identity[query_id] for query_id, after in found.per_query.items()]
    steps = np.sort(differences)[::-1]
    caption = (
        f"One step per query: {found.wins:,} better, {found.ties:,} the same, {found.losses:,} worse. The differences "
        f"range from {signed(steps[-1])} to {signed(steps[0])}."
    )

    def paint(axes: Any, palette: Palette) -> None:
        # Two shapes for all queries: thousands of bars would be megabytes.
        edges = np.arange(len(steps) + 1) + 0.5
        axes.stairs(np.maximum(steps, 0), edges, fill=True, color=palette.gain)
        axes.stairs(np.minimum(steps, 0), edges, fill=True, color=palette.loss)
        axes.axhline(0, color=palette.ink, linewidth=1)
        axes.set(xlabel="queries, greatest gain first", ylabel=f"difference in {found.measure}")
        axes.margins(x=0, y=0.06)
        axes.grid(visible=False, axis="x")
        whole_numbers(axes.xaxis)

    return Drawing(f"Difference of each query in {found.measure}", caption, paint)


def moves(moves: Sequence[tuple[int, int]], *, out_of_reach: int) -> Drawing:
    """Draw how many relevant candidates moved from which first-stage ranks to which new ranks."""
    title = "Ranks of relevant passages before and after"
    missed = f"Out of reach, because they are not among the candidates: {out_of_reach:,}." if out_of_reach else ""
    if not moves:
        return Drawing(
            title, f"No relevant passage is among the candidates that were reranked. {missed}".rstrip(), None
        )
    old, new = np.array(moves).T
    deepest = int(np.max(moves))
    ends = [*(end for end in _RANK_ENDS if end < deepest), deepest]
    starts = [1, *(end + 1 for end in ends[:-1])]
    labels = [f"{low}" if low == high else f"{low}-{high}" for low, high in zip(starts, ends, strict=True)]
    counts = np.zeros((len(ends), len(ends)), dtype=np.int64)
    np.add.at(counts, (np.searchsorted(ends, old), np.searchsorted(ends, new)), 1)
    caption = (
        "Each cell counts the relevant passages that moved from the ranks of its row to those of its column: up if it "
        f"is left of the diagonal. Of {len(old):,} relevant candidates {(new < old).sum():,} moved up and "
        f"{(new > old).sum():,} down; the median rank went from {median(old):g} to {median(new):g}. {missed}"
    )

    def paint(axes: Any, palette: Palette) -> None:
        from matplotlib.patches import Rectangle

        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        size = min(12, 460 / (len(labels) * len(str(counts.max()))))
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = palette.gain if column < row else palette.loss if column > row else palette.muted
            alpha = 0.12 + 0.43 * shares[row, column]
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=alpha, linewidth=0))
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size)
        axes.set_xticks(range(len(labels)), labels, rotation=0 if len(labels) < 8 else 60)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="rank after reranking", ylabel="rank in the first stage")
        axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5))
        axes.grid(visible=False)

    return Drawing(title, caption, paint)


def scores(candidates: Candidates, cuts: Cuts | None) -> Drawing:
    """Draw the distribution of the logits of relevant and of other candidates."""
    title = "Logits of relevant and other passages"
    if not candidates.counted.any():
        return Drawing(title, "No candidate is judged.", None)
    kinds: list[tuple[str, NDArray[np.float64], str, dict[str, Any]]] = [
        ("other", candidates.logits[candidates.counted & ~candidates.relevant], "loss", {"histtype": "step"}),
        ("relevant", candidates.logits[candidates.relevant], "gain", {"histtype": "stepfilled", "alpha": 0.55}),
    ]
    medians = [f"{np.median(logits):.2f} ({name})" for name, logits, *_ in kinds if len(logits)]
    caption = f"The less the two overlap, the better a threshold separates them. Medians: {', '.join(medians)}."
    left_out = int((~candidates.counted).sum())
    if left_out:
        caption += f" Candidates without a judgement, left out: {left_out:,}."

    def paint(axes: Any, palette: Palette) -> None:
        bins = np.histogram_bin_edges(candidates.logits[candidates.counted], 30)
        for name, logits, colour, look in kinds:
            if len(logits):
                shares = np.full(len(logits), 100 / len(logits))
                look["color"] = getattr(palette, colour)
                axes.hist(logits, bins, weights=shares, label=f"{name} ({len(logits):,})", **look)
        _mark_threshold(axes, palette, cuts)
        axes.set(xlabel="logit", ylabel="share of passages, %")

    return Drawing(title, caption, paint)


def thresholds(cuts: Cuts) -> Drawing:
    """Draw recall and precision by threshold."""
    marked = cuts.for_recall[SHOWN_RECALL]
    precision = "unknown" if marked.precision is None else percent(marked.precision)
    caption = (
        f"At {marked.score_threshold:.4f} recall is {percent(marked.recall)} and precision {precision}, with "
        f"{marked.kept_per_query:.3g} passages per query."
    )

    def paint(axes: Any, palette: Palette) -> None:
        thresholds = [point.score_threshold for point in cuts.curve]
        axes.plot(thresholds, [point.recall for point in cuts.curve], color=palette.gain, label="recall")
        precisions = np.array([point.precision for point in cuts.curve], dtype=np.float64)
        axes.plot(thresholds, precisions, color=palette.loss, linestyle="--", label="precision")
        _mark_threshold(axes, palette, cuts)
        axes.set(xlabel="score_threshold (logit)", ylabel="share, 0 to 1", ylim=(-0.03, 1.03))

    return Drawing("Recall and precision by threshold", caption, paint)


def top_n(cuts: Cuts) -> Drawing:
    """Draw the recall of the first n results."""
    by_n = cuts.top_n_recall
    caption = (
        f"With top_n = {cuts.top_n} the results hold {percent(by_n[cuts.top_n])} of the relevant candidates; no "
        "further result adds 1 % or more."
    )
    return _choice("top_n", cuts.top_n, by_n, "recall of relevant candidates", caption)


def top_k(cuts: Cuts, measure: str) -> Drawing:
    """Draw the first measure by number of candidates."""
    by_k = cuts.top_k_value
    caption = (
        f"top_k = {cuts.top_k} gives {value(by_k[cuts.top_k])}, within 0.005 of the best value, "
        f"{value(max(by_k.values()))}."
    )
    return _choice("top_k", cuts.top_k, by_k, measure, caption)


def _choice(name: str, chosen: float, values: Mapping[Any, float], ylabel: str, caption: str) -> Drawing:
    def paint(axes: Any, palette: Palette) -> None:
        axes.plot(list(values), list(values.values()), color=palette.gain, marker="o", markersize=4)
        axes.plot([chosen], [values[chosen]], "D", color=palette.loss, markersize=9, label=f"{name} = {chosen:g}")
        axes.set(xlabel=name, ylabel=ylabel)
        if max(values) > 1:
            whole_numbers(axes.xaxis)

    return Drawing(f"Choose {name}: {ylabel}", caption, paint)


def _mark_threshold(axes: Any, palette: Palette, cuts: Cuts | None) -> None:
    if cuts is not None:
        threshold = cuts.for_recall[SHOWN_RECALL].score_threshold
        axes.axvline(threshold, color=palette.ink, linewidth=1.5, linestyle=":", label=f"recall {SHOWN_RECALL:g}")


def _label(axes: Any, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write a label, given with its point and its colour, where there is room for it, else leave it out."""
    # Only now it is known where on the page a point is.
    axes.figure.draw_without_rendering()
    to_points = 72 / axes.figure.dpi
    places = [axes.transData.transform(point[:2]) * to_points for point in labels]
    taken = [(x, y, 8.0, 8.0) for x, y in places]
    for (x, y), (*point, text, colour) in zip(places, labels, strict=True):
        width, height = 7.5 * len(text), 12.0
        beside = 7 + width / 2
        for dx, dy in ((0, 12), (0, -13), (beside, 0), (-beside, 0), (beside, 11), (-beside, -11), (0, 23), (0, -24)):
            box = (x + dx, y + dy, width, height)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                look = {"ha": "center", "va": "center", "fontsize": 11, "color": colour}
                axes.annotate(text, point, xytext=(dx, dy), textcoords="offset points", **look)
                break


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    """Return whether two boxes, given by centre and size, overlap."""
    return all(abs(one[axis] - other[axis]) < (one[axis + 2] + other[axis + 2]) / 2 for axis in (0, 1))


def _logarithmic(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
