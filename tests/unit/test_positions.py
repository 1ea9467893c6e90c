"""How many tokens a model has positions for."""

from __future__ import annotations

import pytest

from marcorank._models.positions import usable_positions


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024, "n_ctx": 1024}, 1024),
        ({"max_seq_len": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"max_position_embeddings": -1}, None),  # XLNet
        ({"n_positions": 512, "relative_attention_num_buckets": 32}, None),  # T5
        ({"max_position_embeddings": 512, "relative_attention_num_buckets": 32}, 512),  # MPNet
        ({}, None),
    ],
)
def test_the_config_names_the_size_of_the_table(config, expected):
    """Families have different names for it, and some models have no table."""
    assert usable_positions(config, first=0) == expected


def test_positions_before_the_first_are_not_usable():
    """RoBERTa's table has two more rows than the model can read tokens."""
    assert usable_positions({"max_position_embeddings": 514}, first=2) == 512
