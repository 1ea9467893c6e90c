"""Every setting of a reranker once: its name, type, default, check and one line of help.

`Reranker`, the fields of both adapters, dicts and JSON, the options of the command line, the settings of the server and
the tables of the documentation are derived from the records in this module.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import partial
from typing import Any, Concatenate, Literal, ParamSpec, cast, get_args

from marcorank._arguments import one_of, positive, share, text_or_none, whole_number
from marcorank._text import quoted
from marcorank.errors import InvalidInputError
from marcorank.ranking import Activation, Logistic, checked_activation, plain_activation
from marcorank.scorer import Scorer, scorer_name

P = ParamSpec("P")

BackendName = Literal["auto", "openvino", "onnx", "torch"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
LongPassages = Literal["truncate", "windows"]
SpecialTokens = Literal["parse", "text"]
OnError = Literal["raise", "passthrough"]

BACKENDS: tuple[str, ...] = get_args(BackendName)
PRECISIONS: tuple[str, ...] = get_args(Precision)
DEFAULT_MODEL = "cross-encoder/ms-marco-MiniLM-L6-v2"

_FLAGS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Description:
    """A setting, beside its name and type.

    Attributes:
        default: Its default; None often means that something else decides.
        help: What it does, in one line of Markdown.
        check: Takes the name to show and a value; returns the valid value or raises `InvalidInputError`.
        from_text: Turns the text of an option or an environment variable into a value; `ValueError` if it cannot.
        choices: The values that are allowed, if they can be listed.
        option: The option of the command line, if it is not called like the setting.
        metavar: What stands for the value in the help of the command line.
    """

    default: Any
    help: str
    check: Callable[[str, Any], Any]
    from_text: Callable[[str], object] = str
    choices: tuple[str, ...] = ()
    option: str | None = None
    metavar: str | None = None

    @property
    def is_flag(self) -> bool:
        """Whether an option of the command line takes no value."""
        return self.from_text is flag_from_text

    def read(self, name: str, text: str) -> Any:
        """Return the valid value that a text stands for.

        Raises:
            InvalidInputError: The text does not stand for one.
        """
        try:
            value = self.from_text(text)
        except InvalidInputError:
            raise
        except ValueError:
            if self.is_flag:
                raise InvalidInputError(f"`{name}` is {quoted(text)}; expected one of {', '.join(_FLAGS)}.") from None
            value = text  # The check says what was expected.
        return self.check(name, value)


def setting(
    default: object, help_text: str, check: Callable[[str, Any], Any], *, secret: bool = False, **more: Any
) -> Any:
    """Return the dataclass field of a setting; a secret is kept out of `repr`, dicts and pickles."""
    description = Description(default, help_text, check, **more)
    return field(default=default, repr=not secret, metadata={"description": description})


def flag_from_text(text: str) -> bool:
    """Return the truth value that a text stands for.

    Raises:
        ValueError: It stands for none.
    """
    try:
        return _FLAGS[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _whole_number_or_none(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"`{name}` is {quoted(value)}; expected a text.")
    return value


def _optional(check: Callable[[str, Any], Any], name: str, value: object) -> Any:
    return None if value is None else check(name, value)


def _at_least(minimum: int) -> Callable[[str, Any], int]:
    return partial(whole_number, minimum=minimum)


def _folder(name: str, value: object) -> str | None:
    folder = text_or_none(name, os.fspath(value) if isinstance(value, os.PathLike) else value)
    return None if folder is None else os.path.expanduser(folder)  # noqa: PTH111


def _activation(_name: str, value: object) -> Activation:
    return checked_activation(value)


def _activation_from_text(text: str) -> Activation:
    kind, colon, numbers = text.partition(":")
    try:
        if kind == "logistic" and colon:
            a, b = map(float, numbers.split(","))
            return Logistic(a, b)
        return checked_activation(text)
    except ValueError as error:
        raise InvalidInputError(
            f"found {quoted(text)}; expected identity, sigmoid, or logistic:A,B with two numbers, A above 0"
        ) from error


def _timeout(name: str, value: object) -> float:
    # No lock can wait longer than that, which is some centuries.
    return min(positive(name, value, "None or a number of seconds above 0"), threading.TIMEOUT_MAX)


def _model(name: str, value: object) -> str | Scorer:
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, type) or not isinstance(value, Scorer):
        # A dict may hold a token.
        shown = "a dict" if isinstance(value, Mapping) else quoted(value)
        raise InvalidInputError(
            f"`{name}` is {shown}; expected a model name, the path of a model folder, or an object with "
            "`score(query, passages)`."
        )
    return value


def _second_model(name: str, value: object) -> str | Scorer | Mapping[str, Any]:
    if not isinstance(value, Mapping):
        return _model(name, value)
    if "token" in value:
        raise InvalidInputError(f"`{name}` holds a `token`, which dicts do not keep; pass a Reranker.")
    if not value:
        raise InvalidInputError(f"`{name}` is an empty dict; expected that of a Reranker or a RemoteScorer, or None.")
    copied = dict(value)
    if isinstance(value.get("model"), os.PathLike):
        copied["model"] = os.fspath(value["model"])
    if "activation" in value:
        copied["activation"] = plain_activation(checked_activation(value["activation"]))
    return copied


@dataclass(kw_only=True)
class ModelSettings:
    """Settings of a model that runs on this machine."""

    backend: BackendName = setting(
        "auto",
        "Inference engine; `auto` is torch on a GPU, else openvino if it is installed, else onnx, and torch if the "
        "model has no file for these. `marcorank doctor` shows which one was chosen and why.",
        partial(one_of, allowed=BACKENDS),
        choices=BACKENDS,
    )
    device: str | None = setting(
        None, "Device as torch spells it, such as `cpu` or `cuda:0`; by default a GPU if torch sees one.", text_or_none
    )
    precision: Precision = setting(
        "auto",
        "Precision of the computation; `auto` is the fastest that ranks as fp32 does: bf16 if the backend and the "
        "processor or GPU support it, else fp32. The bundled models are int8.",
        partial(one_of, allowed=PRECISIONS),
        choices=PRECISIONS,
    )
    threads: int | None = setting(
        None,
        "Maximum number of CPU threads; by default one for each core that this process may use. torch uses its own "
        "setting.",
        partial(_optional, _at_least(1)),
        from_text=int,
        metavar="N",
    )
    max_length: int | None = setting(
        512,
        "Maximum number of tokens of query and passage together, including special tokens; at least 16. A lower limit "
        "of the model takes precedence. None, on the command line `none`, for the limit of the model, or 512 if it has "
        "none.",
        partial(_optional, _at_least(16)),
        from_text=_whole_number_or_none,
        metavar="TOKENS",
    )
    max_query_tokens: int | None = setting(
        None,
        "Maximum number of tokens of a query; by default half of what fits. A longer query is truncated and reported.",
        partial(_optional, _at_least(1)),
        from_text=int,
        metavar="TOKENS",
    )
    long_passages: LongPassages = setting(
        "truncate",
        "`truncate` scores the beginning of a passage that is too long, and reports it; `windows` scores the whole "
        "passage in overlapping windows, and the best one counts.",
        partial(one_of, allowed=get_args(LongPassages)),
        choices=get_args(LongPassages),
    )
    special_tokens: SpecialTokens = setting(
        "parse",
        "How special tokens in a query or passage, such as `[SEP]`, are read: `parse` treats them as special "
        "tokens, as sentence-transformers does; `text` tokenises them as any other text, so that a passage cannot "
        "imitate the end of the query.",
        partial(one_of, allowed=get_args(SpecialTokens)),
        choices=get_args(SpecialTokens),
    )
    instruction: str | None = setting(
        None,
        "Text before each query, in place of the prompt that the model was saved with. Only for models with a saved "
        "prompt or a chat template.",
        partial(_optional, _text),
        metavar="TEXT",
    )
    revision: str | None = setting(
        None,
        "Branch, tag or commit on the Hub; by default the commit pinned in the catalogue, else `main`.",
        text_or_none,
        metavar="REV",
    )
    cache_folder: str | os.PathLike[str] | None = setting(
        None, "Folder for Hub files; by default the Hugging Face cache.", _folder, metavar="DIR"
    )
    local_files_only: bool | None = setting(
        None,
        "Use only files that are on this machine, never the network; by default `HF_HUB_OFFLINE` decides.",
        partial(one_of, allowed=(True, False, None)),
        from_text=flag_from_text,
        option="--offline",
    )
    allow_pickle: bool = setting(
        False,
        "Load weights also if they exist only as pickle. A pickle can run code.",
        partial(one_of, allowed=(True, False)),
        from_text=flag_from_text,
    )
    cache_size: int = setting(
        0,
        "Maximum number of passages whose scores are cached, least recently used evicted first; 0 for none.",
        _at_least(0),
        from_text=int,
        metavar="N",
    )
    max_passages_per_request: int | None = setting(
        None,
        "Maximum number of passages in a request to a server; by default the usual limit of its kind. A lower limit of "
        "the server is found out and respected. Only for servers.",
        partial(_optional, _at_least(1)),
        from_text=int,
        metavar="N",
    )


@dataclass(kw_only=True)
class SharedSettings(ModelSettings):
    """Settings with the same names in `Reranker` and in both adapters: all but the model."""

    activation: Activation | Mapping[str, float] = setting(
        "identity",
        "How scores are made from logits: `identity` leaves them as they are, `sigmoid` maps them to 0 to 1, and a "
        '`Logistic(a, b)` (in JSON `{"a": a, "b": b}`, on the command line `logistic:A,B`) maps them to probabilities '
        "fitted on judged data.",
        _activation,
        from_text=_activation_from_text,
        metavar="NAME",
    )
    on_error: OnError = setting(
        "raise",
        "What happens if no model can rank: `raise`, or `passthrough`, which returns the first `top_n` passages in "
        "input order, without scores. Wrong arguments and missing packages always raise errors.",
        partial(one_of, allowed=get_args(OnError)),
        choices=get_args(OnError),
    )
    timeout_s: float | None = setting(
        None,
        "Timeout of a call in seconds, including loading the model; by default there is no limit.",
        partial(_optional, _timeout),
        from_text=float,
        metavar="SECONDS",
    )
    fallback: str | os.PathLike[str] | Scorer | Mapping[str, Any] | None = setting(
        None,
        "Another model, a `Scorer`, a `Reranker`, or the dict of one, that ranks if the first one fails. With "
        "`timeout_s` the first one gets half of the time. A fallback given by name uses `activation`, "
        "`special_tokens`, `threads`, `cache_folder` and `local_files_only` of this reranker, a server "
        "`activation` and `max_passages_per_request`.",
        partial(_optional, _second_model),
    )
    skim: str | os.PathLike[str] | Scorer | Mapping[str, Any] | None = setting(
        None,
        "A cheaper model, a `Scorer`, a `Reranker`, or the dict of one, that reads all passages first; the model then "
        "reads only the `skim_keep` best of them. The others follow without a score. Where all passages have "
        "first-stage scores, the ranks of these and of the cheaper model are fused. One given by name uses "
        "`max_length`, `max_query_tokens`, `long_passages`, `special_tokens`, `threads`, "
        "`cache_folder`, `local_files_only` and `cache_size` of this reranker, a server `max_passages_per_request`.",
        partial(_optional, _second_model),
    )
    skim_keep: int = setting(
        30,
        "How many passages the model reads after `skim`; at least `top_n`.",
        _at_least(1),
        from_text=int,
        metavar="N",
    )
    blend: float = setting(
        0.0,
        "Weight of the first stage in the order, from 0 for none to 1: of its scores where all passages have one, else "
        "of its ranks. Scores stay those of the model.",
        share,
        from_text=float,
        metavar="WEIGHT",
    )
    max_similarity: float | None = setting(
        None,
        "Skip a passage whose similarity to a better one is above this number, from 0 to 1, and rank the next in its "
        "place; 0.8 skips near-copies, 1 skips nothing. By default none is skipped.",
        partial(_optional, share),
        from_text=float,
        metavar="SHARE",
    )
    max_drop: float | None = setting(
        None,
        "End a ranking where the probability of all further results is more than this much below that of the last one, "
        "from 0 to 1. Needs a `Logistic` as `activation`. By default it ends at `top_n`.",
        partial(_optional, share),
        from_text=float,
        metavar="DROP",
    )
    min_n: int = setting(
        1,
        "How many results `max_drop` keeps at least.",
        _at_least(1),
        from_text=int,
        metavar="N",
    )


@dataclass
class RerankerSettings(SharedSettings):
    """All settings of a `Reranker`, checked.

    Raises:
        InvalidInputError: A value is not allowed.
    """

    model: str | os.PathLike[str] | Scorer = setting(
        DEFAULT_MODEL,
        "`bundled` or `bundled-tiny` for the small models in the wheel, a Hub name in any spelling, the path of a "
        "model folder, a server such as `tei+http://host:8080`, or an object with `score(query, passages)`. Such an "
        "object and a server refuse settings for local models.",
        _model,
    )
    _: KW_ONLY

    token: str | None = setting(
        None,
        "Access token for the Hub, or API key of the server; never part of messages, dicts or pickles. By default the "
        "token that huggingface_hub finds, or the server's key from the environment.",
        text_or_none,
        secret=True,
    )

    def __post_init__(self) -> None:
        for name, description in descriptions(type(self)).items():
            setattr(self, name, description.check(name, getattr(self, name)))

    @property
    def name(self) -> str:
        """The model as it was named: a name, a path or a URL. For an object, the name that it has."""
        return self.model if isinstance(self.model, str) else scorer_name(self.model)  # type: ignore[arg-type]

    def values(self) -> dict[str, Any]:
        """Return all settings but the token, as they are given to `Reranker`; the activation in its JSON form."""
        shown = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}
        return {**shown, "activation": plain_activation(self.activation)}  # type: ignore[arg-type]


def descriptions(record: type[ModelSettings]) -> dict[str, Description]:
    """Return the description of each setting of a record, by name."""
    return {one.name: one.metadata["description"] for one in fields(record)}


def defaults(record: type[ModelSettings]) -> dict[str, Any]:
    """Return the default of each setting of a record, by name; no secrets."""
    return {one.name: one.default for one in fields(record) if one.repr}


def takes(record: Callable[P, object]) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Give an `__init__` that passes its arguments on to a record the signature of the record, and the help."""

    def decorate(init: Callable[..., None]) -> Callable[Concatenate[Any, P], None]:
        signature = inspect.signature(record)
        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        init.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[first, *signature.parameters.values()], return_annotation=None
        )
        described = descriptions(cast("type[RerankerSettings]", record))
        lines = "\n".join(f"    {name}: {described[name].help}" for name in signature.parameters)
        init.__doc__ = f"Take the settings.\n\nArgs:\n{lines}"
        return init

    return decorate
