"""The word-overlap scorer in this process, or the same one behind HTTP: what adapters promise holds for both."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from marcorank.remote import RemoteScorer
from marcorank.testing import WordOverlapScorer
from remote_server import remote_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from marcorank import Scorer

# A client reads the system's certificates when it is made, which takes longer than hundreds of these requests.
_remote: list[RemoteScorer] = []


def word_overlap() -> Scorer:
    """Return the scorer, or one that asks a server for its scores while there is one."""
    return _remote[-1] if _remote else WordOverlapScorer()


@contextmanager
def behind_http() -> Iterator[None]:
    """Let `word_overlap` ask a server in the meantime."""
    with remote_server("tei", WordOverlapScorer()) as server, RemoteScorer(f"{server.url}#word-overlap") as scorer:
        _remote.append(scorer)
        try:
            yield
            assert server.requests
        finally:
            _remote.pop()
