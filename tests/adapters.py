"""Both adapters behind one set of names, so that one suite can hold them to the same promises."""

from __future__ import annotations

import copy
import json
import pickle
from typing import ClassVar

from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from engines import word_overlap
from marcorank import langchain, llama_index


class LangChain:
    """The document compressor."""

    name = "langchain"
    rerank_class = langchain.MarcoRerank
    model_field, other_model_field = "model_name", "model"
    items_argument, item_kind = "documents", "a LangChain Document"
    keeping: ClassVar[dict[str, bool]] = {}  # settings with which the first-stage score is kept

    def make(self, **settings):
        """Make an adapter; the model is called `model` in the settings of each framework here."""
        if "model" in settings:
            settings[self.model_field] = settings.pop("model")
        return self.rerank_class(**settings)

    def with_overlap(self, **settings):
        """Make an adapter over the word-overlap scorer of this module."""
        return self.make(reranker=word_overlap(), **settings)

    def items(self, texts):
        """Return what the framework's retrievers give for these texts."""
        return [
            Document(page_content=text, id=str(index), metadata={"source": {"page": index}, "tags": ["x"]})
            for index, text in enumerate(texts)
        ]

    def scored(self, score):
        """Return an item with the score of an earlier stage, as a vector store or another reranker leaves it."""
        return Document(page_content="red", metadata={"relevance_score": score})

    def with_scores(self, texts, scores):
        """Return what a first stage gives for these texts, with its scores."""
        items = self.items(texts)
        for document, score in zip(items, scores, strict=True):
            document.metadata["retrieval_score"] = score
        return items

    def score(self, found):
        """Return the score of a result; None if it has none."""
        return found.metadata.get("relevance_score")

    def metadata(self, found):
        """Return the metadata of a result, after JSON."""
        return json.loads(json.dumps(found.metadata, allow_nan=False))

    def rerank(self, adapter, items, query):
        """Rerank as the framework does."""
        return adapter.compress_documents(items, query)

    async def arerank(self, adapter, items, query):
        """Rerank as the framework does in an event loop."""
        return await adapter.acompress_documents(items, query)

    def indexes(self, found):
        """Return where each result stood in the input."""
        return [int(document.id) for document in found]

    def scores(self, found):
        """Return the score of each result."""
        return [document.metadata["relevance_score"] for document in found]

    def scores_through_json(self, found):
        """Return the scores that are left after JSON."""
        return [json.loads(json.dumps(document.metadata))["relevance_score"] for document in found]

    def mutable_parts(self, items):
        """Return all objects that a result may not share with the input."""
        return [part for document in items for part in (document, document.metadata)]

    def plain(self, adapter):
        """Return the settings as the framework dumps them."""
        return adapter.model_dump()

    def from_plain(self, plain, **more):
        """Make an adapter of such a dump."""
        return self.rerank_class(**plain, **more)

    def json(self, adapter):
        """Return the settings as JSON."""
        return adapter.model_dump_json()

    def copies(self, adapter):
        """Return the adapter after each way out and back in."""
        return [
            self.from_plain(self.plain(adapter)),
            self.rerank_class(**json.loads(self.json(adapter))),
            self.rerank_class.model_validate(adapter.model_dump()),
            self.rerank_class.model_validate_json(adapter.model_dump_json(exclude_unset=True)),
            pickle.loads(pickle.dumps(adapter)),  # noqa: S301
            copy.copy(adapter),
            copy.deepcopy(adapter),
        ]


class LlamaIndex(LangChain):
    """The node postprocessor."""

    name = "llama-index"
    rerank_class = llama_index.MarcoRerank
    model_field, other_model_field = "model", "model_name"
    items_argument, item_kind = "nodes", "a NodeWithScore"
    keeping: ClassVar[dict[str, bool]] = {"keep_retrieval_score": True}

    def items(self, texts):
        """Return what the framework's retrievers give for these texts."""
        return [
            NodeWithScore(node=TextNode(text=text, id_=str(index)), score=1 / (index + 1))
            for index, text in enumerate(texts)
        ]

    def scored(self, score):
        """Return an item with the score of an earlier stage, as a vector store or another reranker leaves it."""
        found = NodeWithScore(node=TextNode(text="red"))
        found.score = score  # LlamaIndex does not check it, and its own reranker assigns numbers of NumPy
        return found

    def with_scores(self, texts, scores):
        """Return what a first stage gives for these texts, with its scores."""
        items = self.items(texts)
        for found, score in zip(items, scores, strict=True):
            found.score = score
        return items

    def score(self, found):
        """Return the score of a result; None if it has none."""
        return found.score

    def metadata(self, found):
        """Return the metadata of a result, after JSON."""
        return json.loads(found.to_json())["node"]["metadata"]

    def rerank(self, adapter, items, query):
        """Rerank as the framework does; None is a query only inside of a bundle."""
        return adapter.postprocess_nodes(items, QueryBundle(query))

    async def arerank(self, adapter, items, query):
        """Rerank as the framework does in an event loop."""
        return await adapter.apostprocess_nodes(items, QueryBundle(query))

    def indexes(self, found):
        """Return where each result stood in the input."""
        return [int(node.node_id) for node in found]

    def scores(self, found):
        """Return the score of each result."""
        return [node.score for node in found]

    def scores_through_json(self, found):
        """Return the scores that are left after JSON."""
        return [json.loads(node.to_json())["score"] for node in found]

    def mutable_parts(self, items):
        """Return all objects that a result may not share with the input."""
        return list(items)

    def plain(self, adapter):
        """Return the settings as the framework dumps them."""
        return adapter.to_dict()

    def from_plain(self, plain, **more):
        """Make an adapter of such a dump."""
        return self.rerank_class.from_dict(plain, **more)

    def json(self, adapter):
        """Return the settings as JSON."""
        return adapter.to_json()

    def copies(self, adapter):
        """Return the adapter after each way out and back in."""
        return [
            self.from_plain(self.plain(adapter)),
            self.rerank_class.from_json(self.json(adapter)),
            self.rerank_class.model_validate(adapter.model_dump()),
            self.rerank_class.model_validate_json(adapter.model_dump_json(exclude_unset=True)),
            pickle.loads(pickle.dumps(adapter)),  # noqa: S301
            copy.copy(adapter),
            copy.deepcopy(adapter),
        ]


ADAPTERS = {adapter.name: adapter for adapter in (LangChain(), LlamaIndex())}
