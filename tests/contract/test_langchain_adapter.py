"""What the LangChain adapter promises beyond what both do, which is in `test_adapters.py`."""

from __future__ import annotations

import copy
import datetime as dt
import json
import pickle
from decimal import Decimal
from inspect import signature

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from engines import word_overlap
from marcorank import InvalidInputError, Logistic, Reranker
from marcorank.langchain import MarcoCrossEncoder, MarcoRerank, RerankRetriever
from marcorank.testing import WordOverlapScorer

pytestmark = pytest.mark.usefixtures("engine")

QUERY = "red apple tart"
TEXTS = ["green pear", "red apple tart", "", "red car", "red apple", "red car"]


class RecordingScorer:
    """Keeps the passages that it was asked for."""

    passages = None

    def score(self, query, passages):
        self.passages = passages
        return [0.0] * len(passages)


def documents_of(texts: list[str]) -> list[Document]:
    return [
        Document(page_content=text, id=str(index), metadata={"source": {"page": index}, "tags": ["x"]})
        for index, text in enumerate(texts)
    ]


def test_metadata_goes_through_json():
    """With the scores in it, metadata goes through JSON where the user's did."""
    found = MarcoRerank(reranker=word_overlap(), top_n=None).compress_documents(documents_of(TEXTS), QUERY)
    assert json.loads(json.dumps([document.metadata for document in found])) == [
        document.metadata for document in found
    ]


def test_an_empty_list_needs_no_model():
    """Neither positions nor scores of nothing need a call of the model."""
    scorer = WordOverlapScorer()
    assert MarcoRerank(reranker=scorer).rerank([], QUERY) == []
    assert MarcoCrossEncoder(reranker=scorer).score([]) == []
    assert scorer.calls == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_fields": "title"}, "`text_fields` is 'title'; expected a list of metadata keys"),
        ({"text_fields": [1]}, r"`text_fields` is \[1\]; expected a list"),
        ({"reranker": MarcoCrossEncoder()}, "`reranker` is MarcoCrossEncoder.*; expected a marcorank.Reranker"),
    ],
)
def test_a_bad_setting_is_an_error_that_says_what_was_found(settings, message):
    """A setting that cannot be used is a ValidationError, which is a ValueError, with the core's message."""
    with pytest.raises(ValidationError, match=message):
        MarcoRerank(**settings)


def test_a_cross_encoder_refuses_a_fallback_that_passes_through_also_later():
    """What has no scores is refused at the start, by assignment and in a copy, and the old value stays."""
    passes_through = Reranker(WordOverlapScorer(), on_error="passthrough")
    encoder = MarcoCrossEncoder(reranker=WordOverlapScorer())
    message = "`on_error` is 'passthrough'; a cross-encoder returns"
    with pytest.raises(ValueError, match=message):
        MarcoCrossEncoder(reranker=WordOverlapScorer(), fallback=passes_through)
    with pytest.raises(ValueError, match=message):
        encoder.fallback = passes_through
    with pytest.raises(ValueError, match=message):
        encoder.model_copy(update={"fallback": passes_through})
    assert encoder.fallback is None
    assert encoder.score([("a", "a")]) == [5.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skim": WordOverlapScorer()}, "`skim` is 'word-overlap'; a cross-encoder returns a score for every pair"),
        ({"blend": 0.3}, r"`blend` is 0\.3; a cross-encoder"),
        ({"max_similarity": 0.8}, r"`max_similarity` is 0\.8; a cross-encoder"),
        ({"activation": Logistic(1, 0), "max_drop": 0.3}, r"`max_drop` is 0\.3; a cross-encoder"),
        (
            {"fallback": Reranker(WordOverlapScorer(), skim=WordOverlapScorer())},
            "`skim` of the fallback is 'word-overlap'; a cross-encoder",
        ),
    ],
)
def test_a_cross_encoder_refuses_what_orders_and_leaves_out(settings, message):
    """Also those of a shared reranker, and in a copy; a pair without a score would be an error later."""
    with pytest.raises(ValueError, match=message):
        MarcoCrossEncoder(reranker=WordOverlapScorer(), **settings)
    with pytest.raises(ValueError, match=message):
        MarcoCrossEncoder(reranker=Reranker(WordOverlapScorer(), **settings))
    with pytest.raises(ValueError, match=message):
        MarcoCrossEncoder(model_name="bundled").model_copy(update=settings)


@pytest.mark.parametrize("settings", [{}, {"activation": "sigmoid", "text_fields": ["title"]}])
def test_equality_is_that_of_class_and_settings(settings):
    """Text fields are a setting like others; another class is never equal."""
    rerank = MarcoRerank(**settings)
    assert MarcoRerank(**rerank.model_dump()) == rerank
    assert MarcoRerank(**json.loads(rerank.model_dump_json())) == rerank
    assert pickle.loads(pickle.dumps(rerank)) == copy.deepcopy(rerank) == rerank  # noqa: S301
    assert rerank != MarcoRerank(**{**settings, "text_fields": ["other"]})
    assert rerank != MarcoCrossEncoder()
    assert rerank != type("Derived", (MarcoRerank,), {})(**settings)


def test_the_cross_encoder_has_the_settings_of_the_core():
    """Every setting of the core is a field of the cross-encoder, with the same default, and no other is."""
    core = {name: parameter.default for name, parameter in signature(Reranker).parameters.items()}
    core["model_name"] = core.pop("model")
    own = {name: field.default for name, field in MarcoCrossEncoder.model_fields.items() if name != "reranker"}
    assert own == core


def test_a_reranker_is_shared_with_the_cross_encoder():
    """One reranker serves both classes, and the dump of one goes beside it."""
    shared = Reranker("bundled", max_length=64, activation="sigmoid")
    rerank = MarcoRerank(reranker=shared, top_n=5)
    assert rerank.core is MarcoCrossEncoder(reranker=shared).core is shared
    assert MarcoRerank(reranker=shared, **rerank.model_dump()) == rerank


def test_a_fitted_map_is_part_of_the_json_schema():
    """Who reads the schema sees that a Logistic is an activation."""
    assert "Logistic" in json.dumps(MarcoRerank.model_json_schema())


def test_ids_subclasses_and_extra_fields_survive():
    """A document of a subclass stays one, with its id, its extra fields and its other metadata."""

    class Chunk(Document):
        page: int

    chunk = Chunk(page_content="red apple", id="7", page=3, metadata={"source": "a.pdf"})
    (found,) = MarcoRerank(reranker=word_overlap()).compress_documents([chunk], "red")
    assert type(found) is Chunk
    assert (found.id, found.page, found.page_content) == ("7", 3, "red apple")
    assert found.metadata == {"source": "a.pdf", "relevance_score": 5.0}


def test_documents_may_come_from_any_iterable():
    """A generator or a tuple of documents is as good as a list."""
    rerank = MarcoRerank(reranker=word_overlap())
    expected = rerank.compress_documents(documents_of(TEXTS), QUERY)
    assert rerank.compress_documents(tuple(documents_of(TEXTS)), QUERY) == expected
    assert rerank.compress_documents(iter(documents_of(TEXTS)), QUERY) == expected


async def test_text_fields_come_before_the_text():
    """Values of text fields are scored on lines before the text; absent ones and None are left out, 0 is not."""
    recorder = RecordingScorer()
    documents = [
        Document(page_content="text", metadata={"title": "Title", "year": 0, "author": None, "other": "no"}),
        Document(page_content="bare"),
    ]
    rerank = MarcoRerank(reranker=recorder, text_fields=("title", "year", "author"))
    found = rerank.compress_documents(documents, QUERY)
    assert recorder.passages == ["Title\n0\ntext", "bare"]
    assert [document.page_content for document in found] == ["text", "bare"]
    assert await rerank.acompress_documents(documents, QUERY) == found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "text"),
        (np.float32("nan"), "text"),
        ([], "text"),
        ([None, float("nan")], "text"),
        ("nan", "nan\ntext"),
        ("", "\ntext"),
        (["red", "green"], "red, green\ntext"),
        (("red", None, 5), "red, 5\ntext"),
        (2.5, "2.5\ntext"),
        (True, "True\ntext"),
        (np.int64(7), "7\ntext"),
        (dt.date(2024, 1, 31), "2024-01-31\ntext"),
        (Decimal("1.10"), "1.10\ntext"),
    ],
)
def test_a_text_field_is_read_as_a_person_would_write_it(value, expected):
    """What is missing is left out; lists are joined."""
    scorer = RecordingScorer()
    documents = [Document(page_content="text", metadata={"field": value})]
    MarcoRerank(reranker=scorer, text_fields=["field"]).compress_documents(documents, QUERY)
    assert scorer.passages == [expected]


@pytest.mark.parametrize("name", ["NA", "NaT"])
def test_a_missing_value_of_pandas_is_left_out(name):
    """Loaders of data frames put their marks into the metadata."""
    missing = getattr(pytest.importorskip("pandas"), name)
    scorer = RecordingScorer()
    documents = [Document(page_content="text", metadata={"field": value}) for value in (missing, [missing, "a"])]
    MarcoRerank(reranker=scorer, text_fields=["field"]).compress_documents(documents, QUERY)
    assert scorer.passages == ["text", "a\ntext"]


@pytest.mark.parametrize("value", [{"a": 1}, {"a"}, b"red", object(), [["red"], {"a": 1}], np.zeros(2)])
def test_a_text_field_that_is_no_text_is_refused_by_name(value):
    """The Python form of an object would be scored, which nobody has asked for."""
    scorer = RecordingScorer()
    documents = [Document(page_content="text"), Document(page_content="text", metadata={"tags": value})]
    message = r"`documents\[1\].metadata\['tags'\]` holds .*; expected a text, a number, a date, or a list of them"
    with pytest.raises(InvalidInputError, match=message):
        MarcoRerank(reranker=scorer, text_fields=["tags"]).compress_documents(documents, QUERY)
    assert scorer.passages is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document.model_construct(), r"`documents\[1\].page_content` is None; expected a str"),
        (Document.model_construct(page_content=None, metadata={}), r"`documents\[1\].page_content` is None; expected"),
        (Document.model_construct(page_content=b"a", metadata={}), r"`documents\[1\].page_content` is b'a'; expected"),
        (
            Document.model_construct(page_content="a", metadata=None),
            r"The metadata of `documents\[1\]` is None; expected a dict",
        ),
        ({"page_content": "a", "metadata": "b"}, r"The metadata of `documents\[1\]` is 'b'; expected a dict"),
    ],
)
async def test_a_document_that_was_not_checked_is_named(document, message):
    """`model_construct`, which some stores use, checks nothing; the error comes before the model runs."""
    scorer = RecordingScorer()
    rerank = MarcoRerank(reranker=scorer)
    documents = [Document(page_content="a"), document]
    with pytest.raises(InvalidInputError, match=message):
        rerank.rerank(documents, QUERY)
    if isinstance(document, Document):
        with pytest.raises(InvalidInputError, match=message):
            rerank.compress_documents(documents, QUERY)
        with pytest.raises(InvalidInputError, match=message):
            await rerank.acompress_documents(documents, QUERY)
    assert scorer.passages is None


@pytest.mark.parametrize("score", [10**400, -(10**400), float("inf"), "0.5", None])
def test_a_score_of_the_first_stage_that_is_no_number_does_not_matter(score):
    """It is left where it is, and there is no retrieval_score."""
    documents = [Document(page_content="a", metadata={"score": score})]
    (found,) = MarcoRerank(reranker=word_overlap()).compress_documents(documents, QUERY)
    assert found.metadata["score"] is score
    assert "retrieval_score" not in found.metadata


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            InMemoryVectorStore(DeterministicFakeEmbedding(size=3)),
            r"`base_retriever` is <InMemoryVectorStore object>; expected a retriever.*Pass its `as_retriever\(\)`",
        ),
        ("bm25", "`base_retriever` is 'bm25'; expected a retriever, or a runnable from a query to a list of documents"),
        (None, "`base_retriever` is None; expected a retriever"),
    ],
)
def test_a_base_retriever_that_is_none_is_an_error_with_the_remedy(base, message):
    """A vector store is what people pass; it has a method that gives a retriever."""
    with pytest.raises(ValidationError, match=message):
        RerankRetriever(base_retriever=base, reranker=MarcoRerank(model_name="bundled"))


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ({}, None),
        ({"score": 0.5}, 0.5),
        ({"score": np.float32(0.5)}, 0.5),
        ({"relevance_score": 0.25, "score": 0.5}, 0.25),
        ({"retrieval_score": np.float64(0.75), "relevance_score": 0.25, "score": 0.5}, 0.75),
        ({"score": "good"}, None),
        ({"score": True}, None),
        ({"score": None, "relevance_score": 1}, 1.0),
    ],
)
def test_the_first_stage_score_is_kept(before, kept):
    """A score of an earlier stage becomes retrieval_score, as a plain float; the new score replaces a stale one."""
    document = Document(page_content="red", metadata={**before, "source": "a"})
    (found,) = MarcoRerank(reranker=word_overlap()).compress_documents([document], "red")
    assert found.metadata == {
        **before,
        "source": "a",
        "relevance_score": 5.0,
        **({} if kept is None else {"retrieval_score": kept}),
    }
    assert kept is None or type(found.metadata["retrieval_score"]) is float


def test_a_retrieval_score_that_is_not_a_number_does_not_stay():
    """The key has a float or is absent, also where another program wrote something else under it."""
    document = Document(page_content="red", metadata={"retrieval_score": np.float32("nan")})
    (found,) = MarcoRerank(reranker=word_overlap()).compress_documents([document], "red")
    assert found.metadata == {"relevance_score": 5.0}


def test_a_second_pass_gives_the_same_scores():
    """Reranking what was reranked gives the same order and scores, and keeps the score of the first stage."""
    rerank = MarcoRerank(reranker=word_overlap(), top_n=None)
    documents = [Document(page_content=text, metadata={"score": 0.5}) for text in TEXTS]
    once = rerank.compress_documents(documents, QUERY)
    assert rerank.compress_documents(once, QUERY) == once


def test_rerank_returns_positions_and_plain_scores():
    """`rerank` takes texts, documents and dicts, and returns index and relevance_score, best first."""
    rerank = MarcoRerank(reranker=word_overlap(), text_fields=["title"], top_n=2)
    documents = [
        "pear",
        Document(page_content="apple tart", metadata={"title": "red"}),
        {"text": "apple", "title": "red"},
        {"page_content": "tart", "metadata": {"title": "green"}},
        {"page_content": "tart", "metadata": None},
    ]
    best = [{"index": 1, "relevance_score": 5.0}, {"index": 2, "relevance_score": pytest.approx(10 * 2 / 3 - 5)}]
    assert rerank.rerank(documents, QUERY) == best
    assert rerank.rerank(documents, QUERY, top_n=1) == best[:1]
    assert [found["index"] for found in rerank.rerank(documents, QUERY, top_n=None)] == [1, 2, 3, 4, 0]
    assert rerank.rerank(documents, QUERY, top_n=None, score_threshold=1) == best
    json.dumps(rerank.rerank(documents, QUERY))


def test_rerank_says_what_a_cascade_and_a_blend_add():
    """Beside index and score where they are on, as in the metadata of documents; first-stage scores are read too."""
    documents = [{"text": "pear", "retrieval_score": 3}, {"text": "red apple", "score": 1}, "red apple tart"]
    cascade = MarcoRerank(reranker=word_overlap(), skim=WordOverlapScorer(), skim_keep=1, top_n=None)
    assert cascade.rerank(documents, QUERY)[1:] == [
        {"index": 1, "relevance_score": None, "scored_by": "word-overlap"},
        {"index": 0, "relevance_score": None, "scored_by": "word-overlap"},
    ]
    blend = MarcoRerank(reranker=word_overlap(), blend=1.0, top_n=1)
    scored = [{"text": "pear", "retrieval_score": 1}, {"text": "red", "retrieval_score": 2}]
    assert blend.rerank(scored, QUERY) == [
        {"index": 1, "relevance_score": pytest.approx(10 / 3 - 5), "blended_score": 1.0}
    ]


@pytest.mark.parametrize(
    ("metadata", "order"),
    [
        ([{"retrieval_score": 0.1}, {"retrieval_score": 0.3}, {"retrieval_score": 0.2}], [1, 2, 0]),
        ([{"relevance_score": 0.3}, {"relevance_score": 0.2}, {"relevance_score": -9.0}], [0, 1, 2]),
        ([{"score": 0.3, "relevance_score": "a"}, {"score": 0.3}, {"score": 0.2}], [0, 1, 2]),
        # Scores of several retrievers, distances, and scores of which some are missing: the order counts.
        ([{"score": 0.7}, {"score": 12.3}, {"score": 0.6}], [0, 1, 2]),
        ([{"score": 0.7}, {"relevance_score": 12.3}, {"score": 0.6}], [0, 1, 2]),
        ([{"score": 0.1}, {"score": 0.2}, {"score": 0.3}], [0, 1, 2]),
        ([{"retrieval_score": 0.1}, {"retrieval_score": 0.3}, {}], [0, 1, 2]),
        ([{}, {}, {}], [0, 1, 2]),
    ],
)
def test_the_scores_that_a_blend_goes_by(metadata, order):
    """The first stage alone, with a weight of 1: its scores if all documents have one of the same kind."""
    documents = [Document(page_content="red", metadata=one, id=str(index)) for index, one in enumerate(metadata)]
    found = MarcoRerank(reranker=word_overlap(), blend=1.0).compress_documents(documents, "red")
    assert [int(document.id) for document in found] == order


def test_what_only_the_skimming_model_read_has_its_first_stage_score():
    """It stays under its own key, and none passes for a score of this stage."""
    documents = [Document(page_content=text, metadata={"relevance_score": 0.5}) for text in ("pear", "red apple")]
    rerank = MarcoRerank(reranker=word_overlap(), skim=WordOverlapScorer(), skim_keep=1, top_n=None)
    assert [document.metadata for document in rerank.compress_documents(documents, "red apple")] == [
        {"relevance_score": 5.0, "retrieval_score": 0.5},
        {"retrieval_score": 0.5, "scored_by": "word-overlap"},
    ]


def test_rerank_arguments_count_before_the_fields():
    """None in a call means all and no threshold, whatever the fields say."""
    rerank = MarcoRerank(reranker=word_overlap(), top_n=1, score_threshold=4.0)
    assert len(rerank.rerank(TEXTS, QUERY)) == 1
    assert len(rerank.rerank(TEXTS, QUERY, top_n=None, score_threshold=None)) == 6
    assert len(rerank.compress_documents(documents_of(TEXTS), QUERY, top_n=None, score_threshold=None)) == 6
    with pytest.raises(InvalidInputError, match="`top_n` is 0; expected"):
        rerank.rerank(TEXTS, QUERY, top_n=0)
    with pytest.raises(InvalidInputError, match="`score_threshold` is 'high'; expected"):
        rerank.compress_documents(documents_of(TEXTS), QUERY, score_threshold="high")
    cascade = MarcoRerank(reranker=word_overlap(), skim=WordOverlapScorer(), skim_keep=3)
    with pytest.raises(InvalidInputError, match="`top_n` is 4 and `skim_keep` 3"):
        cascade.rerank(TEXTS, QUERY, top_n=4)


@pytest.mark.parametrize("document", [None, 5, {"content": "a"}, {"text": None}])
def test_rerank_names_what_has_no_text(document):
    """What holds no text is an error that names its index and type."""
    kind = type(document).__name__
    with pytest.raises(InvalidInputError, match=rf"`documents\[1\]` is a {kind}; expected a str, a LangChain Document"):
        MarcoRerank(reranker=word_overlap()).rerank(["a", document], QUERY)


@given(pairs=st.lists(st.tuples(st.sampled_from(["a", "a b", "c"]), st.text("abc ", max_size=5)), max_size=12))
def test_the_cross_encoder_scores_pairs_in_input_order(pairs):
    """Mixed queries give one plain float a pair, each as if it were alone, in one call of the core."""
    scores = MarcoCrossEncoder(reranker=word_overlap()).score(pairs)
    alone = Reranker(word_overlap())
    assert scores == [float(alone.score(query, [passage])[0]) for query, passage in pairs]
    assert all(type(score) is float for score in scores)


def test_the_cross_encoder_scores_each_query_once():
    """Pairs are grouped by query: one call a query, however they are mixed."""
    scorer = WordOverlapScorer()
    MarcoCrossEncoder(reranker=scorer).score([("a", "x"), ("b", "x"), ("a", "y"), ("b", "y")])
    assert scorer.calls == 2


def test_the_cross_encoder_honours_the_activation():
    """With a sigmoid the scores run from 0 to 1, also where it is assigned later."""
    scores = MarcoCrossEncoder(reranker=word_overlap(), activation="sigmoid").score([("a", "a"), ("a", "b")])
    assert scores == pytest.approx([0.99331, 0.00669], abs=1e-5)
    changed = MarcoCrossEncoder(reranker=word_overlap())
    changed.activation = "sigmoid"
    assert changed.score([("a", "a")]) == pytest.approx([0.99331], abs=1e-5)


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", None), 5])
def test_the_cross_encoder_takes_pairs_of_texts(pair):
    """What is no pair of texts is named by its place; a text of two characters is none."""
    with pytest.raises(InvalidInputError, match=r"`text_pairs\[1\]` is .*; expected a pair of str: query, passage"):
        MarcoCrossEncoder(reranker=word_overlap()).score([("a", "b"), pair])
