"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata, resources
from statistics import median
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from marcorank._drawing import LIGHT, Drawing, check_matplotlib
from marcorank.errors import MissingExtraError
from marcorank.evaluation import figures
from marcorank.evaluation.calibration import probabilities
from marcorank.evaluation.changes import query_changes
from marcorank.evaluation.recommending import advice, criterion, threshold_note, together_note
from marcorank.evaluation.thresholds import judged_candidates
from marcorank.evaluation.wording import milliseconds, p_value, percent, signed, value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from marcorank.collections.records import Collection
    from marcorank.evaluation.changes import QueryChange
    from marcorank.evaluation.records import MeasureResult, ModelResult
    from marcorank.evaluation.thresholds import Candidates

T = TypeVar("T")

_NO_THRESHOLD = "No relevant passage is among the candidates, so no threshold can be chosen."
_NO_SETTINGS = "No settings were tried for this model."
# Values of a measure that differ by less are the same.
_TIE = 1e-9
_PACKAGES = ("marcorank", "ir-measures", "scipy", "onnxruntime", "tokenizers", "torch", "sentence-transformers")


def render_report(
    collection: Collection,
    models: Sequence[ModelResult],
    shown: ModelResult,
    *,
    relevant_grade: int,
    notes: Sequence[str],
) -> str:
    """Return a page that compares the models and shows the queries, passages and thresholds of one of them.

    matplotlib's settings are the report's own while each figure is drawn; reports of several threads take turns.
    """
    try:
        check_matplotlib()
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError(
            'The report needs matplotlib and jinja2: pip install "marcorank[evaluation]"'
        ) from error
    material = _Material(collection, models, shown, relevant_grade)
    drawn = {kind: draw(material) for kind, draw in _CHARTS.items()}
    by_difference = sorted(material.changes, key=lambda change: change.difference)
    candidates = material.candidates
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "value": value,
        "signed": signed,
        "p_value": p_value,
        "milliseconds": milliseconds,
        "percent": percent,
        "sigmoid": lambda log_odds: float(probabilities(np.asarray(log_odds))),
        "setting": _setting,
        "svg": Markup,
    }
    template = resources.files("marcorank.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        collection=collection,
        candidate_counts=_candidate_counts(collection),
        relevant_grade=relevant_grade,
        models=models,
        colours=len(LIGHT.models),
        verdicts=[result.depths[-1].measures[0].verdict for result in models],
        quality_figure=drawn["quality"],
        shown=shown,
        shown_index=[result.label for result in models].index(shown.label),
        choices=shown.choices,
        criterion=criterion,
        advice=advice,
        threshold_note=threshold_note,
        together_note=together_note,
        sweep_figures=_present(drawn, "sweep", "blend"),
        gains_figure=drawn["gains"],
        moves_figure=drawn["moves"],
        threshold_figures=_present(drawn, "scores", "thresholds", "top_n", "top_k"),
        calibration=shown.calibration,
        held_out=len(np.unique(candidates.queries[candidates.counted])) > 1,
        losses=[one for one in by_difference if one.difference < -_TIE][:10],
        gains=[one for one in reversed(by_difference) if one.difference > _TIE][:5],
        notes=list(dict.fromkeys((*notes, *collection.notes))),
        versions=_versions(),
    )
    # UTF-8 cannot hold half a surrogate pair; it is shown as an escape sequence.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def drawing(
    kind: str, collection: Collection, models: Sequence[ModelResult], shown: ModelResult, *, relevant_grade: int
) -> Drawing:
    """Return a chart of a report; the caption of one without a picture says why it has none."""
    # The page has the names of the models beside their numbers.
    return _CHARTS[kind](_Material(collection, models, shown, relevant_grade, named=True))


@dataclass(frozen=True)
class _Material:
    """What charts are made of; what is derived from it is computed once, and only for a chart that shows it.

    Attributes:
        collection: The judged queries.
        models: All models.
        shown: The model of which the queries, passages and thresholds are shown.
        relevant_grade: Minimum grade of a relevant passage.
        named: Whether the chart that compares the models names them.
    """

    collection: Collection
    models: Sequence[ModelResult]
    shown: ModelResult
    relevant_grade: int
    named: bool = False

    @property
    def measure(self) -> MeasureResult:
        """The first measure of the model."""
        return self.shown.depths[-1].measures[0]

    @cached_property
    def changes(self) -> list[QueryChange]:
        """What reranking did to each query."""
        return query_changes(self.collection, self.shown, relevant_grade=self.relevant_grade)

    @cached_property
    def candidates(self) -> Candidates:
        """All candidates with their logits and judgements."""
        return judged_candidates(self.collection, self.shown.logits, relevant_grade=self.relevant_grade)


def _moves(of: _Material) -> Drawing:
    moves = [(one.old_rank, one.new_rank) for change in of.changes for one in change.candidates if one.relevant]
    grades = (grade for judged in of.collection.qrels.values() for grade in judged.values())
    return figures.moves(moves, out_of_reach=sum(grade >= of.relevant_grade for grade in grades) - len(moves))


def _if_any(found: T | None, otherwise: str, draw: Callable[[T], Drawing]) -> Drawing:
    return Drawing("", otherwise, None) if found is None else draw(found)


_CHARTS: dict[str, Callable[[_Material], Drawing]] = {
    "quality": lambda of: figures.quality(of.models, named=of.named),
    "gains": lambda of: figures.gains(of.measure),
    "moves": _moves,
    "scores": lambda of: figures.scores(of.candidates, of.shown.cuts),
    "thresholds": lambda of: _if_any(of.shown.cuts, _NO_THRESHOLD, figures.thresholds),
    "top_n": lambda of: _if_any(of.shown.cuts, _NO_THRESHOLD, figures.top_n),
    "top_k": lambda of: _if_any(of.shown.cuts, _NO_THRESHOLD, lambda cuts: figures.top_k(cuts, of.measure.measure)),
    "sweep": lambda of: _if_any(of.shown.choices, _NO_SETTINGS, figures.sweep),
    "blend": lambda of: _if_any(of.shown.choices, _NO_SETTINGS, figures.blend),
}
KINDS = tuple(_CHARTS)
"""The charts of a report."""


def _present(drawn: Mapping[str, Drawing], *kinds: str) -> list[Drawing]:
    return [drawn[kind] for kind in kinds if drawn[kind].paint is not None]


def _setting(setting: object) -> str:
    """Return a setting as text; of a file's digest, the beginning is enough."""
    if isinstance(setting, str):
        return setting
    if isinstance(setting, dict):
        return ", ".join(f"{name} {str(digest)[:12]}" for name, digest in setting.items())
    return json.dumps(setting, ensure_ascii=False, default=str)


def _candidate_counts(collection: Collection) -> str:
    counts = [len(collection.run.get(query_id, ())) for query_id in collection.queries]
    spread = f"{median(counts):g} per query (median), {min(counts):,} to {max(counts):,}"
    return f"{spread}; queries without candidates: {counts.count(0):,}" if 0 in counts else spread


def _versions() -> dict[str, str]:
    installed = {name: distribution.version for name in _PACKAGES for distribution in metadata.distributions(name=name)}
    return {"Python": platform.python_version(), **installed}
