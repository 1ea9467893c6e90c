"""Parsing the responses of servers."""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import numpy as np
import pytest

from marcorank.errors import RemoteProtocolError
from marcorank.remote.client import _backoff, _seconds
from marcorank.remote.responses import excerpt, read_scores, server_message

GOOD = [{"index": 1, "score": 0.25}, {"index": 0, "score": -3}]


def read(answer: object, count: int = 2):
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return read_scores(text, count=count, where="http://host/rerank")


@pytest.mark.parametrize("wrap", [lambda found: found, lambda found: {"results": found}, lambda found: {"data": found}])
@pytest.mark.parametrize("name", ["score", "relevance_score"])
def test_scores_are_matched_by_index_in_any_envelope(wrap, name):
    """The order does not matter, and servers of one kind wrap the results differently."""
    results = [{"index": result["index"], name: result["score"], "document": {"text": "x"}} for result in GOOD]
    found = read(wrap(results))
    assert found.logits.dtype == np.float32
    assert found.logits.tolist() == [-3.0, 0.25]
    assert found.truncated is None


def test_truncation_is_known_if_every_result_reports_it():
    """If only some results report it, it is unknown."""
    reported = [{**result, "truncated": result["index"] == 1} for result in GOOD]
    assert read(reported).truncated.tolist() == [False, True]
    assert read([reported[0], GOOD[1]]).truncated is None
    assert read([reported[0], {**GOOD[1], "truncated": "no"}]).truncated is None


@pytest.mark.parametrize("wrong", [{}, *({"unknown_tokens": value} for value in (-1, True, "no", 0.5, None, 10**30))])
def test_unknown_tokens_are_known_if_every_result_reports_them(wrong):
    reported = [{**result, "unknown_tokens": 3 * result["index"]} for result in GOOD]
    assert read(reported).unknown_tokens.tolist() == [0, 3]
    assert read([reported[0], {**GOOD[1], **wrong}]).unknown_tokens is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("<html><body>Welcome</body></html>", "sent '<html><body>Welcome.*, which is not JSON"),
        ("", "sent '', which is not JSON"),
        ('[{"index": 0', "which is not JSON"),
        ("\ufffd\ufffd", "which is not JSON"),
        ("[" * 100_000, "sent '.*…', which is not JSON"),
        ('[{"index": 0, "score": ' + "9" * 5000 + "}]", "which is not JSON"),
        ({"scores": [1, 2]}, "expected a list of results"),
        ('"fine"', "expected a list of results"),
        ({"results": {"0": 1}}, "expected a list of results"),
        ([0.1, 0.2], "sent the result '0.1'; expected an `index`"),
        ([{"score": 1}, GOOD[0]], "expected an `index`"),
        ([{"index": True, "score": 1}, GOOD[0]], "expected an `index`"),
        ([{"index": "0", "score": 1}, GOOD[0]], "expected an `index`"),
        ([{"index": 1.0, "score": 1}, GOOD[0]], "expected an `index`"),
        ([GOOD[0]], "sent 1 scores for 2 passages"),
        ([], "sent 0 scores for 2 passages"),
        ([*GOOD, {"index": 2, "score": 1}], "expected an `index` below 2"),
        ([GOOD[0], {"index": -1, "score": 1}], "expected an `index` below 2"),
        ([GOOD[0], GOOD[0]], "two scores for `index` 1"),
        ([*GOOD, GOOD[0]], "two scores for `index` 1"),
        ([GOOD[0], {"index": 0}], "expected a numeric score"),
        ([GOOD[0], {"index": 0, "score": "0.5"}], "expected a numeric score"),
        ([GOOD[0], {"index": 0, "score": True}], "expected a numeric score"),
        ([GOOD[0], {"index": 0, "score": [1]}], "expected a numeric score"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:40],
)
def test_an_invalid_response_is_an_error(answer, message):
    """There must be one result per passage with an index and a number; the error names the server."""
    with pytest.raises(RemoteProtocolError, match=message) as caught:
        read(answer)
    assert str(caught.value).startswith("http://host/rerank sent ")


def test_scores_that_are_not_finite_are_kept_for_the_scorer_to_reject():
    """Null, NaN, infinity and numbers too large for float32 are not finite."""
    values = b"[null, NaN, -Infinity, 1e300, 1" + b"0" * 400 + b", 1]"
    names = json.loads(values)
    found = read([{"index": index, "score": value} for index, value in enumerate(names)], count=6)
    assert np.isfinite(found.logits).tolist() == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"error": "batch size 40 > maximum", "error_type": "Validation"}', "batch size 40 > maximum"),
        ('{"error": {"message": "no such model", "code": 404}}', "no such model"),
        ('{"message": "invalid api token"}', "invalid api token"),
        ('{"detail": [{"loc": ["body"], "msg": "too long", "input": "the text"}]}', "too long"),
        ('{"code": 7}', '{"code": 7}'),
        ("<h1>Bad Gateway</h1>", "<h1>Bad Gateway</h1>"),
        ("", ""),
    ],
)
def test_the_message_of_a_server_is_found(text, expected):
    """Errors are nested in several ways, or plain text."""
    assert server_message(text) == expected


def test_excerpts_are_short_and_on_one_line():
    """Line breaks and control characters are removed."""
    assert excerpt("a\r\n\x1b[31mb\u2028c") == "a [31mb c"
    assert len(excerpt("x" * 1000)) == 200


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        (None, 0, 0),
        ("", 0, 0),
        ("7", 7, 7),
        (" 7 ", 7, 7),
        ("-7", 0, 0),
        ("soon", 0, 0),
    ],
)
def test_retry_after_can_be_a_number_of_seconds(header, least, most):
    """Invalid values mean no wait."""
    assert least <= _seconds(header) <= most


def test_retry_after_can_be_a_date():
    """A date in the past means no wait."""
    assert 500 <= _seconds(formatdate(time.time() + 600, usegmt=True)) <= 601
    assert _seconds(formatdate(time.time() - 600, usegmt=True)) == 0


def test_backoff_grows_and_is_random():
    """Each delay is drawn from a range that doubles up to a limit."""
    for attempt, most in [(1, 0.1), (3, 0.4), (50, 4.0), (5000, 4.0)]:
        waits = [_backoff(attempt) for _ in range(200)]
        assert most / 2 < max(waits) <= most
        assert min(waits) < most / 4
