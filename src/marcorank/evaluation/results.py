"""`Evaluation` and `RunsEvaluation`: results as objects, rows, text and files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank import __version__
from marcorank._arguments import one_of
from marcorank._files import errors_of_writing, written
from marcorank._text import encodable, html_table, quoted, table
from marcorank.collections.trec import write_run
from marcorank.errors import InvalidInputError
from marcorank.evaluation.comparison import compare
from marcorank.evaluation.measures import reranked
from marcorank.evaluation.recommending import choice_lines
from marcorank.evaluation.report import KINDS, drawing, render_report
from marcorank.evaluation.scores import file_name
from marcorank.evaluation.thresholds import SHOWN_RECALL
from marcorank.evaluation.wording import count, milliseconds, p_value, percent, signed, value

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from marcorank._figure import NotebookFigure
    from marcorank.collections.records import Collection
    from marcorank.evaluation.records import Comparison, DepthResult, ModelResult

_COMPARISON_HEADER = ("difference", "95 % interval", "p", "wins/ties/losses")
_HEADER = ("top_k", "measure", "first stage", "identity", "reranked", "best", *_COMPARISON_HEADER)
_RUNS_HEADER = ("run", "measure", "value", *_COMPARISON_HEADER)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of reranking, by model, depth and measure.

    Attributes:
        collection: The collection.
        measures: Names in the spelling of ir_measures, in the order of the argument.
        models: The results of each model.
        relevant_grade: Minimum grade that counts as relevant.
        notes: Irregularities and how they were handled, one sentence each.
    """

    collection: Collection = field(repr=False)
    measures: tuple[str, ...]
    models: tuple[ModelResult, ...] = field(repr=False)
    relevant_grade: int = 1
    notes: tuple[str, ...] = ()

    def model(self, label: str) -> ModelResult:
        """Return the results of one model.

        Raises:
            InvalidInputError: No model has this label.
        """
        for result in self.models:
            if result.label == label:
                return result
        labels = ", ".join(quoted(result.label) for result in self.models)
        raise InvalidInputError(f"No model has the label {quoted(label)}; expected one of {labels}.")

    def compare(self, label: str, baseline: str, *, top_k: int | None = None) -> dict[str, Comparison]:
        """Compare two models at one depth; returns a comparison for each measure.

        Args:
            label: Label of the model that may be better.
            baseline: Label of the model to compare it with.
            top_k: One of the depths; None for the greatest.

        Raises:
            InvalidInputError: No model has this label, or the depth was not evaluated.
        """
        ours, theirs = (_depth(self.model(name), top_k) for name in (label, baseline))
        return compare(
            {found.measure: found.per_query for found in ours.measures},
            {found.measure: found.per_query for found in theirs.measures},
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return a flat, JSON-serialisable dict for each model, depth and measure: the rows of a DataFrame."""
        return [
            {
                "model": result.label,
                "top_k": depth.top_k,
                "measure": found.measure,
                "first_stage": found.first_stage,
                "identity": found.identity,
                "value": found.value,
                "best": found.best,
                **found.row(),
                "latency_p50_ms": depth.latency_p50_ms,
                "latency_p95_ms": depth.latency_p95_ms,
            }
            for result in self.models
            for depth in result.depths
            for found in depth.measures
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything except texts, judgements and logits, JSON-serialisable, including values for each query."""
        collection = self.collection
        parts = ("label", "settings", "depths", "cuts", "calibration", "choices")
        return {
            "marcorank": __version__,
            "collection": {
                "name": collection.name,
                "queries": len(collection.queries),
                "passages": len(collection.passages),
                "candidates": sum(len(collection.run.get(query_id, ())) for query_id in collection.queries),
                "judgements": sum(map(len, collection.qrels.values())),
            },
            "measures": list(self.measures),
            "relevant_grade": self.relevant_grade,
            "notes": list(self.notes),
            "models": [{part: _plain(getattr(result, part)) for part in parts} for result in self.models],
        }

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the dict of `to_dict`; the file appears when it is complete.

        Raises:
            InvalidInputError: The path cannot be written.
        """
        _make_parent(path)
        with written(path) as file:
            # ASCII, since UTF-8 cannot hold every id.
            json.dump(self.to_dict(), file, indent=1)
            file.write("\n")

    def write_runs(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write a TREC run for each model and depth, with logits as scores; return the files.

        Raises:
            InvalidInputError: The folder cannot be written, or an id cannot stand in a TREC file.
        """
        names = _distinct([file_name(result.label) for result in self.models])
        paths = []
        for name, result in zip(names, self.models, strict=True):
            for depth in result.depths:
                path = Path(folder) / f"{name}.top{depth.top_k}.trec"
                _make_parent(path)
                run = reranked(self.collection.run, result.logits, depth.top_k)
                write_run(run, path, tag=name)
                paths.append(path)
        return paths

    def write_report(self, path: str | os.PathLike[str], *, model: str | None = None) -> None:
        """Write the results as one HTML page, which loads nothing and runs no scripts.

        Args:
            path: File to write.
            model: Label of the model whose queries, passages and thresholds are shown; None for the one with the
                highest first measure at its greatest depth. The comparison shows all models.

        Raises:
            InvalidInputError: The path cannot be written, or no model has this label.
            MissingExtraError: matplotlib or jinja2 is not installed.
        """
        shown = self._shown(model)
        page = render_report(self.collection, self.models, shown, relevant_grade=self.relevant_grade, notes=self.notes)
        _make_parent(path)
        with written(path) as file:
            file.write(page)

    def plot(self, kind: str = "quality", *, model: str | None = None) -> NotebookFigure:
        """Draw one of the charts of the report.

        Args:
            kind: `"quality"` (of all models, against latency or `top_k`), `"gains"` (of each query), `"moves"` (of
                relevant passages), `"scores"` (of relevant and other passages), `"thresholds"` (recall and precision),
                `"top_n"`, `"top_k"`, `"sweep"` (`top_k` and `skim_keep`) or `"blend"`.
            model: As in `write_report`.

        Returns:
            A figure of matplotlib. Notebooks show it; `savefig` writes it to a file.

        Raises:
            InvalidInputError: There is no such kind or model, or these queries give nothing to draw.
            MissingExtraError: matplotlib is not installed.
        """
        one_of("kind", kind, KINDS)
        shown = self._shown(model)
        drawn = drawing(kind, self.collection, self.models, shown, relevant_grade=self.relevant_grade)
        if drawn.paint is None:
            raise InvalidInputError(f"There is nothing to draw for {quoted(kind)}. {drawn.caption}")
        return drawn.figure()

    def _shown(self, model: str | None) -> ModelResult:
        if model is not None:
            return self.model(model)
        return max(self.models, key=lambda result: result.depths[-1].measures[0].value)

    def __str__(self) -> str:
        blocks = [self._heading()]
        for result in self.models:
            lines = [result.label, *table(_HEADER, _rows(result), left=["measure"]), *_remarks(result)]
            if result.choices is not None:
                lines += choice_lines(result.choices)
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)

    def _repr_html_(self) -> str:
        """Return tables for notebooks, with all texts escaped."""
        blocks = [f"<p>{escape(self._heading())}</p>"]
        for result in self.models:
            blocks.append(html_table(result.label, _HEADER, _rows(result), left=["measure"]))
            blocks += [f"<p>{escape(remark)}</p>" for remark in _remarks(result)]
            if result.choices is not None:
                lines = "\n".join(choice_lines(result.choices)).strip()
                blocks.append(f"<details><summary>Settings</summary><pre>{escape(lines)}</pre></details>")
        return encodable("".join(blocks))

    def _heading(self) -> str:
        collection = self.collection
        candidates = max((len(collection.run.get(query_id, ())) for query_id in collection.queries), default=0)
        queries = count(len(collection.queries), "judged query", "judged queries")
        return f"{collection.name}: {queries}, up to {count(candidates, 'candidate')} each"


@dataclass(frozen=True, slots=True)
class RunResult:
    """One measure of one run.

    Attributes:
        label: Label of the run.
        measure: Name in the spelling of ir_measures.
        value: Mean over all judged queries.
        comparison: Comparison with the baseline.
        per_query: Value by query_id.
    """

    label: str
    measure: str
    value: float
    comparison: Comparison
    per_query: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunsEvaluation:
    """Finished runs, compared with one of them.

    Attributes:
        baseline: Label of the run with which the others are compared.
        queries: Number of judged queries.
        runs: A result for each run and measure.
    """

    baseline: str
    queries: int
    runs: tuple[RunResult, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Return a flat, JSON-serialisable dict for each run and measure: the rows of a DataFrame."""
        return [
            {"run": result.label, "measure": result.measure, "value": result.value, **result.comparison.row()}
            for result in self.runs
        ]

    def __str__(self) -> str:
        return "\n".join([self._heading(), *table(_RUNS_HEADER, self._cells(), left=["run", "measure"])])

    def _repr_html_(self) -> str:
        """Return a table for notebooks, with all texts escaped."""
        return html_table(self._heading(), _RUNS_HEADER, self._cells(), left=["run", "measure"])

    def _heading(self) -> str:
        return f"{self.queries} judged queries; differences from {quoted(self.baseline)}"

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                result.label,
                result.measure,
                value(result.value),
                *(("-",) * 4 if result.label == self.baseline else _cells(result.comparison)),
            )
            for result in self.runs
        ]


def _depth(result: ModelResult, top_k: int | None) -> DepthResult:
    if top_k is None:
        return result.depths[-1]
    for depth in result.depths:
        if depth.top_k == top_k:
            return depth
    depths = ", ".join(str(depth.top_k) for depth in result.depths)
    raise InvalidInputError(f"`top_k` is {quoted(top_k)}; expected one of the depths that were evaluated: {depths}.")


def _plain(content: Any) -> Any:
    """Return records, mappings and tuples as dicts with string keys and lists, as JSON has them."""
    if is_dataclass(content):
        return {part.name: _plain(getattr(content, part.name)) for part in fields(content)}
    if isinstance(content, Mapping):
        return {str(key): _plain(inner) for key, inner in content.items()}
    return [_plain(inner) for inner in content] if isinstance(content, (list, tuple)) else content


def _cells(found: Comparison) -> tuple[str, str, str, str]:
    low, high = map(signed, found.interval)
    return (
        signed(found.difference),
        f"{low} to {high}",
        p_value(found.p_value),
        f"{found.wins}/{found.ties}/{found.losses}",
    )


def _rows(result: ModelResult) -> list[tuple[str, ...]]:
    return [
        (
            str(depth.top_k),
            found.measure,
            *map(value, (found.first_stage, found.identity, found.value, found.best)),
            *_cells(found),
        )
        for depth in result.depths
        for found in depth.measures
    ]


def _remarks(result: ModelResult) -> list[str]:
    depth = result.depths[-1]
    found = depth.measures[0]
    verdict = (
        f"reranking {found.verdict}: {found.measure} goes from {value(found.identity)} to {value(found.value)} "
        f"(top_k {depth.top_k})"
    )
    if (cuts := result.cuts) is None:
        return [verdict, _latency(result)]
    point = cuts.for_recall[SHOWN_RECALL]
    suggested = (
        f"suggested by these queries: top_n {cuts.top_n}; score_threshold {point.score_threshold:.4f} keeps "
        f"{percent(point.recall)} of the relevant candidates"
    )
    return [verdict, _latency(result), suggested]


def _latency(result: ModelResult) -> str:
    parts = [
        f"top_k {depth.top_k}: {milliseconds(depth.latency_p50_ms)} ms (p95 {milliseconds(depth.latency_p95_ms)} ms)"
        for depth in result.depths
        if depth.latency_p50_ms is not None
    ]
    return f"median latency per query: {'; '.join(parts) or 'not measured'}"


def _distinct(names: Sequence[str]) -> list[str]:
    """Add a number to each name that occurred before."""
    given: list[str] = []
    for name in names:
        free, number = name, 1
        # Some file systems ignore case.
        while free.casefold() in map(str.casefold, given):
            number += 1
            free = f"{name}-{number}"
        given.append(free)
    return given


def _make_parent(path: str | os.PathLike[str]) -> None:
    folder = Path(path).parent
    with errors_of_writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
