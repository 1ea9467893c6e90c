"""One core behind both frameworks: the same order and the same scores, sync and async, alone and 200 at once."""

from __future__ import annotations

import asyncio
import threading
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
from patience import PATIENCE_S
from random_models import passages

if TYPE_CHECKING:
    from llama_index.core import QueryBundle

TEXTS = [text[:60] for text in passages(6, seed=5)][:5]
QUESTIONS = [f"how many people live in house {number}?" for number in range(200)]


class FixedNodes(BaseRetriever):
    """Finds the same nodes for every question."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]


ENGINES = {
    "bundled": {},
    "onnx": {"backend": "onnx"},
    "openvino-fp32": {"backend": "openvino", "precision": "fp32"},
    "openvino-auto": {"backend": "openvino"},
    "openvino-int8": {"backend": "openvino", "precision": "int8"},
    "torch-fp32": {"backend": "torch", "precision": "fp32"},
    "torch-bf16": {"backend": "torch", "precision": "bf16"},
}
# torch pads what it batches, and the last bits depend on the shape of the batch; bf16 has few bits.
TOLERANCES = {"torch-fp32": 1e-4, "torch-bf16": 0.5}


@pytest.fixture(scope="module", params=ENGINES)
def reranker(request, small_bert):
    with Reranker("bundled" if request.param == "bundled" else small_bert, **ENGINES[request.param]) as shared:
        yield shared


@pytest.fixture
def same(request):
    """Compare rankings: to the last bit, or by score where a tolerance is stated."""
    tolerance = TOLERANCES.get(request.node.callspec.params["reranker"], 0)

    def compare(found, expected):
        if not tolerance:
            return found == expected
        return all(
            a == pytest.approx(b, abs=tolerance)
            for a, b in zip([s for _, s in found], [s for _, s in expected], strict=True)
        )

    return compare


@pytest.fixture(scope="module")
def retriever(reranker):
    return retriever_over(reranker)


@pytest.fixture(scope="module")
def engine(reranker):
    return engine_over(reranker)


def retriever_over(reranker):
    first_stage = RunnableLambda(lambda _: [Document(text) for text in TEXTS])
    return langchain.RerankRetriever(
        base_retriever=first_stage, reranker=langchain.MarcoRerank(reranker=reranker), top_n=3
    )


def engine_over(reranker):
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


async def test_core_langchain_and_llama_index_agree(reranker, retriever, engine, same):
    """The same passages rank the same, with the same scores, whichever way they come."""
    for question in QUESTIONS[:5]:
        expected = of_core(reranker.rank(question, TEXTS, top_n=3))
        assert same(of_core(await reranker.arank(question, TEXTS, top_n=3)), expected)
        assert same(of_langchain(retriever.invoke(question)), expected)
        assert same(of_langchain(await retriever.ainvoke(question)), expected)
        assert same(of_llama_index(engine.query(question)), expected)
        assert same(of_llama_index(await engine.aquery(question)), expected)


async def test_200_calls_at_once_equal_serial_ones(reranker, retriever, engine, same):
    """`arank`, `ainvoke` and `aquery` on one reranker: no error, and the same results."""
    expected = [of_core(reranker.rank(question, TEXTS, top_n=3)) for question in QUESTIONS]

    async def ask(place, question):
        if place % 3 == 0:
            return of_core(await reranker.arank(question, TEXTS, top_n=3))
        if place % 3 == 1:
            return of_langchain(await retriever.ainvoke(question))
        return of_llama_index(await engine.aquery(question))

    found = await asyncio.gather(*(ask(place, question) for place, question in enumerate(QUESTIONS)))
    assert all(map(same, found, expected))


class Waiting:
    """Answers when the event loop has run."""

    def __init__(self):
        self.begun, self.go_on = threading.Event(), threading.Event()

    def score(self, query, passages):
        self.begun.set()
        self.go_on.wait(PATIENCE_S)
        return [0.0] * len(passages)


@pytest.mark.parametrize("way", ["core", "langchain", "llama-index"])
async def test_the_event_loop_is_free_while_a_model_computes(way):
    """The model goes on when a task lets it, which a loop that waited for the model would never run."""
    scorer = Waiting()
    reranker = Reranker(scorer)
    ask = {
        "core": lambda: reranker.arank(QUESTIONS[0], TEXTS),
        "langchain": lambda: retriever_over(reranker).ainvoke(QUESTIONS[0]),
        "llama-index": lambda: engine_over(reranker).aquery(QUESTIONS[0]),
    }
    call = asyncio.ensure_future(ask[way]())
    assert await asyncio.to_thread(scorer.begun.wait, PATIENCE_S)
    assert not call.done()
    scorer.go_on.set()
    await call
