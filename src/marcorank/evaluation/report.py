"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

import json
import platform
from importlib import metadata, resources
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from marcorank._drawing import LIGHT, Drawing, check_matplotlib
from marcorank.errors import MissingExtraError
from marcorank.evaluation import figures
from marcorank.evaluation.calibration import probabilities
from marcorank.evaluation.changes import query_changes
from marcorank.evaluation.recommending import criterion, threshold_note, together_note, verdict
from marcorank.evaluation.thresholds import judged_candidates
from marcorank.evaluation.wording import milliseconds, p_value, percent, signed, value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from marcorank.collections.records import Collection
    from marcorank.evaluation.changes import QueryChange
    from marcorank.evaluation.records import MeasureResult, ModelResult
    from marcorank.evaluation.thresholds import Candidates

KINDS = ("quality", "gains", "moves", "scores", "thresholds", "top_n", "top_k", "sweep", "blend")
"""The charts of a report."""

_NO_THRESHOLD = "No relevant passage is among the candidates, so no threshold can be chosen."
_NO_SETTINGS = "No settings were tried for this model."
_ALPHA = 0.05
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
    changes = query_changes(collection, shown, relevant_grade=relevant_grade)
    by_difference = sorted(changes, key=lambda change: change.difference)
    candidates = judged_candidates(collection, shown.logits, relevant_grade=relevant_grade)
    drawn = _drawings(collection, models, shown, changes, candidates, relevant_grade=relevant_grade)
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
        verdicts=[_verdict(result.depths[-1].measures[0]) for result in models],
        quality_figure=drawn["quality"],
        shown=shown,
        shown_index=[result.label for result in models].index(shown.label),
        choices=shown.choices,
        criterion=criterion,
        verdict=verdict,
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


def drawings(
    collection: Collection, models: Sequence[ModelResult], shown: ModelResult, *, relevant_grade: int
) -> dict[str, Drawing]:
    """Return the charts of a report by kind; the caption of one without a picture says why it has none."""
    changes = query_changes(collection, shown, relevant_grade=relevant_grade)
    candidates = judged_candidates(collection, shown.logits, relevant_grade=relevant_grade)
    drawn = _drawings(collection, models, shown, changes, candidates, relevant_grade=relevant_grade)
    # The page has the names of the models beside their numbers.
    return drawn | {"quality": figures.quality(models, named=True)}


def _drawings(
    collection: Collection,
    models: Sequence[ModelResult],
    shown: ModelResult,
    changes: Sequence[QueryChange],
    candidates: Candidates,
    *,
    relevant_grade: int,
) -> dict[str, Drawing]:
    found = shown.depths[-1].measures[0]
    moves = [(one.old_rank, one.new_rank) for change in changes for one in change.candidates if one.relevant]
    relevant = sum(grade >= relevant_grade for grades in collection.qrels.values() for grade in grades.values())
    drawn = {
        "quality": figures.quality(models),
        "gains": figures.gains(found),
        "moves": figures.moves(moves, out_of_reach=relevant - len(moves)),
        "scores": figures.scores(candidates, shown.cuts),
    }
    if shown.cuts is not None:
        drawn["thresholds"] = figures.thresholds(shown.cuts)
        drawn["top_n"], drawn["top_k"] = figures.top_n_and_top_k(shown.cuts, found.measure)
    if shown.choices is not None:
        drawn["sweep"], drawn["blend"] = figures.sweep(shown.choices)
    for kind in KINDS[4:]:
        drawn.setdefault(kind, Drawing(kind, _NO_SETTINGS if kind in KINDS[7:] else _NO_THRESHOLD, None))
    return drawn


def _present(drawn: Mapping[str, Drawing], *kinds: str) -> list[Drawing]:
    return [drawn[kind] for kind in kinds if drawn[kind].paint is not None]


def _verdict(found: MeasureResult) -> str:
    low, high = found.interval
    if not found.wins and not found.losses:
        return "same"
    if low <= 0 <= high or found.p_value >= _ALPHA:
        return "chance"
    return "gain" if found.difference > 0 else "loss"


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
