"""A model that fails behind real retrievers and query engines: what documents, nodes, prompts and traces say."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent
from llama_index.core.llms import MockLLM
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from pydantic import Field, ValidationError

import marcorank.langchain
import marcorank.llama_index
from collector import Collector
from marcorank import InvalidInputError, Reranker
from marcorank.langchain import MarcoCrossEncoder, RerankRetriever
from marcorank.testing import WordOverlapScorer

QUERY = "red apple"
TEXTS = ["green pear", "red apple tart", "red car", "apple"]
REASON = "Model `failing` raised RuntimeError: out of memory"
PASSED = {"rerank_outcome": "passthrough", "rerank_error": "ScoreError", "rerank_reason": REASON}
FELL_BACK = {**PASSED, "rerank_outcome": "fallback"}


def status_of(metadata) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.startswith("rerank_")}


class Failing:
    name = "failing"

    def score(self, query, passages):
        raise RuntimeError("out of memory")


class Recorder(BaseEventHandler):
    heard: list[Any] = Field(default_factory=list)

    def handle(self, event, **kwargs):
        if isinstance(event, (ReRankEndEvent, ExceptionEvent)):
            self.heard.append(event)


@pytest.fixture
def heard():
    recorder = Recorder()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(recorder)
    yield recorder.heard
    dispatcher.event_handlers.remove(recorder)


def documents() -> list[Document]:
    return [
        Document(page_content=text, id=str(place), metadata={"page": place, "relevance_score": 0.9 - place / 10})
        for place, text in enumerate(TEXTS)
    ]


def nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=str(place), metadata={"page": place}), score=0.9 - place / 10)
        for place, text in enumerate(TEXTS)
    ]


def langchain_rerank(**settings) -> marcorank.langchain.MarcoRerank:
    return marcorank.langchain.MarcoRerank(**{"reranker": Failing(), "top_n": 2, **settings})


def llama_rerank(**settings) -> marcorank.llama_index.MarcoRerank:
    return marcorank.llama_index.MarcoRerank(**{"reranker": Failing(), "top_n": 2, **settings})


@pytest.fixture(params=["sync", "async"])
def compress(request):
    def call(rerank, given, callbacks=None):
        if request.param == "sync":
            return rerank.compress_documents(given, QUERY, callbacks)
        return asyncio.run(rerank.acompress_documents(given, QUERY, callbacks))

    return call


@pytest.fixture(params=["sync", "async"])
def postprocess(request):
    def call(rerank, given):
        if request.param == "sync":
            return rerank.postprocess_nodes(given, query_str=QUERY)
        return asyncio.run(rerank.apostprocess_nodes(given, query_str=QUERY))

    return call


def test_documents_pass_through_in_the_order_of_the_first_stage(compress):
    """top_n of them, marked, without a score of this stage; the inputs stay as they were."""
    given = documents()
    before = copy.deepcopy(given)
    found = compress(langchain_rerank(on_error="passthrough", score_threshold=3.0), given)
    assert [(document.id, document.metadata) for document in found] == [
        ("0", {"page": 0, "retrieval_score": 0.9, **PASSED}),
        ("1", {"page": 1, "retrieval_score": 0.8, **PASSED}),
    ]
    assert given == before
    assert json.loads(json.dumps([document.metadata for document in found]))


def test_documents_of_a_fallback_are_ranked_and_marked(compress):
    """Scores of the fallback beside the reason; a stage that works again removes the mark."""
    found = compress(langchain_rerank(fallback=WordOverlapScorer()), documents())
    assert [document.id for document in found] == ["1", "2"]
    assert {document.metadata["relevance_score"] for document in found}
    assert [status_of(document.metadata) for document in found] == [FELL_BACK] * 2
    again = compress(langchain_rerank(reranker=WordOverlapScorer()), found)
    assert not any(status_of(document.metadata) for document in again)


def test_positions_and_scores_say_it_too():
    """`rerank` returns no score that nobody made."""
    assert langchain_rerank(on_error="passthrough").rerank(TEXTS, QUERY) == [
        {"index": 0, "relevance_score": None, **PASSED},
        {"index": 1, "relevance_score": None, **PASSED},
    ]


def test_a_trace_shows_a_passthrough_as_an_error(compress):
    """Under a retriever that succeeds; a fallback is no error of the call."""
    collector = Collector()
    compress(langchain_rerank(on_error="passthrough"), documents(), [collector])
    compress(langchain_rerank(fallback=WordOverlapScorer()), documents(), [collector])
    passed, fell_back = collector.roots
    assert f"passthrough: ScoreError: {REASON}" in passed.error
    assert fell_back.error is None
    assert status_of(fell_back.outputs["documents"][0].metadata) == FELL_BACK


@pytest.mark.parametrize("around", ["compression", "own"])
async def test_retrievers_answer_although_the_model_fails(around):
    """Sync and async, in LangChain's retriever and in ours; the parent run has no error."""
    first_stage = RunnableLambda(lambda _: documents())
    rerank = langchain_rerank(on_error="passthrough", timeout_s=10)
    retriever = (
        ContextualCompressionRetriever(base_compressor=rerank, base_retriever=first_stage)
        if around == "compression"
        else RerankRetriever(base_retriever=first_stage, reranker=rerank)
    )
    collector = Collector()
    config = {"callbacks": [collector]}
    for found in (retriever.invoke(QUERY, config), await retriever.ainvoke(QUERY, config)):
        assert [document.id for document in found] == ["0", "1"]
    for root in collector.roots:
        assert root.error is None
        (child,) = (run for run in root.child_runs if run.name == "MarcoRerank")
        assert "out of memory" in child.error


def test_a_cross_encoder_passes_nothing_through():
    """It returns scores alone; a fallback and a time limit it can have."""
    with pytest.raises(ValidationError, match="a cross-encoder returns scores alone"):
        MarcoCrossEncoder(on_error="passthrough")
    for core in (
        Reranker(Failing(), on_error="passthrough"),
        Reranker(Failing(), fallback=Reranker(Failing(), on_error="passthrough")),
    ):
        with pytest.raises(ValidationError, match="a cross-encoder returns scores alone"):
            MarcoCrossEncoder(reranker=core)
    with_fallback = MarcoCrossEncoder(reranker=Failing(), fallback=WordOverlapScorer(), timeout_s=10)
    expected = MarcoCrossEncoder(reranker=WordOverlapScorer())
    pairs = [(QUERY, text) for text in TEXTS]
    assert with_fallback.score(pairs) == expected.score(pairs)


def test_nodes_pass_through_in_the_order_of_the_first_stage(postprocess, heard):
    """With their own scores, marked where no prompt shows it; both event systems hear of an exception."""
    given = nodes()
    before = copy.deepcopy(given)
    handler = LlamaDebugHandler(print_trace_on_end=False)
    rerank = llama_rerank(on_error="passthrough")
    rerank.callback_manager = CallbackManager([handler])
    found = postprocess(rerank, given)
    assert [(node.node.node_id, node.score) for node in found] == [("0", 0.9), ("1", 0.8)]
    assert given == before
    for node in found:
        assert status_of(node.metadata) == PASSED
        assert "rerank_" not in node.get_content(MetadataMode.LLM)
        assert "rerank_" not in node.get_content(MetadataMode.EMBED)
        assert json.loads(node.to_json())
    exception, end = heard
    assert str(exception.exception) == f"passthrough: ScoreError: {REASON}"
    assert end.nodes == found
    (pair,) = handler.get_event_pairs(CBEventType.EXCEPTION)
    assert "out of memory" in str(pair[0].payload[EventPayload.EXCEPTION])
    assert len(handler.get_event_pairs(CBEventType.RERANKING)) == 1


@pytest.mark.parametrize(("score", "kept"), [(np.float32(0.5), 0.5), (float("nan"), None), (10**400, None)])
def test_a_score_that_passes_through_is_plain(postprocess, score, kept):
    """The nodes go through JSON also where the first stage left a score that does not."""
    given = nodes()[:1]
    given[0].score = score
    (found,) = postprocess(llama_rerank(on_error="passthrough"), given)
    assert json.loads(found.to_json())["score"] == kept


def test_nodes_of_a_fallback_are_ranked_and_marked(postprocess, heard):
    """A stage that works again removes the mark, and never reads it."""
    found = postprocess(llama_rerank(fallback=WordOverlapScorer()), nodes())
    assert [node.node.node_id for node in found] == ["1", "2"]
    assert [status_of(node.metadata) for node in found] == [FELL_BACK] * 2
    assert [type(event) for event in heard] == [ReRankEndEvent]
    read = []

    class Reads:
        def score(self, query, passages):
            read.extend(passages)
            return [0.0] * len(passages)

    again = postprocess(llama_rerank(reranker=Reads(), metadata_mode="all"), found)
    assert not any(status_of(node.metadata) for node in again)
    assert "rerank_" not in "".join(read)


async def test_query_engines_answer_although_the_model_fails():
    """And the prompt that the LLM gets says nothing of the failure."""
    prompts = []

    class Listening(MockLLM):
        def complete(self, prompt, *args, **kwargs):
            prompts.append(prompt)
            return super().complete(prompt, *args, **kwargs)

    index = VectorStoreIndex([node.node for node in nodes()], embed_model=MockEmbedding(2))
    engine = index.as_query_engine(
        llm=Listening(), similarity_top_k=4, node_postprocessors=[llama_rerank(on_error="passthrough", timeout_s=10)]
    )
    for response in (engine.query(QUERY), await engine.aquery(QUERY)):
        assert len(response.source_nodes) == 2
        assert status_of(response.source_nodes[0].metadata) == PASSED
    assert prompts
    assert not any("rerank_" in prompt for prompt in prompts)


def test_settings_round_trip_in_both_adapters():
    """Fields, dicts, JSON, pickles and copies."""
    given = {"on_error": "passthrough", "timeout_s": 0.5, "fallback": "bundled"}
    for made in (
        marcorank.langchain.MarcoRerank(model_name="bundled", **given),
        marcorank.llama_index.MarcoRerank(model="bundled", **given),
    ):
        plain = json.loads(made.model_dump_json())
        assert {name: plain[name] for name in given} == given
        assert type(made)(**plain) == made
        assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301
        assert made.core.fallback.model == "bundled"
    nested = marcorank.llama_index.MarcoRerank(fallback=Reranker("bundled", activation="sigmoid"))
    again = marcorank.llama_index.MarcoRerank.from_dict(json.loads(json.dumps(nested.to_dict())))
    assert again.core.fallback.activation == "sigmoid"
    assert pickle.loads(pickle.dumps(nested)) == nested  # noqa: S301


@pytest.mark.parametrize("make", [langchain_rerank, llama_rerank])
def test_a_fallback_ranks_on_the_scale_of_the_adapter(make):
    """Also a scorer or the dict of a reranker: thresholds and scores are as the settings say."""
    for fallback in (WordOverlapScorer(), {"model": "bundled"}, "bundled"):
        assert make(fallback=fallback, activation="sigmoid").core.fallback.activation == "sigmoid"
    assert (
        0
        < langchain_rerank(fallback=WordOverlapScorer(), activation="sigmoid").rerank(TEXTS, QUERY)[0][
            "relevance_score"
        ]
        < 1
    )


def test_dumps_beside_the_reranker_that_they_are_of():
    """`MarcoRerank(**settings, reranker=...)` puts it back, whatever its fallback is."""
    for fallback in ("bundled", {"model": "bundled"}, Reranker("bundled"), WordOverlapScorer()):
        core = Reranker("bundled", fallback=fallback)
        made = marcorank.langchain.MarcoRerank(reranker=core)
        assert marcorank.langchain.MarcoRerank(**made.model_dump(), reranker=core) == made
    inner = Reranker("bundled", fallback={"model": "bundled"})
    nested = marcorank.langchain.MarcoRerank(model_name="bundled", fallback=inner)
    assert pickle.loads(pickle.dumps(nested)) == nested  # noqa: S301


def test_what_is_no_scorer_is_no_fallback_either():
    """It is refused when the adapter is made; and no message shows a token."""
    with pytest.raises(ValidationError, match="`fallback` is"):
        marcorank.langchain.MarcoRerank(fallback=MarcoCrossEncoder(model_name="bundled"))
    for settings in ({"fallback": {"model": "bundled", "token": "s3cret"}}, {"reranker": {"token": "s3cret"}}):
        with pytest.raises(ValidationError, match=r"`token`|a dict") as refused:
            marcorank.langchain.MarcoRerank(**settings)
        assert "s3cret" not in str(refused.value)


def test_a_given_reranker_shows_its_own_settings():
    """What is beside it must not contradict it."""
    own = Reranker("bundled", on_error="passthrough", timeout_s=2, fallback=WordOverlapScorer())
    made = marcorank.langchain.MarcoRerank(reranker=own)
    assert (made.on_error, made.timeout_s, made.core.fallback) == ("passthrough", 2.0, own.fallback)
    with pytest.raises(ValidationError, match=r"`timeout_s` is 1\.0, but that of the given `reranker` is 2\.0"):
        marcorank.langchain.MarcoRerank(reranker=own, timeout_s=1)


def test_wrong_arguments_are_raised_all_the_same():
    """A passthrough is for failures, not for mistakes."""
    with pytest.raises(InvalidInputError, match="`query` is blank"):
        langchain_rerank(on_error="passthrough").compress_documents(documents(), " ")
    with pytest.raises(InvalidInputError, match="no query to rank"):
        llama_rerank(on_error="passthrough").postprocess_nodes(nodes())
