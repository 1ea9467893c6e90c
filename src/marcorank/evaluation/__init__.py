"""Measure whether reranking helps on your data, and choose how many candidates to rerank and which to keep.

    from marcorank.evaluation import evaluate

    evaluation = evaluate("my-collection", "bundled")
    print(evaluation)
    evaluation.write_report("report.html")

The names below are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marcorank.collections.reading import read_collection, read_qrels, read_run, write_run
    from marcorank.collections.records import Collection
    from marcorank.evaluation.calibration import calibrate
    from marcorank.evaluation.evaluating import evaluate, evaluate_runs
    from marcorank.evaluation.records import Calibration, CutPoint, Cuts, DepthResult, MeasureResult, ModelResult
    from marcorank.evaluation.results import Evaluation, RunsEvaluation
    from marcorank.evaluation.retrievers import run_of
    from marcorank.evaluation.thresholds import cuts

_NAMES = {
    "collections.reading": ("read_collection", "read_qrels", "read_run", "write_run"),
    "collections.records": ("Collection",),
    "evaluation.calibration": ("calibrate",),
    "evaluation.thresholds": ("cuts",),
    "evaluation.evaluating": ("evaluate", "evaluate_runs"),
    "evaluation.records": ("Calibration", "CutPoint", "Cuts", "DepthResult", "MeasureResult", "ModelResult"),
    "evaluation.results": ("Evaluation", "RunsEvaluation"),
    "evaluation.retrievers": ("run_of",),
}
_HOME = {name: f"marcorank.{module}" for module, names in _NAMES.items() for name in names}

__all__ = [
    "evaluate",
    "evaluate_runs",
    "Evaluation",
    "RunsEvaluation",
    "Collection",
    "ModelResult",
    "DepthResult",
    "MeasureResult",
    "Cuts",
    "CutPoint",
    "Calibration",
    "cuts",
    "calibrate",
    "read_collection",
    "read_run",
    "read_qrels",
    "write_run",
    "run_of",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
