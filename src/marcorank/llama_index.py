"""Cross-encoder reranking for LlamaIndex, on llama-index-core alone.

    from marcorank.llama_index import MarcoRerank

    engine = index.as_query_engine(similarity_top_k=20, node_postprocessors=[MarcoRerank(top_n=3)])

It returns new `NodeWithScore` objects; the nodes and lists that you pass are never changed.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar

from marcorank._arguments import one_of
from marcorank._calls.tracing import TracedDocuments, ranks_documents
from marcorank._text import is_blank, quoted
from marcorank.errors import InvalidInputError, MarcoRankError, MissingExtraError
from marcorank.ranking import Ranking, RerankStatus, unranked
from marcorank.settings import DEFAULT_MODEL

try:
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
    from llama_index.core.instrumentation.events.exception import ExceptionEvent
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
    from pydantic import ValidationInfo, field_serializer, field_validator, model_validator

    from marcorank._adapters.metadata import OPTION_KEYS, STATUS_KEYS, option_metadata, plain_score, status_metadata
    from marcorank._adapters.settings import AdapterSettings, ScoreThreshold, TopN, WriteMetadata
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "`marcorank.llama_index` needs llama-index-core 0.13 or later: pip install 'marcorank[llama-index]'"
    ) from error

__all__ = ["MarcoRerank"]

_RETRIEVAL_SCORE = "retrieval_score"
_OF_EACH_STAGE = {*STATUS_KEYS, *OPTION_KEYS}
_OF_RERANKERS = {_RETRIEVAL_SCORE, *_OF_EACH_STAGE}
# The query that a RetrieverTool makes of its argument. Any name would match a question too, such as "what is red".
_QUERY_OF_A_TOOL = re.compile(r"\n(?:input|query) is (.*)\n", re.DOTALL)

dispatcher = get_dispatcher(__name__)


class MarcoRerank(AdapterSettings, BaseNodePostprocessor):
    """Ranks nodes with a cross-encoder and keeps the best.

    A drop-in for any node postprocessor: in query engines, chat engines and on its own. Nothing is loaded before
    the first use; postprocessors with the same settings share the weights, and so do copies.

    The fields that are not listed are the settings of `marcorank.Reranker`, under the same names. Pickles, dicts and
    JSON carry the settings; `token` and `callback_manager` stay out of them.

    Each call is a span, and both event systems get a start and an end event, also for an empty list. After an error
    or a cancellation the end event has no nodes.

    A `RetrieverTool` turns the arguments of a call into the text "input is ..."; the prefix is removed before scoring.
    This holds for one argument with the name `input` or `query`; others cannot be told from the text and stay in it.

    Nodes for a query that is only an image, a `QueryBundle` with an `image_path` and a blank `query_str`, keep their
    order, as after a passthrough.

    If the model failed and `on_error` or `fallback` answered, copies of the nodes have `rerank_outcome`, `rerank_error`
    and `rerank_reason` in their metadata, which are excluded from the texts as `retrieval_score` is. After a
    passthrough the nodes keep the scores that they came with, and both event systems get an exception event.

    With `blend`, copies of the nodes have their `blended_score` in the metadata, hidden likewise. What only the model
    of `skim` read has its name there as `scored_by`, and None for a score: a number of another model would be compared
    with those of the other nodes.

    Attributes:
        model: `"bundled"`, `"bundled-tiny"`, the name of a model, or the path of its folder. Beside a `reranker`: its
            name.
        top_n: Maximum number of nodes to return; None for all.
        score_threshold: Minimum score of a node, on the scale of the activation; applied before `top_n`.
        metadata_mode: Which metadata are part of the text that is scored, as in `BaseNode.get_content`.
        write_metadata: Whether the results may say in their metadata how they were ranked. With False they have the
            metadata, and so the hash, that they came with: a retriever that compares nodes recognises them.
        keep_retrieval_score: Whether a copy of each node keeps the score that the node came with, as
            `metadata["retrieval_score"]`; in a chain of rerankers it stays the score of the first stage. It is a
            float, and absent if the node came without a finite number. The key is excluded from the texts for LLMs and
            embeddings, and never scored, whatever the `metadata_mode`.
        reranker: A `marcorank.Reranker` to share, or an object with `score(query, passages)`, in place of the model
            settings. Not part of dicts and JSON: `from_dict(settings, reranker=...)` puts it back.
    """

    _model_field: ClassVar[str] = "model"

    model: str = DEFAULT_MODEL
    top_n: TopN = 3
    score_threshold: ScoreThreshold = None
    metadata_mode: MetadataMode = MetadataMode.EMBED
    write_metadata: WriteMetadata = True
    keep_retrieval_score: bool = False

    @model_validator(mode="before")
    @classmethod
    def _leave_out_class_name(cls, data: Any) -> Any:
        # LlamaIndex writes it into every dump, and only its own `from_dict` takes it out again.
        return {name: data[name] for name in data if name != "class_name"} if isinstance(data, dict) else data

    @field_validator("metadata_mode", mode="before")
    @classmethod
    def _check_metadata_mode(cls, value: object) -> MetadataMode:
        if isinstance(value, MetadataMode):
            return value
        return MetadataMode(one_of("metadata_mode", value, [mode.value for mode in MetadataMode]))

    @field_validator("keep_retrieval_score", mode="before")
    @classmethod
    def _check_keep_retrieval_score(cls, value: object) -> object:
        return one_of("keep_retrieval_score", value, (True, False))

    @field_validator("keep_retrieval_score", "write_metadata", mode="after")
    @classmethod
    def _check_what_is_written(cls, value: object, info: ValidationInfo) -> object:
        given = {**info.data, str(info.field_name): value}
        if given.get("keep_retrieval_score") and not given.get("write_metadata", True):
            raise InvalidInputError(
                "`keep_retrieval_score` is True beside `write_metadata=False`, but the score is kept in the metadata. "
                "Pass one of the two."
            )
        return value

    @field_serializer("metadata_mode")
    def _plain_metadata_mode(self, value: MetadataMode) -> str:
        return value.value

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex stores the class."""
        return "MarcoRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _checked_query(nodes, query_bundle)
        with self._events(nodes, query_bundle) as (ranked, skipped):
            if nodes:
                with ranks_documents(partial(_traced, nodes)):
                    ranking = self._image_query(nodes, query_bundle) or self.core.rank(
                        query, self._texts(nodes), **self._options(nodes)
                    )
                self._report_passthrough(ranking)
                ranked.extend(self._ranked_nodes(nodes, ranking))
                skipped.extend(asdict(one) for one in ranking.skipped)
        return ranked

    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _checked_query(nodes, query_bundle)
        with self._events(nodes, query_bundle) as (ranked, skipped):
            if nodes:
                with ranks_documents(partial(_traced, nodes)):
                    ranking = self._image_query(nodes, query_bundle) or await self.core.arank(
                        query, self._texts(nodes), **self._options(nodes)
                    )
                self._report_passthrough(ranking)
                ranked.extend(self._ranked_nodes(nodes, ranking))
                skipped.extend(asdict(one) for one in ranking.skipped)
        return ranked

    @contextmanager
    def _events(
        self, nodes: Sequence[NodeWithScore], query_bundle: QueryBundle | None
    ) -> Iterator[tuple[list[NodeWithScore], list[dict[str, Any]]]]:
        """Send a start event to both event systems, and an end event whatever happens.

        Yields the lists that the end event reports: the nodes, empty after an error or a cancellation, when no node
        came out, and the near-duplicates that were left out. These, and the options that are on, are tags of the
        events, and `additional_kwargs` of the others.
        """
        name = self.core.name
        # The events have no value for "all".
        top_n = len(nodes) if self.top_n is None else self.top_n
        ranked: list[NodeWithScore] = []
        skipped: list[dict[str, Any]] = []
        options = self._options_on()
        dispatcher.event(
            ReRankStartEvent(query=query_bundle, nodes=list(nodes), top_n=top_n, model_name=name, tags={**options})
        )
        try:
            payload: dict[str, Any] = {
                EventPayload.NODES: nodes,
                EventPayload.MODEL_NAME: name,
                EventPayload.QUERY_STR: None if query_bundle is None else query_bundle.query_str,
                EventPayload.TOP_K: top_n,
            }
            if options:
                payload[EventPayload.ADDITIONAL_KWARGS] = options
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield ranked, skipped
                ended: dict[str, Any] = {EventPayload.NODES: ranked}
                if skipped:
                    ended[EventPayload.ADDITIONAL_KWARGS] = {"skipped": skipped}
                event.on_end(payload=ended)
        finally:
            dispatcher.event(ReRankEndEvent(nodes=ranked, tags={"skipped": skipped} if skipped else {}))

    def _report_passthrough(self, ranking: Ranking) -> None:
        if ranking.status is not None and ranking.status.outcome == "passthrough":
            error = MarcoRankError(str(ranking.status))
            dispatcher.event(ExceptionEvent(exception=error))
            with self.callback_manager.event(CBEventType.EXCEPTION, payload={EventPayload.EXCEPTION: error}):
                pass

    def _image_query(self, nodes: Sequence[NodeWithScore], query_bundle: QueryBundle | None) -> Ranking | None:
        """Return the order of the nodes for a query that is only an image; None for any other query."""
        text = "" if query_bundle is None else query_bundle.query_str or ""
        if query_bundle is None or query_bundle.image_path is None or not isinstance(text, str) or not is_blank(text):
            return None
        status = RerankStatus("passthrough", "InvalidInputError", "The query is an image without text.")
        return unranked("", self.core.name, self._texts(nodes[: self.top_n]), status)

    def _texts(self, nodes: Sequence[NodeWithScore]) -> list[str]:
        return [_scored_node(found.node).get_content(metadata_mode=self.metadata_mode) for found in nodes]

    def _options(self, nodes: Sequence[NodeWithScore]) -> dict[str, Any]:
        options: dict[str, Any] = {"top_n": self.top_n, "score_threshold": self.score_threshold}
        if self.blend or self.skim is not None:
            options["retrieval_scores"] = _first_stage_scores(nodes)
        return options

    def _ranked_nodes(self, nodes: Sequence[NodeWithScore], ranking: Ranking) -> list[NodeWithScore]:
        ranked = []
        replaced = {*_OF_EACH_STAGE, *([_RETRIEVAL_SCORE] if self.keep_retrieval_score else [])}
        for result in ranking.results:
            found = nodes[result.index]
            hidden: dict[str, Any] = {**status_metadata(ranking.status), **option_metadata(result)}
            if self.keep_retrieval_score:
                kept = _keeps_retrieval_score(found.node)
                earlier = plain_score(found.node.metadata[_RETRIEVAL_SCORE] if kept else found.score)
                if earlier is not None:
                    hidden[_RETRIEVAL_SCORE] = earlier
            score = result.score
            if score is None and result.scored_by is None:
                score = plain_score(found.score)
            node = _with_hidden(found.node, hidden, replaced) if self.write_metadata else found.node
            ranked.append(found.model_copy(update={"node": node, "score": score}))
        return ranked


def _checked_query(nodes: object, query_bundle: object) -> str:
    """Return the query; "" if there is none and there are no nodes to rank.

    Raises:
        InvalidInputError: The nodes are not a list of `NodeWithScore`, or there is no query for them.
    """
    if not isinstance(nodes, Sequence) or isinstance(nodes, (str, bytes)):
        raise InvalidInputError(
            f"`nodes` is a {type(nodes).__name__}; expected a list of NodeWithScore, even for one node."
        )
    for index, found in enumerate(nodes):
        if not isinstance(found, NodeWithScore):
            hint = " Wrap it: NodeWithScore(node=node)." if isinstance(found, BaseNode) else ""
            raise InvalidInputError(f"`nodes[{index}]` is a {type(found).__name__}; expected a NodeWithScore.{hint}")
        _check_node(getattr(found, "node", None), f"nodes[{index}].node")
    if query_bundle is not None and not isinstance(query_bundle, QueryBundle):
        raise InvalidInputError(
            f"`query_bundle` is {quoted(query_bundle)}; expected a QueryBundle. A text goes in `query_str`."
        )
    if query_bundle is None and nodes:
        raise InvalidInputError(
            "There is no query to rank the nodes for: pass `query_str='...'` or `query_bundle=QueryBundle('...')`."
        )
    query = "" if query_bundle is None else query_bundle.query_str
    of_a_tool = _QUERY_OF_A_TOOL.fullmatch(query) if isinstance(query, str) else None
    return query if of_a_tool is None else of_a_tool[1]


def _check_node(node: object, shown: str) -> None:
    """Check what pydantic does not for a node made with `model_construct`.

    Raises:
        InvalidInputError: It is not a node, or has no metadata or no text.
    """
    if not isinstance(node, BaseNode):
        raise InvalidInputError(f"`{shown}` is {quoted(node)}; expected a node.")
    if not isinstance(node.metadata, dict):
        raise InvalidInputError(f"`{shown}.metadata` is {quoted(node.metadata)}; expected a dict, which may be empty.")
    if isinstance(node, TextNode) and not isinstance(node.text, str):
        raise InvalidInputError(f"`{shown}.text` is {quoted(node.text)}; expected a str, which may be empty.")


def _scored_node(node: BaseNode) -> BaseNode:
    """Return the node without the metadata of an earlier stage, which must not be scored."""
    if not _OF_RERANKERS & node.metadata.keys():
        return node
    metadata = {key: value for key, value in node.metadata.items() if key not in _OF_RERANKERS}
    return node.model_copy(update={"metadata": metadata})


def _keeps_retrieval_score(node: BaseNode) -> bool:
    """Whether an earlier reranker stored the first-stage score; others do not exclude the key from both texts."""
    excluded = (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys)
    return _RETRIEVAL_SCORE in node.metadata and all(_RETRIEVAL_SCORE in keys for keys in excluded)


def _first_stage_scores(nodes: Sequence[NodeWithScore]) -> list[float | None]:
    kept = all(_keeps_retrieval_score(found.node) for found in nodes)
    return [plain_score(found.node.metadata[_RETRIEVAL_SCORE] if kept else found.score) for found in nodes]


def _traced(nodes: Sequence[NodeWithScore]) -> TracedDocuments:
    """Return what a span shows of the nodes."""
    ids = [found.node.node_id for found in nodes]
    metadata = [found.node.metadata for found in nodes]
    return TracedDocuments("llama_index", ids, _first_stage_scores(nodes), metadata)


def _with_hidden(node: BaseNode, hidden: dict[str, Any], replaced: set[str]) -> BaseNode:
    """Return a node with metadata that neither an LLM nor an embedding sees, in place of those of an earlier stage."""
    if not hidden and not replaced & node.metadata.keys():
        return node
    kept = {key: value for key, value in node.metadata.items() if key not in replaced}
    embed, llm = (
        [*(key for key in keys if key not in hidden), *hidden]
        for keys in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys)
    )
    return node.model_copy(
        update={
            "metadata": {**kept, **hidden},
            "excluded_embed_metadata_keys": embed,
            "excluded_llm_metadata_keys": llm,
        }
    )
