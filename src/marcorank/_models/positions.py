"""Finds out for how many tokens a model has positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marcorank._inference.backends.graph_files import mentions

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
_COUNTING_FAMILIES = (
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


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


def first_position_of_graph(file: Path, config: Mapping[str, Any]) -> int:
    """Return the position that an ONNX file or an OpenVINO IR gives to the first token."""
    first = padding_id(config) + 1
    positions = usable_positions(config, first=0)
    if positions is None or first >= positions:
        return 0
    counts = mentions(file, _COUNTING) and mentions(file, _TABLE)
    # The names in a graph may have been replaced by numbers.
    return first if counts or config.get("model_type") in _COUNTING_FAMILIES else 0


def padding_id(config: Mapping[str, Any]) -> int:
    """Return the id of the padding token."""
    pad_id = config.get("pad_token_id")
    return pad_id if isinstance(pad_id, int) else 0
