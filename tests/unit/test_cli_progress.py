"""The line that tells what takes so long."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from marcorank.cli import progress
from marcorank.cli.progress import Progress


class Terminal(io.StringIO):
    """Says that it is one, and when something was drawn on it."""

    def __init__(self):
        super().__init__()
        self.drawn = threading.Event()

    def isatty(self):
        return True

    def write(self, text):
        if "Ranking" in text:
            self.drawn.set()
        return super().write(text)

    @property
    def last_line(self):
        return self.getvalue().rpartition("\r")[2]


@pytest.fixture
def attach_terminal(monkeypatch):
    """Put a terminal in place of stderr, with no wait before the first line."""

    def attach():
        # Not at once: pytest sets its own stderr between the set-up and the test.
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    monkeypatch.setattr(progress, "_SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "_REDRAW_S", 0.001)
    return attach


def test_long_work_is_told_and_the_line_goes_away(attach_terminal):
    """While the work lasts there is one line, afterwards there is none."""
    terminal = attach_terminal()
    with Progress("Ranking") as shown:
        assert terminal.drawn.wait(10)
        with shown.hidden():
            assert terminal.last_line == ""
            terminal.drawn.clear()
        assert terminal.drawn.wait(10)
    assert terminal.last_line == ""
    assert "\n" not in terminal.getvalue()


def test_nothing_is_shown_without_a_terminal(monkeypatch, attach_terminal):
    """Logs and pipes stay free of it."""
    terminal = attach_terminal()
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    with Progress("Ranking"):
        assert not terminal.drawn.wait(0.05)
    assert terminal.getvalue() == ""


def test_short_work_is_not_told(monkeypatch, attach_terminal):
    """What is done at once needs no word."""
    terminal = attach_terminal()
    monkeypatch.setattr(progress, "_SHOW_AFTER_S", 60.0)
    with Progress("Ranking") as shown, shown.hidden():
        pass
    assert terminal.getvalue() == ""


def test_nothing_is_shown_while_there_is_nothing_to_tell(attach_terminal):
    """While somebody types passages on the same terminal, nothing is drawn over them."""
    terminal = attach_terminal()
    with Progress("Ranking") as shown:
        assert terminal.drawn.wait(10)
        shown.text = ""
        with shown.hidden():
            pass
        before = terminal.getvalue()
        threading.Event().wait(0.02)
        assert terminal.getvalue() == before
