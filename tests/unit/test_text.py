"""Tables and shortened texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcorank._text import (
    brief,
    cells,
    clip,
    first_few,
    is_blank,
    message_of,
    one_line,
    quoted,
    quoted_path,
    shorten,
    table,
)

TEXTS = st.text(st.characters(codec="utf-8"))


@given(TEXTS, st.integers(1, 40))
def test_a_clipped_text_fits(text, room):
    """No text, whatever its letters, takes more cells than there is room."""
    assert cells(clip(text, room)) <= room


def test_a_text_that_fits_is_not_touched():
    """Only what is too long loses its end, and then says so."""
    assert clip("berlin", 6) == "berlin"
    assert clip("berlin", 5) == "berl…"
    assert clip("柏林是首都", 6) == "柏林…"


def test_wide_letters_count_twice_and_accents_not_at_all():
    """Cells are what a terminal shows, not code points."""
    assert cells("柏林") == 4
    assert cells("e\u0301") == 1


@given(st.text(st.characters()))
def test_a_shown_text_can_be_printed(text):
    """Whatever messages show can be written to a UTF-8 terminal; what can be encoded is not touched."""
    assert shorten(text, 1 + len(text)) == "".join("?" if "\ud800" <= letter <= "\udfff" else letter for letter in text)


@given(TEXTS)
def test_one_line_cannot_steer_a_terminal(text):
    """Passages come from anywhere: no line break and no escape sequence reaches the terminal."""
    assert one_line(text).isprintable()


def test_columns_line_up_under_wide_letters():
    """Each column starts in the same cell on every line, numbers are flush right."""
    lines = table(["name", "n", "text"], [["柏林", "5", "a"], ["x", "10", "b"]], left=["name"], width=80)
    assert lines == ["name   n  text", "柏林   5  a", "x     10  b"]


def test_the_last_column_gives_way():
    """A line is no longer than the terminal is wide."""
    lines = table(["rank", "text"], [["1", "word " * 100]], left=(), width=40)
    assert [cells(line) for line in lines] == [10, 40]
    assert lines[1].endswith("…")


def test_a_table_without_a_width_clips_nothing():
    """Reports that are not for a terminal keep their last column whole, aligned like the others."""
    assert table(["run", "value"], [["bm25", "0.5"], ["x", "12"]], left=["run"]) == [
        "run   value",
        "bm25    0.5",
        "x        12",
    ]


@given(TEXTS, st.integers(1, 40))
def test_a_shortened_text_is_no_longer_than_allowed(text, max_chars):
    """An ellipsis counts as a character; a text that fits is unchanged."""
    found = shorten(text, max_chars)
    assert len(found) <= max_chars
    assert found == text or found.endswith("…")


def test_the_first_few_values_say_that_there_are_more():
    """Messages name three ids at most."""
    assert first_few(["a", "b", "c"]) == "'a', 'b', 'c'"
    assert first_few("abcd") == "'a', 'b', 'c', …"


@pytest.mark.parametrize("text", ["", " \t\n", "\u200b", "\ufeff", "\x00", "\u00a0\u3000\u2028\u00ad\u2060\x85"])
def test_spaces_and_what_cannot_be_seen_are_blank(text):
    """So are zero-width spaces, byte order marks, NUL and other control and format characters."""
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", "\u200ba", "0", ".", "柏", "🙂", "\ud800", "\ue000"])
def test_what_can_be_read_is_not_blank(text):
    """One letter, digit or sign is enough; letters that this Python does not know count."""
    assert not is_blank(text)


class Odd:
    """Has a repr that fails."""

    def __repr__(self):
        raise RuntimeError("no repr")


class OddError(Exception):
    """Has a message that fails."""

    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -1,
        2.5,
        "it's",
        b"ab",
        [1, "a", None],
        ("a",),
        (),
        {"a": [1, {"b": ()}]},
        Path("a"),
        np.float32(0.5),
        int,
    ],
)
def test_a_short_value_is_quoted_as_it_is(value):
    """Plain values and small collections of them are shown whole."""
    assert quoted(value) == repr(value)


@pytest.mark.parametrize(
    ("value", "start"),
    [
        ("a" * 2_000_000, "'aaaa"),
        (b"a" * 2_000_000, "b'aaaa"),
        (["a" * 2_000_000] * 1000, "['aaaa"),
        ({"a" * 2_000_000: 1}, "{'aaaa"),
        ([[]] * 1_000_000, "[[], [], "),
        (10**4000, "10000"),
        (10**5000, "<int object>"),
        (np.zeros(1_000_000), "<ndarray object>"),
        (Odd(), "<Odd object>"),
        ([Odd()], "[<Odd object>]"),
        (type("A" * 1000, (), {})(), "<AAAA"),
        (np.str_("a" * 2_000_000), ""),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_long_or_odd_value_is_quoted_in_part(value, start):
    """No value gives a long text, and none an error."""
    assert quoted(value).startswith(start)
    assert len(quoted(value)) <= 60
    assert len(first_few([value] * 9)) < 200


def test_a_value_that_holds_itself_is_quoted():
    """Nested values end at some level."""
    endless = []
    endless.append(endless)
    assert quoted(endless) == "[[[[…]]]]"


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_value_of_json_is_shown_in_part(value):
    """Also as JSON."""
    assert 0 < len(brief(value)) <= 60
    assert 0 < len(quoted(value)) <= 60


def test_json_is_shown_as_json():
    """Values of JSON files are shown as the file has them; nesting is no problem."""
    nested = []
    for _ in range(5000):
        nested = [nested]
    assert brief({"a": [None, True, "é"]}) == '{"a": [null, true, "é"]}'
    assert brief(nested) == "[" * 59 + "…"


def test_a_path_is_quoted_whole():
    """A path is shown as far as paths go."""
    assert quoted_path("a" * 200) == repr("a" * 200)
    assert quoted_path(Path("a")) == "'a'"
    assert quoted_path(None) == "None"
    assert len(quoted_path("a" * 2_000_000)) == 300


def test_a_message_of_other_code_is_shown_in_part():
    """An exception may repeat what was passed in, or fail to say anything."""
    assert message_of(ValueError("no")) == "no"
    assert len(message_of(ValueError("a" * 2_000_000))) == 300
    assert message_of(OddError()) == ""
