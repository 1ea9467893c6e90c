"""`run_of` with real LangChain and LlamaIndex retrievers, with and without the reranker."""

from __future__ import annotations

import subprocess
import sys
import zlib
from typing import Any

import llama_index.core
import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.schema import Document as LlamaDocument
from llama_index.core.schema import NodeWithScore, TextNode

from marcorank import InvalidInputError, Reranker
from marcorank.evaluation.retrievers import run_of
from marcorank.langchain import RerankRetriever
from marcorank.llama_index import MarcoRerank
from marcorank.testing import WordOverlapScorer

TEXTS = {
    "d0": "Cars need fuel.",
    "d1": "Bees live in hives.",
    "d2": "How do bees make honey? They dry nectar.",
    "d3": "Honey is sweet.",
    "d4": "Do cats make noise?",
}
QUERIES = {"q1": "how do bees make honey", "q2": "do cars need fuel"}
RERANKED = {
    query_id: [
        list(TEXTS)[result.index] for result in Reranker(WordOverlapScorer()).rank(query, list(TEXTS.values()), top_n=3)
    ]
    for query_id, query in QUERIES.items()
}


class ListRetriever(BaseRetriever):
    """Returns all documents in their order."""

    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return self.documents


class HashEmbedding(BaseEmbedding):
    """A deterministic embedding without meaning."""

    def _get_query_embedding(self, query):
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)

    def _get_text_embedding(self, text):
        return [1.0, (zlib.crc32(text.encode()) % 97) / 97]


@pytest.fixture(autouse=True)
def offline_tokenizer(monkeypatch):
    """Count words, so that LlamaIndex looks for no tokenizer file."""
    monkeypatch.setattr(Settings, "_tokenizer", str.split)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", str.split)


@pytest.fixture
def retriever():
    return ListRetriever(
        documents=[Document(text, id=doc_id, metadata={"source": f"{doc_id}.md"}) for doc_id, text in TEXTS.items()]
    )


@pytest.fixture
def index():
    return VectorStoreIndex(
        [TextNode(text=text, id_=doc_id) for doc_id, text in TEXTS.items()], embed_model=HashEmbedding()
    )


def ids(run):
    return {query_id: list(results) for query_id, results in run.items()}


def test_a_langchain_retriever_with_and_without_the_reranker(retriever):
    """A run has the documents' ids in their order, with decreasing scores, also with the reranker."""
    found = run_of(retriever, QUERIES)
    assert ids(found) == {"q1": list(TEXTS), "q2": list(TEXTS)}
    assert list(found["q1"].values()) == [5.0, 4.0, 3.0, 2.0, 1.0]
    reranked = RerankRetriever(base_retriever=retriever, reranker=Reranker(WordOverlapScorer()), top_n=3)
    assert ids(run_of(reranked, QUERIES)) == RERANKED
    assert RERANKED["q1"] != RERANKED["q2"] != list(TEXTS)[:3]


def test_any_runnable_serves(retriever):
    """Any runnable is called with `invoke`."""
    assert ids(run_of(RunnableLambda(lambda query: retriever.invoke(query)[:1]), QUERIES)) == {
        "q1": ["d0"],
        "q2": ["d0"],
    }


def test_a_llama_index_retriever(index):
    """A run has the nodes' ids in the order of the index."""
    retriever = index.as_retriever(similarity_top_k=4)
    found = run_of(retriever, QUERIES)
    assert ids(found) == {
        query_id: [node.node_id for node in retriever.retrieve(query)] for query_id, query in QUERIES.items()
    }
    assert list(found["q1"].values()) == [4.0, 3.0, 2.0, 1.0]


def engine_of(index, *postprocessors, **settings):
    return index.as_query_engine(
        llm=MockLLM(), similarity_top_k=5, node_postprocessors=list(postprocessors), **settings
    )


def test_a_query_engine_with_and_without_the_reranker(index):
    """The sources of the answers count, after the postprocessors."""
    plain = run_of(engine_of(index), QUERIES)
    assert ids(plain) == ids(run_of(index.as_retriever(similarity_top_k=5), QUERIES))
    engine = engine_of(index, MarcoRerank(reranker=Reranker(WordOverlapScorer()), top_n=3))
    found = ids(run_of(engine, QUERIES))
    assert found == {
        query_id: [node.node_id for node in engine.query(query).source_nodes] for query_id, query in QUERIES.items()
    }
    assert [found[query_id][0] for query_id in QUERIES] == [RERANKED[query_id][0] for query_id in QUERIES]
    assert found != ids(plain)


def test_a_query_engine_without_text_asks_no_llm(index, monkeypatch):
    """With `response_mode="no_text"` no LLM is called, and the run is the same."""

    class Silent(MockLLM):
        def complete(self, *args, **kwargs):
            raise AssertionError("the LLM was asked")

    monkeypatch.setattr(Settings, "_llm", Silent())
    rerank = MarcoRerank(reranker=Reranker(WordOverlapScorer()), top_n=3)
    with_text = run_of(engine_of(index, rerank), QUERIES)
    assert run_of(engine_of(index, rerank, response_mode="no_text"), QUERIES) == with_text


def test_chunks_count_as_their_document(retriever):
    """A document has the rank of its first chunk, whether its id is in the metadata or on the node."""
    chunks = [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")]
    documents = [Document("", id=chunk, metadata={"source": doc_id}) for doc_id, chunk in chunks]
    assert run_of(lambda _: documents, {"q": "x"}, doc_id="source") == {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    assert ids(run_of(retriever, {"q": "x"}, doc_id=lambda found: found.metadata["source"].removesuffix(".md"))) == {
        "q": list(TEXTS)
    }
    index = VectorStoreIndex.from_documents(
        [LlamaDocument(text=text, id_=doc_id) for doc_id, text in TEXTS.items()], embed_model=HashEmbedding()
    )
    found = run_of(index.as_retriever(similarity_top_k=5), {"q": "x"}, doc_id=lambda found: found.node.ref_doc_id)
    assert sorted(found["q"]) == list(TEXTS)


@pytest.mark.parametrize(
    "results",
    [
        ["b", "a"],
        ("b", "a", "b"),
        iter(["b", "a"]),
        [("b", 0.1), ("a", 0.9)],
        [(Document("", id="b"), 0.1), (Document("", id="a"), 0.9)],
        [TextNode(text="", id_="b"), NodeWithScore(node=TextNode(text="", id_="a"))],
    ],
)
def test_a_function_may_give_ids_pairs_or_results(results):
    """The results of a function keep their order, whatever their scores."""
    assert run_of(lambda _: results, {"q": "x"}) == {"q": {"b": 2.0, "a": 1.0}}


def test_whole_numbers_are_ids():
    """Whole numbers become strings."""
    assert run_of(lambda _: [3, (np.int64(1), 0.5)], {"q": "x"}) == {"q": {"3": 2.0, "1": 1.0}}


def test_a_query_without_results_has_none():
    """A query with an empty list of results is left out."""
    assert run_of(lambda query: [query] if query == "found" else [], {"q1": "found", "q2": "lost"}) == {
        "q1": {"found": 1.0}
    }


def test_the_functions_own_errors_pass_through():
    """An exception of the search function is not wrapped."""

    def fail(query):
        raise KeyError(query)

    with pytest.raises(KeyError, match="lost"):
        run_of(fail, {"q": "lost"})


@pytest.mark.parametrize(
    ("search", "settings", "complaint"),
    [
        (None, {}, r"`search` is None; expected a LangChain retriever \(with `invoke`\), a LlamaIndex"),
        (ListRetriever, {}, "`search` is <class .*ListRetriever'>; expected a LangChain retriever"),
        (lambda _: "d1", {}, "The search returned a str for query_id 'q'; expected a list of results"),
        (lambda _: None, {}, "The search returned a NoneType for query_id 'q'; expected a list"),
        (lambda _: {"d1": 2.0}, {}, "The search returned a dict for query_id 'q'; expected a list"),
        (
            lambda _: ["d1", Document("", metadata={"source": "x", "page": 1})],
            {},
            r"Result 1 of query_id 'q' \(Document\) has no usable doc_id: its own id is None; .*: 'source', 'page'\)",
        ),
        (
            lambda _: [Document("")],
            {"doc_id": "source"},
            r"its metadata field 'source' is None; .*\(available: no fields",
        ),
        (
            lambda _: [Document("", id="a")],
            {"doc_id": lambda _: ["a"]},
            r"the function `doc_id` returned \['a'\]; expected",
        ),
        (lambda _: [True], {}, r"Result 0 of query_id 'q' \(bool\) has no usable doc_id: it is True"),
        (lambda _: [""], {}, "has no usable doc_id: it is ''"),
        (lambda _: [object()], {}, r"\(object\) has no usable doc_id: its own id is None"),
        (
            InMemoryVectorStore(DeterministicFakeEmbedding(size=3)),
            {},
            r"`search` is <InMemoryVectorStore object>; expected .* Pass its `as_retriever\(\)`",
        ),
        (lambda _: [], {"doc_id": 5}, "`doc_id` is 5; expected 'id', the name of a metadata field, or a function"),
        (lambda _: [], {"queries": ["x"]}, "`queries` is a list; expected a mapping of texts by query_id"),
        (lambda _: [], {"queries": {"q": " "}}, r"`query` is blank \(' '\)"),
    ],
)
def test_what_gives_no_run_is_named(search, settings, complaint):
    """Results without an id and unusable objects are errors that say what to do."""
    with pytest.raises(InvalidInputError, match=complaint):
        run_of(search, **{"queries": {"q": "x"}, **settings})


def test_no_framework_is_imported():
    """`run_of` imports no framework."""
    code = (
        "import sys; from marcorank.evaluation.retrievers import run_of; run_of(lambda q: ['a'], {'q': 'x'}); "
        "assert not {'langchain_core', 'llama_index', 'bm25s', 'ir_measures'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603
