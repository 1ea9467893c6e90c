"""Helpers that read the similarities which a model of `marcorank.interaction` computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SparseEncoder
from tokenizers import Tokenizer

from random_models import QUERY, bundled_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np


def tokens(texts: Sequence[str], query: str | Sequence[str] = QUERY) -> dict[str, torch.Tensor]:
    """Tokenise texts with one query, or each with its own."""
    tokenizer = Tokenizer.from_file(str(bundled_folder() / "tokenizer.json"))
    tokenizer.enable_padding()
    queries = [query] * len(texts) if isinstance(query, str) else query
    pairs = tokenizer.encode_batch(list(zip(queries, texts, strict=True)))
    return {
        "input_ids": torch.tensor([pair.ids for pair in pairs]),
        "attention_mask": torch.tensor([pair.attention_mask for pair in pairs]),
        "token_type_ids": torch.tensor([pair.type_ids for pair in pairs]),
    }


@torch.no_grad()
def logits(model: Any, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """Return one logit per row."""
    return model(**batch).logits[:, 0].numpy()


@torch.no_grad()
def only(model: Any, place: int) -> Any:
    """Let one similarity alone be the logit."""
    model.similarities.weight.zero_()
    model.similarities.weight[0, place] = 1.0
    model.similarities.bias.zero_()
    return model


def products_of_terms(splade_folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Return sentence-transformers' dot products with the query's 32 heaviest terms, per token of the query."""
    encoder = SparseEncoder(str(splade_folder), device="cpu")
    asked = encoder.encode([QUERY], max_active_dims=32).to_dense()[0]
    query_tokens = tokens([""])["input_ids"][0, :-1]  # [CLS] query [SEP], without the [SEP] of the passage
    return (encoder.encode(list(texts)).to_dense() @ asked / len(query_tokens)).numpy()
