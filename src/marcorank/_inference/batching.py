"""From sequence lengths to batches under a padded-token budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Most padding in a batch, as a part of its tokens.
MOST_PADDING = 0.1
# Padding that costs less than the start of another batch does, as a part of the budget.
_FREE_PADDING = 1 / 16


def plan_batches(lengths: NDArray[np.int64], max_padded_tokens: int) -> list[NDArray[np.int64]]:
    """Group sequences of like length so that little padding is computed.

    Longest first, so that a machine that is too small for a request fails at its start and not at its end. A
    sequence longer than the budget gets a batch of its own. A batch ends before a sequence with which more than a
    tenth of it would be padding, unless that is so little that another batch would cost more.

    Args:
        lengths: Tokens in each sequence. Shape: (sequences,), int64.
        max_padded_tokens: Most tokens in a batch, padding counted: rows times the longest row.

    Returns:
        Positions of the sequences of each batch. Each position occurs once.
    """
    by_length = np.argsort(-lengths, kind="stable")
    free = max_padded_tokens * _FREE_PADDING
    batches: list[NDArray[np.int64]] = []
    start = longest = padding = 0
    for place, length in enumerate(lengths[by_length].tolist()):
        padded = (place + 1 - start) * longest
        padding += longest - length
        if place and (padded > max_padded_tokens or padding > max(padded * MOST_PADDING, free)):
            batches.append(by_length[start:place])
            start = place
        if place == start:
            longest, padding = length, 0
    if len(by_length):
        batches.append(by_length[start:])
    return batches
