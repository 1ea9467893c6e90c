"""`Reranker`, the face of the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from marcorank._arguments import (
    check_arguments,
    check_names,
    explains_arguments,
    request_pair,
    request_parts,
    score_threshold_or_none,
    top_n_or_none,
)
from marcorank._calls.failures import OPERATIONAL_ERRORS, TimeLimit, warnings
from marcorank._calls.model import LazyModel
from marcorank._calls.ranker import Ranker, RankRequest, Skim
from marcorank._calls.tracing import traced
from marcorank._forks import reset_in_child
from marcorank._inference.scorer import as_request_scorer
from marcorank._models import catalogue
from marcorank._models.fingerprint import fingerprint
from marcorank._models.loading import load_scorer, validate_model
from marcorank._second_models import fallback_of, skim_of
from marcorank._selection.selecting import Selection
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

    from marcorank._steps import Steps
    from marcorank.ranking import Activation, Outcome, ScoreKind
    from marcorank.scorer import Scorer
    from marcorank.settings import OnError

# For the message of an unknown argument.
RerankerSettings.__init__.__qualname__ = "Reranker.__init__"
_SETTINGS = tuple(descriptions(RerankerSettings))
_OF_RANK = {
    name: f"`{name}` is an argument of `rank`: reranker.rank(query, passages, {name}=...)."
    for name in ("top_n", "score_threshold", "retrieval_scores")
}
_OF_CONSTRUCTOR = {name: f"`{name}` is a setting: Reranker(..., {name}=...)." for name in _SETTINGS}
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
        skim: The reranker of the model that reads all passages first, or None.

    Raises:
        InvalidInputError: A setting has a value that is not allowed.
        UnknownModelError: The model is neither a possible Hub name nor a folder.
    """

    activation: Activation
    on_error: OnError
    timeout_s: float | None
    fallback: Reranker | None
    skim: Reranker | None
    _settings: RerankerSettings
    _score_kind: ScoreKind

    @takes(RerankerSettings)
    def __init__(self, *args: Any, **settings: Any) -> None:
        check_arguments("Reranker.__init__", settings, _SETTINGS, _OF_RANK)
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
        if given.max_drop is not None and not isinstance(given.activation, Logistic):
            raise InvalidInputError(
                f"`max_drop` is {given.max_drop} with `activation={quoted(given.activation)}`, whose scores are not "
                "calibrated: the same difference means something else for another query. Fit a Logistic with "
                "`marcorank eval`, and pass it as `activation`."
            )
        vars(self).update(
            fallback=fallback_of(given, Reranker) if renew_fallback else self.fallback,
            skim=skim_of(given, Reranker) if "skim" not in vars(self) else self.skim,
            activation=given.activation,
            on_error=given.on_error,
            timeout_s=given.timeout_s,
            _settings=given,
            _score_kind=kind,
        )

    @property
    def _owns_fallback(self) -> bool:
        return not isinstance(self._settings.fallback, Reranker)

    @property
    def _runs_scorers(self) -> bool:
        return self._custom is not None or (self.skim is not None and self.skim._runs_scorers)  # noqa: SLF001

    def _start(self) -> None:
        custom, settings = self._custom, self._settings
        self._model = LazyModel(
            self.name,
            lambda: load_scorer(settings) if custom is None else as_request_scorer(custom),
            is_custom=custom is not None,
            is_server=custom is None and is_remote(settings.name),
            cache_size=settings.cache_size if custom is None else 0,
            # One thread is enough for a model: it tokenises and sorts, and logits are computed elsewhere.
            max_workers=_THREADS_FOR_A_SCORER if self._runs_scorers else 1,
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

    @explains_arguments({**_OF_CONSTRUCTOR, **_OF_RANK})
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
        request = request_pair((query, passages))
        limit = None if self.timeout_s is None else TimeLimit(self.timeout_s, self.timeout_s)
        (scores,) = run(self._model.run(self._model.score([request]), limit))
        return scores.logits

    @explains_arguments(_OF_CONSTRUCTOR)
    def rank(
        self,
        query: str,
        passages: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        retrieval_scores: Iterable[float | None] | None = None,
    ) -> Ranking:
        """Rank passages, best first; ties keep the order of the input.

        Args:
            query: The query; must not be blank.
            passages: Texts; blank ones are allowed. Equal ones are scored once.
            top_n: Maximum number of results; None for all.
            score_threshold: Minimum score of a result, on the scale of the activation; applied before `top_n`.
            retrieval_scores: First-stage scores for `blend` and `skim`, one per passage, the greater the better. If any
                is None, `blend` goes by the order of the passages, and `skim` by its model alone.

        Raises:
            InvalidInputError: An argument is not allowed.
            ScoreError: The model did not return one finite logit for each passage.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        request = _request(query, passages, retrieval_scores)
        return run(self._rank([request], top_n, score_threshold))[0]

    @explains_arguments({**_OF_CONSTRUCTOR, "retrieval_scores": "They are the third part of a request."})
    def rank_many(
        self,
        requests: Iterable[tuple[str, Iterable[str]] | tuple[str, Iterable[str], Iterable[float | None] | None]],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[Ranking]:
        """Rank the passages of several queries in shared batches; returns one ranking per query, in order.

        Args:
            requests: Pairs of a query and its passages, or triples with their first-stage scores.
            top_n: Maximum number of results of each ranking; None for all.
            score_threshold: Minimum score of a result, on the scale of the activation; applied before `top_n`.

        Raises:
            InvalidInputError: An argument is not allowed.
            ScoreError: The model did not return one finite logit for each passage.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        checked = [RankRequest(*request_parts(request)) for request in requests]
        return run(self._rank(checked, top_n, score_threshold))

    @explains_arguments(_OF_CONSTRUCTOR)
    async def arank(
        self,
        query: str,
        passages: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        retrieval_scores: Iterable[float | None] | None = None,
    ) -> Ranking:
        """Rank passages like `rank`, without blocking the event loop.

        Texts are tokenised in a thread of this reranker, and concurrent calls share batches. If the task is
        cancelled, passages that have not been scored yet are dropped.
        """
        request = _request(query, passages, retrieval_scores)
        return (await arun(self._rank([request], top_n, score_threshold, may_block=False)))[0]

    def warm_up(self) -> Self:
        """Load all models and run each once, so that the first call is as fast as the others.

        `timeout_s` does not apply here. A model that fails is logged if calls can be answered without it.

        Raises:
            MarcoRankError: No model can be loaded, and `on_error` is `"raise"`; see `errors`.
        """
        failures: list[tuple[str, Exception]] = []
        try:
            try:
                if self.skim is not None:
                    self.skim.warm_up()
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
        if self.skim is not None and self.skim is not self._settings.skim:
            self.skim.close()

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
        settings = self._settings
        return {
            **settings.values(),
            "fallback": plain_second_model("fallback", settings.fallback),
            "skim": plain_second_model("skim", settings.skim),
        }

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
        skim = None if self.skim is None else Skim(self.skim._model, self._settings.skim_keep)  # noqa: SLF001
        return Ranker(self._model, self._score_kind, self.activation, self.on_error, self.timeout_s, fallback, skim)

    def _rank(
        self, requests: Sequence[RankRequest], top_n: object, score_threshold: object, *, may_block: bool = True
    ) -> Steps[list[Ranking]]:
        """Check the options and return the steps that rank; `may_block` allows them to run in the calling thread."""
        ranker = self._ranker()
        selection = self._selection(ranker, top_n, score_threshold)
        return traced(ranker, requests, selection, ranker.rank(requests, selection, may_block=may_block))

    def _selection(self, ranker: Ranker, top_n: object, score_threshold: object) -> Selection:
        settings = self._settings
        selection = Selection(
            top_n_or_none(top_n),
            score_threshold_or_none(score_threshold),
            settings.blend,
            settings.max_similarity,
            settings.max_drop,
            settings.min_n,
        )
        selection.check()
        ranker.check(selection)
        return selection


def check_options(reranker: Reranker, *, top_n: object, score_threshold: object) -> None:
    """Check the options of a call before there is one.

    Raises:
        InvalidInputError: They contradict each other or the settings.
    """
    reranker._selection(reranker._ranker(), top_n, score_threshold)  # noqa: SLF001


def loaded_precision(reranker: Reranker) -> str | None:
    """Return the precision of the model; None before it is loaded, and for a server or a scorer of the user."""
    backend = reranker._model.backend  # noqa: SLF001
    return None if backend is None else backend.precision


def scorer_fingerprint(reranker: Reranker) -> dict[str, Any]:
    """Return everything that decides the logits of a reranker, as this process would compute them; see `fingerprint`.

    Raises:
        MarcoRankError: The settings contradict each other, or a file of the model is missing or cannot be fetched.
    """
    settings = reranker._settings  # noqa: SLF001 -- with the token, which no public form has
    return fingerprint(settings if isinstance(reranker.model, str) else cast("Scorer", reranker.model))


def ranking_fingerprint(reranker: Reranker) -> dict[str, Any]:
    """Return everything that decides the rankings of a reranker: its logits, and the options that are on.

    Raises:
        MarcoRankError: The settings contradict each other, or a file of a model is missing or cannot be fetched.
    """
    settings = reranker._settings  # noqa: SLF001
    found = scorer_fingerprint(reranker)
    if reranker.skim is not None:
        of_skim = {f"skim_{name}": value for name, value in scorer_fingerprint(reranker.skim).items()}
        found |= {**of_skim, "skim_keep": settings.skim_keep}
    if settings.blend:
        found["blend"] = settings.blend
    if settings.max_similarity is not None:
        found["max_similarity"] = settings.max_similarity
    if settings.max_drop is not None:
        found |= {"max_drop": settings.max_drop, "min_n": settings.min_n}
    return found


def changed_settings(reranker: Reranker) -> dict[str, Any]:
    """Return the settings, in the form of `values`, that are not the default."""
    usual = defaults(RerankerSettings)
    values = reranker._settings.values()  # noqa: SLF001
    return {name: value for name, value in values.items() if value != usual[name]}


def skim_for(reranker: Reranker, skim: object) -> Reranker:
    """Return the reranker whose model would skim for another one: `skim` itself if it is a reranker.

    Raises:
        InvalidInputError: It cannot skim.
    """
    found: Reranker = skim_of(replace(reranker._settings, skim=skim), Reranker)  # type: ignore[arg-type]  # noqa: SLF001
    return found


def _request(query: object, passages: object, retrieval_scores: object) -> RankRequest:
    return RankRequest(*request_parts((query, passages, retrieval_scores)))


def plain_second_model(setting: str, model: object) -> str | dict[str, Any] | None:
    """Return the JSON-ready form of a `fallback` or `skim`, without tokens.

    Raises:
        InvalidInputError: It is a scorer object, which has no such form.
    """
    if isinstance(model, (Reranker, RemoteScorer)):
        return model.to_dict()
    if isinstance(model, Mapping):
        return dict(model)
    if model is None or isinstance(model, str):
        return model
    raise InvalidInputError(
        f"The {setting} is the object {quoted(model)}; only a name, a server or a reranker of one has a dict form. "
        "Pickle keeps the object."
    )
