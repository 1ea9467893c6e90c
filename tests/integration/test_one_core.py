"""One core behind both frameworks: the same order and the same scores, sync and async, alone and 200 at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from llama_index.core.llms.mock import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from marcorank import Reranker, langchain, llama_index
from random_models import passages

if TYPE_CHECKING:
    from llama_index.core import QueryBundle

TEXTS = [text[:200] for text in passages(6, seed=5)][:5]
QUESTIONS = [f"how many people live in house {number}?" for number in range(200)]


class FixedNodes(BaseRetriever):
    """Finds the same nodes for every question."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]


@pytest.fixture(scope="module")
def reranker():
    with Reranker("bundled") as shared:
        yield shared


@pytest.fixture(scope="module")
def retriever(reranker):
    first_stage = RunnableLambda(lambda _: [Document(text) for text in TEXTS])
    return langchain.RerankRetriever(
        base_retriever=first_stage, reranker=langchain.MarcoRerank(reranker=reranker), top_n=3
    )


@pytest.fixture(scope="module")
def engine(reranker):
    return RetrieverQueryEngine(
        FixedNodes(),
        get_response_synthesizer(MockLLM(max_tokens=5)),
        node_postprocessors=[llama_index.MarcoRerank(reranker=reranker, top_n=3)],
    )


def of_core(ranking):
    return [(result.text, result.score) for result in ranking]


def of_langchain(documents):
    return [(document.page_content, document.metadata["relevance_score"]) for document in documents]


def of_llama_index(response):
    return [(found.text, found.score) for found in response.source_nodes]


async def test_core_langchain_and_llama_index_agree(reranker, retriever, engine):
    """The same passages rank the same, with the same scores, whichever way they come, to the last bit."""
    for question in QUESTIONS[:5]:
        expected = of_core(reranker.rank(question, TEXTS, top_n=3))
        assert of_core(await reranker.arank(question, TEXTS, top_n=3)) == expected
        assert of_langchain(retriever.invoke(question)) == expected
        assert of_langchain(await retriever.ainvoke(question)) == expected
        assert of_llama_index(engine.query(question)) == expected
        assert of_llama_index(await engine.aquery(question)) == expected


async def test_200_calls_at_once_equal_serial_ones(reranker, retriever, engine):
    """`arank`, `ainvoke` and `aquery` on one reranker: no error, the same results, and the event loop keeps turning."""
    expected = [of_core(reranker.rank(question, TEXTS, top_n=3)) for question in QUESTIONS]

    async def ask(place, question):
        if place % 3 == 0:
            return of_core(await reranker.arank(question, TEXTS, top_n=3))
        if place % 3 == 1:
            return of_langchain(await retriever.ainvoke(question))
        return of_llama_index(await engine.aquery(question))

    turns = 0

    async def turn():
        nonlocal turns
        while True:
            await asyncio.sleep(0.001)
            turns += 1

    turning = asyncio.create_task(turn())
    found = await asyncio.gather(*(ask(place, question) for place, question in enumerate(QUESTIONS)))
    turning.cancel()
    assert found == expected
    # A loop that waited for the model would turn once a call at most.
    assert turns > len(QUESTIONS)
