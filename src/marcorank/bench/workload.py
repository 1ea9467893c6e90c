"""Requests made of Python's own documentation, cut to given numbers of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._models.loading import locate
from marcorank.errors import ModelLoadError
from marcorank.settings import RerankerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from marcorank.bench.records import Settings

QUERY = "How are default parameter values of a function evaluated?"
# Twenty pairs of 95 to 414 tokens hold about 4,540 tokens then, and 8,280 when all are padded to the longest.
_SKEW = 1.44
_TRIES = 50


def pair_lengths(count: int, low: int, high: int) -> list[int]:
    """Return lengths in tokens of query and passage together, from `low` to `high`, with more short ones than long."""
    steps = np.linspace(0, 1, count) if count > 1 else np.ones(1)
    return [int(length) for length in np.rint(low + (high - low) * steps**_SKEW)]


class Workload:
    """Makes passages of given lengths with the tokenizer of a model; the same ones each time.

    Attributes:
        query: The query.
    """

    query = QUERY

    def __init__(self, settings: Settings, model: str) -> None:
        """Read the tokenizer and the text.

        Raises:
            UnknownModelError: The name is not a model.
            ModelLoadError: The model has no tokenizer that can be read.
        """
        self._tokenizer = read_tokenizer(model, settings.cache_folder)
        self._text = _text()
        self._offsets = [
            pair for pair in self._tokenizer.encode(self._text, add_special_tokens=False).offsets if pair[1] > pair[0]
        ]
        # Where a word begins: a text that is cut inside one has other tokens than it had there.
        self._starts = [
            index
            for index, (start, _) in enumerate(self._offsets)
            if start == 0 or self._text[start - 1].isspace() or self._text[start].isspace()
        ]
        self._random = np.random.default_rng(settings.seed)

    def passages(self, lengths: Sequence[int]) -> list[str]:
        """Return a different passage for each length, in random order."""
        # A dict keeps its order; the same seed has to give the same request.
        found: dict[str, None] = {}
        for length in self._random.permutation(lengths):
            found[self._passage(int(length), found)] = None
        return list(found)

    def described(self, passages: Sequence[str]) -> dict[str, object]:
        """Return a request as plain values, with its lengths as this tokenizer counts them."""
        lengths = [pair_length(self._tokenizer, self.query, passage) for passage in passages]
        return {
            "query": self.query,
            "passages": list(passages),
            "lengths": lengths,
            "tokens": sum(lengths),
            "padded_tokens": max(lengths, default=0) * len(lengths),
        }

    def _passage(self, length: int, seen: Mapping[str, None]) -> str:
        wanted = max(1, length - pair_length(self._tokenizer, self.query, ""))
        best, miss = "", length
        for _ in range(_TRIES):
            start = self._starts[self._random.integers(len(self._starts))]
            last = min(start + wanted, len(self._offsets)) - 1
            text = self._text[self._offsets[start][0] : self._offsets[last][1]].strip()
            off = abs(pair_length(self._tokenizer, self.query, text) - length)
            if off < miss and text not in seen:
                best, miss = text, off
            if miss == 0:
                break
        # Short ones run out when thousands are asked for.
        return best or f"{len(seen)}"


def pair_length(tokenizer: Any, query: str, passage: str) -> int:
    """Return how many tokens query and passage have together, special ones counted."""
    return len(tokenizer.encode(query, passage).ids)


def read_tokenizer(model: str, cache_folder: str | None) -> Any:
    """Return the tokenizer of a model, without the limits that its file may set.

    Raises:
        UnknownModelError: The name is not a model.
        ModelLoadError: The model has no tokenizer that can be read.
    """
    from tokenizers import Tokenizer

    files = locate(RerankerSettings(model, cache_folder=cache_folder, local_files_only=True))
    file = files.fetch("tokenizer.json")
    if file is None:
        raise ModelLoadError(
            f"Model `{model}` has no tokenizer.json in {files.location}. The benchmark never downloads; a model of the "
            f"hub is fetched with `marcorank models download {model}`."
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise ModelLoadError(f"{str(file)!r} cannot be read as a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _text() -> str:
    """Return the chapters of Python's reference as running text."""
    from pydoc_data.topics import topics

    return " ".join(" ".join(topics[name].split()) for name in sorted(topics))
