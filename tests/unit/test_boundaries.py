"""A part of a long text has the tokens that it has in the whole text, whatever the tokenizer."""

from __future__ import annotations

from functools import cache
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from marcorank._inference.boundaries import Boundaries
from marcorank._inference.pairs import PairEncoder
from marcorank._inference.words import Words
from random_models import bundled_folder

TEXTS = [
    "Berlin has a population of three million inhabitants, and it's the capital (since 1990) of Germany!",
    "Die Spree fließt durch Berlin; the river's name is Slavic...  naïve “quotes” 柏林有三百万人口。",
    "Берлин — столица Германии\n\n\tو برلين عاصمة ألمانيا ベルリンは首都です",
    "x = [1, 2, 3]\nprint(x)\n\n\n12345678 90",
]


def _train(tokenizer: Tokenizer, trainer: object) -> Tokenizer:
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ids
    )
    return tokenizer


SPECIAL = ["<s>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, special=True)]


def _word_piece() -> Tokenizer:
    return Tokenizer.from_file(str(bundled_folder() / "tokenizer.json"))


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _train(tokenizer, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet))


def _unigram(*first: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, pre_tokenizers.Metaspace()])
    return _train(tokenizer, trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>"))


def _stripping_unigram() -> Tokenizer:
    tokenizer = _unigram()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(left=False), normalizers.Lowercase(), tokenizer.normalizer]
    )
    return tokenizer


# Each with whether its texts can be split.
TOKENIZERS = {
    "word pieces": (_word_piece, True),
    "bytes": (_byte_level, True),
    "unigram": (_unigram, True),
    "unigram of words": (lambda: _unigram(pre_tokenizers.WhitespaceSplit()), True),
    "unigram that strips": (_stripping_unigram, True),
}


@cache
def _tokenizer(name: str) -> Tokenizer:
    return TOKENIZERS[name][0]()


SPACES = (" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u200b", "\u3000", "\x00", "\x1c", "\ufeff")
SCRIPTS = (
    "Berlin",
    "柏林有三百万",
    "ベルリン",
    "Берлин",
    "برلين",
    "한국",
    "\u1112\u1161",
    "e\u0301",
    "\u0301",
    "ΣΑΣ",
    "İ",
)
TOKENS = ("[SEP]", "[CLS] ", "<mask>", " <mask> ", "</s>", "<unk>", "##ing", "▁", "_", "Ġ")
SIGNS = ("it's", "'ll", "!!", "...", "1234567", "ﬁ", "²", "½", "ß", "🏙️👩‍👩‍👧", "\ud800", "a" * 120)
PIECES = st.one_of(st.text(min_size=1, max_size=12), st.sampled_from(SPACES + SCRIPTS + TOKENS + SIGNS))
LONG_TEXTS = st.lists(PIECES, max_size=60).map("".join)
each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


@each_tokenizer
@settings(deadline=None, max_examples=300)
@given(text=st.lists(PIECES, max_size=12).map("".join))
def test_the_parts_of_a_text_have_its_tokens(name, text):
    """Tokens, and their places in the text, are those of the whole, at every boundary."""
    tokenizer = _tokenizer(name)
    text = text.replace("\ud800", "\ufffd")
    boundaries = Boundaries(tokenizer)
    whole = tokenizer.encode(text, add_special_tokens=False)
    for end in {boundaries.after(text, position) for position in range(len(text))}:
        first, rest = (tokenizer.encode(part, add_special_tokens=False) for part in (text[:end], text[end:]))
        assert first.ids + rest.ids == whole.ids
        assert first.offsets + [(start + end, stop + end) for start, stop in rest.offsets] == whole.offsets


def _cased() -> Tokenizer:
    tokenizer = _word_piece()
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    return tokenizer


def _with_added_tokens() -> Tokenizer:
    tokenizer = _word_piece()
    tokenizer.add_tokens(["(c)", AddedToken("-x", normalized=False)])
    return tokenizer


def _with_added_signs() -> Tokenizer:
    """Their first characters are ones that the normalizer removes or keeps."""
    tokenizer = _word_piece()
    tokenizer.add_tokens(["\u2026a", "\u0301erl", "\u200bspree"])
    return tokenizer


def _with_added_word() -> Tokenizer:
    tokenizer = _word_piece()
    tokenizer.add_tokens(["erl"])
    return tokenizer


def _without_boundaries() -> Tokenizer:
    return _with_token(AddedToken("New York"))


OF_WORDS = {
    **{name: make for name, (make, _) in TOKENIZERS.items()},
    "cased word pieces": _cased,
    "word pieces with added tokens": _with_added_tokens,
    "word pieces with an added word": _with_added_word,
    "word pieces with added signs": _with_added_signs,
    "no boundaries": _without_boundaries,
}
QUOTED = (" \u201cit\u2019s\u201d", " \u2026a", " (c)", " (C) x", " -x-X", " spree3", " erl3")
WORDS = st.sampled_from(("Berlin", " berlin,", " BERLIN's", " tokenisation", " ##a b", *QUOTED))


@cache
def _of_words(name: str) -> Tokenizer:
    return OF_WORDS[name]()


@pytest.mark.parametrize("special_tokens_are_text", [False, True])
@pytest.mark.parametrize("name", OF_WORDS)
@settings(deadline=None, max_examples=100)
@given(texts=st.lists(st.lists(PIECES | WORDS, max_size=12).map("".join), max_size=4))
def test_the_words_of_a_text_have_its_tokens(name, special_tokens_are_text, texts):
    """Tokens are those of the whole text, whichever words are known already, and while words are forgotten."""
    tokenizer = _of_words(name)
    tokenizer.encode_special_tokens = special_tokens_are_text
    expected = [tokenizer.encode(text.replace("\ud800", "\ufffd"), add_special_tokens=False).ids for text in texts]
    words = Words(tokenizer)
    for most in (1000, 1000, 3):
        with mock.patch("marcorank._inference.words._MAX_WORDS", most):
            assert [ids.tolist() for ids in words.tokens(texts)] == expected
    tokenizer.encode_special_tokens = False


def test_words_of_many_texts_are_learnt_little_by_little():
    """Texts in which most words are new are tokenised as a whole until enough of their words are known."""
    tokenizer = _word_piece()
    texts = [" ".join(f"word{number}" for number in range(start, start + 200)) for start in (0, 100)]
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    words = Words(tokenizer)
    known = []
    for _ in range(5):
        assert [ids.tolist() for ids in words.tokens(texts)] == expected
        known.append(sum(f" word{number}" in words for number in range(1, 300)))
    assert 0 < known[0] < 299
    assert known[-1] == 299


def test_only_short_words_are_kept_and_not_too_many():
    words = Words(_word_piece())
    with mock.patch("marcorank._inference.words._MAX_WORDS", 10):
        words.tokens([" ".join(f"word{number}" for number in range(100)), "a" * 1000, " " * 100_000])
    assert 0 < len(words) <= 10
    assert max(map(len, words)) < 100


@each_tokenizer
def test_prose_has_boundaries_in_every_language_with_spaces(name):
    boundaries = Boundaries(_tokenizer(name))
    for text in ("three million people live here " * 3, "Берлин столица Германии " * 3, "برلين عاصمة ألمانيا " * 4):
        assert boundaries.after(text, 20) < 40


def test_chinese_has_boundaries_for_bert():
    assert Boundaries(_tokenizer("word pieces")).after("柏林有三百万人口" * 10, 20) == 20


def _changed(**components: object) -> Tokenizer:
    tokenizer = _unigram()
    for name, component in components.items():
        setattr(tokenizer, name, component)
    return tokenizer


def _with_token(token: AddedToken) -> Tokenizer:
    tokenizer = _unigram()
    tokenizer.add_tokens([token])
    return tokenizer


class _Unknown:
    def normalize(self, text: object) -> None:
        """Leave the text alone."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: _changed(pre_tokenizer=None),
        lambda: _changed(pre_tokenizer=pre_tokenizers.Metaspace(split=False)),
        lambda: _changed(pre_tokenizer=pre_tokenizers.ByteLevel(use_regex=False)),
        lambda: _changed(pre_tokenizer=pre_tokenizers.Split("a", "removed")),
        lambda: _changed(normalizer=normalizers.Prepend("▁")),
        lambda: _changed(normalizer=normalizers.Strip()),
        lambda: _changed(normalizer=normalizers.Replace("a b", "c")),
        lambda: _changed(normalizer=normalizers.Replace("x", " ")),
        lambda: _changed(normalizer=normalizers.Replace("x", "")),
        lambda: _changed(normalizer=normalizers.Replace(Regex(" {2,}"), "")),
        lambda: _changed(normalizer=normalizers.Replace(Regex("a.b"), "c")),
        lambda: _changed(normalizer=normalizers.Normalizer.custom(_Unknown())),
        lambda: _with_token(AddedToken("New York")),
        lambda: _with_token(AddedToken("<sep>", rstrip=True)),
        lambda: _with_token(AddedToken("sep", single_word=True)),
    ],
)
def test_a_tokenizer_that_may_look_further_gets_no_boundaries(make):
    text = "Berlin is the capital of Germany " * 10
    assert Boundaries(make()).after(text, 20) == len(text)


@each_tokenizer
@settings(deadline=None, max_examples=100)
@given(text=LONG_TEXTS, repeat=st.integers(1, 10))
def test_the_windows_of_a_passage_do_not_depend_on_its_parts(name, text, repeat):
    """Tokens, spans and unknown tokens are those of the whole text, however it is tokenised."""
    encoder = PairEncoder(_tokenizer(name), max_length=24, long_passages="windows")
    whole = encoder.encode("query", ["short", text * repeat])
    with mock.patch("marcorank._inference.pairs.CHARS_AT_ONCE", 40):
        parts = list(encoder.encode_in_parts("query", ["short", text * repeat]))
    found, expected = (
        [(window.passage, window.token_ids.tolist(), window.span) for part in encoded for window in part.windows]
        for encoded in (parts, [whole])
    )
    assert found == expected
    for attribute in ("lengths", "truncated", "unknown_tokens", "mostly_unknown"):
        joined = np.concatenate([getattr(part, attribute) for part in parts])
        assert joined.tolist() == getattr(whole, attribute).tolist()


@each_tokenizer
@settings(deadline=None, max_examples=100)
@given(text=LONG_TEXTS, repeat=st.integers(1, 40))
def test_a_passage_is_cut_to_the_first_tokens_of_the_whole(name, text, repeat):
    """The tokens that are kept, and whether there are more, do not depend on how much was tokenised."""
    text = text * repeat
    encoded = PairEncoder(_tokenizer(name), max_length=24).encode("query", [text])
    whole = _tokenizer(name).encode(text.replace("\ud800", "\ufffd"), add_special_tokens=False).ids
    [window] = encoded.windows
    kept = window.token_ids.tolist()
    assert kept == whole[: len(kept)]
    assert bool(encoded.truncated[0]) == (len(kept) < len(whole))
    assert len(kept) == len(whole) or encoded.lengths[0] == 24
