"""Argument checks: each returns the valid value, or raises an error with the value found and what is allowed."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np

from marcorank._text import first_few, is_blank, quoted
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

T = TypeVar("T")
P = ParamSpec("P")

# By package, without importing it: what to do with its objects, where a text is expected.
_INSTEAD_OF_OBJECTS = {
    "langchain_core": "Pass `page_content` of a document, or rank documents with `marcorank.langchain.MarcoRerank`.",
    "llama_index": "Pass `get_content()` of a node, or rank nodes with `marcorank.llama_index.MarcoRerank`.",
}


def one_of(name: str, value: T, allowed: Sequence[object]) -> T:
    """Return the value if it is one of the allowed ones.

    Raises:
        InvalidInputError: It is not one of them.
    """
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        raise InvalidInputError(f"`{name}` is {quoted(value)}; expected one of {', '.join(map(repr, allowed))}.")
    return value


def whole_number(name: str, value: object, minimum: int) -> int:
    """Return a whole number of at least `minimum`; `True` and `"3"` are rejected.

    Raises:
        InvalidInputError: The value is invalid.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise InvalidInputError(f"`{name}` is {quoted(value)}; expected a whole number of at least {minimum}.")
    return int(value)


def top_n_or_none(value: object) -> int | None:
    """Return a valid `top_n`: None for all passages, or a whole number of at least 1.

    Raises:
        InvalidInputError: The value is invalid.
    """
    return None if value is None else whole_number("top_n", value, 1)


def score_threshold_or_none(value: object) -> float | None:
    """Return a valid `score_threshold`: None for no threshold, or a finite number.

    Raises:
        InvalidInputError: The value is invalid.
    """
    if value is None:
        return None
    number = finite_number(value)
    if number is None:
        raise InvalidInputError(
            f"`score_threshold` is {quoted(value)}; expected None or a finite number on the scale of the scores."
        )
    return number


def finite_number(value: object) -> float | None:
    """Return a finite number as a float; None for anything else, including `True` and `"3"`."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an int beyond the range of floats
        return None


def positive(name: str, value: object, expected: str = "a number above 0") -> float:
    """Return a finite number above 0 as a float.

    Raises:
        InvalidInputError: The value is invalid.
    """
    number = finite_number(value)
    if number is None or number <= 0:
        raise InvalidInputError(f"`{name}` is {quoted(value)}; expected {expected}.")
    return number


def non_negative(name: str, value: object) -> float:
    """Return a finite number of at least 0 as a float.

    Raises:
        InvalidInputError: The value is invalid.
    """
    number = finite_number(value)
    if number is None or number < 0:
        raise InvalidInputError(f"`{name}` is {quoted(value)}; expected a number of at least 0.")
    return number


def share(name: str, value: object) -> float:
    """Return a number from 0 to 1 as a float.

    Raises:
        InvalidInputError: The value is invalid.
    """
    number = finite_number(value)
    if number is None or not 0 <= number <= 1:
        raise InvalidInputError(f"`{name}` is {quoted(value)}; expected a number from 0 to 1.")
    return number


def first_stage_scores(name: str, value: object, count: int) -> NDArray[np.float64] | None:
    """Return the first-stage scores of the passages; None if they are not given, or one of them is missing.

    Shape: (count,), float64.

    Raises:
        InvalidInputError: They are not one number, or None, for each passage.
    """
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidInputError(f"`{name}` is a {type(value).__name__}; expected one number, or None, per passage.")
    scores = list(value)
    if len(scores) != count:
        raise InvalidInputError(f"`{name}` has {len(scores)} numbers for {count} passages; expected one per passage.")
    numbers = [None if score is None else finite_number(score) for score in scores]
    for index, (score, number) in enumerate(zip(scores, numbers, strict=True)):
        if number is None and score is not None:
            raise InvalidInputError(f"`{name}[{index}]` is {quoted(score)}; expected a finite number or None.")
    return None if None in numbers else np.array(numbers, dtype=np.float64)


def text_or_none(name: str, value: object) -> str | None:
    """Return None or a non-empty text. The error message omits the value, which may be a token.

    Raises:
        InvalidInputError: The value is invalid.
    """
    if value is not None and (not isinstance(value, str) or not value):
        if value == "":
            raise InvalidInputError(f"`{name}` is empty; expected a text. Leave it out for the default.")
        raise InvalidInputError(f"`{name}` is of type {type(value).__name__}; expected None or a text.")
    return value


def query_text(value: object) -> str:
    """Return the query if it is a text that is not blank.

    Raises:
        InvalidInputError: The value is invalid.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"`query` is {quoted(value)}; expected a str.")
    if is_blank(value):
        raise InvalidInputError(f"`query` is blank ({quoted(value)}); expected the text to search for.")
    return value


def passage_texts(value: object) -> list[str]:
    """Return passages as a list of texts; blank ones are allowed.

    Raises:
        InvalidInputError: It is not a collection of texts, or one of its items is not a text.
    """
    instead = _instead_of_object(value)
    if instead or isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        hint = f" {instead}" if instead else ""
        raise InvalidInputError(
            f"`passages` is a {type(value).__name__}; expected a list of str, even for a single passage.{hint}"
        )
    passages = list(value)
    for index, passage in enumerate(passages):
        if not isinstance(passage, str):
            raise InvalidInputError(
                f"`passages[{index}]` is {quoted(passage)}; expected a str. {_instead_of_passage(passage)}"
            )
    return passages


def _instead_of_object(value: object) -> str:
    """Return what to do instead of passing an object of LangChain or LlamaIndex; "" for others."""
    packages = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    return next((advice for package, advice in _INSTEAD_OF_OBJECTS.items() if package in packages), "")


def _instead_of_passage(value: object) -> str:
    if value is None:
        return "Leave out passages without text, or pass ''."
    if isinstance(value, Mapping):
        return "Pass the text in it, such as passage['text']."
    return _instead_of_object(value) or "Pass its text."


def check_names(given: object, known: Iterable[str], *, required: str | None = None) -> None:
    """Check that settings are a dict, and that all of them exist.

    Raises:
        InvalidInputError: They are not a dict, a name is unknown, or the required one is missing.
    """
    if not isinstance(given, Mapping):
        raise InvalidInputError(f"The settings are {quoted(given)}; expected a dict such as `to_dict` returns.")
    names = sorted(known)
    unknown = sorted(set(given) - set(names), key=str)
    if unknown:
        hints = "".join(did_you_mean(name, names) for name in unknown)
        raise InvalidInputError(f"Unknown settings {first_few(unknown)}; expected some of {', '.join(names)}.{hints}")
    if required is not None and required not in given:
        raise InvalidInputError(f"{quoted(required)} is missing; expected some of {', '.join(names)}.")


def check_arguments(function: str, given: Iterable[str], known: Iterable[str], elsewhere: Mapping[str, str]) -> None:
    """Check that a function has these keyword arguments.

    Args:
        function: Name of the function, for the message.
        given: Names that were passed.
        known: Names that it has.
        elsewhere: For names that it has not, a sentence that says where they belong.

    Raises:
        TypeError: It has no such argument, as for any function of Python.
    """
    known = [*known]
    for name in given:
        if name not in known:
            meant = next(iter(difflib.get_close_matches(name, [*known, *elsewhere], n=1)), "")
            hint = "" if meant in {"", name} else f" Did you mean {quoted(meant)}?"
            where = f" {elsewhere[meant]}" if meant in elsewhere else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {quoted(name)}.{hint}{where}")


def explains_arguments(elsewhere: Mapping[str, str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a method so that its error for an unknown argument is that of `check_arguments`."""

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        known = frozenset(inspect.signature(method).parameters)

        def check(given: Mapping[str, object]) -> None:
            if not known.issuperset(given):
                check_arguments(method.__qualname__, given, sorted(known - {"self"}), elsewhere)

        @wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            check(kwargs)
            return method(*args, **kwargs)

        @wraps(method)
        async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            check(kwargs)
            return await cast("Any", method(*args, **kwargs))

        return cast("Callable[P, T]", call_async) if inspect.iscoroutinefunction(method) else call

    return decorate


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return a question that names the setting most like a misspelt one; "" if none is like it."""
    return "".join(f" Did you mean {quoted(match)}?" for match in difflib.get_close_matches(str(name), known, n=1))


def request_pair(value: object) -> tuple[str, list[str]]:
    """Return a query and its passages.

    Raises:
        InvalidInputError: It is not such a pair.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InvalidInputError(f"A request is {quoted(value)}; expected a pair of a query and a list of passages.")
    if isinstance(value[0], (list, tuple)) and isinstance(value[1], str):
        raise InvalidInputError(
            f"`query` is {quoted(value[0])} and `passages` is {quoted(value[1])}; expected the query first, and then "
            "the passages."
        )
    return query_text(value[0]), passage_texts(value[1])


def request_parts(value: object) -> tuple[str, list[str], NDArray[np.float64] | None]:
    """Return a query, its passages, and their first-stage scores if these are the third part.

    Raises:
        InvalidInputError: It is not such a tuple.
    """
    pair, scores = value, None
    if isinstance(value, (tuple, list)) and len(value) == 3:
        pair, scores = value[:2], value[2]
    query, passages = request_pair(pair)
    return query, passages, first_stage_scores("retrieval_scores", scores, len(passages))
