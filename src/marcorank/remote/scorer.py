"""`RemoteScorer`, which gets its scores from an HTTP reranking server."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from concurrent.futures import Future
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._arguments import check_names, positive, request_pair, text_or_none, whole_number
from marcorank._inference.scorer import AsyncScorer, PassageScores
from marcorank._text import is_blank
from marcorank.errors import MissingExtraError
from marcorank.ranking import check_finite
from marcorank.remote.address import parse_address
from marcorank.remote.connection import Connection, Server
from marcorank.remote.keys import Key, key_from_environment
from marcorank.remote.scale import ScaleCheck

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from marcorank._inference.scorer import Request
    from marcorank.ranking import ScoreKind

# The score of a blank passage, unless those of other passages of the request are as low: below them, but not so far
# that a calibration would go by it.
_BLANK_SCORES: dict[ScoreKind, float] = {"logit": -100.0, "probability": 0.0}


class RemoteScorer(AsyncScorer):
    """Scores passages on a server: text-embeddings-inference, vLLM, infinity, Cohere, Jina, Voyage or a compatible one.

    Use it in place of a model: `Reranker(RemoteScorer("tei+http://host:8080"))`. It can be shared by any number of
    threads and event loops. Nothing is sent and no thread is started before the first use. Copies and pickles contain
    the settings without the API key. Two scorers are equal if their settings are.

    The API key is `api_key`, or is read from the environment at each call: the vendor's variable, such as
    COHERE_API_KEY, is sent only to the vendor's own host, and MARCORANK_API_KEY to any server.
    """

    def __init__(
        self,
        url: str,
        *,
        dialect: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        max_attempts: int = 3,
        max_passages_per_request: int | None = None,
        max_parallel_requests: int = 8,
    ) -> None:
        """Check the settings; nothing is sent before the first use.

        Args:
            url: Base URL with the API of the server, such as `"tei+http://host:8080"`; append a model after a `#`.
            dialect: `"tei"`, `"vllm"`, `"infinity"`, `"cohere"`, `"jina"` or `"voyage"`, if not in the URL.
            model: Model to request; None for the one in the URL, or the one that the server has.
            api_key: Sent as a bearer token; never part of a message, dict, repr or pickle.
            timeout_s: Time limit of one attempt in seconds, from connecting to the last byte of the response.
            max_attempts: Maximum number of attempts per request. A request is retried, after a delay, if the server
                cannot be reached, disconnects, times out, or returns status 429, 502, 503 or 504.
            max_passages_per_request: Longer lists are split; None for the default of the API. If the server accepts
                fewer, that is found out and remembered.
            max_parallel_requests: Maximum number of concurrent requests, over all callers.

        Raises:
            InvalidInputError: A setting is invalid.
            MissingExtraError: httpx is not installed.
        """
        self._address = parse_address(url, dialect=dialect, model=text_or_none("model", model))
        self._api_key = None if api_key is None else Key(api_key)
        if max_passages_per_request is not None:
            max_passages_per_request = whole_number("max_passages_per_request", max_passages_per_request, 1)
        self._settings: dict[str, Any] = {
            "url": self._address.url,
            "dialect": self._address.dialect.name,
            "model": self._address.model,
            "timeout_s": positive("timeout_s", timeout_s, "a finite number of seconds above 0"),
            "max_attempts": whole_number("max_attempts", max_attempts, 1),
            "max_passages_per_request": max_passages_per_request,
            "max_parallel_requests": whole_number("max_parallel_requests", max_parallel_requests, 1),
        }
        if find_spec("httpx") is None:
            raise MissingExtraError("Scoring on a server needs httpx: pip install 'marcorank[remote]'")
        self._scale_check = ScaleCheck()
        self._connection = Connection(self._address, self._settings["max_parallel_requests"])
        # The thread refers only to the connection, else it would keep the scorer alive.
        weakref.finalize(self, self._connection.stop).atexit = False  # see `DaemonThread`

    @property
    def name(self) -> str:
        """Name of the model, or the URL of the server if no model is set."""
        return self._address.name

    @property
    def score_kind(self) -> ScoreKind:
        """Kind of the scores: `"logit"`, or `"probability"` for a server that returns nothing else."""
        return self._address.dialect.score_kind

    def score(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Return one score per passage, in input order. Shape: (passages,), float32.

        A blank passage is not sent; its score is the logit -100 or the probability 0, or lower than all others.

        Raises:
            InvalidInputError: The query or a passage is not a text, the query is blank, or the API key cannot be sent.
            ScoreError: A score is not finite.
            RemoteError: The server sent no valid response; see `errors` for the subclasses.
            ClosedError: The scorer was closed.
        """
        return self.score_requests([(query, passages)])[0].logits

    async def ascore(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Return one score per passage, like `score`, without blocking the event loop.

        Cancelling the task cancels the requests.
        """
        return (await asyncio.wrap_future(self.submit([(query, passages)])))[0].logits

    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score the passages of all requests in parallel; returns one result per request, in order.

        `truncated` is known if the server reports it for each passage.
        """
        future = self.submit(requests)
        try:
            return future.result()
        finally:
            # Such as after a KeyboardInterrupt while waiting; a future that is done stays as it is.
            future.cancel()

    def submit(self, requests: Sequence[Request]) -> Future[list[PassageScores]]:
        """Start scoring and return a future of the result of `score_requests`; cancelling it cancels the requests.

        Raises:
            InvalidInputError: The query or a passage is not a text, the query is blank, or the API key cannot be sent.
            ClosedError: The scorer was closed.
        """
        checked = [request_pair(request) for request in requests]
        if not any(_texts(passages) for _, passages in checked):
            future: Future[list[PassageScores]] = Future()
            empty = PassageScores.empty()
            future.set_result([_with_blanks(empty, passages, self.score_kind) for _, passages in checked])
            return future
        server = Server(
            self._address,
            self._api_key or key_from_environment(self._address),
            timeout_s=self._settings["timeout_s"],
            max_attempts=self._settings["max_attempts"],
            max_passages=self._settings["max_passages_per_request"] or self._address.dialect.max_passages,
        )
        score = partial(_score, server=server, requests=checked, check=self._scale_check)
        return self._connection.submit(score, user=self)

    def close(self) -> None:
        """Close the connections and stop the thread; running calls raise `ClosedError`."""
        self._connection.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON-ready values, without the API key."""
        return dict(self._settings)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Create a scorer from the settings that `to_dict` returned.

        Raises:
            InvalidInputError: A setting is unknown or invalid.
        """
        known = {"url", *_DEFAULTS}
        check_names(settings, known, required="url")
        return cls(**settings)

    def __eq__(self, other: object) -> bool:
        return self._settings == other._settings if isinstance(other, RemoteScorer) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._settings.values()))

    def __repr__(self) -> str:
        settings = self.to_dict()
        url, dialect = settings.pop("url"), settings.pop("dialect")
        shown = [f"{name}={value!r}" for name, value in settings.items() if value != _DEFAULTS[name]]
        return f"{type(self).__name__}({', '.join([repr(f'{dialect}+{url}'), *shown])})"

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


async def _score(
    connection: Connection, *, server: Server, requests: Sequence[Request], check: ScaleCheck
) -> list[PassageScores]:
    # Here, because importing httpx takes a while and would block the caller's event loop.
    from marcorank.remote.client import score_all

    sent = [(query, _texts(passages)) for query, passages in requests]
    scored = await score_all(connection, server=server, requests=sent)
    kind = server.address.dialect.score_kind
    results = [_with_blanks(scores, passages, kind) for scores, (_, passages) in zip(scored, requests, strict=True)]
    for scores in results:
        check_finite(scores.logits, model=server.address.name)
    check.look_at(scored, server.address)
    return results


def _texts(passages: Sequence[str]) -> list[str]:
    """Return the passages that are sent: some servers refuse a whole request for one blank passage."""
    return [passage for passage in passages if not is_blank(passage)]


def _with_blanks(scores: PassageScores, passages: Sequence[str], kind: ScoreKind) -> PassageScores:
    """Add the blank passages, which were not sent, to the scores of the others."""
    if len(scores.logits) == len(passages):
        return scores
    is_text = np.array([not is_blank(passage) for passage in passages], dtype=np.bool_)
    logits = np.full(len(passages), _BLANK_SCORES[kind], dtype=np.float32)
    logits[is_text] = scores.logits
    truncated = unknown_tokens = None
    if scores.truncated is not None:
        truncated = np.zeros(len(passages), dtype=np.bool_)
        truncated[is_text] = scores.truncated
    if scores.unknown_tokens is not None:
        unknown_tokens = np.zeros(len(passages), dtype=np.int64)
        unknown_tokens[is_text] = scores.unknown_tokens
    return PassageScores(logits, truncated, unknown_tokens=unknown_tokens).with_blanks_last(passages)


_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(RemoteScorer).parameters.items()
    if name not in {"url", "api_key"}
}
