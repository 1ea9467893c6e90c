"""What the adapters have in common: the settings of the core as pydantic fields, and the `Reranker` made from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from marcorank._arguments import did_you_mean, one_of, score_threshold_or_none, text_or_none, top_n_or_none
from marcorank._models.catalogue import BUNDLED
from marcorank._text import quoted
from marcorank.errors import InvalidInputError, MarcoRankError
from marcorank.reranker import Reranker, check_options, plain_second_model
from marcorank.scorer import Scorer
from marcorank.settings import ModelSettings, RerankerSettings, SharedSettings, defaults, descriptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import ValidationInfo
    from typing_extensions import Self

TopN = Annotated[int | None, BeforeValidator(top_n_or_none)]
ScoreThreshold = Annotated[float | None, BeforeValidator(score_threshold_or_none)]
WriteMetadata = Annotated[bool, BeforeValidator(partial(one_of, "write_metadata", allowed=(True, False)))]

_USUAL = defaults(SharedSettings)
_SHARED = tuple(_USUAL)
_OF_A_MODEL = {"model", *defaults(ModelSettings)}
_SECOND_MODELS = ("fallback", "skim")
# Fields that are checked together with the settings of the core.
_OPTIONS_OF_A_CALL = {"top_n", "score_threshold"}
# What traces show where it is on, with what it goes by.
_TRACED = {
    "skim": ("skim", "skim_keep"),
    "blend": ("blend",),
    "max_similarity": ("max_similarity",),
    "max_drop": ("max_drop", "min_n"),
}
_MAX_NAME_CHARS = 60
# In dumps, after the name of a scorer object that is the name of a model too.
_OBJECT = " (object)"
_DESCRIPTIONS = descriptions(RerankerSettings)


class AdapterSettings(BaseModel, SharedSettings):
    """The settings of `marcorank.Reranker` as fields, under the same names except for the model.

    An adapter adds the field of the model and names it in `_model_field`. Equality, pickles and dumps go by the
    settings, without the token; a pickle carries `reranker` too. Copies share the model.

    Attributes:
        reranker: A `marcorank.Reranker` to share, or an object with `score(query, passages)`, in place of the model
            settings; the fields then show its own. Other settings beside it are an error.
        token: Access token for the Hub.
    """

    model_config = ConfigDict(
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_assignment=True,
        # Values are in our own messages; pydantic would also print a token.
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    _model_field: ClassVar[str]
    # Types with a `score` method that is not that of a scorer.
    _no_scorers: ClassVar[tuple[type, ...]] = (type,)

    reranker: SkipJsonSchema[Reranker | Scorer | None] = Field(default=None, exclude=True)
    fallback: str | dict[str, Any] | SkipJsonSchema[Reranker | Scorer] | None = None
    skim: str | dict[str, Any] | SkipJsonSchema[Reranker | Scorer] | None = None
    token: str | SecretStr | None = Field(default=None, exclude=True)

    _made: Reranker | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        other = "model" if cls._model_field == "model_name" else "model_name"
        if isinstance(data, dict) and other in data:
            raise InvalidInputError(f"{cls.__name__} has no field `{other}`; name it `{cls._model_field}`.")
        check_field_names(cls, data)
        return data

    @field_validator("reranker", mode="before")
    @classmethod
    def _check_reranker(cls, value: object, info: ValidationInfo) -> object:
        if cls._model_field in info.data:  # an assignment
            raise InvalidInputError(
                "`reranker` cannot be changed, because the other fields show its settings. Make a new "
                f"{cls.__name__}(reranker=...)."
            )
        if isinstance(value, cls._no_scorers) or not isinstance(value, (Reranker, Scorer, NoneType)):
            # A dict may hold a token.
            shown = "a dict" if isinstance(value, dict) else quoted(value)
            raise InvalidInputError(
                f"`reranker` is {shown}; expected a marcorank.Reranker or an object with `score(query, passages)`. "
                f"The name of a model goes in `{cls._model_field}`."
            )
        return value

    @field_validator("model", "model_name", *_SHARED, mode="before", check_fields=False)
    @classmethod
    def _check_setting(cls, value: object, info: ValidationInfo) -> object:
        field = str(info.field_name)
        if field == cls._model_field and not isinstance(value, (str, os.PathLike)):
            raise InvalidInputError(
                f"`{field}` is {quoted(value)}; expected a model name or the path of a model folder. An object with "
                "`score(query, passages)` goes in `reranker`."
            )
        if field in _SECOND_MODELS and isinstance(value, cls._no_scorers):
            raise InvalidInputError(
                f"`{field}` is {quoted(value)}; expected a model name, a marcorank.Reranker or an object with "
                "`score(query, passages)`."
            )
        value = _DESCRIPTIONS["model" if field == cls._model_field else field].check(field, value)
        if "reranker" in info.data:  # An assignment. At the start, `model_post_init` sees all fields.
            cls._check_together(field, value, info.data["reranker"])
        return dict(value) if isinstance(value, Mapping) else value

    @classmethod
    def _check_together(cls, field: str, value: object, reranker: Reranker | Scorer | None) -> None:
        """Check a setting that depends on others: on a reranker that was given, or on what a model can be."""
        name = "model" if field == cls._model_field else field
        if reranker is None:
            if name == "model" and str(value).endswith(_OBJECT):
                raise InvalidInputError(
                    f"`{field}` is {quoted(value)}, from the dump of an adapter with a scorer object, which dumps "
                    f"do not contain. Pass the object again: {cls.__name__}(**settings, reranker=...)."
                )
            if name in {"model", *_SECOND_MODELS}:
                Reranker(**cast("dict[str, Any]", {"model": BUNDLED, name: value}))
        elif name == "token" and value is not None:
            raise InvalidInputError("`token` was given beside a `reranker`, which has its own. Pass one of the two.")
        elif name in _OF_A_MODEL or isinstance(reranker, Reranker):
            own = _settings_of(reranker if isinstance(reranker, Reranker) else Reranker(reranker)).get(name)
            if name == "model" and isinstance(value, str):
                value = value.removesuffix(_OBJECT)
            if not _same(value, own):
                raise InvalidInputError(
                    f"`{field}` is {quoted(value)}, but that of the given `reranker` is {quoted(own)}. Pass only one."
                )

    @field_serializer("fallback", "skim")
    def _plain_second_model(self, value: object) -> str | dict[str, Any] | None:
        """Return a name or settings; like `reranker`, a scorer object is not part of dumps."""
        return _dumped(value)

    @field_serializer("model", "model_name", check_fields=False)
    def _plain_model(self, value: str) -> str:
        """Return the name, marked if it would load another model than the object that has it."""
        if isinstance(self.core.model, str):
            return value
        try:
            Reranker(value)
        except MarcoRankError:
            return value
        return f"{value}{_OBJECT}"

    @field_validator("token", mode="before")
    @classmethod
    def _check_token(cls, value: object, info: ValidationInfo) -> SecretStr | None:
        cls._check_together("token", value, info.data.get("reranker"))
        token = text_or_none("token", _revealed(value))
        return None if token is None else SecretStr(token)

    def model_post_init(self, _context: Any, /) -> None:
        """Check the settings together, and show those of a reranker that was given, so that dumps say what is used."""
        for name in self.model_fields_set & {self._model_field, "token", *_SHARED}:
            if self.reranker is not None:
                self._check_together(name, getattr(self, name), self.reranker)
        core = self.core  # made now, so that threads and copies share it
        if self.reranker is not None:
            settings = _settings_of(core)
            shown = {self._model_field: settings.pop("model"), **settings}
            self.__dict__.update(shown)
            # Else a dump of what was set would leave them out, and bring back the default model.
            self.model_fields_set.update(shown)
        self._check_core()

    @property
    def core(self) -> Reranker:
        """The `Reranker` that does the work: `core.warm_up()` loads the model, `core.close()` releases it."""
        if isinstance(self.reranker, Reranker):
            return self.reranker
        if self._made is None:
            settings = {name: getattr(self, name) for name in _SHARED}
            model = getattr(self, self._model_field) if self.reranker is None else self.reranker
            self._made = Reranker(model, **settings, token=_revealed(self.token))
        return self._made

    def _check_core(self) -> None:
        """Check the `Reranker` of these settings with the options of a call."""
        options = {name: getattr(self, name, None) for name in _OPTIONS_OF_A_CALL}
        check_options(self.core, **options)

    def _options_on(self) -> dict[str, Any]:
        """Return the options that are on, for traces: cascade, blend, near-duplicates and cut."""
        on = [names for option, names in _TRACED.items() if getattr(self, option) != _USUAL[option]]
        shown = {name: getattr(self, name) for names in on for name in names}
        if "skim" in shown and self.core.skim is not None:
            shown["skim"] = self.core.skim.name
        return shown

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._concerns_core(name) and name not in _OPTIONS_OF_A_CALL:
            super().__setattr__(name, value)
            return
        before, made = self.__dict__.get(name), self._made
        super().__setattr__(name, value)
        try:
            if self._concerns_core(name):
                self._renew_core()
            else:
                self._check_core()
        except MarcoRankError:
            self.__dict__[name], self._made = before, made
            raise

    @classmethod
    def _concerns_core(cls, name: str) -> bool:
        return name in _DESCRIPTIONS or name == cls._model_field

    def _renew_core(self) -> None:
        """Make the `Reranker` again, which checks the settings together."""
        self._made = None
        _ = self.core
        self._check_core()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy that shares the model; unlike pydantic's own, this checks the changes."""
        copied = super().model_copy(deep=deep)
        for name, value in (update or {}).items():
            # Some settings are only valid together, so those of the core are checked at the end.
            super(AdapterSettings, copied).__setattr__(name, value)
        if any(map(self._concerns_core, update or {})):
            copied._renew_core()  # noqa: SLF001
        elif update:
            copied._check_core()  # noqa: SLF001
        return copied

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        yield self._model_field, getattr(self, self._model_field)
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.repr and not field.exclude and name != self._model_field and value != field.default:
                yield name, value

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._compared() == other._compared()

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # All settings are immutable; the model is shared on purpose.
        return self.__copy__()

    def __getstate__(self) -> dict[Any, Any]:
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if name == "reranker" or not field.exclude
        }

    def _compared(self) -> dict[Any, Any]:
        return {name: _comparable(value) for name, value in self.__getstate__().items()}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def check_field_names(cls: type[BaseModel], data: object) -> None:
    """Refuse unknown names that resemble that of a field, and those that pydantic would repeat at full length.

    Raises:
        InvalidInputError: There is such a name.
    """
    for name in data if isinstance(data, dict) else ():
        hint = "" if name in cls.model_fields else did_you_mean(name, cls.model_fields)
        if hint or len(str(name)) > _MAX_NAME_CHARS:
            raise InvalidInputError(f"{cls.__name__} has no field {quoted(name)}.{hint}")


def _comparable(value: object) -> object:
    """Return what a value is equal by; rerankers, which are equal to themselves alone, by their settings."""
    if not isinstance(value, Reranker):
        return value
    return {name: _comparable(own) for name, own in value.__getstate__().items()}


def _dumped(model: object) -> str | dict[str, Any] | None:
    try:
        return plain_second_model("fallback", model)
    except InvalidInputError:
        return None


def _same(value: object, own: object) -> bool:
    """Whether a setting is that of the reranker beside it, also after a dump, in which objects have another form."""
    if isinstance(own, (Reranker, Scorer)):
        return value is own or value == _dumped(own)
    return value == own


def _settings_of(reranker: Reranker) -> dict[str, Any]:
    """Return the settings of a reranker; a scorer object has a name in place of those of a model."""
    settings = reranker.__getstate__()
    if not isinstance(reranker.model, str):
        settings["model"] = reranker.name
    return {**settings, "activation": reranker.activation}


def _revealed(token: object) -> Any:
    return token.get_secret_value() if isinstance(token, SecretStr) else token
