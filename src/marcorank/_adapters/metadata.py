"""What both adapters write into metadata: plain numbers and texts, which JSON and vector stores accept."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marcorank.ranking import RankedPassage, RerankStatus

STATUS_KEYS = ("rerank_outcome", "rerank_error", "rerank_reason")
OPTION_KEYS = ("scored_by", "blended_score")


def status_metadata(status: RerankStatus | None) -> dict[str, str]:
    """Return why the requested model did not rank, as flat metadata; empty if it did."""
    if status is None:
        return {}
    # Stores refuse the lone surrogates that the message of a foreign error may quote from a text.
    reason = status.reason.encode("utf-8", "backslashreplace").decode("utf-8")
    return dict(zip(STATUS_KEYS, (status.outcome, status.error, reason), strict=True))


def option_metadata(result: RankedPassage) -> dict[str, Any]:
    """Return what `skim` and `blend` add to a result; empty if they are off."""
    values = {name: getattr(result, name) for name in OPTION_KEYS}
    return {name: value for name, value in values.items() if value is not None}


def plain_score(value: Any) -> float | None:
    """Return a first-stage score as a float; None for what is not a finite number.

    Scores are stored as numbers of NumPy, torch and databases, which do not go through JSON.
    """
    if hasattr(value, "dtype"):
        try:
            value = value.item()  # a scalar of NumPy, or a tensor with one value
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return None
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):  # a signalling NaN, or an int beyond the range of floats
        return None
    return number if math.isfinite(number) else None
