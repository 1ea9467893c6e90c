"""Calibration: a logistic map from logits to probabilities, fitted on judged candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from marcorank.errors import MissingExtraError
from marcorank.evaluation.records import Calibration
from marcorank.evaluation.thresholds import judged_candidates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from marcorank.collections.records import Collection, Run

_FOLDS = 5
_BINS = 10


def calibrate(collection: Collection, logits: Run, *, relevant_grade: int = 1) -> Calibration | None:
    """Fit a map from logits to probabilities of relevance.

    The probabilities are valid for candidates like those of the fit: of the same first-stage ranks, and judged alike.
    Candidates without a judgement are treated as by `cuts`. Log losses and expected errors are measured by
    cross-validation over five parts of the queries; with one query they are measured on the fit itself.

    Args:
        collection: Queries, judgements and first stage.
        logits: Logits of the candidates that were scored.
        relevant_grade: Minimum grade that counts as relevant.

    Returns:
        None if no map can be fitted: no candidate is relevant, all are, or relevant ones have no higher logits.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    candidates = judged_candidates(collection, logits, relevant_grade=relevant_grade)
    counted = candidates.counted
    values, relevant, queries = candidates.logits[counted], candidates.relevant[counted], candidates.queries[counted]
    if not relevant.any() or relevant.all():
        return None
    slope, intercept = _fit(values, relevant)
    # The search ends this close to an optimum at 0.
    if slope * values.std() < 1e-6:
        return None
    held_out = _held_out(values, relevant, queries)
    return Calibration(
        a=slope,
        b=intercept,
        judged=len(values),
        relevant=int(relevant.sum()),
        log_loss=_log_loss(held_out, relevant),
        log_loss_sigmoid=_log_loss(values, relevant),
        expected_error=_expected_error(held_out, relevant),
        expected_error_sigmoid=_expected_error(values, relevant),
    )


def probabilities(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `1 / (1 + exp(-log_odds))`. Shape: (pairs,) to (pairs,), float64."""
    return np.exp(-np.logaddexp(0.0, -log_odds))


def _fit(logits: NDArray[np.float64], relevant: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the `a` and `b` of maximum likelihood.

    The targets are a little below 1 and above 0, so that logits that separate the classes have a finite optimum too.

    Source: Platt, Probabilistic outputs for support vector machines (1999), with the targets given there.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise MissingExtraError('Calibration needs the package scipy: pip install "marcorank[evaluation]"') from error

    count, positive = len(relevant), int(relevant.sum())
    targets = np.where(relevant, (positive + 1) / (positive + 2), 1 / (count - positive + 2))
    middle, spread = logits.mean(), logits.std()
    if spread < 1e-9 * max(1.0, abs(middle)):
        return 0.0, float(np.log(targets.mean() / (1 - targets.mean())))
    # Standardised, so that the search converges on any scale.
    scaled = (logits - middle) / spread

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_odds = parameters[0] * scaled + parameters[1]
        error = probabilities(log_odds) - targets
        value = np.mean(np.logaddexp(0.0, log_odds) - targets * log_odds)
        return float(value), np.array([np.mean(error * scaled), np.mean(error)])

    found = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9})
    slope = float(found.x[0] / spread)
    return slope, float(found.x[1] - slope * middle)


def _held_out(
    logits: NDArray[np.float64], relevant: NDArray[np.bool_], queries: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the log-odds of each pair from a fit without its query. Shape: (pairs,), float64."""
    distinct, query_index = np.unique(queries, return_inverse=True)
    if len(distinct) == 1:
        slope, intercept = _fit(logits, relevant)
        return slope * logits + intercept
    fold = np.random.default_rng(0).permutation(len(distinct))[query_index] % _FOLDS
    log_odds = np.empty(len(logits))
    for part in range(min(_FOLDS, len(distinct))):
        left_out = fold == part
        slope, intercept = _fit(logits[~left_out], relevant[~left_out])
        log_odds[left_out] = slope * logits[left_out] + intercept
    return log_odds


def _log_loss(log_odds: NDArray[np.float64], relevant: NDArray[np.bool_]) -> float:
    return float(np.mean(np.logaddexp(0.0, np.where(relevant, -log_odds, log_odds))))


def _expected_error(log_odds: NDArray[np.float64], relevant: NDArray[np.bool_]) -> float:
    """Return the expected calibration error over ten bins of equal width.

    Source: Guo et al., On calibration of modern neural networks (2017), equation 3.
    """
    predicted = probabilities(log_odds)
    bin_index = np.minimum((predicted * _BINS).astype(np.int64), _BINS - 1)
    too_high = np.bincount(bin_index, weights=predicted - relevant, minlength=_BINS)
    return float(np.abs(too_high).sum() / len(predicted))
