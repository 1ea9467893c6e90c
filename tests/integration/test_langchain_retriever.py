"""The settings of a `RerankRetriever`: where its `top_n` comes from, and what changes of it mean."""

from __future__ import annotations

import copy
import pickle

import pytest
from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel, Field, ValidationError

import marcorank.llama_index
from marcorank import InvalidInputError, Reranker
from marcorank.langchain import MarcoRerank, RerankRetriever
from marcorank.testing import WordOverlapScorer

QUERY = "red apple"


def first_stage(_query: str) -> list[Document]:
    """Find the same six documents for every query."""
    return [Document(page_content=text) for text in ("pear", "red apple", "red car", "apple", "plum", "red")]


def rerank(**settings) -> MarcoRerank:
    return MarcoRerank(reranker=WordOverlapScorer(), **settings)


def retriever_of(reranker: MarcoRerank, **settings) -> RerankRetriever:
    return RerankRetriever(base_retriever=RunnableLambda(first_stage), reranker=reranker, **settings)


async def count(retriever) -> int:
    """Return the number of results, which is the same sync and async."""
    found = retriever.invoke(QUERY)
    assert await retriever.ainvoke(QUERY) == found
    return len(found)


async def test_top_n_follows_the_reranker_until_it_is_given():
    """Another reranker and another `top_n` of the reranker count; an own `top_n` counts from then on."""
    retriever = retriever_of(rerank(top_n=2))
    assert await count(retriever) == retriever.top_n == 2
    retriever.reranker = rerank(top_n=1)
    assert await count(retriever) == retriever.top_n == 1
    retriever.reranker.top_n = 4
    assert await count(retriever) == retriever.top_n == 4
    retriever.top_n = 5
    assert await count(retriever) == retriever.top_n == 5
    retriever.reranker = rerank(top_n=1)
    assert await count(retriever) == 5
    retriever.top_n = None
    assert await count(retriever) == 6
    assert len(retriever.invoke(QUERY, top_n=2)) == 2


async def test_top_n_is_checked_with_the_options_of_the_reranker():
    """At the start, and in a call."""
    cascade = rerank(skim=WordOverlapScorer(), skim_keep=3)
    with pytest.raises(ValidationError, match="`top_n` is 4 and `skim_keep` 3; expected"):
        retriever_of(cascade, top_n=4)
    retriever = retriever_of(cascade)
    assert await count(retriever) == 3
    with pytest.raises(InvalidInputError, match="`top_n` is 4 and `skim_keep` 3; expected"):
        await retriever.ainvoke(QUERY, top_n=4)


@pytest.mark.parametrize("query", [None, 5, "  "])
async def test_an_invalid_query_is_refused_before_the_search(query):
    """By its name; a store would fail on it in its own way."""
    searched = []
    retriever = RerankRetriever(base_retriever=RunnableLambda(searched.append), reranker=rerank())
    with pytest.raises(InvalidInputError, match="`query` is"):
        retriever.invoke(query)
    with pytest.raises(InvalidInputError, match="`query` is"):
        await retriever.ainvoke(query)
    assert searched == []


async def test_copies_follow_their_reranker_too():
    """Whatever way a retriever is copied, `top_n` is given in the copy if it was in the original."""
    ways = [
        copy.copy,
        copy.deepcopy,
        lambda retriever: pickle.loads(pickle.dumps(retriever)),  # noqa: S301
        lambda retriever: retriever.model_copy(),
        lambda retriever: RerankRetriever(**dict(retriever)),
    ]
    for way in ways:
        copied = way(retriever_of(rerank(top_n=2)))
        copied.reranker = rerank(top_n=1)
        assert await count(copied) == 1
        own = way(retriever_of(rerank(top_n=2), top_n=4))
        own.reranker = rerank(top_n=1)
        assert await count(own) == 4
    retriever = retriever_of(rerank(top_n=2))
    changed = retriever.model_copy(update={"reranker": rerank(top_n=1)})
    assert (await count(changed), await count(retriever)) == (1, 2)
    assert "top_n" not in retriever.model_dump(exclude={"base_retriever"})
    assert retriever_of(rerank(), top_n=4).model_dump(exclude={"base_retriever"})["top_n"] == 4


async def test_fields_can_be_configured():
    """LangChain's configurable fields and alternatives give the number of results that they name."""
    reranker, top_n = ConfigurableField(id="reranker"), ConfigurableField(id="top_n")
    retriever = retriever_of(rerank(top_n=2)).configurable_fields(reranker=reranker, top_n=top_n)
    assert await count(retriever) == 2
    assert await count(retriever.with_config(configurable={"reranker": rerank(top_n=1)})) == 1
    assert await count(retriever.with_config(configurable={"top_n": 5})) == 5
    assert await count(retriever.with_config(configurable={"reranker": rerank(top_n=1), "top_n": 5})) == 5
    with pytest.raises(ValidationError, match="`top_n` is 0; expected"):
        retriever.with_config(configurable={"top_n": 0}).invoke(QUERY)
    retriever = retriever_of(rerank(top_n=2)).configurable_alternatives(
        ConfigurableField(id="which"), short=retriever_of(rerank(top_n=1)), long=retriever_of(rerank(), top_n=5)
    )
    which = [retriever, *(retriever.with_config(configurable={"which": name}) for name in ("short", "long"))]
    assert [await count(each) for each in which] == [2, 1, 5]


async def test_a_core_reranker_is_wrapped_when_it_is_assigned():
    """As in the constructor: it ranks, shared with its other users."""
    retriever = retriever_of(rerank(top_n=2))
    core = Reranker(WordOverlapScorer())
    retriever.reranker = core
    assert retriever.reranker.core is core
    assert await count(retriever) == 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("top_n", 0, "`top_n` is 0; expected a whole number of at least 1"),
        ("top_n", "3", "`top_n` is '3'; expected"),
        ("reranker", "bundled", r"`reranker` is a str; expected a MarcoRerank .* MarcoRerank\(model_name=\.\.\.\)"),
        ("reranker", WordOverlapScorer(), r"`reranker` is a WordOverlapScorer; .* MarcoRerank\(reranker=\.\.\.\)"),
        ("reranker", None, "`reranker` is a NoneType; expected"),
        (
            "reranker",
            marcorank.llama_index.MarcoRerank(model="bundled"),
            "expected a MarcoRerank of marcorank.langchain",
        ),
        ("base_retriever", InMemoryVectorStore, "base_retriever"),
        ("topn", 3, "topn"),
    ],
)
async def test_a_bad_setting_is_refused_whenever_it_is_given(field, value, message):
    """By the constructor, an assignment and a copy, and what was there before still works."""
    retriever = retriever_of(rerank(top_n=2))
    with pytest.raises(ValidationError, match=message):
        RerankRetriever(**{**dict(retriever), field: value})
    with pytest.raises(ValidationError, match=message):
        setattr(retriever, field, value)
    with pytest.raises(ValidationError, match=message):
        retriever.model_copy(update={field: value})
    assert await count(retriever) == 2


class Search(BaseModel):
    """The arguments of a search."""

    query: str = Field(description="what to look for")
    top_n: int = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arg_types": {"question": str}}, r"arguments of the tool are \['question'\]; expected `query` among them"),
        ({"args_schema": Document}, r"\['id', 'metadata', 'page_content', 'type'\]; expected `query` among"),
        ({"args_schema": str}, "`args_schema` is <class 'str'>; expected a class derived from BaseModel"),
        ({"args_schema": Search, "arg_types": {"query": str}}, "`args_schema` was given beside `arg_types`"),
    ],
)
def test_a_tool_without_a_query_is_refused(arguments, message):
    """Before there is an agent."""
    with pytest.raises(InvalidInputError, match=message):
        retriever_of(rerank()).as_tool(**arguments)


async def test_the_model_sees_a_document_as_the_prompt_says():
    """With metadata, such as the page to cite."""
    prompt = PromptTemplate.from_template("[{relevance_score}] {page_content}")
    tool = retriever_of(rerank(top_n=2)).as_tool(document_prompt=prompt)
    shown = "[5.0] red apple\n\n[0.0] red car"
    assert tool.invoke(QUERY) == await tool.ainvoke(QUERY) == shown


def test_a_tool_tells_the_model_how_to_use_it():
    """Its name, its description and the description of its argument, or those that are given; also in a pickle."""
    for tool in (retriever_of(rerank()).as_tool(), pickle.loads(pickle.dumps(retriever_of(rerank()).as_tool()))):  # noqa: S301
        assert tool.name == "search"
        assert tool.description == "Search the documents. Returns the texts that answer the query best."
        assert tool.args["query"]["description"] == "What to search for, as a complete question or a few words."
        assert tool.invoke(QUERY).startswith("red apple")
    tool = retriever_of(rerank()).as_tool(Search, name="fruit", description="Fruit.")
    assert (tool.name, tool.description, tool.args["query"]["description"]) == ("fruit", "Fruit.", "what to look for")
