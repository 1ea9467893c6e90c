"""The server's endpoints without Ray: failing models, health, API keys, odd requests."""

from __future__ import annotations

import hashlib
import json
import logging
import threading

import pytest
from starlette.requests import Request

from marcorank import Reranker, ScoreError
from marcorank.ray import ServeSettings
from marcorank.remote import DIALECTS
from marcorank.serving.endpoints import Endpoints
from marcorank.serving.requests import read_request
from marcorank.testing import WordOverlapScorer
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
    assert caplog.text.count("Request to") == 1  # in a minute


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


async def test_what_a_remote_model_does_not_tell_is_not_made_up():
    """A vendor returns no logits, so that asking for them is an error, and does not say what was truncated."""
    with remote_server("cohere") as server, Reranker(f"{server.url}#m", activation="sigmoid") as reranker:
        endpoints = Endpoints(ServeSettings(), reranker)
        body = {"query": "open a file", "texts": ["open"]}
        answer = await send(endpoints, "POST", "/rerank", json.dumps(body).encode())
        assert json.loads(answer.body)[0]["truncated"] is None
        for field, message in (
            ({"raw_scores": True}, "probabilities only; leave out `raw_scores` and `use_activation`"),
            ({"use_activation": False}, "probabilities only; leave out `raw_scores` and `use_activation`"),
            ({"truncate": False}, "does not report truncation; leave out `truncate`"),
            ({"truncation": False}, "does not report truncation; leave out `truncate`"),
        ):
            answer = await send(endpoints, "POST", "/rerank", json.dumps({**body, **field}).encode())
            assert answer.status_code == 422
            assert message in json.loads(answer.body)["error"]
        documents = {"query": "open a file", "documents": ["open"]}
        assert (await send(endpoints, "POST", "/rerank", json.dumps(documents).encode())).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "found"),
    [
        ({"texts": ["\ud83d"], "return_text": True}, 200, rb'"\ud83d"'),
        ({"texts": ["a"], "raw_scores": "\ud83d"}, 422, rb"\"?\""),
    ],
)
async def test_lone_surrogates_are_returned_as_sent(body, status, found):
    """JSON can carry them, UTF-8 cannot; a message that quotes one shows a question mark."""

    class Constant:
        def score(self, query, passages):
            return [0.0] * len(passages)

    endpoints = Endpoints(ServeSettings(), Reranker(Constant(), activation="sigmoid"))
    response = await send(endpoints, "POST", "/rerank", json.dumps({"query": "q", **body}).encode())
    assert response.status_code == status
    assert found in response.body


async def rerank(body, path="/rerank", **settings):
    """Return status and body of the response to a rerank request."""
    endpoints = Endpoints(ServeSettings(**settings), Reranker(WordOverlapScorer(), activation="sigmoid"))
    response = await send(endpoints, "POST", path, json.dumps({"query": "open a file", **body}).encode())
    return response.status_code, json.loads(response.body)


TITLED = [{"title": "a list", "text": "it"}, {"title": "open a file", "text": "it"}, {"text": "a file"}]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_rank_fields_name_what_is_read_of_a_document(path):
    """Documents that differ only in their title do not tie; the fields are read in their order, if there."""
    body = {"documents": TITLED, "rank_fields": ["title", "text"], "return_documents": True}
    status, answer = await rerank(body, path)
    assert status == 200
    assert [one["index"] for one in answer["results"]] == [1, 2, 0]
    texts = [one["document"]["text"] for one in answer["results"]]
    assert texts == ["open a file\nit", "a file", "a list\nit"]
    without = (await rerank({"documents": TITLED}, path))[1]["results"]
    assert [one["index"] for one in without] == [2, 0, 1]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"texts": ["a", "open a", "open a file"]}),
        ("/v1/rerank", {"documents": ["a", "open a", "open a file"]}),
    ],
)
@pytest.mark.parametrize("name", ["top_n", "top_k"])
async def test_the_number_of_results_is_limited_in_every_format(path, body, name):
    """Cohere, Jina and vLLM call it `top_n`, Voyage `top_k`; in the format of TEI either works."""
    status, answer = await rerank({**body, name: 2}, path)
    results = answer if isinstance(answer, list) else answer["results"]
    assert status == 200
    assert [one["index"] for one in results] == [2, 1]


@pytest.mark.parametrize(
    ("path", "name", "key"), [("/rerank", "texts", "score"), ("/v1/rerank", "documents", "relevance_score")]
)
async def test_a_response_has_what_the_model_read(path, name, key):
    """Each result has a number on one scale; what only the skimming model read has none, and is left out."""
    cascade = Reranker(WordOverlapScorer(), skim=WordOverlapScorer(), skim_keep=2, activation="sigmoid")
    endpoints = Endpoints(ServeSettings(), cascade)
    body = {"query": "open a file", name: ["a", "open a", "open a file", "nothing"]}
    for more in ({}, {"top_n": 2}, {"raw_scores": True}):
        answer = await send(endpoints, "POST", path, json.dumps({**body, **more}).encode())
        results = json.loads(answer.body)
        results = results if isinstance(results, list) else results["results"]
        assert [one["index"] for one in results] == [2, 1]
        assert [one[key] > 0.5 for one in results] == [True, True]
    answer = await send(endpoints, "POST", path, json.dumps({**body, "top_n": 3}).encode())
    assert answer.status_code == 422
    assert "`top_n` is 3 and `skim_keep` 2; expected at least as many" in json.loads(answer.body)["error"]


async def test_near_duplicates_in_a_request_make_room_for_the_next():
    """`top_n` results come back; a blend goes by the order of the passages."""
    texts = ["open a file in the editor", "Open a file in the  editor", "close a file", "nothing", "open a file"]
    for settings in ({"max_similarity": 0.9}, {"max_similarity": 0.9, "blend": 0.9}):
        reranker = Reranker(WordOverlapScorer(), activation="sigmoid", **settings)
        endpoints = Endpoints(ServeSettings(), reranker)
        body = {"query": "open a file", "texts": texts, "top_n": 3}
        answer = await send(endpoints, "POST", "/rerank", json.dumps(body).encode())
        expected = reranker.rank("open a file", texts, top_n=3)
        assert [one["index"] for one in json.loads(answer.body)] == [result.index for result in expected]
        assert 1 not in [one["index"] for one in json.loads(answer.body)]
        assert len(expected) == 3


async def test_a_skimming_model_that_fails_is_not_healthy():
    """Requests of few passages would not notice."""
    cascade = Reranker(WordOverlapScorer(), skim=Failing(), activation="sigmoid")
    assert (await send(Endpoints(ServeSettings(), cascade), "GET", "/health")).status_code == 503


LONG = "word " * 600


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/rerank", {"texts": ["how do I", LONG], "top_n": 1}, "texts"),
        ("/v1/rerank", {"documents": ["how do I", LONG], "truncation": False}, "documents"),
        ("/v2/rerank", {"documents": ["how do I", LONG], "truncate": False, "top_n": 1}, "documents"),
    ],
)
async def test_long_texts_are_refused_if_they_must_not_be_truncated(path, body, field):
    """In either format, and also if the text would not be among the first `top_n`."""
    endpoints = Endpoints(ServeSettings(), Reranker("bundled", activation="sigmoid"))
    response = await send(endpoints, "POST", path, json.dumps({"query": "how do I", **body}).encode())
    assert response.status_code == 413
    assert f"`{field}[1]` with the query is longer than the 512 tokens" in json.loads(response.body)["error"]
    body = {**body, "truncate": True, "truncation": True}
    response = await send(endpoints, "POST", path, json.dumps({"query": "how do I", **body}).encode())
    assert response.status_code == 200


async def test_a_server_can_truncate_for_clients_of_tei_that_do_not_ask():
    """Such as LlamaIndex' postprocessor; a request that says so decides itself."""
    endpoints = Endpoints(ServeSettings(auto_truncate=True), Reranker("bundled", activation="sigmoid"))
    for more, status in (({}, 200), ({"truncate": True}, 200), ({"truncate": False}, 413)):
        body = json.dumps({"query": "how do I", "texts": [LONG], **more}).encode()
        assert (await send(endpoints, "POST", "/rerank", body)).status_code == status
    assert json.loads((await send(endpoints, "GET", "/info")).body)["auto_truncate"] is True


@pytest.mark.parametrize("documents", ["texts", "documents"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"truncate_prompt_tokens": 100},
            "`truncate_prompt_tokens` is 100; this server truncates texts only at the 512",
        ),
        ({"truncate_prompt_tokens": 0}, "`truncate_prompt_tokens` is 0; expected a whole number of at least 1"),
        ({"max_tokens_per_doc": 100}, "`max_tokens_per_doc` is 100; this server truncates"),
        ({"max_tokens_per_query": 100}, "`max_tokens_per_query` is 100; this server truncates"),
        ({"truncation_side": "left"}, "`truncation_side` is \"left\"; expected 'right'"),
        ({"truncation_direction": "Left"}, "`truncation_direction` is \"Left\"; expected 'right'"),
        (
            {"max_chunks_per_doc": 10},
            "`max_chunks_per_doc` is not supported by this server; leave it out. Supported are",
        ),
        ({"instruction": "Be strict"}, "`instruction` is not supported"),
        ({"return_text": 1}, "`return_text` is 1; expected true or false"),
        ({"top_n": 1, "top_k": 2}, "`top_n` is 1 and `top_k` is 2; send one of them"),
        ({"truncate": True, "truncation": False}, "`truncate` is true and `truncation` is false"),
        ({"raw_scores": True, "use_activation": True}, "the opposite of `raw_scores`, true"),
        ({"rank_fields": "title"}, '`rank_fields` is "title"; expected a list of names'),
        ({"rank_fields": []}, "`rank_fields` is []; expected a list of names"),
        ({"rank_fields": ["a", "b", "a"]}, '`rank_fields` is ["a", "b", "a"]; expected each name once'),
        ({"rank_fields": list(map(str, range(33)))}, "`rank_fields` has 33 names; expected at most 32"),
    ],
)
async def test_no_field_that_changes_results_is_ignored(documents, fields, message):
    """It is refused by name, in the format of TEI as in that of Cohere."""
    status, answer = await rerank({documents: ["a"], **fields})
    assert status == 422
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"texts": ["a"], "documents": ["b"]}, "The body has `texts` and `documents`; send one of them"),
        ({"documents": TITLED, "rank_fields": ["title"]}, "`documents[2]` is "),
        (
            {"documents": [{"text": "a", "price": 3}], "rank_fields": ["text", "price"]},
            "object with a `text` or `price`",
        ),
    ],
)
async def test_documents_that_cannot_be_read_are_refused(body, message):
    """By index, with what was expected."""
    status, answer = await rerank(body)
    assert status == 422
    assert message in answer["error"]


async def test_a_model_that_is_not_served_is_refused_in_every_format():
    """Also in that of TEI, whose clients normally name none."""
    for name in ("texts", "documents"):
        assert (await rerank({name: ["a"], "model": "gpt"}))[0] == 404
        assert (await rerank({name: ["a"], "model": "bundled"}))[0] == 200


@pytest.mark.parametrize("fields", [{"x" * 100_000: 1}, {"model": "x" * 100_000}, {"rank_fields": ["x" * 100_000]}])
async def test_messages_repeat_what_is_wrong_only_in_part(fields):
    """However long it is."""
    status, answer = await rerank({"documents": [{"text": "a"}], **fields})
    assert status in {404, 422}
    assert len(answer["error"]) < 1000


async def test_an_unknown_path_is_repeated_only_in_part():
    """However long it is."""
    endpoints = Endpoints(ServeSettings(), Reranker(WordOverlapScorer(), activation="sigmoid"))
    response = await send(endpoints, "GET", "/" + "x" * 50_000)
    assert response.status_code == 404
    assert len(response.body) < 1000


@pytest.mark.parametrize("long_passages", ["truncate", "windows"])
async def test_texts_that_fit_are_ranked_if_they_must_not_be_truncated(long_passages):
    """Local models always report truncation."""
    endpoints = Endpoints(
        ServeSettings(), Reranker("bundled", activation="sigmoid", long_passages=long_passages, cache_size=10)
    )
    body = json.dumps({"query": "how do I", "texts": ["open a file", ""], "truncate": False}).encode()
    for _ in range(2):
        assert (await send(endpoints, "POST", "/rerank", body)).status_code == 200


async def test_fields_that_change_no_results_are_allowed():
    """Null stands for the default, as in all of these APIs, and limits above the model's have no effect."""
    body = {
        "user": "u",
        "priority": 1,
        "top_k": None,
        "instruction": None,
        "rank_fields": None,
        "truncation_side": "right",
    }
    limits = {"max_tokens_per_doc": 512, "max_tokens_per_query": 4096, "truncate_prompt_tokens": -1}
    assert (await rerank({"documents": ["a"], "texts": None, **body, **limits}))[0] == 200


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_requests_of_every_dialect_are_understood(dialect):
    """Each field that `RemoteScorer` sends to any kind of server is supported here."""
    spoken = DIALECTS[dialect]
    body = spoken.request_body("open a file", ["a", "open a file"], None if spoken.model == "single" else "bundled")
    status, answer = await rerank(body, spoken.path)
    results = answer if isinstance(answer, list) else answer["results"]
    assert status == 200
    assert [one["index"] for one in results] == [1, 0]


async def test_a_large_body_is_read_in_another_thread(monkeypatch):
    """So that other requests, and probes, are answered meanwhile."""
    threads = []

    def read(*args, **settings):
        threads.append(threading.current_thread() is threading.main_thread())
        return read_request(*args, **settings)

    monkeypatch.setattr("marcorank.serving.endpoints.read_request", read)
    for text in ("a", "a " * 40_000):
        assert (await rerank({"texts": [text]}))[0] == 200
    assert threads == [True, False]


async def test_nothing_is_logged_about_a_client_that_disconnects(caplog):
    """A broken upload is no error of the server."""

    async def receive():
        return {"type": "http.disconnect"}

    endpoints = Endpoints(ServeSettings(), Reranker(Failing(), activation="sigmoid"))
    scope = {"type": "http", "method": "POST", "path": "/rerank", "headers": []}
    await endpoints(Request(scope, receive=receive))
    assert not caplog.records
