"""Reranking servers on loopback that respond as documented, and misbehave on request."""

from __future__ import annotations

import gzip
import json
import math
import random
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from marcorank.testing import WordOverlapScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from marcorank import Scorer

    Results = list[dict[str, Any]]
    # Gets a request and the results for it; returns whether it has sent a response itself.
    Fault = Callable[["Handler", Results], bool]

PATHS = {
    "tei": "/rerank",
    "vllm": "/rerank",
    "infinity": "/rerank",
    "cohere": "/v2/rerank",
    "jina": "/v1/rerank",
    "voyage": "/v1/rerank",
}
# Longer passages are rejected unless truncation was requested.
MAX_WORDS = 400


class ReceivedRequest(NamedTuple):
    """A request that the server received."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    at: float


class RemoteServer(ThreadingHTTPServer):
    """Serves the scores of a scorer.

    Attributes:
        requests: The requests so far, in order of arrival.
        faults: Faults for the next requests, one each; after them `fault` applies to all, if it is set.
        key: The API key that is required as a bearer token; None for no check.
        reports_truncation: Whether results report truncation, as marcorank's own server does.
        connections: Number of connections that were opened.
        max_concurrent: Maximum number of concurrent requests so far.
        arrived: Released once for each request that arrives.
        gone: Set when a client disconnects before its response.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, dialect: str, scorer: Scorer | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.dialect = dialect
        self.scorer = scorer or WordOverlapScorer()
        self.max_batch = 32
        self.requests: list[ReceivedRequest] = []
        self.faults: deque[Fault | None] = deque()
        self.fault: Fault | None = None
        self.key: str | None = None
        self.reports_truncation = False
        self.connections = 0
        self.concurrent = 0
        self.max_concurrent = 0
        self.arrived = threading.Semaphore(0)
        self.gone = threading.Event()
        self.stopped = threading.Event()
        self.lock = threading.Lock()

    @property
    def base(self) -> str:
        """Its URL without the dialect."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        """Its URL as a `RemoteScorer` takes it."""
        return f"{self.dialect}+{self.base}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Disconnecting clients are part of the tests."""

    def results(self, body: dict[str, Any]) -> Results:
        """Score, best first, as all of these servers do."""
        texts = body["texts" if self.dialect == "tei" else "documents"]
        logits = np.asarray(self.scorer.score(body["query"], texts), dtype=np.float64).tolist()
        raw = {
            "tei": body.get("raw_scores", False),
            "infinity": body.get("raw_scores", False),
            "vllm": body.get("use_activation") is False,
        }.get(self.dialect, False)
        name = "score" if self.dialect == "tei" else "relevance_score"
        found: Results = [
            {"index": index, name: logit if raw else 1 / (1 + math.exp(-logit))} for index, logit in enumerate(logits)
        ]
        for result, text in zip(found, texts, strict=True):
            if self.dialect == "vllm":
                result["document"] = {"text": text, "multi_modal": None}
            if self.reports_truncation:
                result["truncated"] = len(text.split()) > MAX_WORDS
        return sorted(found, key=lambda result: -result[name])

    def wrapped(self, results: Results, model: str | None) -> Any:
        """Return the body of a response of this kind of server."""
        return {
            "tei": results,
            "vllm": {"id": "rerank-1", "model": model, "usage": {"total_tokens": 9}, "results": results},
            "infinity": {"object": "rerank", "results": results, "model": model, "usage": {}, "id": "i", "created": 0},
            "cohere": {"results": results, "id": "c", "meta": {"api_version": {"version": "2"}}},
            "jina": {"model": model, "usage": {"total_tokens": 9}, "results": results},
            "voyage": {"object": "list", "data": results, "model": model, "usage": {"total_tokens": 9}},
        }[self.dialect]

    def refusal(self, body: dict[str, Any], authorization: str | None) -> tuple[int, Any] | None:
        """Return an error for requests that the real server rejects."""
        texts = body.get("texts" if self.dialect == "tei" else "documents")
        if self.key is not None and authorization != f"Bearer {self.key}":
            return 401, {"message": f"invalid api token {authorization}"}
        if self.dialect == "tei" and len(texts) > self.max_batch:
            said = f"batch size {len(texts)} > maximum allowed batch size {self.max_batch}"
            return 413, {"error": said, "error_type": "Validation"}
        if self.dialect in {"cohere", "jina", "voyage"} and "model" not in body:
            return 400, {"message": "model is required"}
        if self.dialect == "infinity" and (wrong := _too_long_for_infinity([body["query"], *texts])):
            return 422, {"detail": [{"loc": ["body"], "msg": wrong, "input": body}]}
        cuts = {"tei": body.get("truncate"), "vllm": body.get("truncate_prompt_tokens") == -1}.get(self.dialect, True)
        if not cuts and any(len(text.split()) > MAX_WORDS for text in texts):
            return 413, {"error": "`inputs` must have less than 512 tokens", "error_type": "Validation"}
        return None


class Handler(BaseHTTPRequestHandler):
    """Handles one connection."""

    protocol_version = "HTTP/1.1"
    # Otherwise the body waits for the client to acknowledge the headers.
    disable_nagle_algorithm = True
    server: RemoteServer

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(ReceivedRequest(self.path, dict(self.headers), body, time.monotonic()))
            server.concurrent += 1
            server.max_concurrent = max(server.max_concurrent, server.concurrent)
            fault = server.faults.popleft() if server.faults else server.fault
        server.arrived.release()
        try:
            self.answer(body, fault)
        except ConnectionError:
            server.gone.set()
            self.close_connection = True
        finally:
            with server.lock:
                server.concurrent -= 1

    def do_GET(self) -> None:
        self.send_json(405, {"detail": "Method Not Allowed"})

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def answer(self, body: dict[str, Any], fault: Fault | None) -> None:
        refusal = self.server.refusal(body, self.headers["Authorization"])
        if self.path != PATHS[self.server.dialect] and fault is None:
            refusal = 404, {"detail": "Not Found"}
        if refusal is not None:
            self.send_json(*refusal)
            return
        results = self.server.results(body)
        if fault is None or not fault(self, results):
            self.send_json(200, self.server.wrapped(results, body.get("model")))

    def send_json(self, status: int, answer: Any) -> None:
        self.send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def send(
        self,
        status: int,
        content: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        content_length: int | None = None,
    ) -> None:
        """Send a response whose Content-Length can be wrong."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if content_length is None else content_length))
        self.end_headers()
        self.wfile.write(content)

    def wait_until_gone(self) -> None:
        """Wait until the client disconnects."""
        self.connection.settimeout(0.05)
        while not self.server.stopped.is_set():
            with suppress(TimeoutError):
                if not self.connection.recv(1):
                    raise ConnectionAbortedError


def _too_long_for_infinity(texts: list[str]) -> str:
    if len(texts) > 2049:
        return "List should have at most 2048 items"
    return "String should have at most 122880 characters" if max(map(len, texts)) > 122_880 else ""


@contextmanager
def remote_server(dialect: str = "tei", scorer: Scorer | None = None) -> Iterator[RemoteServer]:
    """Run a server until the block ends."""
    with RemoteServer(dialect, scorer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


def responds(status: int, answer: Any = None, **headers: str) -> Fault:
    """Respond with a status; `Retry_After` and others are headers."""

    def fault(handler: Handler, results: Results) -> bool:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.send(status, json.dumps(answer or {"error": "as you wish"}).encode(), named)
        return True

    return fault


def responds_with(content: bytes, kind: str = "application/json", *, status: int = 200) -> Fault:
    """Respond with these bytes."""

    def fault(handler: Handler, results: Results) -> bool:
        handler.send(status, content, {"Content-Type": kind})
        return True

    return fault


def refuses_above(limit: int, status: int, message: str) -> Fault:
    """Refuse requests with more passages than that; `{}` in the message is their number."""

    def fault(handler: Handler, results: Results) -> bool:
        passages = len(results)
        if passages > limit:
            handler.send_json(status, {"error": message.format(passages)})
        return passages > limit

    return fault


def refuses_blanks(handler: Handler, results: Results) -> bool:
    """Refuse the whole request for one blank passage, as Voyage does."""
    body = handler.server.requests[-1].body
    blank = not all(text.strip() for text in body.get("texts") or body["documents"])
    if blank:
        handler.send_json(400, {"detail": "Input cannot contain empty strings or empty lists"})
    return blank


def announces(length: int) -> Fault:
    """Announce a body of this length and send none of it."""

    def fault(handler: Handler, results: Results) -> bool:
        handler.send(200, b"", content_length=length)
        return never_answers(handler, results)

    return fault


def responds_changed(change: Callable[[Results], Any]) -> Fault:
    """Respond with changed results."""

    def fault(handler: Handler, results: Results) -> bool:
        handler.send_json(200, handler.server.wrapped(change(results), None))
        return True

    return fault


def delays(seconds: float) -> Fault:
    """Respond correctly, but late."""

    def fault(handler: Handler, results: Results) -> bool:
        handler.server.stopped.wait(seconds)
        return False

    return fault


def never_answers(handler: Handler, results: Results) -> bool:
    """Accept the request and never respond."""
    handler.wait_until_gone()
    return True


def dribbles(handler: Handler, results: Results) -> bool:
    """Send an endless response, a byte at a time."""
    handler.send(200, b"[", content_length=100_000)
    while not handler.server.stopped.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()
    return True


def breaks_off(handler: Handler, results: Results) -> bool:
    """Close the connection in the middle of the response."""
    content = json.dumps(handler.server.wrapped(results, None)).encode()
    handler.send(200, content[: len(content) // 2], content_length=len(content))
    handler.close_connection = True
    return True


def hangs_up(handler: Handler, results: Results) -> bool:
    """Close the connection without a response."""
    handler.close_connection = True
    return True


def floods(handler: Handler, results: Results) -> bool:
    """Send an endless response without a Content-Length."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    piece = b" " * 65536
    while not handler.server.stopped.is_set():
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    return True


def compresses(handler: Handler, results: Results) -> bool:
    """Send a small compressed body that expands to a large one."""
    handler.send(200, gzip.compress(b" " * (64 << 20)), {"Content-Encoding": "gzip"})
    return True


def fails_at_random(share: float, seed: int) -> Fault:
    """Fail for a share of the requests, with all temporary failures."""
    rng = random.Random(seed)  # noqa: S311
    ways = [responds(429), responds(502), responds(503), responds(504), breaks_off, hangs_up, never_answers]

    def fault(handler: Handler, results: Results) -> bool:
        with handler.server.lock:
            way = rng.choice(ways) if rng.random() < share else None
        rng.shuffle(results)
        return way is not None and way(handler, results)

    return fault
