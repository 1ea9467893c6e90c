"""Mixes the order of the first stage into that of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009).
_RANK_CONSTANT = 60


def scores_of_ranks(count: int) -> NDArray[np.float64]:
    """Return what stands for the first-stage scores where only the ranks are known: `1 / (60 + rank)`."""
    return np.asarray(1 / (_RANK_CONSTANT + np.arange(1, count + 1)), dtype=np.float64)


def blend_scores(logits: NDArray[np.float32], first_stage: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """Return `(1 - weight) * model + weight * first stage`, each of them scaled to 0 to 1 over the passages.

    Args:
        logits: One per passage. Shape: (passages,), float32.
        first_stage: Scores of the first stage, the greater the better. Shape: (passages,), float64.
        weight: Of the first stage, from 0 to 1.

    Returns:
        Shape: (passages,), float64.
    """
    return np.asarray((1 - weight) * _scaled(logits) + weight * _scaled(first_stage))


def order_after_skim(logits: NDArray[np.float32], first_stage: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """Return the positions of the passages that a skimming model read, best first.

    Its ranks and those of the first stage are fused, since the two err differently: by the sum of `1 / (60 + rank)`.

    Args:
        logits: Of the skimming model. Shape: (passages,), float32.
        first_stage: Scores of the first stage. Shape: (passages,), float64. None if they are unknown: then the
            skimming model decides alone.
    """
    if first_stage is None:
        return np.argsort(-logits, kind="stable")
    of_ranks = scores_of_ranks(len(logits))
    fused = of_ranks[_ranks(logits)] + of_ranks[_ranks(first_stage)]
    # What is third and fifth ties with what is fifth and third; the skimming model breaks such ties.
    return np.lexsort((-logits, -fused))


def _ranks(values: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many values are greater than each, so that equal ones have the same rank."""
    return len(values) - np.searchsorted(np.sort(values), values, side="right")


def _scaled(values: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale values so that the least becomes 0 and the greatest 1; all 0 if they are equal."""
    if not len(values):
        return np.empty(0)
    wide = np.asarray(values, dtype=np.float64)
    least, greatest = wide.min(), wide.max()
    # Divided first: the difference of two floats may be beyond their range.
    span = greatest / 2 - least / 2
    if span == 0:
        return np.zeros(len(wide))
    return np.asarray((wide / 2 - least / 2) / span)
