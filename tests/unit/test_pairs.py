"""Query and passages to token sequences."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from marcorank import InvalidInputError, ModelLoadError
from marcorank._inference.pairs import PairEncoder, PairLayout
from random_models import QUERY, bundled_folder, passages


def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(bundled_folder() / "tokenizer.json"))


def encoder(**settings_) -> PairEncoder:
    return PairEncoder(tokenizer(), **{"max_length": 512, **settings_})


ENCODERS = {
    (size, mode): encoder(max_length=size, long_passages=mode) for size in (16, 64) for mode in ("truncate", "windows")
}
REFERENCE = tokenizer()
REFERENCE.no_truncation()
REFERENCE.no_padding()


def rows(encoder_: PairEncoder, query: str, texts: list[str]) -> list[tuple[list[int], list[int]]]:
    encoded = encoder_.encode(query, texts)
    batch = encoder_.batch([(encoded.query_ids, window) for window in encoded.windows])
    kept = batch.attention_mask.astype(bool)
    return [
        (ids[mask].tolist(), types[mask].tolist())
        for ids, types, mask in zip(batch.input_ids, batch.token_type_ids, kept, strict=True)
    ]


def test_sequences_equal_those_of_the_tokenizer_itself():
    """Joining query and passage here gives the ids and segments that the tokenizer gives a pair."""
    texts = [text for text in passages() if len(text) < 2000]
    expected = [REFERENCE.encode(QUERY, text) for text in texts]
    assert rows(encoder(max_length=2048), QUERY, texts) == [(pair.ids, pair.type_ids) for pair in expected]


def test_a_layout_with_one_segment_is_learned():
    """RoBERTa's `<s> query </s></s> passage </s>`, all in segment 0, comes out of the same code."""
    other = tokenizer()
    other.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 101), ("[SEP]", 102)],
    )
    layout = PairLayout.of(other)
    assert (layout.prefix, layout.middle, layout.suffix) == ((101,), (102, 102), (102,))
    assert layout.type_ids == (0, 0, 0, 0, 0)


def test_a_tokenizer_that_puts_the_passage_first_is_refused():
    """An order that is not query, passage is an error and not a wrong score."""
    other = tokenizer()
    other.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $B [SEP] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    with pytest.raises(ModelLoadError, match="does not join a query and a passage into one sequence"):
        PairLayout.of(other)


@settings(max_examples=60)
@given(st.text(max_size=120), st.sampled_from([16, 64]))
def test_only_the_passage_is_cut(text, max_length):
    """The sequence never exceeds its limit, holds the whole query, and says whether the passage was cut."""
    chosen = ENCODERS[max_length, "truncate"]
    encoded = chosen.encode("the wall", [text])
    (length,) = encoded.lengths.tolist()
    whole = REFERENCE.encode("the wall", text.encode("utf-8", "replace").decode())
    assert len(encoded.query_ids) == 2
    assert length == min(len(whole.ids), max_length)
    assert bool(encoded.truncated[0]) == (len(whole.ids) > max_length)


@settings(max_examples=60)
@given(st.text(max_size=400), st.sampled_from([16, 64]))
def test_windows_cover_the_whole_passage(text, max_length):
    """Windows overlap, fit, leave no token out, and their spans lie in the text."""
    chosen = ENCODERS[max_length, "windows"]
    encoded = chosen.encode("the wall", [text])
    tokens = REFERENCE.encode(text, add_special_tokens=False)
    assert not encoded.truncated.any()
    covered: set[int] = set()
    for window, length in zip(encoded.windows, encoded.lengths, strict=True):
        assert length == len(encoded.query_ids) + len(window.token_ids) + 3 <= max_length
        start, end = window.span
        assert 0 <= start <= end <= len(text)
        inside = [place for place, (first, last) in enumerate(tokens.offsets) if first >= start and last <= end]
        covered.update(inside)
    assert covered == set(range(len(tokens.ids)))


def test_windows_of_a_very_long_passage_are_those_of_its_whole_text():
    """It is tokenised in parts, which shows neither in the tokens nor in the spans."""
    text = " ".join(text for text in passages(count=200, seed=1) if "\x00" not in text) + " unspaced" * 20_000
    whole = REFERENCE.encode(text, add_special_tokens=False)
    first, *parts = encoder(max_length=512, long_passages="windows").encode_in_parts(QUERY, ["short", text])
    assert len(parts) > 3
    assert [len(part.truncated) for part in (first, *parts)] == [1, *[0] * (len(parts) - 1), 1]
    long = [window for part in parts for window in part.windows]
    assert {window.passage for window in long} == {1}
    size = 512 - 3 - len(first.query_ids)
    last = len(whole.ids) - size
    starts = [*range(0, last, size - int(size * 0.25)), last]
    assert [window.token_ids.tolist() for window in long] == [whole.ids[start : start + size] for start in starts]
    assert [window.span for window in long] == [
        (whole.offsets[start][0], whole.offsets[start + size - 1][1]) for start in starts
    ]
    assert [window.span for window in first.windows] == [(0, 5)]


def test_windows_repeat_a_part_of_the_one_before():
    """No sentence is seen only in halves: neighbours share tokens."""
    encoded = encoder(max_length=64, long_passages="windows").encode(QUERY, [" ".join(map(str, range(10, 99)))])
    spans = [window.span for window in encoded.windows]
    assert len(spans) > 1
    assert all(later[0] < earlier[1] for earlier, later in pairwise(spans))


def test_a_long_query_is_cut_at_its_cap_and_reported():
    """The cap leaves room for the passage; by default it is half of what fits."""
    encoded = encoder(max_length=64).encode("berlin " * 500, ["museum " * 500])
    assert len(encoded.query_ids) == (64 - 3) // 2
    assert encoded.query_truncated
    assert encoder(max_query_tokens=5).encode("one two three four five", [""]).query_truncated is False
    assert encoder(max_query_tokens=4).encode("one two three four five", [""]).query_truncated is True


def test_lone_surrogates_are_encoded_as_replacement_characters():
    """Text that no tokenizer takes still gets a score, and spans still fit the text."""
    broken, replaced = "a \ud83d b", "a \ufffd b"
    first = encoder(long_passages="windows").encode(broken, [broken])
    second = encoder(long_passages="windows").encode(replaced, [replaced])
    assert np.array_equal(first.windows[0].token_ids, second.windows[0].token_ids)
    assert first.windows[0].span == (0, len(broken))


def trained(kind: str) -> Tokenizer:
    """A small tokenizer as RoBERTa (`bytes`) or XLM-RoBERTa (`unigram`) has one, or that of the bundled model."""
    if kind == "wordpiece":
        return tokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer: trainers.Trainer
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=100, special_tokens=special, unk_token="<unk>")
    trainer.show_progress = False
    made.train_from_iterator([QUERY, *(text for text in passages() if text.isascii())], trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return made


@pytest.mark.parametrize(
    ("kind", "unknown"), [("wordpiece", [0, 1, 2, 0]), ("bytes", [0] * 4), ("unigram", [0, 0, 2, 0])]
)
@pytest.mark.parametrize("long_passages", ["truncate", "windows"])
def test_unknown_tokens_are_counted(kind, unknown, long_passages):
    """Words of over 100 characters and unknown scripts are one token each, of which nothing can be told apart."""
    chosen = PairEncoder(trained(kind), max_length=512, long_passages=long_passages)
    encoded = chosen.encode(QUERY, ["a museum", "museum " + "a" * 101, "\U00013000\U00013001 \U00012001", ""])
    assert encoded.unknown_tokens.tolist() == unknown
    assert encoded.mostly_unknown.tolist() == [False, unknown[1] > 0, unknown[2] > 0, False]
    assert not encoded.query_mostly_unknown


def test_unknown_tokens_are_those_that_are_scored():
    """In windows each token of the passage counts once; where a passage is truncated, only its beginning counts."""
    passage = "\U00013000 " * 100 + "museum " * 99
    for mode, expected in (("windows", 100), ("truncate", 16 - 3 - 2)):
        encoded = ENCODERS[16, mode].encode("red apple", [passage, "museum"])
        assert encoded.unknown_tokens.tolist() == [expected, 0]
        assert encoded.mostly_unknown.tolist() == [True, False]
    assert encoder().encode("\U00013000 wall", ["museum"]).query_mostly_unknown
    assert not encoder().encode("\U00013000 red wall", ["museum"]).query_mostly_unknown


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
@pytest.mark.parametrize("long_passages", ["truncate", "windows"])
def test_special_tokens_can_be_text(kind, long_passages):
    """With "text" no special token comes from a query or a passage, even if the vocabulary has it as a word."""
    separator = "[SEP]" if kind == "wordpiece" else "</s>"
    text = f"berlin {separator} three million{separator}people " * 10
    for special_tokens, expected in (("parse", True), ("text", False)):
        made = trained(kind)
        chosen = PairEncoder(made, max_length=64, long_passages=long_passages, special_tokens=special_tokens)
        encoded = chosen.encode(text, [text])
        sequences = [encoded.query_ids, *(window.token_ids for window in encoded.windows)]
        assert [made.token_to_id(separator) in ids for ids in sequences] == [expected] * len(sequences)
        # Only a vocabulary that has them as words, which such a text must not use, does not know them as text.
        assert encoded.unknown_tokens.any() == (kind == "unigram" and special_tokens == "text")


def test_other_texts_have_the_same_tokens_if_special_tokens_are_text():
    """The special tokens around query and passage stay what they are."""
    texts = [text for text in passages() if len(text) < 2000]
    assert rows(encoder(special_tokens="text"), QUERY, texts) == rows(encoder(), QUERY, texts)


@pytest.mark.parametrize(
    ("settings_", "found"),
    [
        ({"max_length": 4}, "`max_length` is 4"),
        ({"max_length": 32, "max_query_tokens": 29}, "`max_query_tokens` is 29"),
    ],
)
def test_lengths_that_leave_no_room_are_refused(settings_, found):
    """The message names the setting and what would fit."""
    with pytest.raises(InvalidInputError, match=rf"{found}.*Use"):
        encoder(**settings_)


def test_padding_is_masked_and_filled_with_the_padding_id():
    """Shorter rows are padded on the right; the mask tells tokens from padding."""
    chosen = encoder(pad_id=7)
    encoded = chosen.encode("a", ["b", "b c d"])
    batch = chosen.batch([(encoded.query_ids, window) for window in encoded.windows])
    assert batch.input_ids.shape == (2, 7)
    assert batch.attention_mask.tolist() == [[1] * 5 + [0] * 2, [1] * 7]
    assert batch.input_ids[0, 5:].tolist() == [7, 7]
