"""Batches under a padded-token budget."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from marcorank._inference.batching import MAX_PADDING, plan_batches


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


@given(st.lists(st.integers(1, 512), max_size=200), st.integers(1, 2000))
def test_at_most_a_tenth_of_a_batch_is_padding(lengths, budget):
    """Only padding that is next to nothing beside the budget may be more than a tenth of its batch."""
    array = np.array(lengths, dtype=np.int64)
    for batch in plan_batches(array, budget):
        padded = len(batch) * array[batch].max()
        assert padded - array[batch].sum() <= max(MAX_PADDING * padded, budget / 16)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200), st.integers(1, 2000))
def test_a_batch_ends_only_where_it_has_to(lengths, budget):
    """With the next sequence a batch would pass its budget or hold too much padding."""
    array = np.array(lengths, dtype=np.int64)
    batches = plan_batches(array, budget)
    for batch, following in pairwise(batches):
        rows = array[[*batch, following[0]]]
        padded = len(rows) * rows.max()
        assert padded > budget or padded - rows.sum() > max(MAX_PADDING * padded, budget / 16)


def test_passages_of_mixed_length_waste_less_than_a_tenth():
    """On lengths as passages have them, less than a tenth of all that is computed is padding."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 0.6, 5000), 12, 512).astype(np.int64)
    for budget in (512, 1024, 32768):
        padded = sum(len(batch) * int(lengths[batch].max()) for batch in plan_batches(lengths, budget))
        assert 1 - lengths.sum() / padded < MAX_PADDING
