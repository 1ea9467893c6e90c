"""The server's endpoints without Ray: failing models, health, API keys, odd requests."""

from __future__ import annotations

import hashlib
import json
import logging

import pytest
from starlette.requests import Request

from marcorank import Reranker, ScoreError
from marcorank.ray import ServeSettings
from marcorank.serving.endpoints import Endpoints
from remote_server import remote_server


async def send(endpoints, method, path, body=b"", headers=None):
    async def receive():
        return {"type": "http.request", "body": body}

    raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    return await endpoints(
        Request({"type": "http", "method": method, "path": path, "headers": raw_headers}, receive=receive)
    )


class Failing:
    """A scorer that always fails."""

    name = "failing"

    def score(self, query, passages):
        raise RuntimeError("out of memory at 0x7f")


class Overflowing:
    """A scorer that returns NaN."""

    name = "overflowing"

    def score(self, query, passages):
        return [float("nan")] * len(passages)


@pytest.mark.parametrize("scorer", [Failing(), Overflowing()])
async def test_a_failing_model_is_a_server_error(scorer, caplog):
    """Clients get 424, as from TEI, without the reason, which is in the log; /health returns 503."""
    endpoints = Endpoints(ServeSettings(), Reranker(scorer, activation="sigmoid"))
    body = json.dumps({"query": "q", "texts": ["a"]}).encode()
    with caplog.at_level(logging.ERROR):
        answer = await send(endpoints, "POST", "/rerank", body)
    assert answer.status_code == 424
    assert json.loads(answer.body)["error_type"] == "Backend"
    assert b"0x7f" not in answer.body
    assert "Traceback" in caplog.text
    assert (await send(endpoints, "GET", "/health")).status_code == 503


async def test_the_health_check_raises_if_the_model_fails():
    """Ray then replaces the replica."""
    endpoints = Endpoints(ServeSettings(), Reranker(Failing(), activation="sigmoid"))
    with pytest.raises(ScoreError, match="raised RuntimeError: out of memory"):
        await endpoints.check_health()


def test_a_replica_uses_as_many_threads_as_cpus():
    """Replicas on one node do not compete for cores, unless `threads` is set."""
    assert ServeSettings(num_cpus=3).reranker().to_dict()["threads"] == 3
    assert ServeSettings(num_cpus=0.5).reranker().to_dict()["threads"] == 1
    assert ServeSettings(num_cpus=3, threads=2).reranker().to_dict()["threads"] == 2


async def test_health_checks_are_not_cached():
    """A model that fails later is noticed, whatever the cache contains."""

    class Breaks:
        broken = False
        seen: tuple[str, ...] = ()

        def score(self, query, passages):
            if self.broken:
                raise RuntimeError("out of memory")
            self.seen += tuple(passages)
            return [0.0] * len(passages)

    scorer = Breaks()
    endpoints = Endpoints(ServeSettings(cache_size=100), Reranker(scorer, activation="sigmoid"))
    for _ in range(2):
        assert (await send(endpoints, "GET", "/health")).status_code == 200
    assert len(set(scorer.seen)) == 2
    scorer.broken = True
    assert (await send(endpoints, "GET", "/health")).status_code == 503


async def test_the_authorization_scheme_is_case_insensitive():
    """As in HTTP; anything but a bearer token is rejected, and so is one that is not ASCII."""
    digest = hashlib.sha256(b"K").hexdigest()
    endpoints = Endpoints(ServeSettings(api_key_sha256=digest), Reranker(Failing(), activation="sigmoid"))
    for header, status in (("bearer K", 200), ("Bearer K", 200), ("Basic K", 401), ("K", 401), ("Bearer \xff", 401)):
        assert (await send(endpoints, "GET", "/info", headers={"authorization": header})).status_code == status


def test_a_replica_can_use_a_remote_model():
    """Then `threads` is not set."""
    with remote_server() as server:
        assert ServeSettings(model=server.url).reranker().score("a b", ["a"]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"texts": ["\ud83d"], "return_text": True}, 200), ({"texts": ["a"], "raw_scores": "\ud83d"}, 422)],
)
async def test_lone_surrogates_are_returned_as_sent(body, status):
    """JSON can carry them, UTF-8 cannot."""

    class Constant:
        def score(self, query, passages):
            return [0.0] * len(passages)

    endpoints = Endpoints(ServeSettings(), Reranker(Constant(), activation="sigmoid"))
    response = await send(endpoints, "POST", "/rerank", json.dumps({"query": "q", **body}).encode())
    assert response.status_code == status
    assert b"\\ud83d" in response.body


async def test_nothing_is_logged_about_a_client_that_disconnects(caplog):
    """A broken upload is no error of the server."""

    async def receive():
        return {"type": "http.disconnect"}

    endpoints = Endpoints(ServeSettings(), Reranker(Failing(), activation="sigmoid"))
    scope = {"type": "http", "method": "POST", "path": "/rerank", "headers": []}
    await endpoints(Request(scope, receive=receive))
    assert not caplog.records
