"""The protocol that you implement to use a model or server of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from marcorank._text import quoted, shorten
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from marcorank.ranking import ScoreKind


@runtime_checkable
class Scorer(Protocol):
    """Scores passages against a query.

    Two attributes are optional: `name` is shown as the name of the model, and `score_kind = "probability"` declares
    that the scorer returns numbers from 0 to 1 instead of logits. A scorer that several threads or tasks use must be
    thread-safe.
    """

    def score(self, query: str, passages: Sequence[str]) -> ArrayLike:
        """Return one logit per passage, in input order; higher is more relevant. Shape: (passages,)."""
        ...


def scorer_name(scorer: Scorer) -> str:
    """Return the display name of a scorer."""
    return shorten(str(getattr(scorer, "name", type(scorer).__name__)), 200)


def score_kind(scorer: Scorer) -> ScoreKind:
    """Return whether a scorer returns logits or probabilities.

    Raises:
        InvalidInputError: Its attribute `score_kind` is neither.
    """
    kind = getattr(scorer, "score_kind", "logit")
    if kind not in {"logit", "probability"}:
        raise InvalidInputError(
            f"`score_kind` of the scorer {quoted(scorer_name(scorer))} is {quoted(kind)}; expected 'logit' or "
            "'probability'."
        )
    return cast("ScoreKind", kind)
