"""Settings of the servers: from the environment, and from the command line or the arguments of a Serve application."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from marcorank._arguments import check_names, non_negative, one_of, positive, text_or_none, whole_number
from marcorank._inference.cpu import usable_cores
from marcorank._models.catalogue import BUNDLED
from marcorank._text import shorten
from marcorank.errors import InvalidInputError
from marcorank.remote import is_remote
from marcorank.remote.keys import KEY_VARIABLE
from marcorank.reranker import Reranker
from marcorank.settings import ModelSettings, SharedSettings, defaults, descriptions, flag_from_text, setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Self

_PREFIX = "MARCORANK_"
_KEY = "MARCORANK_SERVE_API_KEY"
_PORT = "MARCORANK_PORT"
_MAX_PORT = 65535
# As `difflib` measures it: one letter too many, too few or in the wrong place, also in a name of four.
_TYPO = 0.75
# What Kubernetes sets in each container for services whose names begin with "marcorank".
_OF_KUBERNETES = re.compile(r"MARCORANK_(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_\w+)")
_SHA256 = re.compile("[0-9a-f]{64}")

# Options of `Reranker` with the same meaning here; `skim` is a name.
_OPTIONS = ("skim", "skim_keep", "blend", "max_similarity")

_log = logging.getLogger("marcorank")


def _as_in_reranker(name: str) -> Any:
    (same,) = (one for one in fields(SharedSettings) if one.name == name)
    return field(default=same.default, metadata=same.metadata)


def _count(default: int, help_text: str, minimum: int = 1) -> Any:
    return setting(default, help_text, partial(whole_number, minimum=minimum), from_text=int, metavar="N")


def _text(name: str, value: object) -> str:
    text = text_or_none(name, value)
    if text is None:
        raise InvalidInputError(f"`{name}` is None; expected a text. Leave it out for the default.")
    return text


def _digest(name: str, value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not _SHA256.fullmatch(value)):
        raise InvalidInputError(f"`{name}` is not a SHA-256 in hex; expected 64 characters from 0-9 and a-f.")
    return value


def _port(name: str, value: object) -> int:
    port = whole_number(name, value, 0)
    if port > _MAX_PORT:
        raise InvalidInputError(f"`{name}` is {port}; expected at most {_MAX_PORT}.")
    return port


_yes_or_no = partial(one_of, allowed=(True, False))


def _flag(help_text: str) -> Any:
    return setting(default=False, help_text=help_text, check=_yes_or_no, from_text=flag_from_text)


def _seconds(default: float, help_text: str) -> Any:
    return setting(default, help_text, positive, from_text=float, metavar="SECONDS")


@dataclass(kw_only=True)
class ServerSettings(ModelSettings):
    """What a server serves, and its limits, with Ray and without.

    The settings of a local model are those of `Reranker`. Each setting is also an environment variable: its name in
    capitals after `MARCORANK_`, such as `MARCORANK_MAX_LENGTH`. Arguments take precedence. Of the API key,
    `MARCORANK_SERVE_API_KEY`, only the digest is kept.
    """

    model: str = setting(BUNDLED, "Model, as for `Reranker`.", _text)
    served_name: str | None = setting(
        None, "Model name that clients see and may request; by default the model's own.", text_or_none
    )
    max_batch: int = _count(1000, "Maximum number of passages in a request.")
    max_body_bytes: int = _count(4 * 2**20, "Maximum size of a request body in bytes.")
    max_ongoing: int = _count(32, "Maximum number of requests that are ranked at the same time, in each process.")
    auto_truncate: bool = _flag(
        "Truncate texts that are too long also for clients of TEI that do not ask for it; by default these get 413."
    )
    skim: str | None = setting(
        None,
        "A cheaper model that reads all passages of a request first. The response then has only the passages that the "
        "model read.",
        text_or_none,
    )
    skim_keep: int = _as_in_reranker("skim_keep")
    blend: float = _as_in_reranker("blend")
    max_similarity: float | None = _as_in_reranker("max_similarity")
    api_key_sha256: str | None = setting(
        None,
        "Digest of the API key that clients must send, SHA-256 in hex; by default none is needed.",
        _digest,
        secret=True,
        metavar="HEX",
    )

    @classmethod
    def of(cls, args: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Self:
        """Read settings from arguments and, for those not among them, from the environment.

        Args:
            args: Values by setting; a text is read as a number if a number is expected.
            environment: Values by environment variable; None for those of this process.

        Raises:
            InvalidInputError: An argument is unknown, a value is not allowed, or a variable has almost the name of one.
        """
        if "api_key" in args:
            raise InvalidInputError(
                f"`api_key` was given as an argument, which others can see; set {_KEY} in the environment, or "
                "give its SHA-256 in hex as `api_key_sha256`."
            )
        environment = os.environ if environment is None else environment
        cut = next((name for name in ("max_drop", f"{_PREFIX}MAX_DROP") if name in args or name in environment), None)
        if cut is not None:
            raise InvalidInputError(
                f"`{cut}` is not a setting of the server: its scores are sigmoids of logits, where the same difference "
                "means something else for another query. Cut in the client, with a Logistic fitted by `marcorank eval`."
            )
        known = descriptions(cls)
        check_names(args, known)
        _check_variables(environment, known)
        values: dict[str, Any] = {}
        for name, description in known.items():
            shown = name if name in args else _PREFIX + name.upper()
            value = args.get(name, environment.get(shown))
            if name not in args and shown == _PORT and isinstance(value, str) and value.startswith("tcp://"):
                continue  # of Kubernetes, for a service called marcorank
            if isinstance(value, str):
                values[name] = description.read(shown, value)
            elif name in args:
                values[name] = description.check(shown, value)
        if _KEY in environment and "api_key_sha256" not in args:
            values["api_key_sha256"] = hashlib.sha256(_key(environment[_KEY])).hexdigest()
        settings = cls(**values)
        settings.check()
        if KEY_VARIABLE in environment and settings.api_key_sha256 is None and not is_remote(settings.model):
            _log.warning(
                "%s is the key that marcorank sends to other servers. This server takes requests without a key; set %s "
                "to require one.",
                KEY_VARIABLE,
                _KEY,
            )
        return settings

    def check(self) -> None:
        """Check what several settings decide together.

        Raises:
            InvalidInputError: They contradict each other.
        """

    def reranker(self) -> Reranker:
        """Return a new reranker with these settings, whose scores are sigmoids; its model is not loaded yet.

        Raises:
            MarcoRankError: There is no such model, or the settings do not fit it; see `errors`.
        """
        settings = {name: getattr(self, name) for name in (*defaults(ModelSettings), *_OPTIONS)}
        if not is_remote(self.model):
            settings["threads"] = self.threads or self.default_threads()
        return Reranker(self.model, activation="sigmoid", **settings)

    def default_threads(self) -> int | None:
        """Return the number of threads of a local model if `threads` is not set; None for that of `Reranker`."""
        return None


@dataclass(kw_only=True)
class ProcessSettings(ServerSettings):
    """Settings of `marcorank serve`."""

    host: str = setting(
        "127.0.0.1", "Address to listen on; `0.0.0.0` for all addresses of this machine.", _text, metavar="ADDRESS"
    )
    port: int = setting(8080, "Port to listen on; 0 for any that is free.", _port, from_text=int, metavar="N")
    workers: int = _count(1, "Number of processes that share the port, each with the model and its share of the cores.")
    max_queued: int = _count(
        128, "Maximum number of requests that wait for their turn, in each process; further requests get 429.", 0
    )
    body_timeout_s: float = _seconds(
        10.0,
        "Seconds in which the head, and then the body, of a request have to arrive. After that the connection is "
        "closed; a late body gets 408.",
    )
    request_timeout_s: float = _seconds(60.0, "Seconds in which a request has to be ranked; 504 after that.")
    stop_timeout_s: float = _seconds(
        25.0, "Seconds that accepted requests are given to finish when the server stops; 503 after that."
    )
    quiet: bool = _flag("Log no line for each request.")

    def default_threads(self) -> int | None:
        """Processes on one machine do not compete for its cores."""
        return None if self.workers == 1 else max(1, usable_cores() // self.workers)


@dataclass(kw_only=True)
class ServeSettings(ServerSettings):
    """Settings of the server on Ray: what it serves, and how much of the cluster it uses.

    Those of a local model are for each replica; `threads` is `num_cpus` unless it is set. Only the digest of the API
    key is sent to the replicas.
    """

    num_cpus: float = setting(1, "CPUs that Ray reserves for a replica.", non_negative, from_text=float)
    num_gpus: float = setting(0, "GPUs that Ray reserves for a replica.", non_negative, from_text=float)
    min_replicas: int = _count(1, "Minimum number of replicas; with 0 an idle server stops its last one.", 0)
    max_replicas: int = _count(4, "Maximum number of replicas.")
    target_ongoing: float = setting(
        2, "Target of autoscaling: requests for each replica, running and waiting.", positive, from_text=float
    )
    max_queued: int = _count(
        128, "Maximum number of requests that wait in a proxy for a replica; further requests get 503."
    )

    def check(self) -> None:
        """Check that the maximum is not below the minimum.

        Raises:
            InvalidInputError: It is.
        """
        if self.max_replicas < self.min_replicas:
            raise InvalidInputError(
                f"`max_replicas` is {self.max_replicas} and `min_replicas` is {self.min_replicas}; "
                "expected at least as many."
            )

    def default_threads(self) -> int:
        """Ray reserves CPUs, but a process still sees all of the node's."""
        return max(1, int(self.num_cpus))


def _check_variables(environment: Mapping[str, str], known: Iterable[str]) -> None:
    """Warn of variables that nothing reads, in case they were meant to set something.

    Raises:
        InvalidInputError: The name of one is almost that of a setting.
    """
    ours = [name.removeprefix(_PREFIX) for name in (_KEY, KEY_VARIABLE)] + [name.upper() for name in known]
    for variable in sorted(environment):
        name = variable.removeprefix(_PREFIX)
        if name == variable or name in ours or _OF_KUBERNETES.fullmatch(variable):
            continue
        similar = difflib.get_close_matches(name, ours, n=1)
        hint = f" Did you mean {_PREFIX}{similar[0]}?" if similar else ""
        if _PREFIX + "".join(similar) == KEY_VARIABLE:
            hint = f" Did you mean {_KEY}, the key that clients must send, or {KEY_VARIABLE}, for other servers?"
        if difflib.get_close_matches(name, similar, cutoff=_TYPO):
            raise InvalidInputError(f"The environment variable `{shorten(variable)}` is unknown.{hint}")
        _log.warning("The environment variable %s is unknown and has no effect.%s", shorten(variable), hint)


def _key(value: str) -> bytes:
    if not value.isascii() or not value.isprintable() or not value or " " in value:
        raise InvalidInputError(f"`{_KEY}` is empty or has characters that a header cannot hold; expected ASCII.")
    return value.encode("ascii")
