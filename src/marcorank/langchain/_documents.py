"""Documents in, with or without metadata, and ranked documents out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document

from marcorank._arguments import finite_number
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marcorank.ranking import RankedPassage, Ranking

_OF_THIS_STAGE = ("best_span", "truncated", "unknown_tokens", "query_truncated", "rerank_status")
_EARLIER_SCORES = ("retrieval_score", "relevance_score", "score")


def read_document(document: object, index: int) -> tuple[str, Mapping[str, Any]]:
    """Return the text and the metadata of a document.

    Raises:
        InvalidInputError: It is not a LangChain Document.
    """
    if not isinstance(document, Document):
        raise InvalidInputError(f"`documents[{index}]` is a {type(document).__name__}; expected a LangChain Document.")
    return document.page_content, document.metadata


def read_anything(document: object, index: int) -> tuple[str, Mapping[str, Any]]:
    """Return the text and the metadata of a document, a dict or a bare text.

    Raises:
        InvalidInputError: It has no text.
    """
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


def scored_text(text: str, metadata: Mapping[str, Any], text_fields: Sequence[str]) -> str:
    """Return the text that the model reads: values of the metadata, each on a line of its own, then the text."""
    values = [metadata.get(name) for name in text_fields]
    return "\n".join([*(str(value) for value in values if value is not None), text])


def ranked_document(document: Document, result: RankedPassage, ranking: Ranking) -> Document:
    """Return a copy of a document whose metadata say how it was ranked."""
    metadata = {key: value for key, value in document.metadata.items() if key not in _OF_THIS_STAGE}
    for key in _EARLIER_SCORES:
        # A float also for numpy scalars, which do not go through JSON.
        score = finite_number(metadata[key]) if key in metadata else None
        if score is not None:
            metadata["retrieval_score"] = score
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
    if result.unknown_tokens:
        metadata["unknown_tokens"] = result.unknown_tokens
    if ranking.query_truncated:
        metadata["query_truncated"] = True
    return document.model_copy(update={"metadata": metadata})
