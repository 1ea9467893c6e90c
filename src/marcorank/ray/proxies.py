"""Middleware for the HTTP proxies of Ray Serve: responds when a replica dies during a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware

from marcorank.serving.requests import RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class UnansweredIs503:
    """Responds with 503 if the application did not respond; uvicorn would respond with 500.

    Clients may retry after 503, but do not know whether they may after 500.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request, and respond if the application did not."""
        started = scope["type"] != "http"

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        await self._app(scope, receive, note)
        if not started:
            error = RequestError(
                503, "The replica that handled this request is gone; send the request again.", "Unhealthy"
            )
            await error.response()(scope, receive, send)


def proxy_middlewares() -> list[Any]:
    """Return the middlewares for all HTTP proxies, for Ray's `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(UnansweredIs503)]
