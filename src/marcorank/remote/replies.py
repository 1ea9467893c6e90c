"""What servers answer: scores joined to passages by index, or what is wrong with the answer."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from marcorank._inference.scorer import PassageScores
from marcorank._text import shorten
from marcorank.errors import RemoteProtocolError

# Servers wrap their results in one of these, or in nothing.
_ENVELOPES = ("results", "data")
_SCORES = ("relevance_score", "score")
_MESSAGES = ("message", "detail", "error", "msg")
_EXCERPT_CHARS = 200


def read_scores(content: bytes, *, count: int, where: str) -> PassageScores:
    """Return the scores of an answer, in the order of the passages that were asked for.

    A score of null counts as NaN, as which some servers mean it: whoever asked learns which passage it is.

    Args:
        content: The body of the answer.
        count: How many passages were asked for.
        where: The endpoint, for messages.

    Raises:
        RemoteProtocolError: It is not one result a passage.
    """
    results = _results(content, where)
    scores = np.full(count, math.nan, dtype=np.float64)
    truncated: list[bool | None] = [None] * count
    seen: set[int] = set()
    for result in results:
        index = result.get("index") if isinstance(result, dict) else None
        if not isinstance(index, int) or isinstance(index, bool):
            raise RemoteProtocolError(f"{where} sent the result {excerpt(str(result))!r}; expected an `index`.")
        if not 0 <= index < count:
            raise RemoteProtocolError(f"{where} sent a score for passage {index} of {count}; there is none.")
        if index in seen:
            raise RemoteProtocolError(
                f"{where} sent two scores for passage {index} of {count}; expected one a passage."
            )
        seen.add(index)
        scores[index] = _score(result, where)
        truncated[index] = result.get("truncated")
    if len(seen) != count:
        raise RemoteProtocolError(f"{where} sent {len(seen)} scores for {count} passages; expected one a passage.")
    known = all(isinstance(one, bool) for one in truncated)
    # What float32 cannot hold is no score either; the scorer's check for finite ones finds it.
    with np.errstate(over="ignore"):
        return PassageScores(scores.astype(np.float32), np.array(truncated, dtype=np.bool_) if known else None)


def server_message(content: bytes) -> str:
    """Return what a server says of an error, as text: that of its JSON where there is one."""
    text = content.decode("utf-8", "replace")
    try:
        said = _message_of(json.loads(text))
    except (ValueError, RecursionError):
        return text
    return said or text


def excerpt(text: str) -> str:
    """Return the beginning of a foreign text in one line without control characters."""
    flat = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return shorten(flat, _EXCERPT_CHARS)


def _results(content: bytes, where: str) -> list[Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        begins = excerpt(content[: 8 * _EXCERPT_CHARS].decode("utf-8", "replace"))
        # The error itself keeps all that was sent.
        raise RemoteProtocolError(
            f"{where} sent no JSON but {begins!r}; is it the server that `dialect` says?"
        ) from None
    if isinstance(answer, dict):
        answer = next((answer[name] for name in _ENVELOPES if name in answer), None)
    if not isinstance(answer, list):
        begins = excerpt(content[: 8 * _EXCERPT_CHARS].decode("utf-8", "replace"))
        raise RemoteProtocolError(f"{where} sent {begins!r}; expected a list of results with `index` and score.")
    return answer


def _score(result: dict[str, Any], where: str) -> float:
    name = next((name for name in _SCORES if name in result), None)
    value = math.nan if name is None else result[name]
    if name is None or isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
        raise RemoteProtocolError(
            f"{where} sent the result {excerpt(str(result))!r}; expected a score that is a number."
        )
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf


def _message_of(answer: Any) -> str:
    """Find the text in the forms that errors have: nested, or a list with one for each fault."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, list):
        return "; ".join(filter(None, map(_message_of, answer)))
    if isinstance(answer, dict):
        return next(filter(None, (_message_of(answer[name]) for name in _MESSAGES if name in answer)), "")
    return ""
