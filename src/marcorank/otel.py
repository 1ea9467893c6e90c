"""OpenTelemetry spans for rankings, with the attributes of OpenInference.

    from marcorank import otel

    otel.instrument()

From then on each ranking of this process is a span, nested under the current span of its caller.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NamedTuple

import marcorank
from marcorank._arguments import one_of, whole_number
from marcorank._calls import tracing
from marcorank._steps import in_context
from marcorank._text import encodable, quoted, shorten
from marcorank.errors import InvalidInputError, MissingExtraError

try:
    from opentelemetry import context as otel_context
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise MissingExtraError("`marcorank.otel` needs opentelemetry-api: pip install 'marcorank[otel]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from opentelemetry.context import Context

    from marcorank._calls.ranker import Ranker, RankRequest
    from marcorank._calls.tracing import TracedDocuments
    from marcorank._selection.selecting import Selection
    from marcorank._steps import Steps
    from marcorank.ranking import RankedPassage, Ranking

__all__ = ["instrument", "uninstrument"]

# What OpenInference writes in place of a text that is hidden.
_REDACTED = "__REDACTED__"
# With these, `using_session` and the like of OpenInference mark all spans of a block.
_OF_CONTEXT = ("session.id", "user.id", "metadata", "tag.tags")
# Not the global one, which also sends baggage, such as the name of a user, to servers of others.
_PROPAGATOR = TraceContextTextMapPropagator()
_LANGCHAIN = "openinference.instrumentation.langchain"
_LLAMA_INDEX = "openinference.instrumentation.llama_index"
_DETAILS = ("index", "logit", "truncated", "span", "unknown_tokens", "scored_by", "skim_logit", "blended_score")
# Maximum number of attributes of a span beside those of documents.
_OTHER_ATTRIBUTES = 32


def instrument(
    tracer_provider: trace.TracerProvider | None = None,
    *,
    capture_texts: bool = True,
    capture_metadata: bool = False,
    max_text_chars: int | None = 1000,
) -> None:
    """Make a span of each ranking from now on; a second call replaces the settings of the first.

    The environment variables `OPENINFERENCE_HIDE_INPUTS` and `OPENINFERENCE_HIDE_OUTPUTS` are read here. What they hide
    is left out, whatever the arguments are.

    Args:
        tracer_provider: Makes the spans; None for the global provider, which may be set later.
        capture_texts: Whether spans have the query, the texts of the passages, and the messages of errors, which may
            quote them.
        capture_metadata: Whether spans have the metadata of LangChain documents and LlamaIndex nodes.
        max_text_chars: Maximum number of characters of each text; None for no limit.

    Raises:
        InvalidInputError: An argument has a value that is not allowed.
    """
    tracing.hook = make_hook(
        tracer_provider,
        capture_texts=capture_texts,
        capture_metadata=capture_metadata,
        max_text_chars=max_text_chars,
    )


def uninstrument() -> None:
    """Make no more spans. Those of running calls still end."""
    tracing.hook = None


def make_hook(
    tracer_provider: trace.TracerProvider | None = None,
    *,
    capture_texts: bool = True,
    capture_metadata: bool = False,
    max_text_chars: int | None = 1000,
) -> tracing.Hook:
    """Return what makes a span of each ranking; the arguments are those of `instrument`.

    Raises:
        InvalidInputError: An argument has a value that is not allowed.
    """
    if tracer_provider is not None and not hasattr(tracer_provider, "get_tracer"):
        raise InvalidInputError(
            f"`tracer_provider` is {quoted(tracer_provider)}; expected a TracerProvider of OpenTelemetry, or None for "
            "the global one."
        )
    inputs, outputs = (not _is_set(f"OPENINFERENCE_HIDE_{which}") for which in ("INPUTS", "OUTPUTS"))
    capture = _Capture(
        inputs=inputs,
        outputs=outputs,
        # The results are passages of the input.
        texts=one_of("capture_texts", capture_texts, (True, False)) and inputs,
        metadata=one_of("capture_metadata", capture_metadata, (True, False)) and inputs,
        max_text_chars=None if max_text_chars is None else whole_number("max_text_chars", max_text_chars, 1),
    )
    return _Hook(trace.get_tracer("marcorank", marcorank.__version__, tracer_provider), capture)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in {"true", "1"}


class _Capture(NamedTuple):
    """What spans show.

    Attributes:
        inputs: Whether they have the candidates.
        outputs: Whether they have the results.
        texts: Whether they have texts.
        metadata: Whether they have the metadata of documents.
        max_text_chars: Maximum number of characters of a text; None for no limit.
    """

    inputs: bool
    outputs: bool
    texts: bool
    metadata: bool
    max_text_chars: int | None

    def text(self, text: str) -> str:
        """Return a text as spans show it; one that cannot be encoded would fail in the exporter."""
        if not self.texts:
            return _REDACTED
        return encodable(text) if self.max_text_chars is None else shorten(text, self.max_text_chars)


class _Hook:
    def __init__(self, tracer: trace.Tracer, capture: _Capture) -> None:
        self._tracer = tracer
        self._capture = capture

    def __call__(
        self,
        ranker: Ranker,
        requests: Sequence[RankRequest],
        selection: Selection,
        steps: Steps[list[Ranking]],
        documents: TracedDocuments | None,
    ) -> Steps[list[Ranking]]:
        if otel_context.get_value(getattr(otel_context, "_SUPPRESS_INSTRUMENTATION_KEY", "")):  # it has no public name
            return steps
        calls = [_Call(ranker, request, selection, documents, self._capture) for request in requests]
        return self._traced(calls, steps, documents)

    @contextmanager
    def caller_of(self, headers: Mapping[str, str]) -> Iterator[None]:
        # An instrumentor of the web server has read them already.
        if trace.get_current_span().get_span_context().is_valid:
            yield
            return
        token = otel_context.attach(_PROPAGATOR.extract(headers))
        try:
            yield
        finally:
            otel_context.detach(token)

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return carrier

    def _traced(
        self, calls: Sequence[_Call], steps: Steps[list[Ranking]], documents: TracedDocuments | None
    ) -> Steps[list[Ranking]]:
        """Run the steps of a call in a context of their own, in which its span is the current one."""
        parent = _parent(documents)
        spans: list[_Span] = []
        try:
            if len(calls) != 1:
                kind = {"openinference.span.kind": "CHAIN"}
                chain = self._tracer.start_span("Reranker.rank_many", parent, attributes=kind)
                spans.append(_Span(chain))
                parent = trace.set_span_in_context(chain, parent)
            for call in calls:
                spans.append(self._span(call, parent))  # noqa: PERF401 -- those before one that fails have to end
            context = copy_context()
            context.run(otel_context.attach, trace.set_span_in_context(spans[0].span, parent))
            context.run(tracing.forget_documents)
            rankings = yield from in_context(context, steps)
        except GeneratorExit:
            for span in spans:
                span.cancelled()
            raise
        except BaseException as error:
            # Not `record_exception`, which writes what exporters cannot encode.
            texts = {"message": str(error), "stacktrace": "".join(traceback.format_exception(error))}
            for span in spans:
                span.failed(type(error).__name__, texts if self._capture.texts else {})
            raise
        else:
            for span, ranking in zip(spans[-len(rankings) :], rankings, strict=False):
                span.ranked(ranking)
            return rankings
        finally:
            for span in reversed(spans):
                span.end()

    def _span(self, call: _Call, parent: Context | None) -> _Span:
        current = trace.get_current_span()
        scope = getattr(current, "instrumentation_scope", None)
        if call.framework == "llama_index" and scope is not None and scope.name == _LLAMA_INDEX:
            return _Span(current, call, own=False)
        return _Span(self._tracer.start_span("Reranker.rank", parent, attributes=call.attributes()), call)


def _parent(documents: TracedDocuments | None) -> Context | None:
    """Return the context of the LangChain run, whose span its instrumentor does not make the current one."""
    instrumentor = sys.modules.get(_LANGCHAIN)
    if documents is None or documents.run_id is None or instrumentor is None:
        return None
    langchain = instrumentor.LangChainInstrumentor()
    span = langchain.get_span(documents.run_id) if langchain.is_instrumented_by_opentelemetry else None
    return None if span is None else trace.set_span_in_context(span)


class _Span:
    """The span of a ranking, or of several.

    Args:
        span: The span.
        call: The call that makes the ranking; None for several.
        own: Whether it is ours. LlamaIndex's instrumentor adds texts, documents and errors to its own, and ends it;
            that span gets only our attributes that begin with `marcorank.`.
    """

    def __init__(self, span: trace.Span, call: _Call | None = None, *, own: bool = True) -> None:
        self.span = span
        self._call = call
        self._own = own

    def ranked(self, ranking: Ranking) -> None:
        """Add what came out."""
        if self._call is None or not self.span.is_recording():
            return
        attributes = self._call.outcome(ranking)
        if not self._own:
            attributes = {**self._call.attributes(), **attributes}
            attributes = {name: value for name, value in attributes.items() if name.startswith("marcorank.")}
        self.span.set_attributes(attributes)
        if self._own:
            self._add_documents(ranking)
            if ranking.status is not None and ranking.status.outcome == "passthrough":
                self._fail(ranking.status.error, {"message": ranking.status.reason} if self._call.capture.texts else {})

    def failed(self, name: str, texts: Mapping[str, str]) -> None:
        """Add an error."""
        self.span.set_attributes({"marcorank.outcome": "error"})
        if self._own:
            self._add_documents(None)
            self._fail(name, texts)

    def cancelled(self) -> None:
        """Add that the caller did not wait."""
        self.span.set_attributes({"marcorank.outcome": "cancelled"})
        if self._own:
            self._add_documents(None)
            self.span.set_status(trace.StatusCode.ERROR, "The call was cancelled.")

    def end(self) -> None:
        """End the span."""
        if self._own:
            self.span.end()

    def _fail(self, name: str, texts: Mapping[str, str]) -> None:
        shown = {f"exception.{key}": encodable(text) for key, text in texts.items()}
        self.span.add_event("exception", {"exception.type": name, **shown})
        message = shown.get("exception.message")
        self.span.set_status(trace.StatusCode.ERROR, name if message is None else f"{name}: {message}")

    def _add_documents(self, ranking: Ranking | None) -> None:
        """Add as many documents as the span holds: first the results, then the candidates, each from the top.

        Beyond its limit a span of the SDK would drop its oldest attributes, such as its kind, with a log message each.
        """
        if self._call is None or not self.span.is_recording():
            return
        limit = getattr(getattr(self.span, "_limits", None), "max_span_attributes", None)
        capacity = sys.maxsize if limit is None else limit - _OTHER_ATTRIBUTES
        attributes: dict[str, Any] = {}
        for document in self._call.documents_of(ranking):
            if len(attributes) + len(document) > capacity:
                break
            attributes.update(document)
        self.span.set_attributes(attributes)


class _Call:
    """What is known of the ranking of one request.

    Attributes:
        framework: Whose documents are ranked; None for texts.
        capture: What spans show.
    """

    def __init__(
        self,
        ranker: Ranker,
        request: RankRequest,
        selection: Selection,
        documents: TracedDocuments | None,
        capture: _Capture,
    ) -> None:
        self._ranker = ranker
        self._request = request
        self._selection = selection
        self._documents = documents
        self.framework = None if documents is None else documents.framework
        self.capture = capture

    def attributes(self) -> dict[str, Any]:
        """Return the attributes that a span begins with."""
        query = self.capture.text(self._request.query)
        context = {name: otel_context.get_value(name) for name in _OF_CONTEXT}
        given = {
            "openinference.span.kind": "RERANKER",
            # Langfuse keeps no spans of scopes that it does not know without an attribute of this namespace.
            "gen_ai.operation.name": "rerank",
            "input.value": query,
            "input.mime_type": "text/plain",
            "reranker.query": query,
            "reranker.model_name": self._ranker.model.name,
            "reranker.top_k": self._selection.top_n,
            "marcorank.candidates": len(self._request.passages),
            "marcorank.activation": str(self._ranker.activation),
            "marcorank.score_threshold": self._selection.score_threshold,
            "marcorank.skim": None if self._ranker.skim is None else self._ranker.skim.model.name,
            **context,
        }
        return {name: value for name, value in given.items() if value is not None}

    def outcome(self, ranking: Ranking) -> dict[str, Any]:
        """Return the attributes of a ranking beside its documents."""
        status = ranking.status
        output = [{"id": self._id(result.index), "score": result.score} for result in ranking.results]
        given = {
            "reranker.model_name": ranking.model,
            "output.value": json.dumps(output) if self.capture.outputs else _REDACTED,
            "output.mime_type": "application/json" if self.capture.outputs else None,
            "marcorank.outcome": "ranked" if status is None else status.outcome,
            "marcorank.error": None if status is None else status.error,
            "marcorank.reason": None if status is None or not self.capture.texts else encodable(status.reason),
            "marcorank.query_truncated": ranking.query_truncated,
            "marcorank.truncated": sum(result.truncated is True for result in ranking.results),
            "marcorank.skipped": len(ranking.skipped),
        }
        ranker = self._ranker
        while ranker.fallback is not None and ranker.model.name != ranking.model:
            ranker = ranker.fallback
        backend = ranker.model.backend
        if backend is not None and (status is None or status.outcome == "fallback"):
            given |= {f"marcorank.{name}": getattr(backend, name) for name in ("device", "precision")}
            given["marcorank.backend"] = backend.name
        return {name: value for name, value in given.items() if value is not None}

    def documents_of(self, ranking: Ranking | None) -> Iterator[dict[str, Any]]:
        """Yield the attributes of each document: the results, if there are any, then the candidates."""
        if ranking is not None and self.capture.outputs:
            for position, result in enumerate(ranking.results):
                prefix = f"reranker.output_documents.{position}.document"
                yield self._document(prefix, result.index, result.score, {"marcorank": _details(result)})
        if self.capture.inputs:
            scores = self._retrieval_scores()
            for index in range(len(self._request.passages)):
                prefix = f"reranker.input_documents.{index}.document"
                yield self._document(prefix, index, None if scores is None else scores[index], {})

    def _document(self, prefix: str, index: int, score: float | None, details: Mapping[str, Any]) -> dict[str, Any]:
        attributes: dict[str, Any] = {f"{prefix}.id": self._id(index)}
        if self.capture.texts:
            attributes[f"{prefix}.content"] = self.capture.text(self._request.passages[index])
        if score is not None:
            attributes[f"{prefix}.score"] = score
        if self._documents is not None and self.capture.metadata:
            details = {**self._documents.metadata[index], **details}
        if details:
            attributes[f"{prefix}.metadata"] = _json(details)
        return attributes

    def _id(self, index: int) -> str:
        """Return the id of a candidate, or else its position."""
        found: object = None if self._documents is None else self._documents.ids[index]
        try:
            return str(index) if found is None else encodable(str(found))
        except Exception:  # noqa: BLE001 -- a trace must not fail a ranking, and an id may be any object
            return str(index)

    def _retrieval_scores(self) -> Sequence[float | None] | None:
        given = self._request.retrieval_scores
        if given is not None:
            scores: list[float] = given.tolist()
            return scores
        return None if self._documents is None else self._documents.scores


def _details(result: RankedPassage) -> dict[str, Any]:
    """Return what is known of a result beside its text, score and rank."""
    values = {name: getattr(result, name) for name in _DETAILS}
    return {name: value for name, value in values.items() if value is not None}


def _json(value: Mapping[str, Any]) -> str:
    """Return metadata as JSON; what JSON lacks becomes a text, and metadata that cannot be written are left out."""
    try:
        return encodable(json.dumps(value, ensure_ascii=False, default=str))
    except Exception:  # noqa: BLE001 -- a trace must not fail a ranking, and `str` may be anything
        return "{}"
