"""`marcorank serve`: limits, back-pressure, readiness, metrics, stopping, several processes."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from marcorank import InvalidInputError, Reranker
from marcorank.cli import main
from marcorank.serving.process import ServerProcess
from marcorank.serving.running import _listen, serve
from marcorank.serving.settings import ProcessSettings
from remote_server import never_answers, remote_server, responds
from rerank_servers import TIMEOUT_S, server_command, server_thread

QUERY = "how do I open a file?"
PASSAGES = ["open() returns a file object", "a list is mutable", "", "the with statement closes a file " * 20]
BODY = {"query": QUERY, "texts": PASSAGES}
LONG = "word " * 600
KEY = "a-long-random-key"


@pytest.fixture(scope="module")
def server():
    # Of another program.
    environment = {"PROMETHEUS_MULTIPROC_DIR": "/nonexistent"}
    options = ("--threads", "1", "--max-batch", "40", "--max-body-bytes", "100000")
    with server_command(*options, environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
        yield client


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Gate:
    """A scorer whose calls wait until they are let through."""

    name = "gate"

    def __init__(self):
        self.arrived = threading.Semaphore(0)
        self.open = threading.Event()
        self.seen = []

    def score(self, query, passages):
        if passages == ["up"]:
            return [0.0]
        self.seen.append(query)
        self.arrived.release()
        assert self.open.wait(TIMEOUT_S)
        return [0.0] * len(passages)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


def gated(gate, **settings):
    """Return a server whose rankings wait at the gate."""
    return server_thread(Reranker(gate, activation="sigmoid"), **settings)


def post(server, query=QUERY, **more):
    return httpx.post(f"{server.url}/rerank", json={"query": query, "texts": ["a"]}, timeout=TIMEOUT_S, **more)


def metrics(url, **more):
    """Return the metrics by name and labels."""
    text = httpx.get(f"{url}/metrics", timeout=TIMEOUT_S, **more).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def until(condition):
    """Wait until a condition is true."""
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError(condition)


def test_both_formats_return_the_scores_of_the_reranker(client):
    """Their sigmoid, agreeing to 1e-4, best first."""
    with Reranker("bundled", activation="sigmoid", threads=1) as reranker:
        expected = reranker.rank(QUERY, PASSAGES)
    tei = client.post("/rerank", json=BODY).raise_for_status().json()
    cohere = client.post("/v2/rerank", json={"query": QUERY, "documents": PASSAGES}).raise_for_status().json()
    for results, name in ((tei, "score"), (cohere["results"], "relevance_score")):
        assert [one["index"] for one in results] == [one.index for one in expected]
        assert [one[name] for one in results] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert cohere["object"] == "rerank"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        ({"query": "q", "texts": ["a"] * 41}, 413),
        ({"query": "q", "texts": ["a" * 100_000]}, 413),
        ({"query": "q", "texts": [LONG]}, 413),
        ({"query": "q"}, 422),
        ({"query": "q", "texts": ["a"], "model": "gpt"}, 404),
    ],
)
def test_what_exceeds_a_limit_is_refused(client, body, status):
    """With the status of TEI, and the reason."""
    response = client.post("/rerank", **({"content": body} if isinstance(body, bytes) else {"json": body}))
    assert response.status_code == status
    assert response.json()["error"] == response.json()["message"] != ""


def test_without_the_key_only_probes_are_answered(gate, caplog):
    """Everything else gets 401, before its body is read; the key is in no log."""
    caplog.set_level(logging.DEBUG)
    gate.open.set()
    with (
        gated(gate, environment={"MARCORANK_SERVE_API_KEY": KEY}) as server,
        httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client,
    ):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            for method, path in (("POST", "/rerank"), ("POST", "/v2/rerank"), ("GET", "/info"), ("GET", "/metrics")):
                refused = client.request(method, path, headers=header, content=b"{")
                assert refused.status_code == 401
                assert refused.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/", "/health", "/ready"):
            assert client.get(path).status_code == 200
        key = {"Authorization": f"Bearer {KEY}"}
        assert client.post("/rerank", json=BODY, headers=key).status_code == 200
        assert metrics(server.url, headers=key)["marcorank_requests_total", "/rerank", "401"] == 3
        with Reranker(f"tei+{server.url}", token=KEY) as reranker:
            assert len(reranker.rank(QUERY, PASSAGES)) == len(PASSAGES)
    assert "POST /rerank 401 passages=- ms=" in caplog.text
    assert KEY not in caplog.text


def test_a_server_is_live_at_once_and_ready_when_its_model_is_loaded(gate):
    """Until then requests get 503, and may be sent again; so they do while it stops."""

    class Slow(Gate):
        def score(self, query, passages):
            assert self.open.wait(TIMEOUT_S)
            return [0.0] * len(passages)

    slow = Slow()
    with gated(slow, wait=False) as server:
        until(lambda: httpx.get(f"{server.url}/health").status_code == 200)
        for response in (httpx.get(f"{server.url}/ready"), post(server)):
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "1"
            assert "being loaded" in response.json()["error"]
        slow.open.set()
        assert server.opened.wait(TIMEOUT_S)
        assert httpx.get(f"{server.url}/ready").status_code == 200
        assert post(server).status_code == 200


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path, capfd):
    """With the reason and status 1, whether there is one process or several."""
    for workers in ("1", "2") if os.name == "posix" else ("1",):
        assert main(["serve", "--port", "0", "--model", str(tmp_path), "--workers", workers]) == 1
        assert f"marcorank: error: {tmp_path}" in capfd.readouterr().err.replace("'", "").replace("`", "")


def test_an_address_with_a_password_is_neither_served_nor_logged(capfd):
    """As a model, it is refused before anything is logged of it."""
    assert main(["serve", "--port", "0", "--model", f"tei+http://user:{KEY}@127.0.0.1"]) == 1
    shown = capfd.readouterr().err
    assert "password" in shown
    assert KEY not in shown


def test_a_key_on_the_command_line_is_refused(capsys):
    """With what to set instead; the key is not repeated."""
    for arguments in (["--api-key", KEY], [f"--api-key={KEY}"], ["--api-key"]):
        with pytest.raises(SystemExit, match="2"):
            main(["serve", *arguments])
        shown = capsys.readouterr().err
        assert (
            "the key is not an option, because everyone on the machine can see it: set MARCORANK_SERVE_API_KEY" in shown
        )
        assert KEY not in shown


def test_a_port_with_a_typo_is_an_error():
    """Two letters that changed places are enough in a short name."""
    with pytest.raises(InvalidInputError, match=r"`MARCORANK_PROT` is unknown\. Did you mean MARCORANK_PORT"):
        ProcessSettings.of({}, {"MARCORANK_PROT": "9000"})


def test_a_port_that_is_taken_is_an_error(server, capsys):
    """It says what to choose."""
    assert main(["serve", "--port", str(urlsplit(server.url).port)]) == 1
    assert re.search(
        r"error: Cannot listen on `--host` '127.0.0.1' and `--port` \d+: .*in use", capsys.readouterr().err
    )


def test_all_addresses_are_those_of_ipv4_too():
    """If the machine has both."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("has no IPv6")
    with _listen(ProcessSettings(host="::", port=0)) as listening:
        socket.create_connection(("127.0.0.1", listening.getsockname()[1]), TIMEOUT_S).close()


def test_a_full_queue_gets_429(gate, pool):
    """With Retry-After; requests that were accepted are answered."""
    with gated(gate, max_ongoing=1, max_queued=1) as server:
        accepted = [pool.submit(post, server) for _ in range(2)]
        until(lambda: metrics(server.url)["marcorank_queue_depth",] == 1)
        refused = post(server)
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["error"] == "The server has 2 requests already; send the request again."
        gate.open.set()
        assert [one.result().status_code for one in accepted] == [200, 200]
        assert metrics(server.url)["marcorank_queue_depth",] == 0


def test_a_request_ends_when_its_time_is_over(gate):
    """With 504; its place is free again."""
    with gated(gate, request_timeout_s=0.2, max_ongoing=1, max_queued=0) as server:
        for _ in range(2):
            late = post(server)
            assert late.status_code == 504
            assert late.json()["error"] == "The request was not ranked within 0.2 s."


def test_a_slow_body_gets_408(gate):
    """And the connection is closed."""
    with gated(gate, body_timeout_s=0.2) as server, connect(server) as slow:
        slow.sendall(b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        response = received(slow)
        assert response.startswith(b"HTTP/1.1 408 ")
        assert b"The body did not arrive within 0.2 s." in response


@pytest.mark.parametrize("requests", [0, 1])
def test_half_a_head_closes_the_connection(requests, gate):
    """When its time is over; also after another request."""
    with gated(gate, body_timeout_s=0.2) as server, connect(server) as slow:
        for _ in range(requests):
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert slow.recv(4096).startswith(b"HTTP/1.1 200 ")
        slow.sendall(b"POST /rerank HTTP/1.1\r\nHost: a\r\n")
        assert received(slow) == b""


def test_the_precision_is_that_of_the_loaded_model(client):
    """Not the setting, which is `auto`."""
    assert client.get("/info").json()["model_dtype"] == "int8"


def test_a_field_that_is_missing_or_misspelt_is_named(client):
    """With what was probably meant."""
    for body, expected in (
        ({"query": "q"}, "The body has neither `texts` nor `documents`."),
        ({"query": "q", "text": ["a"]}, "Did you mean 'texts'?"),
    ):
        assert expected in client.post("/rerank", json=body).json()["error"]


def test_the_image_is_healthy_on_the_port_that_is_set(server):
    """Its health check asks the server where `MARCORANK_PORT` says, and fails where nobody listens."""
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text("utf-8")
    _, *command = json.loads(re.search(r"(?m)^    CMD (\[.*\])$", dockerfile)[1])
    with socket.create_server(("127.0.0.1", 0)) as other:
        unused = other.getsockname()[1]
    for port, is_healthy in ((urlsplit(server.url).port, True), (unused, False)):
        environment = {**os.environ, "MARCORANK_PORT": str(port)}
        done = subprocess.run(  # noqa: S603 -- as Docker runs it
            [sys.executable, *command], env=environment, capture_output=True, timeout=TIMEOUT_S, check=False
        )
        assert (done.returncode == 0) is is_healthy


def test_probes_may_ask_for_the_head_only(client):
    """Also of an error, which says what is allowed."""
    for path in ("/health", "/ready", "/info", "/metrics"):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b"")
    assert client.post("/health").headers["Allow"] == "GET, HEAD"
    refused = client.head("/rerank")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")


def test_a_body_that_is_not_read_closes_the_connection(client, server):
    """However long it is; the client sees the response first."""
    with connect(server) as endless:
        endless.sendall(b"POST /nope HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n" + b"a" * 100_000)
        head, body = received(endless).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert b"connection: close" in head.lower()
    assert "Unknown path" in json.loads(body)["error"]
    assert "connection" not in client.post("/rerank", json={"query": "q"}).headers


def test_requests_that_do_not_arrive_take_no_place(gate):
    """Clients that send only heads keep nobody else out; what has arrived of bodies is limited as well."""
    gate.open.set()
    head = b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Length: 90\r\n\r\n"
    with gated(gate, max_ongoing=1, max_queued=0, max_body_bytes=100) as server, connect(server) as idle:
        idle.sendall(head)
        assert post(server).status_code == 200
        with connect(server) as slow:
            slow.sendall(head + b"a" * 80)
            until(lambda: (found := post(server)).status_code == 429 and "100 bytes" in found.text)
        until(lambda: post(server).status_code == 200)


def connect(server):
    """Return a connection to a server."""
    url = urlsplit(server.url)
    return socket.create_connection((url.hostname, url.port), timeout=TIMEOUT_S)


def received(connection):
    """Return everything until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(4096), b""))


def send(connection, query):
    """Send a request, without waiting for the response."""
    body = json.dumps({"query": query, "texts": ["a"]}).encode()
    connection.sendall(b"POST /rerank HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def test_a_client_that_leaves_the_queue_is_forgotten(gate, caplog):
    """Its passages never reach the model."""
    caplog.set_level(logging.INFO, "marcorank.serve")
    with gated(gate, max_ongoing=1) as server, connect(server) as first:
        send(first, "first")
        assert gate.arrived.acquire(timeout=TIMEOUT_S)
        with connect(server) as second:
            send(second, "second")
            until(lambda: metrics(server.url)["marcorank_queue_depth",] == 1)
        until(lambda: metrics(server.url)["marcorank_queue_depth",] == 0)
        until(lambda: "POST /rerank 499 passages=- ms=" in caplog.text)
        gate.open.set()
        assert post(server, "third").status_code == 200
    assert gate.seen == ["first", "third"]


def test_the_work_of_a_client_that_leaves_is_cancelled():
    """Here that of the server behind this one, which sees its client leave too."""
    with remote_server() as backend, server_thread(model=backend.url) as server:
        backend.arrived = threading.Semaphore(0)
        backend.fault = never_answers
        with connect(server) as leaving:
            send(leaving, QUERY)
            assert backend.arrived.acquire(timeout=TIMEOUT_S)
            assert not backend.gone.is_set()
        assert backend.gone.wait(TIMEOUT_S)
        until(lambda: ("marcorank_requests_total", "/rerank", "499") in metrics(server.url))
        assert metrics(server.url)["marcorank_requests_ongoing",] == 0
        assert len(backend.requests) == 2  # that of the warm-up and this one, which was not tried again


def test_metrics_and_log_count_without_texts(caplog):
    """Requests by route and status, passages, seconds and truncations; one line a request."""
    caplog.set_level(logging.INFO, "marcorank.serve")
    with server_thread(threads=1) as server, httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
        client.post("/rerank", json={"query": "secret", "texts": ["secret", "secret " * 600], "truncate": True})
        client.post("/v2/rerank", json={"query": "secret", "documents": ["secret"]})
        client.post("/rerank", json={"query": "secret"})
        client.get("/secret?secret=secret")
        response = client.get("/metrics")
        found = metrics(server.url)
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert {name: value for name, value in found.items() if name[0] == "marcorank_requests_total"} == {
        ("marcorank_requests_total", "/rerank", "200"): 1,
        ("marcorank_requests_total", "/v2/rerank", "200"): 1,
        ("marcorank_requests_total", "/rerank", "422"): 1,
        ("marcorank_requests_total", "unknown", "404"): 1,
        ("marcorank_requests_total", "/metrics", "200"): 1,
    }
    assert found["marcorank_passages_total",] == 3
    assert found["marcorank_truncated_passages_total",] == 1
    assert found["marcorank_request_seconds_count", "/rerank"] == 2
    assert found["marcorank_request_seconds_sum", "/rerank"] > 0
    assert found["marcorank_queue_depth",] == found["marcorank_requests_ongoing",] == 0
    lines = [record.getMessage() for record in caplog.records if record.name == "marcorank.serve"]
    assert [re.sub(r"\d+\.\d", "N", line) for line in lines[:5]] == [
        "POST /rerank 200 passages=2 ms=N",
        "POST /v2/rerank 200 passages=1 ms=N",
        "POST /rerank 422 passages=- ms=N",
        "GET unknown 404 passages=- ms=N",
        "GET /metrics 200 passages=- ms=N",
    ]
    assert "secret" not in caplog.text + response.text


def test_requests_need_not_be_logged(gate, caplog):
    """With `quiet`."""
    caplog.set_level(logging.INFO, "marcorank.serve")
    gate.open.set()
    with gated(gate, quiet=True) as server:
        assert post(server).status_code == 200
    assert not caplog.records


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_stopping_server_finishes_what_it_accepted(pool):
    """In the middle of a request; new ones get 503, and the exit status is 0."""
    with remote_server() as backend, server_command("--model", backend.url) as server:
        backend.arrived = threading.Semaphore(0)
        release = threading.Event()
        backend.fault = lambda *_: not release.wait(TIMEOUT_S)
        accepted = pool.submit(post, server)
        assert backend.arrived.acquire(timeout=TIMEOUT_S)
        server.signal(signal.SIGTERM)
        server.logged(r"Stopping: 1 request is finished first, for at most 25 s\. Press Ctrl-C again to stop at once\.")
        until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        refused = post(server)
        assert refused.status_code == 503
        assert "stopping" in refused.json()["error"]
        assert httpx.get(f"{server.url}/health").status_code == 200
        release.set()
        assert accepted.result().status_code == 200
        assert server.status() == 0
        assert server.log.endswith("Stopped.")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_server_stops_within_its_time(pool):
    """Requests that are not finished by then get 503, and the exit status is 0 all the same."""
    with remote_server() as backend, server_command("--model", backend.url, "--stop-timeout-s", "0.2") as server:
        backend.arrived = threading.Semaphore(0)
        backend.fault = never_answers
        accepted = pool.submit(post, server)
        assert backend.arrived.acquire(timeout=TIMEOUT_S)
        server.signal(signal.SIGINT)
        assert accepted.result().status_code == 503
        assert server.status() == 0
        assert "Stopping now: 1 request was not finished after 0.2 s." in server.log


async def test_what_arrives_after_the_wait_gets_503(gate):
    """Even if its head was accepted before."""
    app = ServerProcess(ProcessSettings(), Reranker(gate, activation="sigmoid"))
    app.open()

    async def body():
        app.cancel()
        yield json.dumps(BODY).encode()

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        assert (await client.post("/rerank", content=body())).status_code == 503
    assert not gate.seen


async def test_a_server_that_stops_stays_closed(gate):
    """Also if another process, which it does not wait for, is ready meanwhile."""
    app = ServerProcess(ProcessSettings(), Reranker(gate, activation="sigmoid"))
    app.open()
    await app.drain()
    app.open()
    assert not app.ready


def test_a_server_can_stop_while_its_model_is_loaded(monkeypatch):
    """Without an error in the thread that loads it; the model is closed afterwards."""
    gate, failed, closed = Gate(), [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", failed.append)
    gate.score = lambda query, passages: [0.0] * len(passages) * gate.open.wait(TIMEOUT_S)
    reranker = Reranker(gate, activation="sigmoid")
    monkeypatch.setattr(reranker, "close", closed.set)
    with server_thread(reranker, wait=False):
        pass
    assert not closed.is_set()
    gate.open.set()
    assert closed.wait(TIMEOUT_S)
    assert not failed


def test_who_stops_it_twice_does_not_wait(gate, pool):
    """What was accepted gets 503 at once."""
    with gated(gate) as server:
        accepted = pool.submit(post, server)
        assert gate.arrived.acquire(timeout=TIMEOUT_S)
        server.stop.request()
        until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        assert not accepted.done()
        server.stop.request()
        assert accepted.result().status_code == 503
    assert server.error is None


LOADED = r"\[(\d+)\] INFO The model is loaded\."


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_processes_share_the_port_and_the_metrics(pool, tmp_path):
    """Each answers alone, one that dies is replaced, metrics are those of all, and all stop when the first one does."""
    with (
        remote_server() as backend,
        server_command("--model", backend.url, "--workers", "2", environment={"TMPDIR": str(tmp_path)}) as server,
    ):
        workers = [int(number) for number in re.findall(LOADED, server.log)]
        assert len(workers) == 2
        assert server.process.pid not in workers
        for one, other in (workers, reversed(workers)):
            os.kill(other, signal.SIGSTOP)
            assert post(server).status_code == 200
            assert server.logged(r"\[(\d+)\] INFO POST /rerank 200")[1] == str(one)
            os.kill(other, signal.SIGCONT)
        assert metrics(server.url)["marcorank_requests_total", "/rerank", "200"] == 2
        # It dies in the middle of a request, and then the model cannot be loaded at first.
        backend.arrived = threading.Semaphore(0)
        backend.faults.extend([never_answers, responds(400)])
        os.kill(workers[1], signal.SIGSTOP)
        lost = pool.submit(post, server)
        assert backend.arrived.acquire(timeout=TIMEOUT_S)
        os.kill(workers[1], signal.SIGCONT)
        assert metrics(server.url)["marcorank_requests_ongoing",] == 1
        os.kill(workers[0], signal.SIGKILL)
        assert isinstance(lost.exception(), httpx.TransportError)
        server.logged(f"Process {workers[0]} ended with status -9; another one takes its place")
        server.logged("ERROR The model cannot be loaded again: ")
        assert httpx.get(f"{server.url}/ready").status_code == 200
        server.logged(LOADED)
        assert metrics(server.url)["marcorank_requests_ongoing",] == 0
        backend.arrived = threading.Semaphore(0)
        release = threading.Event()
        backend.fault = lambda *_: not release.wait(TIMEOUT_S)
        accepted = pool.submit(post, server)
        assert backend.arrived.acquire(timeout=TIMEOUT_S)
        found = metrics(server.url)
        assert found["marcorank_requests_total", "/rerank", "200"] == 2
        assert found["marcorank_requests_ongoing",] == 1
        os.killpg(server.process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        # As systemd does it. Only a second signal to the first process would cancel the request.
        for worker in [workers[1], int(re.findall(LOADED, server.log)[-1])] * 2:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        release.set()
        assert accepted.result().status_code == 200
        assert server.status() == 0
        assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_processes_end_with_the_first_one():
    """Also if it is killed, so that none keeps the port."""
    with remote_server() as backend, server_command("--model", backend.url, "--workers", "2") as server:
        server.process.kill()
        server.process.wait(TIMEOUT_S)
        until(lambda: refuses(server))


def test_windows_has_no_several_processes(monkeypatch):
    """They are refused at once."""
    settings = ProcessSettings(workers=2, port=0)
    monkeypatch.setattr("marcorank.serving.running.os.name", "nt")
    with pytest.raises(
        InvalidInputError, match="`workers` is 2; expected 1, because processes share no port on Windows"
    ):
        serve(settings)


def refuses(server):
    """Whether nobody listens any more."""
    try:
        connect(server).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("package", ["uvicorn", "prometheus_client"])
def test_a_missing_package_is_named(package, monkeypatch, capsys, tmp_path):
    """With the pip command."""
    for name in [*sys.modules]:
        if name.startswith("marcorank.serving."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    # Without a model, so that no server runs if nothing is missing.
    assert main(["serve", "--port", "0", "--model", str(tmp_path)]) == 1
    assert "pip install 'marcorank[serve]'" in capsys.readouterr().err
