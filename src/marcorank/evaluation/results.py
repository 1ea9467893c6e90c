"""What an evaluation found, as objects, rows, text and files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank import __version__
from marcorank._files import errors_of_writing, written
from marcorank._text import table
from marcorank.collections.trec import write_run
from marcorank.errors import InvalidInputError
from marcorank.evaluation import wording
from marcorank.evaluation.comparison import Comparison, compare
from marcorank.evaluation.measures import reranked
from marcorank.evaluation.records import EvaluationRecord
from marcorank.evaluation.report import write_report
from marcorank.evaluation.scores import file_name

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from marcorank.evaluation.records import Cuts, DepthResult, MeasureResult, ModelResult

_HEADER = (
    "top_k",
    "measure",
    "first stage",
    "identity",
    "reranked",
    "best",
    "difference",
    "95 % interval",
    "p",
    "wins/ties/losses",
)
# The recall whose threshold the tables name; the report has others.
_SHOWN_RECALL = 0.9
_RUNS_HEADER = ("run", "measure", "value", "difference", "95 % interval", "p", "wins/ties/losses")


class Evaluation(EvaluationRecord):
    """What reranking gave: by model, depth and measure.

    Attributes:
        collection: What was evaluated on.
        measures: As ir_measures spells them, in the order that was asked for.
        models: What each model reached.
        relevant_grade: Minimum grade that counts as relevant.
        notes: What was unusual and how it was handled, a sentence each.
    """

    __slots__ = ()

    def compare(self, label: str, baseline: str, *, top_k: int | None = None) -> dict[str, Comparison]:
        """Compare two models at one depth, by the names of the measures.

        Args:
            label: Of the model that may be better.
            baseline: Label of the model that it is compared with.
            top_k: One of the depths; None for the greatest.

        Raises:
            InvalidInputError: There is no such model, or no such depth.
        """
        ours, theirs = (_depth(self.model(name), top_k) for name in (label, baseline))
        return {
            mine.measure: compare(mine.per_query, other.per_query)
            for mine, other in zip(ours.measures, theirs.measures, strict=True)
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a flat, JSON-ready dict for each model, depth and measure: the rows of a DataFrame."""
        return [
            {
                "model": result.label,
                "top_k": depth.top_k,
                "measure": found.measure,
                "first_stage": found.first_stage,
                "identity": found.identity,
                "value": found.value,
                "best": found.best,
                "difference": found.difference,
                "interval_low": found.interval[0],
                "interval_high": found.interval[1],
                "p_value": found.p_value,
                "wins": found.wins,
                "ties": found.ties,
                "losses": found.losses,
                "latency_p50_ms": depth.latency_p50_ms,
                "latency_p95_ms": depth.latency_p95_ms,
            }
            for result in self.models
            for depth in result.depths
            for found in depth.measures
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but texts, judgements and logits as plain JSON-ready values, per query too."""
        collection = self.collection
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
            "models": [
                {
                    "label": result.label,
                    "settings": dict(result.settings),
                    "depths": [_depth_dict(depth) for depth in result.depths],
                    "cuts": None if result.cuts is None else _cuts_dict(result.cuts),
                    "calibration": None if result.calibration is None else asdict(result.calibration),
                }
                for result in self.models
            ],
        }

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write what `to_dict` returns; the file appears whole or not at all.

        Raises:
            InvalidInputError: The path cannot be written.
        """
        _make_folder_of(path)
        with written(path) as file:
            # ASCII, since ids may hold what UTF-8 cannot.
            json.dump(self.to_dict(), file, indent=1)
            file.write("\n")

    def write_runs(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write a TREC run for each model and depth, with logits as scores; return the files.

        Raises:
            InvalidInputError: The folder cannot be written, or an id cannot stand in a run.
        """
        names = _distinct([file_name(result.label) for result in self.models])
        paths = []
        for name, result in zip(names, self.models, strict=True):
            for depth in result.depths:
                path = Path(folder) / f"{name}.top{depth.top_k}.trec"
                _make_folder_of(path)
                run = reranked(self.collection.run, result.logits, depth.top_k)
                judged = {query_id: results for query_id, results in run.items() if query_id in result.logits}
                write_run(judged, path, tag=name)
                paths.append(path)
        return paths

    def write_report(self, path: str | os.PathLike[str], *, model: str | None = None) -> None:
        """Write one self-contained HTML page.

        Args:
            path: File to write.
            model: Label of the model whose queries, passages and scores are shown; None takes the one with the
                highest first measure at its greatest depth.

        Raises:
            InvalidInputError: The path cannot be written, or no model has this label.
            MissingExtraError: matplotlib or jinja2 is not installed.
        """
        _make_folder_of(path)
        write_report(self, Path(path), model=model)

    def __str__(self) -> str:
        collection = self.collection
        candidates = max((len(collection.run.get(query_id, ())) for query_id in collection.queries), default=0)
        head = f"{collection.name}: {len(collection.queries)} judged queries, up to {candidates} candidates each"
        tables = [
            table(
                _HEADER,
                [_cells(depth, found) for depth in result.depths for found in depth.measures],
                left=["measure"],
            )
            for result in self.models
        ]
        blocks = [
            "\n".join([result.label, *lines, _latency(result), *_cut(result)])
            for result, lines in zip(self.models, tables, strict=True)
        ]
        return "\n\n".join([head, *blocks])


@dataclass(frozen=True, slots=True)
class RunResult:
    """One measure of one run.

    Attributes:
        label: Of the run.
        measure: As ir_measures spells it.
        value: Mean over all judged queries.
        comparison: With the baseline.
        per_query: Value by query_id.
    """

    label: str
    measure: str
    value: float
    comparison: Comparison
    per_query: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True, slots=True)
class RunsEvaluation:
    """Finished runs beside one of them.

    Attributes:
        baseline: Label of the run that the others are compared with.
        queries: How many queries are judged.
        runs: A result for each run and measure.
    """

    baseline: str
    queries: int
    runs: tuple[RunResult, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Return a flat, JSON-ready dict for each run and measure: the rows of a DataFrame."""
        return [
            {
                "run": result.label,
                "measure": result.measure,
                "value": result.value,
                "difference": result.comparison.difference,
                "interval_low": result.comparison.interval[0],
                "interval_high": result.comparison.interval[1],
                "p_value": result.comparison.p_value,
                "wins": result.comparison.wins,
                "ties": result.comparison.ties,
                "losses": result.comparison.losses,
            }
            for result in self.runs
        ]

    def __str__(self) -> str:
        head = f"{self.queries} judged queries; differences from {self.baseline!r}"
        rows = [
            (result.label, result.measure, wording.value(result.value))
            + (("-",) * 4 if result.label == self.baseline else _comparison_cells(result.comparison))
            for result in self.runs
        ]
        return "\n".join([head, *table(_RUNS_HEADER, rows, left=["run", "measure"])])


def _depth(result: ModelResult, top_k: int | None) -> DepthResult:
    if top_k is None:
        return result.depths[-1]
    for depth in result.depths:
        if depth.top_k == top_k:
            return depth
    depths = ", ".join(str(depth.top_k) for depth in result.depths)
    raise InvalidInputError(f"`top_k` is {top_k!r}; expected one of the depths that were evaluated: {depths}.")


def _depth_dict(depth: DepthResult) -> dict[str, Any]:
    return {
        "top_k": depth.top_k,
        "latency_p50_ms": depth.latency_p50_ms,
        "latency_p95_ms": depth.latency_p95_ms,
        "measures": [
            {
                **{name: getattr(found, name) for name in found.__slots__ if not name.startswith("per_query")},
                "interval": list(found.interval),
                "per_query": dict(found.per_query),
                "per_query_identity": dict(found.per_query_identity),
            }
            for found in depth.measures
        ],
    }


def _cuts_dict(cuts: Cuts) -> dict[str, Any]:
    """Return the cuts with texts as keys: JSON has no other."""
    return {
        "curve": [asdict(point) for point in cuts.curve],
        "for_recall": {str(wanted): asdict(point) for wanted, point in cuts.for_recall.items()},
        "for_precision": {str(wanted): point and asdict(point) for wanted, point in cuts.for_precision.items()},
        "top_n_recall": {str(top_n): recall for top_n, recall in cuts.top_n_recall.items()},
        "top_n": cuts.top_n,
        "top_k_value": {str(top_k): value for top_k, value in cuts.top_k_value.items()},
        "top_k": cuts.top_k,
        "unjudged_as_irrelevant": cuts.unjudged_as_irrelevant,
    }


def _cells(depth: DepthResult, found: MeasureResult) -> tuple[str, ...]:
    return (
        str(depth.top_k),
        found.measure,
        *(wording.value(number) for number in (found.first_stage, found.identity, found.value, found.best)),
        *_comparison_cells(found),
    )


def _latency(result: ModelResult) -> str:
    parts = [
        f"top_k {depth.top_k}: {wording.milliseconds(depth.latency_p50_ms)} ms "
        f"(95 % under {wording.milliseconds(depth.latency_p95_ms)})"
        for depth in result.depths
        if depth.latency_p50_ms is not None
    ]
    return f"median time of a query: {'; '.join(parts) or 'not known'}"


def _cut(result: ModelResult) -> list[str]:
    if result.cuts is None:
        return []
    point = result.cuts.for_recall[_SHOWN_RECALL]
    parts = [
        *(f"{name} {number}" for name in ("top_k", "top_n") if (number := getattr(result.cuts, name)) is not None),
        f"score_threshold {point.score_threshold:.4f} keeps {wording.percent(point.recall)} of the relevant candidates",
    ]
    return [f"where to cut, by these queries: {'; '.join(parts)}"]


def _comparison_cells(found: Comparison | MeasureResult) -> tuple[str, str, str, str]:
    low, high = map(wording.signed, found.interval)
    return (
        wording.signed(found.difference),
        f"{low} to {high}",
        wording.p_value(found.p_value),
        f"{found.wins}/{found.ties}/{found.losses}",
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the names that stand more than once."""
    given: list[str] = []
    for name in names:
        free, number = name, 1
        # Some systems take names that differ in case only for one.
        while free.casefold() in map(str.casefold, given):
            number += 1
            free = f"{name}-{number}"
        given.append(free)
    return given


def _make_folder_of(path: str | os.PathLike[str]) -> None:
    folder = Path(path).parent
    with errors_of_writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
