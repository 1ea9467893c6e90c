"""Many callers of one LlamaIndex postprocessor at once: threads and tasks."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import llama_index.core
import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeWithScore, TextNode

from marcorank.llama_index import MarcoRerank
from marcorank.testing import WordOverlapScorer
from patience import PATIENCE_S

WORDS = ["red", "green", "apple", "pear", "sweet", "sour", "ripe"]
CALLS = 200


def query_of(call: int) -> str:
    return f"{WORDS[call % 7]} {WORDS[call % 5]} {WORDS[call % 3]}"


def nodes_of(call: int) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=f"{WORDS[place % 7]} {WORDS[call % 7]}", id_=f"{call}-{place}"))
        for place in range(8)
    ]


@pytest.mark.parametrize(
    ("settings", "calls"),
    [({"reranker": WordOverlapScorer(), "keep_retrieval_score": True}, CALLS), ({"model": "bundled"}, 20)],
    ids=["word-overlap", "bundled"],
)
async def test_concurrent_calls_give_what_serial_ones_give(settings, calls):
    """Tasks, and calls from eight threads, share one postprocessor and do not disturb each other."""
    # Not a parameter itself: pytest keeps those, and with them the model, for all tests that follow.
    rerank = MarcoRerank(**settings)
    serial = [rerank.postprocess_nodes(nodes_of(call), query_str=query_of(call)) for call in range(calls)]
    tasks = [rerank.apostprocess_nodes(nodes_of(call), query_str=query_of(call)) for call in range(calls)]
    assert await asyncio.gather(*tasks) == serial
    with ThreadPoolExecutor(8) as pool:
        threaded = pool.map(
            lambda call: rerank.postprocess_nodes(nodes_of(call), query_str=query_of(call)), range(calls)
        )
        assert list(threaded) == serial


async def test_concurrent_queries_give_what_serial_ones_give(monkeypatch):
    """200 `aquery` calls of one engine answer as 200 `query` calls do."""
    monkeypatch.setattr(Settings, "_tokenizer", str.split)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", str.split)
    index = VectorStoreIndex([found.node for found in nodes_of(0)], embed_model=MockEmbedding(2))
    engine = index.as_query_engine(
        llm=MockLLM(), similarity_top_k=8, node_postprocessors=[MarcoRerank(reranker=WordOverlapScorer())]
    )
    queries = [query_of(call) for call in range(CALLS)]
    serial = {query: engine.query(query) for query in set(queries)}
    for query, found in zip(queries, await asyncio.gather(*map(engine.aquery, queries)), strict=True):
        assert found.source_nodes == serial[query].source_nodes
        assert str(found) == str(serial[query])


async def test_the_event_loop_runs_while_the_model_works():
    """The model is answered by a task of the loop: were the loop blocked, that task could never run."""
    started, ticked = threading.Event(), threading.Event()

    class WaitsForTheLoop:
        def score(self, query, passages):
            started.set()
            if not ticked.wait(PATIENCE_S):
                raise TimeoutError("the event loop stood still")
            return [0.0] * len(passages)

    async def tick():
        assert await asyncio.to_thread(started.wait, PATIENCE_S)
        for _ in range(100):
            await asyncio.sleep(0)
        ticked.set()

    ticking = asyncio.create_task(tick())
    found = await MarcoRerank(reranker=WaitsForTheLoop()).apostprocess_nodes(nodes_of(0), query_str="red")
    assert [result.score for result in found] == [0.0] * 3
    await ticking
