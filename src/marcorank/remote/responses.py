"""Parses the responses of servers: scores by passage index, or an error message."""

from __future__ import annotations

import json
import math
import re
from http import HTTPStatus
from typing import Any

import numpy as np

from marcorank._inference.scorer import PassageScores
from marcorank._text import one_line, shorten
from marcorank.errors import RemoteProtocolError

# Servers return a list of results, or an object with one of these keys.
_ENVELOPES = ("results", "data")
_SCORES = ("relevance_score", "score")
_MESSAGES = ("message", "detail", "error", "msg")
_EXCERPT_CHARS = 200
# How servers say that a request has too many passages. TEI: "batch size 40 > maximum allowed batch size 32"; infinity:
# "List should have at most 2048 items"; others: "batch size is invalid, it should not be larger than 10",
# "too many documents", "max allowed tokens per submitted batch".
_TOO_MANY = re.compile(
    r"\bbatch|too many (?!requests)|(at most|more than|larger than|exceed\w*( the)?( maximum| limit)?( of)?) [\d,]+ "
    r"(documents|elements|inputs|items|passages|texts)|number of (documents|inputs|items|passages|texts)",
    re.IGNORECASE,
)
# What is too large is the body or a text, whatever the number of passages.
_SIZE = re.compile(r"\b(body|bytes|characters|chars|content|entity|payload|tokens|[kmg]i?b)\b", re.IGNORECASE)


def read_scores(text: str, *, count: int, where: str) -> PassageScores:
    """Parse the scores of a response, in the order of the passages in the request.

    A score of null counts as NaN, which is what some servers mean by it; the error then names the passage.

    Args:
        text: Body of the response.
        count: Number of passages in the request.
        where: URL of the endpoint, for messages.

    Raises:
        RemoteProtocolError: There is not exactly one result per passage.
    """
    results = _results(text, where)
    scores = np.full(count, math.nan, dtype=np.float64)
    truncated: list[Any] = [None] * count
    unknown_tokens: list[Any] = [None] * count
    seen: set[int] = set()
    for result in results:
        index = result.get("index") if isinstance(result, dict) else None
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
            raise RemoteProtocolError(
                f"{where} sent the result {excerpt(str(result))!r}; expected an `index` below {count}."
            )
        if index in seen:
            raise RemoteProtocolError(f"{where} sent two scores for `index` {index}; expected one score per passage.")
        seen.add(index)
        scores[index] = _score(result, where)
        truncated[index] = result.get("truncated")
        unknown_tokens[index] = result.get("unknown_tokens")
    if len(seen) != count:
        raise RemoteProtocolError(
            f"{where} sent {len(seen)} scores for {count} passages; expected one score per passage."
        )
    # A score that overflows float32 becomes infinite, and the scorer rejects it.
    with np.errstate(over="ignore"):
        logits = scores.astype(np.float32)
    known = all(isinstance(one, bool) for one in truncated)
    return PassageScores(
        logits,
        np.array(truncated, dtype=np.bool_) if known else None,
        unknown_tokens=np.array(unknown_tokens, dtype=np.int64) if all(map(_is_count, unknown_tokens)) else None,
    )


def server_message(text: str) -> str:
    """Return the error message of a server: from its JSON body, else the whole body."""
    try:
        return _message_of(json.loads(text)) or text
    except (ValueError, RecursionError):
        return text


def is_too_large(status: int, message: str) -> bool:
    """Whether a server refuses a request for its size, so that a smaller one may be accepted."""
    return status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or (
        status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY} and _TOO_MANY.search(message) is not None
    )


def is_about_size(message: str) -> bool:
    """Whether such a refusal is about the length of the texts rather than about the number of passages."""
    return _SIZE.search(message) is not None


def excerpt(text: str) -> str:
    """Return the beginning of a text from a server, on one line and without control characters."""
    return shorten(one_line(text), _EXCERPT_CHARS)


def _results(text: str, where: str) -> list[Any]:
    beginning = excerpt(text[: 8 * _EXCERPT_CHARS])
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        # Not chained: the JSON error holds the whole body.
        raise RemoteProtocolError(
            f"{where} sent {beginning!r}, which is not JSON; check that `dialect` is right for this server."
        ) from None
    if isinstance(body, dict):
        body = next((body[name] for name in _ENVELOPES if name in body), None)
    if not isinstance(body, list):
        raise RemoteProtocolError(f"{where} sent {beginning!r}; expected a list of results with `index` and score.")
    return body


def _score(result: dict[str, Any], where: str) -> float:
    value = next((result[name] for name in _SCORES if name in result), "none")
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RemoteProtocolError(f"{where} sent the result {excerpt(str(result))!r}; expected a numeric score.")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _message_of(error: Any) -> str:
    """Find the message in an error body, which may be nested or a list of errors."""
    if isinstance(error, str):
        return error
    if isinstance(error, list):
        return "; ".join(filter(None, map(_message_of, error)))
    if isinstance(error, dict):
        return next(filter(None, (_message_of(error[name]) for name in _MESSAGES if name in error)), "")
    return ""
