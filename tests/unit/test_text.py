"""Tables and shortened texts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from marcorank._text import cells, clip, first_few, one_line, shorten, table

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
