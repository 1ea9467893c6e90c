"""Reads rerank requests and writes responses in the JSON formats of TEI and Cohere.

Source of field names, statuses and messages: `router/src/http/{types,server}.rs` of
huggingface/text-embeddings-inference, the API references of Cohere (v1 and v2), Jina and Voyage for `rerank`,
`vllm/entrypoints/pooling/scoring/protocol.py`, and `models/re_rank_result.py` of infinity's client. A field that is not
known may change the results, so it is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from starlette.responses import Response

from marcorank._arguments import did_you_mean
from marcorank._text import brief, is_blank, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from marcorank.ranking import Ranking

T = TypeVar("T")

_SUPPORTED = (
    *("query", "texts", "documents", "rank_fields", "model", "top_n", "top_k", "raw_scores", "use_activation"),
    *("return_text", "return_documents", "truncate", "truncation", "truncation_direction", "truncation_side"),
    *("max_tokens_per_doc", "max_tokens_per_query", "truncate_prompt_tokens"),
)
# Fields of vLLM and of gateways that never change scores.
_WITHOUT_EFFECT = {"user", "priority", "request_id", "cache_salt", "encoding_format"}
# Each is looked up in each document.
_MAX_RANK_FIELDS = 32
# What infinity's client sends if its user names no model.
_ANY_MODEL = "default/not-specified"


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
        kind: Error type as named by TEI: `"Validation"`, `"Empty"`, `"Backend"`, `"Unhealthy"`, `"Overloaded"`.
        headers: Headers of the response.
    """

    def __init__(
        self, status: int, message: str, kind: str = "Validation", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self._status = status
        self._kind = kind
        self._headers = headers

    def response(self) -> JsonResponse:
        """Return a response for clients of TEI (`error`) and of Cohere (`message`)."""
        body = {"error": str(self), "error_type": self._kind, "message": str(self)}
        return JsonResponse(body, self._status, self._headers)


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One rerank request in either format."""

    query: str
    passages: list[str]
    # Return logits; else their sigmoid.
    raw_scores: bool
    return_texts: bool
    top_n: int | None
    # Texts that are too long may be truncated. None if the request does not say: then one that is known to be too long
    # is refused, as in TEI.
    truncate: bool | None
    # Respond in the format of Cohere; else of TEI.
    cohere: bool
    model: str | None

    def response(self, ranking: Ranking, model: str) -> Any:
        """Return the JSON-ready response with the results, best first; clients need a score for each.

        Args:
            ranking: The ranking, with sigmoid scores.
            model: Model name to return.
        """
        results = []
        for one in [one for one in ranking if one.score is not None][: self.top_n]:
            score = one.logit if self.raw_scores else one.score
            text = {"document": {"text": one.text}} if self.cohere else {"text": one.text}
            results.append(
                {
                    "index": one.index,
                    "relevance_score" if self.cohere else "score": score,
                    "truncated": one.truncated,
                    **({} if one.unknown_tokens is None else {"unknown_tokens": one.unknown_tokens}),
                    **(text if self.return_texts else {}),
                }
            )
        if not self.cohere:
            return results
        return {
            "id": str(uuid4()),
            "object": "rerank",
            "model": model,
            "results": results,
            # Clients of infinity and vLLM need it. The tokens are not counted.
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        }


def read_request(body: bytes | bytearray, *, cohere: bool, max_batch: int, max_length: int | None) -> RerankRequest:
    """Parse a body: with `documents` as for Cohere, Jina, Voyage, vLLM and infinity, or `texts` as for TEI.

    The formats differ in the response and in whether texts are truncated by default. Each takes the fields of both.

    Args:
        body: JSON.
        cohere: Whether a body without `texts` and `documents` counts as a Cohere request.
        max_batch: Maximum number of passages.
        max_length: Number of tokens at which the model truncates query and passage; None for the model's own limit.

    Raises:
        RequestError: The body is not a valid request, or has a field that this server does not support.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _wrong("The body", fields, "an object")
    # In all of these APIs null stands for the default.
    fields = {name: value for name, value in fields.items() if value is not None}
    for field in fields:
        if field not in _SUPPORTED and field not in _WITHOUT_EFFECT:
            raise RequestError(
                422,
                f"`{shorten(field)}` is not supported by this server; leave it out. Supported are "
                f"{', '.join(_SUPPORTED)}.{did_you_mean(field, _SUPPORTED)}",
            )
    cohere = cohere or "documents" in fields
    if "query" not in fields:
        raise RequestError(422, "The body has no `query`.")
    name, other = ("documents", "texts") if cohere else ("texts", "documents")
    if name not in fields:
        raise RequestError(422, f"The body has neither `{name}` nor `{other}`.")
    if other in fields:
        raise RequestError(422, "The body has `texts` and `documents`; send one of them.")
    query = fields["query"]
    if not isinstance(query, str) or is_blank(query):
        raise _wrong("`query`", query, "a text that is not blank")
    passages = _passages(name, fields[name], max_batch=max_batch, rank_fields=_rank_fields(fields))
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise _wrong("`model`", model, "the name of the model")
    _check_truncation(fields, max_length)
    truncate = _one(fields, _flag, "truncate", "truncation")
    return RerankRequest(
        query=query,
        passages=passages,
        raw_scores=_raw_scores(fields),
        return_texts=_one(fields, _flag, "return_documents", "return_text") or False,
        top_n=_one(fields, _count, "top_n", "top_k"),
        truncate=True if cohere and truncate is None else truncate,
        cohere=cohere,
        model=None if model == _ANY_MODEL else model,
    )


def _passages(name: str, value: object, *, max_batch: int, rank_fields: list[str]) -> list[str]:
    if not isinstance(value, list):
        raise _wrong(f"`{name}`", value, "a list")
    if not value:
        raise RequestError(400, f"`{name}` cannot be empty", "Empty")
    if len(value) > max_batch:
        raise RequestError(413, f"batch size {len(value)} > maximum allowed batch size {max_batch}")
    passages = []
    for index, one in enumerate(value):
        texts = [one]
        if name == "documents" and isinstance(one, dict):
            texts = [one[field] for field in rank_fields if one.get(field) is not None]
        if not texts or not all(isinstance(text, str) for text in texts):
            names = shorten("` or `".join(rank_fields))
            objects = f", or an object with a `{names}`" if name == "documents" else ""
            raise _wrong(f"`{name}[{index}]`", one, f"a text{objects}")
        passages.append("\n".join(texts))
    return passages


def _rank_fields(fields: dict[str, Any]) -> list[str]:
    """Return the fields of a document that make up its text, in their order."""
    names = fields.get("rank_fields", ["text"])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise _wrong("`rank_fields`", names, "a list of names of fields")
    if len(names) > _MAX_RANK_FIELDS:
        raise RequestError(422, f"`rank_fields` has {len(names)} names; expected at most {_MAX_RANK_FIELDS}.")
    if len(set(names)) < len(names):
        raise _wrong("`rank_fields`", names, "each name once")
    return names


def _check_truncation(fields: dict[str, Any], max_length: int | None) -> None:
    """Refuse a request to truncate elsewhere than at the end, or before the model does."""
    for name in ("truncation_direction", "truncation_side"):
        side = fields.get(name, "right")
        if str(side).casefold() != "right":
            raise _wrong(f"`{name}`", side, "'right': texts are only truncated at the end")
    for name in ("max_tokens_per_doc", "max_tokens_per_query", "truncate_prompt_tokens"):
        # In vLLM -1 stands for the maximum of the model.
        if name == "truncate_prompt_tokens" and fields.get(name) == -1:
            continue
        tokens = _count(fields, name)
        if tokens is not None and (max_length is None or tokens < max_length):
            limit = "limit" if max_length is None else f"{max_length} tokens"
            raise RequestError(
                422,
                f"`{name}` is {tokens}; this server truncates texts only at the {limit} of the model, query included. "
                "Leave it out, or shorten the texts.",
            )


def _raw_scores(fields: dict[str, Any]) -> bool:
    """Whether to return logits: `raw_scores` in TEI and infinity, `use_activation` in vLLM."""
    raw, activated = _flag(fields, "raw_scores"), _flag(fields, "use_activation")
    if raw is not None and raw is activated:
        raise _wrong("`use_activation`", activated, f"the opposite of `raw_scores`, {brief(raw)}; send one of them")
    return raw or activated is False


def _one(fields: dict[str, Any], read: Callable[[dict[str, Any], str], T | None], *names: str) -> T | None:
    """Return the value of a field that the APIs name differently."""
    given = {name: value for name in names if (value := read(fields, name)) is not None}
    if len(set(given.values())) > 1:
        shown = " and ".join(f"`{name}` is {brief(value)}" for name, value in given.items())
        raise RequestError(422, f"{shown}; send one of them.")
    return next(iter(given.values()), None)


def _flag(fields: dict[str, Any], name: str) -> bool | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(f"`{name}`", value, "true or false")
    return value


def _count(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise _wrong(f"`{name}`", value, "a whole number of at least 1")
    return value


def _wrong(what: str, value: object, expected: str) -> RequestError:
    return RequestError(422, f"{what} is {brief(value)}; expected {expected}.")
