"""Finds out for how many tokens a model has positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marcorank._inference.backends.onnx import mentions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Families name the size of their table differently.
_SIZES = ("max_position_embeddings", "n_positions", "max_seq_len")
# T5 has no table, but its configs may name the length of its training texts.
_RELATIVE = "relative_attention_num_buckets"
# RoBERTa and its relatives count the tokens that are not padding, from the id of the padding on. The rows of the table
# up to that id have no token.
_TABLE = "position_embeddings"
_COUNTING = "CumSum"


def usable_positions(config: Mapping[str, Any], *, first: int) -> int | None:
    """Return how many tokens a model has positions for; None if there is no limit.

    Args:
        config: The content of its config.json.
        first: The position of the first token.
    """
    config = config.get("text_config") or config
    for name in _SIZES:
        size = config.get(name)
        if isinstance(size, int) and size > 0 and not (name == "n_positions" and _RELATIVE in config):
            return size - first
    return None


def first_position_of_module(model: Any) -> int:
    """Return the position that a model of transformers gives to the first token."""
    tables = [module for name, module in model.named_modules() if name.rpartition(".")[2] == _TABLE]
    padding = [getattr(table, "padding_idx", None) for table in tables]
    return max((index + 1 for index in padding if index is not None), default=0)


def first_position_of_graph(file: Path, pad_id: int) -> int:
    """Return the position that an ONNX file or an OpenVINO IR gives to the first token."""
    return pad_id + 1 if mentions(file, _COUNTING) and mentions(file, _TABLE) else 0


def padding_id(config: Mapping[str, Any]) -> int:
    """Return the id of the padding token."""
    pad_id = config.get("pad_token_id")
    return pad_id if isinstance(pad_id, int) else 0
