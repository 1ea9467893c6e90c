"""Reranking on a Ray cluster: a server, and whole data sets.

    serve run marcorank.ray:app                               settings from MARCORANK_MODEL and the like
    serve run marcorank.ray:build_app model=bundled           settings as arguments, or in a config file

The names below are imported when they are first used.
"""

from __future__ import annotations

import importlib.util
from importlib import import_module
from typing import TYPE_CHECKING

from marcorank.errors import MissingExtraError

if TYPE_CHECKING:
    from marcorank.jobs.joining import RunFiles
    from marcorank.jobs.planning import ShardRun
    from marcorank.ray.application import app, build_app
    from marcorank.ray.datasets import rerank_dataset
    from marcorank.ray.proxies import proxy_middlewares
    from marcorank.serving.settings import ServeSettings

if any(importlib.util.find_spec(name) is None for name in ("ray", "starlette")):
    raise MissingExtraError("`marcorank.ray` needs Ray: pip install 'marcorank[ray]'")

_HOME = {
    "app": "marcorank.ray.application",
    "build_app": "marcorank.ray.application",
    "proxy_middlewares": "marcorank.ray.proxies",
    "ServeSettings": "marcorank.serving.settings",
    "rerank_dataset": "marcorank.ray.datasets",
    "RunFiles": "marcorank.jobs.joining",
    "ShardRun": "marcorank.jobs.planning",
}

__all__ = ["app", "build_app", "proxy_middlewares", "ServeSettings", "rerank_dataset", "RunFiles", "ShardRun"]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
