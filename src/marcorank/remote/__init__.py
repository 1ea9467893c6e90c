"""Scorers that ask an HTTP server for their scores; importing this loads no HTTP client."""

from marcorank.remote.address import is_remote
from marcorank.remote.dialects import DIALECTS
from marcorank.remote.scorer import RemoteScorer

__all__ = ["DIALECTS", "RemoteScorer", "is_remote"]
