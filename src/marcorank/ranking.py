"""Turns logits into a ranking: activation, finite check, stable sort, threshold, top_n.

Independent of models and frameworks.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args, overload

import numpy as np

from marcorank._arguments import finite_number
from marcorank._text import counted, encodable, html_table, message_of, quoted, shorten, table
from marcorank.errors import InvalidInputError, ScoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from marcorank._figure import NotebookFigure

ActivationName = Literal["identity", "sigmoid"]
ScoreKind = Literal["logit", "probability"]
Outcome = Literal["fallback", "skim", "passthrough"]

ACTIVATIONS: tuple[str, ...] = get_args(ActivationName)
_PREVIEW_CHARS = 60
_NOTEBOOK_CHARS = 120
_MAX_REASON_CHARS = 500
_MAX_CAUSE_CHARS = 120
_UNSCORED: dict[str | None, str] = {
    "passthrough": "in the order of the input",
    "skim": "in the order after the skim",
}
_OF_OPTIONS = {"scored_by", "skim_logit", "blended_score"}


@dataclass(frozen=True, slots=True)
class Logistic:
    """An activation fitted to relevance judgements: scores are `1 / (1 + exp(-(a * logit + b)))`, from 0 to 1.

    Attributes:
        a: Slope, above 0.
        b: Intercept.

    Raises:
        InvalidInputError: `a` or `b` is not a finite number, or `a` is not above 0.
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            value = getattr(self, name)
            number = finite_number(value)
            if number is None or (name == "a" and number <= 0):
                expected = "a finite number above 0" if name == "a" else "a finite number"
                raise InvalidInputError(f"`{name}` of Logistic is {quoted(value)}; expected {expected}.")
            object.__setattr__(self, name, number)


Activation: TypeAlias = ActivationName | Logistic


@dataclass(frozen=True, slots=True)
class RankedPassage:
    """One passage of a ranking.

    Attributes:
        index: Position of the passage in the input, from 0.
        rank: Position in the ranking, from 1.
        score: The logit after the activation, on the scale of `score_threshold`. None if the model did not read the
            passage, which happens only with `on_error="passthrough"` and with `skim`.
        logit: Raw model output; None without a score, and for a server that returns only probabilities.
        text: Text of the passage.
        truncated: Whether the model read only the beginning of the passage; None if unknown.
        span: Character range `(start, end)` of the best window, with `long_passages="windows"`, else None.
        unknown_tokens: Number of tokens read by the model that stand for text which is not in its vocabulary; None if
            that number is unknown.
        scored_by: Name of the model of `skim`, if it alone read the passage; else None.
        skim_logit: Raw output of that model, if it read the passage; it is not on the scale of `logit`.
        blended_score: What the passage was ranked by, with `blend`; from 0 to 1.
    """

    index: int
    rank: int
    score: float | None
    logit: float | None
    text: str
    truncated: bool | None = None
    span: tuple[int, int] | None = None
    unknown_tokens: int | None = None
    scored_by: str | None = None
    skim_logit: float | None = None
    blended_score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON-ready values, without those of `skim` and `blend` where they are None."""
        fields = asdict(self)
        fields["span"] = None if self.span is None else list(self.span)
        return {name: value for name, value in fields.items() if value is not None or name not in _OF_OPTIONS}


@dataclass(frozen=True, slots=True)
class SkippedPassage:
    """A passage that `max_similarity` left out of a ranking.

    Attributes:
        index: Position of the passage in the input, from 0.
        similar_to: Position in the input of the better passage that it resembles.
        similarity: Of the two texts, from 0 to 1.
    """

    index: int
    similar_to: int
    similarity: float


@dataclass(frozen=True, slots=True)
class RerankStatus:
    """Why a ranking was not made by the requested model.

    Attributes:
        outcome: `"fallback"`: the fallback model ranked; `"skim"`: the model of `skim` ranked alone; `"passthrough"`:
            the passages are unranked, in input order.
        error: Class name of the error.
        reason: Message of the error.
    """

    outcome: Outcome
    error: str
    reason: str

    @classmethod
    def of(cls, outcome: Outcome, failure: Exception) -> RerankStatus:
        """Return the status for an outcome and the error that caused it."""
        return cls(outcome, type(failure).__name__, shorten(str(failure), _MAX_REASON_CHARS))

    def to_dict(self) -> dict[str, str]:
        """Return the fields as plain JSON-ready values."""
        return {"outcome": self.outcome, "error": self.error, "reason": self.reason}

    def __str__(self) -> str:
        return encodable(f"{self.outcome}: {self.error}: {self.reason}")


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[RankedPassage]):
    """Passages of one query, best first. Immutable.

    Attributes:
        query: The query.
        model: Name of the model that scored the passages, or should have.
        results: The ranked passages, best first.
        query_truncated: Whether the query was truncated to `max_query_tokens`; None if unknown.
        score_kind: Output of the model: `"logit"`, or `"probability"` for a server that returns nothing else.
        status: Why the requested model did not rank; None if it did.
        skipped: Passages that `max_similarity` left out, best first.
    """

    query: str
    model: str
    results: tuple[RankedPassage, ...]
    query_truncated: bool | None = None
    score_kind: ScoreKind = "logit"
    status: RerankStatus | None = None
    skipped: tuple[SkippedPassage, ...] = ()

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, key: int) -> RankedPassage: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[RankedPassage, ...]: ...
    def __getitem__(self, key: int | slice) -> RankedPassage | tuple[RankedPassage, ...]:
        return self.results[key]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one plain JSON-ready dict per passage, best first."""
        return [result.to_dict() for result in self.results]

    def plot(self, *, top_n: int = 3, title: str | None = None) -> NotebookFigure:
        """Draw how the passages moved: on the left the order of the input, on the right this ranking.

        Args:
            top_n: How many of the best passages are highlighted.
            title: Title of the chart; None for the query.

        Returns:
            A figure of matplotlib. Notebooks show it; `savefig` writes it to a file.

        Raises:
            InvalidInputError: `top_n` or `title` is invalid.
            MissingExtraError: matplotlib is not installed.
        """
        from marcorank.plots import plot_rank_changes

        return plot_rank_changes(self, top_n=top_n, title=title)

    def __str__(self) -> str:
        outcome = None if self.status is None else self.status.outcome
        how = _UNSCORED.get(outcome, f"scored by {self.model}")
        head = f"{counted(len(self), 'passage')} for {self.query!r}, {how}"
        if self.status is not None:
            head = f"{head}\n{self.status}"
        if self.skipped:
            head = f"{head}\nNear-duplicates left out: {len(self.skipped)}"
        header, rows = _cells(self.results, _PREVIEW_CHARS)
        return encodable("\n".join([head, *table(header, rows, left=["text"])]))

    def _repr_html_(self) -> str:
        """Return a table for notebooks, with all texts escaped and long ones shortened."""
        header, rows = _cells(self.results, _NOTEBOOK_CHARS)
        status = "" if self.status is None else f" — {self.status}"
        skipped = f" — near-duplicates left out: {len(self.skipped)}" if self.skipped else ""
        caption = f"{shorten(self.query, _NOTEBOOK_CHARS)} — {self.model}{status}{skipped}"
        return html_table(caption, header, rows, left=["text"])


def unranked(query: str, model: str, passages: Sequence[str], status: RerankStatus) -> Ranking:
    """Return passages in input order, without scores."""
    results = tuple(RankedPassage(index, index + 1, None, None, text) for index, text in enumerate(passages))
    return Ranking(query, model, results, status=status)


def _cells(results: Sequence[RankedPassage], max_chars: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the rows of the table; those of `skim` and `blend` only where there are values."""
    columns = {"blended": "blended_score", "score": "score", "logit": "logit", "skim": "skim_logit"}
    for header, name in list(columns.items()):
        if name in _OF_OPTIONS and all(getattr(result, name) is None for result in results):
            del columns[header]
    # Scores are logits with the activation "identity".
    if all(result.logit in {None, result.score} for result in results):
        del columns["logit"]
    return ("rank", "index", *columns, "text"), [
        (
            str(result.rank),
            str(result.index),
            *(shown_number(getattr(result, name)) for name in columns.values()),
            shorten(" ".join(_shown_text(result).split()), max_chars),
        )
        for result in results
    ]


def _shown_text(result: RankedPassage) -> str:
    return result.text if result.span is None else result.text[slice(*result.span)]


def shown_number(value: float | None) -> str:
    """Format a score or a logit for display."""
    return "-" if value is None else f"{value:.4f}"


@dataclass(frozen=True, slots=True)
class Order:
    """The passages of a ranking, best first.

    Attributes:
        indices: Positions in the input. Shape: (results,), int64.
        scores: Scores after the activation. Shape: (results,), float64.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float64]


def order_logits(
    logits: NDArray[np.float32],
    *,
    activation: Activation,
    score_threshold: float | None,
    top_n: int | None,
    order_by: NDArray[np.float64] | None = None,
) -> Order:
    """Sort by logit, apply the threshold, then keep the first `top_n`.

    Ties keep the order of the input. Passages are sorted by logit, so a saturated sigmoid does not change the order.

    Args:
        logits: One finite logit per passage. Shape: (passages,), float32.
        activation: Turns logits into scores.
        score_threshold: Minimum score to keep, on the scale of the activation.
        top_n: Maximum number of results.
        order_by: What to sort by instead. Shape: (passages,), float64.
    """
    indices = np.argsort(-(logits if order_by is None else order_by), kind="stable")
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
        # A large `a` may overflow to infinity, which gives the right score.
        with np.errstate(over="ignore"):
            wide = activation.a * wide + activation.b
    # exp(-|x|) never overflows, whatever the sign of the logit.
    small = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1.0, small) / (1.0 + small)


def checked_activation(value: object) -> Activation:
    """Return a valid activation: a name, or a `Logistic`, also from its dict form.

    Raises:
        InvalidInputError: The value is invalid.
    """
    if isinstance(value, Mapping) and set(value) == {"a", "b"}:
        return Logistic(**value)
    if isinstance(value, Logistic) or (type(value) is str and value in ACTIVATIONS):
        return cast("Activation", value)
    names = ", ".join(map(repr, ACTIVATIONS))
    raise InvalidInputError(f"`activation` is {quoted(value)}; expected one of {names}, or a Logistic(a, b).")


def plain_activation(activation: Activation) -> str | dict[str, float]:
    """Return the activation in a JSON-ready form that `checked_activation` accepts."""
    return asdict(activation) if isinstance(activation, Logistic) else activation


def check_shape(values: object, *, count: int, model: str) -> NDArray[np.float32]:
    """Return the values as logits, one per passage.

    Args:
        values: Output of a scorer. Shape: (passages,), any real dtype.
        count: Number of passages.
        model: Name of the model, for the message.

    Raises:
        ScoreError: The values are not real numbers in the range of float32, or do not have this shape.
    """
    if type(values) is np.ndarray and values.dtype == np.float32 and values.shape == (count,):
        return values  # as every backend returns them, for each batch
    try:
        wide = _real_numbers(values)
        # A number beyond float32 is reported below, as it was returned.
        with np.errstate(over="ignore", under="ignore"):
            logits = wide.astype(np.float32, copy=False)
    except Exception as error:
        raise ScoreError(
            f"Model `{model}` returned {quoted(values)}; expected {count} numbers, one per passage "
            f"({shorten(message_of(error), _MAX_CAUSE_CHARS)})."
        ) from error
    if logits.shape != (count,):
        hint = " Flatten the array." if logits.size == count and logits.ndim > 1 else ""
        raise ScoreError(
            f"Model `{model}` returned logits of shape {logits.shape} for {count} passages; "
            f"expected one float per passage, shape ({count},).{hint}"
        )
    too_large = np.isinf(logits) & np.isfinite(wide)
    if too_large.any():
        raise ScoreError(
            f"Model `{model}` returned {wide[too_large][0]:.3g}, which is beyond the range of float32; expected "
            "logits between -3.4e38 and 3.4e38."
        )
    return logits


def _real_numbers(values: object) -> NDArray[Any]:
    """Return an array of ints, floats or bools; raises any exception if the values are nothing like it."""
    if inspect.iscoroutine(values):
        values.close()  # else Python warns that it was never awaited
        raise TypeError("`score` must not be async")
    array = np.asarray(_without_tensors(values))
    if array.dtype.kind == "O" and array.ndim:
        # Such as decimals, fractions and large ints.
        array = np.array([_real_number(value) for value in array.flat]).reshape(array.shape)
    if array.dtype.kind not in "fiub":
        kind = type(values).__name__ if array.dtype.kind == "O" else array.dtype
        raise TypeError(f"found {kind}")
    return array


def _real_number(value: Any) -> float:
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"found {quoted(value)}")
    return float(value)


def _without_tensors(values: Any) -> Any:
    """Return what numpy reads without a warning, an error or a wrong value, from tensors and masked arrays."""
    if hasattr(values, "detach"):
        # numpy takes no tensor of torch from a GPU, in bfloat16, or with a gradient.
        return values.detach().tolist()
    if isinstance(values, np.ma.MaskedArray):
        return values.tolist()  # None where it is masked; numpy would take what is beneath
    if isinstance(values, (list, tuple)) and not {float, int}.issuperset(map(type, values)):
        return [_without_tensors(value) for value in values]
    return values


def check_finite(logits: NDArray[np.float32], *, model: str, is_custom: bool = False) -> None:
    """Check that all logits are finite.

    Args:
        logits: One per passage. Shape: (passages,), float32.
        model: Name of the model, for the message.
        is_custom: Whether it is a scorer of the user, whose weights nobody else can check.

    Raises:
        ScoreError: A logit is NaN or infinite.
    """
    broken = np.flatnonzero(~np.isfinite(logits))
    if broken.size:
        first = int(broken[0])
        remedy = "Check the weights of the model and its precision: half precision can overflow where fp32 does not."
        if is_custom:
            remedy = "`score` must return a finite number for every passage; a large negative one ranks a passage last."
        raise ScoreError(
            f"Model `{model}` returned {float(logits[first])!r} for `passages[{first}]` "
            f"({broken.size} of {len(logits)} logits are not finite). {remedy}"
        )
