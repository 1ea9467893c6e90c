"""A LangChain document compressor that reranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, ensure_config
from pydantic import field_validator

from marcorank._adapters.metadata import option_metadata, status_metadata
from marcorank._adapters.settings import ScoreThreshold, TopN, WriteMetadata
from marcorank._calls.tracing import TracedDocuments, ranks_documents
from marcorank._text import first_few, quoted
from marcorank.errors import InvalidInputError, MarcoRankError
from marcorank.langchain._documents import (
    first_stage_scores,
    ranked_document,
    read_anything,
    read_document,
    scored_text,
)
from marcorank.langchain._settings import LangChainSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from langchain_core.callbacks import Callbacks

    from marcorank.ranking import Ranking


class NotGiven(Enum):
    """Marks an argument that was left out; None means "all" or "no threshold"."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return self.value


NOT_GIVEN = NotGiven.NOT_GIVEN


class MarcoRerank(LangChainSettings, BaseDocumentCompressor):
    """Ranks documents with a cross-encoder and keeps the best.

    A drop-in for any document compressor: in `ContextualCompressionRetriever`, in `DocumentCompressorPipeline`,
    in a `RerankRetriever`, and through `as_runnable` in a chain. Nothing is loaded before the first use; adapters with
    the same settings share the weights. Each call is a run of its own under the caller's callbacks.

    The fields that are not listed are the settings of `marcorank.Reranker`, under the same names. `token` is kept out
    of dumps, pickles, messages and traces.

    Attributes:
        model_name: `"bundled"`, `"bundled-tiny"`, the name of a model, or the path of its folder.
        top_n: Maximum number of documents to return; None for all.
        score_threshold: Minimum score of a document, on the scale of the activation; applied before `top_n`.
        text_fields: Metadata keys whose values are put before the text that is scored, each on a line of its own:
            texts, numbers, dates, and lists of them. A key that a document lacks, or whose value is None or NaN, is
            left out; any other value is an error. In windows mode they are part of the first window only.
        write_metadata: Whether the results may say in their metadata how they were ranked. With False they have the
            metadata that they came with: a retriever that compares documents recognises them.
        reranker: A `marcorank.Reranker` to share, or an object with `score(query, passages)`, in place of the model
            settings. Not part of dumps: `MarcoRerank(**settings, reranker=...)` puts it back.
    """

    top_n: TopN = 3
    score_threshold: ScoreThreshold = None
    text_fields: tuple[str, ...] = ()
    write_metadata: WriteMetadata = True

    @field_validator("text_fields", mode="before")
    @classmethod
    def _check_text_fields(cls, value: object) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
            raise InvalidInputError(
                f"`text_fields` is {quoted(value)}; expected a list of metadata keys, such as ['title']."
            )
        return tuple(value)

    def compress_documents(
        self,
        documents: Iterable[Document],
        query: str,
        callbacks: Callbacks | None = None,
        *,
        top_n: int | NotGiven | None = NOT_GIVEN,
        score_threshold: float | NotGiven | None = NOT_GIVEN,
    ) -> list[Document]:
        """Return the best documents as new objects, best first; ties keep the order of the input.

        Args:
            documents: Documents from the first stage; never changed.
            query: The query; must not be blank.
            callbacks: Receive the run; None for those of the surrounding chain.
            top_n: Overrides the field for this call.
            score_threshold: Overrides the field for this call.

        Raises:
            InvalidInputError: An argument is not allowed.
            ScoreError: The model did not return one finite logit per document.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        call = self._call(documents, query, top_n, score_threshold, read_document)
        if callbacks is None:
            callbacks = ensure_config().get("callbacks")
        manager = CallbackManager.configure(inheritable_callbacks=callbacks)
        run = manager.on_chain_start(None, call.inputs, name=type(self).__name__)
        try:
            with ranks_documents(partial(call.traced, run.run_id)):
                ranking = self.core.rank(query, call.texts, **call.options)
            ranked = self._ranked(call, ranking)
        except BaseException as error:
            run.on_chain_error(error)
            raise
        if ranking.status is not None and ranking.status.outcome == "passthrough":
            run.on_chain_error(MarcoRankError(str(ranking.status)))
        else:
            run.on_chain_end(_outputs(ranked, ranking))
        return ranked

    async def acompress_documents(
        self,
        documents: Iterable[Document],
        query: str,
        callbacks: Callbacks | None = None,
        *,
        top_n: int | NotGiven | None = NOT_GIVEN,
        score_threshold: float | NotGiven | None = NOT_GIVEN,
    ) -> list[Document]:
        """Do the same as `compress_documents` without blocking the event loop."""
        call = self._call(documents, query, top_n, score_threshold, read_document)
        if callbacks is None:
            callbacks = ensure_config().get("callbacks")
        manager = AsyncCallbackManager.configure(inheritable_callbacks=callbacks)
        run = await manager.on_chain_start(None, call.inputs, name=type(self).__name__)
        try:
            with ranks_documents(partial(call.traced, run.run_id)):
                ranking = await self.core.arank(query, call.texts, **call.options)
            ranked = self._ranked(call, ranking)
        except GeneratorExit:  # the event loop was closed during the call, so nothing can be awaited any more
            raise
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        if ranking.status is not None and ranking.status.outcome == "passthrough":
            await run.on_chain_error(MarcoRankError(str(ranking.status)))
        else:
            await run.on_chain_end(_outputs(ranked, ranking))
        return ranked

    def rerank(
        self,
        documents: Iterable[str | Document | Mapping[str, Any]],
        query: str,
        *,
        top_n: int | NotGiven | None = NOT_GIVEN,
        score_threshold: float | NotGiven | None = NOT_GIVEN,
    ) -> list[dict[str, Any]]:
        """Return indices and scores, `{"index": 4, "relevance_score": 7.2}`, best first.

        If the model failed, `rerank_outcome`, `rerank_error` and `rerank_reason` are beside them, as in the metadata
        of documents; after a passthrough the scores are None. With `blend` the `blended_score` is there too. What only
        the model of `skim` read has its name in `scored_by`, and None for a score.

        Args:
            documents: Texts, documents or dicts. A dict has its text under `"page_content"` and its metadata under
                `"metadata"`, or its text under `"text"` and the metadata beside it.
            query: The query; must not be blank.
            top_n: Overrides the field for this call.
            score_threshold: Overrides the field for this call.

        Raises:
            InvalidInputError: An argument is not allowed.
            ScoreError: The model did not return one finite logit per document.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        call = self._call(documents, query, top_n, score_threshold, read_anything)
        with ranks_documents(call.traced):
            ranking = self.core.rank(query, call.texts, **call.options)
        status = status_metadata(ranking.status)
        return [
            {"index": result.index, "relevance_score": result.score, **status, **option_metadata(result)}
            for result in ranking.results
        ]

    def as_runnable(self) -> Runnable[dict[str, Any], list[Document]]:
        """Return a step for chains: `{"query": ..., "documents": [...]}` to the best documents.

        The query may also be under `"question"`; `"query"` wins if both are present. Other keys are ignored. In place
        of a dict, an object may have them as attributes, such as the state of a LangGraph graph.
        """

        def rerank(state: dict[str, Any], config: RunnableConfig) -> list[Document]:
            return self.compress_documents(*_documents_and_query(state), callbacks=config.get("callbacks"))

        async def arerank(state: dict[str, Any], config: RunnableConfig) -> list[Document]:
            return await self.acompress_documents(*_documents_and_query(state), callbacks=config.get("callbacks"))

        return RunnableLambda(rerank, afunc=arerank, name="rerank")

    def _ranked(self, call: _Call, ranking: Ranking) -> list[Document]:
        return [
            ranked_document(call.documents[result.index], result, ranking, write_metadata=self.write_metadata)
            for result in ranking.results
        ]

    def _call(
        self,
        documents: object,
        query: str,
        top_n: int | NotGiven | None,
        score_threshold: float | NotGiven | None,
        read: Callable[[object, int], tuple[str, Mapping[str, Any]]],
    ) -> _Call:
        # A Document is iterable too: pydantic yields its fields.
        if isinstance(documents, (str, bytes, Mapping, Document)) or not isinstance(documents, Iterable):
            raise InvalidInputError(
                f"`documents` is a {type(documents).__name__}; expected a list of documents, even for one."
            )
        listed = list(documents)
        parts = [read(document, index) for index, document in enumerate(listed)]
        texts = [scored_text(*part, self.text_fields, index) for index, part in enumerate(parts)]
        options: dict[str, Any] = {
            "top_n": self.top_n if top_n is NOT_GIVEN else top_n,
            "score_threshold": self.score_threshold if score_threshold is NOT_GIVEN else score_threshold,
        }
        inputs = {"query": query, "document_count": len(listed), "model": self.core.name, **options}
        inputs.update(self._options_on())
        if self.blend or self.skim is not None:
            options["retrieval_scores"] = first_stage_scores([metadata for _, metadata in parts])
        return _Call(listed, [metadata for _, metadata in parts], texts, options, inputs)


class _Call(NamedTuple):
    """The arguments of one call.

    Attributes:
        documents: The documents as a list.
        metadata: Their metadata.
        texts: The texts that the model reads.
        options: `top_n` and `score_threshold`, from the call or else from the fields; with `blend` or
            `skim` the first-stage scores.
        inputs: What a trace shows.
    """

    documents: list[Any]
    metadata: list[Mapping[str, Any]]
    texts: list[str]
    options: dict[str, Any]
    inputs: dict[str, Any]

    def traced(self, run_id: UUID | None = None) -> TracedDocuments:
        """Return what a span shows of the documents."""
        ids = [one.get("id") if isinstance(one, Mapping) else getattr(one, "id", None) for one in self.documents]
        return TracedDocuments("langchain", ids, first_stage_scores(self.metadata), self.metadata, run_id)


def _outputs(ranked: list[Document], ranking: Ranking) -> dict[str, Any]:
    """Return what a trace shows at the end: the documents, and which near-duplicates of them were left out."""
    skipped = [asdict(one) for one in ranking.skipped]
    return {"documents": ranked, "skipped": skipped} if skipped else {"documents": ranked}


def _documents_and_query(state: object) -> tuple[Any, Any]:
    names = ("documents", "query", "question")
    # The state of a graph may be a dataclass or a pydantic model.
    found = (
        state if isinstance(state, Mapping) else {name: getattr(state, name) for name in names if hasattr(state, name)}
    )
    query_key = "query" if "query" in found else "question"
    if "documents" not in found or query_key not in found:
        shown = (
            f"has the keys [{first_few(sorted(map(str, state)), 10)}]"
            if isinstance(state, Mapping)
            else f"is a {type(state).__name__} without `{'documents' if 'documents' not in found else 'query'}`"
        )
        raise InvalidInputError(
            f"The input {shown}; expected a dict or an object with `documents` and with `query` or `question`."
        )
    return found["documents"], found[query_key]
