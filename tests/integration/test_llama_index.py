"""The LlamaIndex adapter in real query and chat engines, and over a Chroma store on disk."""

from __future__ import annotations

import zlib

import chromadb
import llama_index.core
import numpy as np
import pytest
from llama_index.core import Settings, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.core.tools import RetrieverTool
from llama_index.vector_stores.chroma import ChromaVectorStore

from marcorank import Reranker
from marcorank.llama_index import MarcoRerank
from marcorank.testing import WordOverlapScorer

QUERY = "how do bees make honey"
TEXTS = [
    "Cars need fuel.",
    "Bees live in hives.",
    "How do bees make honey? They dry nectar.",
    "Honey is sweet.",
    "Do cats make noise?",
]
BEST = [TEXTS[2], TEXTS[4], TEXTS[1]]


class LengthEmbedding(BaseEmbedding):
    """Deterministic, and blind to meaning: what comes first after reranking is the reranker's doing."""

    def _get_query_embedding(self, query):
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)

    def _get_text_embedding(self, text):
        return [1.0, (zlib.crc32(text.encode()) % 97) / 97]


class Failing:
    """Fails with a message that quotes half a character."""

    name = "failing"

    def score(self, query, passages):
        raise RuntimeError("no \ud83d")


@pytest.fixture(autouse=True)
def offline_tokenizer(monkeypatch):
    """Count words, so that LlamaIndex looks for no tokenizer file."""
    monkeypatch.setattr(Settings, "_tokenizer", str.split)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", str.split)


@pytest.fixture
def nodes() -> list[TextNode]:
    return [TextNode(text=text, id_=f"node-{place}", metadata={"page": place}) for place, text in enumerate(TEXTS)]


@pytest.fixture
def index(nodes) -> VectorStoreIndex:
    return VectorStoreIndex(nodes, embed_model=LengthEmbedding())


@pytest.fixture
def rerank() -> MarcoRerank:
    return MarcoRerank(reranker=WordOverlapScorer(), keep_retrieval_score=True)


def texts_of(nodes) -> list[str]:
    return [found.node.get_content() for found in nodes]


def query_engine(index, rerank, **settings):
    return index.as_query_engine(llm=MockLLM(), similarity_top_k=5, node_postprocessors=[rerank], **settings)


def test_a_query_engine_answers_from_the_best_nodes(index, rerank):
    """The answer is made of the best nodes in their new order; no score reaches the prompt, metadata do."""
    response = query_engine(index, rerank).query(QUERY)
    ranking = Reranker(WordOverlapScorer()).rank(QUERY, [f"page: {n}\n\n{text}" for n, text in enumerate(TEXTS)])
    assert texts_of(response.source_nodes) == BEST
    assert [found.score for found in response.source_nodes] == [result.score for result in ranking[:3]]
    assert all(0 < found.node.metadata["retrieval_score"] <= 1 for found in response.source_nodes)
    prompt = str(response)  # MockLLM answers with what it was asked
    places = [prompt.index(f"page: {TEXTS.index(text)}\n\n{text}") for text in BEST]
    assert places == sorted(places)
    assert TEXTS[0] not in prompt
    assert "retrieval_score" not in prompt


async def test_a_query_engine_answers_the_same_async(index, rerank):
    """`aquery` gives the nodes, scores and answer of `query`."""
    engine = query_engine(index, rerank)
    expected, found = engine.query(QUERY), await engine.aquery(QUERY)
    assert found.source_nodes == expected.source_nodes
    assert str(found) == str(expected)


async def test_streaming_answers_from_the_best_nodes(index, rerank):
    """A streaming engine, sync and async, has the best nodes and the prompt without scores."""
    engine = query_engine(index, rerank, streaming=True)
    response = engine.query(QUERY)
    assert texts_of(response.source_nodes) == BEST
    prompt = "".join(response.response_gen)
    assert BEST[0] in prompt
    assert "retrieval_score" not in prompt
    streamed = await query_engine(index, rerank, streaming=True, use_async=True).aquery(QUERY)
    assert "".join([token async for token in streamed.async_response_gen()]) == prompt


def test_a_cascade_in_a_query_engine(index):
    """What it writes reaches no prompt, and a cutoff after it drops the nodes without a score."""
    cascade = MarcoRerank(reranker=WordOverlapScorer(), skim=WordOverlapScorer(), skim_keep=2, blend=0.1, top_n=None)
    response = query_engine(index, cascade).query(QUERY)
    assert [found.score is None for found in response.source_nodes] == [False, False, True, True, True]
    assert response.source_nodes[4].node.metadata["scored_by"] == "word-overlap"
    assert 0 <= response.source_nodes[0].node.metadata["blended_score"] <= 1
    assert "scored_by" not in str(response)
    assert "blended_score" not in str(response)
    for found in response.source_nodes:
        assert "scored_by" not in found.node.get_content(metadata_mode=MetadataMode.EMBED)
    cutoff = SimilarityPostprocessor(similarity_cutoff=-100)
    assert len(cutoff.postprocess_nodes(response.source_nodes, query_str=QUERY)) == 2
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=5), llm=MockLLM(), node_postprocessors=[cascade, cutoff]
    )
    assert engine.query(QUERY).source_nodes == response.source_nodes[:2]


def test_the_nodes_of_an_index_stay_as_they_are(index, nodes, rerank):
    """Queries leave no trace in the store: the second gives what the first gave."""
    engine = query_engine(index, rerank)
    once, twice = engine.query(QUERY), engine.query(QUERY)
    assert once.source_nodes == twice.source_nodes
    stored = index.docstore.docs
    assert {key: node.metadata for key, node in stored.items()} == {node.id_: node.metadata for node in nodes}
    assert all(node.excluded_llm_metadata_keys == [] for node in stored.values())


def test_a_retriever_query_engine_takes_it_among_others(index, rerank):
    """It stands in a list of postprocessors, and what the engine does to its callback manager does no harm."""
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=5),
        llm=MockLLM(),
        node_postprocessors=[rerank, SimilarityPostprocessor(similarity_cutoff=-1.5)],
    )
    assert rerank.callback_manager is engine.callback_manager
    assert texts_of(engine.query(QUERY).source_nodes) == BEST[:2]


@pytest.mark.parametrize("chat_mode", ["context", "condense_plus_context"])
async def test_chat_engines_answer_from_the_best_nodes(index, rerank, chat_mode):
    """Both chat engines rerank, sync, async and streaming, over several turns, and show the LLM no score."""
    engine = index.as_chat_engine(
        chat_mode=chat_mode,
        llm=MockLLM(),
        # The default memory never closes its database, which is a ResourceWarning.
        memory=ChatMemoryBuffer.from_defaults(token_limit=10_000),
        similarity_top_k=5,
        node_postprocessors=[rerank],
    )
    first = engine.chat(QUERY)
    assert texts_of(first.source_nodes) == BEST
    engine.reset()
    answer = await engine.achat(QUERY)
    assert texts_of(answer.source_nodes) == BEST
    assert "retrieval_score" not in str(first) + str(answer)
    assert len(engine.chat("and how do cats make noise").source_nodes) == 3
    engine.reset()
    streamed = engine.stream_chat(QUERY)
    assert "retrieval_score" not in "".join(streamed.response_gen)
    assert texts_of(streamed.source_nodes) == BEST


async def test_other_callers_rerank_too(index, rerank):
    """The retriever tool and the evaluator take it as any postprocessor."""
    retriever = index.as_retriever(similarity_top_k=5)
    tool = RetrieverTool.from_defaults(retriever, node_postprocessors=[rerank])
    assert TEXTS[0] not in str(await tool.acall(QUERY))
    assert "retrieval_score" not in str(tool.call(QUERY))
    evaluator = RetrieverEvaluator.from_metric_names(["mrr"], retriever=retriever, node_postprocessors=[rerank])
    result = await evaluator.aevaluate(QUERY, expected_ids=["node-2"])
    assert result.metric_vals_dict == {"mrr": 1.0}


def test_a_chroma_store_on_disk_keeps_no_score(tmp_path, nodes, rerank):
    """Nodes from a Chroma store are ranked; what is on the disk is the same before and after."""
    client = chromadb.PersistentClient(path=str(tmp_path))
    collection = client.get_or_create_collection("bees")
    VectorStoreIndex(
        nodes,
        storage_context=StorageContext.from_defaults(vector_store=ChromaVectorStore(chroma_collection=collection)),
        embed_model=LengthEmbedding(),
    )
    before = collection.get()
    index = VectorStoreIndex.from_vector_store(
        ChromaVectorStore(chroma_collection=client.get_collection("bees")), embed_model=LengthEmbedding()
    )
    engine = query_engine(index, rerank)
    once, twice = engine.query(QUERY), engine.query(QUERY)
    assert texts_of(once.source_nodes) == BEST
    assert once.source_nodes == twice.source_nodes
    assert all(type(found.node.metadata["retrieval_score"]) is float for found in once.source_nodes)
    assert "retrieval_score" not in str(once)
    assert collection.get() == before


@pytest.mark.parametrize(
    "settings",
    [
        {"reranker": WordOverlapScorer()},
        {"model": "bundled", "long_passages": "windows", "max_length": 32},
        {"reranker": Failing(), "on_error": "passthrough"},
        {"reranker": Failing(), "fallback": WordOverlapScorer()},
    ],
    ids=["ranked", "windows", "passthrough", "fallback"],
)
def test_what_was_ranked_can_be_stored(nodes, settings):
    """A Chroma index takes the results whatever happened in the call, also with scores that LlamaIndex makes."""
    client = chromadb.EphemeralClient()
    collection = client.create_collection("stored")
    index = VectorStoreIndex(
        [],
        storage_context=StorageContext.from_defaults(vector_store=ChromaVectorStore(chroma_collection=collection)),
        embed_model=LengthEmbedding(),
    )
    scored = [NodeWithScore(node=node, score=0.5) for node in nodes]
    for found in scored:
        found.score = np.float32(0.5)  # as LlamaIndex' own reranker assigns it
    ranked = MarcoRerank(**settings, top_n=None, keep_retrieval_score=True).postprocess_nodes(scored, query_str=QUERY)
    index.insert_nodes([found.node for found in ranked])
    stored = index.as_retriever(similarity_top_k=5).retrieve(QUERY)
    client.delete_collection("stored")
    assert {found.node_id: found.metadata for found in stored} == {found.node_id: found.metadata for found in ranked}
    assert {type(value) for found in stored for value in found.metadata.values()} <= {str, int, float, bool}


def test_the_bundled_model_finds_the_answer(index):
    """The model in the wheel puts the passage that answers on top, in the two lines of the readme."""
    response = query_engine(index, MarcoRerank(model="bundled", top_n=1)).query(QUERY)
    assert texts_of(response.source_nodes) == BEST[:1]
