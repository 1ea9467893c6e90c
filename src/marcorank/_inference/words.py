"""Tokenises texts word by word: most words of a text are known from earlier ones."""

from __future__ import annotations

import re
import string
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from marcorank._inference.boundaries import Boundaries, parts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

# About 6 MB. They are forgotten all at once, since the frequent ones are soon known again.
_MAX_WORDS = 32768
# Longer ones are rarely words, and texts may consist of them.
_MAX_WORD_CHARS = 64
# A longer text that has to be tokenised at once has few boundaries, if any.
_MAX_TEXT_CHARS = 65536
# How many texts show whether the words of all are new.
_SAMPLE = 4
# With more new words than one of so many, two cores together tokenise whole texts sooner.
_WORDS_FOR_A_NEW_ONE = 6
# Takes half a millisecond.
_LEARNT_AT_ONCE = 128
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Each is a word of its own for BERT's pre-tokenizer.
_SIGNS = string.punctuation + "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u2022"
_WORDS_AND_SIGNS = re.compile(rf"[A-Za-z0-9]+|[{re.escape(_SIGNS)}]")


class Words(dict[str, bytes]):
    """Tokenises texts without the special tokens at their ends. Thread-safe.

    It holds the ids of the tokens of the words that it knows, each as the bytes of an int32 array. A word is what is
    between two boundaries, with the signs and spaces around it.

    Args:
        tokenizer: Its settings must not change any more.
        plain_ids: What stands for each id; None if each stands for itself. Shape: (vocabulary,), int32.
    """

    def __init__(self, tokenizer: Tokenizer, plain_ids: NDArray[np.int32] | None = None) -> None:
        super().__init__()
        self.boundaries = Boundaries(tokenizer)
        self._tokenizer = tokenizer
        self._plain_ids = plain_ids
        self._plain_word, self._lowercase = _plain_words(tokenizer)
        self._model = tokenizer.model

    def tokens(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return the ids of the tokens of each text. Shape of each: (tokens,), int32."""
        if self.boundaries.exist and not self._are_new(texts):
            return [np.frombuffer(self._joined_ids(text), dtype=np.int32) for text in texts]
        # Tokenising is faster without offsets.
        encodings = self._tokenizer.encode_batch_fast(list(map(encodable_text, texts)), add_special_tokens=False)
        return [self.array(encoding.ids) for encoding in encodings]

    def array(self, ids: Sequence[int]) -> NDArray[np.int32]:
        """Return ids as the tokenizer gives them as an array. Shape: (tokens,), int32."""
        token_ids = np.array(ids, dtype=np.int32)
        return token_ids if self._plain_ids is None else self._plain_ids[token_ids]

    def _are_new(self, texts: Sequence[str]) -> bool:
        """Whether so many words are new that all cores tokenise the texts sooner; learn some of them then."""
        if len(texts) == 1:
            return False
        some = [text for text in texts[:_SAMPLE] if len(text) <= _MAX_TEXT_CHARS]
        words = [word for text in some for word in self.boundaries.split(text)]
        new = {word for word in words if word not in self}
        if len(new) * _WORDS_FOR_A_NEW_ONE <= len(words):
            return False
        for word in islice(new, _LEARNT_AT_ONCE):
            self[word]
        return True

    def _joined_ids(self, text: str) -> bytes:
        if len(text) > _MAX_TEXT_CHARS:
            return self[text]
        return b"".join(map(self.__getitem__, self.boundaries.split(text)))

    def __missing__(self, word: str) -> bytes:
        if self._plain_word is not None and self._plain_word.fullmatch(word):
            token_ids = self._ids_of_plain(word.lower() if self._lowercase else word)
        else:
            token_ids = self.array(self._tokenizer.encode(encodable_text(word), add_special_tokens=False).ids).tobytes()
        if len(word) <= _MAX_WORD_CHARS:
            if len(self) >= _MAX_WORDS:
                self.clear()
            self[word] = token_ids
        return token_ids

    def _ids_of_plain(self, word: str) -> bytes:
        parts = _WORDS_AND_SIGNS.findall(word)
        if parts == [word]:
            return self.array([token.id for token in self._model.tokenize(word)]).tobytes()
        return b"".join(map(self.__getitem__, parts))


def encodable_text(text: str) -> str:
    """Replace lone surrogates, which no tokenizer accepts, with U+FFFD; the length stays the same."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text)
    return text


def _plain_words(tokenizer: Tokenizer) -> tuple[re.Pattern[str] | None, bool]:
    """Return which words consist of ASCII letters and signs that nothing but the model looks at, if any.

    And whether they are in lower case for it. With BERT's tokenizer, the model alone takes a fraction of the time.
    """
    normalizers = parts_of(tokenizer.normalizer, "normalizers") or []
    splitters = parts_of(tokenizer.pre_tokenizer, "pretokenizers") or []
    # Where an added token may begin, the tokenizer has to look.
    starts = {token.content[:1] for token in tokenizer.get_added_tokens_decoder().values()}
    if (
        [part["type"] for part in (*normalizers, *splitters)] != ["BertNormalizer", "BertPreTokenizer"]
        or type(tokenizer.model).__name__ != "WordPiece"
        # The normalizer may remove or change any other sign.
        or not starts <= set(string.punctuation)
    ):
        return None, False
    signs = re.escape("".join(sorted(set(_SIGNS) - starts)))
    return re.compile(rf"[ \t\n]*[A-Za-z0-9{signs}]+"), normalizers[0]["lowercase"]
