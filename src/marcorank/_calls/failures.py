"""Failing calls: which errors `on_error` and `fallback` act on, the time limit, and the log messages."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, NamedTuple

from marcorank._forks import ProcessLock
from marcorank.errors import ModelLoadError, RemoteError, RerankTimeoutError, ScoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from marcorank.ranking import RerankStatus

_log = logging.getLogger("marcorank")

# After these errors, a fallback model or the order of the input may be used. Whatever a backend, the hub, a server or a
# custom scorer raises is converted to one of them where it enters; any other exception is a bug and is raised.
OPERATIONAL_ERRORS = (ModelLoadError, ScoreError, RerankTimeoutError, RemoteError)
_SECONDS_BETWEEN_MESSAGES = 60.0


class TimeLimit(NamedTuple):
    """How long a model may take.

    Attributes:
        seconds: Maximum number of seconds.
        timeout_s: The setting of which they are a part.
    """

    seconds: float
    timeout_s: float


def timeout_error(name: str, limit: TimeLimit, *, loading: bool) -> RerankTimeoutError:
    """Return the error of a model that did not answer in time, perhaps because it was still loading."""
    share = "" if limit.seconds == limit.timeout_s else f", its share of the `timeout_s` of {limit.timeout_s:.3g} s"
    cause, remedy = "", "or pass fewer or shorter passages"
    if loading:
        cause, remedy = " because it was still loading", "or call `warm_up()` first"
    return RerankTimeoutError(
        f"Model `{name}` did not answer within {limit.seconds:.3g} s{share}{cause}. Increase `timeout_s`, {remedy}."
    )


class MessageLimit:
    """Limits messages to one per cause and minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = ProcessLock()
        # For each cause, when it was logged last and how often it was skipped since.
        self._logged: dict[tuple[str, ...], tuple[float, int]] = {}

    def suffix(self, *cause: str) -> str | None:
        """Return the end of the next message, which counts those that were skipped; None if it is to be skipped too."""
        now = self._clock()
        with self._lock:
            last, skipped = self._logged.get(cause, (-math.inf, 0))
            if now - last < _SECONDS_BETWEEN_MESSAGES:
                self._logged[cause] = (last, skipped + 1)
                return None
            self._logged[cause] = (now, 0)
        return f" ({skipped} more like it since the last message)" if skipped else ""


class _RateLimitedWarnings:
    """Logs failures, at most once per cause and minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = MessageLimit(clock)

    def warn(self, model: str, status: RerankStatus, instead: str) -> None:
        """Log a failure, unless the same was logged in the last minute."""
        more = self._limit.suffix(model, status.outcome, status.error)
        if more is not None:
            _log.warning("Reranking with %s failed; %s. %s: %s%s", model, instead, status.error, status.reason, more)


warnings = _RateLimitedWarnings()
