"""The HTTP endpoints of the server, in terms of Starlette's requests and responses, which Ray Serve uses."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from marcorank import __version__
from marcorank._models import catalogue
from marcorank._text import quoted, shorten
from marcorank.errors import InvalidInputError
from marcorank.reranker import check_options
from marcorank.serving.requests import JsonResponse, RequestError, read_request

if TYPE_CHECKING:
    from starlette.requests import Request

    from marcorank.reranker import Reranker
    from marcorank.serving.settings import ServeSettings

_log = logging.getLogger("marcorank")

_RERANK = {"/rerank": False, "/v1/rerank": True, "/v2/rerank": True}
_METHODS = {**dict.fromkeys(_RERANK, "POST"), "/": "GET", "/health": "GET", "/info": "GET"}
_OPEN = {"/", "/health"}


class Endpoints:
    """One reranker for all requests; concurrent requests share its batches."""

    def __init__(self, settings: ServeSettings, reranker: Reranker | None = None) -> None:
        """Load the model and score a passage, unless a reranker is given. It must use the sigmoid activation."""
        self._settings = settings
        self._reranker = reranker or settings.reranker()
        self._name = settings.served_name or self._reranker.name

    async def __call__(self, request: Request) -> Response:
        """Return the response to one request; errors become responses too."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/"))
        try:
            self._check(request, path)
            if path in _RERANK:
                return JsonResponse(await self._rerank(await self._body(request), cohere=_RERANK[path]))
            if path == "/info":
                return JsonResponse(self._info())
            await self.check_health()
            return Response()
        except RequestError as error:
            return error.response()
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception:  # noqa: BLE001 -- the model may raise anything
            _log.exception("Request to %s failed.", path)
            status, kind = (503, "Unhealthy") if path in _OPEN else (424, "Backend")
            return RequestError(status, "The model failed; see the server log for the reason.", kind).response()

    async def check_health(self) -> None:
        """Score one passage to check that the model works; Ray replaces a replica in which this raises.

        Raises:
            MarcoRankError: The model failed; see `errors`.
        """
        for reranker in filter(None, (self._reranker, self._reranker.skim)):
            # A new passage each time, so that it is never cached.
            await reranker.arank("healthy", [str(time.monotonic_ns())])

    def _check(self, request: Request, path: str) -> None:
        if path not in _METHODS:
            raise RequestError(404, f"Unknown path {shorten(path)}; expected one of {', '.join(_METHODS)}.")
        if self._settings.api_key_sha256 is not None and path not in _OPEN:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            given = key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
            # Digests have a fixed length, so the comparison does not leak the length of the key.
            if not hmac.compare_digest(hashlib.sha256(given).hexdigest(), self._settings.api_key_sha256):
                raise RequestError(
                    401, "Missing or wrong API key; send the header `Authorization: Bearer KEY`.", "Unauthorized"
                )
        if request.method != _METHODS[path]:
            raise RequestError(405, f"{path} expects {_METHODS[path]}, not {request.method}.")

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._settings.max_body_bytes:
                raise RequestError(
                    413,
                    f"The body has {len(body)} bytes or more; expected at most {self._settings.max_body_bytes}.",
                )
        return bytes(body)

    async def _rerank(self, body: bytes, *, cohere: bool) -> Any:
        settings = self._settings
        request = read_request(body, cohere=cohere, max_batch=settings.max_batch, max_length=settings.max_length)
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
        if not request.truncate:
            truncated = min((one.index for one in ranking if one.truncated), default=None)
            if ranking.query_truncated or truncated is not None:
                field = "documents" if request.cohere else "texts"
                text = "`query`" if ranking.query_truncated else f"`{field}[{truncated}]` with the query"
                limit = "limit" if settings.max_length is None else f"{settings.max_length} tokens"
                raise RequestError(413, f"{text} is longer than the {limit} of the model; send `truncate`: true.")
        return request.response(ranking, self._name)

    def _serves(self, model: str) -> bool:
        own = catalogue.find(self._settings.model)
        return model in {self._name, self._settings.model} or (own is not None and catalogue.find(model) is own)

    def _info(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "model_id": self._name,
            "model_sha": None,
            "model_dtype": settings.precision,
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_concurrent_requests": settings.max_ongoing,
            "max_input_length": settings.max_length,
            "max_client_batch_size": settings.max_batch,
            "auto_truncate": False,
            "version": __version__,
            "server": "marcorank",
        }
