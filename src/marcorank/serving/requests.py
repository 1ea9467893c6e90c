"""Reads rerank requests and writes responses in the JSON formats of TEI and Cohere.

Source of field names, statuses and messages: `router/src/http/{types,server}.rs` of
huggingface/text-embeddings-inference, and Cohere's API reference for `POST /v2/rerank`. Unknown fields are
ignored, as by both servers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from starlette.responses import Response

from marcorank._text import brief

if TYPE_CHECKING:
    from marcorank.ranking import Ranking


class JsonResponse(Response):
    """A JSON response in ASCII: UTF-8 cannot encode lone surrogates, which a client may send and get back."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode the content."""
        return json.dumps(content, separators=(",", ":")).encode()


class RequestError(Exception):
    """A request that gets a response other than 200.

    Args:
        status: The HTTP status.
        message: What is wrong.
        kind: Error type as named by TEI: `"Validation"`, `"Empty"`, `"Backend"`, `"Unhealthy"`.
    """

    def __init__(self, status: int, message: str, kind: str = "Validation") -> None:
        super().__init__(message)
        self._status = status
        self._kind = kind

    def response(self) -> JsonResponse:
        """Return a response for clients of TEI (`error`) and of Cohere (`message`)."""
        headers = {"WWW-Authenticate": "Bearer"} if self._status == 401 else None
        body = {"error": str(self), "error_type": self._kind, "message": str(self)}
        return JsonResponse(body, self._status, headers)


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One rerank request in either format."""

    query: str
    passages: list[str]
    # Return logits; else their sigmoid.
    raw_scores: bool
    return_texts: bool
    top_n: int | None
    # Texts that are too long may be truncated.
    truncate: bool
    # Respond in the format of Cohere; else of TEI.
    cohere: bool
    model: str | None
    # Per passage.
    max_tokens: int | None

    def response(self, ranking: Ranking, model: str) -> Any:
        """Return the JSON-ready response with the results, best first.

        Args:
            ranking: The ranking, with sigmoid scores.
            model: Model name to return.
        """
        results = []
        for one in ranking:
            score = one.logit if self.raw_scores else one.score
            text = {"document": {"text": one.text}} if self.cohere else {"text": one.text}
            results.append(
                {
                    "index": one.index,
                    "relevance_score" if self.cohere else "score": score,
                    "truncated": bool(one.truncated),
                    **({} if one.unknown_tokens is None else {"unknown_tokens": one.unknown_tokens}),
                    **(text if self.return_texts else {}),
                }
            )
        if not self.cohere:
            return results
        return {
            "id": str(uuid4()),
            "model": model,
            "results": results,
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        }


def read_request(body: bytes, *, cohere: bool, max_batch: int) -> RerankRequest:
    """Parse a body in either format: with `documents` as for Cohere, Jina, vLLM and infinity, or `texts` as for TEI.

    Args:
        body: JSON.
        cohere: Whether a body without `texts` and `documents` counts as a Cohere request.
        max_batch: Maximum number of passages.

    Raises:
        RequestError: The body is not a valid request.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _wrong("The body", fields, "an object")
    cohere = cohere or "documents" in fields
    if "query" not in fields:
        raise RequestError(422, "The body has no `query`.")
    name, other = ("documents", "texts") if cohere else ("texts", "documents")
    if name not in fields:
        raise RequestError(422, f"The body has no `{name}`, or `{other}`.")
    query = fields["query"]
    if not isinstance(query, str) or not query.strip():
        raise _wrong("`query`", query, "a text that is not blank")
    passages = _passages(name, fields[name], max_batch=max_batch)
    direction, model = fields.get("truncation_direction"), fields.get("model")
    if not cohere and direction is not None and str(direction).casefold() != "right":
        raise _wrong("`truncation_direction`", direction, "'right': texts are only truncated at the end")
    if cohere and model is not None and not isinstance(model, str):
        raise _wrong("`model`", model, "the name of the model")
    # `raw_scores` is the name in TEI and infinity, `use_activation` in vLLM.
    raw_scores = _flag(fields, "raw_scores") or (cohere and not _flag(fields, "use_activation", default=True))
    return RerankRequest(
        query=query,
        passages=passages,
        raw_scores=raw_scores,
        return_texts=_flag(fields, "return_documents" if cohere else "return_text"),
        top_n=_count(fields, "top_n") if cohere else None,
        truncate=cohere or _flag(fields, "truncate"),
        cohere=cohere,
        model=model if cohere else None,
        max_tokens=_count(fields, "max_tokens_per_doc") if cohere else None,
    )


def _passages(name: str, value: object, *, max_batch: int) -> list[str]:
    if not isinstance(value, list):
        raise _wrong(f"`{name}`", value, "a list")
    if not value:
        raise RequestError(400, f"`{name}` cannot be empty", "Empty")
    if len(value) > max_batch:
        raise RequestError(413, f"batch size {len(value)} > maximum allowed batch size {max_batch}")
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
    return RequestError(422, f"{what} is {brief(value)}; expected {expected}.")
