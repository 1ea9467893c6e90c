"""The Ray Serve application: replicas that hold one reranker each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marcorank.errors import MissingExtraError
from marcorank.serving.endpoints import Endpoints, answer_to
from marcorank.serving.requests import RequestError
from marcorank.serving.settings import ServeSettings

try:
    from ray import serve
    from starlette.responses import Response
except ImportError as error:
    raise MissingExtraError("`marcorank.ray` needs Ray Serve: pip install 'marcorank[ray]'") from error

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.requests import Request

    from marcorank.serving.endpoints import Answer


class Replica:
    """One replica: it is ready once the model is loaded and has run."""

    def __init__(self, settings: ServeSettings) -> None:
        self._endpoints = Endpoints(settings, settings.reranker())

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Those that come meanwhile share the batches of the model."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "").rstrip("/"))
        answer = await self._answer(request, path)
        return Response(answer.body, answer.status, dict(answer.headers), media_type="application/json")

    async def check_health(self) -> None:
        """Fail where the model does: Ray then replaces this replica."""
        await self._endpoints.check_health()

    async def _answer(self, request: Request, path: str) -> Answer:
        authorization = request.headers.get("authorization")
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                self._endpoints.check(request.method, path, authorization, len(body))
        except RequestError as error:
            return answer_to(error)
        return await self._endpoints.answer(request.method, path, authorization, bytes(body))


def build_app(args: dict[str, Any]) -> Application:
    """Return the application, as `serve run marcorank.ray:build_app model=bundled` and config files want it.

    Args:
        args: Settings by the names of `ServeSettings`; the environment holds those that are not named.

    Raises:
        InvalidInputError: An argument is unknown, or a value is not allowed.
    """
    settings = ServeSettings.of(args)
    deployment = serve.deployment(
        name="marcorank",
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=settings.max_ongoing,
        max_queued_requests=settings.max_queued,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing,
            # Loading takes about a second, so a burst need not be waited out.
            "upscale_delay_s": 5,
            "look_back_period_s": 15,
            "downscale_delay_s": 300,
        },
    )(Replica)
    return deployment.bind(settings)


def __getattr__(name: str) -> object:
    # Made when asked for, so that a wrong variable does not spoil an import.
    if name == "app":
        return build_app({})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
