"""Turns off the progress bars of other packages while marcorank works."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marcorank._forks import ProcessLock

if TYPE_CHECKING:
    from collections.abc import Callable


class _BarsOff:
    """Keeps the bars of a package off while any thread is inside: its switch applies to the whole process.

    Args:
        turn_off: Turns the bars off and returns a function that restores them.
    """

    def __init__(self, turn_off: Callable[[], Callable[[], None]]) -> None:
        self._turn_off = turn_off
        self._lock = ProcessLock()
        self._inside = 0

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


def _turn_off_hub() -> Callable[[], None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    # If the environment variable is set, the switch only warns.
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        return lambda: None
    disable_progress_bars()
    return enable_progress_bars


def _turn_off_transformers() -> Callable[[], None]:
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        return lambda: None
    logging.disable_progress_bar()
    enable: Callable[[], None] = logging.enable_progress_bar
    return enable


without_hub_bars = _BarsOff(_turn_off_hub)
without_transformers_bars = _BarsOff(_turn_off_transformers)
