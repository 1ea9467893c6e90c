"""Tables for terminals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from marcorank._text import cells, clip, one_line, table

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
