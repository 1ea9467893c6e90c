"""From a query and passages to token sequences: [CLS] query [SEP] passage [SEP], windows, truncation.

Query and passages are tokenised apart and joined here, so that the query is tokenised once, only the passage is
ever cut, and the tokenizer's settings never change (which is what makes it safe to share between threads).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from marcorank.errors import InvalidInputError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer

LongPassages = Literal["truncate", "windows"]

LONG_PASSAGES: tuple[str, ...] = get_args(LongPassages)
# Part of a window that the next one repeats, so that no sentence is seen only in halves.
_WINDOW_OVERLAP = 0.25
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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
        """Yield each sequence as a batch of its own, without padding."""
        for row, tokens in enumerate(self.attention_mask.sum(axis=1).tolist()):
            part = (slice(row, row + 1), slice(tokens))
            yield TokenBatch(self.input_ids[part], self.attention_mask[part], self.token_type_ids[part])


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens of a passage, or of a part of it, that are scored with the query in one sequence.

    Attributes:
        passage: Position of the passage in its request.
        token_ids: Shape: (tokens,), int32.
        span: Character range in the passage; None where no windows were asked for.
    """

    passage: int
    token_ids: NDArray[np.int32]
    span: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """Tokens of one query and its passages.

    Attributes:
        query_ids: Shape: (tokens,), int32.
        query_truncated: Whether the query was cut at its cap.
        windows: At least one a passage, in passage order.
        truncated: Whether a passage lost its end. Shape: (passages,), bool.
    """

    query_ids: NDArray[np.int32]
    query_truncated: bool
    windows: list[Window]
    truncated: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PairLayout:
    """What a tokenizer puts around the two texts of a pair: special tokens and segment ids.

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

    @property
    def special_tokens(self) -> int:
        """Number of special tokens in a pair."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PairLayout:
        """Learn the layout from what the tokenizer makes of a pair.

        Raises:
            ModelLoadError: The tokenizer does not put the query before the passage, or joins them otherwise.
        """
        first, second = (tokenizer.encode(word, add_special_tokens=False) for word in ("query", "passage"))
        joined = tokenizer.encode("query", "passage")
        of_query = [place for place, part in enumerate(joined.sequence_ids) if part == 0]
        of_passage = [place for place, part in enumerate(joined.sequence_ids) if part == 1]
        if [joined.ids[place] for place in of_query + of_passage] != first.ids + second.ids or not (
            of_query and of_passage and of_query[-1] < of_passage[0]
        ):
            raise ModelLoadError(
                "The tokenizer does not make one sequence of a pair, the query first, special tokens around; "
                "this is no cross-encoder of a kind that is known here."
            )
        bounds = (0, of_query[0], of_query[-1] + 1, of_passage[0], of_passage[-1] + 1, len(joined.ids))
        parts = [(joined.ids[start:end], joined.type_ids[start:end]) for start, end in pairwise(bounds)]
        prefix, _, middle, _, suffix = (tuple(ids) for ids, _ in parts)
        types = [types[0] if types else 0 for _, types in parts]
        return cls(prefix, middle, suffix, (types[0], types[1], types[2], types[3], types[4]))


class PairEncoder:
    """Turns queries and passages into token sequences for one model.

    Safe to share between threads.

    Attributes:
        max_length: Most tokens in a sequence, special tokens counted.
        max_query_tokens: Most tokens of a query, special tokens not counted.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        max_query_tokens: int | None = None,
        long_passages: LongPassages = "truncate",
        pad_id: int = 0,
    ) -> None:
        """Take over a tokenizer; its truncation and padding are switched off.

        Args:
            tokenizer: Not used by anybody else.
            max_length: Most tokens in a sequence, special tokens counted.
            max_query_tokens: Most tokens of a query; None for half of what a sequence holds.
            long_passages: What to do with a passage that does not fit.
            pad_id: Token id of the padding.

        Raises:
            InvalidInputError: The lengths leave no room for a passage.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._layout = PairLayout.of(tokenizer)
        self._prefix, self._middle, self._suffix = (
            np.array(part, dtype=np.int32) for part in (self._layout.prefix, self._layout.middle, self._layout.suffix)
        )
        self._pad_id = pad_id
        self._windows = long_passages == "windows"
        room = max_length - self._layout.special_tokens
        if room < 2:
            raise InvalidInputError(
                f"`max_length` is {max_length}; {self._layout.special_tokens} special tokens, the query and the "
                "passage do not fit. Use 16 or more."
            )
        if max_query_tokens is not None and max_query_tokens >= room:
            raise InvalidInputError(
                f"`max_query_tokens` is {max_query_tokens}; with `max_length` {max_length} it leaves no room for "
                f"a passage. Use at most {room - 1}."
            )
        self.max_length = max_length
        self.max_query_tokens = room // 2 if max_query_tokens is None else max_query_tokens

    def encode(self, query: str, passages: Sequence[str]) -> EncodedRequest:
        """Tokenise a query and its passages, and cut what is too long."""
        query_ids = self._tokenizer.encode(_encodable(query), add_special_tokens=False).ids
        query_truncated = len(query_ids) > self.max_query_tokens
        query_ids = query_ids[: self.max_query_tokens]
        room = self.max_length - self._layout.special_tokens - len(query_ids)
        windows: list[Window] = []
        truncated = np.zeros(len(passages), dtype=np.bool_)
        # Offsets are needed for spans only; without them tokenising is faster.
        encode = self._tokenizer.encode_batch if self._windows else self._tokenizer.encode_batch_fast
        for place, encoding in enumerate(encode([_encodable(text) for text in passages], add_special_tokens=False)):
            # Each look at the ids makes a new list of them.
            ids = encoding.ids
            if self._windows:
                windows.extend(_windows(encoding, ids, room, passage=place, chars=len(passages[place])))
            else:
                truncated[place] = len(ids) > room
                windows.append(Window(place, np.array(ids[:room], dtype=np.int32), None))
        return EncodedRequest(np.array(query_ids, dtype=np.int32), query_truncated, windows, truncated)

    def length(self, query_ids: NDArray[np.int32], window: Window) -> int:
        """Tokens in the sequence of a query and a window, special tokens counted."""
        return self._layout.special_tokens + len(query_ids) + len(window.token_ids)

    def batch(self, pairs: Sequence[tuple[NDArray[np.int32], Window]]) -> TokenBatch:
        """Join queries and windows to sequences, padded to the longest."""
        lengths = np.array([self.length(*pair) for pair in pairs], dtype=np.int64)
        shape = (len(pairs), int(lengths.max()))
        attention_mask = np.arange(shape[1]) < lengths[:, np.newaxis]
        input_ids = np.full(shape, self._pad_id, dtype=np.int64)
        token_type_ids = np.zeros(shape, dtype=np.int64)
        for row, (query_ids, window) in enumerate(pairs):
            end = 0
            for part, type_id in zip(
                (self._prefix, query_ids, self._middle, window.token_ids, self._suffix),
                self._layout.type_ids,
                strict=True,
            ):
                start, end = end, end + len(part)
                input_ids[row, start:end] = part
                if type_id:
                    token_type_ids[row, start:end] = type_id
        return TokenBatch(input_ids, attention_mask.astype(np.int64), token_type_ids)


def _windows(encoding: Encoding, ids: list[int], room: int, *, passage: int, chars: int) -> list[Window]:
    """Split a passage into windows of `room` tokens that overlap; one window where all fits."""
    token_ids = np.array(ids, dtype=np.int32)
    if len(token_ids) <= room:
        return [Window(passage, token_ids, (0, chars))]
    step = max(room - int(room * _WINDOW_OVERLAP), 1)
    last = len(token_ids) - room
    # The last window is moved back so that it is full: a short rest would be judged without its context.
    starts = [*range(0, last, step), last]
    offsets = encoding.offsets
    return [
        Window(passage, token_ids[start : start + room], (offsets[start][0], offsets[start + room - 1][1]))
        for start in starts
    ]


def _encodable(text: str) -> str:
    """Replace lone surrogates, which no tokenizer takes, by U+FFFD; the length stays the same."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text)
    return text
