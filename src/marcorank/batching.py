"""From sequence lengths to batches under a padded-token budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def plan_batches(lengths: NDArray[np.int64], max_padded_tokens: int) -> list[NDArray[np.int64]]:
    """Group sequences of like length so that little padding is computed.

    Longest first, so that a machine that is too small for a request fails at its start and not at its end. A
    sequence longer than the budget gets a batch of its own.

    Args:
        lengths: Tokens in each sequence. Shape: (sequences,), int64.
        max_padded_tokens: Most tokens in a batch, padding counted: rows times the longest row.

    Returns:
        Positions of the sequences of each batch. Each position occurs once.
    """
    by_length = np.argsort(-lengths, kind="stable")
    batches: list[NDArray[np.int64]] = []
    start = 0
    while start < len(by_length):
        longest = max(int(lengths[by_length[start]]), 1)
        rows = max(max_padded_tokens // longest, 1)
        batches.append(by_length[start : start + rows])
        start += rows
    return batches
