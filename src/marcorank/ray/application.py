"""The Ray Serve application: each replica has one reranker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve

from marcorank.serving.endpoints import Endpoints
from marcorank.serving.settings import ServeSettings

if TYPE_CHECKING:
    from ray.serve import Application

    app: Application
    """The application with its settings from the environment, for `serve run marcorank.ray:app`."""


def build_app(args: dict[str, Any]) -> Application:
    """Build the application for `serve run marcorank.ray:build_app model=bundled` and for config files.

    Args:
        args: Settings, named as in `ServeSettings`; others are read from the environment.

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
            # Loading takes about a second, so scale up early in a burst.
            "upscale_delay_s": 5,
            "look_back_period_s": 15,
            "downscale_delay_s": 300,
        },
    )(Endpoints)
    return deployment.bind(settings)


def __getattr__(name: str) -> object:
    # Built on first access, so that an invalid environment variable does not break the import.
    if name == "app":
        return build_app({})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
