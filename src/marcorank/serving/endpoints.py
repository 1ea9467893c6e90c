"""The HTTP endpoints of the server, independent of the transport: Ray delivers requests and responses."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from marcorank import __version__
from marcorank._models import catalogue
from marcorank.errors import InvalidInputError
from marcorank.serving.requests import RequestError, read_request, too_long

if TYPE_CHECKING:
    from collections.abc import Mapping

    from marcorank.reranker import Reranker
    from marcorank.serving.settings import ServeSettings

_log = logging.getLogger("marcorank")

_RERANK = {"/rerank": False, "/v1/rerank": True, "/v2/rerank": True}
_METHODS = {**dict.fromkeys(_RERANK, "POST"), "/": "GET", "/health": "GET", "/info": "GET"}
_OPEN = {"/", "/health"}


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One HTTP response.

    Attributes:
        status: The HTTP status.
        body: JSON, or empty.
        headers: Headers other than Content-Type and Content-Length.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Endpoints:
    """The server without its transport: one reranker for all requests.

    Attributes:
        max_body_bytes: Maximum size of a request body.
    """

    def __init__(self, settings: ServeSettings, reranker: Reranker) -> None:
        """Initialise the endpoints. The reranker must use the sigmoid activation."""
        self._settings = settings
        self.max_body_bytes = settings.max_body_bytes
        self._reranker = reranker
        self._name = settings.served_name or reranker.name
        self._names = {self._name, settings.model}

    async def respond(self, method: str, path: str, authorization: str | None, body: bytes) -> HttpResponse:
        """Return the response to one request; errors become responses too.

        Args:
            method: HTTP method, such as `"POST"`.
            path: Path without the prefix of the application.
            authorization: Value of the Authorization header.
            body: Body of the request.
        """
        try:
            self.check(method, path, authorization, len(body))
            if path in _RERANK:
                return _json(200, await self._rerank(body, cohere=_RERANK[path]))
            if path == "/info":
                return _json(200, self._info())
            await self.check_health()
            return HttpResponse(200)
        except RequestError as error:
            return error_response(error)
        except Exception:  # noqa: BLE001 -- the model may raise anything
            _log.exception("Request to %s failed.", path)
            status, kind = (503, "Unhealthy") if path in _OPEN else (424, "Backend")
            return error_response(RequestError(status, kind, "The model failed; see the server log for the reason."))

    def check(self, method: str, path: str, authorization: str | None, body_bytes: int) -> None:
        """Check everything that can be checked before the body is read.

        Raises:
            RequestError: The request is invalid.
        """
        if path not in _METHODS:
            raise RequestError(404, "Validation", f"Unknown path {path}; expected one of {', '.join(_METHODS)}.")
        if self._settings.api_key_sha256 is not None and path not in _OPEN:
            # Digests have a fixed length, so the comparison does not leak the length of the key.
            scheme, _, key = (authorization or "").partition(" ")
            given = key.strip().encode(errors="replace") if scheme.lower() == "bearer" else b""
            if not hmac.compare_digest(hashlib.sha256(given).hexdigest(), self._settings.api_key_sha256):
                raise RequestError(
                    401, "Unauthorized", "Missing or wrong API key; send the header `Authorization: Bearer KEY`."
                )
        if method != _METHODS[path]:
            raise RequestError(405, "Validation", f"{path} expects {_METHODS[path]}, not {method}.")
        if body_bytes > self.max_body_bytes:
            raise RequestError(
                413, "Validation", f"The body has {body_bytes} bytes or more; expected at most {self.max_body_bytes}."
            )

    async def check_health(self) -> None:
        """Score one passage to check that the model works.

        Raises:
            MarcoRankError: The model failed; see `errors`.
        """
        # A new passage each time, so that it is never cached.
        await self._reranker.arank("healthy", [str(time.monotonic_ns())])

    async def _rerank(self, body: bytes, *, cohere: bool) -> Any:
        settings = self._settings
        request = read_request(body, cohere=cohere, max_batch=settings.max_batch)
        if request.model is not None and not self._serves(request.model):
            raise RequestError(
                404, "Validation", f"model {request.model!r} not found; this server serves {self._name!r}."
            )
        if request.max_tokens is not None and request.max_tokens < settings.max_length:
            raise RequestError(
                422,
                "Validation",
                f"`max_tokens_per_doc` is {request.max_tokens}; this server truncates texts only at "
                f"the {settings.max_length} tokens of the model, query included. Leave it out, or shorten the texts.",
            )
        try:
            ranking = await self._reranker.arank(request.query, request.passages, top_n=request.top_n)
        except InvalidInputError as error:
            raise RequestError(422, "Validation", str(error)) from error
        if not request.truncate:
            truncated = sorted(one.index for one in ranking if one.truncated)
            if truncated or ranking.query_truncated:
                raise too_long(truncated, settings.max_length, query_truncated=bool(ranking.query_truncated))
        return request.response(ranking, self._name)

    def _serves(self, model: str) -> bool:
        own = catalogue.find(self._settings.model)
        return model in self._names or (own is not None and catalogue.find(model) is own)

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


def error_response(error: RequestError) -> HttpResponse:
    """Return the response for an error."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return _json(error.status, error.body(), headers)


def _json(status: int, value: Any, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return HttpResponse(status, json.dumps(value, separators=(",", ":")).encode(), headers or {})
