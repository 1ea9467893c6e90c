"""Agents of LangChain and LangGraph that search with a reranking retriever; only the chat model is scripted."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
from langchain_classic.retrievers import EnsembleRetriever, MultiQueryRetriever, ParentDocumentRetriever
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel
from langchain_core.stores import InMemoryStore
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import CharacterTextSplitter
from pydantic import BaseModel, Field

from collector import Collector
from gated_scorer import GatedScorer
from marcorank import InvalidInputError, Reranker
from marcorank.langchain import MarcoRerank, RerankRetriever
from marcorank.testing import WordOverlapScorer

pytest.importorskip("langgraph", reason="needs langgraph")

from langgraph.checkpoint.memory import MemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

QUERY = "red apple"
TEXTS = ["blue car", "red car", "red apple"]
BEST = {"red apple": 5.0, "red car": 0.0}
QUESTION = {"messages": [("user", "Which fruit is red?")]}


class Scripted(BaseChatModel):
    """Replies to a conversation with the message of the script that comes next in it."""

    script: list[AIMessage]
    _llm_type = "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Scripted:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        replies = sum(isinstance(message, AIMessage) for message in messages)
        return ChatResult(generations=[ChatGeneration(message=self.script[replies])])


class Texts(BaseRetriever):
    """Finds the same documents for every query, or as many of them as a call says."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any, k: int = 3) -> list[Document]:
        found = [Document(page_content=text, metadata={"page": page}, id=text) for page, text in enumerate(TEXTS)]
        return found[:k]


def retriever_of(base=None, scorer=None, **settings) -> RerankRetriever:
    return RerankRetriever(
        base_retriever=base or Texts(), reranker=MarcoRerank(reranker=scorer or WordOverlapScorer(), **settings)
    )


def searches(*arguments: dict[str, Any] | str) -> Scripted:
    """Return a chat model that searches with each of the queries, or of the arguments, and then answers."""
    calls = [{"query": each} if isinstance(each, str) else each for each in arguments]
    messages = [
        AIMessage("", tool_calls=[{"name": "search", "args": args, "id": f"call {n}"}]) for n, args in enumerate(calls)
    ]
    return Scripted(script=[*messages, AIMessage("The apple.")])


def ready_agent(model, tool, **settings):
    """Make the agent of LangChain, which needs Python 3.11."""
    agents = pytest.importorskip("langchain.agents")
    return agents.create_agent(model, [tool], **settings)


def graph_agent(model, tool, **settings):
    """Make the same loop as a graph of one's own."""
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([tool]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile(**settings)


def own_tool(retriever):
    return retriever.as_tool(description="Fruit and cars.")


def core_tool(retriever):
    return create_retriever_tool(retriever, "search", "Fruit and cars.", response_format="content_and_artifact")


AGENTS = pytest.mark.parametrize("agent_of", [ready_agent, graph_agent])
TOOLS = pytest.mark.parametrize("tool_of", [own_tool, core_tool])


def tool_messages(state) -> list[ToolMessage]:
    assert state["messages"][-1].content == "The apple."
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


def scores(documents) -> dict[str, float]:
    return {document.page_content: document.metadata["relevance_score"] for document in documents}


def names(run) -> list[str]:
    return [run.name, *(name for child in run.child_runs for name in names(child))]


def found(root, name):
    """Return the runs of this name in a tree."""
    return [root] * (root.name == name) + [run for child in root.child_runs for run in found(child, name)]


@TOOLS
@AGENTS
async def test_an_agent_reads_the_best_texts_and_keeps_their_scores(agent_of, tool_of):
    """The content of the message is what the model reads, the artifact has the documents: sync, async and streamed."""
    retriever = retriever_of(top_n=2)

    def agent():
        return agent_of(searches(QUERY), tool_of(retriever))

    states = [agent().invoke(QUESTION), await agent().ainvoke(QUESTION)]
    messages = [message for state in states for message in tool_messages(state)]
    for update in agent().stream(QUESTION, stream_mode="updates"):
        messages += update.get("tools", {}).get("messages", [])
    async for update in agent().astream(QUESTION, stream_mode="updates"):
        messages += update.get("tools", {}).get("messages", [])
    messages += [
        message for message, _ in agent().stream(QUESTION, stream_mode="messages") if isinstance(message, ToolMessage)
    ]
    assert len(messages) == 5
    for message in messages:
        assert message.content == "red apple\n\nred car"
        assert (message.name, message.status) == ("search", "success")
        assert scores(message.artifact) == BEST
        assert [document.id for document in message.artifact] == ["red apple", "red car"]


@TOOLS
@AGENTS
async def test_the_rerank_is_traced_inside_of_the_agent(agent_of, tool_of):
    """Below the run of the agent, its tools and the tool stand the retriever, the first stage and the reranker."""
    tracer = Collector()
    retriever = retriever_of(top_n=2)
    agent_of(searches(QUERY), tool_of(retriever)).invoke(QUESTION, {"callbacks": [tracer]})
    await agent_of(searches(QUERY), tool_of(retriever)).ainvoke(QUESTION, {"callbacks": [tracer]})
    assert len(tracer.roots) == 2
    for root in tracer.roots:
        (tool,) = found(root, "search")
        assert names(tool) == ["search", "RerankRetriever", "Texts", "MarcoRerank"]
        (run,) = found(root, "MarcoRerank")
        assert run.inputs["query"] == QUERY
        json.dumps(dumpd({"inputs": run.inputs, "outputs": run.outputs}))
    streamed = [
        event["name"]
        async for event in agent_of(searches(QUERY), tool_of(retriever)).astream_events(QUESTION, version="v2")
        if event["event"] == "on_retriever_end"
    ]
    assert streamed == ["Texts", "RerankRetriever"]


@TOOLS
@AGENTS
def test_the_state_goes_through_a_checkpointer(agent_of, tool_of):
    """With all that a reranker writes into the metadata, through LangGraph's serialisation and through JSON."""
    rerank = MarcoRerank(
        model_name="bundled", long_passages="windows", max_length=48, max_query_tokens=8, blend=0.2, top_n=2
    )
    long = [Document(page_content="red apple \u2620 " * 40, metadata={"score": 0.7}), *Texts().invoke("")]
    base = RunnableLambda(lambda query: long)
    agent = agent_of(
        searches("red " * 40, "apple"),
        tool_of(RerankRetriever(base_retriever=base, reranker=rerank)),
        checkpointer=MemorySaver(),
    )
    thread = {"configurable": {"thread_id": "1"}}
    state = agent.invoke(QUESTION, thread)
    first, _ = tool_messages(state)
    assert {"best_start", "unknown_tokens", "query_truncated", "relevance_score", "blended_score"} <= {
        key for document in first.artifact for key in document.metadata
    }
    kept = agent.get_state(thread).values
    # LangGraph keeps an artifact as plain data.
    plain = [document.model_dump() for document in first.artifact]
    assert tool_messages(kept)[0].artifact in (plain, first.artifact)
    serde = JsonPlusSerializer()
    assert serde.loads_typed(serde.dumps_typed(first.artifact)) == first.artifact
    json.dumps(dumpd(state))
    # What comes back can be ranked again.
    assert rerank.rerank(tool_messages(kept)[0].artifact, "apple")


@AGENTS
async def test_a_search_for_nothing_is_an_error_that_the_model_reads(agent_of):
    """The agent goes on, and the model can ask again; arguments of the wrong type are reported likewise."""
    tool = own_tool(retriever_of())

    def agent():
        return agent_of(searches("", " \u200b", {}, {"query": None}, QUERY), tool)

    for state in (agent().invoke(QUESTION), await agent().ainvoke(QUESTION)):
        *refused, answered = tool_messages(state)
        assert [message.status for message in refused] == ["error"] * 4
        assert refused[0].content == "`query` is blank (''); expected the text to search for."
        assert all("query" in message.content and message.artifact is None for message in refused)
        assert (answered.status, scores(answered.artifact)["red apple"]) == ("success", 5.0)


async def test_other_errors_are_raised():
    """A retriever or a model that fails is not something that the chat model can mend."""

    def fail(query):
        raise InvalidInputError("no index")

    class Broken:
        def score(self, query, passages):
            raise RuntimeError("no memory")

    for retriever, message in (
        (retriever_of(RunnableLambda(fail)), "no index"),
        (retriever_of(scorer=Broken()), "no memory"),
    ):
        agent = graph_agent(searches(QUERY), own_tool(retriever))
        with pytest.raises(Exception, match=message):
            agent.invoke(QUESTION)
        with pytest.raises(Exception, match=message):
            await agent.ainvoke(QUESTION)


async def test_a_search_without_results_says_so():
    """The model reads a sentence rather than nothing, and the artifact is empty."""
    nothing = RunnableLambda(lambda query: [])
    for retriever in (retriever_of(nothing), retriever_of(score_threshold=6.0)):
        tool = own_tool(retriever)
        for message in (
            *tool_messages(graph_agent(searches(QUERY), tool).invoke(QUESTION)),
            *tool_messages(await graph_agent(searches(QUERY), tool).ainvoke(QUESTION)),
        ):
            assert (message.content, message.artifact) == ("No relevant documents were found.", [])
            assert message.status == "success"


@AGENTS
async def test_a_model_may_search_several_times_at_once(agent_of):
    """Each call of a turn gets what it would get alone, in the order of the calls."""
    queries = ["red apple", "blue", "car", "red"] * 5
    calls = [{"name": "search", "args": {"query": query}, "id": f"call {n}"} for n, query in enumerate(queries)]
    tool = own_tool(retriever_of())
    agent = agent_of(Scripted(script=[AIMessage("", tool_calls=calls), AIMessage("The apple.")]), tool)
    alone = [tool.invoke({"query": query}) for query in queries]
    for state in (agent.invoke(QUESTION), await agent.ainvoke(QUESTION)):
        assert [message.content for message in tool_messages(state)] == alone


class Search(BaseModel):
    """The arguments of a search."""

    query: str = Field(description="what to look for")
    top_n: int = Field(default=1, description="number of texts")
    k: int = 3


@AGENTS
def test_the_model_may_say_how_many_results_it_wants(agent_of):
    """Arguments beside the query are those of a call of the retriever; bad ones are reported to the model."""
    calls = [{"query": QUERY}, {"query": QUERY, "top_n": 3}, {"query": QUERY, "top_n": 3, "k": 2}]
    wrong = [{"query": QUERY, "top_n": 0}, {"query": QUERY, "top_n": "many"}]
    tool = retriever_of(top_n=2).as_tool(Search)
    messages = tool_messages(agent_of(searches(*calls, *wrong), tool).invoke(QUESTION))
    assert [len(message.artifact) for message in messages[:3]] == [1, 3, 2]
    assert [message.status for message in messages[3:]] == ["error"] * 2
    assert "`top_n` is 0; expected a whole number of at least 1" in messages[3].content
    tool = retriever_of().as_tool(arg_types={"query": str, "top_n": int})
    messages = tool_messages(agent_of(searches({"query": QUERY, "top_n": 1}), tool).invoke(QUESTION))
    assert len(messages[0].artifact) == 1


async def test_what_a_model_leaves_out_is_left_to_the_retriever():
    """An optional argument without a value does not override the retriever, nor does one that is null."""

    class Optional(BaseModel):
        query: str
        top_n: int | None = None
        score_threshold: float | None = None
        k: int | None = None

    tool = retriever_of(top_n=2).as_tool(Optional)
    agent = graph_agent(searches(QUERY, {"query": QUERY, "top_n": None}, {"query": QUERY, "top_n": 1}), tool)
    for state in (agent.invoke(QUESTION), await agent.ainvoke(QUESTION)):
        assert [len(message.artifact) for message in tool_messages(state)] == [2, 2, 1]


async def test_what_the_reranker_cannot_do_is_an_error_that_the_model_reads():
    """A model that asks for more than `skim_keep` gets a message and may ask again."""
    skims = Reranker(WordOverlapScorer(), skim=WordOverlapScorer(), skim_keep=2)
    tool = retriever_of(scorer=skims, top_n=1).as_tool(arg_types={"query": str, "top_n": int})
    agent = graph_agent(searches({"query": QUERY, "top_n": 3}, {"query": QUERY, "top_n": 2}), tool)
    for state in (agent.invoke(QUESTION), await agent.ainvoke(QUESTION)):
        refused, answered = tool_messages(state)
        assert (refused.status, answered.status) == ("error", "success")
        assert "`top_n` is 3" in refused.content
        assert len(answered.artifact) == 2


async def test_a_prompt_shows_nothing_for_metadata_that_a_document_lacks():
    """The agent goes on whatever the metadata of a document are; what is not a template is refused at once."""
    prompt = PromptTemplate.from_template("[{page}|{relevance_score:.1f}|{author:>9}] {page_content}")
    for retriever, expected in (
        (retriever_of(top_n=1), "[2|5.0|] red apple"),
        (retriever_of(RunnableLambda(lambda query: [Document("red", metadata={"page": None})])), "[|0.0|] red"),
    ):
        tool = retriever.as_tool(document_prompt=prompt)
        assert tool.invoke(QUERY) == await tool.ainvoke(QUERY) == expected
    with pytest.raises(InvalidInputError, match=r"`document_prompt` is '\{page_content\}'; expected a template"):
        retriever_of().as_tool(document_prompt="{page_content}")


async def test_a_run_may_say_how_many_results_it_wants():
    """LangChain's configurable fields of a retriever work through the tool and the agent."""
    retriever = retriever_of().configurable_fields(top_n=ConfigurableField(id="top_n"))
    run = {"configurable": {"top_n": 1}}
    for state in (
        graph_agent(searches(QUERY), core_tool(retriever)).invoke(QUESTION, run),
        await graph_agent(searches(QUERY), core_tool(retriever)).ainvoke(QUESTION, run),
    ):
        assert scores(tool_messages(state)[0].artifact) == {"red apple": 5.0}


@TOOLS
@AGENTS
async def test_an_agent_leaves_the_event_loop_free(agent_of, tool_of):
    """While the model ranks, the event loop runs on, and cancelling frees the caller."""
    scorer = GatedScorer()
    tool = tool_of(retriever_of(scorer=scorer))
    tasks = [asyncio.create_task(agent_of(searches(QUERY), tool).ainvoke(QUESTION)) for _ in range(3)]
    assert await asyncio.to_thread(scorer.started.wait, 30)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError, match=r"^$"):
        await tasks[0]
    assert not tasks[1].done()
    scorer.gate.set()
    for state in await asyncio.gather(*tasks[1:]):
        assert scores(tool_messages(state)[0].artifact)["red apple"] == 5.0


class DictState(TypedDict):
    question: str
    documents: list[Document]


@dataclass
class DataclassState:
    query: str
    documents: list[Document]


class PydanticState(BaseModel):
    query: str
    documents: list[Document]


@pytest.mark.parametrize("schema", [DictState, DataclassState, PydanticState])
async def test_a_node_reranks_the_documents_of_the_state(schema):
    """Whatever the state of the graph is made of; the rerank is traced inside of the node, and the state is kept."""
    rerank = MarcoRerank(reranker=WordOverlapScorer(), top_n=2)
    graph = StateGraph(schema)
    graph.add_node("rerank", RunnableParallel(documents=rerank.as_runnable()))
    graph.add_edge(START, "rerank")
    compiled = graph.compile(checkpointer=MemorySaver())
    given = {"question" if schema is DictState else "query": QUERY, "documents": Texts().invoke("")}
    tracer = Collector()
    thread: Any = {"configurable": {"thread_id": "1"}, "callbacks": [tracer]}
    for state in (compiled.invoke(given, thread), await compiled.ainvoke(given, thread)):
        assert scores(state["documents"]) == BEST
        assert given["documents"] == Texts().invoke("")
    assert scores(compiled.get_state(thread).values["documents"]) == BEST
    assert [names(found(root, "rerank")[0])[-1] for root in tracer.roots] == ["MarcoRerank"] * 2
    assert [update["rerank"].keys() for update in compiled.stream(given, thread)] == [{"documents"}]


async def test_a_function_is_a_node_too():
    """Sync and async, without passing callbacks on."""
    rerank = MarcoRerank(reranker=WordOverlapScorer(), top_n=2)

    def node(state: DictState):
        return {"documents": rerank.compress_documents(state["documents"], state["question"])}

    graph = StateGraph(DictState)
    graph.add_node("rerank", node)
    graph.add_edge(START, "rerank")
    tracer = Collector()
    state = graph.compile().invoke({"question": QUERY, "documents": Texts().invoke("")}, {"callbacks": [tracer]})
    assert scores(state["documents"]) == BEST
    assert names(tracer.roots[0])[-1] == "MarcoRerank"


async def test_a_state_without_documents_is_refused():
    """The message names what is there."""
    step = MarcoRerank(reranker=WordOverlapScorer()).as_runnable()
    for state, shown in (
        ({"query": QUERY}, r"has the keys \['query'\]"),
        (Search(query=QUERY), "is a Search without `documents`"),
    ):
        with pytest.raises(InvalidInputError, match=f"The input {shown}; expected a dict or an object"):
            await step.ainvoke(state)


def parents(texts) -> ParentDocumentRetriever:
    """Return a retriever that searches the sentences of texts and finds the texts."""
    retriever = ParentDocumentRetriever(
        vectorstore=InMemoryVectorStore(DeterministicFakeEmbedding(size=8)),
        docstore=InMemoryStore(),
        child_splitter=CharacterTextSplitter(separator=".", chunk_size=20, chunk_overlap=0),
        search_kwargs={"k": 50},
    )
    retriever.add_documents([Document(page_content=text, metadata={"source": text[:5]}) for text in texts])
    return retriever


async def test_parents_are_reranked_as_a_whole():
    """In windows, and the message of the agent says which part of the parent was best."""
    filler = "The weather was fine that day. " * 40
    texts = [f"{filler}A pear is green. {filler}", f"{filler}The with statement closes a file. {filler}"]
    rerank = MarcoRerank(model_name="bundled", long_passages="windows", max_length=64, top_n=1)
    retriever = RerankRetriever(base_retriever=parents(texts), reranker=rerank)
    query = "How is a file closed?"
    for state in (
        graph_agent(searches(query), own_tool(retriever)).invoke(QUESTION),
        await graph_agent(searches(query), own_tool(retriever)).ainvoke(QUESTION),
    ):
        ((document,),) = (message.artifact for message in tool_messages(state))
        assert document.page_content.startswith("The weather")
        best = document.page_content[document.metadata["best_start"] : document.metadata["best_end"]]
        assert "closes a file" in best
        assert len(best) < 1000


async def test_an_agent_searches_several_retrievers_with_several_queries():
    """An ensemble inside of several queries inside of a reranker inside of a tool: each document once, in one trace."""
    ensemble = EnsembleRetriever(retrievers=[Texts(), parents(["green apple", "red apple"])])
    queries = MultiQueryRetriever.from_llm(ensemble, FakeListChatModel(responses=["red apple\ngreen apple"]))
    tool = own_tool(retriever_of(queries, top_n=None))
    tracer = Collector()
    for state in (
        graph_agent(searches(QUERY), tool).invoke(QUESTION, {"callbacks": [tracer]}),
        await graph_agent(searches(QUERY), tool).ainvoke(QUESTION, {"callbacks": [tracer]}),
    ):
        (message,) = tool_messages(state)
        assert scores(message.artifact).items() >= {"red apple": 5.0, "green apple": 0.0, "blue car": -5.0}.items()
    for root in tracer.roots:
        (run,) = found(root, "RerankRetriever")
        assert [child.name for child in run.child_runs] == ["MultiQueryRetriever", "MarcoRerank"]
        assert len(found(run, "EnsembleRetriever")) == 2
