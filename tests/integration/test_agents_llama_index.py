"""Agents, workflows and chat engines of LlamaIndex that rerank; only the language model is scripted."""

from __future__ import annotations

import asyncio
import json
import warnings
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse, ToolCallBlock
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockFunctionCallingLLM, MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool, QueryEngineTool, RetrieverTool
from llama_index.core.workflow import (
    Context,
    Event,
    JsonPickleSerializer,
    JsonSerializer,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from pydantic import Field

from gated_scorer import GatedScorer
from marcorank.llama_index import MarcoRerank
from marcorank.testing import WordOverlapScorer
from patience import PATIENCE_S

QUERY = "red apple"
TEXTS = ["blue car", "red car", "red apple"]


def scripted(*calls: ToolCallBlock) -> MockFunctionCallingLLM:
    """Return a language model that calls tools in turn, then answers."""

    def reply(messages: Any, **kwargs: Any) -> ChatMessage:
        turn = sum(message.role == "tool" for message in messages)
        if turn < len(calls):
            return ChatMessage(role="assistant", blocks=[calls[turn]])
        return ChatMessage("The apple.", role="assistant")

    return MockFunctionCallingLLM(response_generator=reply)


class Spy(WordOverlapScorer):
    """Keeps the queries that it scores."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[str] = []

    def score(self, query, passages):
        self.queries.append(query)
        return super().score(query, passages)


def call(query: str, name: str = "search", **more: Any) -> ToolCallBlock:
    return ToolCallBlock(tool_call_id="1", tool_name=name, tool_kwargs={"input": query, **more})


@pytest.fixture(scope="module")
def index():
    nodes = [TextNode(text=text, id_=text, metadata={"page": page}) for page, text in enumerate(TEXTS)]
    return VectorStoreIndex(nodes, embed_model=MockEmbedding(8))


def rerank_of(scorer=None, **settings) -> MarcoRerank:
    return MarcoRerank(reranker=scorer or WordOverlapScorer(), **{"top_n": 2, "metadata_mode": "none", **settings})


def search_tool(index, rerank) -> RetrieverTool:
    """Return a tool that finds texts."""
    return RetrieverTool.from_defaults(
        index.as_retriever(similarity_top_k=3), node_postprocessors=[rerank], name="search", description="Fruit."
    )


def ask_tool(index, rerank) -> QueryEngineTool:
    """Return a tool that answers."""
    engine = index.as_query_engine(similarity_top_k=3, node_postprocessors=[rerank], llm=MockLLM())
    return QueryEngineTool.from_defaults(engine, name="ask", description="Fruit.")


def function_agent(llm, tools):
    return FunctionAgent(name="agent", tools=tools, llm=llm)


def agent_workflow(llm, tools):
    return AgentWorkflow(agents=[FunctionAgent(name="agent", tools=tools, llm=llm, streaming=False)])


AGENTS = pytest.mark.parametrize("agent_of", [function_agent, agent_workflow])


async def results(agent, **kwargs) -> list[ToolCallResult]:
    """Run an agent to its answer, and return what its tools gave."""
    handler = agent.run("Which fruit is red?", **kwargs)
    found = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    assert str(await handler) == "The apple."
    return found


def scores(nodes) -> dict[str, float]:
    return {node.node_id: node.score for node in nodes}


BEST = {"red apple": 5.0, "red car": 0.0}


@AGENTS
async def test_an_agent_reads_the_best_texts_and_keeps_their_scores(index, agent_of):
    """The content of a result is what the model reads, its raw output has the nodes or the response with them."""
    rerank = rerank_of()
    agent = agent_of(scripted(call(QUERY), call(QUERY, "ask")), [search_tool(index, rerank), ask_tool(index, rerank)])
    searched, asked = await results(agent)
    assert searched.tool_output.content.index("red apple") < searched.tool_output.content.index("red car")
    assert "blue" not in searched.tool_output.content + asked.tool_output.content
    assert scores(searched.tool_output.raw_output) == scores(asked.tool_output.raw_output.source_nodes) == BEST
    for result in (searched, asked):
        assert not result.tool_output.is_error
        json.loads(result.model_dump_json())


@AGENTS
async def test_the_query_is_what_the_model_asks(index, agent_of):
    """The tools of LlamaIndex put the name of the argument before it, which would be scored as a part of the query."""
    spy = Spy()
    rerank = rerank_of(spy)
    tools = [search_tool(index, rerank), ask_tool(index, rerank)]
    queries = [QUERY, "red is\nthe colour, input is red\n"]
    await results(agent_of(scripted(*(call(query, tool) for query in queries for tool in ("search", "ask"))), tools))
    assert spy.queries == [query for query in queries for _ in tools]
    with_schema = search_tool(index, rerank)
    with_schema.call(query=QUERY)
    with_schema.call(QUERY)
    assert [query.strip() for query in spy.queries[4:]] == [QUERY] * 2
    for query in ("the input is red", "\nwhat is red\n", "input is red"):
        rerank.postprocess_nodes(index.as_retriever().retrieve(QUERY), query_str=query)
        assert spy.queries[-1] == query


async def test_the_bundled_model_scores_a_tool_as_a_query():
    """With a real model the scores of a tool are those of the question."""
    nodes = [TextNode(text=text) for text in ("open() returns a file object", "a list is mutable")]
    index = VectorStoreIndex(nodes, embed_model=MockEmbedding(8))
    rerank = MarcoRerank(model="bundled")
    found = await search_tool(index, rerank).acall(input="how do I open a file?")
    engine = index.as_query_engine(node_postprocessors=[rerank], llm=MockLLM())
    direct = engine.query("how do I open a file?").source_nodes
    assert [node.score for node in found.raw_output] == pytest.approx([node.score for node in direct], abs=1e-4)


@AGENTS
async def test_a_search_for_nothing_is_an_error_that_the_model_reads(index, agent_of):
    """The agent goes on, and the model can ask again; an error of the reranker is reported likewise."""
    tools = [search_tool(index, rerank_of())]
    blank, answered = await results(agent_of(scripted(call(" "), call(QUERY)), tools))
    assert (blank.tool_output.is_error, answered.tool_output.is_error) == (True, False)
    assert blank.tool_output.content == "`query` is blank (' '); expected the text to search for."
    assert scores(answered.tool_output.raw_output) == BEST


@AGENTS
async def test_a_search_without_results_is_empty(index, agent_of):
    """No node passes the threshold, and the agent goes on."""
    (result,) = await results(agent_of(scripted(call(QUERY)), [search_tool(index, rerank_of(score_threshold=6.0))]))
    assert (result.tool_output.is_error, result.tool_output.raw_output) == (False, [])


async def test_a_very_long_query_is_ranked(index):
    """The model truncates what an agent made too long."""
    found = await search_tool(index, MarcoRerank(model="bundled", max_query_tokens=8)).acall(input="red apple " * 5000)
    assert found.raw_output[0].node_id == "red apple"


@AGENTS
async def test_the_context_of_an_agent_is_kept_as_json(index, agent_of):
    """After a search the state goes through the serialisers of workflows, and the conversation goes on."""
    agent = agent_of(scripted(call(QUERY)), [search_tool(index, rerank_of(keep_retrieval_score=True))])
    for serializer in (JsonSerializer(), JsonPickleSerializer()):
        context = Context(agent)
        await results(agent, ctx=context)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the memory, which is the caller's own, is not part of it
            kept = json.dumps(context.to_dict(serializer=serializer))
        restored = Context.from_dict(agent, json.loads(kept), serializer=serializer)
        assert not await results(
            agent, ctx=restored, memory=ChatMemoryBuffer.from_defaults(chat_history=[tool_message()])
        )


def tool_message() -> ChatMessage:
    return ChatMessage("red apple", role="tool")


@AGENTS
async def test_an_agent_leaves_the_event_loop_free(index, agent_of):
    """While the model ranks, the event loop runs on."""
    scorer = GatedScorer()
    tools = [search_tool(index, rerank_of(scorer)), ask_tool(index, rerank_of(scorer))]
    tasks = [asyncio.create_task(results(agent_of(scripted(call(QUERY, name)), tools))) for name in ("search", "ask")]
    assert await asyncio.to_thread(scorer.started.wait, PATIENCE_S)
    assert not any(task.done() for task in tasks)
    scorer.gate.set()
    for found in await asyncio.gather(*tasks):
        assert not found[0].tool_output.is_error


class Events(BaseEventHandler):
    seen: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **kwargs: Any) -> None:
        if isinstance(event, (ReRankStartEvent, ReRankEndEvent)):
            self.seen.append(event)


@AGENTS
async def test_the_rerank_is_traced_inside_of_the_agent(index, agent_of):
    """Its span stands below that of the agent's run, and its events are in pairs in that span."""
    spans, events = SimpleSpanHandler(), Events()
    root = get_dispatcher()
    root.add_span_handler(spans)
    root.add_event_handler(events)
    try:
        await results(agent_of(scripted(call(QUERY), call(" ")), [search_tool(index, rerank_of())]))
    finally:
        root.span_handlers.remove(spans)
        root.event_handlers.remove(events)
    parents = {span.id_: span.parent_id for span in spans.completed_spans + spans.dropped_spans}
    reranks = [id_ for id_ in parents if "MarcoRerank" in id_]
    assert reranks
    for id_ in reranks:
        path = [id_]
        while parents.get(path[-1]) is not None:
            path.append(parents[path[-1]])
        above = [id_.split("-")[0] for id_ in path[1:]]
        assert above[0] == "RetrieverTool.acall"
        assert above[-1].endswith(".run")
    assert [type(event) for event in events.seen] == [ReRankStartEvent, ReRankEndEvent] * 2
    assert {event.span_id for event in events.seen} <= set(reranks)


async def test_a_function_may_take_the_number_of_results(index):
    """A copy for one call shares the model, and a number that is not allowed is an error that the model reads."""
    rerank, retriever = rerank_of(), index.as_retriever(similarity_top_k=3)

    async def search(query: str, top_n: int) -> str:
        """Search."""
        best = rerank.model_copy(update={"top_n": top_n})
        return "\n".join(
            node.text for node in await best.apostprocess_nodes(await retriever.aretrieve(query), query_str=query)
        )

    calls = [
        ToolCallBlock(tool_call_id="1", tool_name="search", tool_kwargs={"query": QUERY, "top_n": top_n})
        for top_n in (1, 2, 0)
    ]
    found = await results(function_agent(scripted(*calls), [FunctionTool.from_defaults(async_fn=search)]))
    assert [each.tool_output.content for each in found[:2]] == ["red apple", "red apple\nred car"]
    assert found[2].tool_output.is_error
    assert "`top_n` is 0; expected" in found[2].tool_output.content


class Retrieved(Event):
    nodes: list[NodeWithScore]
    query: str


class Reranking(Workflow):
    """Retrieves in one step and reranks in the next."""

    def __init__(self, index: Any, rerank: MarcoRerank) -> None:
        super().__init__(timeout=PATIENCE_S)
        self.retriever, self.rerank = index.as_retriever(similarity_top_k=3), rerank

    @step
    async def retrieve(self, event: StartEvent) -> Retrieved:
        return Retrieved(nodes=await self.retriever.aretrieve(event.query), query=event.query)

    @step
    async def rank(self, context: Context, event: Retrieved) -> StopEvent:
        best = await self.rerank.apostprocess_nodes(event.nodes, query_str=event.query)
        await context.store.set("best", [found.node for found in best])
        return StopEvent(result=best)


async def test_a_step_of_a_workflow_reranks(index):
    """Nodes travel in events and in the state of the context, which is kept with them."""
    workflow = Reranking(index, rerank_of(keep_retrieval_score=True))
    context = Context(workflow)
    best = await workflow.run(query=QUERY, ctx=context)
    assert scores(best) == BEST
    assert all(isinstance(node.metadata["retrieval_score"], float) for node in best)
    for serializer in (JsonSerializer(), JsonPickleSerializer()):
        kept = json.loads(json.dumps(context.to_dict(serializer=serializer)))
        restored = await Context.from_dict(workflow, kept, serializer=serializer).store.get("best")
        assert restored == [found.node for found in best]


async def test_an_agent_searches_a_fusion(index):
    """The reranker comes after the fusion, in the tool: each node once, with the scores of the reranker."""
    fusion = QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=2), index.as_retriever(similarity_top_k=3)],
        similarity_top_k=20,
        num_queries=1,
        llm=MockLLM(),
    )
    tool = RetrieverTool.from_defaults(fusion, node_postprocessors=[rerank_of()], name="search", description="Fruit.")
    (found,) = await results(function_agent(scripted(call(QUERY)), [tool]))
    assert scores(found.tool_output.raw_output) == BEST


async def test_a_chat_engine_with_a_memory_reranks_for_the_condensed_question(index):
    """Every turn, whether it is asked for at once, awaited or streamed, ranks for the question without its history."""
    spy = Spy()

    class Condensing(MockLLM):
        def complete(self, prompt, formatted=False, **kwargs):
            return CompletionResponse(text="red apple alone")

    def engine():
        return index.as_chat_engine(
            chat_mode="condense_plus_context",
            llm=Condensing(),
            memory=ChatMemoryBuffer.from_defaults(),
            similarity_top_k=3,
            node_postprocessors=[rerank_of(spy)],
        )

    sync, streamed, awaited, astreamed = engine(), engine(), engine(), engine()
    for question in (QUERY, "and alone?"):
        turns = [sync.chat(question), streamed.stream_chat(question)]
        "".join(turns[1].response_gen)
        turns += [await awaited.achat(question), await astreamed.astream_chat(question)]
        "".join([token async for token in turns[3].async_response_gen()])
        for turn in turns:
            assert list(scores(turn.source_nodes)) == ["red apple", "red car"]
    assert spy.queries == [QUERY] * 4 + ["red apple alone"] * 4
