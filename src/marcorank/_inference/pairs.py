"""Tokenises a query and passages into sequences: [CLS] query [SEP] passage [SEP], with windows and truncation.

Query and passages are tokenised separately and joined here. So the query is tokenised once, only the passage is
truncated to fit, and the settings of the tokenizer never change, which makes it safe to share between threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from marcorank._inference.words import Words, encodable_text
from marcorank._text import quoted
from marcorank.errors import InvalidInputError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer

    from marcorank.settings import LongPassages, SpecialTokens

# Fraction of a window that the next one repeats, so that most sentences are whole in some window.
_WINDOW_OVERLAP = 0.25
# What is tokenised of a text of which so many tokens are needed; four times as much if that holds too few.
_CHARS_PER_TOKEN = 8
# A text of which all tokens are needed is tokenised in parts, so that no other thread waits long for the interpreter.
CHARS_AT_ONCE = 65536


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token sequences, padded on the right to the longest.

    Attributes:
        input_ids: Shape: (batch, tokens), int64.
        attention_mask: 1 for a token, 0 for padding. Shape: (batch, tokens), int64.
        token_type_ids: Segment of each token. Shape: (batch, tokens), int64.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]

    def rows(self) -> Iterator[TokenBatch]:
        """Yield each sequence as a separate batch without padding."""
        for row, tokens in enumerate(self.attention_mask.sum(axis=1).tolist()):
            part = (slice(row, row + 1), slice(tokens))
            yield TokenBatch(self.input_ids[part], self.attention_mask[part], self.token_type_ids[part])


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of a passage, or of a part of it, that share a sequence with the query.

    Attributes:
        passage: Index of the passage in its request.
        token_ids: Shape: (tokens,), int32.
        span: Character range in the passage; None unless `long_passages` is `"windows"`.
    """

    passage: int
    token_ids: NDArray[np.int32]
    span: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """Tokens of one query and its passages.

    Attributes:
        query_ids: Shape: (tokens,), int32.
        query_truncated: Whether the query was truncated to `max_query_tokens`.
        windows: At least one per passage, in passage order.
        lengths: Number of tokens in the sequence of each window, including special tokens. Shape: (windows,), int64.
        truncated: Whether each passage was truncated. Shape: (passages,), bool.
        unknown_tokens: Number of unknown tokens among those of each passage that are scored. Shape: (passages,), int64.
        mostly_unknown: Whether half or more of these tokens are unknown. Shape: (passages,), bool.
        query_mostly_unknown: Whether half or more of the tokens of the query are unknown.
    """

    query_ids: NDArray[np.int32]
    query_truncated: bool
    windows: list[Window]
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    unknown_tokens: NDArray[np.int64]
    mostly_unknown: NDArray[np.bool_]
    query_mostly_unknown: bool


@dataclass(frozen=True, slots=True)
class PairLayout:
    """The special tokens and segment ids that a tokenizer adds to a pair of texts.

    Attributes:
        prefix: Special tokens before the query.
        middle: Special tokens between query and passage.
        suffix: Special tokens after the passage.
        type_ids: Segment ids of prefix, query, middle, passage and suffix.
    """

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    type_ids: tuple[int, int, int, int, int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PairLayout:
        """Derive the layout from an encoded pair.

        Raises:
            ModelLoadError: The tokenizer does not join a pair into one sequence with the query first.
        """
        first, second = (tokenizer.encode(word, add_special_tokens=False) for word in ("query", "passage"))
        joined = tokenizer.encode("query", "passage")
        of_query = [index for index, part in enumerate(joined.sequence_ids) if part == 0]
        of_passage = [index for index, part in enumerate(joined.sequence_ids) if part == 1]
        if [joined.ids[index] for index in of_query + of_passage] != first.ids + second.ids or not (
            of_query and of_passage and of_query[-1] < of_passage[0]
        ):
            raise ModelLoadError(
                "The tokenizer does not join a query and a passage into one sequence with the query first; "
                "this kind of cross-encoder is not supported."
            )
        bounds = (0, of_query[0], of_query[-1] + 1, of_passage[0], of_passage[-1] + 1, len(joined.ids))
        parts = [(joined.ids[start:end], joined.type_ids[start:end]) for start, end in pairwise(bounds)]
        prefix, _, middle, _, suffix = (tuple(ids) for ids, _ in parts)
        types = [types[0] if types else 0 for _, types in parts]
        return cls(prefix, middle, suffix, (types[0], types[1], types[2], types[3], types[4]))


class PairEncoder:
    """Tokenises queries and passages for one model. Thread-safe.

    Attributes:
        max_length: Maximum number of tokens in a sequence, including special tokens.
        max_query_tokens: Maximum number of tokens of a query, without special tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        max_query_tokens: int | None = None,
        long_passages: LongPassages = "truncate",
        special_tokens: SpecialTokens = "parse",
        prompt: str = "",
        pad_id: int = 0,
    ) -> None:
        """Initialise the encoder; truncation and padding of the tokenizer are switched off.

        Args:
            tokenizer: A tokenizer that nothing else uses.
            max_length: Maximum number of tokens in a sequence, including special tokens.
            max_query_tokens: Maximum number of tokens of a query; None for half of the sequence.
            long_passages: How to handle a passage that does not fit.
            special_tokens: How special tokens in a text are read.
            prompt: Text before each query. It is never truncated.
            pad_id: Id of the padding token.

        Raises:
            InvalidInputError: The lengths leave no tokens for a passage, or the prompt has special tokens that would be
                read as text.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = special_tokens == "text"
        self._tokenizer = tokenizer
        self._unknown_id = _unknown_id(tokenizer)
        self._plain_ids = self._ids_without_special_tokens(pad_id) if special_tokens == "text" else None
        self._words = Words(tokenizer, self._plain_ids)
        layout = PairLayout.of(tokenizer)
        self._prefix, self._middle, self._suffix = (
            np.array(part, dtype=np.int32) for part in (layout.prefix, layout.middle, layout.suffix)
        )
        self._type_ids = layout.type_ids
        self._special_tokens = len(layout.prefix) + len(layout.middle) + len(layout.suffix)
        self._pad_id = pad_id
        self._windows = long_passages == "windows"
        self._prompt = encodable_text(prompt)
        self._prompt_tokens = self._count_prompt_tokens(self._prompt)
        other_tokens = self._special_tokens + self._prompt_tokens
        capacity = max_length - other_tokens
        if capacity < 2:
            with_prompt = f", the {self._prompt_tokens} tokens of the prompt" if prompt else ""
            raise InvalidInputError(
                f"`max_length` is {max_length}, too small for {self._special_tokens} special tokens{with_prompt}, the "
                f"query and the passage. Use {16 + self._prompt_tokens} or more."
            )
        if max_query_tokens is not None and max_query_tokens >= capacity:
            raise InvalidInputError(
                f"`max_query_tokens` is {max_query_tokens}; with `max_length` {max_length} it leaves no tokens for "
                f"the passage. Use at most {capacity - 1}."
            )
        self.max_length = max_length
        self.max_query_tokens = capacity // 2 if max_query_tokens is None else max_query_tokens

    def encode(self, query: str, passages: Sequence[str]) -> EncodedRequest:
        """Tokenise a query and its passages, and truncate or split those that are too long."""
        query_tokens, capacity = self._tokens_of_query(query)
        windows: list[Window] = []
        truncated = np.zeros(len(passages), dtype=np.bool_)
        tokens, unknown_tokens = np.zeros((2, len(passages)), dtype=np.int64)
        if self._windows:
            encodings = self._tokenizer.encode_batch(
                [encodable_text(text) for text in passages], add_special_tokens=False
            )
            for index, encoding in enumerate(encodings):
                token_ids = self._words.array(encoding.ids)
                tokens[index], unknown_tokens[index] = len(token_ids), self._count_unknown(token_ids)
                splitter = _WindowSplitter(index, len(passages[index]), capacity)
                windows += splitter.add(token_ids, encoding, 0)
                windows.append(splitter.last())
        else:
            for index, (token_ids, longer) in enumerate(self._first_tokens(passages, capacity)):
                truncated[index] = longer
                tokens[index], unknown_tokens[index] = len(token_ids), self._count_unknown(token_ids)
                windows.append(Window(index, token_ids, None))
        return self._encoded(query_tokens, windows, truncated, tokens, unknown_tokens)

    def encode_in_parts(self, query: str, passages: Sequence[str]) -> Iterator[EncodedRequest]:
        """Like `encode`, but if the last passage is very long, yield its windows as they are tokenised.

        So no other call has to wait until all of it is. What is known of each passage, such as `truncated`, comes with
        the last of its windows.
        """
        *others, last = passages
        if not self._windows or self._words.boundaries.after(last, CHARS_AT_ONCE) == len(last):
            yield self.encode(query, passages)
            return
        if others:
            yield self.encode(query, others)
        query_tokens, capacity = self._tokens_of_query(query)
        splitter = _WindowSplitter(len(others), len(last), capacity)
        no_passages = np.zeros(0, dtype=np.int64)
        end = tokens = unknown_tokens = 0
        while end < len(last):
            start, end = end, self._words.boundaries.after(last, end + CHARS_AT_ONCE)
            encoding = self._tokenizer.encode(encodable_text(last[start:end]), add_special_tokens=False)
            token_ids = self._words.array(encoding.ids)
            tokens += len(token_ids)
            unknown_tokens += self._count_unknown(token_ids)
            windows = splitter.add(token_ids, encoding, start)
            yield self._encoded(query_tokens, windows, no_passages.astype(np.bool_), no_passages, no_passages)
        yield self._encoded(
            query_tokens, [splitter.last()], np.zeros(1, dtype=np.bool_), np.array([tokens]), np.array([unknown_tokens])
        )

    def _tokens_of_query(self, query: str) -> tuple[tuple[NDArray[np.int32], bool], int]:
        """Return the tokens of a query, whether it was truncated, and how many tokens are left for a passage."""
        # The prompt is part of the text, since a tokenizer may join its end with the beginning of the query.
        [tokens] = self._first_tokens([self._prompt + query], self._prompt_tokens + self.max_query_tokens)
        return tokens, self.max_length - self._special_tokens - len(tokens[0])

    def _count_prompt_tokens(self, prompt: str) -> int:
        ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        if self._plain_ids is not None:
            special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
            found = next((content for content in special if content in prompt), None)
            if found is not None:
                raise InvalidInputError(
                    f"`special_tokens` is 'text', but the prompt of the model has the special token {quoted(found)}; "
                    "use 'parse'."
                )
        return len(ids)

    def _encoded(
        self,
        query_tokens: tuple[NDArray[np.int32], bool],
        windows: list[Window],
        truncated: NDArray[np.bool_],
        tokens: NDArray[np.int64],
        unknown_tokens: NDArray[np.int64],
    ) -> EncodedRequest:
        query_ids, query_truncated = query_tokens
        other_tokens = self._special_tokens + len(query_ids)
        return EncodedRequest(
            query_ids,
            query_truncated,
            windows,
            np.array([len(window.token_ids) for window in windows], dtype=np.int64) + other_tokens,
            truncated,
            unknown_tokens,
            mostly_unknown=(unknown_tokens > 0) & (2 * unknown_tokens >= tokens),
            query_mostly_unknown=0 < len(query_ids) <= 2 * self._count_unknown(query_ids),
        )

    def _ids_without_special_tokens(self, pad_id: int) -> NDArray[np.int32]:
        """Return what stands for each id in a text: itself, or the unknown token for a special token.

        A tokenizer that splits no text before it looks up the vocabulary finds special tokens there too, as words.

        Returns:
            Shape: (vocabulary,), int32.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        plain_ids = np.arange(1 + max([*added, *self._tokenizer.get_vocab().values()]), dtype=np.int32)
        special_ids = [token_id for token_id, token in added.items() if token.special]
        plain_ids[special_ids] = pad_id if self._unknown_id is None else self._unknown_id
        return plain_ids

    def _count_unknown(self, token_ids: NDArray[np.int32]) -> int:
        return 0 if self._unknown_id is None else int(np.count_nonzero(token_ids == self._unknown_id))

    def _first_tokens(self, texts: Sequence[str], count: int) -> list[tuple[NDArray[np.int32], bool]]:
        """Return the first `count` tokens of each text, and whether it has more.

        Of a long text only as much is tokenised as surely holds them.
        """
        found: dict[int, tuple[NDArray[np.int32], bool]] = {}
        remaining: Sequence[int] = range(len(texts))
        chars = _CHARS_PER_TOKEN * count
        while remaining:
            ends = [self._words.boundaries.after(texts[index], chars) for index in remaining]
            tokens = self._words.tokens([texts[index][:end] for index, end in zip(remaining, ends, strict=True)])
            too_short = []
            for index, end, token_ids in zip(remaining, ends, tokens, strict=True):
                if len(token_ids) <= count and end < len(texts[index]):
                    too_short.append(index)
                else:
                    found[index] = (token_ids[:count], len(token_ids) > count)
            remaining = too_short
            chars *= 4
        return [found[index] for index in range(len(texts))]

    def batch(self, pairs: Sequence[tuple[NDArray[np.int32], Window]]) -> TokenBatch:
        """Join queries and windows into sequences, padded to the longest."""
        lengths = np.array(
            [self._special_tokens + len(query_ids) + len(window.token_ids) for query_ids, window in pairs],
            dtype=np.int64,
        )
        shape = (len(pairs), int(lengths.max()))
        attention_mask = np.arange(shape[1]) < lengths[:, np.newaxis]
        input_ids = np.full(shape, self._pad_id, dtype=np.int64)
        token_type_ids = np.zeros(shape, dtype=np.int64)
        for row, (query_ids, window) in enumerate(pairs):
            parts = (self._prefix, query_ids, self._middle, window.token_ids, self._suffix)
            end = 0
            for part, type_id in zip(parts, self._type_ids, strict=True):
                start, end = end, end + len(part)
                input_ids[row, start:end] = part
                if type_id:
                    token_type_ids[row, start:end] = type_id
        return TokenBatch(input_ids, attention_mask.astype(np.int64), token_type_ids)


class _WindowSplitter:
    """Splits a passage, whose tokens come in parts, into overlapping windows of at most `capacity` tokens."""

    def __init__(self, passage: int, chars: int, capacity: int) -> None:
        self._passage = passage
        self._chars = chars
        self._capacity = capacity
        self._step = max(capacity - int(capacity * _WINDOW_OVERLAP), 1)
        # From the start of the latest window on.
        self._token_ids = np.empty(0, dtype=np.int32)
        self._offsets = np.empty((0, 2), dtype=np.int64)
        # Parts whose offsets are not needed yet.
        self._parts: list[tuple[Encoding, int]] = []
        # Of the next window in these.
        self._next = 0

    def add(self, token_ids: NDArray[np.int32], encoding: Encoding, start: int) -> list[Window]:
        """Return the windows, but for the last of the passage, that a part completes.

        Args:
            token_ids: The tokens of the part; may be empty. Shape: (tokens,), int32.
            encoding: What the tokenizer returned for the part.
            start: Position of the part in the passage.
        """
        self._parts.append((encoding, start))
        self._token_ids = np.concatenate([self._token_ids, token_ids])
        if len(self._token_ids) <= self._capacity:
            # Reading offsets is slow, and a passage that fits needs none.
            return []
        # Each part counts the characters from its own start.
        offsets = [np.array(part.offsets, dtype=np.int64).reshape(-1, 2) + at for part, at in self._parts]
        self._offsets = np.concatenate([self._offsets, *offsets])
        self._parts.clear()
        starts = range(self._next, len(self._token_ids) - self._capacity, self._step)
        windows = [self._window(start) for start in starts]
        if starts:
            # The last window begins behind this one.
            latest = starts[-1]
            self._token_ids, self._offsets = self._token_ids[latest:], self._offsets[latest:]
            self._next = self._step
        return windows

    def last(self) -> Window:
        """Return the last window, after all parts."""
        if len(self._token_ids) <= self._capacity:
            return Window(self._passage, self._token_ids, (0, self._chars))
        # It starts earlier so that it is full: a short rest would be scored without context.
        return self._window(len(self._token_ids) - self._capacity)

    def _window(self, start: int) -> Window:
        end = start + self._capacity
        span = int(self._offsets[start, 0]), int(self._offsets[end - 1, 1])
        return Window(self._passage, self._token_ids[start:end], span)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of the token for text that the vocabulary does not cover; None if it covers everything."""
    # Not every kind of tokenizer names it. A vocabulary of bytes has different tokens for these letters of two ancient
    # scripts, any other one gives both the same.
    letters = ("\U00013000", "\U00012001")
    last_ids = {token_id for text in letters for token_id in tokenizer.encode(text, add_special_tokens=False).ids[-1:]}
    return last_ids.pop() if len(last_ids) == 1 else None
