"""The head of a modular cross-encoder: the layers between the encoder's hidden states and the logit.

Graphs on the Hub hold the encoder of such a model alone; the head is a few small layers in folders beside it. It is
written down once, and computed in numpy or as a part of an OpenVINO graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Weights = NDArray[np.float32]

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
# torch's default for LayerNorm.
NORM_EPSILON = 1e-5
# torch's default for `torch.nn.functional.normalize`.
_MIN_LENGTH = 1e-12


class Arithmetic(Protocol):
    """The operations of a head on hidden states of one sequence without padding, shape (1, tokens, width)."""

    def pool(self, mode: PoolingMode, hidden: Any) -> Any:
        """Return one vector for the tokens. Shape: (1, width)."""

    def concatenate(self, vectors: list[Any]) -> Any:
        """Join vectors along their last axis."""

    def linear(self, values: Any, weight: Weights, bias: Weights | None) -> Any:
        """Multiply by a weight of shape (outputs, inputs) and add the bias."""

    def add(self, first: Any, second: Any) -> Any:
        """Return the sum."""

    def activate(self, name: str, values: Any) -> Any:
        """Apply one of `ACTIVATIONS`."""

    def layer_norm(self, values: Any, weight: Weights, bias: Weights) -> Any:
        """Normalise to mean 0 and variance 1, then scale and shift."""

    def unit_length(self, values: Any) -> Any:
        """Scale to length 1."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer with an activation.

    Attributes:
        weight: Shape: (outputs, inputs), float32.
        bias: Shape: (outputs,), float32; None for none.
        activation: Name of the activation, one of `ACTIVATIONS`.
        adds_input: Whether the input, or the input times `residual`, is added to the result.
        residual: Shape: (outputs, inputs), float32; None for the input itself.
    """

    weight: Weights
    bias: Weights | None
    activation: str
    adds_input: bool = False
    residual: Weights | None = None

    def apply(self, array: Arithmetic, values: Any) -> Any:
        """Return the output of the layer."""
        output = array.activate(self.activation, array.linear(values, self.weight, self.bias))
        if not self.adds_input:
            return output
        return array.add(output, values if self.residual is None else array.linear(values, self.residual, None))


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """A normalisation with a scale and a shift. Shape of both: (width,), float32."""

    weight: Weights
    bias: Weights

    def apply(self, array: Arithmetic, values: Any) -> Any:
        """Return the output of the layer."""
        return array.layer_norm(values, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class UnitLength:
    """A normalisation to length 1."""

    def apply(self, array: Arithmetic, values: Any) -> Any:
        """Return the output of the layer."""
        return array.unit_length(values)


@dataclass(frozen=True, slots=True)
class Head:
    """Pooling of the hidden states, then layers that end in one number.

    Attributes:
        width: Width of the hidden states.
        pooling: The modes whose vectors are joined.
        layers: In order; the last one has a single output.
    """

    width: int
    pooling: tuple[PoolingMode, ...]
    layers: tuple[Dense | LayerNorm | UnitLength, ...]

    def apply(self, array: Arithmetic, hidden: Any) -> Any:
        """Return the logit of a sequence without padding.

        Shape:
            hidden: (1, tokens, width).
            returns: (1, 1).
        """
        values = array.concatenate([array.pool(mode, hidden) for mode in self.pooling])
        for layer in self.layers:
            values = layer.apply(array, values)
        return values


def logits_of(head: Head, hidden: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the logits of sequences that are padded on the right.

    Shape:
        hidden: (batch, tokens, width), float32.
        lengths: (batch,), int64.
        returns: (batch,), float32.
    """
    array = _Numpy()
    rows = [head.apply(array, hidden[row : row + 1, :length]) for row, length in enumerate(lengths.tolist())]
    return np.concatenate(rows)[:, 0].astype(np.float32)


class _Numpy:
    """`Arithmetic` on arrays of numpy."""

    def pool(self, mode: PoolingMode, hidden: Any) -> Any:
        return _POOLINGS[mode](hidden)

    def concatenate(self, vectors: list[Any]) -> Any:
        return np.concatenate(vectors, axis=-1)

    def linear(self, values: Any, weight: Weights, bias: Weights | None) -> Any:
        product = values @ weight.T
        return product if bias is None else product + bias

    def add(self, first: Any, second: Any) -> Any:
        return first + second

    def activate(self, name: str, values: Any) -> Any:
        return ACTIVATIONS[name](values)

    def layer_norm(self, values: Any, weight: Weights, bias: Weights) -> Any:
        centred = values - values.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + NORM_EPSILON) * weight + bias

    def unit_length(self, values: Any) -> Any:
        return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), _MIN_LENGTH)


def _weighted_mean(hidden: Any) -> Any:
    weights = np.arange(1, hidden.shape[1] + 1, dtype=np.float32)
    return np.einsum("btw,t->bw", hidden, weights) / weights.sum()


# Source: `sentence_transformers.sentence_transformer.modules.Pooling`, for sequences without padding.
_POOLINGS: dict[PoolingMode, Callable[[Any], Any]] = {
    "cls": lambda hidden: hidden[:, 0],
    "lasttoken": lambda hidden: hidden[:, -1],
    "max": lambda hidden: hidden.max(axis=1),
    "mean": lambda hidden: hidden.mean(axis=1),
    "mean_sqrt_len_tokens": lambda hidden: hidden.mean(axis=1) * np.float32(math.sqrt(hidden.shape[1])),
    "weightedmean": _weighted_mean,
}
POOLING_MODES: tuple[PoolingMode, ...] = tuple(_POOLINGS)


def _sigmoid(values: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * values))


def _gelu(values: Any) -> Any:
    return 0.5 * values * (1 + _erf(values * math.sqrt(0.5)))


def _erf(values: Any) -> Any:
    # numpy has none; a head has some hundred values.
    return np.array([math.erf(value) for value in values.ravel().tolist()], dtype=np.float32).reshape(values.shape)


# With the arguments that torch's classes of these names have by default.
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "Identity": lambda values: values,
    "Tanh": np.tanh,
    "ReLU": lambda values: np.maximum(values, 0),
    "ReLU6": lambda values: np.clip(values, 0, 6),
    "LeakyReLU": lambda values: np.where(values > 0, values, values * np.float32(0.01)),
    "ELU": lambda values: np.where(values > 0, values, np.expm1(np.minimum(values, 0))),
    "GELU": _gelu,
    "SiLU": lambda values: values * _sigmoid(values),
    "Sigmoid": _sigmoid,
    "Softplus": lambda values: np.logaddexp(values, np.float32(0)),
    "Mish": lambda values: values * np.tanh(np.logaddexp(values, np.float32(0))),
    "Hardswish": lambda values: values * np.clip(values + 3, 0, 6) / 6,
}
