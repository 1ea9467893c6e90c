"""Rerankers and adapters with a failing server: no wrong ranking, no unmarked passthrough, no hang."""

from __future__ import annotations

import asyncio
import json
import pickle
import socket
import threading
import traceback

import pytest
from langchain_core.documents import Document

import marcorank._models.loaded
import marcorank.langchain
import marcorank.llama_index
from marcorank import InvalidInputError, RemoteError, RemoteProtocolError, Reranker, RerankTimeoutError
from marcorank.remote import RemoteScorer
from marcorank.testing import WordOverlapScorer
from patience import PATIENCE_S
from random_models import QUERY, passages
from remote_server import dribbles, fails_at_random, never_answers, remote_server, responds
from untrusted_server import untrusted_server

PASSAGES = passages(12, seed=3)
REQUESTS = 1000


class Broken:
    """A scorer that always fails."""

    def score(self, query, passages):
        raise RuntimeError("out of memory")


@pytest.fixture
def server():
    with remote_server("tei") as running:
        yield running


@pytest.fixture
def nobody():
    """A URL at which no server listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"tei+http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_thousand_requests_to_a_server_that_fails_at_random(server, attempts):
    """Each ranking is right, or passed through and marked so, sync and async; none hangs."""
    requests = [(f"{QUERY} {number % 50}", PASSAGES[number % 5 : number % 5 + 6]) for number in range(REQUESTS)]
    right = [Reranker(WordOverlapScorer()).rank(*request) for request in requests]
    server.fault = fails_at_random(0.3, seed=5)
    scorer = RemoteScorer(f"{server.url}#word-overlap", timeout_s=1.0, max_attempts=attempts, max_parallel_requests=32)
    reranker = Reranker(scorer, on_error="passthrough", timeout_s=60)
    found: dict[int, object] = {}

    def in_thread(part):
        for index in part:
            found[index] = reranker.rank(*requests[index])

    async def in_tasks(part):
        rankings = await asyncio.gather(*(reranker.arank(*requests[index]) for index in part))
        found.update(zip(part, rankings, strict=True))

    threads = [
        threading.Thread(target=in_thread, args=(range(start, REQUESTS // 2, 8),), daemon=True) for start in range(8)
    ]
    for thread in threads:
        thread.start()
    asyncio.run(in_tasks(range(REQUESTS // 2, REQUESTS)))
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    passed = 0
    for index, (_, texts) in enumerate(requests):
        ranking = found[index]
        if ranking.status is None:
            assert ranking.results == right[index].results
        else:
            passed += 1
            assert ranking.status.outcome == "passthrough"
            assert [(result.text, result.score) for result in ranking] == [(text, None) for text in texts]
    # 30 % of single attempts, 2.7 % of three in a row.
    assert (150 < passed < 450) if attempts == 1 else (0 < passed < 90)
    scorer.close()


@pytest.mark.parametrize("fault", [never_answers, dribbles], ids=["silent", "a byte at a time"])
@pytest.mark.parametrize("way", ["rank", "arank"])
def test_timeout_s_ends_a_call_to_a_dead_server(server, fault, way):
    """After `timeout_s` the ranking is the first-stage order, however the server fails to respond."""
    server.fault = fault
    reranker = Reranker(server.url, on_error="passthrough", timeout_s=0.5)
    ranking = reranker.rank(QUERY, PASSAGES) if way == "rank" else asyncio.run(reranker.arank(QUERY, PASSAGES))
    assert ranking.status.error == "RerankTimeoutError"
    # The call ended during the first of the three attempts, each of which may take 10 s.
    assert len(server.requests) <= 1


def test_a_refused_connection_passes_through_in_both_adapters(nobody):
    """The error is in the metadata."""
    settings = {"on_error": "passthrough", "timeout_s": 5.0, "top_n": 1}
    documents = [Document(text) for text in PASSAGES]
    for found in (
        marcorank.langchain.MarcoRerank(model_name=nobody, **settings).compress_documents(documents, QUERY),
        asyncio.run(
            marcorank.langchain.MarcoRerank(model_name=nobody, **settings).acompress_documents(documents, QUERY)
        ),
    ):
        assert [document.page_content for document in found] == PASSAGES[:1]
        assert found[0].metadata["rerank_error"] == "RemoteError"
    with pytest.raises(RemoteError, match=r"The request to .* failed"):
        Reranker(nobody).rank(QUERY, PASSAGES)


def test_a_fallback_ranks_if_the_server_is_down(nobody):
    """Here the bundled model."""
    ranking = Reranker(nobody, fallback="bundled", timeout_s=60).rank(QUERY, PASSAGES)
    expected = Reranker("bundled").rank(QUERY, PASSAGES)
    assert (ranking.results, ranking.model) == (expected.results, "bundled")
    assert (ranking.status.outcome, ranking.status.error) == ("fallback", "RemoteError")


def test_timeout_s_includes_all_attempts(server):
    """Retries and `Retry-After` count."""
    server.fault = responds(429, Retry_After="20")
    with pytest.raises(RerankTimeoutError, match="did not answer within"):
        Reranker(server.url, timeout_s=0.3).rank(QUERY, PASSAGES)


def test_a_timed_out_call_closes_its_connection(server):
    """The server can then stop computing."""
    server.fault = never_answers
    # The limit of an attempt, at which the connection would be closed in any case, is further away than the wait.
    with Reranker(RemoteScorer(server.url, timeout_s=2 * PATIENCE_S), timeout_s=2.0) as reranker:
        with pytest.raises(RerankTimeoutError, match="did not answer within"):
            reranker.rank(QUERY, PASSAGES)
        assert server.gone.wait(PATIENCE_S)


def test_settings_with_a_server_round_trip_without_the_key(server):
    """to_dict, JSON, pickle and repr of reranker and adapters contain the server but not the key."""
    server.key = "s3cret"
    reranker = Reranker(server.url, token="s3cret")
    lang = marcorank.langchain.MarcoRerank(model_name=server.url, token="s3cret")
    llama = marcorank.llama_index.MarcoRerank(model=server.url, token="s3cret")
    assert reranker.rank(QUERY, PASSAGES)[0].score == lang.core.rank(QUERY, PASSAGES)[0].score
    shown = [repr(reranker), json.dumps(reranker.to_dict()), lang.model_dump_json(), repr(lang), llama.to_json()]
    shown += [str(pickle.dumps(one)) for one in (reranker, lang, llama)]
    assert not any("s3cret" in text for text in shown)
    for again in (Reranker.from_dict(json.loads(json.dumps(reranker.to_dict()))), pickle.loads(pickle.dumps(reranker))):  # noqa: S301
        assert again.to_dict() == reranker.to_dict()
        with pytest.raises(RemoteError, match="401") as refused:
            again.rank(QUERY, PASSAGES)
        assert "s3cret" not in str(refused.value)


def test_workers_read_the_key_from_the_environment(server, monkeypatch):
    """A pickle does not contain it."""
    server.key = "s3cret"
    again = pickle.loads(pickle.dumps(Reranker(server.url, token="s3cret")))  # noqa: S301
    monkeypatch.setenv("MARCORANK_API_KEY", "s3cret")
    assert len(again.rank(QUERY, PASSAGES)) == len(PASSAGES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 256}, "`max_length` is 256, which has no effect on the server 'tei"),
        ({"device": "cpu"}, "`device` is 'cpu', which has no effect on the server"),
        ({"precision": "int8"}, "`precision` is 'int8', which has no effect on the server"),
    ],
)
def test_settings_of_local_models_are_rejected(server, settings, message):
    """They would have no effect on a server."""
    with pytest.raises(InvalidInputError, match=message):
        Reranker(server.url, **settings)


def test_max_passages_per_request_is_a_setting_everywhere(server):
    """Core, fallback, dicts and both adapters pass it to the server."""
    texts = [f"passage {number}" for number in range(12)]
    limit = {"max_passages_per_request": 5}
    core = Reranker(server.url, **limit)
    rerankers = [
        core,
        Reranker.from_dict(json.loads(json.dumps(core.to_dict()))),
        Reranker(Broken(), fallback=server.url, **limit),
        Reranker("bundled", fallback=server.url, **limit).fallback,
        marcorank.langchain.MarcoRerank(model_name=server.url, **limit).core,
        marcorank.llama_index.MarcoRerank(model=server.url, **limit).core,
    ]
    for reranker in rerankers:
        assert len(reranker.rank(QUERY, texts)) == 12
        assert sorted(len(request.body["texts"]) for request in server.requests) == [2, 5, 5]
        server.requests.clear()
    with pytest.raises(
        InvalidInputError, match="`max_passages_per_request` is 5, which has no effect on the local model"
    ):
        Reranker("bundled", **limit)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("http://127.0.0.1:8080", "tei"),
        ("tei+ftp://127.0.0.1:8080", "expected http or https"),
        ("tei+http://user:hunter2@127.0.0.1:8080", "MARCORANK_API_KEY"),
    ],
)
def test_invalid_addresses_are_rejected(name, message):
    """They raise an error when the reranker is created, which contains no password."""
    with pytest.raises(InvalidInputError, match=message) as refused:
        Reranker(name)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("settings", [{"threads": 2}, {"device": "cpu"}, {}])
@pytest.mark.parametrize("name", ["tei+http://user:s3cret@host", "tei+https://host?key=s3cret"])
def test_no_error_shows_a_secret_in_an_address(name, settings):
    """Whatever else is invalid."""
    with pytest.raises(InvalidInputError, match="MARCORANK_API_KEY") as refused:
        Reranker(name, **settings)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("answer", ["hello Bearer KEY", '[{"auth": "KEY"}]', '{"results": "KEY"}'])
def test_a_key_repeated_by_the_server_is_redacted(server, answer):
    """Neither the message nor the error's attributes contain it."""
    key = "s3cret-" + "key"
    content = answer.replace("KEY", key).encode()
    server.fault = lambda handler, results: handler.send(200, content, {}) or True
    with pytest.raises(RemoteProtocolError, match=r"\[key\]") as refused:
        Reranker(server.url, token=key).rank(QUERY, PASSAGES)
    kept = refused.value.__context__ or refused.value
    assert key not in "".join(traceback.format_exception(refused.value)) + repr(vars(kept))


def test_a_remote_reranker_does_not_wait_for_a_model_that_loads(server):
    """Creating a reranker never waits for the weights of another."""
    with marcorank._models.loaded.loaded._loading._lock:
        assert Reranker(server.url).score_kind == "logit"


def test_scores_are_cached_for_servers_too(server):
    """`cache_size` works as for local models."""
    reranker = Reranker(server.url, cache_size=100)
    first = reranker.rank(QUERY, PASSAGES)
    assert reranker.rank(QUERY, PASSAGES) == first
    assert len(server.requests) == 1


def test_rerankers_of_one_server_share_its_connections(server):
    """Rerankers with the same URL and key share one pool."""
    rerankers = [Reranker(server.url) for _ in range(5)]
    for reranker in rerankers:
        reranker.rank(QUERY, PASSAGES)
    assert server.connections == 1
    rerankers[0].close()
    assert len(rerankers[1].rank(QUERY, PASSAGES)) == len(PASSAGES)


def test_an_invalid_response_is_an_error(server):
    """Here HTML instead of JSON."""
    server.fault = lambda handler, results: handler.send(200, b"<html>", {"Content-Type": "text/html"}) or True
    with pytest.raises(RemoteProtocolError, match="which is not JSON"):
        Reranker(server.url).rank(QUERY, PASSAGES)


def test_a_certificate_that_nobody_signed_is_named_with_the_way_out(tmp_path, monkeypatch):
    """The message names SSL_CERT_FILE, and the variable does what the message says."""
    with untrusted_server(tmp_path) as (host, certificate):
        for path, message in ((None, r"certificate verify failed.*Set SSL_CERT_FILE to a file"), (certificate, "501")):
            if path is not None:
                monkeypatch.setenv("SSL_CERT_FILE", str(path))
            with (
                RemoteScorer(f"tei+https://{host}", max_attempts=1) as scorer,
                pytest.raises(RemoteError, match=message),
            ):
                scorer.score("query", ["passage"])
