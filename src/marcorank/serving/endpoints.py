"""The HTTP endpoints of the servers, in terms of Starlette's requests and responses."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from marcorank import __version__
from marcorank._calls.failures import MessageLimit
from marcorank._calls.tracing import caller_of
from marcorank._models import catalogue
from marcorank._text import quoted, shorten
from marcorank.errors import InvalidInputError
from marcorank.reranker import check_options, loaded_precision
from marcorank.serving.requests import JsonResponse, RequestError, read_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    from marcorank.reranker import Reranker
    from marcorank.serving.settings import ServerSettings

_log = logging.getLogger("marcorank")

# Whether requests are in the format of Cohere unless they say otherwise.
RERANK = {"/rerank": False, "/v1/rerank": True, "/v2/rerank": True}
_METHODS = {**dict.fromkeys(RERANK, "POST"), "/": "GET", "/health": "GET", "/info": "GET"}
# For probes, which have no key.
_OPEN = {"/", "/health", "/ready"}
# Read in less time than it takes to start a thread.
_SMALL_BODY_BYTES = 2**16
# As nginx logs it: the client closed the connection.
GONE = 499


class Reranked(NamedTuple):
    """The response to a rerank request, and what is counted of it.

    Attributes:
        content: The response, ready for JSON.
        passages: Number of passages in the request.
        truncated: Number of them that were truncated.
    """

    content: Any
    passages: int
    truncated: int


class Endpoints:
    """One reranker for all requests; concurrent requests share its batches.

    Called with a request, it is a replica of Ray Serve. `ServerProcess` calls the methods itself.

    Attributes:
        methods: The method of each path; `GET` stands for `HEAD` too.
        failures: Limits the messages about a model that fails.
    """

    def __init__(
        self,
        settings: ServerSettings,
        reranker: Reranker | None = None,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Load the model and score a passage, unless a reranker is given.

        Args:
            settings: The settings.
            reranker: A reranker with the sigmoid activation.
            more: Methods of further paths that the caller responds to.
        """
        self._settings = settings
        self._reranker = reranker or settings.reranker().warm_up()
        self.methods = {**_METHODS, **more}
        self.failures = MessageLimit()
        self._name = settings.served_name or self._reranker.name

    async def __call__(self, request: Request) -> Response:
        """Return the response to one request; errors become responses too."""
        return await respond(request, self._handle, self.failures)

    async def _handle(self, request: Request) -> Response:
        self.check(request)
        path = path_of(request)
        if path in RERANK:
            return JsonResponse((await self.rerank(await self.read_body(request), path)).content)
        if path == "/info":
            return JsonResponse(self.info())
        await self.check_health()
        return Response()

    async def check_health(self) -> None:
        """Score one passage to check that the model works; Ray replaces a replica in which this raises.

        Raises:
            MarcoRankError: The model failed; see `errors`.
        """
        for reranker in filter(None, (self._reranker, self._reranker.skim)):
            # A new passage each time, so that it is never cached.
            await reranker.arank("healthy", [str(time.monotonic_ns())])

    def check(self, request: Request) -> None:
        """Check the path, the method and the API key of a request.

        Raises:
            RequestError: The path is unknown, the method is another one, or the API key is missing or wrong.
        """
        path = path_of(request)
        if path not in self.methods:
            raise RequestError(404, f"Unknown path {shorten(path)}; expected one of {', '.join(self.methods)}.")
        if self._settings.api_key_sha256 is not None and path not in _OPEN:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            given = key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
            # Digests have a fixed length, so the comparison does not leak the length of the key.
            if not hmac.compare_digest(hashlib.sha256(given).hexdigest(), self._settings.api_key_sha256):
                raise RequestError(
                    401,
                    "Missing or wrong API key; send the header `Authorization: Bearer KEY`.",
                    "Unauthorized",
                    {"WWW-Authenticate": "Bearer"},
                )
        allowed = ("GET", "HEAD") if self.methods[path] == "GET" else (self.methods[path],)
        if request.method not in allowed:
            raise RequestError(
                405,
                f"{path} expects {self.methods[path]}, not {shorten(request.method)}.",
                headers={"Allow": ", ".join(allowed)},
            )

    async def read_body(self, request: Request, count: Callable[[int], object] | None = None) -> bytearray:
        """Return the body of a request.

        Args:
            request: The request.
            count: Called with the size of each part; may raise.

        Raises:
            RequestError: It is too large.
            ClientDisconnect: The client is gone.
        """
        body = bytearray()
        async for part in request.stream():
            if count is not None:
                count(len(part))
            body += part
            if len(body) > self._settings.max_body_bytes:
                raise RequestError(
                    413,
                    f"The body has {len(body)} bytes or more; expected at most {self._settings.max_body_bytes}.",
                )
        return body

    async def rerank(self, body: bytearray, path: str) -> Reranked:
        """Rank the passages of a request.

        Args:
            body: The body.
            path: Where it was sent.

        Raises:
            RequestError: The request is invalid.
            MarcoRankError: The model failed; see `errors`.
        """
        settings = self._settings
        read = partial(
            read_request, body, cohere=RERANK[path], max_batch=settings.max_batch, max_length=settings.max_length
        )
        request = read() if len(body) <= _SMALL_BODY_BYTES else await asyncio.to_thread(read)
        if request.model is not None and not self._serves(request.model):
            raise RequestError(
                404, f"model {quoted(request.model)} not found; this server serves {quoted(self._name)}."
            )
        if request.raw_scores and self._reranker.score_kind == "probability":
            raise RequestError(
                422, "This model returns probabilities only; leave out `raw_scores` and `use_activation`."
            )
        try:
            # The response is shortened later: whether a text is too long concerns all of them.
            check_options(self._reranker, top_n=request.top_n, score_threshold=None)
            ranking = await self._reranker.arank(request.query, request.passages)
        except InvalidInputError as error:
            raise RequestError(422, str(error)) from error
        if request.truncate is False and any(one.truncated is None for one in ranking):
            raise RequestError(422, "This model does not report truncation; leave out `truncate`.")
        may_truncate = settings.auto_truncate if request.truncate is None else request.truncate
        if not may_truncate:
            truncated = min((one.index for one in ranking if one.truncated), default=None)
            if ranking.query_truncated or truncated is not None:
                field = "documents" if request.cohere else "texts"
                text = "`query`" if ranking.query_truncated else f"`{field}[{truncated}]` with the query"
                limit = "limit" if settings.max_length is None else f"{settings.max_length} tokens"
                raise RequestError(413, f"{text} is longer than the {limit} of the model; send `truncate`: true.")
        return Reranked(
            request.response(ranking, self._name),
            passages=len(request.passages),
            truncated=sum(one.truncated is True for one in ranking),
        )

    def _serves(self, model: str) -> bool:
        own = catalogue.find(self._settings.model)
        return model in {self._name, self._settings.model} or (own is not None and catalogue.find(model) is own)

    def info(self) -> dict[str, Any]:
        """Return the model and the limits, as TEI does."""
        settings = self._settings
        return {
            "model_id": self._name,
            "model_sha": None,
            "model_dtype": loaded_precision(self._reranker) or settings.precision,
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_concurrent_requests": settings.max_ongoing,
            "max_input_length": settings.max_length,
            "max_client_batch_size": settings.max_batch,
            "auto_truncate": settings.auto_truncate,
            "version": __version__,
            "server": "marcorank",
        }


def path_of(request: Request) -> str:
    """Return the path of a request below the prefix of the application."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", "").rstrip("/"))


async def respond(
    request: Request, handle: Callable[[Request], Awaitable[Response]], failures: MessageLimit
) -> Response:
    """Return the response of a handler, or one that describes its error, which is logged once a minute."""
    try:
        with caller_of(request.headers):
            return await handle(request)
    except RequestError as error:
        return error.response()
    except ClientDisconnect:
        return Response(status_code=GONE)
    except Exception as error:  # noqa: BLE001 -- the model may raise anything
        path = path_of(request)
        more = failures.suffix(type(error).__qualname__)
        if more is not None:
            _log.exception("Request to %s failed.%s", shorten(path), more)
        status, kind = (503, "Unhealthy") if path in _OPEN else (424, "Backend")
        return RequestError(status, "The model failed; see the server log for the reason.", kind).response()
