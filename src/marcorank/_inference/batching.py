"""Groups sequences into batches under a budget of padded tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Maximum padding in a batch, as a fraction of its tokens.
MAX_PADDING = 0.1
# Padding that costs less than starting another batch, as a fraction of the budget.
_FREE_PADDING = 1 / 16


def plan_batches(lengths: NDArray[np.int64], max_padded_tokens: int) -> list[NDArray[np.int64]]:
    """Group sequences of similar length, so that there is little padding.

    The longest come first, so that a request that needs too much memory fails at the start. A sequence longer than the
    budget gets its own batch. A batch ends before a sequence that would raise its padding above a tenth, unless another
    batch would cost more than that padding.

    Args:
        lengths: Number of tokens in each sequence. Shape: (sequences,), int64.
        max_padded_tokens: Maximum number of tokens in a batch with padding: rows times the length of the longest.

    Returns:
        Indices of the sequences of each batch. Each index occurs once.
    """
    by_length = np.argsort(-lengths, kind="stable")
    free = max_padded_tokens * _FREE_PADDING
    batches: list[NDArray[np.int64]] = []
    start = longest = padding = 0
    for index, length in enumerate(lengths[by_length].tolist()):
        padded = (index + 1 - start) * longest
        padding += longest - length
        if index and (padded > max_padded_tokens or padding > max(padded * MAX_PADDING, free)):
            batches.append(by_length[start:index])
            start = index
        if index == start:
            longest, padding = length, 0
    if len(by_length):
        batches.append(by_length[start:])
    return batches
