"""Cross-encoder reranking for LlamaIndex, on llama-index-core alone.

    from marcorank.llama_index import MarcoRerank

    engine = index.as_query_engine(similarity_top_k=20, node_postprocessors=[MarcoRerank(top_n=3)])

What comes back are new `NodeWithScore` objects; the nodes and lists that were given are never changed.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from types import NoneType
from typing import Any

from marcorank.arguments import one_of, score_threshold_or_none, top_n_or_none
from marcorank.errors import InvalidInputError, MissingExtraError
from marcorank.loading import BackendName, ModelSettings, Precision
from marcorank.models import BUNDLED
from marcorank.pairs import LongPassages
from marcorank.ranking import Activation, Ranking
from marcorank.reranker import DEFAULT_MODEL, Reranker
from marcorank.scorer import Scorer, scorer_name

try:
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
    from pydantic import (
        ConfigDict,
        Field,
        PrivateAttr,
        SecretStr,
        ValidationInfo,
        field_serializer,
        field_validator,
        model_validator,
    )
    from pydantic.json_schema import SkipJsonSchema
    from typing_extensions import Self
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "`marcorank.llama_index` needs llama-index-core 0.13 or later: pip install 'marcorank[llama-index]'"
    ) from error

__all__ = ["MarcoRerank"]

_RETRIEVAL_SCORE = "retrieval_score"
_DEFAULTS = {**asdict(ModelSettings(model=DEFAULT_MODEL)), "activation": "identity"}
# The token has a form and a check of its own.
_CHECKED_BY_CORE = ("activation", *(field.name for field in fields(ModelSettings) if field.name != "token"))

dispatcher = get_dispatcher(__name__)


class MarcoRerank(BaseNodePostprocessor):
    """Ranks nodes with a cross-encoder and keeps the best.

    Takes the place of any node postprocessor: in query engines, chat engines and on its own. Nothing is loaded before
    the first use; postprocessors with the same settings share the weights, and so do copies.

    The fields that are not listed are the settings of `marcorank.Reranker`, under the same names. Pickles, dicts and
    JSON carry the settings; `token` and `callback_manager` stay out of them.

    Each call is a span, and both event systems hear of its start and its end, also for an empty list. After an error
    or a cancellation the end tells of no nodes.

    Attributes:
        model: `"bundled"`, the name of a model, or the path of its folder. Beside a `reranker`: its name.
        top_n: Most nodes to return; None for all.
        score_threshold: Least score of a node, on the scale of the activation; applied before `top_n`.
        metadata_mode: Which metadata stand in the text that is scored, as in `BaseNode.get_content`.
        keep_retrieval_score: Whether a copy of each node keeps the score that the node came with, as
            `metadata["retrieval_score"]`; in a chain of rerankers that of the first stage stays. The key is excluded
            from the text for LLMs and embeddings, and never part of the text that is scored, in no `metadata_mode`.
        reranker: A `marcorank.Reranker` to share, or an object with `score(query, passages)`, in place of the model
            settings. Not part of dicts and JSON: `from_dict(settings, reranker=...)` puts it back.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        # Values are in our own messages; pydantic would also print a token.
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    # First, so that the checks of the other fields see it.
    reranker: SkipJsonSchema[Reranker | Scorer | None] = Field(default=None, exclude=True, frozen=True)
    model: str = DEFAULT_MODEL
    top_n: int | None = 3
    score_threshold: float | None = None
    metadata_mode: MetadataMode = MetadataMode.EMBED
    keep_retrieval_score: bool = False
    activation: Activation = "identity"
    backend: BackendName = "auto"
    device: str | None = None
    precision: Precision = "auto"
    max_length: int = 512
    max_query_tokens: int | None = None
    long_passages: LongPassages = "truncate"
    revision: str | None = None
    cache_folder: str | None = None
    local_files_only: bool | None = None
    allow_pickle: bool = False
    token: str | SecretStr | None = Field(default=None, exclude=True, repr=False)

    _made: tuple[dict[str, Any], Reranker] | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_class_name(cls, data: Any) -> Any:
        # LlamaIndex writes it into every dump, and only its own `from_dict` takes it out again.
        return {name: data[name] for name in data if name != "class_name"} if isinstance(data, dict) else data

    @field_validator("reranker", mode="before")
    @classmethod
    def _check_reranker(cls, value: object) -> object:
        if isinstance(value, type) or not isinstance(value, (Reranker, Scorer, NoneType)):
            raise InvalidInputError(
                f"`reranker` is {value!r}; expected a marcorank.Reranker or an object with `score(query, passages)`. "
                "The name of a model goes in `model`."
            )
        return value

    @field_validator(*_CHECKED_BY_CORE, mode="before")
    @classmethod
    def _check_setting(cls, value: object, info: ValidationInfo) -> object:
        name = str(info.field_name)
        shared = info.data.get("reranker")
        # A bare scorer has no activation of its own.
        if shared is not None and (name != "activation" or isinstance(shared, Reranker)):
            own = _settings_of(shared)[name]
            if value != own:
                raise InvalidInputError(
                    f"`{name}` is {value!r} beside a `reranker` whose own is {own!r}. Pass one of the two."
                )
            return value
        if name != "model":
            return Reranker(BUNDLED, **{name: value}).to_dict()[name]  # type: ignore[arg-type]
        if not isinstance(value, (str, os.PathLike)):
            raise InvalidInputError(
                f"`model` is {value!r}; expected a model name or the path of a model folder. An object with "
                "`score(query, passages)` goes in `reranker`."
            )
        return Reranker(value).model

    @field_validator("token", mode="before")
    @classmethod
    def _check_token(cls, value: object, info: ValidationInfo) -> object:
        if value is not None and info.data.get("reranker") is not None:
            raise InvalidInputError("`token` was given beside a `reranker`, which has its own. Pass one of the two.")
        if value == "" or not isinstance(value, (str, SecretStr, NoneType)):
            raise InvalidInputError(f"`token` is a {type(value).__name__}; expected None or a text that is not empty.")
        return SecretStr(value) if isinstance(value, str) else value

    @field_validator("top_n", mode="before")
    @classmethod
    def _check_top_n(cls, value: object) -> int | None:
        return top_n_or_none(value)

    @field_validator("score_threshold", mode="before")
    @classmethod
    def _check_score_threshold(cls, value: object) -> float | None:
        return score_threshold_or_none(value)

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

    @field_serializer("metadata_mode")
    def _plain_metadata_mode(self, value: MetadataMode) -> str:
        return MetadataMode(value).value  # model_copy(update=...) takes a bare text

    def model_post_init(self, _context: Any, /) -> None:
        """Show the settings of a reranker that was given, so that dumps say what is used."""
        if self.reranker is not None:
            shown = _settings_of(self.reranker)
            if not isinstance(self.reranker, Reranker):
                shown["activation"] = self.activation
            self.__dict__.update(shown)
            # Else a dump of what was set would leave them out, and bring back the default model.
            self.model_fields_set.update(_CHECKED_BY_CORE)
        _ = self.core  # made now, so that threads and copies share it

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex stores the class."""
        return "MarcoRerank"

    @property
    def core(self) -> Reranker:
        """The `Reranker` that does the work: `core.warm_up()` loads the model, `core.close()` lets go of it."""
        if isinstance(self.reranker, Reranker):
            return self.reranker
        wanted: dict[str, Any] = (
            {
                **{name: getattr(self, name) for name in _CHECKED_BY_CORE},
                "token": self.token.get_secret_value() if isinstance(self.token, SecretStr) else self.token,
            }
            if self.reranker is None
            else {"model": self.reranker, "activation": self.activation}
        )
        made = self._made
        # Fields can change by assignment and by model_copy(update=...).
        if made is None or made[0] != wanted:
            made = self._made = (wanted, Reranker(**wanted))
        return made[1]

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _checked_query(nodes, query_bundle)
        with self._events(nodes, query_bundle) as ranked:
            if nodes:
                ranking = self.core.rank(query, self._texts(nodes), **self._cut())
                ranked.extend(self._ranked_nodes(nodes, ranking))
        return ranked

    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _checked_query(nodes, query_bundle)
        with self._events(nodes, query_bundle) as ranked:
            if nodes:
                ranking = await self.core.arank(query, self._texts(nodes), **self._cut())
                ranked.extend(self._ranked_nodes(nodes, ranking))
        return ranked

    @contextmanager
    def _events(
        self, nodes: Sequence[NodeWithScore], query_bundle: QueryBundle | None
    ) -> Iterator[list[NodeWithScore]]:
        """Tell both event systems of a start, and of an end whatever happens.

        Yields the list that the end tells of: empty after an error or a cancellation, for no node came out.
        """
        name = self.core.name
        # The event has no word for "all".
        top_n = len(nodes) if self.top_n is None else self.top_n
        ranked: list[NodeWithScore] = []
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=list(nodes), top_n=top_n, model_name=name))
        try:
            payload: dict[str, Any] = {
                EventPayload.NODES: nodes,
                EventPayload.MODEL_NAME: name,
                EventPayload.QUERY_STR: None if query_bundle is None else query_bundle.query_str,
                EventPayload.TOP_K: top_n,
            }
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield ranked
                event.on_end(payload={EventPayload.NODES: ranked})
        finally:
            dispatcher.event(ReRankEndEvent(nodes=ranked))

    def _cut(self) -> dict[str, Any]:
        return {"top_n": self.top_n, "score_threshold": self.score_threshold}

    def _texts(self, nodes: Sequence[NodeWithScore]) -> list[str]:
        return [_scored_node(found.node).get_content(metadata_mode=self.metadata_mode) for found in nodes]

    def _ranked_nodes(self, nodes: Sequence[NodeWithScore], ranking: Ranking) -> list[NodeWithScore]:
        ranked = []
        for result in ranking:
            found = nodes[result.index]
            node = _with_retrieval_score(found) if self.keep_retrieval_score else found.node
            ranked.append(found.model_copy(update={"node": node, "score": result.score}))
        return ranked

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        yield "model", self.model
        for name, value in super().__repr_args__():
            if name not in {None, "model", "callback_manager"} and value != type(self).model_fields[str(name)].default:
                yield name, value

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # All settings are immutable; the model and the callbacks are shared on purpose.
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex's own takes what cannot be pickled out of the living object, and a scorer that is left out would
        # come back as the default model.
        return {
            name: getattr(self, name) for name in type(self).model_fields if name not in {"callback_manager", "token"}
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _settings_of(shared: Reranker | Scorer) -> dict[str, Any]:
    """Return what the fields show beside a reranker or scorer that was given."""
    if not isinstance(shared, Reranker):
        return {**_DEFAULTS, "model": scorer_name(shared)}
    if isinstance(shared.model, str):
        return {**_DEFAULTS, **shared.to_dict()}
    return {**_DEFAULTS, "model": shared.name, "activation": shared.activation}


def _checked_query(nodes: object, query_bundle: object) -> str:
    """Return the query; "" where there is none and no nodes need one.

    Raises:
        InvalidInputError: The nodes are no list of `NodeWithScore`, or they come without a query.
    """
    if not isinstance(nodes, Sequence) or isinstance(nodes, (str, bytes)):
        raise InvalidInputError(
            f"`nodes` is a {type(nodes).__name__}; expected a list of NodeWithScore, even for one node."
        )
    for index, found in enumerate(nodes):
        if not isinstance(found, NodeWithScore):
            hint = " Wrap it: NodeWithScore(node=node)." if isinstance(found, BaseNode) else ""
            raise InvalidInputError(f"`nodes[{index}]` is a {type(found).__name__}; expected a NodeWithScore.{hint}")
    if query_bundle is not None and not isinstance(query_bundle, QueryBundle):
        raise InvalidInputError(
            f"`query_bundle` is {query_bundle!r}; expected a QueryBundle. A text goes in `query_str`."
        )
    if query_bundle is None and nodes:
        raise InvalidInputError(
            "There is no query to rank the nodes for: pass `query_str='...'` or `query_bundle=QueryBundle('...')`."
        )
    return "" if query_bundle is None else query_bundle.query_str


def _scored_node(node: BaseNode) -> BaseNode:
    """Return the node without the score of an earlier stage, which is no part of what it says."""
    if _RETRIEVAL_SCORE not in node.metadata:
        return node
    metadata = {key: value for key, value in node.metadata.items() if key != _RETRIEVAL_SCORE}
    return node.model_copy(update={"metadata": metadata})


def _with_retrieval_score(found: NodeWithScore) -> BaseNode:
    """Return a node that keeps the score of the first stage where neither an LLM nor an embedding sees it."""
    node = found.node
    excluded = (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys)
    # Excluded from both, it is from an earlier pass of ours; else from elsewhere, perhaps for another query.
    if _RETRIEVAL_SCORE in node.metadata and all(_RETRIEVAL_SCORE in keys for keys in excluded):
        return node
    embed, llm = ([*(key for key in keys if key != _RETRIEVAL_SCORE), _RETRIEVAL_SCORE] for keys in excluded)
    return node.model_copy(
        update={
            "metadata": {**node.metadata, _RETRIEVAL_SCORE: found.score},
            "excluded_embed_metadata_keys": embed,
            "excluded_llm_metadata_keys": llm,
        }
    )
