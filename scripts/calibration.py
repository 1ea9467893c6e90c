"""Scale and zero of logits: what makes `sigmoid` of a logit come near the probability that a passage is relevant."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOGIT_STD = 4.0
# Of five candidates that a search finds, about one is relevant. Of the candidates here fewer are known to be.
ANSWER_SHARE = 0.2
BINS = 10


class Calibration(NamedTuple):
    """The logits to use are `(logits - zero) * scale`.

    Attributes:
        zero: A candidate with this logit is as likely relevant as not, if one candidate in five is.
        scale: Makes the standard deviation 4, as that of the MS MARCO models.
        error: Expected calibration error of `sigmoid` with these two.
        best_error: The same with the scale that fits best.
    """

    zero: float
    scale: float
    error: float
    best_error: float

    def __str__(self) -> str:
        return (
            f"logits scaled by {self.scale:.4f}, after {-self.zero:+.4f}\n"
            f"expected calibration error of sigmoid: {self.error:.4f}\n"
            f"the same with the scale that fits best: {self.best_error:.4f}"
        )


def fit(logits: NDArray[np.float64], relevant: NDArray[np.bool_]) -> Calibration:
    """Fit to candidates of many queries. Shape: (candidates,) each."""
    slope, intercept = _regress(logits, relevant)
    zero, scale = -intercept / slope, LOGIT_STD / logits.std()
    return Calibration(
        float(zero),
        float(scale),
        _expected_error((logits - zero) * scale, relevant),
        _expected_error(logits * slope + intercept, relevant),
    )


def _weights(relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return a weight for each candidate, such that relevant ones have their usual share."""
    return np.where(relevant, ANSWER_SHARE / relevant.sum(), (1 - ANSWER_SHARE) / (~relevant).sum())


def _regress(logits: NDArray[np.float64], relevant: NDArray[np.bool_]) -> tuple[float, float]:
    """Return slope and intercept of the weighted logistic regression, by Newton's method."""
    inputs = np.stack([logits / logits.std(), np.ones_like(logits)], 1)
    found, weights = np.zeros(2), _weights(relevant)
    for _ in range(50):
        likely = 1 / (1 + np.exp(-inputs @ found))
        hessian = inputs.T @ (inputs * (weights * likely * (1 - likely))[:, None])
        found += np.linalg.solve(hessian, inputs.T @ (weights * (relevant - likely)))
    return float(found[0] / logits.std()), float(found[1])


def _expected_error(log_odds: NDArray[np.float64], relevant: NDArray[np.bool_]) -> float:
    likely = 1 / (1 + np.exp(-log_odds))
    bins = np.minimum((likely * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, weights=_weights(relevant) * (likely - relevant))).sum())
