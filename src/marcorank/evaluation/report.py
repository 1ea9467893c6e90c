"""An evaluation as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import json
import platform
from importlib import metadata, resources
from statistics import median
from string import ascii_uppercase
from typing import TYPE_CHECKING

from marcorank._files import written
from marcorank.errors import MissingExtraError
from marcorank.evaluation import charts, wording
from marcorank.evaluation.charts import Figure
from marcorank.evaluation.details import details
from marcorank.evaluation.wording import count, milliseconds, p_value, signed, value

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from marcorank.collections.records import Collection
    from marcorank.evaluation.records import DepthResult, EvaluationRecord, MeasureResult, ModelResult

# A difference with a greater p, or with 0 in its interval, is not called one.
_ALPHA = 0.05
_PACKAGES = ("marcorank", "ir-measures", "scipy", "onnxruntime", "tokenizers", "torch", "sentence-transformers")


def write_report(evaluation: EvaluationRecord, path: str | os.PathLike[str], *, model: str | None = None) -> None:
    """Write an evaluation as one HTML page without scripts and without loads from anywhere.

    matplotlib's settings are the report's own while each picture is drawn; reports of several threads take turns.

    Args:
        evaluation: What to show.
        path: File to write.
        model: Label of the model whose queries, passages and scores are shown; None takes the one with the highest
            first measure at its greatest depth. The comparison shows all models.

    Raises:
        InvalidInputError: The path cannot be written, or no model has this label.
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    page = render_report(evaluation, model=model)
    with written(path) as file:
        # Half a surrogate pair has no UTF-8; it is shown as what it is.
        file.write(page.encode("utf-8", "backslashreplace").decode("utf-8"))


def render_report(evaluation: EvaluationRecord, *, model: str | None = None) -> str:
    """Return what `write_report` writes.

    Raises:
        InvalidInputError: No model has this label.
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError(
            'The report needs matplotlib and jinja2: pip install "marcorank[evaluation]"'
        ) from error
    shown = _best(evaluation.models) if model is None else evaluation.model(model)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "value": wording.value,
        "signed": wording.signed,
        "p_value": wording.p_value,
        "milliseconds": wording.milliseconds,
        "percent": wording.percent,
        "literal": _literal,
        "picture": Markup,
    }
    template = resources.files("marcorank.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        collection=evaluation.collection,
        relevant_grade=evaluation.relevant_grade,
        models=evaluation.models,
        keys=_keys(evaluation.models),
        colours=charts.MODEL_COLOURS,
        verdicts=[_verdict(result) for result in evaluation.models],
        quality=_quality(evaluation),
        shown=shown,
        shown_index=[result.label for result in evaluation.models].index(shown.label),
        notes=list(dict.fromkeys((*evaluation.notes, *evaluation.collection.notes))),
        versions=_versions(),
        candidates=_candidate_counts(evaluation.collection),
        **details(evaluation, shown),
    )


def _best(models: Sequence[ModelResult]) -> ModelResult:
    return max(models, key=lambda result: _first(result.depths[-1]).value)


def _first(depth: DepthResult) -> MeasureResult:
    return depth.measures[0]


def _keys(models: Sequence[ModelResult]) -> list[str]:
    """Return a letter for each model: A to Z, then A2."""
    rounds = [divmod(index, len(ascii_uppercase)) for index in range(len(models))]
    return [ascii_uppercase[letter] + (f"{lap + 1}" if lap else "") for lap, letter in rounds]


def _verdict(result: ModelResult) -> dict[str, str]:
    """Say whether a model helped, at its greatest depth and by the first measure."""
    depth = result.depths[-1]
    found = _first(depth)
    low, high = found.interval
    kind, word, doubt = "chance", "makes no difference that can be distinguished from chance", ""
    if not found.wins and not found.losses:
        word = "changes nothing"
    elif low <= 0 <= high:
        doubt = f" The interval includes 0, so the difference can be chance (p {_after_p(found.p_value)})."
    elif found.p_value >= _ALPHA:
        queries = count(found.wins + found.ties + found.losses, "query", "queries")
        doubt = f" With {queries} the difference can be chance (p {_after_p(found.p_value)})."
    else:
        kind, word = ("gain", "helps") if found.difference > 0 else ("loss", "hurts")
    reranked = "candidate of each query is" if depth.top_k == 1 else f"{depth.top_k:,} candidates of each query are"
    sentence = (
        f"{found.measure} goes from {value(found.identity)} to {value(found.value)} ({signed(found.difference)}; 95 % "
        f"interval {signed(low)} to {signed(high)}) when the first {reranked} reranked: "
        f"{count(found.wins, 'query', 'queries')} better, {found.ties:,} the same, {found.losses:,} worse.{doubt}"
    )
    if depth.latency_p50_ms is not None:
        sentence += f" It takes {milliseconds(depth.latency_p50_ms)} ms a query (median)."
    return {"kind": kind, "word": word, "sentence": sentence}


def _after_p(number: float) -> str:
    found = p_value(number)
    return found if found.startswith("<") else f"= {found}"


def _quality(evaluation: EvaluationRecord) -> Figure:
    measure = evaluation.measures[0]
    every = [(result, depth) for result in evaluation.models for depth in result.depths]
    timed = any(depth.latency_p50_ms is not None for _, depth in every)
    tracks = [
        charts.Track(
            letter=key,
            colour=index,
            x=[depth.top_k if depth.latency_p50_ms is None else depth.latency_p50_ms for depth in drawn],
            y=[_first(depth).value for depth in drawn],
            depths=[depth.top_k for depth in drawn],
        )
        for index, (key, result) in enumerate(zip(_keys(evaluation.models), evaluation.models, strict=True))
        if (drawn := [depth for depth in result.depths if not timed or depth.latency_p50_ms is not None])
    ]
    title = f"{measure} against {'time a query' if timed else 'candidates reranked'}"
    picture = charts.quality(
        title,
        tracks,
        first_stage=_first(evaluation.models[0].depths[-1]).first_stage,
        measure=measure,
        xlabel="median time a query, ms" if timed else "candidates reranked (top_k)",
        timed=timed,
    )
    best, depth = max(every, key=lambda pair: _first(pair[1]).value)
    cost = "" if depth.latency_p50_ms is None else f", at {milliseconds(depth.latency_p50_ms)} ms a query"
    depths = [str(depth.top_k) for depth in evaluation.models[0].depths]
    points = f"the points of a line are top_k {', '.join(depths)}" if len(depths) > 1 else f"top_k is {depths[0]}"
    caption = (
        f"Up is better{', left is faster' if timed else ''}; {points}. The highest "
        f"value, {value(_first(depth).value)}, is of {best.label} with top_k {depth.top_k}{cost}."
    )
    if not timed:
        caption += " Nothing was timed."
    elif sum(len(track.x) for track in tracks) < len(every):
        caption += " What was not timed is left out."
    return Figure(title, picture, caption)


def _literal(setting: object) -> str:
    """Return a setting as JSON, which for texts is Python too; of files the beginning of their digests is enough."""
    if isinstance(setting, dict):
        return ", ".join(f"{name} {str(digest)[:12]}" for name, digest in setting.items())
    return json.dumps(setting, ensure_ascii=False, default=str)


def _candidate_counts(collection: Collection) -> str:
    counts = [len(collection.run.get(query_id, {})) for query_id in collection.queries]
    spread = f"{median(counts):g} a query (median), {min(counts):,} to {max(counts):,}"
    without = counts.count(0)
    return f"{spread}; {count(without, 'query', 'queries')} without any" if without else spread


def _versions() -> dict[str, str]:
    installed = {name: distribution.version for name in _PACKAGES for distribution in metadata.distributions(name=name)}
    return {"Python": platform.python_version(), **installed}
