"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# Tests run offline; the hub tests name a server on loopback instead.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
os.environ.setdefault("LANGSMITH_TRACING", "false")
