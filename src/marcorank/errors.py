"""Everything that marcorank raises on purpose.

    MarcoRankError
      InvalidInputError(ValueError)    an argument: what was found, what is allowed
      UnknownModelError(LookupError)   no such model: near matches, how to pass a folder
      MissingExtraError(ImportError)   a package is missing: the pip command that brings it
      ModelLoadError(OSError)          a model is known but cannot be loaded: file, revision, what was tried
      ScoreError(ValueError)           a scorer returned something that is no ranking: passage index, model
      ClosedError(RuntimeError)        a reranker was used after `close()`
      RerankTimeoutError(TimeoutError) a call took longer than its `timeout_s`
      RemoteError(ConnectionError)     a server could not be reached or used: url, attempts
        RemoteTimeoutError(TimeoutError)  it did not answer in time
        RemoteStatusError                 it answered with a status that says no
        RemoteProtocolError               what it answered is no answer to the question

Each class also derives from the built-in that callers already catch for such a fault.
"""

from __future__ import annotations


class MarcoRankError(Exception):
    """Base of every error that marcorank raises on purpose."""


class InvalidInputError(MarcoRankError, ValueError):
    """An argument has a value that cannot be used."""


class UnknownModelError(MarcoRankError, LookupError):
    """No model of this name exists."""


class MissingExtraError(MarcoRankError, ImportError):
    """An optional package is not installed."""


class ModelLoadError(MarcoRankError, OSError):
    """A model was found but cannot be loaded, or could not be fetched."""


class ScoreError(MarcoRankError, ValueError):
    """A scorer returned scores that are not finite or not one per passage."""


class ClosedError(MarcoRankError, RuntimeError):
    """A reranker was used after it was closed."""


class RerankTimeoutError(MarcoRankError, TimeoutError):
    """A call did not end within its `timeout_s`."""


class RemoteError(MarcoRankError, ConnectionError):
    """A server could not be reached or used. No message holds a key."""


class RemoteTimeoutError(RemoteError, TimeoutError):
    """A server did not answer in time."""


class RemoteStatusError(RemoteError):
    """A server answered with a status that says no.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return _status_error, (str(self), self.status)


class RemoteProtocolError(RemoteError):
    """What a server answered is no answer to the question: no JSON, a wrong number of results, an odd redirect."""


def _status_error(message: str, status: int) -> RemoteStatusError:
    return RemoteStatusError(message, status=status)
