"""What LlamaIndex's two event systems hear of a reranking: a start and an end, whatever happens."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import Field

from marcorank import InvalidInputError, ScoreError
from marcorank.llama_index import MarcoRerank
from marcorank.testing import WordOverlapScorer
from patience import PATIENCE_S

QUERY = "red apple"


class EventRecorder(BaseEventHandler):
    """Keeps the events of reranking."""

    heard: list[Any] = Field(default_factory=list)

    def handle(self, event, **kwargs):
        if isinstance(event, (ReRankStartEvent, ReRankEndEvent)):
            self.heard.append(event)


class FailingScorer:
    """Fails on purpose."""

    def __init__(self):
        self.error = RuntimeError("the engine broke")

    def score(self, query, passages):
        raise self.error


class HeldScorer:
    """Answers when it is let go."""

    def __init__(self):
        self.asked: list[str] = []
        self.started = threading.Event()
        self.released = threading.Event()

    def score(self, query, passages):
        self.asked.append(query)
        self.started.set()
        if not self.released.wait(PATIENCE_S):
            raise TimeoutError
        return [0.0] * len(passages)


@pytest.fixture
def root():
    return get_dispatcher()


@pytest.fixture
def events(root, monkeypatch) -> list[Any]:
    recorder = EventRecorder()
    monkeypatch.setattr(root, "event_handlers", [*root.event_handlers, recorder])
    return recorder.heard


@pytest.fixture
def legacy() -> LlamaDebugHandler:
    return LlamaDebugHandler(print_trace_on_end=False)


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in ("pear", "red apple", "red")]


async def rerank_by(way, rerank, *args, **kwargs):
    """Call the sync or the async method."""
    if way == "sync":
        return rerank.postprocess_nodes(*args, **kwargs)
    return await rerank.apostprocess_nodes(*args, **kwargs)


both_ways = pytest.mark.parametrize("way", ["sync", "async"])


@both_ways
@pytest.mark.parametrize(("top_n", "told"), [(2, 2), (None, 3)])
async def test_events_tell_what_went_in_and_what_came_out(events, legacy, nodes, way, top_n, told):
    """Both systems hear the nodes, the query, the model and top_n, then the new nodes."""
    rerank = MarcoRerank(reranker=WordOverlapScorer(), top_n=top_n, callback_manager=CallbackManager([legacy]))
    found = await rerank_by(way, rerank, nodes, QueryBundle(QUERY))
    start, end = events
    assert isinstance(start, ReRankStartEvent)
    assert (start.query, start.nodes) == (QueryBundle(QUERY), nodes)
    assert (start.top_n, start.model_name) == (told, "word-overlap")
    assert isinstance(end, ReRankEndEvent)
    assert end.nodes == found
    assert len(found) == told
    assert start.span_id == end.span_id is not None
    ((first, last),) = legacy.get_event_pairs(CBEventType.RERANKING)
    assert first.payload == {
        EventPayload.NODES: nodes,
        EventPayload.MODEL_NAME: "word-overlap",
        EventPayload.QUERY_STR: QUERY,
        EventPayload.TOP_K: told,
    }
    assert last.payload == {EventPayload.NODES: found}


@both_ways
async def test_events_show_the_options_that_are_on(events, legacy, nodes, way):
    """Both systems, with which near-duplicates were left out."""
    rerank = MarcoRerank(
        reranker=WordOverlapScorer(),
        skim=WordOverlapScorer(),
        blend=0.3,
        max_similarity=0.8,
        callback_manager=CallbackManager([legacy]),
    )
    await rerank_by(way, rerank, [*nodes, NodeWithScore(node=TextNode(text="Red  apple"))], QueryBundle(QUERY))
    start, end = events
    options = {"skim": "word-overlap", "skim_keep": 30, "blend": 0.3, "max_similarity": 0.8}
    skipped = {"skipped": [{"index": 3, "similar_to": 1, "similarity": 1.0}]}
    assert start.tags == options
    assert end.tags == skipped
    ((first, last),) = legacy.get_event_pairs(CBEventType.RERANKING)
    assert first.payload[EventPayload.ADDITIONAL_KWARGS] == options
    assert last.payload[EventPayload.ADDITIONAL_KWARGS] == skipped


@both_ways
@pytest.mark.parametrize("query", [{}, {"query_str": QUERY}])
async def test_an_empty_list_has_a_start_and_an_end(events, legacy, way, query):
    """No nodes are no reason to leave an event open."""
    rerank = MarcoRerank(reranker=WordOverlapScorer(), callback_manager=CallbackManager([legacy]))
    assert await rerank_by(way, rerank, [], **query) == []
    assert [type(event) for event in events] == [ReRankStartEvent, ReRankEndEvent]
    ((_, last),) = legacy.get_event_pairs(CBEventType.RERANKING)
    assert last.payload == {EventPayload.NODES: []}


@both_ways
async def test_an_error_names_its_cause_and_ends_the_events(events, legacy, nodes, way):
    """The scorer's own exception is the cause; the end says that no node came out, and the old system why."""
    scorer = FailingScorer()
    rerank = MarcoRerank(reranker=scorer, callback_manager=CallbackManager([legacy]))
    with pytest.raises(ScoreError, match="raised RuntimeError: the engine broke") as raised:
        await rerank_by(way, rerank, nodes, query_str=QUERY)
    assert raised.value.__cause__ is scorer.error
    assert [type(event) for event in events] == [ReRankStartEvent, ReRankEndEvent]
    assert events[1].nodes == []
    ((_, last),) = legacy.get_event_pairs(CBEventType.RERANKING)
    assert last.payload == {EventPayload.EXCEPTION: raised.value}


@both_ways
async def test_a_wrong_argument_starts_nothing(events, legacy, nodes, way):
    """Nodes without a query, or what is no node, is found before any event."""
    rerank = MarcoRerank(reranker=WordOverlapScorer(), callback_manager=CallbackManager([legacy]))
    with pytest.raises(InvalidInputError, match="There is no query"):
        await rerank_by(way, rerank, nodes)
    with pytest.raises(InvalidInputError, match=r"`nodes\[0\]` is a NoneType"):
        await rerank_by(way, rerank, [None], query_str=QUERY)
    assert events == []
    assert legacy.get_events() == []


async def test_a_cancelled_task_ends_its_events_and_its_work(events, legacy, nodes, monkeypatch):
    """A task that is cancelled while it waits has an end event, and the model never sees its query."""
    monkeypatch.setattr("marcorank.reranker._THREADS_FOR_A_SCORER", 1)
    scorer = HeldScorer()
    rerank = MarcoRerank(reranker=scorer, callback_manager=CallbackManager([legacy]))
    first = asyncio.create_task(rerank.apostprocess_nodes(nodes, query_str="first"))
    assert await asyncio.to_thread(scorer.started.wait, PATIENCE_S)
    second = asyncio.create_task(rerank.apostprocess_nodes(nodes, query_str="second"))
    third = asyncio.create_task(rerank.apostprocess_nodes(nodes, query_str="third"))
    await asyncio.sleep(0)  # both tasks run until they wait for the model
    assert [type(event) for event in events] == [ReRankStartEvent] * 3
    second.cancel()
    with pytest.raises(asyncio.CancelledError, match=r"^$"):
        await second
    assert events[-1].nodes == []
    assert isinstance(events[-1], ReRankEndEvent)
    scorer.released.set()
    assert len(await first) == len(await third) == 3
    assert scorer.asked == ["first", "third"]
    assert [type(event) for event in events].count(ReRankEndEvent) == 3
    assert len(legacy.get_event_pairs(CBEventType.RERANKING)) == 3
    assert all(len(pair) == 2 for pair in legacy.get_event_pairs(CBEventType.RERANKING))


@both_ways
async def test_a_failing_callback_handler_leaves_no_event_open(events, nodes, way):
    """A handler of the user that raises is the user's error; the other system still hears of an end."""

    class Broken(LlamaDebugHandler):
        def on_event_end(self, *args, **kwargs):
            raise ValueError("the handler broke")

    manager = CallbackManager([Broken(print_trace_on_end=False)])
    with pytest.raises(ValueError, match="the handler broke"):
        await rerank_by(way, MarcoRerank(reranker=WordOverlapScorer(), callback_manager=manager), nodes, None, QUERY)
    assert [type(event) for event in events] == [ReRankStartEvent, ReRankEndEvent]


@both_ways
async def test_each_call_is_a_span(root, monkeypatch, nodes, way):
    """A call is one span of this class, dropped with its error where there is one."""
    handler = SimpleSpanHandler()
    monkeypatch.setattr(root, "span_handlers", [*root.span_handlers, handler])
    await rerank_by(way, MarcoRerank(reranker=WordOverlapScorer()), nodes, query_str=QUERY)
    method = "_postprocess_nodes" if way == "sync" else "_apostprocess_nodes"
    (span,) = handler.completed_spans
    assert span.id_.startswith(f"MarcoRerank.{method}-")

    class Short:
        def score(self, query, passages):
            return [0.0]

    with pytest.raises(ScoreError, match="expected one float per passage"):
        await rerank_by(way, MarcoRerank(reranker=Short()), nodes, query_str=QUERY)
    (dropped,) = handler.dropped_spans
    assert dropped.id_.startswith(f"MarcoRerank.{method}-")
    assert handler.open_spans == {}
