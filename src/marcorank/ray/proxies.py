"""What Ray Serve's HTTP proxies answer when a replica dies with a request in its hands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from marcorank.errors import MissingExtraError
from marcorank.serving.requests import RequestError

try:
    from starlette.middleware import Middleware
except ImportError as error:
    raise MissingExtraError("`marcorank.ray` needs Ray Serve: pip install 'marcorank[ray]'") from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class UnansweredIs503:
    """Answers 503 where the application behind it gave no answer, for which uvicorn would answer 500.

    A client may send a request again that got 503; of 500 it cannot know.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and answer what was left without an answer."""
        started = scope["type"] != "http"

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        await self._app(scope, receive, note)
        if not started:
            error = RequestError(503, "Unhealthy", "The replica that worked on this request is gone; send it again.")
            body = json.dumps(error.body()).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": error.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})


def proxy_middlewares() -> list[Any]:
    """Return what Ray's `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` wants: middlewares for all HTTP proxies."""
    return [Middleware(UnansweredIs503)]
