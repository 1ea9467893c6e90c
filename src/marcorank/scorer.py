"""The outer seam `Scorer`, and the scorer that every local model runs through."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from marcorank.batching import plan_batches
from marcorank.errors import MarcoRankError, ScoreError
from marcorank.ranking import check_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from marcorank.backends.base import Backend
    from marcorank.pairs import EncodedRequest, PairEncoder, TokenBatch

    Request = tuple[str, Sequence[str]]

_log = logging.getLogger(__name__)


@runtime_checkable
class Scorer(Protocol):
    """Whoever brings another engine implements this and nothing else.

    An attribute `name`, where there is one, is shown as the model's name. A scorer that several threads or tasks
    use has to be safe for that.
    """

    def score(self, query: str, passages: Sequence[str]) -> ArrayLike:
        """Return one logit a passage, in input order; higher is more relevant. Shape: (passages,)."""
        ...


@dataclass(frozen=True, slots=True)
class PassageScores:
    """What is known of the passages of one request after scoring.

    Attributes:
        logits: Shape: (passages,), float32.
        truncated: Whether a passage lost its end. Shape: (passages,), bool; None if not known.
        spans: Character range of the best window of each passage; None where no windows were asked for.
        query_truncated: Whether the query was cut; None if not known.
    """

    logits: NDArray[np.float32]
    truncated: NDArray[np.bool_] | None = None
    spans: tuple[tuple[int, int], ...] | None = None
    query_truncated: bool | None = None

    @classmethod
    def empty(cls) -> PassageScores:
        """Return what is known of no passages."""
        return cls(np.empty(0, dtype=np.float32))

    def take(self, places: Sequence[int]) -> PassageScores:
        """Return the same for the passages at these places."""
        return PassageScores(
            logits=self.logits[places],
            truncated=None if self.truncated is None else self.truncated[places],
            spans=None if self.spans is None else tuple(self.spans[place] for place in places),
            query_truncated=self.query_truncated,
        )


class RequestScorer(Protocol):
    """A scorer that takes several requests at once and tells more than the logits."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score the passages of each request; one answer a request, in their order."""
        ...


def scorer_name(scorer: Scorer) -> str:
    """Return the name to show for a scorer."""
    return str(getattr(scorer, "name", type(scorer).__name__))


def as_request_scorer(scorer: Scorer) -> RequestScorer:
    """Return the scorer itself where it takes whole requests, else one that calls it."""
    return scorer if isinstance(scorer, (PlainScorer, CrossEncoderScorer)) else PlainScorer(scorer)


class PlainScorer:
    """Makes a `RequestScorer` of a bare `Scorer`."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.name = scorer_name(scorer)

    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score the requests one after the other."""
        return [
            PassageScores(check_shape(self._scorer.score(query, list(passages)), count=len(passages), model=self.name))
            for query, passages in requests
        ]


class SerialBackend:
    """Lets one batch at a time into a backend that several scorers and threads share.

    Each forward pass uses all cores already; two at once only slow each other down.

    Attributes:
        backend: The engine.
        lock: Held while the engine runs.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name = backend.name
        self.device = backend.device
        self.precision = backend.precision
        self.max_padded_tokens = backend.max_padded_tokens
        self.lock = threading.Lock()

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return one logit a row. Shape: (batch,), float32.

        Raises:
            ScoreError: The engine failed.
        """
        rows, tokens = batch.input_ids.shape
        try:
            with self.lock:
                return check_shape(self.backend.logits(batch), count=rows, model=self.name)
        except MarcoRankError:
            raise
        except Exception as error:  # each engine raises its own
            raise ScoreError(
                f"The {self.name} backend failed on {rows} sequences of {tokens} tokens on {self.device}: {error}"
            ) from error


class CrossEncoderScorer:
    """A local cross-encoder: pairs, batches under a token budget, backend, and back to input order.

    Safe to share between threads.

    Attributes:
        name: Name of the model.
        backend: The engine.
        encoder: Makes token sequences.
    """

    def __init__(self, backend: Backend, encoder: PairEncoder, *, name: str) -> None:
        self.backend = backend
        self.encoder = encoder
        self.name = name
        self._told = False

    def score(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Return one logit a passage, in input order. Shape: (passages,), float32."""
        return self.score_requests([(query, passages)])[0].logits

    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score all requests in common batches."""
        encoded = [self.encoder.encode(query, passages) for query, passages in requests]
        self._tell_what_is_cut(encoded)
        pairs = [(request.query_ids, window) for request in encoded for window in request.windows]
        logits = np.empty(len(pairs), dtype=np.float32)
        lengths = np.array([self.encoder.length(*pair) for pair in pairs], dtype=np.int64)
        for places in plan_batches(lengths, self.backend.max_padded_tokens):
            batch = self.encoder.batch([pairs[place] for place in places])
            logits[places] = self.backend.logits(batch)
        ends = np.cumsum([len(request.windows) for request in encoded])
        return [
            _best_windows(request, logits[end - len(request.windows) : end])
            for request, end in zip(encoded, ends, strict=True)
        ]

    def _tell_what_is_cut(self, encoded: Sequence[EncodedRequest]) -> None:
        """Warn of every cut query, and once of cut passages, which can be many; results carry flags every time."""
        if any(request.query_truncated for request in encoded):
            _log.warning(
                "%s: A query is longer than %d tokens and was cut; see `max_query_tokens`. Rankings say so as "
                "`query_truncated`.",
                self.name,
                self.encoder.max_query_tokens,
            )
        if not self._told and any(request.truncated.any() for request in encoded):
            self._told = True
            _log.warning(
                "%s: A passage does not fit into %d tokens with its query, and only its beginning was scored; "
                "`long_passages='windows'` scores all of it, results say which were `truncated`.",
                self.name,
                self.encoder.max_length,
            )


def _best_windows(request: EncodedRequest, logits: NDArray[np.float32]) -> PassageScores:
    """Give each passage the logit and the span of its best window; the first of equals."""
    passages = np.array([window.passage for window in request.windows], dtype=np.int64)
    # A window whose logit is not finite stands for its passage, so that the fault is seen.
    worth = np.where(np.isfinite(logits), logits, np.inf)
    # By passage, then best logit first; the sort is stable, so equals stay in reading order.
    order = np.lexsort((-worth, passages))
    best = order[np.unique(passages[order], return_index=True)[1]]
    spans = tuple(request.windows[place].span for place in best)
    return PassageScores(
        logits=logits[best],
        truncated=request.truncated,
        spans=None if None in spans else tuple(span for span in spans if span is not None),
        query_truncated=request.query_truncated,
    )
