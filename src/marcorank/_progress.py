"""No progress bars of other packages while marcorank works: a library does not draw on its user's terminal."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class _BarsOff:
    """Keeps the bars of a package off while any thread is inside: its switch is one for the whole process.

    Args:
        turn_off: Turns the bars off and returns a function that restores them.
    """

    def __init__(self, turn_off: Callable[[], Callable[[], None]]) -> None:
        self._turn_off = turn_off
        self._lock = threading.Lock()
        self._inside = 0
        self._restore: Callable[[], None] = _nothing

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._restore = self._turn_off()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._restore()


def _nothing() -> None:
    pass


def _turn_off_hub() -> Callable[[], None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    # Where the environment variable is set, the switch only warns.
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        return _nothing
    disable_progress_bars()
    return enable_progress_bars


def _turn_off_transformers() -> Callable[[], None]:
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        return _nothing
    logging.disable_progress_bar()
    enable: Callable[[], None] = logging.enable_progress_bar
    return enable


def _turn_off_rich() -> Callable[[], None]:
    import rich

    # rich draws on one console of the process. `rich.reconfigure` replaces its attributes in the same way.
    console = rich.get_console()
    attributes = vars(console)
    rich.reconfigure(file=io.StringIO())
    return lambda: setattr(console, "__dict__", attributes)


without_hub_bars = _BarsOff(_turn_off_hub)
without_transformers_bars = _BarsOff(_turn_off_transformers)
without_rich_bars = _BarsOff(_turn_off_rich)
