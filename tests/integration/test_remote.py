"""`RemoteScorer` against real servers on loopback that answer as their documentation says, or misbehave."""

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
from marcorank.testing import WordOverlapScorer
from remote_server import (
    LONGEST,
    PATHS,
    breaks_off,
    changes,
    compresses,
    dribbles,
    fails_at_random,
    floods,
    hangs_up,
    late,
    never_answers,
    promises,
    remote_server,
    says,
    sends,
)

QUERY = "how do I open a file"
PASSAGES = ["open a file", "how do I", "nothing of it", "", "a list", "a file that I open"]
EXPECTED = np.array(WordOverlapScorer().score(QUERY, PASSAGES), dtype=np.float32)
SECRET = "sk-very-secret-123"
NOBODY = "tei+http://127.0.0.1:9"
# Far more than anything here takes; what hangs is stopped by it.
SOON_S = 20.0


@pytest.fixture
def tei():
    with remote_server("tei") as server:
        yield server


@pytest.fixture
def scorer(tei):
    with RemoteScorer(tei.url) as scorer:
        yield scorer


def threads_of_scorers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "marcorank-remote"]


def fails_soon(scorer, kind, message, passages=PASSAGES):
    """Return the error of a call, which is not to take long."""
    future = scorer.begin([(QUERY, passages)])
    with pytest.raises(kind, match=message) as caught:
        future.result(timeout=SOON_S)
    return caught.value


# What is asked and answered


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
def test_each_kind_of_server_is_asked_and_understood_in_its_own_way(dialect):
    """Path and body are the documented ones; scores come in input order and are of the kind that is told."""
    with remote_server(dialect) as server, RemoteScorer(server.url, model="m") as scorer:
        scores = scorer.score(QUERY, PASSAGES)
        [asked] = server.requests
    assert asked.path == PATHS[dialect]
    assert asked.body == BODIES[dialect]
    assert scores.dtype == np.float32
    expected = EXPECTED if scorer.score_kind == "logit" else 1 / (1 + np.exp(-EXPECTED))
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("dialect", ["tei", "vllm", "infinity"])
def test_a_server_with_one_model_need_not_be_told_which(dialect):
    """The body then names none, and the scorer is called by the URL."""
    with remote_server(dialect) as server, RemoteScorer(server.url) as scorer:
        np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)
        assert "model" not in server.requests[0].body
        assert scorer.name == server.base


def test_scores_are_joined_by_index_whatever_the_order(tei, scorer):
    """Sorted, reversed or shuffled: a passage gets its own score."""
    for seed in range(5):
        tei.fault = changes(lambda found, seed=seed: random.Random(seed).sample(found, len(found)))  # noqa: S311
        np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)


def test_a_base_path_is_kept(tei):
    """Servers behind a proxy live below one."""
    with RemoteScorer(f"{tei.url}/below/") as scorer:
        fails_soon(scorer, RemoteStatusError, r"/below/rerank returned status 404 \(1 attempt\): Not Found\. http")
    assert tei.requests[0].path == "/below/rerank"


def test_long_lists_are_split_and_asked_for_side_by_side(tei, scorer):
    """No request is longer than the server takes, all are under way at once, and the order stays."""
    together = threading.Barrier(4)

    def meets(handler, results):
        together.wait(SOON_S)
        return False

    tei.fault = meets
    passages = [f"{PASSAGES[place % 6]} {'x ' * (place % 7)}" for place in range(100)]
    scores = scorer.score(QUERY, passages)
    assert sorted(len(asked.body["texts"]) for asked in tei.requests) == [4, 32, 32, 32]
    np.testing.assert_array_equal(scores, np.float32(WordOverlapScorer().score(QUERY, passages)))


def test_requests_under_way_are_bounded(tei):
    """All callers of a scorer together keep to its limit, and to as many connections."""
    together = threading.Barrier(3)

    def meets(handler, results):
        together.wait(SOON_S)
        return False

    tei.fault = meets
    with RemoteScorer(tei.url, max_passages_per_request=1, max_parallel_requests=3) as scorer:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: scorer.score(QUERY, PASSAGES), range(8)))
        assert tei.most_at_once == 3
        assert tei.connections == 3
    assert all(np.array_equal(scores, EXPECTED) for scores in found)


def test_a_long_call_leaves_others_their_turn(tei):
    """A short call that comes behind one with many parts does not wait for all of them."""
    tei.fault = late(0.02)
    with RemoteScorer(tei.url, max_passages_per_request=1, max_parallel_requests=2) as scorer:
        long = scorer.begin([(QUERY, ["x"] * 200)])
        scorer.score(QUERY, ["open"])
        assert not long.done()
        long.cancel()


def test_several_requests_are_scored_at_once(tei, scorer):
    """One answer a request in their order; empty ones need no server."""
    found = scorer.score_requests([(QUERY, PASSAGES), ("list", []), ("a list", ["a list", "a"])])
    assert [answer.logits.tolist() for answer in found] == [EXPECTED.tolist(), [], [5.0, 0.0]]
    assert len(tei.requests) == 2


def test_nothing_is_asked_about_nothing():
    """No passages: no request, no thread, no error where there is no server."""
    scorer = RemoteScorer(NOBODY)
    assert scorer.score(QUERY, []).shape == (0,)
    assert scorer.score_requests([]) == []
    assert not threads_of_scorers()


def test_what_was_cut_is_told_where_the_server_tells_it(tei, scorer):
    """`truncated` is that of each passage, over all parts; None where a server says nothing."""
    long = "file " * (LONGEST + 1)
    passages = ["file", long] * 20
    assert scorer.score_requests([(QUERY, passages)])[0].truncated is None
    tei.tells_truncated = True
    assert scorer.score_requests([(QUERY, passages)])[0].truncated.tolist() == [False, True] * 20
    tei.faults.append(changes(lambda found: [{"index": one["index"], "score": one["score"]} for one in found]))
    assert scorer.score_requests([(QUERY, passages)])[0].truncated is None


@pytest.mark.parametrize("dialect", PATHS)
def test_truncation_is_asked_for(dialect):
    """A passage that is too long is scored, where the server would refuse it otherwise."""
    with remote_server(dialect) as server, RemoteScorer(server.url, model="m") as scorer:
        assert np.isfinite(scorer.score(QUERY, ["file " * (LONGEST + 1), "file " * 30_000])).all()


def test_an_error_that_repeats_the_request_is_understood():
    """Some servers send all of it back; the message has what they say, not that."""
    with remote_server("infinity") as server:
        with RemoteScorer(server.url, max_passages_per_request=3000) as scorer:
            message = r"status 422 \(1 attempt\): List should have at most 2048 items\.$"
            fails_soon(scorer, RemoteStatusError, message, ["a"] * 2049)
        server.fault = says(422, {"detail": [{"msg": "too long", "input": "x" * 100_000}]})
        with RemoteScorer(server.url) as scorer:
            fails_soon(scorer, RemoteStatusError, r"status 422 \(1 attempt\): too long\.$")


def test_odd_texts_arrive_as_they_are(tei, scorer):
    """Everything that JSON can carry is sent unchanged; lone surrogates become U+FFFD, as for local models."""
    texts = ["", "\x00", "🏙️", "柏林", "\u2028\u202e", 'a"\\', "\ud83d", "\udc80x"]
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
    """Wrong arguments are told at once."""
    with pytest.raises(InvalidInputError, match=message):
        RemoteScorer(NOBODY).score(query, passages)


# Failures that pass, and those that do not


# As Ray's proxies and uvicorn answer where the application behind them gave no answer.
bare_500 = sends(b"Internal Server Error", "text/plain", status=500)


@pytest.mark.parametrize(
    "way", [*map(says, (429, 502, 503, 504)), bare_500, breaks_off, hangs_up], ids=lambda way: way.__name__
)
def test_what_passes_is_tried_again(tei, scorer, way):
    """A busy or restarting server, a broken connection: two failures are got over."""
    tei.faults.extend([way, way])
    np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)
    assert len(tei.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422, 424, 500, 501])
def test_what_does_not_pass_is_not_tried_again(tei, scorer, status):
    """The error has the status and what the server said."""
    tei.fault = says(status, {"error": "no\nway."})
    error = fails_soon(scorer, RemoteStatusError, rf"/rerank returned status {status} \(1 attempt\): no way\.")
    assert error.status == status
    assert pickle.loads(pickle.dumps(error)).status == status  # noqa: S301
    assert len(tei.requests) == 1


def test_tries_end(tei):
    """`max_attempts` counts all of them, and the error tells it."""
    tei.fault = says(503, {"error": "Model is overloaded"})
    with RemoteScorer(tei.url, max_attempts=2) as scorer:
        fails_soon(scorer, RemoteStatusError, r"status 503 \(2 attempts\): Model is overloaded\.$")
    assert len(tei.requests) == 2


def test_a_server_that_is_not_there_is_an_error():
    """The message has the URL and the number of attempts."""
    with RemoteScorer(NOBODY, max_attempts=2) as scorer:
        fails_soon(scorer, RemoteError, r"The request to http://127\.0\.0\.1:9/rerank failed \(2 attempts\): ")


def test_retry_after_is_honoured(tei, scorer):
    """The next attempt comes no earlier than the server asked for."""
    tei.faults.append(says(429, Retry_After="1"))
    np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)
    first, second = tei.requests
    assert second.at - first.at >= 1


def test_who_is_to_wait_too_long_is_told_at_once(tei, scorer):
    """Nobody sleeps for an hour because a server says so."""
    tei.fault = says(429, {"error": "quota"}, Retry_After="3600")
    fails_soon(
        scorer, RemoteStatusError, r"\(1 attempt\): quota\. It requires a wait of 3600 s; retries wait at most 30 s"
    )
    assert len(tei.requests) == 1


@pytest.mark.parametrize("way", [never_answers, dribbles])
def test_a_server_that_does_not_finish_is_given_up(tei, way):
    """The time limit is that of the whole attempt, so sending a byte now and then does not help."""
    tei.fault = way
    with RemoteScorer(tei.url, timeout_s=0.3, max_attempts=2) as scorer:
        fails_soon(scorer, RemoteTimeoutError, r"did not respond within 0\.3 s \(2 attempts\); raise `timeout_s`")
    assert len(tei.requests) == 2


def test_a_late_answer_is_asked_for_again(tei):
    """One late answer costs a second attempt, and nothing is taken from the first."""

    def outlasts_the_client(handler, results):
        tei.arrived.acquire(timeout=SOON_S)
        tei.arrived.acquire(timeout=SOON_S)
        return False

    tei.faults.append(outlasts_the_client)
    with RemoteScorer(tei.url, timeout_s=1.0) as scorer:
        np.testing.assert_array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (sends(b"<html>Log in</html>", "text/html"), "sent '<html>Log in.*, which is not JSON"),
        (changes(lambda found: found[:-1]), "sent 5 scores for 6 passages"),
        (changes(lambda found: [*found, {"index": 6, "score": 1}]), "expected an `index` below 6"),
        (changes(lambda found: [*found[:-1], found[0]]), "two scores for `index`"),
        (floods, r"sent more than 1,0\d\d,\d\d\d bytes"),
        (compresses, "sent a compressed response, which was not requested"),
        (promises(1 << 40), r"sent more than 1,0\d\d,\d\d\d bytes"),
        (sends(b" " * (2 << 20)), r"sent more than 1,0\d\d,\d\d\d bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_that_is_none_is_refused(tei, scorer, way, message):
    """It is not guessed at, not read without limit, and not asked for again."""
    tei.fault = way
    fails_soon(scorer, RemoteProtocolError, message)
    assert len(tei.requests) == 1


@pytest.mark.parametrize("value", [None, float("nan"), float("-inf"), 1e300])
def test_a_score_that_is_not_finite_names_its_passage(tei, scorer, value):
    """The index is that in the whole list, not in the part that was asked for."""

    def broken(found):
        return [{**result, "score": value} if len(found) == 8 and result["index"] == 3 else result for result in found]

    tei.fault = changes(broken)
    fails_soon(scorer, ScoreError, r"returned (nan|-?inf) for `passages\[35\]`", ["a"] * 40)


def test_a_request_that_is_too_long_tells_what_to_do(tei):
    """A server with a lower limit than usual: the message names the setting."""
    tei.max_batch = 8
    with RemoteScorer(tei.url) as scorer:
        message = r"status 413 .*batch size 9 > maximum allowed batch size 8\. Lower `max_passages_per_request`\."
        fails_soon(scorer, RemoteStatusError, message, ["a"] * 9)
    with RemoteScorer(tei.url, max_passages_per_request=8) as scorer:
        assert scorer.score(QUERY, ["a"] * 9).shape == (9,)


def test_the_first_failure_ends_the_call(tei):
    """The other parts are not waited for: their requests are dropped."""
    tei.faults.extend([never_answers, late(0.2), never_answers, never_answers])
    tei.faults[1] = lambda handler, results: late(0.2)(handler, results) or says(400)(handler, results)
    with RemoteScorer(tei.url, timeout_s=600) as scorer:
        fails_soon(scorer, RemoteStatusError, "status 400", ["a"] * 100)
        assert tei.gone.wait(SOON_S)


def test_a_thousand_requests_to_a_failing_server():
    """With 30 % of failures of all kinds, each call ends: with the right scores, or with an error that says why."""
    outcomes: Counter[str] = Counter()
    with remote_server("tei") as server:
        server.fault = fails_at_random(0.3, seed=5)
        with RemoteScorer(server.url, timeout_s=2, max_attempts=5, max_parallel_requests=32) as scorer:

            def call(number: int) -> None:
                passages = [f"{PASSAGES[(number + place) % 6]} {number}" for place in range(1 + number % 5)]
                try:
                    scores = scorer.begin([(QUERY, passages)]).result(timeout=60)
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


# Where texts and keys go


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(tei, status):
    """Neither texts nor key reach another server, and the message names it without what its URL may carry."""
    with remote_server("tei") as other:
        location = f"http://user:{SECRET}@127.0.0.1:{other.server_port}/rerank?token={SECRET}"
        tei.fault = says(status, Location=location)
        with RemoteScorer(tei.url, api_key="key") as scorer:
            message = rf"redirects to {other.base} \(status {status}\), which is not followed"
            error = fails_soon(scorer, RemoteProtocolError, message)
        assert not other.requests
    assert len(tei.requests) == 1
    assert SECRET not in everything_of(error)


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (307, {"Location": "/rerank"}, r"redirects to http://127\.0\.0\.1:\d+ \(status 307\), which is not followed"),
        (307, {}, r"redirects to another page \(status 307\), which is not followed"),
        (307, {"Location": "http://[::1"}, "Invalid URL in location header"),
        (304, {}, "returned status 304"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_an_error(tei, scorer, status, headers, message):
    """The message says what the server did."""
    tei.fault = says(status, **headers)
    fails_soon(scorer, RemoteError, message)


def everything_of(error: BaseException) -> str:
    """What an error and its causes hold and show, requests included."""
    texts = []
    seen: BaseException | None = error
    while seen is not None:
        request = getattr(seen, "_request", None)
        texts.append(f"{seen} {seen!r} {vars(seen)} {[] if request is None else request.headers.raw}")
        seen = seen.__cause__ or seen.__context__
    return " ".join(texts)


@pytest.mark.parametrize(
    "way",
    [
        says(401, {"error": f"no such key {SECRET}"}),
        says(400, {"error": "x" * 190 + SECRET}),
        sends(b"<html>"),
        breaks_off,
        never_answers,
    ],
    ids=["echo", "cut-echo", "html", "broken", "late"],
)
def test_a_key_appears_nowhere(tei, way, caplog):
    """It reaches the server, and no message, cause, repr, dict, pickle or log, even if the server repeats it."""
    caplog.set_level("DEBUG")
    tei.fault = way
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


def test_the_environment_is_read_at_use(tei, monkeypatch):
    """A pickle goes to a worker without the key, and the worker's environment has it."""
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


def test_the_key_that_was_passed_wins(tei, monkeypatch):
    """What the environment holds is for those who pass none."""
    monkeypatch.setenv("MARCORANK_API_KEY", "of-the-environment")
    with RemoteScorer(tei.url, api_key="passed") as scorer:
        scorer.score(QUERY, PASSAGES)
    assert tei.requests[0].headers["Authorization"] == "Bearer passed"


def test_a_vendor_key_is_not_sent_to_others(monkeypatch):
    """A server that only speaks like Cohere gets no key of Cohere's."""
    monkeypatch.setenv("COHERE_API_KEY", SECRET)
    monkeypatch.delenv("MARCORANK_API_KEY", raising=False)
    with remote_server("cohere") as server, RemoteScorer(server.url, model="m") as scorer:
        scorer.score(QUERY, PASSAGES)
        assert "Authorization" not in server.requests[0].headers


def test_this_machine_is_reached_without_a_proxy(tei, monkeypatch):
    """A proxy of the environment could not reach it; other hosts are asked through it."""
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


def test_a_proxy_that_cannot_be_used_is_told_without_its_password(monkeypatch):
    """Its URL may hold one."""
    monkeypatch.setenv("ALL_PROXY", f"gopher://user:{SECRET}@proxy")
    with RemoteScorer("tei+http://far.example") as scorer:
        error = fails_soon(scorer, RemoteError, "Cannot create an HTTP client for http://far.example .*proxies")
    assert SECRET not in everything_of(error)


# Threads, tasks, processes


async def test_the_event_loop_stays_free(tei, scorer):
    """While the server computes, other tasks run: here one that lets the server go on."""
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
    """One pool of connections serves them all."""

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


@pytest.mark.parametrize("way", ["future", "task"])
def test_cancelling_drops_the_requests(tei, scorer, way):
    """The connection is closed, so that a server can stop computing."""
    tei.fault = never_answers

    async def give_up():
        task = asyncio.create_task(scorer.ascore(QUERY, PASSAGES))
        assert await asyncio.to_thread(tei.arrived.acquire, timeout=SOON_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError, match=r"^$"):
            await task

    if way == "task":
        asyncio.run(give_up())
    else:
        future = scorer.begin([(QUERY, PASSAGES)])
        assert tei.arrived.acquire(timeout=SOON_S)
        assert future.cancel()
        with pytest.raises(CancelledError, match=r"^$"):
            future.result()
    assert tei.gone.wait(SOON_S)


def test_cancelled_requests_leave_the_pool_usable(tei):
    """Whatever a call was doing when it was given up, the next finds a free place."""
    tei.fault = late(0.02)
    with RemoteScorer(tei.url, max_parallel_requests=2, max_passages_per_request=2) as scorer:
        for number in range(100):
            future = scorer.begin([(QUERY, PASSAGES)])
            time.sleep(number * 0.0005)
            future.cancel()
        tei.fault = None
        np.testing.assert_array_equal(scorer.begin([(QUERY, PASSAGES)]).result(timeout=SOON_S)[0].logits, EXPECTED)


def test_close_ends_the_thread_and_what_waits(tei):
    """Calls under way and later ones end with an error of their own."""
    tei.fault = never_answers
    scorer = RemoteScorer(tei.url)
    waiting = [scorer.begin([(QUERY, PASSAGES)]) for _ in range(20)]
    scorer.close()
    for future in waiting:
        with pytest.raises(ClosedError, match="closed while a call waited"):
            future.result(timeout=SOON_S)
    assert not threads_of_scorers()
    with pytest.raises(ClosedError, match="The scorer was closed; create a new RemoteScorer"):
        scorer.score(QUERY, PASSAGES)
    scorer.close()


def test_a_call_that_was_given_up_leaves_no_complaint(tei, caplog):
    """Nothing is logged because nobody looked at the error of a call that was cancelled and then closed over."""
    tei.fault = never_answers
    for _ in range(20):
        with RemoteScorer(tei.url) as scorer:
            future = scorer.begin([(QUERY, PASSAGES)])
            assert tei.arrived.acquire(timeout=SOON_S)
            future.cancel()
        del future
    gc.collect()
    assert not caplog.records


def test_calls_that_race_with_close_end(tei):
    """Whenever a call comes, it gets scores or an error, and nobody waits for ever."""
    for _ in range(20):
        scorer = RemoteScorer(tei.url)
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(scorer.score, QUERY, PASSAGES) for _ in range(8)]
            scorer.close()
            errors = [call.exception(timeout=SOON_S) for call in calls]
        assert all(error is None or isinstance(error, ClosedError) for error in errors)
    assert not threads_of_scorers()


def test_the_thread_ends_with_the_last_user(tei):
    """It keeps no scorer alive, and neither does the error of a call."""
    scorer = RemoteScorer(tei.url)
    scorer.score(QUERY, PASSAGES)
    assert len(threads_of_scorers()) == 1
    tei.fault = says(400)
    error = scorer.begin([(QUERY, PASSAGES)]).exception(timeout=SOON_S)
    assert isinstance(error, RemoteStatusError)
    gone = weakref.ref(scorer)
    del scorer
    gc.collect()
    assert gone() is None
    assert not threads_of_scorers()


def test_a_call_keeps_its_scorer(tei):
    """Who holds only the future still gets the scores; then the thread ends."""
    tei.fault = late(0.2)
    future = RemoteScorer(tei.url).begin([(QUERY, PASSAGES)])
    gc.collect()
    np.testing.assert_array_equal(future.result(timeout=SOON_S)[0].logits, EXPECTED)
    for thread in threads_of_scorers():
        thread.join(SOON_S)
    assert not threads_of_scorers()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_starts_anew(tei, scorer):
    """The thread of the parent does not exist in a child, and what the child does leaves the parent's alone."""
    scorer.score(QUERY, PASSAGES)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        right = np.array_equal(scorer.score(QUERY, PASSAGES), EXPECTED)
        scorer.close()
        gc.collect()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(scorer.begin([(QUERY, PASSAGES)]).result(timeout=SOON_S)[0].logits, EXPECTED)


def test_a_program_ends_with_calls_under_way(tei):
    """Nobody has to close: neither an idle nor a busy scorer keeps a program from ending."""
    tei.faults.extend([None, never_answers])
    code = (
        "import sys\n"
        "from marcorank.remote import RemoteScorer\n"
        "scorer = RemoteScorer(sys.argv[1], timeout_s=600)\n"
        "print(scorer.score('a', ['a']).tolist())\n"
        "future = scorer.begin([('a', ['a'])])\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, tei.url]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as program:  # noqa: S603
        assert all(tei.arrived.acquire(timeout=60) for _ in range(2))
        stdout, stderr = program.communicate(timeout=60)
    assert (program.returncode, stdout, stderr) == (0, "[5.0]\n", "")


# Settings


def test_settings_survive_every_way(tei):
    """Pickle, deepcopy, and a dict that is plain JSON; equal settings are equal scorers."""
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
    """What cannot be used is told when the scorer is made."""
    with pytest.raises(InvalidInputError, match=message):
        RemoteScorer(NOBODY, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": NOBODY, "api_key": "k", "x": 1}, "Unknown settings 'api_key', 'x'; expected some of dialect, max"),
        ({"dialect": "tei"}, "'url' is missing; expected some of dialect, max"),
    ],
)
def test_a_dict_with_other_settings_is_refused(settings, message):
    """A key in a file of settings is one of them."""
    with pytest.raises(InvalidInputError, match=message):
        RemoteScorer.from_dict(settings)


def test_a_remote_scorer_is_a_scorer(tei, scorer):
    """`Reranker` takes it as it takes any other."""
    assert isinstance(scorer, Scorer)
    ranking = Reranker(scorer).rank(QUERY, PASSAGES, top_n=2)
    assert [result.text for result in ranking] == ["a file that I open", "open a file"]
    assert ranking.model == tei.base


def test_httpx_comes_with_the_first_use_and_its_absence_is_told():
    """Importing and making a scorer needs no HTTP client; without one the error has the pip command."""
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
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert (ended.stdout, ended.stderr) == ("Scoring on a server needs httpx: pip install 'marcorank[remote]'\n", "")


def test_the_kinds_of_servers_are_those_of_the_tests():
    """A new one is to be tried as all others are."""
    assert set(DIALECTS) == set(PATHS)
