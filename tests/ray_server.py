"""Ray and the server on loopback, for tests: free ports, quiet, and nothing left when they end."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROXIES = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "marcorank.ray:proxy_middlewares"}
_QUIET = {"RAY_SERVE_LOG_TO_STDERR": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


@contextmanager
def local_server(**args: Any) -> Iterator[str]:
    """Run the server on Ray in this machine, with 2 CPUs; gives its URL."""
    import ray

    with _environment():
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield _serve(args)
        finally:
            _end()


@contextmanager
def cluster_server(workers: int, **args: Any) -> Iterator[tuple[str, Any, list[Any]]]:
    """Run the server on worker nodes of 1 CPU each; gives its URL, the cluster and the nodes.

    The one proxy is on the head, where no replica is.
    """
    import ray
    from ray.cluster_utils import Cluster

    with _environment():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            nodes = [cluster.add_node(num_cpus=1) for _ in range(workers)]
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            yield _serve(args, proxy_location="HeadOnly"), cluster, nodes
        finally:
            _end()
            cluster.shutdown()


@contextmanager
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(_PROXIES | _QUIET)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(args: dict[str, Any], **options: Any) -> str:
    from ray import serve

    from marcorank.ray import build_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port}, **options)
    serve.run(build_app(args))
    return f"http://127.0.0.1:{port}"


def _end() -> None:
    import ray
    from ray import serve

    if ray.is_initialized():
        serve.shutdown()
    ray.shutdown()
