"""The outer seam `Scorer`: what other people implement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from marcorank.ranking import ScoreKind


@runtime_checkable
class Scorer(Protocol):
    """Whoever brings another engine implements this and nothing else.

    An attribute `name`, where there is one, is shown as the model's name; an attribute `score_kind` that is
    `"probability"` says that it returns no logits but numbers from 0 to 1. A scorer that several threads or tasks use
    has to be safe for that.
    """

    def score(self, query: str, passages: Sequence[str]) -> ArrayLike:
        """Return one logit a passage, in input order; higher is more relevant. Shape: (passages,)."""
        ...


def scorer_name(scorer: Scorer) -> str:
    """Return the name to show for a scorer."""
    return str(getattr(scorer, "name", type(scorer).__name__))


def score_kind(scorer: Scorer) -> ScoreKind:
    """Return whether a scorer gives logits, or probabilities because a server has nothing else."""
    return "probability" if getattr(scorer, "score_kind", "logit") == "probability" else "logit"
