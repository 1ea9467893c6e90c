"""Everything that marcorank raises on purpose.

    MarcoRankError
      InvalidInputError(ValueError)    an argument: what was found, what is allowed
      UnknownModelError(LookupError)   no such model: near matches, how to pass a folder
      MissingExtraError(ImportError)   a package is missing: the pip command that brings it
      ModelLoadError(OSError)          a model is known but cannot be loaded: file, revision, what was tried
      ScoreError(ValueError)           a scorer returned something that is no ranking: passage index, model
      ClosedError(RuntimeError)        a reranker was used after `close()`

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
