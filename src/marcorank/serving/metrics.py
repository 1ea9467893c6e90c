"""What a server counts, in the format of Prometheus; with several processes, of all of them together."""

from __future__ import annotations

import os

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

# prometheus_client reads it when it is imported, so it is set before a process starts.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

__all__ = ["CONTENT_TYPE", "FOLDER_VARIABLE", "Metrics", "mark_process_dead"]


class Metrics:
    """The metrics of one server.

    Attributes:
        queue: Requests that wait for their turn.
        ongoing: Requests that are being ranked.
    """

    def __init__(self) -> None:
        own = self._shown = CollectorRegistry()
        if os.environ.get(FOLDER_VARIABLE):
            own = CollectorRegistry()
            MultiProcessCollector(self._shown)  # type: ignore[no-untyped-call]
        self._requests = Counter("marcorank_requests", "Requests.", ["route", "status"], registry=own)
        self._seconds = Histogram(
            "marcorank_request_seconds",
            "Seconds from the head of a request to its response.",
            ["route"],
            buckets=_BUCKETS_S,
            registry=own,
        )
        self._passages = Counter("marcorank_passages", "Passages that were ranked.", registry=own)
        self._truncated = Counter(
            "marcorank_truncated_passages", "Of these, passages that were truncated.", registry=own
        )
        self.queue = Gauge(
            "marcorank_queue_depth", "Requests that wait for their turn.", registry=own, multiprocess_mode="livesum"
        )
        self.ongoing = Gauge(
            "marcorank_requests_ongoing", "Requests that are being ranked.", registry=own, multiprocess_mode="livesum"
        )

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_passages(self, passages: int, truncated: int) -> None:
        """Count the passages of a ranking."""
        self._passages.inc(passages)
        self._truncated.inc(truncated)

    def text(self) -> bytes:
        """Return all metrics in the text format."""
        return generate_latest(self._shown)
