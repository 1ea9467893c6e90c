"""What both adapters write into metadata: plain numbers and texts, which JSON and vector stores accept."""

from __future__ import annotations

import math
from decimal import Decimal
from numbers import Real
from typing import Any


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
