"""Rerank requests and answers in the shapes of TEI and of Cohere, as JSON; nothing here knows Ray or a model.

Source of names, statuses and words: `router/src/http/{types,server}.rs` of huggingface/text-embeddings-inference, and
Cohere's reference of `POST /v2/rerank`. What a client sends beyond the fields that are read here is ignored, as both
servers do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from marcorank._text import brief

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marcorank.ranking import RankedPassage, Ranking


class RequestError(Exception):
    """A request that gets an answer other than 200.

    Attributes:
        status: The HTTP status.
        kind: As TEI names it: `"Validation"`, `"Empty"`, `"Backend"`, `"Unhealthy"`.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind

    def body(self) -> dict[str, Any]:
        """Return a body that clients of TEI (`error`) and of Cohere (`message`) understand."""
        return {"error": str(self), "error_type": self.kind, "message": str(self)}


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One request, whatever its shape.

    Attributes:
        query: What is searched for.
        passages: Texts to rank.
        raw_scores: Whether the answer holds logits; else their sigmoid.
        return_texts: Whether the answer holds the texts.
        top_n: Most results; None for all.
        truncate: Whether texts that are too long may be cut.
        cohere: Whether the answer has Cohere's shape; else TEI's.
        model: Name of the model that was asked for; None for whichever is served.
        max_tokens: Tokens at which the caller wants each passage cut; None where the model's length decides.
    """

    query: str
    passages: list[str]
    raw_scores: bool
    return_texts: bool
    top_n: int | None
    truncate: bool
    cohere: bool
    model: str | None = None
    max_tokens: int | None = None

    def answer(self, ranking: Ranking, model: str) -> Any:
        """Return the JSON-ready answer: results, best first.

        Args:
            ranking: Its scores are sigmoids.
            model: Name to show.
        """
        if not self.cohere:
            return [
                {"index": one.index, "score": self._score(one), "truncated": bool(one.truncated)}
                | ({"text": one.text} if self.return_texts else {})
                for one in ranking
            ]
        return {
            "id": str(uuid4()),
            "model": model,
            "results": [
                {"index": one.index, "relevance_score": self._score(one), "truncated": bool(one.truncated)}
                | ({"document": {"text": one.text}} if self.return_texts else {})
                for one in ranking
            ],
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        }

    def _score(self, one: RankedPassage) -> float | None:
        return one.logit if self.raw_scores else one.score


def read_request(body: bytes, *, cohere: bool, max_batch: int) -> RerankRequest:
    """Read a body of either shape: `documents` are Cohere's (and Jina's, vLLM's, infinity's), `texts` TEI's.

    Args:
        body: JSON.
        cohere: Whether a body without `texts` or `documents` is taken as meant for Cohere.
        max_batch: Most passages.

    Raises:
        RequestError: It is no such body.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "Validation", f"The body is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _wrong("The body", fields, "an object")
    cohere = cohere or "documents" in fields
    name = "documents" if cohere else "texts"
    if "query" not in fields or name not in fields:
        missing = "query" if "query" not in fields else f"{name}`, or `texts" if cohere else f"{name}`, or `documents"
        raise RequestError(422, "Validation", f"The body has no `{missing}`.")
    query = fields["query"]
    if not isinstance(query, str) or not query.strip():
        raise _wrong("`query`", query, "a text that is not blank")
    passages = _passages(name, fields[name], max_batch=max_batch)
    if not cohere:
        direction = fields.get("truncation_direction")
        if direction is not None and str(direction).casefold() != "right":
            raise _wrong("`truncation_direction`", direction, "'right': only the end of a text is ever cut")
        return RerankRequest(
            query=query,
            passages=passages,
            raw_scores=_flag(fields, "raw_scores"),
            return_texts=_flag(fields, "return_text"),
            top_n=None,
            truncate=_flag(fields, "truncate"),
            cohere=False,
        )
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise _wrong("`model`", model, "the name of the model")
    return RerankRequest(
        query=query,
        passages=passages,
        # infinity calls it the one, vLLM the other.
        raw_scores=_flag(fields, "raw_scores") or not _flag(fields, "use_activation", default=True),
        return_texts=_flag(fields, "return_documents"),
        top_n=_count(fields, "top_n"),
        truncate=True,
        cohere=True,
        model=model,
        max_tokens=_count(fields, "max_tokens_per_doc"),
    )


def _passages(name: str, value: object, *, max_batch: int) -> list[str]:
    if not isinstance(value, list):
        raise _wrong(f"`{name}`", value, "a list")
    if not value:
        raise RequestError(400, "Empty", f"`{name}` cannot be empty")
    if len(value) > max_batch:
        raise RequestError(413, "Validation", f"batch size {len(value)} > maximum allowed batch size {max_batch}")
    passages = []
    for index, one in enumerate(value):
        passage = one.get("text") if name == "documents" and isinstance(one, dict) else one
        if not isinstance(passage, str):
            expected = "a text, or an object with a `text`" if name == "documents" else "a text"
            raise _wrong(f"`{name}[{index}]`", one, expected)
        passages.append(passage)
    return passages


def _flag(fields: dict[str, Any], name: str, *, default: bool = False) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(f"`{name}`", value, "true or false")
    return default if value is None else value


def _count(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise _wrong(f"`{name}`", value, "a whole number of at least 1")
    return value


def _wrong(what: str, value: object, expected: str) -> RequestError:
    return RequestError(422, "Validation", f"{what} is {brief(value)}; expected {expected}.")


def too_long(query_cut: bool, cut: Sequence[int], max_length: int) -> RequestError:  # noqa: FBT001
    """Return the error for texts that would have to be cut though the caller did not allow it."""
    what = "`query`" if query_cut else f"`texts[{cut[0]}]` with the query"
    more = f" (and {len(cut) - 1} more)" if len(cut) > 1 and not query_cut else ""
    return RequestError(
        413, "Validation", f"{what}{more} is longer than the {max_length} tokens of the model; send `truncate`: true."
    )
