"""A scorer that waits, for tests of event loops that must not."""

from __future__ import annotations

import threading

from marcorank.testing import WordOverlapScorer


class GatedScorer(WordOverlapScorer):
    """Scores once the gate is open; only the event loop opens it, so a blocked loop would fail the test."""

    def __init__(self) -> None:
        super().__init__()
        self.started, self.gate = threading.Event(), threading.Event()
        self.threads: set[str] = set()
        self.queries: list[str] = []

    def score(self, query, passages):
        self.threads.add(threading.current_thread().name)
        self.queries.append(query)
        self.started.set()
        if not self.gate.wait(30):
            raise RuntimeError("The event loop was blocked.")
        return super().score(query, passages)
