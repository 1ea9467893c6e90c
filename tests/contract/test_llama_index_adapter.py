"""What the LlamaIndex adapter promises beyond what both do, which is in `test_adapters.py`."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

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
from pydantic import ValidationError

from engines import word_overlap
from marcorank import InvalidInputError
from marcorank.llama_index import MarcoRerank
from marcorank.testing import WordOverlapScorer

pytestmark = pytest.mark.usefixtures("engine")

QUERY = "red apple"
TEXTS = ["green pear", "red apple", "red cherry", "", "red apple", "apple"]

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
    if not keep:
        assert twice == once
    else:
        # Without a score of the retriever, that of the first reranker is the earliest there is.
        expected = [{"retrieval_score": found.score, **found.node.metadata} for found in once]
        assert [found.node.metadata for found in twice] == expected
        assert ids_and_scores(twice) == ids_and_scores(once)
        assert rerank.postprocess_nodes(twice, query_str="a red") == twice
    assert not any(found is given_node for found in once for given_node in nodes)
    assert len(recorder.asked) == ((3 if keep else 2) if rows else 0)
    assert all(sorted(texts) == sorted(recorder.asked[0]) for texts in recorder.asked)


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
    assert found.node.metadata == {}
    assert node.metadata == {}
    assert given_node.score is None


def test_the_score_of_the_retriever_goes_through_json():
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metadata_mode": "text"}, "`metadata_mode` is 'text'; expected one of 'all', 'embed', 'llm', 'none'"),
        ({"keep_retrieval_score": 1}, "`keep_retrieval_score` is 1; expected one of True, False"),
    ],
)
def test_a_bad_setting_is_an_error_that_says_what_was_found(settings, message):
    """A setting that cannot be used is a ValidationError, which is a ValueError, with the core's message."""
    with pytest.raises(ValidationError, match=message):
        MarcoRerank(**settings)


async def test_a_bare_node_is_to_be_wrapped():
    """A node without its score says what to do, sync and async."""
    message = r"`nodes\[0\]` is a TextNode; expected a NodeWithScore\. Wrap it"
    with pytest.raises(InvalidInputError, match=message):
        rerank_with().postprocess_nodes([TextNode(text="a")], query_str=QUERY)
    with pytest.raises(InvalidInputError, match=message):
        await rerank_with().apostprocess_nodes([TextNode(text="a")], query_str=QUERY)
    with pytest.raises(InvalidInputError, match=r"`nodes\[0\]` is a NoneType; expected a NodeWithScore\.$"):
        rerank_with().postprocess_nodes([None], query_str=QUERY)


@pytest.mark.parametrize("settings", [{}, {"metadata_mode": "llm", "keep_retrieval_score": True}])
def test_settings_of_nodes_round_trip(settings):
    """The dict of LlamaIndex is plain and names the class; the settings of this adapter alone are in it too."""
    rerank = MarcoRerank(**settings)
    plain = rerank.to_dict()
    assert settings.items() <= plain.items()
    assert plain["class_name"] == "MarcoRerank"
    assert all(type(value) in {str, int, float, bool, type(None)} for value in plain.values())
    assert MarcoRerank.from_dict(plain) == MarcoRerank.from_json(rerank.to_json()) == rerank
    assert rerank.model_copy(update={"metadata_mode": "llm"}).to_dict()["metadata_mode"] == "llm"


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


async def test_a_bundle_is_a_query():
    """Both ways give equal nodes, for a query text and for a bundle."""
    rerank = rerank_with(keep_retrieval_score=True)
    found = rerank.postprocess_nodes(nodes_of(TEXTS), query_str=QUERY)
    assert await rerank.apostprocess_nodes(nodes_of(TEXTS), query_str=QUERY) == found
    assert await rerank.apostprocess_nodes(nodes_of(TEXTS), QueryBundle(QUERY)) == found


@pytest.mark.parametrize("text", ["", " ", "\ufeff", None])
async def test_nodes_for_an_image_pass_through(text):
    """A query that is only an image cannot be ranked by text: the first nodes come back in order, and say so."""
    rerank = rerank_with(top_n=2)
    query = QueryBundle(text, image_path="photo.png")
    found = rerank.postprocess_nodes(nodes_of(TEXTS), query)
    assert found == await rerank.apostprocess_nodes(nodes_of(TEXTS), query)
    assert [node.text for node in found] == TEXTS[:2]
    assert [node.score for node in found] == [node.score for node in nodes_of(TEXTS)][:2]
    assert all("The query is an image without text" in str(node.metadata) for node in found)
    assert rerank.postprocess_nodes([], query) == []


def test_the_text_beside_an_image_ranks():
    """An image beside a text changes nothing."""
    bundle = QueryBundle(QUERY, image_path="photo.png")
    found = rerank_with().postprocess_nodes(nodes_of(TEXTS), bundle)
    assert found == rerank_with().postprocess_nodes(nodes_of(TEXTS), query_str=QUERY)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (NodeWithScore.model_construct(), r"`nodes\[0\].node` is None; expected a node"),
        (NodeWithScore.model_construct(node="a"), r"`nodes\[0\].node` is 'a'; expected a node"),
        (
            NodeWithScore(node=TextNode.model_construct(text="a", metadata=None)),
            r"`nodes\[0\].node.metadata` is None; expected a dict",
        ),
        (NodeWithScore(node=TextNode.model_construct(text=None)), r"`nodes\[0\].node.text` is None; expected a str"),
    ],
)
async def test_a_node_that_was_not_checked_is_named(found, message):
    """`model_construct` checks nothing; the error comes before the model runs."""
    rerank = MarcoRerank(model="bundled")
    with pytest.raises(InvalidInputError, match=message):
        rerank.postprocess_nodes([found], query_str=QUERY)
    with pytest.raises(InvalidInputError, match=message):
        await rerank.apostprocess_nodes([found], query_str=QUERY)


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


def test_repr_shows_what_was_chosen():
    """The repr names the model and what differs from the defaults."""
    assert repr(MarcoRerank(model="bundled", score_threshold=0.0)) == (
        "MarcoRerank(model='bundled', score_threshold=0.0)"
    )


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
