"""`Reranker`, the face of the core."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

from marcorank._arguments import request_pair, score_threshold_or_none, top_n_or_none
from marcorank._calls.failures import OPERATIONAL_ERRORS, warnings
from marcorank._calls.model import LazyModel
from marcorank._calls.results import RankOptions, make_ranking
from marcorank._inference.scorer import as_request_scorer
from marcorank._models import catalogue
from marcorank._models.fingerprint import fingerprint
from marcorank._models.loading import load_scorer, reset_models_in_child, validate_model
from marcorank._steps import arun, run
from marcorank.errors import ClosedError, InvalidInputError
from marcorank.ranking import Logistic, Ranking, RerankStatus, unranked
from marcorank.remote import RemoteScorer, is_remote
from marcorank.scorer import score_kind
from marcorank.settings import RerankerSettings, defaults, takes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from marcorank._inference.scorer import Request
    from marcorank._steps import Steps
    from marcorank.ranking import Activation, Outcome, ScoreKind
    from marcorank.scorer import Scorer

# A scorer of somebody else may wait for something in each of them.
_THREADS_FOR_A_SCORER = 16


class Reranker:
    """Scores passages against a query with a cross-encoder and ranks them.

    Takes the settings of `marcorank.settings.RerankerSettings`: the model, and by keyword everything else. Nothing is
    downloaded or loaded before the first use. Any number of threads and tasks may share one reranker, and rerankers
    with the same settings share the weights. Copies and pickles carry the settings without the token, never the
    weights.

    Attributes:
        model: Name or path of the model, or the scorer that was given.
        name: Name of the model, for display.
        activation: How scores are made from logits.
        on_error: `"raise"` or `"passthrough"`.
        timeout_s: Timeout of a call in seconds; None for no limit.
        fallback: The reranker that ranks if the model fails, or None.

    Raises:
        InvalidInputError: A setting has a value that is not allowed.
        UnknownModelError: The model is neither a possible Hub name nor a folder.
    """

    @takes(RerankerSettings)
    def __init__(self, *args: Any, **settings: Any) -> None:
        self._settings = given = RerankerSettings(*args, **settings)
        self._custom = None if isinstance(given.model, str) else cast("Scorer", given.model)
        self.model = given.model
        self.activation = cast("Activation", given.activation)
        self.on_error = given.on_error
        self.timeout_s = given.timeout_s
        info = catalogue.find(given.name) if self._custom is None else None
        self.name = info.name if info else given.name
        self._score_kind = (
            score_kind(self._custom)
            if self._custom is not None
            else validate_model(given, has_fallback=given.fallback is not None)
        )
        if self._score_kind == "probability" and isinstance(self.activation, Logistic):
            raise InvalidInputError(
                f"`activation` is {self.activation!r}, which is fitted on logits; {self.name} gives probabilities only."
            )
        self.fallback = self._fallback_reranker()
        self._start()
        _rerankers.add(self)

    def _fallback_reranker(self) -> Reranker | None:
        given, settings = self._settings.fallback, self._settings
        if given is None or isinstance(given, Reranker):
            return given
        if isinstance(given, Mapping):
            if "url" in given:
                return Reranker(RemoteScorer.from_dict(given), activation=self.activation)
            return Reranker.from_dict({"activation": self.activation, **given})
        if not isinstance(given, str) or is_remote(given):
            return Reranker(given, activation=self.activation)
        return Reranker(
            given,
            activation=self.activation,
            threads=settings.threads,
            cache_folder=settings.cache_folder,
            local_files_only=settings.local_files_only,
        )

    @property
    def _owns_fallback(self) -> bool:
        return not isinstance(self._settings.fallback, Reranker)

    def _start(self) -> None:
        custom, settings = self._custom, self._settings
        self._model = LazyModel(
            self.name,
            lambda: load_scorer(settings) if custom is None else as_request_scorer(custom),
            cache_size=settings.cache_size if custom is None else 0,
            # One thread is enough for a model: it tokenises and sorts, and logits are computed elsewhere.
            max_workers=1 if custom is None else _THREADS_FOR_A_SCORER,
        )

    @property
    def score_kind(self) -> ScoreKind:
        """What the model gives: `"logit"`, or `"probability"` where a server gives nothing else."""
        return self._score_kind

    def score(self, query: str, passages: Iterable[str]) -> NDArray[np.float32]:
        """Return the logit of each passage, in input order; a probability where `score_kind` says so.

        No fallback answers here, and nothing is passed through: the scores are those of the model.

        Args:
            query: The query; must not be blank.
            passages: Texts; blank ones are allowed.

        Returns:
            Shape: (passages,), float32.

        Raises:
            InvalidInputError: The query or a passage is not a str, or the query is blank.
            RerankTimeoutError: `timeout_s` is over.
            ScoreError: The model did not return one finite logit for each passage.
            MarcoRankError: The model cannot be loaded, or a server not be used; see `errors`.
        """
        self._check_open()
        request = request_pair((query, passages))
        (scores,) = run(self._model.limited(self._model.score([request]), self.timeout_s))
        return scores.logits

    def rank(
        self,
        query: str,
        passages: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> Ranking:
        """Rank passages, best first; ties keep the order of the input.

        Args:
            query: The query; must not be blank.
            passages: Texts; blank ones are allowed. Equal ones are scored once.
            top_n: Maximum number of results; None for all.
            score_threshold: Minimum score of a result, on the scale of the activation; applied before `top_n`.

        Raises:
            InvalidInputError: An argument is not allowed.
            ScoreError: The model did not return one finite logit for each passage.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        return run(self._rank_steps(*self._check([(query, passages)], top_n, score_threshold)))[0]

    def rank_many(
        self,
        requests: Iterable[tuple[str, Iterable[str]]],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[Ranking]:
        """Rank the passages of several queries in common batches; one ranking a query, in their order.

        Args:
            requests: Pairs of a query and its passages.
            top_n: Maximum number of results of each ranking; None for all.
            score_threshold: Minimum score of a result, on the scale of the activation; applied before `top_n`.

        Raises:
            InvalidInputError: An argument is not allowed.
            ScoreError: The model did not return one finite logit for each passage.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        self._check_open()
        return run(self._rank_steps(*self._check(requests, top_n, score_threshold)))

    async def arank(
        self,
        query: str,
        passages: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> Ranking:
        """Rank passages without blocking the event loop; like `rank`.

        Texts are tokenised in a thread of this reranker, and what waits for the model shares its batches. If the
        task is cancelled, what has not been scored yet is dropped.
        """
        self._check_open()
        return (
            await arun(self._rank_steps(*self._check([(query, passages)], top_n, score_threshold), in_thread=True))
        )[0]

    def warm_up(self) -> Self:
        """Load the model and run it once, so that the first request is as fast as the others; the fallback too.

        `timeout_s` does not count here. Where calls would be answered all the same, a model that fails is logged.
        """
        self._check_open()
        failures = [_tried(partial(run, self._model.score([("warm", ["up"])])))]
        if self.fallback is not None:
            failures.append(_tried(self.fallback.warm_up))
        last = failures[-1]
        nobody = all(failure is not None for failure in failures)
        if self.on_error == "raise" and nobody and last is not None:
            raise last
        for name, failure in zip((self.name, getattr(self.fallback, "name", "")), failures, strict=False):
            if failure is not None:
                outcome: Outcome = "passthrough" if nobody else "fallback"
                warnings.warn(name, RerankStatus.of(outcome, failure), "calls take what there is")
        return self

    def close(self) -> None:
        """Finish the calls under way, and let go of the model. A closed reranker cannot be used again."""
        self._model.close()
        if self._owns_fallback and self.fallback is not None:
            self.fallback.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON-ready values, without the token.

        Raises:
            InvalidInputError: The model is an object, which has no such form.
        """
        if self._custom is not None:
            raise InvalidInputError(
                f"The model is the object {self._custom!r}; only a reranker with a model name or folder has a "
                "dict form. Pickle keeps the object."
            )
        return {**self._settings.values(), "fallback": plain_fallback(self._settings.fallback)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Make a reranker from what `to_dict` returned.

        Raises:
            InvalidInputError: A key is unknown or a value is not allowed.
        """
        known = defaults(RerankerSettings)
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise InvalidInputError(
                f"Unknown settings {', '.join(map(repr, unknown))}; expected some of {', '.join(sorted(known))}."
            )
        return cls(**settings)

    def __repr__(self) -> str:
        usual = defaults(RerankerSettings)
        shown = [
            f"{name}={value!r}"
            for name, value in {**self._settings.values(), "activation": self.activation}.items()
            if name != "model" and value != usual[name]
        ]
        return f"{type(self).__name__}({', '.join([repr(self.model), *shown])})"

    def __getstate__(self) -> dict[str, Any]:
        return self._settings.values()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the logits; see `fingerprint`."""
        return fingerprint(self._settings if self._custom is None else self._custom)

    def _check(
        self, requests: Iterable[tuple[str, Iterable[str]]], top_n: object, score_threshold: object
    ) -> tuple[list[Request], RankOptions]:
        options = RankOptions(top_n_or_none(top_n), score_threshold_or_none(score_threshold))
        if options.score_threshold is not None:
            self._check_scale(options.score_threshold)
        return [request_pair(request) for request in requests], options

    def _check_scale(self, score_threshold: float) -> None:
        """Refuse a threshold on logits where none are to be had."""
        if self._score_kind == "probability" and self.activation == "identity":
            raise InvalidInputError(
                f"`score_threshold` is {score_threshold}, on the scale of logits; {self.name} gives probabilities "
                "only. Pass `activation='sigmoid'` and a threshold from 0 to 1."
            )
        if self.fallback is not None:
            self.fallback._check_scale(score_threshold)  # noqa: SLF001

    def _rank_steps(
        self,
        requests: Sequence[Request],
        options: RankOptions,
        *,
        limit_s: float | None = None,
        in_thread: bool = False,
    ) -> Steps[list[Ranking]]:
        """Rank with this model, else with the fallback, else not at all; within the time.

        Args:
            requests: Checked queries with their passages.
            options: Which results to keep.
            limit_s: Maximum number of seconds, beside `timeout_s`.
            in_thread: Whether the caller must not be blocked, so that the model's steps run in a thread of ours.
        """
        self._check_open()
        limits = [seconds for seconds in (self.timeout_s, limit_s) if seconds is not None]
        limit_s = min(limits, default=None)
        started = time.monotonic()
        fallback = self.fallback
        failure: Exception | None = None
        try:
            try:
                seconds = limit_s if limit_s is None or fallback is None else limit_s / 2
                own = self._own_steps(requests, options)
                return (yield from self._model.limited(own, seconds, in_thread=in_thread))
            except OPERATIONAL_ERRORS as error:
                failure = error
            if fallback is not None:
                try:
                    left_s = None if limit_s is None else max(0.0, limit_s - (time.monotonic() - started))
                    rankings = yield from fallback._rank_steps(  # noqa: SLF001
                        requests, options, limit_s=left_s, in_thread=in_thread
                    )
                    return self._of_fallback(rankings, failure)
                except OPERATIONAL_ERRORS as error:
                    _add_cause(error, failure)
                    failure = error
            if self.on_error == "raise":
                raise failure
            return self._passed_through(requests, options, failure)
        finally:
            # An error keeps this frame, which is not to keep the error.
            failure = None

    def _own_steps(self, requests: Sequence[Request], options: RankOptions) -> Steps[list[Ranking]]:
        scored = yield from self._model.score(requests)
        return [
            make_ranking(
                request, scores, options, model=self.name, activation=self.activation, score_kind=self._score_kind
            )
            for request, scores in zip(requests, scored, strict=True)
        ]

    def _of_fallback(self, rankings: Sequence[Ranking], failure: Exception) -> list[Ranking]:
        status = RerankStatus.of("fallback", failure)
        first = rankings[0] if rankings else None
        if first is None or first.status is None or first.status.outcome == "fallback":
            warnings.warn(self.name, status, f"{first.model if first else 'nothing to rank,'} ranked")
        return [replace(ranking, status=ranking.status or status) for ranking in rankings]

    def _passed_through(self, requests: Sequence[Request], options: RankOptions, failure: Exception) -> list[Ranking]:
        status = RerankStatus.of("passthrough", failure)
        warnings.warn(self.name, status, "the order of the input was kept")
        return [unranked(query, self.name, passages[: options.top_n], status) for query, passages in requests]

    def _check_open(self) -> None:
        if self._model.closed:
            raise ClosedError(f"{self!r} was closed; make a new Reranker.")


_rerankers: WeakSet[Reranker] = WeakSet()


def _start_anew() -> None:
    """Give a forked child models, locks and threads of its own: those of the parent do not work there."""
    reset_models_in_child()
    for reranker in _rerankers:
        closed = reranker._model.closed  # noqa: SLF001
        reranker._start()  # noqa: SLF001
        reranker._model.closed = closed  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def _tried(step: Callable[[], object]) -> Exception | None:
    """Take a step and return the error of operation that it ends with."""
    try:
        step()
    except OPERATIONAL_ERRORS as error:
        return error
    return None


def _add_cause(error: BaseException, earlier: BaseException) -> None:
    """Let a traceback show the earlier failure beneath an error and its own cause."""
    last = error.__cause__ or error
    if last.__cause__ is None and last is not earlier:
        last.__cause__ = earlier


def plain_fallback(fallback: object) -> str | dict[str, Any] | None:
    """Return the JSON-ready form of a fallback, without tokens.

    Raises:
        InvalidInputError: It is a scorer object, which has no such form.
    """
    if isinstance(fallback, (Reranker, RemoteScorer)):
        return fallback.to_dict()
    if isinstance(fallback, Mapping):
        return dict(fallback)
    if fallback is None or isinstance(fallback, str):
        return fallback
    raise InvalidInputError(
        f"The fallback is the object {fallback!r}; only a name, a server or a reranker of one has a dict form. Pickle "
        "keeps the object."
    )
