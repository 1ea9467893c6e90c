"""The outer seam `Scorer`, and the scorer that every local model runs through."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from marcorank.ranking import check_shape
from marcorank.scorer import scorer_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from marcorank._inference.pairs import EncodedRequest, PairEncoder
    from marcorank._inference.scheduler import Pair, Scheduler
    from marcorank.scorer import Scorer

    Request = tuple[str, Sequence[str]]

_log = logging.getLogger("marcorank")

# Encodings are large Python objects; only those of so many passages and characters are held at a time.
_PASSAGES_AT_ONCE = 256
_CHARS_AT_ONCE = 65536


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


@runtime_checkable
class StartingScorer(Protocol):
    """A scorer that waits elsewhere, such as for a server, so that nobody has to lend it a thread."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score the passages of each request; one answer a request, in their order."""
        ...

    def begin(self, requests: Sequence[Request]) -> Future[list[PassageScores]]:
        """Begin to do the same; cancelling the future drops it."""
        ...


def as_request_scorer(scorer: Scorer) -> RequestScorer:
    """Return the scorer itself where it takes whole requests, else one that calls it."""
    if isinstance(scorer, (PlainScorer, CrossEncoderScorer, StartingScorer)):
        return scorer
    return PlainScorer(scorer)


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


class CrossEncoderScorer:
    """A local cross-encoder: pairs, common batches with whoever shares the model, and back to input order.

    Safe to share between threads.

    Attributes:
        name: Name of the model.
        scheduler: Runs the batches.
        encoder: Makes token sequences.
    """

    def __init__(self, scheduler: Scheduler, encoder: PairEncoder, *, name: str) -> None:
        self.scheduler = scheduler
        self.encoder = encoder
        self.name = name
        self._told = False

    def score(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Return one logit a passage, in input order. Shape: (passages,), float32."""
        return self.score_requests([(query, passages)])[0].logits

    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score all requests in common batches."""
        submission = self.submit(requests)
        try:
            submission.room().result()
            while submission.advance():
                submission.room().result()
            return submission.scores(submission.logits.result())
        except BaseException:
            submission.cancel()
            raise
        finally:
            # The traceback of an error of the engine keeps this frame, which would keep the error, and the model.
            del submission

    def submit(self, requests: Sequence[Request]) -> Submission:
        """Begin to score requests in steps that do not wait for each other."""
        return Submission(self, requests)

    def tell_what_is_cut(self, *, query: bool, passage: bool) -> None:
        """Warn of a cut query each time, and once of cut passages, which can be many; results always carry flags."""
        if query:
            _log.warning(
                "%s: A query is longer than %d tokens and was cut; see `max_query_tokens`. Rankings say so as "
                "`query_truncated`.",
                self.name,
                self.encoder.max_query_tokens,
            )
        if passage and not self._told:
            self._told = True
            _log.warning(
                "%s: A passage does not fit into %d tokens with its query, and only its beginning was scored; "
                "`long_passages='windows'` scores all of it, results say which were `truncated`.",
                self.name,
                self.encoder.max_length,
            )


class Submission:
    """Requests on their way through a `CrossEncoderScorer`.

    The passages are tokenised a slice at a time, so that the engine works on the first while the next is made, and
    never all of a long request are held as tokens. The steps: wait for `room`, then `advance`, again while that
    returns True; wait for `logits`; then `scores`. Who gives up in between has to `cancel`.

    Attributes:
        logits: Those of all windows; to wait for.
    """

    def __init__(self, scorer: CrossEncoderScorer, requests: Sequence[Request]) -> None:
        # It also keeps the model loaded while this waits.
        self._scorer = scorer
        self.logits = scorer.scheduler.open(scorer.encoder.batch)
        self._pieces = _pieces(scorer.encoder, requests)
        self._requests = [_Encoded() for _ in requests]
        self._query_cut = False

    def room(self) -> Future[None]:
        """Return a future that is done when it is time to advance."""
        return self.logits.room()

    def advance(self) -> bool:
        """Tokenise the next slice and hand it to the engine; return whether there is more.

        Raises:
            ClosedError: The scheduler has ended.
        """
        encoder, scheduler = self._scorer.encoder, self._scorer.scheduler
        pairs: list[Pair] = []
        lengths: list[int] = []
        more = False
        for place, piece in self._pieces:
            if self.logits.done():
                return False
            self._requests[place].append(piece)
            pairs += ((piece.query_ids, window) for window in piece.windows)
            lengths += (encoder.length(piece.query_ids, window) for window in piece.windows)
            self._scorer.tell_what_is_cut(
                query=piece.query_truncated and not self._query_cut, passage=bool(piece.truncated.any())
            )
            self._query_cut |= piece.query_truncated
            more = sum(lengths) >= scheduler.slice_tokens
            if more:
                break
        if pairs:
            self.logits.add(pairs, np.array(lengths, dtype=np.int64))
        if not more:
            self.logits.finish()
        return more

    def scores(self, logits: NDArray[np.float32]) -> list[PassageScores]:
        """Return what is known of the passages of each request, in their order.

        Args:
            logits: The result of the future. Shape: (windows,), float32.
        """
        ends = np.cumsum([len(request.passages) for request in self._requests])
        return [
            request.scores(logits[end - len(request.passages) : end])
            for request, end in zip(self._requests, ends, strict=True)
        ]

    def cancel(self) -> None:
        """Drop what has not been scored yet."""
        self.logits.cancel()


class _Encoded:
    """What is kept of the windows of a request while they are scored: everything but the tokens."""

    def __init__(self) -> None:
        self.passages: list[int] = []
        self._spans: list[tuple[int, int] | None] = []
        self._truncated: list[NDArray[np.bool_]] = []
        self._query_truncated = False

    def append(self, piece: EncodedRequest) -> None:
        """Add the next passages."""
        first = sum(map(len, self._truncated))
        self.passages += (first + window.passage for window in piece.windows)
        self._spans += (window.span for window in piece.windows)
        self._truncated.append(piece.truncated)
        self._query_truncated = piece.query_truncated

    def scores(self, logits: NDArray[np.float32]) -> PassageScores:
        """Give each passage the logit and the span of its best window; the first of equals."""
        passages = np.array(self.passages, dtype=np.int64)
        # A window whose logit is not finite stands for its passage, so that the fault is seen.
        worth = np.where(np.isfinite(logits), logits, np.inf)
        # By passage, then best logit first; the sort is stable, so equals stay in reading order.
        order = np.lexsort((-worth, passages))
        best = order[np.unique(passages[order], return_index=True)[1]]
        spans = tuple(self._spans[place] for place in best)
        return PassageScores(
            logits=logits[best],
            truncated=np.concatenate([np.empty(0, dtype=np.bool_), *self._truncated]),
            spans=None if None in spans else tuple(span for span in spans if span is not None),
            query_truncated=self._query_truncated,
        )


def _pieces(encoder: PairEncoder, requests: Sequence[Request]) -> Iterator[tuple[int, EncodedRequest]]:
    """Tokenise requests a few passages at a time; with each piece comes the place of its request."""
    for place, (query, passages) in enumerate(requests):
        start = chars = 0
        for end, passage in enumerate(passages, 1):
            chars += len(passage)
            if end == len(passages) or end - start == _PASSAGES_AT_ONCE or chars >= _CHARS_AT_ONCE:
                yield place, encoder.encode(query, passages[start:end])
                start, chars = end, 0
