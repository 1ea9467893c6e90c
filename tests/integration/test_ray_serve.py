"""The server on Ray: the formats of TEI and Cohere, errors, API keys, health, shared batches."""

from __future__ import annotations

import asyncio
import json
import math

import httpx
import pytest

from marcorank import Reranker
from patience import PATIENCE_S
from ray_server import local_server

QUERY = "how do I open a file?"
PASSAGES = [
    "open() returns a file object",
    "a list is mutable",
    "",
    "open() returns a file object",
    "Files are opened with open(), ünïcode and \U0001f600 included",
    "the with statement closes a file " * 20,
]
LONG = "word " * 600
KEY = "a-long-random-key"


@pytest.fixture(scope="module")
def server():
    with local_server(num_cpus=1, max_replicas=1, max_batch=40, max_body_bytes=100_000) as url:
        yield url


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture(scope="module")
def reranker():
    with Reranker("bundled", threads=1) as reranker:
        yield reranker


@pytest.fixture(scope="module")
def logits(reranker):
    return reranker.score(QUERY, PASSAGES).tolist()


def sigmoid(logit):
    return 1 / (1 + math.exp(-logit))


def scores_of(results, name):
    """Return the scores in input order, after checking that the results are sorted, best first."""
    scores = [one[name] for one in results]
    assert scores == sorted(scores, reverse=True)
    return [one[name] for one in sorted(results, key=lambda one: one["index"])]


@pytest.mark.parametrize("raw", [True, False])
def test_tei_scores_equal_those_of_the_reranker(client, logits, raw):
    """Logits, or their sigmoid, agree to 1e-4."""
    response = client.post("/rerank", json={"query": QUERY, "texts": PASSAGES, "raw_scores": raw})
    assert response.status_code == 200
    expected = logits if raw else [sigmoid(logit) for logit in logits]
    assert scores_of(response.json(), "score") == pytest.approx(expected, abs=1e-4)
    assert all(set(one) == {"index", "score", "truncated", "unknown_tokens"} for one in response.json())


@pytest.mark.parametrize(
    ("path", "payload", "raw"),
    [
        ("/v2/rerank", {}, False),
        ("/v1/rerank", {"raw_scores": True}, True),
        ("/rerank", {"model": None, "use_activation": False}, True),
    ],
)
def test_cohere_scores_equal_those_of_the_reranker(client, logits, path, payload, raw):
    """Sigmoids, or logits if they are requested as from infinity or vLLM, agree to 1e-4."""
    response = client.post(path, json={"query": QUERY, "documents": PASSAGES, **payload})
    assert response.status_code == 200
    expected = logits if raw else [sigmoid(logit) for logit in logits]
    assert scores_of(response.json()["results"], "relevance_score") == pytest.approx(expected, abs=1e-4)
    assert {"id", "object", "results", "usage", "meta", "model"} == set(response.json())


def test_texts_are_returned_on_request(client):
    """TEI has `return_text`, Cohere `return_documents`; documents can be objects, and `top_n` limits the results."""
    one = client.post("/rerank", json={"query": QUERY, "texts": PASSAGES, "return_text": True}).json()
    assert [PASSAGES[result["index"]] for result in one] == [result["text"] for result in one]
    documents = [{"text": passage, "title": "x"} for passage in PASSAGES]
    payload = {"query": QUERY, "documents": documents, "return_documents": True, "top_n": 2, "max_tokens_per_doc": 4096}
    two = client.post("/v2/rerank", json=payload).json()["results"]
    assert len(two) == 2
    assert [{"text": PASSAGES[result["index"]]} for result in two] == [result["document"] for result in two]


def test_unknown_tokens_are_reported_in_both_formats(client):
    texts = ["short", "a" * 101]
    found = client.post("/rerank", json={"query": QUERY, "texts": texts}).json()
    assert {one["index"]: one["unknown_tokens"] for one in found} == {0: 0, 1: 1}
    found = client.post("/v2/rerank", json={"query": QUERY, "documents": texts}).json()["results"]
    assert {one["index"]: one["unknown_tokens"] for one in found} == {0: 0, 1: 1}


def test_tei_texts_are_truncated_only_on_request(client):
    """TEI's clients get 413 unless they send `truncate`; results report truncation. Cohere always truncates."""
    payload = {"query": QUERY, "texts": ["short", LONG]}
    refused = client.post("/rerank", json=payload)
    assert refused.status_code == 413
    assert "`texts[1]` with the query is longer than the 512 tokens" in refused.json()["error"]
    allowed = client.post("/rerank", json={**payload, "truncate": True}).json()
    assert {one["index"]: one["truncated"] for one in allowed} == {0: False, 1: True}
    cohere = client.post("/v2/rerank", json={"query": LONG, "documents": ["short"]})
    assert cohere.status_code == 200
    assert client.post("/rerank", json={"query": LONG, "texts": ["short"]}).status_code == 413


@pytest.mark.parametrize(
    ("path", "content", "status", "kind", "message"),
    [
        ("/rerank", b"{", 400, "Validation", "The body is not valid JSON"),
        ("/rerank", b"\xff", 400, "Validation", "The body is not valid JSON"),
        ("/rerank", b"[" * 50_000, 400, "Validation", "The body is not valid JSON"),
        ("/rerank", b"[]", 422, "Validation", "The body is []; expected an object"),
        ("/rerank", b"{}", 422, "Validation", "The body has no `query`"),
        ("/rerank", {"query": "q"}, 422, "Validation", "has neither `texts` nor `documents`"),
        ("/v2/rerank", {"query": "q"}, 422, "Validation", "has neither `documents` nor `texts`"),
        ("/rerank", {"query": " ", "texts": ["a"]}, 422, "Validation", "`query` is "),
        ("/rerank", {"query": "q", "texts": "a"}, 422, "Validation", '`texts` is "a"; expected a list'),
        ("/rerank", {"query": "q", "texts": []}, 400, "Empty", "`texts` cannot be empty"),
        ("/rerank", {"query": "q", "texts": ["a", None]}, 422, "Validation", "`texts[1]` is null; expected a text"),
        ("/rerank", {"query": "q", "texts": [{"text": "a"}]}, 422, "Validation", "`texts[0]` is {"),
        ("/rerank", {"query": "q", "texts": ["a"] * 41}, 413, "Validation", "size 41 > maximum allowed batch size 40"),
        ("/rerank", {"query": "q", "texts": ["a"], "truncate": 1}, 422, "Validation", "`truncate` is 1; expected true"),
        (
            "/rerank",
            {"query": "q", "texts": ["a"], "truncation_direction": "Left"},
            422,
            "Validation",
            "only truncated at the end",
        ),
        ("/rerank", {"query": "q", "texts": ["a" * 100_000]}, 413, "Validation", "expected at most 100000"),
        ("/v2/rerank", {"query": "q", "documents": [{"title": "a"}]}, 422, "Validation", "an object with a `text`"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "top_n": 0}, 422, "Validation", "`top_n` is 0"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "max_tokens_per_doc": 9}, 422, "Validation", "512 tokens"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "model": 1}, 422, "Validation", "`model` is 1"),
        (
            "/v2/rerank",
            {"query": "q", "documents": ["a"], "model": "gpt"},
            404,
            "Validation",
            "this server serves 'bundled'",
        ),
        ("/rank", {}, 404, "Validation", "Unknown path /rank; expected one of /rerank"),
        ("/info", {}, 405, "Validation", "/info expects GET, not POST"),
    ],
)
def test_an_invalid_request_gets_an_error_with_the_reason(client, path, content, status, kind, message):
    """The status is TEI's, and the message is where clients of TEI and of Cohere look for it; never a traceback."""
    sent = {"content": content} if isinstance(content, bytes) else {"json": content}
    response = client.post(path, **sent)
    assert response.status_code == status
    body = response.json()
    assert body["error"] == body["message"]
    assert body["error_type"] == kind
    assert message in body["error"]


def test_info_and_health(client):
    """/info returns the limits, and a healthy server returns 200 at /health and /."""
    info = client.get("/info").json()
    assert info["model_id"] == "bundled"
    assert "reranker" in info["model_type"]
    assert (info["max_client_batch_size"], info["max_input_length"]) == (40, 512)
    assert client.get("/health").status_code == client.get("/").status_code == 200
    assert client.post("/v2/rerank", json={"query": "q", "documents": ["a"], "model": "bundled"}).status_code == 200


async def test_concurrent_requests_get_their_own_scores(server, reranker):
    """Each request gets the scores of its own query, the same as alone."""
    queries = [f"what is number {number}?" for number in range(40)]
    passages = [f"number {number} is {number * number}" for number in range(20)]
    async with httpx.AsyncClient(base_url=server, timeout=PATIENCE_S) as client:

        async def ask(query):
            response = await client.post("/rerank", json={"query": query, "texts": passages, "raw_scores": True})
            return scores_of(response.json(), "score")

        answers = await asyncio.gather(*map(ask, queries))
    for query, answer in zip(queries, answers, strict=True):
        assert answer == pytest.approx(reranker.score(query, passages).tolist(), abs=1e-4)


def test_a_small_request_does_not_wait_for_a_large_one(server):
    """A request with one passage returns while one with 40 long passages is computed."""

    async def both():
        async with httpx.AsyncClient(base_url=server, timeout=PATIENCE_S) as client:
            texts = [f"{number} {'long words ' * 200}" for number in range(40)]
            body = json.dumps({"query": QUERY, "texts": texts, "truncate": True}).encode()
            sent = asyncio.Event()

            async def content():
                yield body
                sent.set()

            large = asyncio.create_task(client.post("/rerank", content=content()))
            await sent.wait()
            small = await client.post("/rerank", json={"query": QUERY, "texts": ["short"]})
            first = "small" if not large.done() else "large"
            return first, small.status_code, (await large).status_code

    assert asyncio.run(both()) == ("small", 200, 200)


def test_the_api_key_is_required_if_one_is_set(server, monkeypatch):
    """Without the key there is 401, except for health; the application can have a route prefix."""
    from ray import serve

    from marcorank.ray import build_app

    monkeypatch.setenv("MARCORANK_SERVE_API_KEY", KEY)
    serve.run(build_app({"num_cpus": 0, "served_name": "house/reranker"}), name="locked", route_prefix="/locked")
    try:
        with httpx.Client(base_url=f"{server}/locked", timeout=PATIENCE_S) as client:
            payload = {"query": QUERY, "documents": ["a"], "model": "house/reranker"}
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": ""}):
                refused = client.post("/v2/rerank", json=payload, headers=header)
                assert refused.status_code == 401
                assert refused.headers["WWW-Authenticate"] == "Bearer"
                assert client.get("/info", headers=header).status_code == 401
            assert client.get("/health").status_code == 200
            key = {"Authorization": f"Bearer {KEY}"}
            assert client.post("/v2/rerank", json=payload, headers=key).status_code == 200
            assert client.get("/info", headers=key).json()["model_id"] == "house/reranker"
        assert KEY not in str(serve.status())
    finally:
        serve.delete("locked")


def test_app_reads_the_environment(monkeypatch):
    """`marcorank.ray:app` is built on access, and an invalid variable raises an error."""
    import marcorank.ray
    from marcorank import InvalidInputError

    monkeypatch.setenv("MARCORANK_MAX_ONGOING", "7")
    assert marcorank.ray.app._bound_deployment._deployment_config.max_ongoing_requests == 7
    monkeypatch.setenv("MARCORANK_MAX_ONGOING", "none")
    with pytest.raises(InvalidInputError, match="`MARCORANK_MAX_ONGOING` is 'none'"):
        _ = marcorank.ray.app
