"""`Reranker`, the face of the core."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from marcorank._arguments import (
    one_of,
    passage_texts,
    query_text,
    request_pair,
    score_threshold_or_none,
    text_or_none,
    top_n_or_none,
    whole_number,
)
from marcorank._calls.failures import (
    ON_ERROR,
    OPERATIONAL_ERRORS,
    timeout_or_none,
    warnings,
)
from marcorank._calls.model import LazyModel
from marcorank._calls.ranker import Ranker, RankOptions
from marcorank._inference.pairs import LONG_PASSAGES
from marcorank._inference.scorer import as_request_scorer
from marcorank._models import catalogue
from marcorank._models.fingerprint import fingerprint
from marcorank._models.loading import load_scorer, reset_models_in_child, validate_model
from marcorank._models.selection import BACKENDS, PRECISIONS, ModelSettings
from marcorank._steps import arun, run
from marcorank.errors import InvalidInputError
from marcorank.ranking import (
    Logistic,
    Ranking,
    RerankStatus,
    checked_activation,
    plain_activation,
)
from marcorank.remote import RemoteScorer, is_remote
from marcorank.scorer import Scorer, score_kind, scorer_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from marcorank._calls.failures import OnError
    from marcorank._inference.pairs import LongPassages
    from marcorank._inference.scorer import Request
    from marcorank._models.selection import BackendName, Precision
    from marcorank._steps import Steps
    from marcorank.ranking import Activation, Outcome, ScoreKind

DEFAULT_MODEL = "cross-encoder/ms-marco-MiniLM-L-6-v2"
_DEFAULTS = {
    **asdict(ModelSettings(model=DEFAULT_MODEL)),
    "activation": "identity",
    "on_error": "raise",
    "timeout_s": None,
    "fallback": None,
}
# A custom scorer may block each of them.
_THREADS_FOR_A_SCORER = 16


class Reranker:
    """Scores passages against a query with a cross-encoder and ranks them.

    Nothing is downloaded or loaded before the first use. Any number of threads and tasks may share one reranker,
    and rerankers with the same settings share the weights. Copies and pickles carry the settings without the
    token, never the weights.

    Attributes:
        model: Name or path of the model, or the scorer that was given.
        name: Name of the model, for people.
        activation: How scores are made from logits.
        on_error: `"raise"` or `"passthrough"`.
        timeout_s: Maximum number of seconds of a call; None for no limit.
        fallback: Ranks where the model fails.
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
        on_error: OnError = "raise",
        timeout_s: float | None = None,
        fallback: str | os.PathLike[str] | Scorer | Reranker | Mapping[str, Any] | None = None,
        token: str | None = None,
    ) -> None:
        """Take the settings; the model is loaded at the first use.

        Args:
            model: `"bundled"` for the small model in the wheel, a hub name in any spelling, the path of a model
                folder, a server such as `"tei+http://host:8080"` (see `marcorank.remote`), or an object with
                `score(query, passages)`. The settings up to `activation` and from `max_length` to `cache_size` mean
                nothing to such an object, and a server refuses them.
            backend: `"openvino"`, `"onnx"`, `"torch"`, or `"auto"`: torch on a GPU, else openvino if it is installed,
                else onnx. `marcorank doctor` shows which backend was chosen and why.
            device: As torch spells devices, such as `"cpu"` or `"cuda:0"`; None takes a GPU if torch sees one.
            precision: `"fp32"`, `"bf16"`, `"fp16"` or `"int8"`; `"auto"` is the fastest that ranks as fp32 does: bf16
                where the backend and the processor or GPU compute in it, else fp32. The bundled model is int8.
            threads: Maximum number of threads that compute on the CPU; None for one per usable core. The torch
                backend leaves its threads to torch.
            activation: `"identity"` (scores are logits), `"sigmoid"` (scores from 0 to 1), or a `Logistic(a, b)` that
                was fitted on judged data (probabilities there), also as `{"a": a, "b": b}`.
            max_length: Maximum number of tokens of query and passage, special tokens included; the model's limit
                applies if it is lower.
            max_query_tokens: Maximum number of tokens of a query; None for half of what fits. A longer query is
                truncated, which `Ranking.query_truncated` and a log message report.
            long_passages: `"truncate"` scores the beginning of a passage that does not fit and reports it;
                `"windows"` scores all of it in overlapping parts, and the best part counts.
            revision: Branch, tag or commit on the hub; None for the one that the catalogue pins, else `main`.
            cache_folder: Where hub files are kept; None for the Hugging Face cache.
            local_files_only: True forbids the network; None leaves it to `HF_HUB_OFFLINE`.
            allow_pickle: Whether weights that come only as pickle may be read. A pickle can run code.
            cache_size: How many passages are remembered with their scores, those used last; 0 for none. Texts are not
                kept.
            on_error: What becomes of a call when no model can answer it: `"raise"`, or `"passthrough"`, which gives the
                first `top_n` passages in the order of the input, without scores; `Ranking.status` says why. Wrong
                arguments and missing packages are always raised.
            timeout_s: Maximum number of seconds of a call, loading included; None for no limit. What has not been
                scored by then is dropped.
            fallback: Another model, or a scorer or reranker, that ranks where the first fails. With `timeout_s` the
                first has half of the time. A name takes `activation`, `threads`, `cache_folder` and
                `local_files_only` from here.
            token: Access token for the hub, or key of the server; kept out of every message, dict and pickle.

        Raises:
            InvalidInputError: A setting has a value that is not allowed.
            UnknownModelError: The model is neither a possible hub name nor a folder.
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
        self.name = self._display_name()
        self.on_error: OnError = one_of("on_error", on_error, ON_ERROR)
        self.timeout_s = timeout_or_none(timeout_s)
        self._score_kind = (
            score_kind(self._custom)
            if self._custom is not None
            else validate_model(self._settings, has_fallback=fallback is not None)
        )
        if self._score_kind == "probability" and isinstance(self.activation, Logistic):
            raise InvalidInputError(
                f"`activation` is {self.activation!r}, which is fitted on logits; {self.name} gives probabilities only."
            )
        self.fallback = self._checked_fallback(fallback)
        # Its settings come from here, so what was given is all there is to say of it.
        self._fallback_given = os.fspath(fallback) if isinstance(fallback, os.PathLike) else fallback
        self._start()
        _rerankers.add(self)

    def _checked_fallback(self, fallback: object) -> Reranker | None:
        if fallback is None or isinstance(fallback, Reranker):
            return fallback
        if isinstance(fallback, Mapping):
            if "token" in fallback:
                raise InvalidInputError("`fallback` holds a `token`, which dicts do not keep; pass a Reranker.")
            if "url" in fallback:
                return Reranker(RemoteScorer.from_dict(fallback), activation=self.activation)
            return Reranker.from_dict({"activation": self.activation, **fallback})
        if not isinstance(fallback, (str, os.PathLike)):
            return Reranker(_checked_scorer(fallback, name="fallback"), activation=self.activation)
        settings = self._settings
        if is_remote(os.fspath(fallback)):
            return Reranker(fallback, activation=self.activation)
        return Reranker(
            fallback,
            activation=self.activation,
            threads=settings.threads,
            cache_folder=settings.cache_folder,
            local_files_only=settings.local_files_only,
        )

    @property
    def _owns_fallback(self) -> bool:
        return not isinstance(self._fallback_given, Reranker)

    def _display_name(self) -> str:
        if self._custom is not None:
            return scorer_name(self._custom)
        info = catalogue.find(self._settings.model)
        return info.name if info else self._settings.model

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
    def model(self) -> str | Scorer:
        """Name or path of the model, or the scorer that was given."""
        return self._settings.model if self._custom is None else self._custom

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
        (scores,) = run(self._model.run(self._model.score([request]), self.timeout_s))
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
                f"The model is the object {self._custom!r}; only a reranker with a model name or folder has a "
                "dict form. Pickle keeps the object."
            )
        settings = self._plain_settings()
        return {**settings, "fallback": plain_fallback(settings["fallback"])}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Make a reranker from what `to_dict` returned.

        Raises:
            InvalidInputError: A key is unknown or a value is not allowed.
        """
        unknown = sorted(set(settings) - set(_DEFAULTS))
        if unknown:
            raise InvalidInputError(
                f"Unknown settings {', '.join(map(repr, unknown))}; expected some of {', '.join(sorted(_DEFAULTS))}."
            )
        return cls(**settings)

    def __repr__(self) -> str:
        shown = [
            f"{name}={value!r}"
            for name, value in {**self._plain_settings(), "activation": self.activation}.items()
            if name != "model" and value != _DEFAULTS[name]
        ]
        return f"{type(self).__name__}({', '.join([repr(self.model), *shown])})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self._plain_settings(), "model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the logits; see `fingerprint`."""
        return fingerprint(self._settings if self._custom is None else self._custom)

    def _plain_settings(self) -> dict[str, Any]:
        settings = asdict(self._settings)
        del settings["token"]
        return {
            **settings,
            "activation": plain_activation(self.activation),
            "on_error": self.on_error,
            "timeout_s": self.timeout_s,
            "fallback": self._fallback_given,
        }

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


_rerankers: WeakSet[Reranker] = WeakSet()


def _restart_in_child() -> None:
    """Give a forked child its own models, locks and threads, because those of the parent do not work there."""
    reset_models_in_child()
    for reranker in _rerankers:
        closed = reranker._model.closed  # noqa: SLF001
        reranker._start()  # noqa: SLF001
        reranker._model.closed = closed  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_in_child)


def _folder_or_none(name: str, value: object) -> str | None:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    folder = text_or_none(name, value)
    return None if folder is None else os.path.expanduser(folder)  # noqa: PTH111


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


def _checked_scorer(model: object, *, name: str = "model") -> Scorer:
    if isinstance(model, type) or not isinstance(model, Scorer):
        # A dict may hold a token.
        shown = "a dict" if isinstance(model, Mapping) else repr(model)
        raise InvalidInputError(
            f"`{name}` is {shown}; expected a model name, the path of a model folder, or an object with "
            "`score(query, passages)`."
        )
    return model
