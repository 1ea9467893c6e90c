"""What servers do differently: limits, blank passages, the scale of scores, addresses."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from marcorank import Reranker
from marcorank.errors import RemoteStatusError, ScoreError
from marcorank.remote import RemoteScorer
from marcorank.testing import WordOverlapScorer
from remote_server import (
    MAX_WORDS,
    PATHS,
    refuses_above,
    refuses_blanks,
    remote_server,
    responds,
    responds_changed,
)

QUERY = "how do I open a file"
PASSAGES = ["open a file", "how do I", "nothing of it", "zero", "a list", "a file that I open"]
# Far more than anything here takes; it turns a hang into a failure.
SOON_S = 20.0


def fails_soon(scorer, kind, message, passages=PASSAGES):
    """Return the error of a call."""
    future = scorer.submit([(QUERY, passages)])
    with pytest.raises(kind, match=message) as caught:
        future.result(timeout=SOON_S)
    return caught.value


def sizes(server):
    """Return the number of passages of each request so far, and forget the requests."""
    found = [len(received.body.get("texts") or received.body["documents"]) for received in server.requests]
    server.requests.clear()
    return found


# Addresses


@pytest.mark.parametrize("dialect", PATHS)
def test_an_address_with_the_endpoint_is_used_as_it_is(dialect):
    """Vendors document their servers this way."""
    with remote_server(dialect) as server, RemoteScorer(f"{server.url}{PATHS[dialect]}/#m") as scorer:
        assert scorer.score(QUERY, PASSAGES).shape == (6,)
        assert server.requests[0].path == PATHS[dialect]


@pytest.mark.parametrize("path", ["/v1", "/v1/rerank"])
def test_the_error_for_an_unknown_path_suggests_a_shorter_base(path):
    """It may be the documented address of another kind of server."""
    with remote_server("tei") as server, RemoteScorer(server.url + path) as scorer:
        message = rf"must be the base URL of a tei server; try the shorter tei\+{server.base}\.$"
        fails_soon(scorer, RemoteStatusError, message)
        assert server.requests[0].path == "/v1/rerank"


def test_a_prefix_with_the_name_of_the_endpoint_is_possible():
    """It is taken for the endpoint, unless the endpoint follows it; the error says so."""
    with remote_server("tei") as server:
        server.fault = responds(404)
        with RemoteScorer(f"{server.url}/rerank") as scorer:
            message = (
                rf"{server.base}/rerank was used as it is; if it is the base URL of a tei server, append /rerank\.$"
            )
            fails_soon(scorer, RemoteStatusError, message)
        with RemoteScorer(f"{server.url}/rerank/rerank") as scorer:
            fails_soon(scorer, RemoteStatusError, "404")
        assert [received.path for received in server.requests] == ["/rerank", "/rerank/rerank"]


# A limit of passages or bytes


MANY = [f"{PASSAGES[index % 6]} {index}" for index in range(70)]


@pytest.mark.parametrize(
    ("dialect", "status", "message"),
    [
        ("tei", 413, "batch size {} > maximum allowed batch size 10"),
        ("infinity", 422, "List should have at most 10 items after validation, not {}"),
        ("jina", 400, "batch size is invalid, it should not be larger than 10.: input.contents"),
        ("cohere", 400, "too many documents: {}"),
        ("vllm", 413, ""),
    ],
)
def test_a_lower_limit_of_the_server_is_found_and_remembered(dialect, status, message):
    """Requests are halved until the server accepts them, and later requests are as small from the start."""
    expected = np.float32(WordOverlapScorer().score(QUERY, MANY))
    with remote_server(dialect) as server, RemoteScorer(server.url, model="m") as scorer:
        server.max_batch = 1000
        server.fault = refuses_above(10, status, message)
        if scorer.score_kind == "probability":
            expected = 1 / (1 + np.exp(-expected))
        np.testing.assert_allclose(scorer.score(QUERY, MANY), expected, atol=1e-6)
        assert max(sizes(server)) > 10
        np.testing.assert_allclose(scorer.score(QUERY, MANY), expected, atol=1e-6)
        assert 5 < max(sizes(server)) <= 10


def test_the_limit_of_infinity_is_found():
    """Its refusal repeats the whole request."""
    with remote_server("infinity") as server, RemoteScorer(server.url, max_passages_per_request=3000) as scorer:
        assert scorer.score(QUERY, ["a"] * 2049).shape == (2049,)
        assert sorted(sizes(server)) == [1, 1024, 1024, 2049]


def test_requests_in_flight_together_lower_the_limit_only_once(tei, scorer):
    """Each of them is refused for the same size, which says nothing about half of it."""
    tei.max_batch = 16
    together = threading.Barrier(4)
    answer = tei.refusal

    def refusal(body, authorization):
        if len(body["texts"]) > 16:
            together.wait(SOON_S)
        return answer(body, authorization)

    tei.refusal = refusal
    scores = scorer.submit([(QUERY, MANY[:64]), (QUERY, MANY[:64])]).result(timeout=SOON_S)
    expected = np.float32(WordOverlapScorer().score(QUERY, MANY[:64]))
    assert all(np.array_equal(one.logits, expected) for one in scores)
    assert set(sizes(tei)) == {16, 32}


def test_the_parts_of_a_refused_request_are_sent_in_parallel(tei, scorer):
    """Also if it is the only one, for which one task would do."""
    tei.max_batch = 1
    together = threading.Barrier(4)
    answer = tei.refusal

    def refusal(body, authorization):
        if len(body["texts"]) == 1:
            together.wait(SOON_S)
        return answer(body, authorization)

    tei.refusal = refusal
    expected = np.float32(WordOverlapScorer().score(QUERY, MANY[:4]))
    np.testing.assert_array_equal(scorer.submit([(QUERY, MANY[:4])]).result(timeout=SOON_S)[0].logits, expected)


@pytest.mark.parametrize("message", ["<h1>413 Request Entity Too Large</h1>", "The body has {} bytes or more"])
def test_a_limit_of_bytes_does_not_make_later_requests_smaller(tei, scorer, message):
    """A proxy refuses a request with long texts; one with short ones may have as many passages as before."""
    tei.fault = refuses_above(10, 413, message)
    assert scorer.score(QUERY, MANY).shape == (70,)
    tei.fault = None
    sizes(tei)
    assert scorer.score(QUERY, MANY).shape == (70,)
    assert sorted(sizes(tei)) == [6, 32, 32]


def test_a_limit_below_one_passage_is_an_error(tei):
    """The message contains the reason of the server, and no request is sent again once it is a single passage."""
    tei.fault = responds(413, {"error": "no\nway."})
    message = r"status 413 \(1 attempt\): no way\. It refuses even a single passage with the query; shorten the texts"
    with RemoteScorer(tei.url, max_parallel_requests=1) as scorer:
        assert fails_soon(scorer, RemoteStatusError, message).status == 413
        assert sizes(tei) == [6, 3, 1]
        fails_soon(scorer, RemoteStatusError, message, ["a"])
        assert sizes(tei) == [1]


def test_a_refusal_does_not_hide_a_failure(tei, scorer):
    """An error of a half is an error of the call."""
    tei.faults.extend([responds(413), responds(401)])
    fails_soon(scorer, RemoteStatusError, "status 401")


# Blank passages


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("activation", ["identity", "sigmoid"])
def test_blank_passages_are_not_sent_and_rank_last(dialect, activation):
    """Some servers refuse the whole request for one of them; the other scores are those without them."""
    passages = ["", *PASSAGES[:3], " \n\t", *PASSAGES[3:], "\u3000"]
    with remote_server(dialect) as server, Reranker(f"{server.url}#m", activation=activation) as reranker:
        server.fault = refuses_blanks
        ranking = reranker.rank(QUERY, passages)
        kind = ranking.score_kind
        assert [result.index for result in ranking][-3:] == [0, 4, 8]
        blank = 0.0 if kind == "probability" or activation == "sigmoid" else -100.0
        assert [result.score for result in ranking][-3:] == pytest.approx([blank] * 3, abs=1e-40)
        without = reranker.rank(QUERY, PASSAGES)
        assert [(one.text, one.score) for one in ranking][:-3] == [(one.text, one.score) for one in without]


def test_a_blank_passage_is_below_any_score(tei, scorer):
    """Also of a model whose scores are on a scale of its own."""
    tei.fault = responds_changed(lambda found: [{**one, "score": -500 - one["index"]} for one in found])
    assert scorer.score(QUERY, ["", "open", "file"]).tolist() == [-502.0, -500.0, -501.0]


@pytest.mark.parametrize("value", [0.0, 1e-40, -1e9])
def test_a_blank_passage_is_below_any_probability(value):
    """A server may round it to zero; equal scores would keep the order of the input."""
    with remote_server("cohere") as server, Reranker(f"{server.url}#m") as reranker:
        server.fault = responds_changed(lambda found: [{**one, "relevance_score": value} for one in found])
        ranking = reranker.rank(QUERY, ["", "open", " "])
        assert [one.index for one in ranking] == [1, 0, 2]
        assert ranking[0].score == np.float32(value)
        assert ranking[0].score > ranking[1].score == ranking[2].score


def test_a_blank_passage_is_below_scores_that_are_cached(tei):
    """Its own score comes from a request with other passages."""
    tei.fault = responds_changed(lambda found: [{**one, "score": -150} for one in found])
    with Reranker(tei.url, cache_size=100) as reranker:
        tei.faults.append(None)
        assert [one.text for one in reranker.rank(QUERY, ["", "open"])] == ["open", ""]
        reranker.rank(QUERY, ["low"])
        for passages in (["", "low"], ["", "lower"]):
            assert [one.text for one in reranker.rank(QUERY, passages)] == [passages[1], ""]


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff", "\x00", "\u200b \n"])
def test_passages_of_invisible_characters_are_blank(tei, scorer, blank):
    """As they are in a query."""
    scores = scorer.score(QUERY, [blank, "open"])
    assert scores[0] == -100.0
    assert [received.body["texts"] for received in tei.requests] == [["open"]]


def test_only_blank_passages_need_no_server():
    """Nothing is sent, and no thread is started."""
    before = threading.enumerate()
    scorer = RemoteScorer("tei+http://127.0.0.1:9")
    assert scorer.score(QUERY, ["", " "]).tolist() == [-100.0, -100.0]
    assert [one.logits.tolist() for one in scorer.score_requests([(QUERY, []), ("list", [" "])])] == [[], [-100.0]]
    assert set(threading.enumerate()) <= set(before)


def test_blank_passages_are_not_truncated(tei, scorer):
    """If the server reports truncation, it is known for all passages."""
    tei.reports_truncation = True
    passages = ["", "file " * (MAX_WORDS + 1), "file"]
    assert scorer.score_requests([(QUERY, passages)])[0].truncated.tolist() == [False, True, False]


@pytest.mark.parametrize("value", [None, -1e300])
def test_errors_count_blank_passages(tei, scorer, value):
    """The index in a message is that of the list which was passed."""
    tei.fault = responds_changed(lambda found: [{**one, "score": value if one["index"] == 1 else 1} for one in found])
    fails_soon(scorer, ScoreError, r"returned (nan|-inf) for `passages\[3\]`", ["", "a", " ", "b"])


# The scale of scores


def as_probabilities(found):
    """Ignore the request for logits, as vLLM did before 0.11.1."""
    name = "score" if "score" in found[0] else "relevance_score"
    return [{**one, name: 1 / (1 + float(np.exp(5 - one[name])))} for one in found]


@pytest.mark.parametrize("dialect", ["tei", "vllm", "infinity"])
def test_probabilities_in_place_of_logits_are_reported(dialect, caplog):
    """Once for each server, as soon as two passages have been scored."""
    with remote_server(dialect) as server, Reranker(f"{server.url}", activation="sigmoid") as reranker:
        server.fault = responds_changed(as_probabilities)
        reranker.score(QUERY, ["open"])
        assert not caplog.records
        for _ in range(3):
            reranker.rank(QUERY, ["", "open", "open a file"])
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert f"{server.base}/rerank returned only numbers from 0 to 1, although logits" in record.getMessage()
    assert f"name it jina+{server.base}#model" in record.getMessage()


def test_logits_in_place_of_probabilities_are_reported(caplog):
    """As llama.cpp returns them in the API of Jina; named otherwise, the same server is right."""
    with remote_server("jina") as server:
        server.fault = responds_changed(lambda found: [{**one, "relevance_score": -7.5} for one in found])
        with RemoteScorer(server.url, model="m") as scorer:
            for _ in range(2):
                assert scorer.score(QUERY, ["", "open"]).tolist() == [-8.5, -7.5]
        [record] = caplog.records
        assert "returned numbers outside of 0 to 1, although jina servers return" in record.getMessage()
        assert f"name the server vllm+{server.base}#model" in record.getMessage()
        with RemoteScorer(f"vllm+{server.base}#m") as scorer:
            scorer.score(QUERY, ["open"])
    assert len(caplog.records) == 1


@pytest.mark.parametrize("change", [lambda found: found, as_probabilities])
def test_logits_and_the_probabilities_of_vendors_are_not_reported(change, caplog):
    """One number outside of 0 to 1 proves that they are logits; numbers between prove nothing after it."""
    with remote_server("cohere" if change is as_probabilities else "vllm") as server:
        server.fault = responds_changed(change)
        with RemoteScorer(server.url, model="m") as scorer:
            scorer.score(QUERY, PASSAGES)
            server.fault = responds_changed(as_probabilities)
            scorer.score(QUERY, PASSAGES)
    assert not caplog.records
