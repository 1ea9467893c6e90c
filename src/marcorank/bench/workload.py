"""Requests made of Python's own documentation, with given numbers of tokens, and the operations that they need."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._models.loading import locate
from marcorank._text import quoted
from marcorank.errors import MarcoRankError, ModelLoadError
from marcorank.settings import RerankerSettings

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

QUERY = "How are default parameter values of a function evaluated?"
# Twenty pairs of 95 to 414 tokens then have about 4,540 tokens, and 8,280 if all are padded to the longest.
_SKEW = 1.44
_TRIES = 50
_MAX_TOKENS = 512
# Encoders with the layers of BERT: four square products, and two with the intermediate size.
_KNOWN_SHAPES = ["bert", "roberta", "xlm-roberta", "electra", "camembert", "mpnet", "distilbert", "interaction-bert"]


def pair_lengths(count: int, low: int, high: int) -> list[int]:
    """Return the tokens of each pair of query and passage, from `low` to `high`, more short ones than long ones."""
    steps = np.linspace(0, 1, count) if count > 1 else np.ones(1)
    return [int(length) for length in np.rint(low + (high - low) * steps**_SKEW)]


class Workload:
    """Makes passages of given lengths with the tokenizer of a model; the same ones in each run."""

    def __init__(self, model: str, cache_folder: str | None = None) -> None:
        # The chapters of Python's reference.
        from pydoc_data.topics import topics

        self._tokenizer = read_tokenizer(model, cache_folder)
        self._text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
        encoding = self._tokenizer.encode(self._text, add_special_tokens=False)
        self._offsets = [(start, end) for start, end in encoding.offsets if end > start]
        # Passages begin with a word: the end of a word would be tokenised differently.
        self._starts = [
            index
            for index, (start, _) in enumerate(self._offsets)
            if start == 0 or self._text[start - 1].isspace() or self._text[start].isspace()
        ]
        self._random = np.random.default_rng(0)

    def passages(self, lengths: Sequence[int]) -> list[str]:
        """Return a different passage for each length, in random order."""
        # A dict keeps the order.
        passages: dict[str, None] = {}
        for length in self._random.permutation(lengths):
            passages[self._passage(int(length), passages)] = None
        return list(passages)

    def request(self, lengths: Sequence[int]) -> dict[str, Any]:
        """Return a request as plain values, with its lengths as this tokenizer counts them."""
        passages = self.passages(lengths)
        lengths = [pair_length(self._tokenizer, QUERY, passage) for passage in passages]
        return {"query": QUERY, "passages": passages, "lengths": lengths, "tokens": sum(lengths)}

    def _passage(self, length: int, used: Collection[str]) -> str:
        tokens = max(1, length - pair_length(self._tokenizer, QUERY, ""))
        best, best_error = "", length
        for _ in range(_TRIES):
            start = self._starts[self._random.integers(len(self._starts))]
            last = min(start + tokens, len(self._offsets)) - 1
            text = self._text[self._offsets[start][0] : self._offsets[last][1]].strip()
            error = abs(pair_length(self._tokenizer, QUERY, text) - length)
            if error < best_error and text not in used:
                best, best_error = text, error
            if best_error == 0:
                break
        # With thousands of passages, the short ones run out.
        return best or f"{len(used)}"


def pair_length(tokenizer: Any, query: str, passage: str) -> int:
    """Return the number of tokens of query and passage together, special tokens included."""
    return len(tokenizer.encode(query, passage).ids)


def read_tokenizer(model: str, cache_folder: str | None) -> Any:
    """Return the tokenizer of a model without truncation and padding.

    Raises:
        UnknownModelError: No model has this name.
        ModelLoadError: The model has no tokenizer, or it cannot be read.
    """
    from tokenizers import Tokenizer

    file = model_file(model, "tokenizer.json", cache_folder)
    if file is None:
        raise ModelLoadError(
            f"Model {quoted(model)} has no tokenizer.json on this machine. The benchmark downloads nothing; download "
            f"a model from the hub with `marcorank models download {model}`."
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise ModelLoadError(f"{str(file)!r} cannot be read as a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def model_file(model: str, name: str, cache_folder: str | None) -> Path | None:
    """Return a file of a model on this machine; None if it is not there."""
    return locate(RerankerSettings(model, cache_folder=cache_folder, local_files_only=True)).fetch(name)


def request_flops(model: str, passages: Sequence[str], cache_folder: str | None) -> float | None:
    """Return the operations of a request: products of weights and attention, in all layers for all tokens.

    A multiplication and an addition are two. None stands for an unknown architecture.
    """
    try:
        file = model_file(model, "config.json", cache_folder)
        config = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
        tokenizer = read_tokenizer(model, cache_folder)
    except (MarcoRankError, OSError, ValueError):
        return None
    if config.get("model_type") not in _KNOWN_SHAPES:
        return None
    # DistilBERT has other names.
    hidden = config.get("hidden_size") or config["dim"]
    intermediate = config.get("intermediate_size") or config["hidden_dim"]
    layers = config.get("num_hidden_layers") or config["n_layers"]
    max_tokens = min(_MAX_TOKENS, config.get("max_position_embeddings", _MAX_TOKENS))
    flops = 0.0
    for passage in passages:
        tokens = min(max_tokens, pair_length(tokenizer, QUERY, passage))
        weights = 4 * hidden**2 + 2 * hidden * intermediate
        flops += layers * (2 * weights * tokens + 4 * tokens**2 * hidden)
    return flops
