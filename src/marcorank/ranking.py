"""From logits to a ranking: activation, finite check, stable order, threshold, top_n.

Nothing here knows a model or a framework.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args, overload

import numpy as np

from marcorank._arguments import finite_number, positive_number
from marcorank._text import shorten
from marcorank.errors import InvalidInputError, ScoreError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

ActivationName = Literal["identity", "sigmoid"]
ScoreKind = Literal["logit", "probability"]
Outcome = Literal["fallback", "passthrough"]

ACTIVATIONS: tuple[str, ...] = get_args(ActivationName)
_PREVIEW_CHARS = 60
_LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Logistic:
    """An activation fitted on judged data: scores are `1 / (1 + exp(-(a * logit + b)))`, from 0 to 1.

    Attributes:
        a: Slope, above 0.
        b: Intercept.

    Raises:
        InvalidInputError: One of them is no finite number, or `a` is not above 0.
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            value = getattr(self, name)
            number = positive_number(value) if name == "a" else finite_number(value)
            if number is None:
                expected = "a finite number above 0" if name == "a" else "a finite number"
                raise InvalidInputError(f"`{name}` of Logistic is {value!r}; expected {expected}.")
            object.__setattr__(self, name, number)


Activation: TypeAlias = ActivationName | Logistic


@dataclass(frozen=True, slots=True)
class RankedPassage:
    """One passage of a ranking.

    Attributes:
        index: Position of the passage in the list that was given, from 0.
        rank: Place in the ranking, from 1.
        score: The logit after the activation, on the scale that `score_threshold` uses. None where nobody ranked, which
            takes `on_error="passthrough"`.
        logit: Raw model output; None where there is no score, and where a server gives probabilities only.
        text: The passage.
        truncated: Whether the model saw only the beginning of the passage; None if the scorer cannot tell.
        span: Character range `(start, end)` of the best window, in windows mode; else None.
    """

    index: int
    rank: int
    score: float | None
    logit: float | None
    text: str
    truncated: bool | None = None
    span: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON-ready values."""
        fields = asdict(self)
        fields["span"] = None if self.span is None else list(self.span)
        return fields


@dataclass(frozen=True, slots=True)
class RerankStatus:
    """Why a ranking is not that of the model that was asked.

    Attributes:
        outcome: `"fallback"`: another model ranked; `"passthrough"`: nobody did, and the order is that of the input.
        error: Name of the error's class.
        reason: Its message.
    """

    outcome: Outcome
    error: str
    reason: str

    @classmethod
    def of(cls, outcome: Outcome, failure: Exception) -> RerankStatus:
        """Return the status that an error leads to."""
        return cls(outcome, type(failure).__name__, shorten(str(failure), _LONGEST_REASON))

    def to_dict(self) -> dict[str, str]:
        """Return the fields as plain JSON-ready values."""
        return {"outcome": self.outcome, "error": self.error, "reason": self.reason}

    def __str__(self) -> str:
        return f"{self.outcome}: {self.error}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[RankedPassage]):
    """Passages of one query, best first. Immutable.

    Attributes:
        query: The query that was given.
        model: Name of the model that scored.
        results: The ranked passages.
        query_truncated: Whether the query was longer than its cap and was cut; None if the scorer cannot tell.
        score_kind: What the model gave: `"logit"`, or `"probability"` where a server gives nothing else.
        status: Why this is not the ranking of the model that was asked; None if it is.
    """

    query: str
    model: str
    results: tuple[RankedPassage, ...]
    query_truncated: bool | None = None
    score_kind: ScoreKind = "logit"
    status: RerankStatus | None = None

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, key: int) -> RankedPassage: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[RankedPassage, ...]: ...
    def __getitem__(self, key: int | slice) -> RankedPassage | tuple[RankedPassage, ...]:
        return self.results[key]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one plain JSON-ready dict a passage, best first."""
        return [result.to_dict() for result in self.results]

    def __str__(self) -> str:
        head = f"{len(self)} passages for {self.query!r}, scored by {self.model}"
        if self.status is not None:
            head = f"{head}\n{self.status}"
        rows = [_row_cells(result) for result in self.results]
        widths = [max(map(len, column)) for column in zip(_HEADER, *rows, strict=True)]
        lines = [
            "  ".join(
                # The text comes last and is the only column set flush left.
                cell if place == len(widths) - 1 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            for cells in (_HEADER, *rows)
        ]
        return "\n".join([head, *lines])

    def _repr_html_(self) -> str:
        """Table for notebooks; texts are escaped."""
        head = "".join(f"<th>{name}</th>" for name in _HEADER)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _row_cells(result)) + "</tr>"
            for result in self.results
        )
        told = "" if self.status is None else f" — {self.status}"
        caption = html.escape(f"{self.query} — {self.model}{told}")
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def unranked(query: str, model: str, passages: Sequence[str], status: RerankStatus) -> Ranking:
    """Return passages in the order in which they came, without scores."""
    results = tuple(RankedPassage(index, index + 1, None, None, text) for index, text in enumerate(passages))
    return Ranking(query, model, results, status=status)


_HEADER = ("rank", "index", "score", "logit", "text")


def _row_cells(result: RankedPassage) -> tuple[str, ...]:
    text = result.text if result.span is None else result.text[slice(*result.span)]
    return (
        str(result.rank),
        str(result.index),
        shown_number(result.score),
        shown_number(result.logit),
        shorten(" ".join(text.split()), _PREVIEW_CHARS),
    )


def shown_number(value: float | None) -> str:
    """Return a score or a logit for people."""
    return "-" if value is None else f"{value:.4f}"


@dataclass(frozen=True, slots=True)
class Order:
    """Which passages a ranking holds, best first.

    Attributes:
        indices: Positions in the input. Shape: (results,), int64.
        scores: Their scores after the activation. Shape: (results,), float64.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float64]


def order_logits(
    logits: NDArray[np.float32],
    *,
    activation: Activation,
    score_threshold: float | None,
    top_n: int | None,
) -> Order:
    """Sort by logit, keep what reaches the threshold, then the first `top_n`.

    Ties keep the order of the input. The order comes from the logits, so a sigmoid that saturates changes
    nothing.

    Args:
        logits: One a passage, finite. Shape: (passages,), float32.
        activation: How scores are made from logits.
        score_threshold: Least score to keep, on the scale of the activation.
        top_n: Most results to keep.
    """
    indices = np.argsort(-logits, kind="stable")
    scores = activate(logits, activation)[indices]
    if score_threshold is not None:
        kept = scores >= score_threshold
        indices, scores = indices[kept], scores[kept]
    return Order(indices[:top_n], scores[:top_n])


def activate(logits: NDArray[np.float32], activation: Activation) -> NDArray[np.float64]:
    """Turn logits into scores. Shape: (passages,) to (passages,), float64."""
    wide = logits.astype(np.float64)
    if activation == "identity":
        return wide
    if isinstance(activation, Logistic):
        # A great `a` may pass the range of floats; infinity is the right end.
        with np.errstate(over="ignore"):
            wide = activation.a * wide + activation.b
    # exp(-|x|) never overflows, whichever sign the logit has.
    small = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1.0, small) / (1.0 + small)


def checked_activation(value: object) -> Activation:
    """Return an activation: one of the names, a `Logistic`, or one made of its dict form.

    Raises:
        InvalidInputError: It is something else.
    """
    if isinstance(value, Mapping) and set(value) == {"a", "b"}:
        return Logistic(**value)
    if isinstance(value, Logistic) or (type(value) is str and value in ACTIVATIONS):
        return cast("Activation", value)
    names = ", ".join(map(repr, ACTIVATIONS))
    raise InvalidInputError(f"`activation` is {value!r}; expected one of {names}, or a Logistic(a, b).")


def plain_activation(activation: Activation) -> str | dict[str, float]:
    """Return the JSON-ready form that `checked_activation` reads."""
    return asdict(activation) if isinstance(activation, Logistic) else activation


def check_shape(values: ArrayLike, *, count: int, model: str) -> NDArray[np.float32]:
    """Return the values as logits, one a passage.

    Args:
        values: What a scorer returned. Shape: (passages,), any real dtype.
        count: How many passages were scored.
        model: Name of the model, for the message.

    Raises:
        ScoreError: The shape is another one.
    """
    try:
        logits = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ScoreError(f"Model `{model}` returned {values!r}; expected {count} numbers.") from error
    if logits.shape != (count,):
        raise ScoreError(
            f"Model `{model}` returned logits of shape {logits.shape} for {count} passages; "
            f"expected one float a passage, shape ({count},)."
        )
    return logits


def check_finite(logits: NDArray[np.float32], *, model: str) -> None:
    """Check that every passage can be ranked.

    Args:
        logits: One a passage. Shape: (passages,), float32.
        model: Name of the model, for the message.

    Raises:
        ScoreError: A logit is NaN or infinite.
    """
    broken = np.flatnonzero(~np.isfinite(logits))
    if broken.size:
        first = int(broken[0])
        raise ScoreError(
            f"Model `{model}` returned {float(logits[first])!r} for `passages[{first}]` "
            f"({broken.size} of {len(logits)} logits are not finite). Its weights or its precision are at fault; "
            "half precision overflows where fp32 does not."
        )
