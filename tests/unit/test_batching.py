"""Batches under a padded-token budget."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from marcorank.batching import plan_batches


@given(st.lists(st.integers(1, 512), max_size=200), st.integers(1, 2000))
def test_every_sequence_is_in_one_batch_and_the_budget_holds(lengths, budget):
    """Batches are a permutation of the input; only a sequence that is alone may exceed the budget."""
    array = np.array(lengths, dtype=np.int64)
    batches = plan_batches(array, budget)
    assert sorted(int(place) for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * array[batch].max() <= budget


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200), st.integers(1, 2000))
def test_batches_run_from_long_to_short(lengths, budget):
    """Like lengths share a batch, the longest come first."""
    array = np.array(lengths, dtype=np.int64)
    flat = [int(array[place]) for batch in plan_batches(array, budget) for place in batch]
    assert flat == sorted(flat, reverse=True)
