"""Documents in, with or without metadata, and ranked documents out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.documents import Document

from marcorank._adapters.metadata import OPTION_KEYS, STATUS_KEYS, option_metadata, plain_score, status_metadata
from marcorank._text import quoted
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marcorank.ranking import RankedPassage, Ranking

_OF_A_TEXT = ("best_start", "best_end", "truncated", "unknown_tokens", "query_truncated")
_OF_THIS_STAGE = (*_OF_A_TEXT, *STATUS_KEYS, *OPTION_KEYS)
_EARLIER_SCORES = ("retrieval_score", "relevance_score", "score")
# How numbers and dates that are missing are shown.
_MISSING = {"nan", "NaN", "NaT"}


def read_document(document: object, index: int) -> tuple[str, Mapping[str, Any]]:
    """Return the text and the metadata of a document.

    Raises:
        InvalidInputError: It is not a LangChain Document.
    """
    if not isinstance(document, Document):
        raise InvalidInputError(f"`documents[{index}]` is a {type(document).__name__}; expected a LangChain Document.")
    # `Document.model_construct`, which some stores use, checks nothing.
    text, metadata = getattr(document, "page_content", None), getattr(document, "metadata", None)
    if not isinstance(text, str):
        raise InvalidInputError(
            f"`documents[{index}].page_content` is {quoted(text)}; expected a str. Leave out documents without "
            "text, or use ''."
        )
    return text, _checked_metadata(metadata, index)


def read_anything(document: object, index: int) -> tuple[str, Mapping[str, Any]]:
    """Return the text and the metadata of a document, a dict or a bare text.

    Raises:
        InvalidInputError: It has no text.
    """
    if isinstance(document, Document):
        return read_document(document, index)
    if isinstance(document, str):
        return document, {}
    if isinstance(document, Mapping) and isinstance(document.get("page_content"), str):
        metadata = document.get("metadata") or {}
        return document["page_content"], _checked_metadata(metadata, index)
    if isinstance(document, Mapping) and isinstance(document.get("text"), str):
        return document["text"], document
    raise InvalidInputError(
        f"`documents[{index}]` is a {type(document).__name__}; expected a str, a LangChain Document, or a dict with "
        "a str under 'page_content' or 'text'."
    )


def scored_text(text: str, metadata: Mapping[str, Any], text_fields: Sequence[str], index: int) -> str:
    """Return the text that the model reads: values of the metadata, each on a line of its own, then the text.

    Raises:
        InvalidInputError: A value is neither a text, a number, a date nor a list of them.
    """
    lines = [_text_of(metadata.get(name), index, name) for name in text_fields]
    return "\n".join([*(line for line in lines if line is not None), text])


def first_stage_scores(metadata: Sequence[Mapping[str, Any]]) -> list[float | None] | None:
    """Return the scores that documents came with, for `blend`; None if their order says more.

    A `retrieval_score` says what it is. The other keys only count if the documents come in the order of their values:
    a retriever that fuses the results of others leaves the scores of each in place, and some stores write distances.
    """
    for key in _EARLIER_SCORES:
        scores = [plain_score(one.get(key)) for one in metadata]
        known = [score for score in scores if score is not None]
        in_order = all(first >= second for first, second in pairwise(known))
        if len(known) == len(scores) and (key == "retrieval_score" or in_order):
            return scores
    return None


def _checked_metadata(metadata: object, index: int) -> Mapping[str, Any]:
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(
            f"The metadata of `documents[{index}]` is {quoted(metadata)}; expected a dict, which may be empty."
        )
    return metadata


def _text_of(value: object, index: int, name: str) -> str | None:
    """Return the text of a metadata value; None if there is none, or only the mark of pandas for a missing value."""
    if value is None or type(value).__name__ == "NAType":
        return None
    if isinstance(value, (list, tuple)):
        texts = [_text_of(item, index, name) for item in value]
        return ", ".join(text for text in texts if text is not None) or None
    if not isinstance(value, (str, Real, np.generic, Decimal, date, time)):
        raise InvalidInputError(
            f"`documents[{index}].metadata[{quoted(name)}]` holds {quoted(value)}; expected a text, a number, a date, "
            "or a list of them. Convert it to a text, or leave the key out of `text_fields`."
        )
    text = str(value)
    return None if text in _MISSING and not isinstance(value, str) else text


def ranked_document(document: Document, result: RankedPassage, ranking: Ranking, *, write_metadata: bool) -> Document:
    """Return a copy of a document, whose metadata say how it was ranked if they are to be written."""
    if not write_metadata:
        return document.model_copy(update={"metadata": {**document.metadata}})
    metadata = {key: value for key, value in document.metadata.items() if key not in _OF_THIS_STAGE}
    earlier = [plain_score(metadata.get(key)) for key in _EARLIER_SCORES]
    metadata.pop("retrieval_score", None)
    for score in earlier:
        if score is not None:
            metadata["retrieval_score"] = score
            break
    if result.score is None:
        # A score of an earlier stage must not pass for one of this stage.
        metadata.pop("relevance_score", None)
    else:
        metadata["relevance_score"] = result.score
    metadata.update(status_metadata(ranking.status), **option_metadata(result))
    if result.span is not None:
        # The model read the text fields first; the span is for the text that the caller has.
        offset = len(result.text) - len(document.page_content)
        metadata["best_start"], metadata["best_end"] = (max(0, end - offset) for end in result.span)
    if result.truncated:
        metadata["truncated"] = True
    if result.unknown_tokens:
        metadata["unknown_tokens"] = result.unknown_tokens
    if ranking.query_truncated:
        metadata["query_truncated"] = True
    return document.model_copy(update={"metadata": metadata})
