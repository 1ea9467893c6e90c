"""A progress line on the terminal."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from marcorank._text import clip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

_SHOW_AFTER_S = 2.0
_REDRAW_S = 0.5


def duration(seconds: float) -> str:
    """Format a time for people, such as `2 min 5 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Progress:
    """Shows a line on stderr while its block runs, if that takes more than two seconds and stderr is a terminal.

    Attributes:
        text: Describes the work; may change while it runs. Nothing is shown while it is empty.
    """

    def __init__(self, text: str = "") -> None:
        self.text = text
        self._drawn = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._draw_until_done, daemon=True) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._done.set()
            self._thread.join()
            self._erase()

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide the line while results are written to the same terminal."""
        with self._lock:
            self._erase()
            yield

    def _draw_until_done(self) -> None:
        started = time.monotonic()
        pause = _SHOW_AFTER_S
        while not self._done.wait(pause):
            pause = _REDRAW_S
            with self._lock:
                self._erase()
                if not self.text:
                    continue
                line = f"{self.text} ... {time.monotonic() - started:.0f} s"
                print(clip(line, self._width()), end="", file=sys.stderr, flush=True)
                self._drawn = True

    def _erase(self) -> None:
        if self._drawn:
            self._drawn = False
            print("\r" + " " * self._width() + "\r", end="", file=sys.stderr, flush=True)

    def _width(self) -> int:
        # The last cell stays free: some terminals wrap the line there.
        return shutil.get_terminal_size().columns - 1
