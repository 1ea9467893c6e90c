"""A LangChain tracer that keeps what it sees."""

from __future__ import annotations

from langchain_core.tracers import BaseTracer


class Collector(BaseTracer):
    """Keeps the root runs."""

    run_inline = True

    def __init__(self):
        super().__init__()
        self.roots = []

    def _persist_run(self, run):
        self.roots.append(run)
