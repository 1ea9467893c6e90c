"""What the server answers on each path, as bytes in and bytes out; Ray carries them."""

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
class Answer:
    """One HTTP answer.

    Attributes:
        status: The HTTP status.
        body: JSON, or nothing.
        headers: Those beyond the content's type and length.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Endpoints:
    """The server without its transport: one reranker, shared by all requests.

    Attributes:
        max_body_bytes: Most bytes of a body that are worth reading.
    """

    def __init__(self, settings: ServeSettings, reranker: Reranker) -> None:
        """Take the settings and the reranker, whose scores have to be sigmoids."""
        self._settings = settings
        self.max_body_bytes = settings.max_body_bytes
        self._reranker = reranker
        self._name = settings.served_name or reranker.name
        self._names = {self._name, settings.model}

    async def answer(self, method: str, path: str, authorization: str | None, body: bytes) -> Answer:
        """Answer one request; whatever goes wrong is an answer too.

        Args:
            method: Such as `"POST"`.
            path: Without the prefix of the application.
            authorization: The header of that name.
            body: What was sent.
        """
        try:
            self.check(method, path, authorization, len(body))
            if path in _RERANK:
                return _json(200, await self._rerank(body, cohere=_RERANK[path]))
            if path == "/info":
                return _json(200, self._info())
            await self.check_health()
            return Answer(200)
        except RequestError as error:
            return answer_to(error)
        except Exception:  # noqa: BLE001 -- whatever the model raises
            _log.exception("A request to %s failed.", path)
            status, kind = (503, "Unhealthy") if path in _OPEN else (424, "Backend")
            return answer_to(RequestError(status, kind, "The model failed; the log of the server says why."))

    def check(self, method: str, path: str, authorization: str | None, body_bytes: int) -> None:
        """Check what can be checked before the body is read.

        Raises:
            RequestError: The request gets no answer of the model.
        """
        if path not in _METHODS:
            raise RequestError(404, "Validation", f"There is no {path}; expected one of {', '.join(_METHODS)}.")
        if self._settings.api_key_sha256 is not None and path not in _OPEN:
            # Digests have one length, so comparing them tells nothing of the key's.
            scheme, _, key = (authorization or "").partition(" ")
            given = key.strip().encode(errors="replace") if scheme.lower() == "bearer" else b""
            if not hmac.compare_digest(hashlib.sha256(given).hexdigest(), self._settings.api_key_sha256):
                raise RequestError(401, "Unauthorized", "The request needs the header `Authorization: Bearer KEY`.")
        if method != _METHODS[path]:
            raise RequestError(405, "Validation", f"{path} takes {_METHODS[path]}, not {method}.")
        if body_bytes > self.max_body_bytes:
            raise RequestError(
                413, "Validation", f"The body has {body_bytes} bytes or more; expected at most {self.max_body_bytes}."
            )

    async def check_health(self) -> None:
        """Score one passage.

        Raises:
            MarcoRankError: The model failed; see `errors`.
        """
        # Another one each time, which no cache knows.
        await self._reranker.arank("healthy", [str(time.monotonic_ns())])

    async def _rerank(self, body: bytes, *, cohere: bool) -> Any:
        settings = self._settings
        request = read_request(body, cohere=cohere, max_batch=settings.max_batch)
        if request.model is not None and not self._serves(request.model):
            raise RequestError(404, "Validation", f"model {request.model!r} not found; {self._name!r} is served here.")
        if request.max_tokens is not None and request.max_tokens < settings.max_length:
            raise RequestError(
                422,
                "Validation",
                f"`max_tokens_per_doc` is {request.max_tokens}; texts are cut at the {settings.max_length} tokens of "
                "the model only, query included. Leave it out, or shorten the texts.",
            )
        try:
            ranking = await self._reranker.arank(request.query, request.passages, top_n=request.top_n)
        except InvalidInputError as error:
            raise RequestError(422, "Validation", str(error)) from error
        if not request.truncate:
            cut = sorted(one.index for one in ranking if one.truncated)
            if cut or ranking.query_truncated:
                raise too_long(bool(ranking.query_truncated), cut, settings.max_length)
        return request.answer(ranking, self._name)

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


def answer_to(error: RequestError) -> Answer:
    """Return the answer that tells of an error."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return _json(error.status, error.body(), headers)


def _json(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(value, separators=(",", ":")).encode(), headers or {})
