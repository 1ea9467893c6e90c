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
    from marcorank.ray.datasets import rerank_dataset
    from marcorank.ray.proxies import proxy_middlewares
    from marcorank.ray.serving import app, build_app
    from marcorank.ray.settings import ServeSettings
    from marcorank.shards.jobs import ShardRun
    from marcorank.shards.joining import RunFiles

if importlib.util.find_spec("ray") is None:
    raise MissingExtraError("`marcorank.ray` needs Ray: pip install 'marcorank[ray]'")

_HOME = {
    "app": "marcorank.ray.serving",
    "build_app": "marcorank.ray.serving",
    "proxy_middlewares": "marcorank.ray.proxies",
    "ServeSettings": "marcorank.ray.settings",
    "rerank_dataset": "marcorank.ray.datasets",
    "RunFiles": "marcorank.shards.joining",
    "ShardRun": "marcorank.shards.jobs",
}

__all__ = ["app", "build_app", "proxy_middlewares", "ServeSettings", "rerank_dataset", "RunFiles", "ShardRun"]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
