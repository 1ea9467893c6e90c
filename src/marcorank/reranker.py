"""`Reranker`, the face of the core."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from marcorank import models
from marcorank.arguments import (
    one_of,
    request_pair,
    score_threshold_or_none,
    text_or_none,
    top_n_or_none,
    whole_number,
)
from marcorank.cache import ScoreCache, join, split
from marcorank.choosing import BACKENDS, PRECISIONS, ModelSettings
from marcorank.errors import ClosedError, InvalidInputError
from marcorank.loading import load_scorer, locate
from marcorank.pairs import LONG_PASSAGES
from marcorank.ranking import (
    RankedPassage,
    Ranking,
    check_finite,
    checked_activation,
    order_logits,
    plain_activation,
)
from marcorank.scorer import CrossEncoderScorer, PassageScores, Scorer, as_request_scorer, scorer_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from marcorank.choosing import BackendName, Precision
    from marcorank.pairs import LongPassages
    from marcorank.ranking import Activation
    from marcorank.scorer import Request, RequestScorer, Submission

DEFAULT_MODEL = "cross-encoder/ms-marco-MiniLM-L-6-v2"
_DEFAULTS = asdict(ModelSettings(model=DEFAULT_MODEL))


class Reranker:
    """Scores passages against a query with a cross-encoder and ranks them.

    Nothing is downloaded or loaded before the first use. Any number of threads and tasks may share one reranker,
    and rerankers with the same settings share the weights. Copies and pickles carry the settings without the
    token, never the weights.

    Attributes:
        model: Name or path of the model, or the scorer that was given.
        activation: How scores are made from logits.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Scorer = DEFAULT_MODEL,
        *,
        backend: BackendName = "auto",
        device: str | None = None,
        precision: Precision = "auto",
        threads: int | None = None,
        activation: Activation | Mapping[str, float] = "identity",
        max_length: int = 512,
        max_query_tokens: int | None = None,
        long_passages: LongPassages = "truncate",
        revision: str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        local_files_only: bool | None = None,
        allow_pickle: bool = False,
        cache_size: int = 0,
        token: str | None = None,
    ) -> None:
        """Take the settings; the model is loaded at the first use.

        Args:
            model: `"bundled"` for the small model in the wheel, a hub name in any spelling, the path of a model
                folder, or an object with `score(query, passages)`. The settings below up to `activation` and
                from `max_length` on mean nothing to such an object.
            backend: `"openvino"`, `"onnx"`, `"torch"`, or `"auto"`: torch on a GPU, else openvino if it is installed,
                else onnx. `marcorank doctor` tells what was chosen and why.
            device: As torch spells devices, such as `"cpu"` or `"cuda:0"`; None takes a GPU if torch sees one.
            precision: `"fp32"`, `"bf16"`, `"fp16"` or `"int8"`; `"auto"` is the fastest that ranks as fp32 does: bf16
                where the backend and the processor or GPU compute in it, else fp32. The bundled model is int8.
            threads: Most threads that compute on the CPU; None for one a core that this process may use. The torch
                backend leaves its threads to torch.
            activation: `"identity"` (scores are logits), `"sigmoid"` (scores from 0 to 1), or a `Logistic(a, b)` that
                was fitted on judged data (probabilities there), also as `{"a": a, "b": b}`.
            max_length: Most tokens of query and passage together, special tokens counted; the model's own limit
                holds where it is lower.
            max_query_tokens: Most tokens of a query; None for half of what fits. A longer one is cut, which
                `Ranking.query_truncated` and a log message report.
            long_passages: `"truncate"` scores the beginning of a passage that does not fit and reports it;
                `"windows"` scores all of it in overlapping parts, and the best part counts.
            revision: Branch, tag or commit on the hub; None for the one that the catalogue pins, else `main`.
            cache_folder: Where hub files are kept; None for the Hugging Face cache.
            local_files_only: True forbids the network; None leaves it to `HF_HUB_OFFLINE`.
            allow_pickle: Whether weights that come only as pickle may be read. A pickle can run code.
            cache_size: How many passages are remembered with their scores, those used last; 0 for none. Texts are not
                kept.
            token: Access token for the hub; kept out of every message, dict and pickle.

        Raises:
            InvalidInputError: A setting has a value that is not allowed.
            UnknownModelError: The model cannot be a hub name and is no folder.
        """
        self._custom = None if isinstance(model, (str, os.PathLike)) else _checked_scorer(model)
        self.activation: Activation = checked_activation(activation)
        self._settings = ModelSettings(
            model=os.fspath(model) if self._custom is None else "",  # type: ignore[arg-type]
            backend=one_of("backend", backend, BACKENDS),
            device=text_or_none("device", device),
            precision=one_of("precision", precision, PRECISIONS),
            threads=None if threads is None else whole_number("threads", threads, 1),
            max_length=whole_number("max_length", max_length, 16),
            max_query_tokens=(
                None if max_query_tokens is None else whole_number("max_query_tokens", max_query_tokens, 1)
            ),
            long_passages=one_of("long_passages", long_passages, LONG_PASSAGES),
            revision=text_or_none("revision", revision),
            cache_folder=_folder_or_none("cache_folder", cache_folder),
            local_files_only=one_of("local_files_only", local_files_only, (True, False, None)),
            allow_pickle=one_of("allow_pickle", allow_pickle, (True, False)),
            cache_size=whole_number("cache_size", cache_size, 0),
            token=text_or_none("token", token),
        )
        if self._custom is None:
            locate(self._settings)
        self._closed = False
        self._start()
        _rerankers.add(self)

    def _start(self) -> None:
        # Loading takes seconds; the event loop, which only hands over work, must not wait for it.
        self._loading = threading.Lock()
        self._scorer: RequestScorer | None = None
        self._handing_over = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._calls: set[_Call] = set()
        wanted = self._settings.cache_size if self._custom is None else 0
        self._cache = ScoreCache(wanted) if wanted else None

    @property
    def model(self) -> str | Scorer:
        """Name or path of the model, or the scorer that was given."""
        return self._settings.model if self._custom is None else self._custom

    @property
    def name(self) -> str:
        """Name of the model, for people."""
        if self._custom is not None:
            return scorer_name(self._custom)
        info = models.find(self._settings.model)
        return info.name if info else self._settings.model

    def score(self, query: str, passages: Iterable[str]) -> NDArray[np.float32]:
        """Return the logit of each passage, in input order.

        Args:
            query: What is searched for; not blank.
            passages: Texts; blank ones are allowed.

        Returns:
            Shape: (passages,), float32.

        Raises:
            InvalidInputError: The query or a passage is no text, or the query is blank.
            ScoreError: The model gave something else than one finite logit a passage.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        self._check_open()
        return self._score_requests([request_pair((query, passages))])[0].logits

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
            query: What is searched for; not blank.
            passages: Texts; blank ones are allowed. Equal ones are scored once.
            top_n: Most results; None for all.
            score_threshold: Least score of a result, on the scale of the activation; applied before `top_n`.

        Raises:
            InvalidInputError: An argument is not allowed.
            ScoreError: The model gave something else than one finite logit a passage.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        return self.rank_many([(query, passages)], top_n=top_n, score_threshold=score_threshold)[0]

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
            top_n: Most results of each ranking; None for all.
            score_threshold: Least score of a result, on the scale of the activation; applied before `top_n`.

        Raises:
            InvalidInputError: An argument is not allowed.
            ScoreError: The model gave something else than one finite logit a passage.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        self._check_open()
        checked, cut = self._check(requests, top_n, score_threshold)
        return self._rank_checked(checked, *cut)

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
        checked, cut = self._check([(query, passages)], top_n, score_threshold)
        return (await asyncio.wrap_future(self._accept(checked, cut)))[0]

    def warm_up(self) -> Self:
        """Load the model and run it once, so that the first request is as fast as the others."""
        self.score("warm", ["up"])
        return self

    def close(self) -> None:
        """Finish what waits, and let go of the model. A closed reranker cannot be used again."""
        with self._handing_over:
            self._closed = True
            executor, self._executor = self._executor, None
            calls = list(self._calls)
        for call in calls:
            with suppress(CancelledError):
                call.exception()
        if executor is not None:
            executor.shutdown()
        with self._loading:
            self._scorer = None
        if self._cache is not None:
            self._cache = ScoreCache(self._settings.cache_size)

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
        return self._plain_settings()

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Make a reranker from what `to_dict` returned.

        Raises:
            InvalidInputError: A key is unknown or a value is not allowed.
        """
        known = {"activation", *_DEFAULTS}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise InvalidInputError(
                f"Unknown settings {', '.join(map(repr, unknown))}; expected some of {', '.join(sorted(known))}."
            )
        return cls(**settings)

    def __repr__(self) -> str:
        shown = [
            f"{name}={value!r}"
            for name, value in {**self._plain_settings(), "activation": self.activation}.items()
            if name != "model" and value != _DEFAULTS.get(name, "identity")
        ]
        return f"{type(self).__name__}({', '.join([repr(self.model), *shown])})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self._plain_settings(), "model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _plain_settings(self) -> dict[str, Any]:
        settings = asdict(self._settings)
        del settings["token"]
        return {**settings, "activation": plain_activation(self.activation)}

    def _check(
        self, requests: Iterable[tuple[str, Iterable[str]]], top_n: object, score_threshold: object
    ) -> tuple[list[Request], tuple[int | None, float | None]]:
        cut = (top_n_or_none(top_n), score_threshold_or_none(score_threshold))
        return [request_pair(request) for request in requests], cut

    def _rank_checked(
        self, requests: Sequence[Request], top_n: int | None, score_threshold: float | None
    ) -> list[Ranking]:
        return self._rankings(requests, self._score_requests(requests), top_n, score_threshold)

    def _rankings(
        self,
        requests: Sequence[Request],
        scored: Sequence[PassageScores],
        top_n: int | None,
        score_threshold: float | None,
    ) -> list[Ranking]:
        return [
            self._ranking(request, scores, top_n, score_threshold)
            for request, scores in zip(requests, scored, strict=True)
        ]

    def _ranking(
        self, request: Request, scores: PassageScores, top_n: int | None, score_threshold: float | None
    ) -> Ranking:
        query, passages = request
        order = order_logits(scores.logits, activation=self.activation, score_threshold=score_threshold, top_n=top_n)
        results = tuple(
            RankedPassage(
                index=int(index),
                rank=rank,
                score=float(score),
                logit=float(scores.logits[index]),
                text=passages[index],
                truncated=None if scores.truncated is None else bool(scores.truncated[index]),
                span=None if scores.spans is None else scores.spans[index],
            )
            for rank, (index, score) in enumerate(zip(order.indices, order.scores, strict=True), 1)
        )
        return Ranking(query, self.name, results, scores.query_truncated)

    def _score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        wanted = [_Wanted(request, self._cache) for request in requests]
        asked = _asked(wanted)
        return self._answers(wanted, self._loaded_scorer().score_requests(asked) if asked else [])

    def _answers(self, wanted: Sequence[_Wanted], scored: Iterable[PassageScores]) -> list[PassageScores]:
        """Return the scores of each request; `scored` are those of the requests that ask for something."""
        left = iter(scored)
        return [one.answer(next(left) if one.asked else PassageScores.empty(), self.name) for one in wanted]

    def _loaded_scorer(self) -> RequestScorer:
        with self._loading:
            scorer = self._scorer
            if scorer is None:
                scorer = load_scorer(self._settings) if self._custom is None else as_request_scorer(self._custom)
                # Closed meanwhile, this last call is the only one that needs it.
                self._scorer = None if self._closed else scorer
            return scorer

    def _accept(self, requests: Sequence[Request], cut: tuple[int | None, float | None]) -> _Call:
        with self._handing_over:
            self._check_open()
            if self._executor is None:
                # One thread is enough: it tokenises and sorts, and the scores are made elsewhere.
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="marcorank")
            call = _Call(self, self._executor, requests, cut)
            self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        call.begin()
        return call

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self!r} was closed; make a new Reranker.")


class _Wanted:
    """The passages of one request, each different one once, and what is known of them."""

    def __init__(self, request: Request, cache: ScoreCache | None) -> None:
        self.query, self._passages = request
        self._cache = cache
        self._distinct = list(dict.fromkeys(self._passages))
        self._known = {} if cache is None else cache.find(self.query, self._distinct)
        self.asked = [passage for passage in self._distinct if passage not in self._known]

    def answer(self, scored: PassageScores, model: str) -> PassageScores:
        """Return the scores of all passages, in input order, from those of the passages that were asked for.

        Raises:
            ScoreError: A logit is not finite.
        """
        if self._known:
            known = self._known | dict(zip(self.asked, split(scored), strict=True))
            scores = join([known[passage] for passage in self._passages])
        else:
            place_of = {passage: place for place, passage in enumerate(self.asked)}
            scores = scored.take([place_of[passage] for passage in self._passages])
        check_finite(scores.logits, model=model)
        if self._cache is not None:
            self._cache.keep(self.query, self.asked, split(scored))
        return scores


def _asked(wanted: Sequence[_Wanted]) -> list[Request]:
    return [(one.query, one.asked) for one in wanted if one.asked]


class _Call(Future[list[Ranking]]):
    """One `arank` on its way.

    Each step runs in the thread of the reranker and ends where it would have to wait for the engine. So calls wait
    there side by side, in common batches, and none of it needs an event loop, which may be busy or closed.
    """

    def __init__(
        self,
        reranker: Reranker,
        executor: ThreadPoolExecutor,
        requests: Sequence[Request],
        cut: tuple[int | None, float | None],
    ) -> None:
        super().__init__()
        self._reranker = reranker
        self._executor = executor
        self._requests = requests
        self._cut = cut
        self._wanted: list[_Wanted] = []
        self._submission: Submission | None = None

    def begin(self) -> None:
        """Take the first step."""
        self._go_on(self._look_up)

    def cancel(self) -> bool:
        """Drop what has not been scored yet."""
        cancelled = super().cancel()
        if cancelled:
            self._drop()
        return cancelled

    def _go_on(self, step: Callable[[], None]) -> None:
        if self.done():
            return
        try:
            self._executor.submit(self._take, step)
        except RuntimeError as error:  # the interpreter ends, or the reranker was closed behind a cancelled call
            self._fail(error)

    def _take(self, step: Callable[[], None]) -> None:
        if self.done():
            return
        try:
            step()
        except BaseException as error:  # noqa: BLE001 -- it belongs to who waits
            self._fail(error)

    def _look_up(self) -> None:
        reranker = self._reranker
        self._wanted = [_Wanted(request, reranker._cache) for request in self._requests]  # noqa: SLF001
        asked = _asked(self._wanted)
        scorer = reranker._loaded_scorer() if asked else None  # noqa: SLF001
        if isinstance(scorer, CrossEncoderScorer):
            self._submission = scorer.submit(asked)
            if self.done():  # cancelled before there was anything to drop
                self._drop()
            self._wait_for_room()
        else:
            self._end([] if scorer is None else scorer.score_requests(asked))

    def _wait_for_room(self) -> None:
        submission = self._submission
        if submission is None:
            return
        room = submission.room()
        if room.done():
            self._advance()
        else:
            room.add_done_callback(lambda _: self._go_on(self._advance))

    def _advance(self) -> None:
        submission = self._submission
        if submission is None:
            return
        if submission.advance():
            # Behind the first steps of other calls, which may be short.
            self._go_on(self._wait_for_room)
        else:
            submission.logits.add_done_callback(lambda _: self._go_on(self._finish))

    def _finish(self) -> None:
        submission = self._submission
        if submission is None:
            return
        job = submission.logits
        # Not raised: a traceback through this frame would keep the model.
        error = job.exception()
        if error is None:
            self._end(submission.scores(job.result()))
        else:
            self._fail(error)

    def _end(self, scored: Sequence[PassageScores]) -> None:
        reranker = self._reranker
        self._drop()
        answers = reranker._answers(self._wanted, scored)  # noqa: SLF001
        rankings = reranker._rankings(self._requests, answers, *self._cut)  # noqa: SLF001
        with suppress(InvalidStateError):
            self.set_result(rankings)

    def _fail(self, error: BaseException) -> None:
        self._drop()
        with suppress(InvalidStateError):
            self.set_exception(error)

    def _drop(self) -> None:
        # The scheduler knows this call by its callbacks, so to forget the submission is also to break a cycle.
        submission, self._submission = self._submission, None
        if submission is not None:
            submission.cancel()


_rerankers: WeakSet[Reranker] = WeakSet()


def _start_anew() -> None:
    """Give every reranker of a forked child new locks and threads: those of the parent do not work there."""
    for reranker in _rerankers:
        reranker._start()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def _folder_or_none(name: str, value: object) -> str | None:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    folder = text_or_none(name, value)
    return None if folder is None else os.path.expanduser(folder)  # noqa: PTH111


def _checked_scorer(model: object) -> Scorer:
    if isinstance(model, type) or not isinstance(model, Scorer):
        raise InvalidInputError(
            f"`model` is {model!r}; expected a model name, the path of a model folder, or an object with "
            "`score(query, passages)`."
        )
    return model
