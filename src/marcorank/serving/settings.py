"""Settings of the server, from the environment and from the arguments of a Serve application."""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from marcorank._arguments import one_of, text_or_none, whole_number
from marcorank._inference.pairs import LONG_PASSAGES, LongPassages
from marcorank._models.selection import BACKENDS, PRECISIONS, BackendName, Precision
from marcorank.errors import InvalidInputError
from marcorank.remote import is_remote
from marcorank.reranker import Reranker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

_PREFIX = "MARCORANK_"
_KEY = "MARCORANK_SERVE_API_KEY"
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What a server serves, and on how much.

    Each is set by the environment variable that has its name in capitals behind `MARCORANK_`, such as
    `MARCORANK_MAX_LENGTH`, or by the argument of its name, which wins. Of the key that callers have to send,
    `MARCORANK_SERVE_API_KEY`, only the digest is kept: it travels to the replicas, the key does not.

    Attributes:
        model: As `Reranker` takes it.
        served_name: Name that callers see and may ask for; None for the model's own.
        backend: As `Reranker` takes it.
        device: As `Reranker` takes it.
        precision: As `Reranker` takes it.
        threads: As `Reranker` takes it; None for one a CPU of `num_cpus`.
        max_length: As `Reranker` takes it.
        long_passages: As `Reranker` takes it.
        cache_size: As `Reranker` takes it, for each replica.
        max_batch: Most passages of a request.
        max_body_bytes: Most bytes of the body of a request.
        num_cpus: CPUs that Ray sets aside for a replica.
        num_gpus: GPUs that Ray sets aside for a replica.
        min_replicas: Fewest replicas; 0 lets an idle server have none.
        max_replicas: Most replicas.
        target_ongoing: Requests a replica, running and waiting, which autoscaling aims at.
        max_ongoing: Most requests that a replica has in work at once.
        max_queued: Most requests that wait in each proxy for a replica; further ones get 503.
        api_key_sha256: SHA-256 of the key that callers have to send, in hex; None for no key.
    """

    model: str = "bundled"
    served_name: str | None = None
    backend: BackendName = "auto"
    device: str | None = None
    precision: Precision = "auto"
    threads: int | None = None
    max_length: int = 512
    long_passages: LongPassages = "truncate"
    cache_size: int = 0
    max_batch: int = 1000
    max_body_bytes: int = 16 * 2**20
    num_cpus: float = 1
    num_gpus: float = 0
    min_replicas: int = 1
    max_replicas: int = 4
    target_ongoing: float = 2
    max_ongoing: int = 32
    max_queued: int = 128
    api_key_sha256: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, args: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Self:
        """Read settings from arguments and, for what these do not name, from the environment.

        Args:
            args: Values by the names of the attributes; text where a number is meant is read as one.
            environment: Values by the names of variables.

        Raises:
            InvalidInputError: An argument is unknown, or a value is not allowed.
        """
        known = {one.name for one in fields(cls)}
        if "api_key" in args:
            raise InvalidInputError(
                f"`api_key` was given as an argument, which Ray shows to everyone; set {_KEY} in the environment, or "
                "give its SHA-256 in hex as `api_key_sha256`."
            )
        unknown = sorted(set(args) - known)
        if unknown:
            raise InvalidInputError(
                f"Unknown settings {', '.join(map(repr, unknown))}; expected some of {', '.join(sorted(known))}."
            )
        given = {
            name: (variable, environment[variable])
            for name in known
            if (variable := _PREFIX + name.upper()) in environment
        } | {name: (name, value) for name, value in args.items()}
        settings = {name: _READERS[name](shown, value) for name, (shown, value) in given.items()}
        if "api_key_sha256" not in args and _KEY in environment:
            settings["api_key_sha256"] = hashlib.sha256(_key(environment[_KEY])).hexdigest()
        made = cls(**settings)
        if made.max_replicas < made.min_replicas:
            raise InvalidInputError(
                f"`max_replicas` is {made.max_replicas} and `min_replicas` is {made.min_replicas}; "
                "expected at least as many."
            )
        return made

    def reranker(self) -> Reranker:
        """Return a new reranker with these settings, loaded and warmed up; its scores are sigmoids.

        Raises:
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        return Reranker(
            self.model,
            backend=self.backend,
            device=self.device,
            precision=self.precision,
            # Ray sets aside CPUs, but a process still sees all of the node's. A server has its own.
            threads=None if is_remote(self.model) else self.threads or max(1, int(self.num_cpus)),
            activation="sigmoid",
            max_length=self.max_length,
            long_passages=self.long_passages,
            cache_size=self.cache_size,
        ).warm_up()


def _text(name: str, value: object) -> str:
    text = text_or_none(name, value)
    if text is None:
        raise InvalidInputError(f"`{name}` is None; expected a text. Leave it out for the default.")
    return text


def _whole(name: str, value: object, *, least: int) -> int:
    return whole_number(name, _as(int, value), least)


def _amount(name: str, value: object, *, above_zero: bool = False) -> float:
    number = _as(float, value)
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
    if not is_number or number < 0 or (above_zero and number == 0):
        expected = "a number above 0" if above_zero else "a number of at least 0"
        raise InvalidInputError(f"`{name}` is {value!r}; expected {expected}.")
    return float(number)


def _as(kind: Callable[[str], Any], value: object) -> Any:
    """Read a text as a number; what is none stays as it is."""
    try:
        return kind(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _choice(name: str, value: object, *, allowed: tuple[str, ...]) -> object:
    return one_of(name, value, allowed)


def _digest(name: str, value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise InvalidInputError(f"`{name}` is no SHA-256 in hex; expected 64 of 0-9 and a-f.")
    return value


def _key(value: str) -> bytes:
    if not value.isascii() or not value.isprintable() or not value or " " in value:
        raise InvalidInputError(f"`{_KEY}` is empty or has characters that a header cannot hold; expected ASCII.")
    return value.encode("ascii")


_READERS: dict[str, Callable[[str, object], Any]] = {
    "model": _text,
    "served_name": _text,
    "backend": partial(_choice, allowed=BACKENDS),
    "device": _text,
    "precision": partial(_choice, allowed=PRECISIONS),
    "threads": partial(_whole, least=1),
    "max_length": partial(_whole, least=16),
    "long_passages": partial(_choice, allowed=LONG_PASSAGES),
    "cache_size": partial(_whole, least=0),
    "max_batch": partial(_whole, least=1),
    "max_body_bytes": partial(_whole, least=1),
    "num_cpus": _amount,
    "num_gpus": _amount,
    "min_replicas": partial(_whole, least=0),
    "max_replicas": partial(_whole, least=1),
    "target_ongoing": partial(_amount, above_zero=True),
    "max_ongoing": partial(_whole, least=1),
    "max_queued": partial(_whole, least=1),
    "api_key_sha256": _digest,
}
