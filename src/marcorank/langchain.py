"""Cross-encoder reranking for LangChain, on langchain-core alone.

    from marcorank.langchain import MarcoRerank, RerankRetriever

    retriever = RerankRetriever(base_retriever=store.as_retriever(search_kwargs={"k": 20}), top_n=5)

`MarcoRerank` is a document compressor, `RerankRetriever` a retriever around any other, and `MarcoCrossEncoder` serves
code that takes a LangChain cross-encoder.

A ranked document is a new object: the one that was given, with these keys in a metadata dict of its own. What an
earlier stage left under them is replaced.

    relevance_score    its score, a float
    retrieval_score    its score before this stage: what was there as `retrieval_score`, else as `relevance_score`,
                       else as `score`; absent where none of them is a number
    best_span          [start, end] of the best window in `page_content`; only with `long_passages="windows"`
    truncated          True where the model saw only the beginning of the text, else absent
    query_truncated    True where the query was longer than its cap and was cut, else absent
    rerank_status      {"outcome", "error", "reason"} where the model failed: `outcome` is "fallback", or "passthrough"
                       and then the order is that of the first stage and there is no `relevance_score`; else absent
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import Enum
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from marcorank._arguments import query_text, score_threshold_or_none, top_n_or_none
from marcorank.errors import InvalidInputError, MarcoRankError, MissingExtraError
from marcorank.reranker import Reranker
from marcorank.settings import DEFAULT_MODEL

try:
    from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
    from langchain_core.cross_encoders import BaseCrossEncoder
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.retrievers import BaseRetriever, RetrieverLike
    from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, ensure_config
    from pydantic import ConfigDict, Field, field_validator

    from marcorank._adapters.settings import AdapterSettings, ScoreThreshold, TopN
except ImportError as error:  # langchain-core makes one of a missing pydantic
    raise MissingExtraError(
        "`marcorank.langchain` needs langchain-core 1.4 or later: pip install 'marcorank[langchain]'"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun, Callbacks

    from marcorank.ranking import RankedPassage, Ranking

__all__ = ["MarcoRerank", "MarcoCrossEncoder", "RerankRetriever"]

_OF_THIS_STAGE = ("best_span", "truncated", "query_truncated", "rerank_status")
_EARLIER_SCORES = ("retrieval_score", "relevance_score", "score")


class _NotGiven(Enum):
    """Marks an argument that was left out; None means "all" or "no threshold"."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return self.value


_NOT_GIVEN = _NotGiven.NOT_GIVEN


class _LangChainSettings(AdapterSettings):
    _model_field: ClassVar[str] = "model_name"
    # The `score` of a cross-encoder takes pairs.
    _no_scorers: ClassVar[tuple[type, ...]] = (type, BaseCrossEncoder)

    model_name: str = DEFAULT_MODEL


class MarcoRerank(_LangChainSettings, BaseDocumentCompressor):
    """Ranks documents with a cross-encoder and keeps the best.

    A drop-in for any document compressor: in `ContextualCompressionRetriever`, in `DocumentCompressorPipeline`,
    in a `RerankRetriever`, and through `as_runnable` in a chain. Nothing is loaded before the first use; adapters with
    the same settings share the weights. Each call is a run of its own under the caller's callbacks.

    The fields that are not listed are the settings of `marcorank.Reranker`, under the same names. `token` is kept out
    of dumps, pickles, messages and traces.

    Attributes:
        model_name: `"bundled"`, the name of a model, or the path of its folder.
        top_n: Maximum number of documents to return; None for all.
        score_threshold: Minimum score of a document, on the scale of the activation; applied before `top_n`.
        text_fields: Metadata keys whose values are put before the text that is scored, each on a line of its own. A
            key that a document does not have, or that is None there, is left out. In windows mode they stand in the
            first window only.
        reranker: A `marcorank.Reranker` to share, or an object with `score(query, passages)`, in place of the model
            settings. Not part of dumps: `MarcoRerank(**settings, reranker=...)` puts it back.
    """

    top_n: TopN = 3
    score_threshold: ScoreThreshold = None
    text_fields: tuple[str, ...] = ()

    @field_validator("text_fields", mode="before")
    @classmethod
    def _check_text_fields(cls, value: object) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
            raise InvalidInputError(f"`text_fields` is {value!r}; expected a list of metadata keys, such as ['title'].")
        return tuple(value)

    def compress_documents(
        self,
        documents: Iterable[Document],
        query: str,
        callbacks: Callbacks | None = None,
        *,
        top_n: int | _NotGiven | None = _NOT_GIVEN,
        score_threshold: float | _NotGiven | None = _NOT_GIVEN,
    ) -> list[Document]:
        """Return the best documents as new objects, best first; ties keep the order of the input.

        Args:
            documents: What the first stage found. Never changed.
            query: The query; must not be blank.
            callbacks: Receive the run; None for those of the chain that this is called in.
            top_n: Overrides the field for this call.
            score_threshold: Overrides the field for this call.

        Raises:
            InvalidInputError: An argument is not allowed.
            ScoreError: The model did not return one finite logit a document.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        task = self._task(documents, query, top_n, score_threshold)
        manager = CallbackManager.configure(inheritable_callbacks=_callbacks_or_context(callbacks))
        run = manager.on_chain_start(None, task.trace_inputs(self.core.name), name=type(self).__name__)
        try:
            ranking = self.core.rank(task.query, task.texts(), top_n=task.top_n, score_threshold=task.score_threshold)
            found = task.ranked_documents(ranking)
        except BaseException as error:
            run.on_chain_error(error)
            raise
        failure = _failure(ranking)
        if failure is None:
            run.on_chain_end({"documents": found})
        else:
            run.on_chain_error(failure)
        return found

    async def acompress_documents(
        self,
        documents: Iterable[Document],
        query: str,
        callbacks: Callbacks | None = None,
        *,
        top_n: int | _NotGiven | None = _NOT_GIVEN,
        score_threshold: float | _NotGiven | None = _NOT_GIVEN,
    ) -> list[Document]:
        """Do the same as `compress_documents` without blocking the event loop."""
        task = self._task(documents, query, top_n, score_threshold)
        manager = AsyncCallbackManager.configure(inheritable_callbacks=_callbacks_or_context(callbacks))
        run = await manager.on_chain_start(None, task.trace_inputs(self.core.name), name=type(self).__name__)
        try:
            ranking = await self.core.arank(
                task.query, task.texts(), top_n=task.top_n, score_threshold=task.score_threshold
            )
            found = task.ranked_documents(ranking)
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        failure = _failure(ranking)
        if failure is None:
            await run.on_chain_end({"documents": found})
        else:
            await run.on_chain_error(failure)
        return found

    def rerank(
        self,
        documents: Iterable[str | Document | Mapping[str, Any]],
        query: str,
        *,
        top_n: int | _NotGiven | None = _NOT_GIVEN,
        score_threshold: float | _NotGiven | None = _NOT_GIVEN,
    ) -> list[dict[str, Any]]:
        """Return positions and scores, `{"index": 4, "relevance_score": 7.2}`, best first.

        Where the model failed there is a `rerank_status` beside them, as in the metadata of documents; after a
        passthrough the scores are None.

        Args:
            documents: Texts, documents or dicts. A dict has its text under `"page_content"` and its metadata under
                `"metadata"`, or its text under `"text"` and the metadata beside it.
            query: The query; must not be blank.
            top_n: Overrides the field for this call.
            score_threshold: Overrides the field for this call.

        Raises:
            InvalidInputError: An argument is not allowed.
            ScoreError: The model did not return one finite logit a document.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        texts = [
            _scored_text(*_text_and_metadata(document, index), self.text_fields)
            for index, document in enumerate(_listed(documents))
        ]
        ranking = self.core.rank(query, texts, **self._cut(top_n, score_threshold))
        status = {} if ranking.status is None else {"rerank_status": ranking.status.to_dict()}
        return [{"index": result.index, "relevance_score": result.score, **status} for result in ranking]

    def as_runnable(self) -> Runnable[dict[str, Any], list[Document]]:
        """Return a step for chains: `{"query": ..., "documents": [...]}` to the best documents.

        The query may also come as `"question"`; `"query"` counts where both are there. Other keys are ignored.
        """

        def rerank(state: dict[str, Any], config: RunnableConfig) -> list[Document]:
            return self.compress_documents(*_documents_and_query(state), callbacks=config.get("callbacks"))

        async def arerank(state: dict[str, Any], config: RunnableConfig) -> list[Document]:
            return await self.acompress_documents(*_documents_and_query(state), callbacks=config.get("callbacks"))

        return RunnableLambda(rerank, afunc=arerank, name="rerank")

    def _task(self, documents: object, query: object, top_n: object, score_threshold: object) -> _Task:
        listed = _listed(documents)
        for index, document in enumerate(listed):
            if not isinstance(document, Document):
                raise InvalidInputError(
                    f"`documents[{index}]` is a {type(document).__name__}; expected a LangChain Document."
                )
        return _Task(query_text(query), listed, self.text_fields, **self._cut(top_n, score_threshold))

    def _cut(self, top_n: object, score_threshold: object) -> dict[str, Any]:
        return {
            "top_n": top_n_or_none(self.top_n if top_n is _NOT_GIVEN else top_n),
            "score_threshold": score_threshold_or_none(
                self.score_threshold if score_threshold is _NOT_GIVEN else score_threshold
            ),
        }


class MarcoCrossEncoder(_LangChainSettings, BaseCrossEncoder):
    """A LangChain cross-encoder, for code that takes one, such as LangChain's `CrossEncoderReranker`.

    The fields are those of `MarcoRerank` that concern the model. `on_error` can only be `"raise"`: what is returned are
    scores alone, and a passthrough has none.
    """

    @field_validator("on_error", mode="after")
    @classmethod
    def _check_on_error(cls, value: str) -> str:
        if value != "raise":
            raise InvalidInputError(
                f"`on_error` is {value!r}; a cross-encoder returns scores alone, so it can only be 'raise'. Use "
                "MarcoRerank, or a `fallback`."
            )
        return value

    def model_post_init(self, context: Any, /) -> None:
        """Check a reranker that was given as the field is checked, and the fallbacks."""
        super().model_post_init(context)
        core: Reranker | None = self.core
        while core is not None:
            self._check_on_error(core.on_error)
            core = core.fallback

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Return the score of each pair of a query and a passage, in input order.

        All pairs go through the model in common batches, whatever their queries.

        Args:
            text_pairs: Pairs `(query, passage)`.

        Raises:
            InvalidInputError: One of them is not a pair of str, or a query is blank.
            ScoreError: The model did not return one finite logit a pair.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        positions: dict[str, list[int]] = {}
        for index, pair in enumerate(text_pairs):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
                raise InvalidInputError(f"`text_pairs[{index}]` is {pair!r}; expected a pair of str: query, passage.")
            positions.setdefault(pair[0], []).append(index)
        rankings = self.core.rank_many(
            [(query, [text_pairs[index][1] for index in found]) for query, found in positions.items()]
        )
        scores = {
            found[result.index]: result.score
            for found, ranking in zip(positions.values(), rankings, strict=True)
            for result in ranking
            if result.score is not None
        }
        return [scores[index] for index in range(len(text_pairs))]


class RerankRetriever(BaseRetriever):
    """A retriever that ranks what another one finds.

    Per call, `invoke(query, top_n=5, score_threshold=0.0)` and its kin count before the fields; every other keyword
    goes to the base retriever, such as `k=50` to that of a vector store.

    Attributes:
        base_retriever: Any retriever, or a runnable from a query to a list of documents. Let it find more than
            `top_n`.
        reranker: Ranks them; its `score_threshold` counts. A `marcorank.Reranker` is wrapped.
        top_n: Maximum number of documents to return; None for all. By default that of `reranker`.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    base_retriever: RetrieverLike
    reranker: MarcoRerank = Field(default_factory=MarcoRerank)
    top_n: TopN = 3

    @field_validator("reranker", mode="before")
    @classmethod
    def _wrap_core(cls, value: object) -> object:
        return MarcoRerank(reranker=value) if isinstance(value, Reranker) else value

    def model_post_init(self, _context: Any, /) -> None:
        """Take over the reranker's `top_n` where none was given."""
        if "top_n" not in self.model_fields_set:
            self.__dict__["top_n"] = self.reranker.top_n

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        top_n: int | _NotGiven | None = _NOT_GIVEN,
        score_threshold: float | _NotGiven | None = _NOT_GIVEN,
        **kwargs: Any,
    ) -> list[Document]:
        documents = self.base_retriever.invoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        return self.reranker.compress_documents(
            documents,
            query,
            run_manager.get_child(),
            top_n=self.top_n if top_n is _NOT_GIVEN else top_n,
            score_threshold=score_threshold,
        )

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        top_n: int | _NotGiven | None = _NOT_GIVEN,
        score_threshold: float | _NotGiven | None = _NOT_GIVEN,
        **kwargs: Any,
    ) -> list[Document]:
        documents = await self.base_retriever.ainvoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        return await self.reranker.acompress_documents(
            documents,
            query,
            run_manager.get_child(),
            top_n=self.top_n if top_n is _NOT_GIVEN else top_n,
            score_threshold=score_threshold,
        )


class _Task(NamedTuple):
    """One call with arguments that were found sound."""

    query: str
    documents: list[Document]
    text_fields: tuple[str, ...]
    top_n: int | None
    score_threshold: float | None

    def texts(self) -> list[str]:
        return [_scored_text(document.page_content, document.metadata, self.text_fields) for document in self.documents]

    def trace_inputs(self, model: str) -> dict[str, Any]:
        return {
            "query": self.query,
            "document_count": len(self.documents),
            "model": model,
            "top_n": self.top_n,
            "score_threshold": self.score_threshold,
        }

    def ranked_documents(self, ranking: Ranking) -> list[Document]:
        return [
            document.model_copy(update={"metadata": _ranked_metadata(document, result, ranking)})
            for result in ranking
            for document in [self.documents[result.index]]
        ]


def _failure(ranking: Ranking) -> MarcoRankError | None:
    """Return what a trace says of a call that nobody ranked."""
    status = ranking.status
    return MarcoRankError(str(status)) if status is not None and status.outcome == "passthrough" else None


def _ranked_metadata(document: Document, result: RankedPassage, ranking: Ranking) -> dict[str, Any]:
    metadata = {key: value for key, value in document.metadata.items() if key not in _OF_THIS_STAGE}
    for key in _EARLIER_SCORES:
        score = metadata.get(key)
        if not isinstance(score, bool) and isinstance(score, Real) and math.isfinite(score):
            # numpy scalars do not go through JSON.
            metadata["retrieval_score"] = float(score)
            break
    if result.score is None:
        # A score of an earlier stage must not pass for one of this stage.
        metadata.pop("relevance_score", None)
    else:
        metadata["relevance_score"] = result.score
    if ranking.status is not None:
        metadata["rerank_status"] = ranking.status.to_dict()
    if result.span is not None:
        # The model read the text fields first; the span is for the text that the caller has.
        offset = len(result.text) - len(document.page_content)
        metadata["best_span"] = [max(0, end - offset) for end in result.span]
    if result.truncated:
        metadata["truncated"] = True
    if ranking.query_truncated:
        metadata["query_truncated"] = True
    return metadata


def _scored_text(text: str, metadata: Mapping[str, Any], text_fields: Sequence[str]) -> str:
    values = [metadata.get(name) for name in text_fields]
    return "\n".join([*(str(value) for value in values if value is not None), text])


def _text_and_metadata(document: object, index: int) -> tuple[str, Mapping[str, Any]]:
    if isinstance(document, Document):
        return document.page_content, document.metadata
    if isinstance(document, str):
        return document, {}
    if isinstance(document, Mapping) and isinstance(document.get("page_content"), str):
        return document["page_content"], document.get("metadata") or {}
    if isinstance(document, Mapping) and isinstance(document.get("text"), str):
        return document["text"], document
    raise InvalidInputError(
        f"`documents[{index}]` is a {type(document).__name__}; expected a str, a LangChain Document, or a dict with "
        "a str under 'page_content' or 'text'."
    )


def _listed(documents: object) -> list[Any]:
    # A Document is iterable too: pydantic yields its fields.
    if isinstance(documents, (str, bytes, Mapping, Document)) or not isinstance(documents, Iterable):
        raise InvalidInputError(
            f"`documents` is a {type(documents).__name__}; expected a list of documents, even for one."
        )
    return list(documents)


def _documents_and_query(state: object) -> tuple[Any, Any]:
    query_key = "query" if isinstance(state, Mapping) and "query" in state else "question"
    if not isinstance(state, Mapping) or "documents" not in state or query_key not in state:
        found = (
            f"has the keys {sorted(map(str, state))}" if isinstance(state, Mapping) else f"is a {type(state).__name__}"
        )
        raise InvalidInputError(f"The input {found}; expected a dict with 'documents' and with 'query' or 'question'.")
    return state["documents"], state[query_key]


def _callbacks_or_context(callbacks: Callbacks | None) -> Callbacks | None:
    return ensure_config().get("callbacks") if callbacks is None else callbacks
