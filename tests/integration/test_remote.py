"""`RemoteScorer` against servers on loopback that respond as documented, or misbehave."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest

from marcorank import Reranker, Scorer
from marcorank.errors import (
    ClosedError,
    InvalidInputError,
    RemoteError,
    RemoteProtocolError,
    RemoteStatusError,
    RemoteTimeoutError,
    ScoreError,
)
from marcorank.remote import DIALECTS, RemoteScorer
from marcorank.remote.connection import Connection
from marcorank.testing import WordOverlapScorer
from patience import PATIENCE_S
from remote_server import (
    MAX_WORDS,
    PATHS,
    announces,
    breaks_off,
    compresses,
    delays,
    dribbles,
    fails_at_random,
    floods,
    hangs_up,
    never_answers,
    remote_server,
    responds,
    responds_changed,
    responds_with,
)

QUERY = "how do I open a file"
PASSAGES = ["open a file", "how do I", "nothing of it", "zero", "a list", "a file that I open"]
EXPECTED = np.array(WordOverlapScorer().score(QUERY, PASSAGES), dtype=np.float32)
SECRET = "sk-very-secret-123"
NOBODY = "tei+http://127.0.0.1:9"
# Far more than anything here takes; it turns a hang into a failure.
SOON_S = 20.0


@pytest.fixture(scope="module", autouse=True)
def no_scorer_of_another_file():
    """The tests below count threads, and what other files left behind may still have one."""
    gc.collect()


def threads_of_scorers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "marcorank-remote"]


def fails_soon(scorer, kind, message, passages=PASSAGES):
    """Return the error of a call."""
    future = scorer.submit([(QUERY, passages)])
    with pytest.raises(kind, match=message) as caught:
        future.result(timeout=SOON_S)
    return caught.value


# Requests and responses


BODIES = {
    "tei": {"query": QUERY, "texts": PASSAGES, "raw_scores": True, "return_text": False, "truncate": True},
    "vllm": {
        "model": "m",
        "query": QUERY,
        "documents": PASSAGES,
        "use_activation": False,
        "truncate_prompt_tokens": -1,
    },
    "infinity": {
        "model": "m",
        "query": QUERY,
        "documents": PASSAGES,
        "raw_scores": True,
        "return_documents": False,
    },
    "cohere": {"model": "m", "query": QUERY, "documents": PASSAGES, "max_tokens_per_doc": 4096},
    "jina": {"model": "m", "query": QUERY, "documents": PASSAGES, "return_documents": False},
    "voyage": {
        "model": "m",
        "query": QUERY,
        "documents": PASSAGES,
        "return_documents": False,
        "truncation": True,
    },
}


@pytest.mark.parametrize("dialect", PATHS)
def test_each_api_is_spoken_as_documented(dialect):
    """Path and body are as documented; scores are in input order and of the stated kind."""
    with remote_server(dialect) as server, RemoteScorer(server.url, model="m") as scorer:
        scores = scorer.score(QUERY, PASSAGES)
        [received] = server.requests
    assert received.path == PATHS[dialect]
    assert received.body == BODIES[dialect]
    assert scores.dtype == np.float32
    expected = EXPECTED if scorer.score_kind == "logit" else 1 / (1 + np.exp(-EXPECTED))
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("dialect", ["tei", "vllm", "infinity"])
def test_the_model_is_optional_for_a_server_with_one_model(dialect):
    """The body then has no model, and the URL is the name of the scorer."""
    with remote_server(dialect) as server, RemoteScorer(server.url) as scorer:
        np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)
        assert "model" not in server.requests[0].body
        assert scorer.name == server.base


def test_scores_are_matched_by_index_in_any_order(tei, scorer):
    """Sorted, reversed or shuffled: each passage gets its own score."""
    for seed in range(5):
        tei.fault = responds_changed(lambda found, seed=seed: random.Random(seed).sample(found, len(found)))  # noqa: S311
        np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)


def test_a_base_path_is_kept(tei):
    """Servers behind a proxy often have one."""
    with RemoteScorer(f"{tei.url}/below/") as scorer:
        fails_soon(scorer, RemoteStatusError, r"/below/rerank returned status 404 \(1 attempt\): Not Found\. http")
    assert tei.requests[0].path == "/below/rerank"


def test_long_lists_are_split_and_sent_in_parallel(tei, scorer):
    """No request is longer than the server allows, all are sent at once, and scores are in input order."""
    together = threading.Barrier(4)

    def meets(handler, results):
        together.wait(SOON_S)
        return False

    tei.fault = meets
    passages = [f"{PASSAGES[index % 6]} {'x ' * (index % 7)}" for index in range(100)]
    scores = scorer.score(QUERY, passages)
    assert sorted(len(received.body["texts"]) for received in tei.requests) == [4, 32, 32, 32]
    np.testing.assert_array_equal(scores, np.float32(WordOverlapScorer().score(QUERY, passages)))


def test_concurrent_requests_are_limited(tei):
    """The limit of a scorer holds over all its callers, and so does the number of connections."""
    together = threading.Barrier(3)

    def meets(handler, results):
        together.wait(SOON_S)
        return False

    tei.fault = meets
    with RemoteScorer(tei.url, max_passages_per_request=1, max_parallel_requests=3) as scorer:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: scorer.score(QUERY, PASSAGES), range(8)))
        assert tei.max_concurrent == 3
        assert tei.connections == 3
    assert all(np.array_equal(scores, EXPECTED) for scores in found)


def test_a_long_call_does_not_block_a_short_one(tei):
    """A short call after one with many parts does not wait for all of them."""
    tei.fault = delays(0.02)
    with RemoteScorer(tei.url, max_passages_per_request=1, max_parallel_requests=2) as scorer:
        long = scorer.submit([(QUERY, ["x"] * 200)])
        scorer.score(QUERY, ["open"])
        assert not long.done()
        long.cancel()


def test_score_requests_returns_one_result_per_request(tei, scorer):
    """Results are in the order of the requests; requests without passages need no server."""
    found = scorer.score_requests([(QUERY, PASSAGES), ("list", []), ("a list", ["a list", "a"])])
    assert [answer.logits.tolist() for answer in found] == [EXPECTED.tolist(), [], [5.0, 0.0]]
    assert len(tei.requests) == 2


def test_no_passages_need_no_server():
    """Without passages nothing is sent and no thread is started."""
    scorer = RemoteScorer(NOBODY)
    assert scorer.score(QUERY, []).shape == (0,)
    assert scorer.score_requests([]) == []
    assert not threads_of_scorers()


def test_unknown_tokens_are_known_if_the_server_reports_them(tei, scorer):
    """Over all parts of a request; None if one of them does not report them."""
    counted = responds_changed(lambda found: [{**one, "unknown_tokens": one["index"]} for one in found])
    tei.faults += [counted, counted]
    scores = scorer.score_requests([(QUERY, ["file"] * 40)])[0]
    assert scores.unknown_tokens.tolist() == [*range(32), *range(8)]
    tei.faults.append(counted)
    assert scorer.score_requests([(QUERY, ["file"] * 40)])[0].unknown_tokens is None


def test_truncation_is_known_if_the_server_reports_it(tei, scorer):
    """`truncated` has a value per passage, over all parts; None if the server does not report it."""
    long = "file " * (MAX_WORDS + 1)
    passages = ["file", long] * 20
    assert scorer.score_requests([(QUERY, passages)])[0].truncated is None
    tei.reports_truncation = True
    scores = scorer.score_requests([(QUERY, passages)])[0]
    assert scores.truncated.tolist() == [False, True] * 20
    assert scores.unknown_tokens is None
    tei.faults.append(responds_changed(lambda found: [{"index": one["index"], "score": one["score"]} for one in found]))
    assert scorer.score_requests([(QUERY, passages)])[0].truncated is None


@pytest.mark.parametrize("dialect", PATHS)
def test_truncation_is_requested(dialect):
    """A passage that is too long is scored, although the server would reject it by default."""
    with remote_server(dialect) as server, RemoteScorer(server.url, model="m") as scorer:
        assert np.isfinite(scorer.score(QUERY, ["file " * (MAX_WORDS + 1), "file " * 30_000])).all()


def test_an_error_that_repeats_the_request_is_shortened():
    """Some servers return the whole request; the message contains only the reason."""
    with remote_server("infinity") as server:
        server.fault = responds(422, {"detail": [{"msg": "too long", "input": "x" * 100_000}]})
        with RemoteScorer(server.url) as scorer:
            fails_soon(scorer, RemoteStatusError, r"status 422 \(1 attempt\): too long\.$")


def test_odd_texts_are_sent_unchanged(tei, scorer):
    """Everything that JSON can carry is sent unchanged; lone surrogates become U+FFFD, as for local models."""
    texts = ["a\x00", "🏙️", "柏林", "\u2028\u202ea", 'a"\\', "\ud83d", "\udc80x"]
    assert np.isfinite(scorer.score("柏林 \ud83d?", texts)).all()
    body = tei.requests[0].body
    assert body["texts"] == [*texts[:-2], "\ufffd", "\ufffdx"]
    assert body["query"] == "柏林 \ufffd?"


@pytest.mark.parametrize(
    ("query", "passages", "message"),
    [
        (" ", PASSAGES, "`query` is blank"),
        (QUERY, ["a", None], r"`passages\[1\]` is None"),
        (QUERY, "text", "expected a list of str"),
    ],
)
def test_input_is_checked_before_anything_is_sent(query, passages, message):
    """Invalid arguments raise an error at once."""
    with pytest.raises(InvalidInputError, match=message):
        RemoteScorer(NOBODY).score(query, passages)


# Failures


# As Ray's proxies and uvicorn respond if the application behind them did not.
bare_500 = responds_with(b"Internal Server Error", "text/plain", status=500)


@pytest.mark.parametrize(
    "fault", [*map(responds, (429, 502, 503, 504)), bare_500, breaks_off, hangs_up], ids=lambda fault: fault.__name__
)
def test_temporary_failures_are_retried(tei, scorer, fault):
    """A busy or restarting server or a broken connection may fail twice."""
    tei.faults.extend([fault, fault])
    np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)
    assert len(tei.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 422, 424, 500, 501])
def test_permanent_failures_are_not_retried(tei, scorer, status):
    """The error has the status and the server's message."""
    tei.fault = responds(status, {"error": "no\nway."})
    error = fails_soon(scorer, RemoteStatusError, rf"/rerank returned status {status} \(1 attempt\): no way\.")
    assert error.status == status
    assert pickle.loads(pickle.dumps(error)).status == status  # noqa: S301
    assert len(tei.requests) == 1


def test_max_attempts_limits_the_retries(tei):
    """The error contains the number of attempts."""
    tei.fault = responds(503, {"error": "Model is overloaded"})
    with RemoteScorer(tei.url, max_attempts=2) as scorer:
        fails_soon(scorer, RemoteStatusError, r"status 503 \(2 attempts\): Model is overloaded\.$")
    assert len(tei.requests) == 2


def test_a_refused_connection_is_an_error():
    """The message has the URL and the number of attempts."""
    with RemoteScorer(NOBODY, max_attempts=2) as scorer:
        fails_soon(scorer, RemoteError, r"The request to http://127\.0\.0\.1:9/rerank failed \(2 attempts\): ")


def test_retry_after_is_honoured(tei, scorer):
    """The next attempt is not earlier than the server requested."""
    tei.faults.append(responds(429, Retry_After="1"))
    np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)
    first, second = tei.requests
    assert second.at - first.at >= 1


def test_a_long_retry_after_is_an_error_at_once(tei, scorer):
    """A server cannot make a call wait for an hour."""
    tei.fault = responds(429, {"error": "quota"}, Retry_After="3600")
    fails_soon(
        scorer, RemoteStatusError, r"\(1 attempt\): quota\. It requires a wait of 3600 s; retries wait at most 30 s"
    )
    assert len(tei.requests) == 1


@pytest.mark.parametrize("fault", [never_answers, dribbles])
def test_an_attempt_times_out_as_a_whole(tei, fault):
    """Sending a byte now and then does not extend the time limit."""
    tei.fault = fault
    with RemoteScorer(tei.url, timeout_s=0.3, max_attempts=2) as scorer:
        fails_soon(scorer, RemoteTimeoutError, r"did not respond within 0\.3 s \(2 attempts\); raise `timeout_s`")
    assert len(tei.requests) == 2


def test_a_timeout_is_retried(tei):
    """The late response to the first attempt is ignored."""

    def outlasts_the_client(handler, results):
        tei.arrived.acquire(timeout=SOON_S)
        tei.arrived.acquire(timeout=SOON_S)
        return False

    tei.faults.append(outlasts_the_client)
    with RemoteScorer(tei.url, timeout_s=1.0) as scorer:
        np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (responds_with(b"<html>Log in</html>", "text/html"), "sent '<html>Log in.*, which is not JSON"),
        (responds_changed(lambda found: found[:-1]), "sent 5 scores for 6 passages"),
        (responds_changed(lambda found: [*found, {"index": 6, "score": 1}]), "expected an `index` below 6"),
        (responds_changed(lambda found: [*found[:-1], found[0]]), "two scores for `index`"),
        (floods, r"sent more than 1,0\d\d,\d\d\d bytes"),
        (compresses, "sent a compressed response, which was not requested"),
        (announces(1 << 40), r"sent more than 1,0\d\d,\d\d\d bytes"),
        (responds_with(b" " * (2 << 20)), r"sent more than 1,0\d\d,\d\d\d bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_response_is_an_error(tei, scorer, fault, message):
    """It is not read without limit, and the request is not retried."""
    tei.fault = fault
    fails_soon(scorer, RemoteProtocolError, message)
    assert len(tei.requests) == 1


@pytest.mark.parametrize("value", [None, float("nan"), float("-inf"), 1e300])
def test_a_score_that_is_not_finite_is_an_error_that_names_the_passage(tei, scorer, value):
    """The index refers to the whole list, not to the part in the request."""

    def broken(found):
        return [{**result, "score": value} if len(found) == 8 and result["index"] == 3 else result for result in found]

    tei.fault = responds_changed(broken)
    fails_soon(scorer, ScoreError, r"returned (nan|-?inf) for `passages\[35\]`", ["a"] * 40)


def test_the_first_failure_cancels_the_other_requests(tei):
    """The call does not wait for them."""
    tei.faults.extend([never_answers, delays(0.2), never_answers, never_answers])
    tei.faults[1] = lambda handler, results: delays(0.2)(handler, results) or responds(400)(handler, results)
    with RemoteScorer(tei.url, timeout_s=600) as scorer:
        fails_soon(scorer, RemoteStatusError, "status 400", ["a"] * 100)
        assert tei.gone.wait(SOON_S)


def test_a_thousand_requests_to_a_failing_server():
    """With 30 % of failures of all kinds, each call returns the right scores or raises an error with the reason."""
    outcomes: Counter[str] = Counter()
    with remote_server("tei") as server:
        server.fault = fails_at_random(0.3, seed=5)
        with RemoteScorer(server.url, timeout_s=2, max_attempts=5, max_parallel_requests=32) as scorer:

            def call(number: int) -> None:
                passages = [f"{PASSAGES[(number + index) % 6]} {number}" for index in range(1 + number % 5)]
                try:
                    scores = scorer.submit([(QUERY, passages)]).result(timeout=PATIENCE_S)
                except RemoteError as error:
                    outcomes[type(error).__name__] += 1
                else:
                    right = np.array_equal(scores[0].logits, np.float32(WordOverlapScorer().score(QUERY, passages)))
                    outcomes["right" if right else "wrong"] += 1

            with ThreadPoolExecutor(32) as pool:
                list(pool.map(call, range(1000)))
        assert len(server.requests) > 1300
    assert sum(outcomes.values()) == 1000
    assert outcomes["wrong"] == 0
    assert outcomes["right"] > 970


# Redirects, API keys, proxies


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(tei, status):
    """Neither texts nor key reach another server, and the message omits path, query and password of its URL."""
    with remote_server("tei") as other:
        location = f"http://user:{SECRET}@127.0.0.1:{other.server_port}/rerank?token={SECRET}"
        tei.fault = responds(status, Location=location)
        with RemoteScorer(tei.url, api_key="key") as scorer:
            message = rf"redirects to {other.base} \(status {status}\), which is not followed"
            error = fails_soon(scorer, RemoteProtocolError, message)
        assert not other.requests
    assert len(tei.requests) == 1
    assert SECRET not in everything_of(error)


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (307, {"Location": "/rerank"}, r"to the path ./rerank. of the same server \(status 307\), which is not"),
        (307, {}, "returned status 307"),
        (307, {"Location": "http://[::1"}, "Invalid URL in location header"),
        (304, {}, "returned status 304"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_an_error(tei, scorer, status, headers, message):
    """The message contains the status."""
    tei.fault = responds(status, **headers)
    fails_soon(scorer, RemoteError, message)


def everything_of(error: BaseException) -> str:
    """Return everything that an error and its causes contain, requests included."""
    texts = []
    seen: BaseException | None = error
    while seen is not None:
        request = getattr(seen, "_request", None)
        texts.append(f"{seen} {seen!r} {vars(seen)} {[] if request is None else request.headers.raw}")
        seen = seen.__cause__ or seen.__context__
    return " ".join(texts)


@pytest.mark.parametrize(
    "fault",
    [
        responds(401, {"error": f"no such key {SECRET}"}),
        responds(400, {"error": "x" * 190 + SECRET}),
        responds_with(b"<html>"),
        breaks_off,
        never_answers,
    ],
    ids=["echo", "cut-echo", "html", "broken", "late"],
)
def test_a_key_appears_nowhere(tei, fault, caplog):
    """No message, cause, repr, dict, pickle or log contains it, even if the server repeats it."""
    caplog.set_level("DEBUG")
    tei.fault = fault
    with RemoteScorer(tei.url, api_key=SECRET, max_attempts=1, timeout_s=1.0) as scorer:
        tei.key = SECRET
        error = fails_soon(scorer, RemoteError, "rerank")
        for copied in (scorer, copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):  # noqa: S301
            assert SECRET not in f"{copied!r} {copied.to_dict()} {vars(copied)}"
        assert SECRET.encode() not in pickle.dumps(scorer)
        assert SECRET.encode() not in pickle.dumps(error)
    assert tei.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert SECRET[:8] not in everything_of(error)
    assert SECRET not in caplog.text


def test_the_environment_is_read_at_each_call(tei, monkeypatch):
    """A pickle is sent to a worker without the key, which the worker's environment has."""
    tei.key = SECRET
    monkeypatch.delenv("MARCORANK_API_KEY", raising=False)
    with pickle.loads(pickle.dumps(RemoteScorer(tei.url, api_key=SECRET))) as scorer:  # noqa: S301
        fails_soon(
            scorer,
            RemoteStatusError,
            r"status 401 .* No API key was sent; pass `api_key` \(`token` for a `Reranker`\) or set MARCORANK_API_KEY",
        )
        monkeypatch.setenv("MARCORANK_API_KEY", "wrong")
        fails_soon(scorer, RemoteStatusError, r"invalid api token Bearer \[key\]\. An API key was sent; pass")
        monkeypatch.setenv("MARCORANK_API_KEY", SECRET)
        np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)
        monkeypatch.setenv("MARCORANK_API_KEY", f"{SECRET}\n")
        with pytest.raises(InvalidInputError, match="environment variable MARCORANK_API_KEY contains") as caught:
            scorer.score(QUERY, PASSAGES)
        assert SECRET not in str(caught.value)


def test_api_key_takes_precedence_over_the_environment(tei, monkeypatch):
    """The environment is only read if no key was passed."""
    monkeypatch.setenv("MARCORANK_API_KEY", "of-the-environment")
    with RemoteScorer(tei.url, api_key="passed") as scorer:
        scorer.score(QUERY, PASSAGES)
    assert tei.requests[0].headers["Authorization"] == "Bearer passed"


def test_a_vendor_key_is_not_sent_to_other_hosts(monkeypatch):
    """A server that only implements Cohere's API does not get Cohere's key."""
    monkeypatch.setenv("COHERE_API_KEY", SECRET)
    monkeypatch.delenv("MARCORANK_API_KEY", raising=False)
    with remote_server("cohere") as server, RemoteScorer(server.url, model="m") as scorer:
        scorer.score(QUERY, PASSAGES)
        assert "Authorization" not in server.requests[0].headers


def test_local_servers_bypass_the_proxy(tei, monkeypatch):
    """A proxy could not reach this machine; requests to other hosts use it."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with RemoteScorer(tei.url) as scorer:
        np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)
    with remote_server("tei") as proxy:
        monkeypatch.setenv("http_proxy", proxy.base)
        proxy.fault = lambda handler, results: False
        with RemoteScorer("tei+http://far.example") as scorer:
            np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)
        assert proxy.requests[0].path == "http://far.example/rerank"


def test_the_error_for_an_invalid_proxy_hides_its_password(monkeypatch):
    """Its URL may contain one."""
    monkeypatch.setenv("ALL_PROXY", f"gopher://user:{SECRET}@proxy")
    with RemoteScorer("tei+http://far.example") as scorer:
        error = fails_soon(scorer, RemoteError, "Cannot create an HTTP client for http://far.example .*proxies")
    assert SECRET not in everything_of(error)


# Threads, tasks, processes


async def test_the_event_loop_stays_free(tei, scorer):
    """Other tasks run while the server computes."""
    computing, go_on = threading.Event(), threading.Event()

    def wait(handler, results):
        computing.set()
        go_on.wait(SOON_S)
        return False

    tei.fault = wait
    call = asyncio.ensure_future(scorer.ascore(QUERY, PASSAGES))
    assert await asyncio.to_thread(computing.wait, SOON_S)
    assert not call.done()
    go_on.set()
    np.testing.assert_array_equal(await call, EXPECTED)


def test_threads_and_event_loops_share_one_scorer(tei, scorer):
    """All use the same connection pool."""

    async def gather():
        return await asyncio.gather(*(scorer.ascore(QUERY, PASSAGES) for _ in range(10)))

    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(asyncio.run, gather()) for _ in range(4)]
        found += [pool.submit(lambda: [scorer.score(QUERY, PASSAGES)]) for _ in range(20)]
        answers = [scores for future in found for scores in future.result(timeout=SOON_S)]
    assert len(answers) == 60
    assert all(np.array_equal(scores, EXPECTED) for scores in answers)
    assert tei.connections <= 8
    assert len(threads_of_scorers()) == 1


@pytest.mark.parametrize("kind", ["future", "task"])
def test_cancelling_closes_the_connections(tei, scorer, kind):
    """The server can then stop computing."""
    tei.fault = never_answers

    async def give_up():
        task = asyncio.create_task(scorer.ascore(QUERY, PASSAGES))
        assert await asyncio.to_thread(tei.arrived.acquire, timeout=SOON_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError, match=r"^$"):
            await task

    if kind == "task":
        asyncio.run(give_up())
    else:
        future = scorer.submit([(QUERY, PASSAGES)])
        assert tei.arrived.acquire(timeout=SOON_S)
        assert future.cancel()
        with pytest.raises(CancelledError, match=r"^$"):
            future.result()
    assert tei.gone.wait(SOON_S)


def test_cancelled_requests_free_their_slots(tei):
    """Wherever a call was cancelled, the next one can run."""
    tei.fault = delays(0.02)
    with RemoteScorer(tei.url, max_parallel_requests=2, max_passages_per_request=2) as scorer:
        for number in range(100):
            future = scorer.submit([(QUERY, PASSAGES)])
            time.sleep(number * 0.0005)
            future.cancel()
        tei.fault = None
        np.testing.assert_array_equal(scorer.submit([(QUERY, PASSAGES)]).result(timeout=SOON_S)[0].logits, EXPECTED)


def test_close_ends_the_thread_and_running_calls(tei):
    """Running and later calls raise `ClosedError`."""
    tei.fault = never_answers
    scorer = RemoteScorer(tei.url)
    waiting = [scorer.submit([(QUERY, PASSAGES)]) for _ in range(20)]
    scorer.close()
    for future in waiting:
        with pytest.raises(ClosedError, match="closed while a call waited"):
            future.result(timeout=SOON_S)
    assert not threads_of_scorers()
    with pytest.raises(ClosedError, match="The scorer was closed; create a new RemoteScorer"):
        scorer.score(QUERY, PASSAGES)
    scorer.close()


def test_nothing_is_logged_about_a_cancelled_call(tei, caplog):
    """Nobody retrieves the error of a call that was cancelled before the scorer was closed."""
    tei.fault = never_answers
    for _ in range(20):
        with RemoteScorer(tei.url) as scorer:
            future = scorer.submit([(QUERY, PASSAGES)])
            assert tei.arrived.acquire(timeout=SOON_S)
            future.cancel()
        del future
    gc.collect()
    assert not caplog.records


def test_calls_that_race_with_close_return_or_fail(tei):
    """A call at any moment returns scores or raises an error, and none hangs."""
    for _ in range(20):
        scorer = RemoteScorer(tei.url)
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(scorer.score, QUERY, PASSAGES) for _ in range(8)]
            scorer.close()
            errors = [call.exception(timeout=SOON_S) for call in calls]
        assert all(error is None or isinstance(error, ClosedError) for error in errors)
    assert not threads_of_scorers()


def test_the_thread_ends_with_the_last_user(tei):
    """Neither the thread nor the error of a call keeps a scorer alive."""
    scorer = RemoteScorer(tei.url)
    scorer.score(QUERY, PASSAGES)
    assert len(threads_of_scorers()) == 1
    tei.fault = responds(400)
    error = scorer.submit([(QUERY, PASSAGES)]).exception(timeout=SOON_S)
    assert isinstance(error, RemoteStatusError)
    gone = weakref.ref(scorer)
    del scorer
    gc.collect()
    assert gone() is None
    assert not threads_of_scorers()


def test_a_running_call_keeps_its_scorer_alive(tei):
    """A future without a reference to its scorer still gets the scores; then the thread ends."""
    tei.fault = delays(0.2)
    future = RemoteScorer(tei.url).submit([(QUERY, PASSAGES)])
    gc.collect()
    np.testing.assert_array_equal(future.result(timeout=SOON_S)[0].logits, EXPECTED)
    for thread in threads_of_scorers():
        thread.join(SOON_S)
    assert not threads_of_scorers()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_opens_its_own_connections(tei, scorer):
    """The parent's thread does not exist in a child, and the child does not disturb the parent's connections."""
    scorer.score(QUERY, PASSAGES)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        right = np.array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)
        scorer.close()
        gc.collect()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(scorer.submit([(QUERY, PASSAGES)]).result(timeout=SOON_S)[0].logits, EXPECTED)


def test_a_program_can_exit_with_running_calls(tei):
    """Neither an idle nor a busy scorer that was not closed keeps a program from exiting."""
    tei.faults.extend([None, never_answers])
    code = (
        "import sys\n"
        "from marcorank.remote import RemoteScorer\n"
        "scorer = RemoteScorer(sys.argv[1], timeout_s=600)\n"
        "print(scorer.score('a', ['a']).tolist())\n"
        "future = scorer.submit([('a', ['a'])])\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, tei.url]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as program:  # noqa: S603
        assert all(tei.arrived.acquire(timeout=PATIENCE_S) for _ in range(2))
        stdout, stderr = program.communicate(timeout=PATIENCE_S)
    assert (program.returncode, stdout, stderr) == (0, "[5.0]\n", "")


# Settings


def test_settings_round_trip(tei):
    """Through pickle, deepcopy and JSON; scorers with equal settings are equal."""
    scorer = RemoteScorer(tei.url, model="m", timeout_s=3, max_passages_per_request=5, max_parallel_requests=2)
    for copied in (
        pickle.loads(pickle.dumps(scorer)),  # noqa: S301
        copy.deepcopy(scorer),
        RemoteScorer.from_dict(json.loads(json.dumps(scorer.to_dict()))),
    ):
        assert copied == scorer
        assert hash(copied) == hash(scorer)
        assert repr(copied) == repr(scorer)
    assert repr(scorer) == (
        f"RemoteScorer('{tei.url}', model='m', timeout_s=3.0, max_passages_per_request=5, max_parallel_requests=2)"
    )
    assert scorer != RemoteScorer(tei.url)
    assert scorer != "m"
    assert scorer.name == "m"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout_s": 0}, "`timeout_s` is 0; expected a finite number of seconds above 0"),
        ({"timeout_s": float("inf")}, "`timeout_s` is inf"),
        ({"timeout_s": True}, "`timeout_s` is True"),
        ({"timeout_s": "3"}, "`timeout_s` is '3'"),
        ({"max_attempts": 0}, "`max_attempts` is 0; expected a whole number of at least 1"),
        ({"max_passages_per_request": 0}, "`max_passages_per_request` is 0"),
        ({"max_parallel_requests": 1.5}, "`max_parallel_requests` is 1.5"),
        ({"model": ""}, "`model` is empty"),
        ({"api_key": f" {SECRET}"}, "`api_key` contains a space"),
    ],
)
def test_settings_are_checked(settings, message):
    """Invalid settings raise an error when the scorer is created."""
    with pytest.raises(InvalidInputError, match=message):
        RemoteScorer(NOBODY, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": NOBODY, "api_key": "k", "x": 1}, "Unknown settings 'api_key', 'x'; expected some of dialect, max"),
        ({"dialect": "tei"}, "'url' is missing; expected some of dialect, max"),
    ],
)
def test_from_dict_rejects_unknown_settings(settings, message):
    """`api_key` is one of them."""
    with pytest.raises(InvalidInputError, match=message):
        RemoteScorer.from_dict(settings)


def test_a_remote_scorer_is_a_scorer(tei, scorer):
    """`Reranker` accepts it like any other."""
    assert isinstance(scorer, Scorer)
    ranking = Reranker(scorer).rank(QUERY, PASSAGES, top_n=2)
    assert [result.text for result in ranking] == ["a file that I open", "open a file"]
    assert ranking.model == tei.base


def test_httpx_is_imported_on_first_use():
    """Creating a scorer does not import it; if it is not installed, the error names the pip command."""
    code = (
        "import sys\n"
        "from marcorank.remote import RemoteScorer, is_remote\n"
        "RemoteScorer('tei+http://host')\n"
        "assert 'httpx' not in sys.modules\n"
        "sys.modules['httpx'] = None\n"
        "from marcorank import MissingExtraError\n"
        "try:\n"
        "    RemoteScorer('tei+http://host')\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    ended = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (ended.stdout, ended.stderr) == ("Scoring on a server needs httpx: pip install 'marcorank[remote]'\n", "")


def test_every_dialect_is_tested():
    """A new dialect needs a server here."""
    assert set(DIALECTS) == set(PATHS)


def test_a_scorer_that_is_closed_before_its_thread_runs_ends_its_calls(tei, monkeypatch):
    """A call that was submitted ends even if `close()` comes before the event loop has started."""
    may_run = threading.Event()
    run = Connection._run

    def run_late(connection):
        assert may_run.wait(SOON_S)
        run(connection)

    monkeypatch.setattr(Connection, "_run", run_late)
    scorer = RemoteScorer(tei.url)
    calls = [scorer.submit([(QUERY, PASSAGES)]) for _ in range(3)]
    thread = scorer._connection._thread
    # The last step of `close()`.
    monkeypatch.setattr(thread, "join", lambda timeout: may_run.set())
    scorer.close()
    assert all(isinstance(call.exception(timeout=SOON_S), ClosedError) for call in calls)
    monkeypatch.undo()
    thread.join(SOON_S)


def test_no_frame_of_an_error_holds_the_key(tei):
    """Tools that show the local variables of a traceback do not show the API key."""
    tei.key = "a-secret-key"
    tei.fault = responds(404, {"error": "no such model"})
    error = fails_soon(RemoteScorer(tei.url, api_key="a-secret-key"), RemoteStatusError, "404")
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "_request_scores" in shown
    assert "a-secret-key" not in shown.replace("api_key", "")
