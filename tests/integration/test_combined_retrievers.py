"""Retrievers that compare the results of several queries or retrievers, around a reranker and inside of one."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever, MultiQueryRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.retrievers import BaseRetriever
from llama_index.core.base.base_retriever import BaseRetriever as NodeRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import ValidationError

import marcorank.llama_index
from marcorank import Reranker
from marcorank.langchain import MarcoCrossEncoder, MarcoRerank, RerankRetriever
from marcorank.testing import WordOverlapScorer

QUERIES = ["red apple", "green apple", "car"]
TEXTS = ["red apple", "green apple tart", "blue car"]


class FailsOnce(WordOverlapScorer):
    """Ranks the first query and fails for all others."""

    def score(self, query, passages):
        if query != QUERIES[0]:
            raise RuntimeError("out of memory")
        return super().score(query, passages)


class Texts(BaseRetriever):
    """Finds the same documents for every query."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document(page_content=text, metadata={"page": page}) for page, text in enumerate(TEXTS)]


def several_queries(retriever) -> MultiQueryRetriever:
    """Return a retriever that asks the queries above, as a language model may write them."""
    return MultiQueryRetriever.from_llm(retriever, FakeListChatModel(responses=["\n".join(QUERIES)]))


async def contents(retriever) -> list[str]:
    found = retriever.invoke("apples and cars")
    assert await retriever.ainvoke("apples and cars") == found
    return [document.page_content for document in found]


@pytest.mark.parametrize(
    "settings",
    [{"reranker": WordOverlapScorer()}, {"reranker": FailsOnce(), "on_error": "passthrough"}],
    ids=["ranked", "passthrough"],
)
async def test_several_queries_around_a_reranker_find_each_document_once(settings):
    """Without written metadata the documents are those of the first stage, as behind LangChain's own reranker."""
    rerank = MarcoRerank(**settings, top_n=None, write_metadata=False)
    retriever = several_queries(RerankRetriever(base_retriever=Texts(), reranker=rerank))
    found = retriever.invoke("apples and cars")
    assert sorted(await contents(retriever)) == sorted(TEXTS)
    by_page = sorted(found, key=lambda document: document.metadata["page"])
    assert by_page == several_queries(Texts()).invoke("apples and cars")
    cross_encoder = MarcoCrossEncoder(reranker=WordOverlapScorer())
    theirs = ContextualCompressionRetriever(
        base_compressor=CrossEncoderReranker(model=cross_encoder, top_n=3), base_retriever=Texts()
    )
    assert sorted(await contents(several_queries(theirs))) == sorted(TEXTS)


async def test_a_reranker_around_several_queries_ranks_each_document_once():
    """The nesting that the documentation recommends: scores are for the question of the user, and are written."""
    retriever = RerankRetriever(
        base_retriever=several_queries(Texts()), reranker=MarcoRerank(reranker=WordOverlapScorer())
    )
    found = retriever.invoke("apple tart")
    assert [document.page_content for document in found] == ["green apple tart", "red apple", "blue car"]
    assert [document.metadata["relevance_score"] for document in found] == [5.0, 0.0, -5.0]
    assert sorted(await contents(retriever)) == sorted(TEXTS)


async def test_an_ensemble_recognises_what_was_reranked():
    """Fused with the plain retriever, each document is there once, with its metadata or without."""
    for write_metadata in (True, False):
        rerank = MarcoRerank(reranker=WordOverlapScorer(), write_metadata=write_metadata)
        reranked = RerankRetriever(base_retriever=Texts(), reranker=rerank)
        assert sorted(await contents(EnsembleRetriever(retrievers=[reranked, Texts()]))) == sorted(TEXTS)


class Scored(BaseRetriever):
    """Finds its own documents, with scores on its own scale."""

    found: dict[str, float]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document(page_content=text, metadata={"score": score}) for text, score in self.found.items()]


@pytest.mark.parametrize("cosines", [{"red pear": 0.9, "blue car": 0.7}, {}], ids=["scores", "none"])
async def test_a_blend_goes_by_the_order_of_an_ensemble(cosines):
    """It is fused by rank: a score of BM25 does not outweigh a cosine, whether all documents have a score or not."""
    exact = Scored(found={"red plum": 12.3, "red apple": 7.1})
    other = Scored(found=cosines) if cosines else Texts()
    ensemble = EnsembleRetriever(retrievers=[other, exact], weights=[0.7, 0.3])
    order = [document.page_content for document in ensemble.invoke("apples and cars")]
    by_scores_alone = RerankRetriever(
        base_retriever=ensemble, reranker=MarcoRerank(reranker=WordOverlapScorer(), blend=1.0, top_n=None)
    )
    assert await contents(by_scores_alone) == order
    core = Reranker(WordOverlapScorer(), blend=0.4).rank("apples and cars", order)
    blended = RerankRetriever(
        base_retriever=ensemble, reranker=MarcoRerank(reranker=WordOverlapScorer(), blend=0.4, top_n=None)
    )
    assert await contents(blended) == [result.text for result in core]


def test_documents_are_copies_also_without_written_metadata():
    """They are equal to those of the first stage, but share nothing that can be changed."""
    given = [Document(page_content="red", metadata={"relevance_score": 0.5, "rerank_outcome": "fallback"})]
    rerank = MarcoRerank(reranker=WordOverlapScorer(), write_metadata=False)
    found = rerank.compress_documents(given, "red")
    assert found == given
    assert found[0] is not given[0]
    assert found[0].metadata is not given[0].metadata
    assert rerank.rerank(given, "red") == [{"index": 0, "relevance_score": 5.0}]


class Nodes(NodeRetriever):
    """Finds the same nodes for every query, reranked if it has a reranker."""

    def __init__(self, texts, rerank=None):
        super().__init__()
        self.texts, self.rerank = texts, rerank

    def _retrieve(self, query_bundle):
        found = [
            NodeWithScore(node=TextNode(text=text, id_=text), score=0.9 - index / 10)
            for index, text in enumerate(self.texts)
        ]
        return found if self.rerank is None else self.rerank.postprocess_nodes(found, query_bundle)


def fusion(rerank, mode) -> QueryFusionRetriever:
    """Fuse A and B, reranked, with C and B."""
    return QueryFusionRetriever(
        [Nodes(["red a", "red b"], rerank), Nodes(["red c", "red b"])],
        mode=mode,
        similarity_top_k=10,
        num_queries=1,
        use_async=False,
        llm=MockLLM(),
    )


@pytest.mark.parametrize("mode", FUSION_MODES)
@pytest.mark.parametrize(
    "settings",
    [
        {"reranker": WordOverlapScorer()},
        {"reranker": WordOverlapScorer(), "write_metadata": False},
        {"reranker": FailsOnce(), "on_error": "passthrough", "write_metadata": False},
        {"reranker": FailsOnce(), "fallback": WordOverlapScorer(), "write_metadata": False},
    ],
    ids=["default", "ranked", "passthrough", "fallback"],
)
async def test_a_fusion_recognises_what_was_reranked(settings, mode):
    """A node that two retrievers find is one node, as without a reranker, and first if ranks are added up."""
    rerank = marcorank.llama_index.MarcoRerank(**settings)
    retriever = fusion(rerank, mode)
    found = retriever.retrieve("red")
    assert sorted(node.node_id for node in found) == ["red a", "red b", "red c"]
    assert [node.node_id for node in await retriever.aretrieve("red")] == [node.node_id for node in found]
    if mode == "reciprocal_rerank":
        assert [node.node_id for node in found] == [node.node_id for node in fusion(None, mode).retrieve("red")]
        assert found[0].node_id == "red b"


@pytest.mark.parametrize("mode", FUSION_MODES)
async def test_a_reranker_after_a_fusion_ranks_each_node_once(mode):
    """The nesting that the documentation recommends: with the score of the fusion kept beside the new one."""
    engine = RetrieverQueryEngine.from_args(
        fusion(None, mode),
        llm=MockLLM(),
        node_postprocessors=[
            marcorank.llama_index.MarcoRerank(reranker=WordOverlapScorer(), keep_retrieval_score=True)
        ],
    )
    for response in (engine.query("c red"), await engine.aquery("c red")):
        found = response.source_nodes
        assert found[0].node_id == "red c"
        assert sorted(node.node_id for node in found) == ["red a", "red b", "red c"]
        assert all(type(node.metadata["retrieval_score"]) is float for node in found)


def test_settings_of_metadata_must_agree():
    """A score cannot be kept where nothing is written, whichever comes first."""
    make = marcorank.llama_index.MarcoRerank
    message = "`keep_retrieval_score` is True beside `write_metadata=False`"
    with pytest.raises(ValidationError, match=message):
        make(keep_retrieval_score=True, write_metadata=False)
    for first, second in (({"keep_retrieval_score": True}, False), ({"write_metadata": False}, True)):
        rerank = make(**first)
        name = "keep_retrieval_score" if second else "write_metadata"
        with pytest.raises(ValidationError, match=message):
            setattr(rerank, name, second)
        assert getattr(rerank, name) is not second
    for adapter in (make, MarcoRerank):
        with pytest.raises(ValidationError, match="`write_metadata` is 1; expected one of True, False"):
            adapter(write_metadata=1)
