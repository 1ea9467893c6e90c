"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

import json
import platform
from importlib import metadata, resources
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from marcorank.errors import MissingExtraError
from marcorank.evaluation import figures
from marcorank.evaluation.calibration import probabilities
from marcorank.evaluation.changes import query_changes
from marcorank.evaluation.drawing import MODEL_COLOURS
from marcorank.evaluation.recommending import criterion, threshold_note, together_note, verdict
from marcorank.evaluation.thresholds import judged_candidates
from marcorank.evaluation.wording import milliseconds, p_value, percent, signed, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marcorank.collections.records import Collection
    from marcorank.evaluation.records import MeasureResult, ModelResult

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
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError(
            'The report needs matplotlib and jinja2: pip install "marcorank[evaluation]"'
        ) from error
    found = shown.depths[-1].measures[0]
    changes = query_changes(collection, shown, relevant_grade=relevant_grade)
    by_difference = sorted(changes, key=lambda change: change.difference)
    candidates = judged_candidates(collection, shown.logits, relevant_grade=relevant_grade)
    moves = [(one.old_rank, one.new_rank) for change in changes for one in change.candidates if one.relevant]
    relevant = sum(grade >= relevant_grade for grades in collection.qrels.values() for grade in grades.values())
    threshold_figures = [figures.scores(candidates, shown.cuts)] if candidates.counted.any() else []
    if shown.cuts is not None:
        threshold_figures += [figures.thresholds(shown.cuts), *figures.top_n_and_top_k(shown.cuts, found.measure)]
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
        colours=len(MODEL_COLOURS),
        verdicts=[_verdict(result.depths[-1].measures[0]) for result in models],
        quality_figure=figures.quality(models),
        shown=shown,
        shown_index=[result.label for result in models].index(shown.label),
        choices=shown.choices,
        criterion=criterion,
        verdict=verdict,
        threshold_note=threshold_note,
        together_note=together_note,
        sweep_figures=[] if shown.choices is None else figures.sweep(shown.choices),
        gains_figure=figures.gains(found),
        moves_figure=figures.moves(moves, out_of_reach=relevant - len(moves)),
        threshold_figures=threshold_figures,
        calibration=shown.calibration,
        held_out=len(np.unique(candidates.queries[candidates.counted])) > 1,
        losses=[one for one in by_difference if one.difference < -_TIE][:10],
        gains=[one for one in reversed(by_difference) if one.difference > _TIE][:5],
        notes=list(dict.fromkeys((*notes, *collection.notes))),
        versions=_versions(),
    )
    # UTF-8 cannot hold half a surrogate pair; it is shown as an escape sequence.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


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
