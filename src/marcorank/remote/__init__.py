"""Scoring by an HTTP reranking server. Importing this package does not import an HTTP client."""

from marcorank.remote.address import is_remote
from marcorank.remote.dialects import DIALECTS
from marcorank.remote.scorer import RemoteScorer

__all__ = ["DIALECTS", "RemoteScorer", "is_remote"]
