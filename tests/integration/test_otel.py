"""What OpenTelemetry sees of rankings: spans, their attributes and places in the tree, and that each one ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import entry_points

import httpx
import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from llama_index.core.schema import NodeWithScore, TextNode
from openinference.instrumentation import TracerProvider as OpenInferenceProvider
from openinference.instrumentation import suppress_tracing, using_session
from openinference.instrumentation.langchain import LangChainInstrumentor
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor
from openinference.semconv.trace import (
    DocumentAttributes,
    OpenInferenceSpanKindValues,
    RerankerAttributes,
    SpanAttributes,
)
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from marcorank import InvalidInputError, Reranker, RerankTimeoutError, ScoreError, langchain, llama_index, otel
from marcorank.testing import WordOverlapScorer
from patience import PATIENCE_S
from rerank_servers import server_thread

QUERY = "red apple"
PASSAGES = ["a pear", "a red apple", "red"]


class Failing:
    name = "failing"

    def score(self, query, passages):
        raise RuntimeError("no memory")


class Hanging:
    """Scores when it is released; `begun` is set when it is called.

    Attributes:
        begun: Whether it was called.
        released: Whether it may go on.
    """

    name = "hanging"

    def __init__(self):
        self.begun, self.released = threading.Event(), threading.Event()

    def score(self, query, passages):
        self.begun.set()
        assert self.released.wait(timeout=PATIENCE_S)
        return [0.0] * len(passages)


class Tracing(WordOverlapScorer):
    """Makes a span of its own while it scores."""

    def score(self, query, passages):
        with trace.get_tracer("scorer", tracer_provider=self.provider).start_as_current_span(f"score {query}"):
            return super().score(query, passages)


class Spans:
    """A provider, and the spans that it has made."""

    def __init__(self, make=TracerProvider, **settings):
        self.exporter = InMemorySpanExporter()
        self.provider = make(**settings)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def all(self):
        return self.exporter.get_finished_spans()

    def named(self, name):
        return [span for span in self.all() if span.name == name]

    def one(self):
        (span,) = self.all()
        return span

    def rerankers(self):
        return [span for span in self.all() if span.attributes.get("openinference.span.kind") == "RERANKER"]

    @contextmanager
    def outer(self, name="outer"):
        with self.provider.get_tracer("application").start_as_current_span(name) as span:
            yield span


@pytest.fixture
def spans():
    made = Spans()
    otel.instrument(made.provider)
    yield made
    otel.uninstrument()


@pytest.fixture
def reranker():
    return Reranker(WordOverlapScorer())


@pytest.fixture(params=["rank", "arank", "rank_many", "timeout"])
def rank(request):
    """Each way to rank one query."""

    def call(reranker, query, passages, **options):
        if request.param == "arank":
            return asyncio.run(reranker.arank(query, passages, **options))
        if request.param == "rank_many":
            return reranker.rank_many([(query, passages)], **options)[0]
        if request.param == "timeout":
            reranker.timeout_s = 60
        return reranker.rank(query, passages, **options)

    return call


def parent_of(span):
    return None if span.parent is None else span.parent.span_id


def documents(span, which):
    """Return the documents of a span as dicts, in order."""
    found = {}
    for name, value in span.attributes.items():
        if match := re.fullmatch(rf"reranker\.{which}_documents\.(\d+)\.document\.(\w+)", name):
            found.setdefault(int(match[1]), {})[match[2]] = value
    assert list(found) == list(range(len(found)))
    return list(found.values())


def test_a_ranking_is_a_span(spans, reranker, rank):
    """A span of kind RERANKER has query, model, `top_n`, candidates in their order and results with their scores."""
    with spans.outer() as outer:
        rank(reranker, QUERY, PASSAGES, top_n=2)
    span, _ = spans.all()
    assert (span.name, parent_of(span)) == ("Reranker.rank", outer.context.span_id)
    assert span.instrumentation_scope.name == "marcorank"
    assert {name: span.attributes[name] for name in span.attributes if "_documents." not in name} == {
        "openinference.span.kind": "RERANKER",
        "gen_ai.operation.name": "rerank",
        "input.value": QUERY,
        "input.mime_type": "text/plain",
        "output.value": '[{"id": "1", "score": 5.0}, {"id": "2", "score": 0.0}]',
        "output.mime_type": "application/json",
        "reranker.query": QUERY,
        "reranker.model_name": "word-overlap",
        "reranker.top_k": 2,
        "marcorank.candidates": 3,
        "marcorank.activation": "identity",
        "marcorank.outcome": "ranked",
        "marcorank.truncated": 0,
        "marcorank.skipped": 0,
    }
    assert documents(span, "input") == [{"id": str(index), "content": text} for index, text in enumerate(PASSAGES)]
    assert documents(span, "output") == [
        {"id": "1", "content": "a red apple", "score": 5.0, "metadata": '{"marcorank": {"index": 1, "logit": 5.0}}'},
        {"id": "2", "content": "red", "score": 0.0, "metadata": '{"marcorank": {"index": 2, "logit": 0.0}}'},
    ]
    assert span.status.status_code is StatusCode.UNSET
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_the_names_are_those_of_openinference(spans, reranker):
    """What does not begin with `marcorank.` is in the semantic conventions, under this name."""
    known = {
        value
        for names in (SpanAttributes, RerankerAttributes, DocumentAttributes)
        for name, value in vars(names).items()
        if not name.startswith("_")
    }
    reranker.rank(QUERY, PASSAGES, top_n=1, retrieval_scores=[3, 2, 1])
    for name in spans.one().attributes:
        if not name.startswith(("marcorank.", "gen_ai.")):
            assert set(re.split(r"\.\d+\.", name)) <= known, name
    assert spans.one().attributes[SpanAttributes.OPENINFERENCE_SPAN_KIND] == OpenInferenceSpanKindValues.RERANKER.value


def test_a_span_says_what_ran_and_what_was_truncated(spans):
    """Backend, device and precision are there, and how many results were read only in part."""
    with Reranker("bundled", skim=WordOverlapScorer(), skim_keep=2) as reranker:
        reranker.rank(QUERY, ["red " * 1000, *PASSAGES], top_n=2, score_threshold=-50, retrieval_scores=[4, 3, 2, 1])
    attributes = spans.one().attributes
    assert {name: attributes[f"marcorank.{name}"] for name in ("backend", "device", "precision")} == {
        "backend": "onnx",
        "device": "cpu",
        "precision": "int8",
    }
    assert (attributes["marcorank.truncated"], attributes["marcorank.query_truncated"]) == (1, False)
    assert (attributes["marcorank.skim"], attributes["marcorank.score_threshold"]) == ("word-overlap", -50.0)
    assert [one["score"] for one in documents(spans.one(), "input")] == [4.0, 3.0, 2.0, 1.0]


def test_rank_many_has_a_span_for_each_query(spans, reranker):
    """They lie below one span for the call, in which no query is another's."""
    reranker.rank_many([(QUERY, PASSAGES), ("pear", ["a pear"])])
    *rankings, call = spans.all()
    assert (call.name, call.attributes["openinference.span.kind"]) == ("Reranker.rank_many", "CHAIN")
    assert [parent_of(span) for span in rankings] == [call.context.span_id] * 2
    queries = {span.attributes["reranker.query"]: [one["id"] for one in documents(span, "output")] for span in rankings}
    assert queries == {QUERY: ["1", "2", "0"], "pear": ["0"]}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("timeout_s", [None, 60])
def test_what_a_scorer_does_lies_below_the_span(spans, is_async, timeout_s):
    """Threads that score have the context of the caller, and its spans are not mixed up with those of others."""
    scorer = Tracing()
    scorer.provider = spans.provider
    reranker = Reranker(scorer, timeout_s=timeout_s)

    async def arank(query):
        with spans.outer(query):
            await reranker.arank(query, PASSAGES)

    async def all_of(queries):
        await asyncio.gather(*map(arank, queries))

    def rank(query):
        with spans.outer(query):
            reranker.rank(query, PASSAGES)

    queries = [f"query {number}" for number in range(20)]
    if is_async:
        asyncio.run(all_of(queries))
    else:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(rank, queries))
    by_id = {span.context.span_id: span for span in spans.all()}
    assert len(by_id) == 60
    for query in queries:
        (inner,) = spans.named(f"score {query}")
        ranking = by_id[parent_of(inner)]
        assert (ranking.name, ranking.attributes["reranker.query"]) == ("Reranker.rank", query)
        assert by_id[parent_of(ranking)].name == query


def test_a_scorer_may_rank_on_its_own(spans):
    """A ranking inside of another one has a span of its own, without the ids of the outer documents."""
    inner = Reranker(WordOverlapScorer())

    class Nested:
        name = "nested"

        def score(self, query, passages):
            return [one.logit for one in sorted(inner.rank(query, passages), key=lambda one: one.index)]

    rerank = langchain.MarcoRerank(reranker=Nested())
    rerank.compress_documents([Document(page_content="a red apple", id="apple")], QUERY)
    below, above = spans.all()
    assert parent_of(below) == above.context.span_id
    assert [documents(span, "input")[0]["id"] for span in (below, above)] == ["0", "apple"]


@pytest.mark.parametrize("timeout_s", [None, 60])
def test_the_span_of_a_server_lies_below_that_of_its_client(spans, reranker, timeout_s):
    """A remote scorer sends `traceparent`, and no baggage; `marcorank serve` takes it, also from other clients."""
    with (
        server_thread(Reranker(WordOverlapScorer(), activation="sigmoid")) as server,
        Reranker(f"tei+{server.url}", timeout_s=timeout_s) as remote,
        spans.outer(),
    ):
        remote.rank(QUERY, PASSAGES)
        httpx.post(f"{server.url}/rerank", json={"query": "pear", "texts": ["a pear"]}, headers={"traceparent": PARENT})
    served, asked, other, outer = spans.all()
    assert [parent_of(span) for span in (served, asked)] == [asked.context.span_id, outer.context.span_id]
    assert served.context.trace_id == outer.context.trace_id
    assert (other.parent.trace_id, parent_of(other)) == (1, 2)


def test_a_server_without_a_traceparent_begins_a_trace(spans):
    """So does one whose client sends nonsense."""
    with server_thread(Reranker(WordOverlapScorer(), activation="sigmoid")) as server:
        for headers in ({}, {"traceparent": "nonsense"}):
            httpx.post(f"{server.url}/rerank", json={"query": "pear", "texts": ["a pear"]}, headers=headers)
    assert [parent_of(span) for span in spans.all()] == [None, None]


def test_a_request_without_a_hook_says_nothing_of_traces(tei):
    """No header is added before `instrument` was called."""
    with Reranker(tei.url) as remote:
        remote.rank(QUERY, PASSAGES)
    assert "traceparent" not in {name.lower() for name in tei.requests[0].headers}


def test_a_failure_is_recorded(spans, rank):
    """The span ends with an error status, the exception and the candidates, and the error is raised as ever."""
    with pytest.raises(ScoreError, match="raised RuntimeError: no memory"):
        rank(Reranker(Failing()), QUERY, PASSAGES)
    span = spans.one()
    assert (span.status.status_code, span.attributes["marcorank.outcome"]) == (StatusCode.ERROR, "error")
    assert span.status.description == "ScoreError: Model `failing` raised RuntimeError: no memory"
    (event,) = span.events
    assert (event.name, event.attributes["exception.type"]) == ("exception", "ScoreError")
    assert "RuntimeError: no memory" in event.attributes["exception.stacktrace"]
    assert len(documents(span, "input")) == 3
    assert documents(span, "output") == []


def test_a_timeout_ends_the_span(spans):
    """The span does not wait for the scorer."""
    hanging = Hanging()
    with pytest.raises(RerankTimeoutError, match="did not answer within"):
        Reranker(hanging, timeout_s=0.05).rank(QUERY, PASSAGES)
    assert spans.one().status.description.startswith("RerankTimeoutError: Model `hanging` did not answer")
    hanging.released.set()


async def test_a_cancelled_task_ends_the_span(spans):
    """Its status is an error, and what the scorer finishes later changes nothing."""
    hanging = Hanging()
    task = asyncio.create_task(Reranker(hanging).arank(QUERY, PASSAGES))
    assert await asyncio.to_thread(hanging.begun.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    span = spans.one()
    hanging.released.set()
    assert (span.status.status_code, span.attributes["marcorank.outcome"]) == (StatusCode.ERROR, "cancelled")


@pytest.mark.parametrize(
    ("settings", "outcome", "model", "status"),
    [
        ({"fallback": "bundled"}, "fallback", "bundled", StatusCode.UNSET),
        ({"on_error": "passthrough"}, "passthrough", "failing", StatusCode.ERROR),
        (
            {"on_error": "passthrough", "skim": WordOverlapScorer(), "skim_keep": 1},
            "skim",
            "failing",
            StatusCode.UNSET,
        ),
    ],
)
def test_who_answered_instead_is_visible(spans, settings, outcome, model, status):
    """After a failure that did not reach the caller, the span says what happened and why."""
    ranking = Reranker(Failing(), **settings).rank(QUERY, PASSAGES, top_n=1)
    span = spans.one()
    assert (span.attributes["marcorank.outcome"], span.attributes["reranker.model_name"]) == (outcome, model)
    assert span.attributes["marcorank.error"] == "ScoreError"
    assert span.attributes["marcorank.reason"] == ranking.status.reason
    assert span.attributes.get("marcorank.backend") == ("onnx" if outcome == "fallback" else None)
    assert span.status.status_code is status
    assert ["exception"] * (status is StatusCode.ERROR) == [event.name for event in span.events]


PARENT = f"00-{1:032x}-{2:016x}-01"
DOCUMENTS = [
    Document(page_content="a pear", id="pear", metadata={"score": 0.9, "page": 3}),
    Document(page_content="a red apple", id="apple", metadata={"score": 0.5}),
]
NODES = [
    NodeWithScore(node=TextNode(text="a pear", id_="pear", metadata={"page": 3}), score=0.9),
    NodeWithScore(node=TextNode(text="a red apple", id_="apple"), score=0.5),
]


@pytest.fixture(params=["langchain", "alangchain", "rerank", "llama_index", "allama_index"])
def adapter(request):
    """Each way to rank documents of a framework."""

    def call(rerank=None):
        if "langchain" in request.param or request.param == "rerank":
            rerank = langchain.MarcoRerank(reranker=rerank or WordOverlapScorer(), top_n=1)
            if request.param == "rerank":
                return rerank.rerank(DOCUMENTS, QUERY)
            if request.param == "langchain":
                return rerank.compress_documents(DOCUMENTS, QUERY)
            return asyncio.run(rerank.acompress_documents(DOCUMENTS, QUERY))
        rerank = llama_index.MarcoRerank(reranker=rerank or WordOverlapScorer(), top_n=1)
        if request.param == "llama_index":
            return rerank.postprocess_nodes(NODES, query_str=QUERY)
        return asyncio.run(rerank.apostprocess_nodes(NODES, query_str=QUERY))

    call.kind = request.param
    return call


def test_an_adapter_makes_one_span_with_the_ids_of_its_documents(spans, adapter):
    """It lies below the caller's, has first-stage scores and new ones, and no metadata of the documents."""
    with spans.outer() as outer:
        adapter()
    span, _ = spans.all()
    assert parent_of(span) == outer.context.span_id
    assert [(one["id"], one["score"]) for one in documents(span, "input")] == [("pear", 0.9), ("apple", 0.5)]
    assert [(one["id"], one["score"]) for one in documents(span, "output")] == [("apple", 5.0)]
    assert not any("metadata" in one for one in documents(span, "input"))
    assert span.attributes["output.value"] == '[{"id": "apple", "score": 5.0}]'


def test_metadata_are_there_on_request(spans, adapter):
    """With `capture_metadata` they are JSON, whatever they hold."""
    otel.instrument(spans.provider, capture_metadata=True)
    adapter()
    assert json.loads(documents(spans.one(), "input")[0]["metadata"])["page"] == 3


def test_metadata_that_json_lacks_do_not_fail_a_ranking(spans):
    """What is not JSON becomes a text or is left out."""
    otel.instrument(spans.provider, capture_metadata=True)
    itself = {}
    itself["itself"] = itself
    given = [Document(page_content="a", metadata=one) for one in ({"path": re.compile("x")}, {(1, 2): 3}, itself)]
    assert len(langchain.MarcoRerank(reranker=WordOverlapScorer()).compress_documents(given, QUERY)) == 3
    found = [json.loads(one["metadata"]) for one in documents(spans.one(), "input")]
    assert found == [{"path": "re.compile('x')"}, {}, {}]


def test_an_id_without_a_text_does_not_fail_a_ranking(spans):
    """The id of a dict may be any object; the span then has the position of the document."""

    class Id:
        def __str__(self):
            raise RuntimeError("no text")

    given = [{"page_content": "red", "id": Id()}, {"page_content": "apple", "id": 7}]
    assert len(langchain.MarcoRerank(reranker=WordOverlapScorer()).rerank(given, QUERY)) == 2
    assert [one["id"] for one in documents(spans.one(), "input")] == ["0", "7"]


def test_a_span_ends_if_the_next_one_cannot_start(spans, reranker):
    """Whatever a processor of the application raises, no span stays open."""

    class Refusing(SpanProcessor):
        started = 0

        def on_start(self, span, parent_context=None):
            self.started += 1
            if self.started == 3:
                raise RuntimeError("too many spans")

    spans.provider.add_span_processor(Refusing())
    with pytest.raises(RuntimeError, match="too many spans"):
        reranker.rank_many([(QUERY, PASSAGES)] * 2)
    assert [span.name for span in spans.all()] == ["Reranker.rank", "Reranker.rank_many"]


@pytest.mark.parametrize("hide", ["argument", "environment"])
def test_texts_can_be_hidden(spans, monkeypatch, adapter, hide):
    """Then nothing of the query, the documents or the message of an error is in a span; ids and scores are."""
    if hide == "environment":
        monkeypatch.setenv("OPENINFERENCE_HIDE_INPUTS", "true")
    otel.instrument(spans.provider, capture_texts=hide != "argument", capture_metadata=hide == "environment")
    adapter()
    with pytest.raises(ScoreError):
        adapter(Failing())
    for span in spans.all():
        shown = span.to_json()
        assert not re.search("red|pear |memory|page", shown)
        assert span.attributes["reranker.query"] == span.attributes["input.value"] == "__REDACTED__"
        assert len(documents(span, "input")) == (2 if hide == "argument" else 0)
    ranked, failed = spans.all()
    assert [one["id"] for one in documents(ranked, "output")] == ["apple"]
    assert failed.status.description == "ScoreError"


def test_results_can_be_hidden(spans, monkeypatch, reranker):
    """`OPENINFERENCE_HIDE_OUTPUTS` leaves out the results."""
    monkeypatch.setenv("OPENINFERENCE_HIDE_OUTPUTS", "True")
    otel.instrument(spans.provider)
    reranker.rank(QUERY, PASSAGES)
    assert spans.one().attributes["output.value"] == "__REDACTED__"
    assert documents(spans.one(), "output") == []


def test_long_texts_are_shortened_and_odd_ones_replaced(spans, reranker):
    """`max_text_chars` limits query and passages; half a surrogate pair, which no exporter can send, is replaced."""
    otel.instrument(spans.provider, max_text_chars=10)
    reranker.rank("red" * 9, ["apple" * 9, "\ud800"])
    assert spans.one().attributes["reranker.query"] == "redredred…"
    assert [one["content"] for one in documents(spans.one(), "input")] == ["appleappl…", "?"]
    otel.instrument(spans.provider, max_text_chars=None)
    reranker.rank(QUERY, ["apple" * 999, "\ud800"])
    assert [one["content"] for one in documents(spans.all()[-1], "input")] == ["apple" * 999, "?"]


def test_a_span_drops_candidates_before_anything_else(spans, reranker, caplog):
    """The SDK keeps 128 attributes; the results and the first candidates are among them, and it has to drop none."""
    reranker.rank(QUERY, [f"apple {number}" for number in range(100)], top_n=5)
    span = spans.one()
    assert (span.dropped_attributes, caplog.records) == (0, [])
    assert (span.attributes["marcorank.candidates"], len(documents(span, "output"))) == (100, 5)
    assert len(documents(span, "input")) == (128 - 32 - 5 * 4) // 2


def test_openinference_keeps_all_candidates():
    """The provider of OpenInference, which Phoenix makes, has a higher limit; its session ids are in our spans too."""
    spans = Spans(OpenInferenceProvider)
    otel.instrument(spans.provider)
    try:
        with using_session("a session"):
            Reranker(WordOverlapScorer()).rank(QUERY, [f"apple {number}" for number in range(100)])
    finally:
        otel.uninstrument()
    assert len(documents(spans.one(), "input")) == len(documents(spans.one(), "output")) == 100
    assert spans.one().attributes["session.id"] == "a session"


def test_tracing_can_be_suppressed(spans, reranker):
    """As with any instrumentor, for a block."""
    with suppress_tracing():
        reranker.rank(QUERY, PASSAGES)
    assert spans.all() == ()


def test_without_a_span_that_is_recorded_rankings_are_the_same(reranker):
    """Neither a sampler that drops all spans nor a missing provider changes a ranking."""
    expected = reranker.rank(QUERY, PASSAGES)
    try:
        for provider in (TracerProvider(sampler=ALWAYS_OFF), None):
            otel.instrument(provider)
            assert reranker.rank(QUERY, PASSAGES) == expected
            with pytest.raises(ScoreError, match="no memory"):
                Reranker(Failing()).rank(QUERY, PASSAGES)
    finally:
        otel.uninstrument()


def test_uninstrument_ends_it(spans, reranker):
    """No further span is made, and none is lost; it may be called at any time."""
    reranker.rank(QUERY, PASSAGES)
    otel.uninstrument()
    otel.uninstrument()
    reranker.rank(QUERY, PASSAGES)
    assert len(spans.all()) == 1


@pytest.mark.parametrize(
    ("group", "variable", "query"),
    [
        ("openinference_instrumentor", "", QUERY),
        ("opentelemetry_instrumentor", "", "__REDACTED__"),
        ("opentelemetry_instrumentor", "true", QUERY),
    ],
)
def test_tools_that_instrument_what_is_installed_find_ours(spans, monkeypatch, reranker, group, variable, query):
    """Phoenix' `auto_instrument` shows texts, as all of OpenInference does; the other tool shows none by itself."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", variable)
    otel.uninstrument()
    (entry_point,) = entry_points(group=group, name="marcorank")
    instrumentor = entry_point.load()()
    instrumentor.instrument(tracer_provider=spans.provider, skip_dep_check=True)
    reranker.rank(QUERY, PASSAGES)
    assert spans.one().attributes["reranker.query"] == query
    instrumentor.uninstrument()
    reranker.rank(QUERY, PASSAGES)
    assert len(spans.all()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tracer_provider": "phoenix"}, "`tracer_provider` is 'phoenix'; expected a TracerProvider of OpenTelemetry"),
        ({"capture_texts": "no"}, "`capture_texts` is 'no'; expected one of True, False"),
        ({"capture_metadata": None}, "`capture_metadata` is None; expected one of True, False"),
        ({"max_text_chars": 0}, "`max_text_chars` is 0; expected a whole number of at least 1"),
    ],
)
def test_arguments_are_checked(arguments, message):
    """A wrong argument is an error at once."""
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        otel.instrument(**arguments)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_makes_its_own_spans():
    """It goes on under the span of its parent."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")


FORK = """
import os, signal
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from marcorank import Reranker, otel
from marcorank.testing import WordOverlapScorer
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
otel.instrument(provider)
reranker = Reranker(WordOverlapScorer(), timeout_s=60)
with provider.get_tracer("parent").start_as_current_span("outer") as outer:
    reranker.rank("red", ["red"])
    child = os.fork()
    if child == 0:
        signal.alarm(600)
        reranker.rank("pear", ["pear"])
        _, span = exporter.get_finished_spans()
        same = span.parent.span_id == outer.context.span_id and span.attributes["reranker.query"] == "pear"
        os._exit(0 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert [span.name for span in exporter.get_finished_spans()] == ["Reranker.rank", "outer"]
"""


def test_nothing_of_opentelemetry_is_imported_unless_asked_for():
    """A ranking without `marcorank.otel` imports none of it; without the packages, the error says what to install."""
    code = (
        "import sys\n"
        "from marcorank import MissingExtraError, Reranker\n"
        "from marcorank.testing import WordOverlapScorer\n"
        "Reranker(WordOverlapScorer()).rank('red', ['red'])\n"
        "assert not {'opentelemetry', 'openinference'} & {name.split('.')[0] for name in sys.modules}\n"
        "sys.modules['opentelemetry'] = None\n"
        "try:\n"
        "    import marcorank.otel\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)  # noqa: S603
    assert done.stdout.strip() == "`marcorank.otel` needs opentelemetry-api: pip install 'marcorank[otel]'"


def test_a_tool_that_instruments_every_program_imports_little():
    """Programs that rank nothing pay for no numpy and no event loop."""
    code = (
        "import sys\n"
        "from importlib.metadata import entry_points\n"
        "for group in ('openinference_instrumentor', 'opentelemetry_instrumentor'):\n"
        "    (found,) = entry_points(group=group, name='marcorank')\n"
        "    found.load()().instrument()\n"
        "assert not {'numpy', 'asyncio', 'marcorank.otel'} & set(sys.modules)\n"
        "from marcorank import Reranker\n"
        "from marcorank.testing import WordOverlapScorer\n"
        "Reranker(WordOverlapScorer()).rank('red', ['red'])\n"
        "print('marcorank.otel' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)  # noqa: S603
    assert done.stdout.strip() == "True"


@pytest.fixture
def instrumentors(spans):
    """The instrumentors of OpenInference for both frameworks, beside ours."""
    both = (LangChainInstrumentor(), LlamaIndexInstrumentor())
    for one in both:
        one.instrument(tracer_provider=spans.provider)
    yield
    for one in both:
        one.uninstrument()


def test_no_ranking_is_shown_twice(spans, instrumentors, adapter):
    """Beside their instrumentors there is still one RERANKER span, with the documents and with what we add to it."""
    adapter()
    (span,) = spans.rerankers()
    assert [one["id"] for one in documents(span, "input")] == ["pear", "apple"]
    assert [(one["id"], one["score"]) for one in documents(span, "output")] == [("apple", 5.0)]
    assert (span.attributes["marcorank.outcome"], span.attributes["marcorank.candidates"]) == ("ranked", 2)
    if span.instrumentation_scope.name != "marcorank":
        assert "gen_ai.operation.name" not in span.attributes


def test_the_span_lies_below_that_of_the_langchain_run(spans, instrumentors):
    """Their instrumentor makes no span the current one, but ours finds the one of its run."""
    rerank = langchain.MarcoRerank(reranker=WordOverlapScorer())
    step = RunnableLambda(lambda query: rerank.compress_documents(DOCUMENTS, query), name="chain")
    step.invoke(QUERY)
    names = {span.context.span_id: span.name for span in spans.all()}
    assert {names[parent_of(span)]: span.name for span in spans.all() if span.parent} == {
        "MarcoRerank": "Reranker.rank",
        "chain": "MarcoRerank",
    }


def test_a_failure_beside_the_instrumentors_ends_all_spans(spans, instrumentors, adapter):
    """Each of the spans has an error status."""
    with pytest.raises(ScoreError, match="no memory"):
        adapter(Failing())
    assert {span.status.status_code for span in spans.all()} == {StatusCode.ERROR}
    assert spans.rerankers()[0].attributes["marcorank.outcome"] == "error"
