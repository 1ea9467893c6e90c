"""What the LangChain adapter promises, whatever stands around it."""

from __future__ import annotations

import copy
import json
import pickle
from inspect import signature

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from pydantic import SecretStr, ValidationError

from engines import word_overlap
from marcorank import InvalidInputError, Logistic, Reranker, ScoreError, UnknownModelError
from marcorank.langchain import MarcoCrossEncoder, MarcoRerank
from marcorank.testing import WordOverlapScorer

pytestmark = pytest.mark.usefixtures("engine")

QUERY = "red apple tart"
TEXTS = ["green pear", "red apple tart", "", "red car", "red apple", "red car"]

passages = st.lists(st.text("abc \n\x00é🙂", max_size=12), max_size=8)


def documents_of(texts: list[str]) -> list[Document]:
    return [
        Document(page_content=text, id=str(index), metadata={"source": {"page": index}, "tags": ["x"]})
        for index, text in enumerate(texts)
    ]


@given(
    texts=passages,
    top_n=st.none() | st.integers(1, 9),
    threshold=st.none() | st.floats(-6, 6),
    activation=st.sampled_from(["identity", "sigmoid", Logistic(0.5, -1.0)]),
)
def test_same_order_and_scores_as_the_core(texts, top_n, threshold, activation):
    """Order and scores are those of the core, for any texts, top_n, threshold and activation."""
    rerank = MarcoRerank(
        reranker=word_overlap(), activation=activation, top_n=top_n, score_threshold=threshold, text_fields=()
    )
    found = rerank.compress_documents(documents_of(texts), "a b c")
    core = Reranker(word_overlap(), activation=activation)
    expected = core.rank("a b c", texts, top_n=top_n, score_threshold=threshold)
    assert [(document.id, document.metadata["relevance_score"]) for document in found] == [
        (str(result.index), result.score) for result in expected
    ]


@given(texts=passages)
def test_inputs_are_never_changed(texts):
    """Documents, their metadata and the list are deep-equal before and after, and the results are new objects."""
    documents = documents_of(texts)
    before = copy.deepcopy(documents)
    found = MarcoRerank(reranker=word_overlap(), top_n=None).compress_documents(documents, "a")
    assert documents == before
    assert not {id(document) for document in documents} & {id(document) for document in found}
    assert not {id(document.metadata) for document in documents} & {id(document.metadata) for document in found}


async def test_async_gives_what_sync_gives():
    """The async method returns the same documents."""
    rerank = MarcoRerank(reranker=word_overlap(), text_fields=["source"], score_threshold=-4)
    documents = documents_of(TEXTS)
    assert await rerank.acompress_documents(documents, QUERY) == rerank.compress_documents(documents, QUERY)


def test_scores_are_plain_floats_that_go_through_json():
    """The score is a Python float, and the metadata goes through JSON where the user's did."""
    found = MarcoRerank(reranker=word_overlap(), top_n=None).compress_documents(documents_of(TEXTS), QUERY)
    assert {type(document.metadata["relevance_score"]) for document in found} == {float}
    assert json.loads(json.dumps([document.metadata for document in found])) == [
        document.metadata for document in found
    ]


def test_ids_subclasses_and_extra_fields_survive():
    """A document of a subclass stays one, with its id, its extra fields and its other metadata."""

    class Chunk(Document):
        page: int

    chunk = Chunk(page_content="red apple", id="7", page=3, metadata={"source": "a.pdf"})
    (found,) = MarcoRerank(reranker=word_overlap()).compress_documents([chunk], "red")
    assert type(found) is Chunk
    assert (found.id, found.page, found.page_content) == ("7", 3, "red apple")
    assert found.metadata == {"source": "a.pdf", "relevance_score": 5.0}


def test_an_empty_list_needs_no_model():
    """No documents give no documents, without a call of the model."""
    scorer = WordOverlapScorer()
    assert MarcoRerank(reranker=scorer).compress_documents([], QUERY) == []
    assert MarcoRerank(reranker=scorer).rerank([], QUERY) == []
    assert MarcoCrossEncoder(reranker=scorer).score([]) == []
    assert scorer.calls == 0


def test_nothing_is_loaded_before_the_first_use(tmp_path):
    """Making an adapter, and ranking nothing, reads no model: a folder without one is no error yet."""
    rerank = MarcoRerank(model_name=tmp_path)
    assert rerank.compress_documents([], QUERY) == []
    with pytest.raises(OSError, match=r"config\.json|weights"):
        rerank.compress_documents(documents_of(TEXTS), QUERY)


def test_the_threshold_comes_before_top_n():
    """The threshold is on the scale of the activation and applies before top_n; zero is a threshold."""
    documents = documents_of(["red", "red apple", "red apple tart", "pear"])
    rerank = MarcoRerank(reranker=word_overlap(), top_n=2, score_threshold=0)
    assert [document.id for document in rerank.compress_documents(documents, QUERY)] == ["2", "1"]
    strict = MarcoRerank(reranker=word_overlap(), activation="sigmoid", top_n=2, score_threshold=0.9)
    assert [document.id for document in strict.compress_documents(documents, QUERY)] == ["2"]


def test_top_n_is_three_unless_given_and_none_means_all():
    """Without top_n three documents come back; with None all of them."""
    documents = documents_of(TEXTS)
    assert len(MarcoRerank(reranker=word_overlap()).compress_documents(documents, QUERY)) == 3
    assert len(MarcoRerank(reranker=word_overlap(), top_n=None).compress_documents(documents, QUERY)) == 6


def test_numpy_numbers_are_numbers():
    """Settings that come out of numpy work and become plain."""
    rerank = MarcoRerank(reranker=word_overlap(), top_n=np.int64(2), score_threshold=np.float32(0.5))
    assert rerank.model_dump(include={"top_n", "score_threshold"}) == {"top_n": 2, "score_threshold": 0.5}
    assert type(rerank.top_n) is int


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_n": 0}, "`top_n` is 0; expected a whole number of at least 1"),
        ({"top_n": -1}, "`top_n` is -1; expected"),
        ({"top_n": True}, "`top_n` is True; expected"),
        ({"top_n": "3"}, "`top_n` is '3'; expected"),
        ({"top_n": 2.0}, "`top_n` is 2.0; expected"),
        ({"score_threshold": "0.5"}, "`score_threshold` is '0.5'; expected None or a finite number"),
        ({"score_threshold": True}, "`score_threshold` is True; expected"),
        ({"score_threshold": float("nan")}, "`score_threshold` is nan; expected"),
        ({"text_fields": "title"}, "`text_fields` is 'title'; expected a list of metadata keys"),
        ({"text_fields": [1]}, r"`text_fields` is \[1\]; expected a list"),
        ({"model_name": 5}, "`model_name` is 5; expected a model name or the path of a model folder"),
        ({"model_name": WordOverlapScorer()}, "`model_name` is <.*goes in `reranker`"),
        ({"activation": "softmax"}, "`activation` is 'softmax'; expected one of 'identity', 'sigmoid'"),
        ({"activation": {"a": -1, "b": 0}}, "`a` of Logistic is -1; expected a finite number above 0"),
        ({"backend": "tensorflow"}, "`backend` is 'tensorflow'; expected one of 'auto'"),
        ({"precision": "int4"}, "`precision` is 'int4'; expected one of 'auto'"),
        ({"device": ""}, "`device` is empty; expected None or a text"),
        ({"max_length": "512"}, "`max_length` is '512'; expected a whole number"),
        ({"long_passages": "drop"}, "`long_passages` is 'drop'; expected one of 'truncate', 'windows'"),
        ({"local_files_only": "yes"}, "`local_files_only` is 'yes'; expected one of True, False, None"),
        ({"allow_pickle": 1}, "`allow_pickle` is 1; expected one of True, False"),
        ({"token": ""}, "`token` is empty; expected None or a text that is not empty"),
        ({"token": SecretStr("")}, "`token` is empty; expected None or a text that is not empty"),
        ({"reranker": "bundled"}, "`reranker` is 'bundled'; expected a marcorank.Reranker.*goes in `model_name`"),
        ({"reranker": WordOverlapScorer}, "`reranker` is <class .*; expected a marcorank.Reranker"),
        ({"reranker": MarcoCrossEncoder()}, "`reranker` is MarcoCrossEncoder.*; expected a marcorank.Reranker"),
        ({"topn": 3}, "Extra inputs are not permitted"),
    ],
)
def test_a_bad_setting_is_an_error_that_says_what_was_found(settings, message):
    """A setting that cannot be used is a ValidationError, which is a ValueError, with the core's message."""
    with pytest.raises(ValidationError, match=message):
        MarcoRerank(**settings)


def test_assigning_a_bad_setting_is_an_error():
    """A field is checked whenever it changes, and what it was stays."""
    rerank = MarcoRerank()
    with pytest.raises(ValidationError, match="`top_n` is 0; expected"):
        rerank.top_n = 0
    assert rerank.top_n == 3


def test_an_unknown_model_is_an_error_at_once():
    """A name that can be no model is found when the adapter is made."""
    with pytest.raises(UnknownModelError, match="Model 'minilm' is unknown"):
        MarcoRerank(model_name="minilm")


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([Document(page_content="a"), None], r"`documents\[1\]` is a NoneType; expected a LangChain Document"),
        (["a"], r"`documents\[0\]` is a str; expected a LangChain Document"),
        ("a", "`documents` is a str; expected a list of documents, even for one"),
        (Document(page_content="a"), "`documents` is a Document; expected a list"),
        (None, "`documents` is a NoneType; expected a list"),
    ],
)
def test_what_is_no_document_is_named_by_its_place(documents, message):
    """None or a text among the documents is an error that names its index and type."""
    with pytest.raises(InvalidInputError, match=message):
        MarcoRerank(reranker=word_overlap()).compress_documents(documents, QUERY)


@pytest.mark.parametrize(("query", "message"), [("  ", "`query` is blank"), (None, "`query` is None; expected a str")])
async def test_a_query_has_to_say_something(query, message):
    """A blank query or None is a clear error, sync and async."""
    rerank = MarcoRerank(reranker=word_overlap())
    with pytest.raises(InvalidInputError, match=message):
        rerank.compress_documents(documents_of(TEXTS), query)
    with pytest.raises(InvalidInputError, match=message):
        await rerank.acompress_documents(documents_of(TEXTS), query)


def test_a_score_that_is_no_number_is_an_error():
    """NaN from a model never becomes a rank."""

    class Broken:
        def score(self, query, passages):
            return [float("nan")] * len(passages)

    with pytest.raises(ScoreError, match=r"Model `Broken` returned nan for `passages\[0\]`"):
        MarcoRerank(reranker=Broken()).compress_documents(documents_of(TEXTS), QUERY)


def test_documents_may_come_from_any_iterable():
    """A generator or a tuple of documents is as good as a list."""
    rerank = MarcoRerank(reranker=word_overlap())
    expected = rerank.compress_documents(documents_of(TEXTS), QUERY)
    assert rerank.compress_documents(tuple(documents_of(TEXTS)), QUERY) == expected
    assert rerank.compress_documents(iter(documents_of(TEXTS)), QUERY) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "model_name": "bundled",
            "top_n": None,
            "score_threshold": 0.25,
            "text_fields": ["title"],
            "activation": "sigmoid",
            "backend": "onnx",
            "device": "cpu",
            "precision": "int8",
            "max_length": 128,
            "max_query_tokens": 32,
            "long_passages": "windows",
            "revision": "main",
            "cache_folder": "cache",
            "local_files_only": True,
            "allow_pickle": True,
        },
        {"activation": Logistic(0.8, -1.2)},
        {"activation": {"a": 0.8, "b": -1.2}},
    ],
)
def test_settings_round_trip_through_dict_json_and_pickle(settings):
    """Dict, JSON, pickle and deepcopy give an equal adapter; a pickle is a few hundred bytes."""
    rerank = MarcoRerank(**settings)
    pickled = pickle.dumps(rerank)
    assert MarcoRerank(**rerank.model_dump()) == rerank
    assert MarcoRerank(**json.loads(rerank.model_dump_json())) == rerank
    assert pickle.loads(pickled) == rerank  # noqa: S301
    assert copy.deepcopy(rerank) == rerank
    assert len(pickled) < 1000
    assert rerank != MarcoRerank(**{**settings, "top_n": 9})
    assert rerank != MarcoCrossEncoder()
    assert rerank != type("Derived", (MarcoRerank,), {})(**settings)


def test_a_pickle_works_after_the_model_was_used():
    """An adapter that has loaded its model still pickles by its settings, and the copy ranks the same."""
    rerank = MarcoRerank(reranker=word_overlap(), top_n=2)
    expected = rerank.compress_documents(documents_of(TEXTS), QUERY)
    copied = pickle.loads(pickle.dumps(rerank))  # noqa: S301
    assert copied.compress_documents(documents_of(TEXTS), QUERY) == expected


@pytest.mark.parametrize("token", ["hf_secret", SecretStr("hf_secret")], ids=["text", "secret"])
def test_the_token_stays_inside(token):
    """The token reaches the model loader, also of a copy, and is in no dump, repr, pickle or error."""
    rerank = MarcoRerank(token=token)
    copied = MarcoRerank().model_copy(update={"token": token})
    for each in (rerank, copied, copy.deepcopy(rerank)):
        shown = [
            repr(each),
            str(each),
            each.model_dump_json(),
            str(each.model_dump()),
            str(vars(each)),
            repr(each.core),
        ]
        assert not any("hf_secret" in text for text in shown)
        assert b"hf_secret" not in pickle.dumps(each)
        assert each.core._settings.token == "hf_secret"
    with pytest.raises(ValidationError, match="`token` was given beside a `reranker`") as raised:
        MarcoRerank(reranker=Reranker("bundled"), token=token)
    assert "hf_secret" not in str(raised.value)
    with pytest.raises(ValidationError, match="`token` is of type bytes; expected None or a text") as raised:
        MarcoRerank(token=b"hf_secret")
    assert "hf_secret" not in str(raised.value)


def test_fields_are_the_settings_of_the_core():
    """Every setting of the core is a field of the adapters, with the same default."""
    core = {name: parameter.default for name, parameter in signature(Reranker).parameters.items()}
    core["model_name"] = core.pop("model")
    own = {name: field.default for name, field in MarcoCrossEncoder.model_fields.items() if name != "reranker"}
    assert own == core
    assert core.items() <= {name: field.default for name, field in MarcoRerank.model_fields.items()}.items()


def test_a_shared_reranker_does_the_work():
    """Adapters that are given one reranker use that one, and their dumps say what it is."""
    shared = Reranker("bundled", max_length=64, activation="sigmoid")
    rerank = MarcoRerank(reranker=shared, top_n=5)
    assert rerank.core is MarcoCrossEncoder(reranker=shared).core is shared
    assert copy.deepcopy(rerank).core is shared
    for again in (
        MarcoRerank(**rerank.model_dump()),
        MarcoRerank(**rerank.model_dump(exclude_unset=True)),
        pickle.loads(pickle.dumps(rerank)),  # noqa: S301
    ):
        assert again.core.to_dict() == shared.to_dict()
        assert again.top_n == 5
    rerank.top_n = 6
    assert (rerank.top_n, rerank.core) == (6, shared)
    assert MarcoRerank(reranker=shared, device=None, token=None).core is shared
    assert MarcoRerank(reranker=shared, **rerank.model_dump()) == rerank


@pytest.mark.parametrize(
    "shared", [WordOverlapScorer(), Reranker(WordOverlapScorer()), Reranker(WordOverlapScorer(), activation="sigmoid")]
)
def test_a_dump_of_an_adapter_with_a_scorer_is_no_other_model(shared):
    """A scorer object is in no dump: the dump fails to load instead of taking another model, until it is passed."""
    rerank = MarcoRerank(reranker=shared, top_n=1)
    plain = rerank.model_dump()
    assert (plain["model_name"], plain["activation"]) == ("word-overlap", rerank.core.activation)
    with pytest.raises(UnknownModelError, match="Model 'word-overlap' is unknown"):
        MarcoRerank(**plain)
    assert MarcoRerank(**plain, reranker=shared) == rerank


@pytest.mark.parametrize(
    ("shared", "setting"),
    [
        (Reranker("bundled"), {"model_name": "cross-encoder/ms-marco-MiniLM-L-6-v2"}),
        (Reranker("bundled"), {"activation": "sigmoid"}),
        (Reranker("bundled"), {"backend": "onnx"}),
        (WordOverlapScorer(), {"model_name": "bundled"}),
        (WordOverlapScorer(), {"device": "cpu"}),
    ],
)
def test_a_shared_reranker_has_its_own_settings(shared, setting):
    """Model settings beside a reranker would be ignored, so they are an error, also when they come later."""
    name, value = next(iter(setting.items()))
    message = f"`{name}` is '{value}' beside a `reranker` whose own is .*Pass one"
    with pytest.raises(ValidationError, match=message):
        MarcoRerank(reranker=shared, **setting)
    rerank = MarcoRerank(reranker=shared)
    with pytest.raises(ValidationError, match=message):
        setattr(rerank, name, value)
    with pytest.raises(ValidationError, match=message):
        rerank.model_copy(update=setting)
    with pytest.raises(ValidationError, match="Field is frozen"):
        MarcoRerank().reranker = shared


def test_a_change_of_settings_reaches_the_core():
    """A copy with another setting, and an assignment, are followed; a copy with another top_n shares the model."""
    rerank = MarcoRerank(model_name="bundled")
    assert rerank.model_copy(update={"top_n": 1}).core is rerank.core
    assert rerank.model_copy(update={"max_length": 64}).core.to_dict()["max_length"] == 64
    rerank.max_length = 32
    assert rerank.core.to_dict()["max_length"] == 32
    scored = MarcoCrossEncoder(reranker=word_overlap())
    scored.activation = "sigmoid"
    assert scored.score([("a", "a")]) == pytest.approx([0.99331], abs=1e-5)
    with pytest.raises(ValidationError, match="`top_n` is 0; expected"):
        rerank.model_copy(update={"top_n": 0})


def test_a_fitted_map_is_an_activation():
    """A Logistic or its dict is kept as one, shown, dumped plainly, and part of the JSON schema; scores are floats."""
    fitted = Logistic(0.5, -1.0)
    rerank = MarcoRerank(reranker=word_overlap(), activation={"a": 0.5, "b": -1.0}, top_n=1)
    assert rerank.activation == rerank.core.activation == fitted
    assert "activation=Logistic(a=0.5, b=-1.0)" in repr(rerank)
    assert rerank.model_dump()["activation"] == {"a": 0.5, "b": -1.0}
    assert "Logistic" in json.dumps(MarcoRerank.model_json_schema())
    (found,) = rerank.compress_documents(documents_of(["red apple"]), "red apple")
    assert type(found.metadata["relevance_score"]) is float
    assert found.metadata["relevance_score"] == pytest.approx(0.817574, abs=1e-6)
    changed = rerank.model_copy(update={"activation": Logistic(1, 0)})
    assert changed.core.activation == Logistic(1.0, 0.0) != fitted


def test_a_shared_reranker_with_a_fitted_map_keeps_it():
    """The adapter shows the map of its reranker, takes its own dump beside it, and refuses another."""
    shared = Reranker("bundled", activation=Logistic(0.8, -1.2))
    rerank = MarcoRerank(reranker=shared)
    assert rerank.activation == Logistic(0.8, -1.2)
    assert MarcoRerank(reranker=shared, **rerank.model_dump()) == rerank
    assert MarcoRerank(**json.loads(rerank.model_dump_json())).core.to_dict() == shared.to_dict()
    with pytest.raises(
        ValidationError, match=r"`activation` is Logistic\(a=0.9.* whose own is Logistic\(a=0.8.*Pass one"
    ):
        MarcoRerank(reranker=shared, activation={"a": 0.9, "b": -1.2})


def test_text_fields_come_before_the_text():
    """Values of text fields are scored on lines before the text; absent ones and None are left out, 0 is not."""

    class Recorder:
        def score(self, query, passages):
            self.passages = passages
            return [0.0] * len(passages)

    recorder = Recorder()
    documents = [
        Document(page_content="text", metadata={"title": "Title", "year": 0, "author": None, "other": "no"}),
        Document(page_content="bare"),
    ]
    rerank = MarcoRerank(reranker=recorder, text_fields=("title", "year", "author"))
    found = rerank.compress_documents(documents, QUERY)
    assert recorder.passages == ["Title\n0\ntext", "bare"]
    assert [document.page_content for document in found] == ["text", "bare"]


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
    """With a sigmoid the scores run from 0 to 1."""
    scores = MarcoCrossEncoder(reranker=word_overlap(), activation="sigmoid").score([("a", "a"), ("a", "b")])
    assert scores == pytest.approx([0.99331, 0.00669], abs=1e-5)


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", None), 5])
def test_the_cross_encoder_takes_pairs_of_texts(pair):
    """What is no pair of texts is named by its place; a text of two characters is none."""
    with pytest.raises(InvalidInputError, match=r"`text_pairs\[1\]` is .*; expected a pair of str: query, passage"):
        MarcoCrossEncoder(reranker=word_overlap()).score([("a", "b"), pair])


def test_the_other_frameworks_name_of_the_model_is_explained():
    """Who comes from the other adapter is told what the field is called here."""
    with pytest.raises(ValidationError, match=r"`model` is no field of MarcoRerank here; name it `model_name`"):
        MarcoRerank(model="bundled")
