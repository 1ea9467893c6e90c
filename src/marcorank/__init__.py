"""MS MARCO cross-encoder rerankers as a drop-in second stage for RAG.

    from marcorank import Reranker

    reranker = Reranker("bundled")
    reranker.rank("how do I open a file?", ["open() returns a file object", "a list is mutable"])

The names below are imported when they are first used: importing `marcorank` loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marcorank.errors import (
        ClosedError,
        InvalidInputError,
        MarcoRankError,
        MissingExtraError,
        ModelLoadError,
        RemoteError,
        RemoteProtocolError,
        RemoteStatusError,
        RemoteTimeoutError,
        RerankTimeoutError,
        ScoreError,
        UnknownModelError,
    )
    from marcorank.ranking import Logistic, RankedPassage, Ranking, SkippedPassage
    from marcorank.reranker import Reranker
    from marcorank.scorer import Scorer

    __version__: str

_HOME = {
    "Reranker": "marcorank.reranker",
    "Ranking": "marcorank.ranking",
    "RankedPassage": "marcorank.ranking",
    "SkippedPassage": "marcorank.ranking",
    "Logistic": "marcorank.ranking",
    "Scorer": "marcorank.scorer",
    "ClosedError": "marcorank.errors",
    "InvalidInputError": "marcorank.errors",
    "MarcoRankError": "marcorank.errors",
    "MissingExtraError": "marcorank.errors",
    "ModelLoadError": "marcorank.errors",
    "RemoteError": "marcorank.errors",
    "RemoteProtocolError": "marcorank.errors",
    "RemoteStatusError": "marcorank.errors",
    "RemoteTimeoutError": "marcorank.errors",
    "RerankTimeoutError": "marcorank.errors",
    "ScoreError": "marcorank.errors",
    "UnknownModelError": "marcorank.errors",
}

__all__ = [
    "Reranker",
    "Ranking",
    "RankedPassage",
    "SkippedPassage",
    "Logistic",
    "Scorer",
    "ClosedError",
    "InvalidInputError",
    "MarcoRankError",
    "MissingExtraError",
    "ModelLoadError",
    "RemoteError",
    "RemoteProtocolError",
    "RemoteStatusError",
    "RemoteTimeoutError",
    "RerankTimeoutError",
    "ScoreError",
    "UnknownModelError",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        # Reading the metadata takes a tenth of the time of a first ranking.
        from importlib.metadata import version

        return version("marcorank")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
