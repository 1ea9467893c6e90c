"""Scorers that take several requests at once; every local model is a `CrossEncoderScorer`."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from marcorank._inference.pairs import CHARS_AT_ONCE
from marcorank._steps import Wait, run
from marcorank._text import is_blank, message_of
from marcorank.errors import MarcoRankError, ScoreError
from marcorank.ranking import check_shape
from marcorank.scorer import scorer_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from marcorank._inference.pairs import PairEncoder
    from marcorank._inference.parts import Pair
    from marcorank._inference.scheduler import Scheduler
    from marcorank._steps import Steps
    from marcorank.scorer import Scorer

    Request = tuple[str, Sequence[str]]

_log = logging.getLogger("marcorank")

# Limit of one call of the tokenizer, beside that of characters: its encodings are large Python objects.
_PASSAGES_AT_ONCE = 256
# They would be taken for the cancellation or the end of the call itself.
_CONTROL_FLOW = (asyncio.CancelledError, GeneratorExit)


@dataclass(frozen=True, slots=True)
class PassageScores:
    """The scores of the passages of one request.

    Attributes:
        logits: Shape: (passages,), float32.
        truncated: Whether each passage was truncated. Shape: (passages,), bool; None if unknown.
        spans: Character range of the best window of each passage; None unless long passages are split.
        query_truncated: Whether the query was truncated; None if unknown.
        unknown_tokens: Number of tokens of each passage that the model does not know. Shape: (passages,), int64; None
            if that number is unknown.
    """

    logits: NDArray[np.float32]
    truncated: NDArray[np.bool_] | None = None
    spans: tuple[tuple[int, int], ...] | None = None
    query_truncated: bool | None = None
    unknown_tokens: NDArray[np.int64] | None = None

    @classmethod
    def empty(cls) -> PassageScores:
        """Return the scores of no passages."""
        return cls(np.empty(0, dtype=np.float32))

    def details(self, index: int) -> dict[str, Any]:
        """Return what is known of a passage beside its logit, by the names of the fields of `RankedPassage`."""
        return {
            "truncated": None if self.truncated is None else bool(self.truncated[index]),
            "span": None if self.spans is None else self.spans[index],
            "unknown_tokens": None if self.unknown_tokens is None else int(self.unknown_tokens[index]),
        }

    def take(self, indices: Sequence[int]) -> PassageScores:
        """Return the scores of the passages at these positions."""
        return PassageScores(
            logits=self.logits[indices],
            truncated=None if self.truncated is None else self.truncated[indices],
            spans=None if self.spans is None else tuple(self.spans[index] for index in indices),
            query_truncated=self.query_truncated,
            unknown_tokens=None if self.unknown_tokens is None else self.unknown_tokens[indices],
        )

    def with_blanks_last(self, passages: Sequence[str]) -> PassageScores:
        """Return the scores with those of blank passages, which a server does not score, below all others."""
        is_text = np.array([not is_blank(passage) for passage in passages], dtype=np.bool_)
        others = self.logits[is_text & np.isfinite(self.logits)]
        if is_text.all() or not others.size:
            return self
        blank, lowest = float(self.logits[~is_text].min()), float(others.min())
        if lowest == 0 <= blank:
            # A probability that the server has rounded: as little below as any float32 arithmetic can tell.
            blank = -float(np.finfo(np.float32).tiny)
        elif lowest <= blank:
            # A difference that float32 can hold.
            blank = lowest - max(1.0, abs(lowest) * 1e-6)
        return replace(self, logits=np.where(is_text, self.logits, np.float32(blank)))


class RequestScorer(Protocol):
    """A scorer that takes several requests at once and returns more than the logits."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score the passages of each request; one result per request, in order."""
        ...


class AsyncScorer(ABC):
    """A `RequestScorer` of ours that needs no thread of the caller while it waits for a server."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the model."""

    @abstractmethod
    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score the passages of each request; one result per request, in order."""

    @abstractmethod
    def submit(self, requests: Sequence[Request]) -> Future[list[PassageScores]]:
        """Submit the requests and return a future of the result of `score_requests`; cancelling it drops them."""


def as_request_scorer(scorer: Scorer) -> RequestScorer:
    """Return the scorer itself if it takes whole requests, else wrap it."""
    if isinstance(scorer, (PlainScorer, CrossEncoderScorer, AsyncScorer)):
        return scorer
    return PlainScorer(scorer)


def score_steps(scorer: RequestScorer, requests: Sequence[Request]) -> Steps[list[PassageScores]]:
    """Score requests in steps that yield instead of waiting, if the scorer supports it."""
    if isinstance(scorer, CrossEncoderScorer):
        return (yield from scorer.score_steps(requests))
    if isinstance(scorer, AsyncScorer):
        future = scorer.submit(requests)
        try:
            yield Wait(future)
            return future.result()
        finally:
            future.cancel()
            # It refers to its error, whose traceback refers to this frame.
            del future
    return scorer.score_requests(requests)


class PlainScorer:
    """A `RequestScorer` that calls a `Scorer` once per request."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.name = scorer_name(scorer)

    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score the requests one after the other.

        Raises:
            ScoreError: The scorer raised an error that is not a `MarcoRankError`, or did not return one number per
                passage.
        """
        return [PassageScores(self._score(query, list(passages))) for query, passages in requests]

    def _score(self, query: str, passages: list[str]) -> NDArray[np.float32]:
        try:
            return check_shape(self._scorer.score(query, passages), count=len(passages), model=self.name)
        except MarcoRankError:
            raise
        except (Exception, *_CONTROL_FLOW) as error:
            message = f"{type(error).__name__}: {message_of(error)}".removesuffix(": ")
            raise ScoreError(f"Model `{self.name}` raised {message}") from error


class CrossEncoderScorer:
    """A local cross-encoder; concurrent calls share batches.

    Safe to share between threads.

    Attributes:
        name: Name of the model.
        scheduler: Runs the batches.
        encoder: Tokenises pairs.
    """

    def __init__(self, scheduler: Scheduler, encoder: PairEncoder, *, name: str) -> None:
        self.scheduler = scheduler
        self.encoder = encoder
        self.name = name
        self._warned_of_truncation = False
        self._warned_of_unknown: set[str] = set()

    def score(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Return one logit per passage, in input order. Shape: (passages,), float32."""
        return self.score_requests([(query, passages)])[0].logits

    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score all requests in common batches."""
        return run(self.score_steps(requests))

    def score_steps(self, requests: Sequence[Request]) -> Steps[list[PassageScores]]:
        """Like `score_requests`, in steps that yield instead of waiting; closing the generator drops the rest.

        The passages are tokenised in slices, so that the backend works on the first slice while the next one is
        tokenised, and the tokens of a long request never exist all at once.

        Raises:
            ScoreError: The backend failed.
            ClosedError: The scheduler has stopped.
        """
        scored = [_Windows() for _ in requests]
        job = self.scheduler.open(self.encoder.batch)
        try:
            slices = self._slices(requests, scored)
            begun = last = False
            while not last:
                admission = job.admission()
                # After each slice a call gives way to others.
                if begun or not admission.done():
                    yield Wait(admission)
                begun = True
                if job.done():  # a batch failed
                    break
                pairs, lengths, last = next(slices)
                job.add(pairs, np.array(lengths, dtype=np.int64), last=last)
            yield Wait(job)
            logits = job.result()
        finally:
            if not job.done():
                job.cancel()
            # It refers to its error, whose traceback refers to this frame, which would keep the model loaded.
            del job
        ends = np.cumsum([len(windows.passages) for windows in scored])
        return [
            _best_windows(windows, logits[end - len(windows.passages) : end])
            for windows, end in zip(scored, ends, strict=True)
        ]

    def _slices(
        self, requests: Sequence[Request], scored: Sequence[_Windows]
    ) -> Iterator[tuple[list[Pair], list[int], bool]]:
        """Yield the pairs of each slice with their lengths in tokens, and whether the slice is the last."""
        pairs: list[Pair] = []
        lengths: list[int] = []
        warned_of_query = False
        for windows, (query, passages) in zip(scored, requests, strict=True):
            start = chars = 0
            for end, passage in enumerate(passages, 1):
                chars += len(passage)
                if end < len(passages) and end - start < _PASSAGES_AT_ONCE and chars < CHARS_AT_ONCE:
                    continue
                for piece in self.encoder.encode_in_parts(query, passages[start:end]):
                    windows.passages += (start + window.passage for window in piece.windows)
                    windows.spans += (window.span for window in piece.windows)
                    windows.truncated += piece.truncated.tolist()
                    windows.query_truncated = piece.query_truncated
                    windows.unknown_tokens += piece.unknown_tokens.tolist()
                    pairs += ((piece.query_ids, window) for window in piece.windows)
                    lengths += piece.lengths.tolist()
                    truncated = bool(piece.truncated.any())
                    if piece.query_truncated or truncated:
                        self._warn_of_truncation(query=piece.query_truncated and not warned_of_query, passage=truncated)
                        warned_of_query |= piece.query_truncated
                    if piece.query_mostly_unknown:
                        self._warn_of_unknown_tokens("query")
                    if piece.mostly_unknown.any():
                        self._warn_of_unknown_tokens("passage")
                    # The windows of one long passage may be many slices.
                    while sum(lengths) >= self.scheduler.slice_tokens:
                        count = int(np.searchsorted(np.cumsum(lengths), self.scheduler.slice_tokens)) + 1
                        yield pairs[:count], lengths[:count], False
                        pairs, lengths = pairs[count:], lengths[count:]
                    if not len(piece.truncated):
                        # A slice may be many parts of one long passage, and other calls come between these as well.
                        yield [], [], False
                start, chars = end, 0
        yield pairs, lengths, True

    def _warn_of_truncation(self, *, query: bool, passage: bool) -> None:
        """Warn of each truncated query, and once of passages, which can be many; results report all of them."""
        if query:
            _log.warning(
                "%s: A query is longer than %d tokens and was truncated; see `max_query_tokens`. Rankings report it "
                "as `query_truncated`.",
                self.name,
                self.encoder.max_query_tokens,
            )
        if passage and not self._warned_of_truncation:
            self._warned_of_truncation = True
            _log.warning(
                "%s: A passage does not fit into %d tokens with its query, and the rest of it is not scored; "
                "`long_passages='windows'` scores all of it. Results report it as `truncated`.",
                self.name,
                self.encoder.max_length,
            )

    def _warn_of_unknown_tokens(self, kind: str) -> None:
        """Warn once of queries and once of passages, which can be many."""
        if kind in self._warned_of_unknown:
            return
        self._warned_of_unknown.add(kind)
        _log.warning(
            "%s: Half or more of the tokens of a %s are unknown to the model, which cannot tell such texts apart. It "
            "happens with scripts that the model was not trained on and with words of over 100 characters; use a model "
            "for the language of your texts. Results report the unknown tokens of passages as `unknown_tokens`.",
            self.name,
            kind,
        )


@dataclass(slots=True)
class _Windows:
    """The windows of a request while they are scored: everything but the tokens.

    Attributes:
        passages: Index of the passage of each window.
        spans: Character range of each window; None unless long passages are split.
        truncated: Whether each passage was truncated.
        query_truncated: Whether the query was truncated.
        unknown_tokens: Number of unknown tokens of each passage.
    """

    passages: list[int] = field(default_factory=list)
    spans: list[tuple[int, int] | None] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    query_truncated: bool = False
    unknown_tokens: list[int] = field(default_factory=list)


def _best_windows(windows: _Windows, logits: NDArray[np.float32]) -> PassageScores:
    """Give each passage the logit and the span of its best window; the first one wins a tie."""
    spans = tuple(windows.spans)
    if len(windows.passages) > len(windows.truncated):
        passages = np.array(windows.passages, dtype=np.int64)
        # A window whose logit is not finite represents its passage, so that the error is noticed.
        worth = np.where(np.isfinite(logits), logits, np.inf)
        # By passage, then best logit first; the sort is stable, so ties stay in reading order.
        order = np.lexsort((-worth, passages))
        best = order[np.unique(passages[order], return_index=True)[1]]
        logits = logits[best]
        spans = tuple(spans[index] for index in best)
    return PassageScores(
        logits=logits,
        truncated=np.array(windows.truncated, dtype=np.bool_),
        spans=None if None in spans else tuple(span for span in spans if span is not None),
        query_truncated=windows.query_truncated,
        unknown_tokens=np.array(windows.unknown_tokens, dtype=np.int64),
    )
