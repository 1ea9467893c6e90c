"""`Reranker`, the face of the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from marcorank._arguments import (
    check_names,
    did_you_mean,
    passage_texts,
    query_text,
    request_pair,
    score_threshold_or_none,
    top_n_or_none,
)
from marcorank._calls.failures import OPERATIONAL_ERRORS, TimeLimit, warnings
from marcorank._calls.model import LazyModel
from marcorank._calls.ranker import Ranker, RankOptions
from marcorank._forks import reset_in_child
from marcorank._inference.scorer import as_request_scorer
from marcorank._models import catalogue
from marcorank._models.fingerprint import fingerprint
from marcorank._models.loading import load_scorer, validate_model
from marcorank._steps import arun, run
from marcorank._text import quoted
from marcorank.errors import InvalidInputError
from marcorank.ranking import Logistic, Ranking, RerankStatus
from marcorank.remote import RemoteScorer, is_remote
from marcorank.settings import RerankerSettings, defaults, descriptions, takes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from marcorank._inference.scorer import Request
    from marcorank._steps import Steps
    from marcorank.ranking import Activation, Outcome, ScoreKind
    from marcorank.scorer import Scorer
    from marcorank.settings import OnError

# For the message of an unknown argument.
RerankerSettings.__init__.__qualname__ = "Reranker.__init__"
_SETTINGS = tuple(descriptions(RerankerSettings))
_CHANGEABLE = ("activation", "on_error", "timeout_s", "fallback")
# A custom scorer may block each of them.
_THREADS_FOR_A_SCORER = 16


class Reranker:
    """Scores passages against a query with a cross-encoder and ranks them.

    Takes the settings of `marcorank.settings.RerankerSettings`: the model, and by keyword everything else. Nothing is
    downloaded or loaded before the first use. Any number of threads and tasks may share one reranker, and rerankers
    with the same settings share the weights. Copies and pickles carry the settings without the token, never the
    weights.

    You can assign other values to `activation`, `on_error`, `timeout_s` and `fallback`, which are checked as those of
    the constructor are. The next call uses them.

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

    activation: Activation
    on_error: OnError
    timeout_s: float | None
    fallback: Reranker | None
    _settings: RerankerSettings
    _score_kind: ScoreKind

    @takes(RerankerSettings)
    def __init__(self, *args: Any, **settings: Any) -> None:
        for name in settings:
            if name not in _SETTINGS:
                hint = did_you_mean(name, _SETTINGS)
                raise TypeError(f"Reranker.__init__() got an unexpected keyword argument {quoted(name)}.{hint}")
        given = RerankerSettings(*args, **settings)
        self._custom = None if isinstance(given.model, str) else cast("Scorer", given.model)
        self.model = given.model
        info = catalogue.find(given.name) if self._custom is None else None
        self.name = info.name if info else given.name
        self._apply(given, renew_fallback=True)
        self._start()
        reset_in_child(self, Reranker._restart)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _SETTINGS or "_model" not in vars(self):  # the latter in `__init__`
            super().__setattr__(name, value)
        elif name in _CHANGEABLE:
            # A fallback without an activation of its own has that of this reranker.
            renew_fallback = name == "fallback" or (name == "activation" and self._owns_fallback)
            self._apply(replace(self._settings, **{name: value}), renew_fallback=renew_fallback)
        else:
            raise InvalidInputError(f"`{name}` of a Reranker cannot be changed; make a new one.")

    def _apply(self, given: RerankerSettings, *, renew_fallback: bool) -> None:
        """Use settings, if they are valid together."""
        kind = validate_model(given, has_fallback=given.fallback is not None)
        if kind == "probability" and isinstance(given.activation, Logistic):
            raise InvalidInputError(
                f"`activation` is {quoted(given.activation)}, which is fitted on logits; {self.name} gives "
                "probabilities only."
            )
        vars(self).update(
            fallback=_fallback_reranker(given) if renew_fallback else self.fallback,
            activation=given.activation,
            on_error=given.on_error,
            timeout_s=given.timeout_s,
            _settings=given,
            _score_kind=kind,
        )

    @property
    def _owns_fallback(self) -> bool:
        return not isinstance(self._settings.fallback, Reranker)

    def _start(self) -> None:
        custom, settings = self._custom, self._settings
        self._model = LazyModel(
            self.name,
            lambda: load_scorer(settings) if custom is None else as_request_scorer(custom),
            is_custom=custom is not None,
            is_server=custom is None and is_remote(settings.name),
            cache_size=settings.cache_size if custom is None else 0,
            # One thread is enough for a model: it tokenises and sorts, and logits are computed elsewhere.
            max_workers=1 if custom is None else _THREADS_FOR_A_SCORER,
        )

    def _restart(self) -> None:
        """Start again in a forked child; a reranker that was closed stays closed."""
        closed = self._model.closed
        self._start()
        self._model.closed = closed

    @property
    def score_kind(self) -> ScoreKind:
        """Output of the model: `"logit"`, or `"probability"` for a server that returns nothing else."""
        return self._score_kind

    def score(self, query: str, passages: Iterable[str]) -> NDArray[np.float32]:
        """Return the logit of each passage, in input order, or its probability if `score_kind` is `"probability"`.

        `fallback` and `on_error` do not apply: the scores are always those of the model.

        Args:
            query: The query; must not be blank.
            passages: Texts; blank ones are allowed.

        Returns:
            Shape: (passages,), float32.

        Raises:
            InvalidInputError: The query or a passage is not a str, or the query is blank.
            RerankTimeoutError: The call took longer than `timeout_s`.
            ScoreError: The model did not return one finite logit for each passage.
            MarcoRankError: The model cannot be loaded, or the server cannot be used; see `errors`.
        """
        request = (query_text(query), passage_texts(passages))
        limit = None if self.timeout_s is None else TimeLimit(self.timeout_s, self.timeout_s)
        (scores,) = run(self._model.run(self._model.score([request]), limit))
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
        request = (query_text(query), passage_texts(passages))
        return run(self._rank([request], top_n, score_threshold))[0]

    def rank_many(
        self,
        requests: Iterable[tuple[str, Iterable[str]]],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[Ranking]:
        """Rank the passages of several queries in shared batches; returns one ranking per query, in order.

        Args:
            requests: Pairs of a query and its passages.
            top_n: Maximum number of results of each ranking; None for all.
            score_threshold: Minimum score of a result, on the scale of the activation; applied before `top_n`.

        Raises:
            InvalidInputError: An argument is not allowed.
            ScoreError: The model did not return one finite logit for each passage.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        return run(self._rank([request_pair(request) for request in requests], top_n, score_threshold))

    async def arank(
        self,
        query: str,
        passages: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> Ranking:
        """Rank passages like `rank`, without blocking the event loop.

        Texts are tokenised in a thread of this reranker, and concurrent calls share batches. If the task is
        cancelled, passages that have not been scored yet are dropped.
        """
        request = (query_text(query), passage_texts(passages))
        return (await arun(self._rank([request], top_n, score_threshold, may_block=False)))[0]

    def warm_up(self) -> Self:
        """Load the model and the fallback and run each once, so that the first call is as fast as the others.

        `timeout_s` does not apply here. A model that fails is logged if calls can be answered without it.

        Raises:
            MarcoRankError: No model can be loaded, and `on_error` is `"raise"`; see `errors`.
        """
        failures: list[tuple[str, Exception]] = []
        try:
            try:
                run(self._model.run(self._model.score([("warm", ["up"])]), None))
            except OPERATIONAL_ERRORS as error:
                failures.append((self.name, error))
            if self.fallback is not None:
                try:
                    self.fallback.warm_up()
                except OPERATIONAL_ERRORS as error:
                    failures.append((self.fallback.name, error))
            all_failed = len(failures) == (1 if self.fallback is None else 2)
            if all_failed and self.on_error == "raise":
                raise failures[-1][1]
            outcome: Outcome = "passthrough" if all_failed else "fallback"
            instead = "the order of the input is kept" if all_failed else "the other model ranks"
            statuses = [(name, RerankStatus.of(outcome, failure)) for name, failure in failures]
        finally:
            # The errors refer to this frame, which must not refer to them.
            failures.clear()
        for name, status in statuses:
            warnings.warn(name, status, instead)
        return self

    def close(self) -> None:
        """Finish the running calls and release the model. A closed reranker cannot be used again."""
        self._model.close()
        if self._owns_fallback and self.fallback is not None:
            self.fallback.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON-ready values, without the token.

        Raises:
            InvalidInputError: The model is an object, which has no such form.
        """
        if self._custom is not None:
            raise InvalidInputError(
                f"The model is the object {quoted(self._custom)}; only a reranker with a model name or folder has a "
                "dict form. Pickle keeps the object."
            )
        return {**self._settings.values(), "fallback": plain_fallback(self._settings.fallback)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Make a reranker from what `to_dict` returned.

        Raises:
            InvalidInputError: The dict is empty, a key is unknown or a value is not allowed.
        """
        check_names(settings, defaults(RerankerSettings))
        if not settings:
            raise InvalidInputError("The settings are an empty dict; expected one such as `to_dict` returns.")
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

    def _ranker(self) -> Ranker:
        fallback = None if self.fallback is None else self.fallback._ranker()  # noqa: SLF001
        return Ranker(self._model, self._score_kind, self.activation, self.on_error, self.timeout_s, fallback)

    def _rank(
        self, requests: Sequence[Request], top_n: object, score_threshold: object, *, may_block: bool = True
    ) -> Steps[list[Ranking]]:
        """Check the options and return the steps that rank; `may_block` allows them to run in the calling thread."""
        options = RankOptions(top_n_or_none(top_n), score_threshold_or_none(score_threshold))
        ranker = self._ranker()
        if options.score_threshold is not None:
            ranker.check_scale(options.score_threshold)
        return ranker.rank(requests, options, may_block=may_block)


def scorer_fingerprint(reranker: Reranker) -> dict[str, Any]:
    """Return everything that decides the logits of a reranker, as this process would compute them; see `fingerprint`.

    Raises:
        MarcoRankError: The settings contradict each other, or a file of the model is missing or cannot be fetched.
    """
    settings = reranker._settings  # noqa: SLF001 -- with the token, which no public form has
    return fingerprint(settings if isinstance(reranker.model, str) else cast("Scorer", reranker.model))


def _fallback_reranker(settings: RerankerSettings) -> Reranker | None:
    given, activation = settings.fallback, cast("Activation", settings.activation)
    if given is None or isinstance(given, Reranker):
        return given
    if isinstance(given, Mapping):
        if "url" in given:
            return Reranker(RemoteScorer.from_dict(given), activation=activation)
        return Reranker.from_dict({"activation": activation, **given})
    if not isinstance(given, str):
        return Reranker(given, activation=activation)
    if is_remote(given):
        limit = settings.max_passages_per_request
        return Reranker(given, activation=activation, max_passages_per_request=limit)
    return Reranker(
        given,
        activation=activation,
        special_tokens=settings.special_tokens,
        threads=settings.threads,
        cache_folder=settings.cache_folder,
        local_files_only=settings.local_files_only,
    )


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
        f"The fallback is the object {quoted(fallback)}; only a name, a server or a reranker of one has a dict form. "
        "Pickle keeps the object."
    )
