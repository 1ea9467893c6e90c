"""The LangChain adapter among real LangChain parts: retrievers, compressors, chains and a Chroma store on disk."""

from __future__ import annotations

import subprocess
import sys
import zlib
from types import SimpleNamespace
from typing import Any

import chromadb
import numpy as np
import pytest
from langchain_chroma import Chroma
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker, DocumentCompressorPipeline
from langchain_core.documents import BaseDocumentTransformer, Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from marcorank import InvalidInputError, Reranker
from marcorank._inference.scorer import CrossEncoderScorer, PassageScores
from marcorank.langchain import MarcoCrossEncoder, MarcoRerank, RerankRetriever
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


class ListRetriever(BaseRetriever):
    """Finds the first `k` of a list."""

    documents: list[Document]
    k: int = 5

    def _get_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
        return self.documents[: k or self.k]

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
        return self.documents[: k or self.k]


class HashedWords(Embeddings):
    """Bag of hashed words; the same on every machine."""

    def embed_query(self, text: str) -> list[float]:
        counts = [0.001] * 32
        for word in text.casefold().split():
            counts[zlib.crc32(word.encode()) % 32] += 1.0
        return counts

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


class Failing:
    """Fails with a message that quotes half a character."""

    name = "failing"

    def score(self, query, passages):
        raise RuntimeError("no \ud83d")


@pytest.fixture
def base():
    return ListRetriever(documents=[Document(page_content=text, id=str(i)) for i, text in enumerate(TEXTS)])


@pytest.fixture
def rerank():
    return MarcoRerank(reranker=WordOverlapScorer())


def contents(documents):
    return [document.page_content for document in documents]


class TestRetrieverStandard(RetrieversIntegrationTests):
    """LangChain's own suite for retrievers."""

    @property
    def retriever_constructor(self):
        return RerankRetriever

    @property
    def retriever_constructor_params(self):
        documents = [Document(page_content=text) for text in TEXTS]
        return {
            "base_retriever": ListRetriever(documents=documents),
            "reranker": MarcoRerank(reranker=WordOverlapScorer()),
        }

    @property
    def retriever_query_example(self):
        return QUERY

    @property
    def num_results_arg_name(self):
        return "top_n"


async def test_contextual_compression_retriever(base, rerank):
    """The adapter works as the compressor of ContextualCompressionRetriever, sync, async and in batches."""
    retriever = ContextualCompressionRetriever(base_compressor=rerank, base_retriever=base)
    assert contents(retriever.invoke(QUERY)) == BEST
    assert contents(await retriever.ainvoke(QUERY)) == BEST
    assert [contents(found) for found in retriever.batch([QUERY, QUERY])] == [BEST, BEST]
    assert [contents(found) for found in await retriever.abatch([QUERY, QUERY])] == [BEST, BEST]


async def test_document_compressor_pipeline(base, rerank):
    """The adapter works between other steps of DocumentCompressorPipeline."""

    class Shout(BaseDocumentTransformer):
        def transform_documents(self, documents, **kwargs):
            return [
                document.model_copy(update={"page_content": document.page_content.upper()}) for document in documents
            ]

        async def atransform_documents(self, documents, **kwargs):
            return self.transform_documents(documents)

    pipeline = DocumentCompressorPipeline(transformers=[rerank, Shout()])
    expected = [text.upper() for text in BEST]
    assert contents(pipeline.compress_documents(base.documents, QUERY)) == expected
    assert contents(await pipeline.acompress_documents(base.documents, QUERY)) == expected


def test_langchains_own_cross_encoder_reranker(base):
    """LangChain's CrossEncoderReranker takes the cross-encoder, and can be dumped with it."""
    compressor = CrossEncoderReranker(model=MarcoCrossEncoder(reranker=WordOverlapScorer()), top_n=3)
    retriever = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=base)
    assert contents(retriever.invoke(QUERY)) == BEST
    assert "word-overlap" in compressor.model_dump_json()


async def test_a_chain_of_runnables(base, rerank):
    """`as_runnable` ranks in a chain: invoke, ainvoke, batch, abatch, stream and astream."""
    chain = {"query": RunnablePassthrough(), "documents": base} | rerank.as_runnable() | RunnableLambda(contents)
    assert chain.invoke(QUERY) == BEST
    assert await chain.ainvoke(QUERY) == BEST
    assert chain.batch([QUERY] * 3) == [BEST] * 3
    assert await chain.abatch([QUERY] * 3) == [BEST] * 3
    assert list(chain.stream(QUERY)) == [BEST]
    assert [part async for part in chain.astream(QUERY)] == [BEST]


def test_a_whole_rag_chain(base, rerank):
    """Retriever, prompt, model and parser make an answer, whole and streamed."""
    retriever = RerankRetriever(base_retriever=base, reranker=rerank, top_n=1)
    prompts = []
    chain = (
        {"context": retriever | contents | "\n".join, "question": RunnablePassthrough()}
        | ChatPromptTemplate.from_template("{context}\n\n{question}")
        | RunnableLambda(lambda prompt: prompts.append(prompt.to_string()) or prompt)
        | FakeListChatModel(responses=["nectar"])
        | StrOutputParser()
    )
    assert chain.invoke(QUERY) == "nectar"
    assert "".join(chain.stream(QUERY)) == "nectar"
    assert prompts == [f"Human: {TEXTS[2]}\n\n{QUERY}"] * 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"documents": []}, r"has the keys \['documents'\]; expected a dict or an object with `documents` and with"),
        ({"query": "a", "context": []}, r"has the keys \['context', 'query'\]; expected"),
        ("a", "The input is a str without `documents`; expected a dict or an object"),
        (SimpleNamespace(documents=[]), "is a SimpleNamespace without `query`; expected a dict or an object"),
    ],
)
def test_a_missing_input_key_is_named(rerank, state, message):
    """An input without the query or the documents says which keys it has and which are expected."""
    with pytest.raises(InvalidInputError, match=message):
        rerank.as_runnable().invoke(state)


def test_the_runnable_takes_a_question(rerank, base):
    """The query may come as `question`; where both are there, `query` counts; other keys are ignored."""
    runnable = rerank.as_runnable()
    state = {"documents": base.documents, "question": QUERY, "history": []}
    assert contents(runnable.invoke(state)) == BEST
    assert contents(runnable.invoke({**state, "question": "cars", "query": QUERY})) == BEST


def test_a_chroma_store_on_disk(tmp_path, rerank):
    """Over a Chroma store on disk, the retriever finds with the store and ranks; `k` goes to the store."""
    store = Chroma(
        client=chromadb.PersistentClient(path=str(tmp_path)),
        collection_name="bees",
        embedding_function=HashedWords(),
    )
    store.add_texts(TEXTS, metadatas=[{"line": line} for line in range(len(TEXTS))], ids=list("abcde"))
    retriever = RerankRetriever(base_retriever=store.as_retriever(search_kwargs={"k": 5}), reranker=rerank, top_n=2)
    found = retriever.invoke(QUERY)
    assert contents(found) == BEST[:2]
    assert [(document.id, document.metadata) for document in found] == [
        ("c", {"line": 2, "relevance_score": 5.0}),
        ("e", {"line": 4, "relevance_score": pytest.approx(-1.0)}),
    ]
    assert len(retriever.invoke(QUERY, k=1, top_n=None)) == 1


def test_a_blend_with_the_scores_of_a_store():
    """Scores of the store that are written into the metadata decide with the weight that they are given."""
    store = Chroma(
        client=chromadb.EphemeralClient(),
        collection_name="scored",
        embedding_function=HashedWords(),
        collection_metadata={"hnsw:space": "cosine"},
    )
    store.add_texts(TEXTS, ids=list("abcde"))

    def with_scores(query: str) -> list[Document]:
        found = store.similarity_search_with_relevance_scores(query, k=5)
        return [document.model_copy(update={"metadata": {"retrieval_score": score}}) for document, score in found[::-1]]

    base = RunnableLambda(with_scores)
    scores = {document.page_content: document.metadata["retrieval_score"] for document in base.invoke(QUERY)}
    for blend in (0.5, 1.0):
        rerank = MarcoRerank(reranker=WordOverlapScorer(), blend=blend)
        found = RerankRetriever(base_retriever=base, reranker=rerank, top_n=5).invoke(QUERY)
        expected = Reranker(WordOverlapScorer(), blend=blend).rank(
            QUERY, list(scores), retrieval_scores=scores.values()
        )
        assert contents(found) == [result.text for result in expected]
        assert [document.metadata["blended_score"] for document in found] == [one.blended_score for one in expected]
    store.delete_collection()
    assert contents(found) == sorted(scores, key=lambda text: -scores[text])


def rounded(metadata):
    """Older releases of Chroma may change the last bit of a number."""
    return {key: round(value, 9) if isinstance(value, float) else value for key, value in metadata.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"reranker": WordOverlapScorer()},
        {"model_name": "bundled", "long_passages": "windows", "max_length": 32},
        {"reranker": Failing(), "on_error": "passthrough"},
        {"reranker": Failing(), "fallback": WordOverlapScorer()},
        {"reranker": WordOverlapScorer(), "skim": WordOverlapScorer(), "skim_keep": 2, "blend": 0.3},
    ],
    ids=["ranked", "windows", "passthrough", "fallback", "cascade"],
)
def test_what_was_ranked_can_be_stored(settings):
    """Chroma takes the results whatever happened in the call, gives them back, and they can be ranked again."""
    store = Chroma(client=chromadb.EphemeralClient(), collection_name="stored", embedding_function=HashedWords())
    documents = [Document(page_content=text * 9, metadata={"line": line}) for line, text in enumerate(TEXTS)]
    found = MarcoRerank(**settings, top_n=None).compress_documents(documents, QUERY)
    ids = store.add_documents(found)
    stored = store.get_by_ids(ids)
    store.delete_collection()
    assert {document.id: rounded(document.metadata) for document in stored} == {
        key: rounded(document.metadata) for key, document in zip(ids, found, strict=True)
    }
    assert {type(value) for document in stored for value in document.metadata.values()} <= {str, int, float, bool}
    again = MarcoRerank(reranker=WordOverlapScorer(), top_n=None).compress_documents(stored, QUERY)
    assert {*again[0].metadata} - {"retrieval_score"} == {"line", "relevance_score"}


async def test_retriever_arguments_of_a_call(base, rerank):
    """Per call, top_n and score_threshold count before the fields, None means all, the rest goes to the base."""
    retriever = RerankRetriever(base_retriever=base, reranker=rerank, top_n=1)
    for documents in (
        [retriever.invoke(QUERY), retriever.invoke(QUERY, top_n=2), retriever.invoke(QUERY, top_n=None)],
        [
            await retriever.ainvoke(QUERY),
            await retriever.ainvoke(QUERY, top_n=2),
            await retriever.ainvoke(QUERY, top_n=None),
        ],
    ):
        assert [len(found) for found in documents] == [1, 2, 5]
    assert len(retriever.invoke(QUERY, top_n=None, score_threshold=-2)) == 2
    assert len(await retriever.ainvoke(QUERY, top_n=None, k=2)) == 2
    assert [len(found) for found in retriever.batch([QUERY, "honey"], top_n=2)] == [2, 2]
    assert [len(found) for found in await retriever.abatch([QUERY, "honey"], top_n=2)] == [2, 2]
    assert [len(found) for found in retriever.stream(QUERY, top_n=2)] == [2]
    with pytest.raises(InvalidInputError, match="`top_n` is 0; expected"):
        retriever.invoke(QUERY, top_n=0)


def test_where_the_retrievers_top_n_comes_from(base):
    """The retriever's own top_n counts; where it is not given, that of its reranker."""
    scorer = WordOverlapScorer()
    for own, of_reranker, expected in [({}, {}, 3), ({}, {"top_n": 4}, 4), ({"top_n": 2}, {"top_n": 4}, 2)]:
        retriever = RerankRetriever(base_retriever=base, reranker=MarcoRerank(reranker=scorer, **of_reranker), **own)
        assert len(retriever.invoke(QUERY)) == retriever.top_n == expected
    all_of_them = RerankRetriever(base_retriever=base, reranker=MarcoRerank(reranker=scorer), top_n=None)
    assert len(all_of_them.invoke(QUERY)) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"top_n": "3"}, "`top_n` is '3'; expected"), ({"topn": 3}, "no field 'topn'. Did you mean 'top_n'")],
)
def test_a_bad_retriever_setting_is_an_error(base, settings, message):
    """A setting that cannot be used, or is misspelt, is an error."""
    with pytest.raises(ValidationError, match=message):
        RerankRetriever(base_retriever=base, **settings)


def test_a_core_reranker_is_wrapped(base):
    """A `marcorank.Reranker` may be given where the adapter is expected, and is shared."""
    core = Reranker(WordOverlapScorer())
    retriever = RerankRetriever(base_retriever=base, reranker=core, top_n=2)
    assert retriever.reranker.core is core
    assert contents(retriever.invoke(QUERY)) == BEST[:2]


def test_a_cut_query_is_reported_on_each_document(small_bert):
    """A query above its cap shows in the metadata, every time, and a query that fits does not."""
    rerank = MarcoRerank(model_name=str(small_bert), max_length=32, backend="onnx")
    for query, expected in [("cats " * 40, True), ("cats", None), ("cats " * 40, True)]:
        found = rerank.compress_documents([Document("cats")], query)
        assert found[0].metadata.get("query_truncated") is expected


async def test_any_runnable_is_a_base_retriever(rerank):
    """The first stage may be any runnable from a query to documents, and may find nothing."""
    retriever = RerankRetriever(
        base_retriever=RunnableLambda(lambda query: [Document(page_content=query)] if query == "a" else []),
        reranker=rerank,
    )
    assert contents(retriever.invoke("a")) == ["a"]
    assert retriever.invoke("b") == await retriever.ainvoke("b") == []


def test_a_bound_top_n(base, rerank):
    """`bind` fixes the arguments of a call, as with any runnable."""
    retriever = RerankRetriever(base_retriever=base, reranker=rerank)
    assert contents(retriever.bind(top_n=1).invoke(QUERY)) == BEST[:1]


class WindowScorer(CrossEncoderScorer):
    """Says that the best window is the last four characters, and that long texts were cut."""

    name = "windows"

    def __init__(self):
        """Load nothing."""

    def score_steps(self, requests):
        yield from ()  # nothing to wait for
        return [
            PassageScores(
                np.zeros(len(passages), np.float32),
                truncated=np.array([len(text) > 20 for text in passages]),
                spans=tuple((len(text) - 4, len(text)) for text in passages),
                unknown_tokens=np.array([text.count("h") for text in passages]),
            )
            for _, passages in requests
        ]


def test_the_span_and_the_truncation_are_reported():
    """The best span is in page_content whatever came before it, truncation is said only where it happened."""
    documents = [
        Document(page_content="abcdefgh", metadata={"title": "T" * 30, "truncated": True}),
        Document(
            page_content="ab",
            metadata={"title": "Title", "truncated": True, "best_start": 7, "best_end": 9, "unknown_tokens": 2},
        ),
        Document(page_content="", metadata={"title": "Title"}),
    ]
    found = MarcoRerank(reranker=WindowScorer(), text_fields=["title"]).compress_documents(documents, QUERY)
    added = [{key: value for key, value in document.metadata.items() if key != "title"} for document in found]
    assert added == [
        {"relevance_score": 0.0, "best_start": 4, "best_end": 8, "truncated": True, "unknown_tokens": 1},
        {"relevance_score": 0.0, "best_start": 0, "best_end": 2},
        {"relevance_score": 0.0, "best_start": 0, "best_end": 0},
    ]


async def test_the_bundled_model(base):
    """With the bundled model, retriever, cross-encoder and core give the same scores."""
    retriever = RerankRetriever(base_retriever=base, reranker=MarcoRerank(model_name="bundled"), top_n=None)
    found = retriever.invoke(QUERY)
    core = Reranker("bundled").rank(QUERY, TEXTS)
    assert [(document.page_content, document.metadata["relevance_score"]) for document in found] == [
        (result.text, result.score) for result in core
    ]
    assert found[0].page_content == TEXTS[2]
    assert await retriever.ainvoke(QUERY) == found
    scores = MarcoCrossEncoder(model_name="bundled").score([(QUERY, result.text) for result in core])
    assert scores == pytest.approx([result.score for result in core], abs=1e-3)


def test_windows_of_the_bundled_model():
    """In windows mode the best span of a long document points at the words that answer."""
    answer = "Bees make honey by drying nectar in the hive."
    filler = "The committee met on Tuesday to discuss the budget of the road works. " * 20
    document = Document(page_content=filler + answer + " " + filler, metadata={"title": "Minutes"})
    rerank = MarcoRerank(model_name="bundled", long_passages="windows", max_length=64, text_fields=["title"])
    (found,) = rerank.compress_documents([document], QUERY)
    assert "honey" in document.page_content[found.metadata["best_start"] : found.metadata["best_end"]]
    assert "truncated" not in found.metadata
    cut = MarcoRerank(model_name="bundled", max_length=64).compress_documents([document], QUERY)
    assert cut[0].metadata["truncated"] is True


def test_importing_the_adapter_loads_no_engine_and_no_other_framework():
    """The import brings langchain-core, and neither an engine, langchain-classic nor LlamaIndex."""
    names = ("torch", "transformers", "onnxruntime", "sentence_transformers", "langchain_classic", "llama_index")
    code = f"import sys, marcorank.langchain; print([name for name in {names!r} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"  # noqa: S603


@pytest.mark.parametrize("missing", ["langchain_core", "pydantic"])
def test_without_langchain_core_the_import_says_what_to_install(missing):
    """Without langchain-core or pydantic, importing the adapter gives the pip command."""
    code = f"import sys; sys.modules[{missing!r}] = None; import marcorank.langchain"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert "MissingExtraError: `marcorank.langchain` needs langchain-core" in done.stderr
    assert "pip install 'marcorank[langchain]'" in done.stderr
