"""Where tracing hooks in: `marcorank.otel` sets `hook`, and the adapters say which documents they rank.

Nothing here imports a package for tracing, and without a hook nothing is done.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from marcorank._calls.ranker import Ranker, RankRequest
    from marcorank._selection.selecting import Selection
    from marcorank._steps import Steps
    from marcorank.ranking import Ranking


class TracedDocuments(NamedTuple):
    """What an adapter knows of the passages of a call beside their texts.

    Attributes:
        framework: Whose documents they are.
        ids: Their ids; None for one without.
        scores: Their first-stage scores; None if they are unknown.
        metadata: Their metadata.
        run_id: Id of the run of LangChain that the call is.
    """

    framework: Literal["langchain", "llama_index"]
    ids: Sequence[str | None]
    scores: Sequence[float | None] | None
    metadata: Sequence[Mapping[str, Any]]
    run_id: Any = None


class Hook(Protocol):
    """Traces calls."""

    def __call__(
        self,
        ranker: Ranker,
        requests: Sequence[RankRequest],
        selection: Selection,
        steps: Steps[list[Ranking]],
        documents: TracedDocuments | None,
        /,
    ) -> Steps[list[Ranking]]:
        """Return the steps with what is done before and after them; `documents` is None for passages of no adapter."""
        ...

    def caller_of(self, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """Continue the trace of these request headers in a `with` block."""
        ...

    def headers(self) -> dict[str, str]:
        """Return headers that propagate the current trace."""
        ...


hook: Hook | None = None
_documents: ContextVar[TracedDocuments | None] = ContextVar("marcorank_documents", default=None)


def traced(
    ranker: Ranker, requests: Sequence[RankRequest], selection: Selection, steps: Steps[list[Ranking]]
) -> Steps[list[Ranking]]:
    """Return the steps of a call, wrapped by the hook if there is one."""
    current = hook  # read once: another thread may unset it
    return steps if current is None else current(ranker, requests, selection, steps, _documents.get())


def ranks_documents(make: Callable[[], TracedDocuments]) -> AbstractContextManager[None]:
    """Attach documents to the spans of a `with` block; they are made only if there is a hook."""
    return nullcontext() if hook is None else _set(make())


def caller_of(headers: Mapping[str, str]) -> AbstractContextManager[None]:
    """Continue the trace of these request headers in a `with` block, if there is a hook."""
    current = hook
    return nullcontext() if current is None else current.caller_of(headers)


def request_headers() -> dict[str, str]:
    """Return headers that propagate the current trace; none without a hook."""
    current = hook
    return {} if current is None else current.headers()


def forget_documents() -> None:
    """Detach the documents from further calls in this context, such as those of a custom scorer."""
    _documents.set(None)


@contextmanager
def _set(documents: TracedDocuments) -> Iterator[None]:
    token = _documents.set(documents)
    try:
        yield
    finally:
        # A coroutine that never ends is closed in another context.
        with suppress(ValueError):
            _documents.reset(token)
