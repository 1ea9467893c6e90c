"""The promises of the LlamaIndex adapter; the LangChain adapter keeps the same ones."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from pydantic import SecretStr, ValidationError

from engines import word_overlap
from marcorank import InvalidInputError, Logistic, Reranker, ScoreError, UnknownModelError
from marcorank.llama_index import MarcoRerank
from marcorank.testing import WordOverlapScorer

pytestmark = pytest.mark.usefixtures("engine")

QUERY = "red apple"
TEXTS = ["green pear", "red apple", "red cherry", "", "red apple", "apple"]

words = st.lists(st.text("rdaple ", max_size=8), max_size=8)
nodes_metadata = st.dictionaries(
    st.sampled_from(["title", "page", "retrieval_score"]), st.sampled_from(["red", 7, 0.5, None])
)
key_lists = st.lists(st.sampled_from(["title", "retrieval_score"]), max_size=2, unique=True)


class Recorder:
    """Answers as word overlap does, and keeps what it was asked."""

    def __init__(self):
        self.asked: list[list[str]] = []

    def score(self, query, passages):
        self.asked.append(list(passages))
        return word_overlap().score(query, passages)


def nodes_of(texts) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=f"node-{place}"), score=1 / (place + 1))
        for place, text in enumerate(texts)
    ]


def rerank_with(**settings) -> MarcoRerank:
    return MarcoRerank(reranker=word_overlap(), **settings)


def ids_and_scores(nodes) -> list[tuple[str, float]]:
    return [(found.node_id, found.score) for found in nodes]


@given(
    texts=words,
    activation=st.sampled_from(["identity", "sigmoid", Logistic(0.5, -1.0)]),
    score_threshold=st.none() | st.floats(-5, 5),
    top_n=st.none() | st.integers(1, 9),
)
def test_order_and_scores_are_those_of_the_core(texts, activation, score_threshold, top_n):
    """The adapter ranks nothing by itself: same passages, same order, same scores."""
    cut = {"score_threshold": score_threshold, "top_n": top_n}
    found = rerank_with(activation=activation, **cut).postprocess_nodes(nodes_of(texts), query_str="red a")
    ranking = Reranker(word_overlap(), activation=activation).rank("red a", texts, **cut)
    assert ids_and_scores(found) == [(f"node-{result.index}", result.score) for result in ranking]


def test_order_and_scores_of_a_real_model_are_those_of_the_core():
    """The bundled model gives the same scores through the adapter and the core."""
    rerank = MarcoRerank(model="bundled", top_n=None)
    found = rerank.postprocess_nodes(nodes_of(TEXTS), query_str=QUERY)
    ranking = Reranker("bundled").rank(QUERY, TEXTS)
    assert ids_and_scores(found) == [(f"node-{result.index}", result.score) for result in ranking]


@given(
    rows=st.lists(
        st.tuples(st.text("ab ", max_size=5), nodes_metadata, key_lists, key_lists, st.none() | st.floats(0, 1)),
        max_size=5,
    ),
    mode=st.sampled_from(MetadataMode),
    keep=st.booleans(),
)
def test_two_passes_leave_the_input_alone_and_agree(rows, mode, keep):
    """Nodes, metadata and lists are as before, and what was reranked gets the same scores from the same texts again."""
    nodes = [
        NodeWithScore(
            node=TextNode(
                text=text,
                metadata=metadata,
                excluded_embed_metadata_keys=embed,
                excluded_llm_metadata_keys=llm,
                relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="source")},
            ),
            score=score,
        )
        for text, metadata, embed, llm, score in rows
    ]
    before = copy.deepcopy(nodes)
    recorder = Recorder()
    rerank = MarcoRerank(reranker=recorder, top_n=None, metadata_mode=mode, keep_retrieval_score=keep)
    once = rerank.postprocess_nodes(nodes, query_str="a red")
    twice = rerank.postprocess_nodes(once, query_str="a red")
    assert nodes == before
    assert twice == once
    assert not any(found is given_node for found in once for given_node in nodes)
    assert [sorted(texts) for texts in recorder.asked[1:]] == [sorted(texts) for texts in recorder.asked[:1] if rows]


class PageNode(TextNode):
    page: int = 0


class FoundPage(NodeWithScore):
    store: str = ""


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    "node",
    [
        TextNode(text="red"),
        Node(id_="no text"),
        Document(text="red"),
        ImageNode(image_path="red.png"),
        IndexNode(text="red", index_id="other", obj={"any": "thing"}),
        PageNode(text="red", page=3),
    ],
    ids=lambda node: type(node).__name__,
)
def test_nodes_keep_all_but_the_score(node, keep):
    """Type, id, relationships, embedding and extra fields survive, also of subclasses and of nodes without text."""
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="source")
    node.embedding = [0.5]
    given_node = FoundPage(node=node, score=None, store="shelf")
    (found,) = rerank_with(keep_retrieval_score=keep).postprocess_nodes([given_node], query_str="red")
    assert type(found) is FoundPage
    assert found.store == "shelf"
    assert type(found.node) is type(node)
    assert found.node_id == node.node_id
    assert found.node.relationships == node.relationships
    assert found.node.embedding == [0.5]
    assert found.node.metadata == ({"retrieval_score": None} if keep else {})
    assert node.metadata == {}
    assert given_node.score is None


def test_scores_are_plain_floats():
    """Every result goes through JSON, with or without the score of the retriever."""
    rerank = rerank_with(keep_retrieval_score=True)
    found = rerank.postprocess_nodes(nodes_of(TEXTS), query_str=QUERY)
    assert [type(result.score) for result in found] == [float] * 3
    assert json.loads(found[0].to_json())["score"] == 5.0
    assert json.loads(found[1].to_json())["node"]["metadata"] == {"retrieval_score": 0.2}


@pytest.mark.parametrize("query", [{}, {"query_str": QUERY}, {"query_str": " "}])
async def test_no_nodes_are_no_work(query):
    """An empty list comes back as a new empty one, without a model call, whatever the query is."""
    scorer = WordOverlapScorer()
    rerank = MarcoRerank(reranker=scorer)
    given_nodes: list[NodeWithScore] = []
    found = rerank.postprocess_nodes(given_nodes, **query)
    assert found == []
    assert found is not given_nodes
    assert await rerank.apostprocess_nodes([], **query) == []
    assert scorer.calls == 0


def test_nothing_is_loaded_before_the_first_node():
    """Importing, making one, and an empty list load no engine."""
    code = (
        "import sys\n"
        "from marcorank.llama_index import MarcoRerank\n"
        "assert MarcoRerank(model='bundled').postprocess_nodes([], query_str='q') == []\n"
        "loaded = {'onnxruntime', 'torch', 'sentence_transformers', 'langchain_core'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603


def test_the_threshold_comes_before_top_n():
    """What misses the threshold takes no place, and the threshold is on the scale of the activation."""
    rerank = rerank_with(activation="sigmoid", score_threshold=0.5, top_n=3)
    found = rerank.postprocess_nodes(nodes_of(TEXTS), query_str=QUERY)
    assert [result.node_id for result in found] == ["node-1", "node-4", "node-2"]
    assert found[2].score == 0.5
    assert rerank_with(score_threshold=6.0).postprocess_nodes(nodes_of(TEXTS), query_str=QUERY) == []
    assert len(rerank_with(score_threshold=0, top_n=None).postprocess_nodes(nodes_of(TEXTS), query_str=QUERY)) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_n": 0}, "`top_n` is 0; expected a whole number of at least 1"),
        ({"top_n": -1}, "`top_n` is -1; expected"),
        ({"top_n": True}, "`top_n` is True; expected"),
        ({"top_n": "3"}, "`top_n` is '3'; expected"),
        ({"score_threshold": float("nan")}, "`score_threshold` is nan; expected None or a"),
        ({"score_threshold": "0.5"}, "`score_threshold` is '0.5'; expected None or a"),
        ({"metadata_mode": "text"}, "`metadata_mode` is 'text'; expected one of 'all', 'embed', 'llm', 'none'"),
        ({"keep_retrieval_score": 1}, "`keep_retrieval_score` is 1; expected one of True, False"),
        ({"model": 3}, "`model` is 3; expected a model name or the path of a model folder"),
        ({"model": WordOverlapScorer()}, "`model` is <.*goes in `reranker`"),
        ({"activation": "softmax"}, "`activation` is 'softmax'; expected one of 'identity', 'sigmoid'"),
        ({"backend": "tensorflow"}, "`backend` is 'tensorflow'; expected one of 'auto'"),
        ({"precision": "int4"}, "`precision` is 'int4'; expected one of 'auto'"),
        ({"device": ""}, "`device` is empty; expected None or a text"),
        ({"max_length": "512"}, "`max_length` is '512'; expected a whole number"),
        ({"max_query_tokens": 0}, "`max_query_tokens` is 0; expected"),
        ({"long_passages": "drop"}, "`long_passages` is 'drop'; expected one of 'truncate', 'windows'"),
        ({"local_files_only": "yes"}, "`local_files_only` is 'yes'; expected one of True, False, None"),
        ({"allow_pickle": 1}, "`allow_pickle` is 1; expected one of True, False"),
        ({"token": ""}, "`token` is empty; expected None or a text that is not empty"),
        ({"token": SecretStr("")}, "`token` is empty; expected None or a text that is not empty"),
        ({"reranker": "bundled"}, "`reranker` is 'bundled'; expected a marcorank.Reranker.*goes in `model`"),
        ({"reranker": WordOverlapScorer}, "`reranker` is <class .*; expected a marcorank.Reranker"),
        ({"topn": 3}, "topn\n.*Extra inputs are not permitted"),
    ],
)
def test_a_bad_setting_is_an_error_that_says_what_was_found(settings, message):
    """A setting that cannot be used is a ValidationError, which is a ValueError, with the core's message."""
    with pytest.raises(ValidationError, match=message):
        MarcoRerank(**settings)


def test_a_bad_assignment_is_an_error():
    """A field is checked whenever it changes, and what it was stays."""
    rerank = MarcoRerank()
    with pytest.raises(ValidationError, match="`top_n` is 0; expected"):
        rerank.top_n = 0
    assert rerank.top_n == 3
    with pytest.raises(ValidationError, match="Field is frozen"):
        rerank.reranker = word_overlap()


def test_an_unknown_model_is_an_error_at_once():
    """A name that can be no model is found when the postprocessor is made."""
    with pytest.raises(UnknownModelError, match="Model 'minilm' is unknown"):
        MarcoRerank(model="minilm")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([*nodes_of("a"), None], r"`nodes\[1\]` is a NoneType; expected a NodeWithScore\.$"),
        ([TextNode(text="a")], r"`nodes\[0\]` is a TextNode; expected a NodeWithScore\. Wrap it"),
        (nodes_of("a")[0], "`nodes` is a NodeWithScore; expected a list of NodeWithScore, even for one"),
        ("a", "`nodes` is a str; expected a list"),
        (None, "`nodes` is a NoneType; expected a list"),
    ],
)
async def test_what_is_no_node_is_named_by_its_place(nodes, message):
    """None, a bare node or a text is an error that names its index and type, sync and async."""
    with pytest.raises(InvalidInputError, match=message):
        rerank_with().postprocess_nodes(nodes, query_str=QUERY)
    with pytest.raises(InvalidInputError, match=message):
        await rerank_with().apostprocess_nodes(nodes, query_str=QUERY)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, r"There is no query .* pass `query_str='...'` or `query_bundle=QueryBundle\('...'\)`"),
        ({"query_str": " "}, "`query` is blank"),
        ({"query_bundle": "red"}, "`query_bundle` is 'red'; expected a QueryBundle. A text goes in `query_str`"),
        ({"query_bundle": QueryBundle(None)}, "`query` is None; expected a str"),
    ],
)
async def test_nodes_need_a_query(query, message):
    """Without something to search for there is a clear error, sync and async."""
    with pytest.raises(InvalidInputError, match=message):
        rerank_with().postprocess_nodes(nodes_of(TEXTS), **query)
    with pytest.raises(InvalidInputError, match=message):
        await rerank_with().apostprocess_nodes(nodes_of(TEXTS), **query)


async def test_a_score_that_is_no_number_is_an_error():
    """NaN from a model never becomes a rank."""

    class Broken:
        def score(self, query, passages):
            return [float("nan")] * len(passages)

    rerank = MarcoRerank(reranker=Broken())
    with pytest.raises(ScoreError, match=r"Model `Broken` returned nan for `passages\[0\]`"):
        rerank.postprocess_nodes(nodes_of(TEXTS), query_str=QUERY)
    with pytest.raises(ScoreError, match=r"Model `Broken` returned nan for `passages\[0\]`"):
        await rerank.apostprocess_nodes(nodes_of(TEXTS), query_str=QUERY)


async def test_async_is_sync():
    """Both ways give equal nodes, for a query text and for a bundle."""
    rerank = rerank_with(keep_retrieval_score=True)
    found = rerank.postprocess_nodes(nodes_of(TEXTS), query_str=QUERY)
    assert await rerank.apostprocess_nodes(nodes_of(TEXTS), query_str=QUERY) == found
    assert await rerank.apostprocess_nodes(nodes_of(TEXTS), QueryBundle(QUERY)) == found


EVERY_SETTING = {
    "model": "bundled",
    "top_n": None,
    "score_threshold": 0.25,
    "metadata_mode": "llm",
    "keep_retrieval_score": True,
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
}


@pytest.mark.parametrize("settings", [{}, EVERY_SETTING])
def test_settings_round_trip(settings):
    """Dict, JSON, model_validate, pickle and copies carry all settings; a pickle is a few hundred bytes."""
    rerank = MarcoRerank(**settings)
    plain = rerank.to_dict()
    assert settings.items() <= plain.items()
    assert plain["class_name"] == "MarcoRerank"
    assert all(type(value) in {str, int, float, bool, type(None)} for value in plain.values())
    pickled = pickle.dumps(rerank)
    assert len(pickled) < 1000
    for again in (
        MarcoRerank.from_dict(plain),
        MarcoRerank.from_json(rerank.to_json()),
        MarcoRerank.model_validate(rerank.model_dump()),
        MarcoRerank.model_validate_json(rerank.model_dump_json(exclude_unset=True)),
        pickle.loads(pickled),  # noqa: S301
        copy.copy(rerank),
        copy.deepcopy(rerank),
    ):
        assert again == rerank
        assert again.to_dict() == plain
        assert again.core.to_dict() == rerank.core.to_dict()
    assert rerank != MarcoRerank(**{**settings, "top_n": 9})


@pytest.mark.parametrize("activation", [Logistic(0.8, -1.2), {"a": 0.8, "b": -1.2}])
def test_a_fitted_map_is_an_activation(activation):
    """A Logistic or its dict is kept, goes through dict, JSON, pickle and copies, and makes plain floats."""
    rerank = MarcoRerank(model="bundled", activation=activation)
    assert rerank.activation == rerank.core.activation == Logistic(0.8, -1.2)
    assert json.loads(rerank.to_json())["activation"] == rerank.to_dict()["activation"] == {"a": 0.8, "b": -1.2}
    for again in (
        MarcoRerank.from_dict(rerank.to_dict()),
        MarcoRerank.from_json(rerank.to_json()),
        MarcoRerank.model_validate_json(rerank.model_dump_json(exclude_unset=True)),
        pickle.loads(pickle.dumps(rerank)),  # noqa: S301
        copy.deepcopy(rerank),
    ):
        assert again == rerank
        assert again.core.to_dict() == rerank.core.to_dict()
    shared = MarcoRerank(reranker=Reranker("bundled", activation=activation))
    assert shared.to_dict() == rerank.to_dict()
    (found,) = rerank_with(activation=activation).postprocess_nodes(nodes_of(["red"]), query_str="red")
    assert type(found.score) is float
    assert found.score == pytest.approx(0.942676, abs=1e-6)


def test_fields_are_the_settings_of_the_core():
    """Every setting of the core is a field, with the same default."""
    core = {name: parameter.default for name, parameter in signature(Reranker).parameters.items()}
    assert core.items() <= {name: field.default for name, field in MarcoRerank.model_fields.items()}.items()


def test_values_become_plain():
    """Paths and NumPy numbers are taken, and stand in dumps as text and numbers."""
    rerank = MarcoRerank(cache_folder=Path("cache"), top_n=np.int64(2), score_threshold=np.float32(0.5))
    assert json.loads(rerank.to_json()).items() >= {"cache_folder": "cache", "top_n": 2, "score_threshold": 0.5}.items()


class LockedHandler(BaseCallbackHandler):
    """A callback handler that, as many do, cannot be pickled."""

    def __init__(self):
        super().__init__([], [])
        self.unpicklable = lambda: None

    def start_trace(self, trace_id=None): ...
    def end_trace(self, trace_id=None, trace_map=None): ...
    def on_event_start(self, *args, **kwargs): ...
    def on_event_end(self, *args, **kwargs): ...


def test_pickling_leaves_the_living_object_alone():
    """A used postprocessor with callbacks pickles by its settings, keeps what it has, and its copy ranks the same."""
    rerank = rerank_with(top_n=2, callback_manager=CallbackManager([LockedHandler()]))
    expected = rerank.postprocess_nodes(nodes_of(TEXTS), query_str=QUERY)
    again = pickle.loads(pickle.dumps(rerank))  # noqa: S301
    assert again.postprocess_nodes(nodes_of(TEXTS), query_str=QUERY) == expected
    assert again.callback_manager.handlers == []
    assert isinstance(rerank.callback_manager.handlers[0], LockedHandler)
    assert copy.deepcopy(rerank).callback_manager is rerank.callback_manager


def test_a_scorer_that_cannot_be_pickled_is_an_error():
    """A pickle never comes back with another model because its scorer was left out."""
    scorer = WordOverlapScorer()
    scorer.unpicklable = lambda: None
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"[Cc]an't (pickle|get local) "):
        pickle.dumps(MarcoRerank(reranker=scorer))


@pytest.mark.parametrize("token", ["hf_secret", SecretStr("hf_secret")], ids=["text", "secret"])
def test_the_token_stays_inside(token):
    """The token reaches the model loader, also of a copy, and is in no dump, repr, pickle or error."""
    rerank = MarcoRerank(token=token)
    copied = MarcoRerank().model_copy(update={"token": token})
    for each in (rerank, copied, copy.deepcopy(rerank)):
        shown = [repr(each), str(each), each.to_json(), str(each.to_dict()), str(vars(each)), repr(each.core)]
        assert not any("hf_secret" in text for text in shown)
        assert b"hf_secret" not in pickle.dumps(each)
        assert each.core._settings.token == "hf_secret"
    with pytest.raises(ValidationError, match="`token` was given beside a `reranker`") as raised:
        rerank_with(token="hf_secret")
    assert "hf_secret" not in str(raised.value)
    with pytest.raises(ValidationError, match="`token` is of type bytes; expected None or a text") as raised:
        MarcoRerank(token=b"hf_secret")
    assert "hf_secret" not in str(raised.value)


def test_repr_shows_what_was_chosen():
    """The repr names the model and what differs from the defaults."""
    assert repr(MarcoRerank(model="bundled", score_threshold=0.0)) == (
        "MarcoRerank(model='bundled', score_threshold=0.0)"
    )


def test_a_shared_reranker_does_the_work():
    """Postprocessors that are given one reranker use that one; their dumps say what it is and make an equal one."""
    shared = Reranker("bundled", max_length=64, activation="sigmoid")
    rerank = MarcoRerank(reranker=shared, top_n=5)
    assert rerank.core is MarcoRerank(reranker=shared).core is copy.deepcopy(rerank).core is shared
    assert (rerank.model, rerank.max_length, rerank.activation) == ("bundled", 64, "sigmoid")
    for again in (
        MarcoRerank.from_dict(rerank.to_dict()),
        MarcoRerank(**rerank.model_dump(exclude_unset=True, exclude={"class_name"})),
        pickle.loads(pickle.dumps(rerank)),  # noqa: S301
    ):
        assert again.core.to_dict() == shared.to_dict()
        assert again.top_n == 5
    assert MarcoRerank.from_dict(rerank.to_dict(), reranker=shared).core is shared


@pytest.mark.parametrize(
    "shared", [WordOverlapScorer(), Reranker(WordOverlapScorer()), Reranker(WordOverlapScorer(), activation="sigmoid")]
)
def test_a_dump_with_a_scorer_is_no_other_model(shared):
    """A scorer object is in no dump: the dump fails to load instead of taking another model, until it is passed."""
    rerank = MarcoRerank(reranker=shared, top_n=1)
    plain = rerank.to_dict()
    assert (plain["model"], plain["activation"]) == ("word-overlap", rerank.core.activation)
    with pytest.raises(UnknownModelError, match="Model 'word-overlap' is unknown"):
        MarcoRerank.from_dict(plain)
    assert MarcoRerank.from_dict(plain, reranker=shared).to_dict() == plain


@pytest.mark.parametrize(
    ("shared", "setting"),
    [
        (Reranker("bundled"), {"model": "cross-encoder/ms-marco-MiniLM-L-6-v2"}),
        (Reranker("bundled"), {"activation": "sigmoid"}),
        (Reranker("bundled"), {"backend": "onnx"}),
        (WordOverlapScorer(), {"model": "bundled"}),
        (WordOverlapScorer(), {"device": "cpu"}),
    ],
)
def test_a_shared_reranker_has_its_own_settings(shared, setting):
    """Model settings beside a reranker would be ignored, so they are an error, also when they come later."""
    name = next(iter(setting))
    with pytest.raises(ValidationError, match=f"`{name}` is '.*' beside a `reranker` whose own is .*Pass one"):
        MarcoRerank(reranker=shared, **setting)
    rerank = MarcoRerank(reranker=shared)
    with pytest.raises(ValidationError, match=f"`{name}` is '.*' beside a `reranker` whose own is .*Pass one"):
        setattr(rerank, name, setting[name])
    with pytest.raises(ValidationError, match=f"`{name}` is '.*' beside a `reranker` whose own is .*Pass one"):
        rerank.model_copy(update=setting)


def test_a_change_of_settings_reaches_the_core():
    """A copy with another setting, and an assignment, are followed; a copy with another top_n shares the model."""
    rerank = MarcoRerank(model="bundled")
    assert rerank.model_copy(update={"top_n": 1}).core is rerank.core
    assert rerank.model_copy(update={"max_length": 64}).core.to_dict()["max_length"] == 64
    rerank.max_length = 32
    assert rerank.core.to_dict()["max_length"] == 32
    assert rerank.model_copy(update={"metadata_mode": "llm"}).to_dict()["metadata_mode"] == "llm"
    with pytest.raises(ValidationError, match="`top_n` is 0; expected"):
        rerank.model_copy(update={"top_n": 0})
    scored = rerank_with()
    scored.activation = "sigmoid"
    (found,) = scored.postprocess_nodes(nodes_of(["red"]), query_str="red")
    assert found.score == pytest.approx(0.99331, abs=1e-5)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (MetadataMode.EMBED, "title: T\nboth: b\n\nred"),
        (MetadataMode.LLM, "both: b\nsecret: s\n\nred"),
        (MetadataMode.ALL, "title: T\nboth: b\nsecret: s\n\nred"),
        ("none", "red"),
    ],
)
def test_the_metadata_mode_says_what_is_scored(mode, text):
    """The text is what LlamaIndex gives for the mode; the key of an earlier retrieval score is never part of it."""
    node = TextNode(
        text="red",
        metadata={"title": "T", "both": "b", "secret": "s"},
        excluded_embed_metadata_keys=["secret"],
        excluded_llm_metadata_keys=["title"],
    )
    recorder = Recorder()
    rerank = MarcoRerank(reranker=recorder, metadata_mode=mode, keep_retrieval_score=True)
    found = rerank.postprocess_nodes([NodeWithScore(node=node, score=0.5)], query_str="red")
    rerank.postprocess_nodes(found, query_str="red")
    leaky = node.model_copy(update={"metadata": {**node.metadata, "retrieval_score": 0.9}})
    rerank.postprocess_nodes([NodeWithScore(node=leaky)], query_str="red")
    assert recorder.asked == [[text], [text], [text]]


def test_the_score_of_the_first_stage_is_kept():
    """It stays through a chain of rerankers, hidden from LLMs and embeddings; a stray one of others is replaced."""
    rerank = rerank_with(keep_retrieval_score=True)
    node = TextNode(text="red", metadata={"page": 1}, excluded_llm_metadata_keys=["page"])
    once = rerank.postprocess_nodes([NodeWithScore(node=node, score=0.25)], query_str="red")
    (twice,) = rerank.postprocess_nodes(once, query_str="apple")
    assert (once[0].score, twice.score) == (5.0, -5.0)
    assert once[0].node.metadata == twice.node.metadata == {"page": 1, "retrieval_score": 0.25}
    assert twice.node.excluded_llm_metadata_keys == ["page", "retrieval_score"]
    assert twice.node.excluded_embed_metadata_keys == ["retrieval_score"]
    assert twice.node.get_content(MetadataMode.LLM) == "red"
    assert twice.node.get_content(MetadataMode.EMBED) == "page: 1\n\nred"
    stray = TextNode(text="red", metadata={"retrieval_score": 0.9}, excluded_embed_metadata_keys=["retrieval_score"])
    (found,) = rerank.postprocess_nodes([NodeWithScore(node=stray, score=0.25)], query_str="red")
    assert found.node.metadata == {"retrieval_score": 0.25}
    assert found.node.excluded_embed_metadata_keys == found.node.excluded_llm_metadata_keys == ["retrieval_score"]
    assert stray.metadata == {"retrieval_score": 0.9}


def test_the_same_node_may_come_twice():
    """Scores belong to places, not to ids: no node is lost."""
    node = TextNode(text="red", id_="one")
    found = rerank_with().postprocess_nodes([NodeWithScore(node=node)] * 2, query_str="red")
    assert ids_and_scores(found) == [("one", 5.0), ("one", 5.0)]


def test_it_is_a_node_postprocessor():
    """LlamaIndex knows it by its base class and its class name."""
    assert issubclass(MarcoRerank, BaseNodePostprocessor)
    assert MarcoRerank.class_name() == "MarcoRerank"
    assert MarcoRerank.model_json_schema()["properties"]["top_n"]["default"] == 3


@pytest.mark.parametrize("missing", ["llama_index.core", "pydantic"])
def test_without_llama_index_the_pip_command_is_named(missing):
    """Importing the adapter where llama-index-core or pydantic is missing says what to install."""
    code = (
        "import sys\n"
        f"sys.modules[{missing!r}] = None\n"
        "from marcorank import MissingExtraError\n"
        "try:\n"
        "    import marcorank.llama_index\n"
        "except MissingExtraError as error:\n"
        "    assert \"pip install 'marcorank[llama-index]'\" in str(error), error\n"
        "    assert isinstance(error.__cause__, ModuleNotFoundError)\n"
        "else:\n"
        "    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603


def test_the_other_frameworks_name_of_the_model_is_explained():
    """Who comes from the other adapter is told what the field is called here."""
    with pytest.raises(ValidationError, match=r"`model_name` is no field of MarcoRerank here; name it `model`"):
        MarcoRerank(model_name="bundled")
