"""Entry points of tools that instrument all that is installed, such as `opentelemetry-instrument`.

They run in every program of an environment, so `marcorank.otel` is imported with the first ranking, not before.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from marcorank._calls import tracing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.trace import TracerProvider

    from marcorank._calls.tracing import Hook
    from marcorank._steps import Steps
    from marcorank.ranking import Ranking


class PhoenixInstrumentor:
    """Calls `instrument` for Phoenix' `register(auto_instrument=True)`, which finds it by its entry point."""

    def instrument(self, *, tracer_provider: TracerProvider | None = None, **_: object) -> None:
        """Make a span of each ranking from now on."""
        tracing.hook = _LazyHook(tracer_provider, capture_texts=True)

    def uninstrument(self, **_: object) -> None:
        """Make no more spans."""
        tracing.hook = None


class AutoInstrumentor(PhoenixInstrumentor):
    """Does the same for `opentelemetry-instrument`.

    Does not capture texts by default, because that tool instruments everything that is installed.
    """

    def instrument(self, *, tracer_provider: TracerProvider | None = None, **_: object) -> None:
        """Make a span of each ranking from now on."""
        texts = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "")
        shown = texts.lower() in {"true", "span_only", "span_and_event"}
        tracing.hook = _LazyHook(tracer_provider, capture_texts=shown)


class _LazyHook:
    """Makes the hook of `marcorank.otel` when it is first needed."""

    def __init__(self, tracer_provider: TracerProvider | None, *, capture_texts: bool) -> None:
        self._tracer_provider = tracer_provider
        self._capture_texts = capture_texts

    @cached_property
    def _hook(self) -> Hook:
        from marcorank.otel import make_hook

        return make_hook(self._tracer_provider, capture_texts=self._capture_texts)

    def __call__(self, *arguments: Any) -> Steps[list[Ranking]]:
        return self._hook(*arguments)

    def caller_of(self, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        return self._hook.caller_of(headers)

    def headers(self) -> dict[str, str]:
        return self._hook.headers()
