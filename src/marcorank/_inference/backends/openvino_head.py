"""Adds the head of a modular cross-encoder to the OpenVINO graph of its encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from openvino import Model
from openvino import opset13 as ops

from marcorank._inference.head import NORM_EPSILON

if TYPE_CHECKING:
    from collections.abc import Callable

    from marcorank._inference.head import Head, PoolingMode, Weights

_TOKENS = [1]
_LAST = [-1]


def with_head(model: Any, head: Head, hidden: Any) -> Any:
    """Return an `openvino.Model` that computes logits, shape (batch, 1), for sequences without padding.

    Args:
        model: The graph of the encoder.
        head: What follows it.
        hidden: The output of the graph with the hidden states, shape (batch, tokens, width).
    """
    source = hidden.get_node().input_value(0)
    logits = head.apply(_Openvino(), source)
    result = ops.result(logits)
    result.output(0).get_tensor().set_names({"logits"})
    return Model([result], model.get_parameters())


class _Openvino:
    """`Arithmetic` on nodes of a graph."""

    def pool(self, mode: PoolingMode, hidden: Any) -> Any:
        return _POOLINGS[mode](hidden)

    def concatenate(self, vectors: list[Any]) -> Any:
        return vectors[0] if len(vectors) == 1 else ops.concat(vectors, -1)

    def linear(self, values: Any, weight: Weights, bias: Weights | None) -> Any:
        # Not a MatMul: what follows the last one is computed in fp32 even if the rest is in bf16, in which the norms of
        # a head would lose what tells passages apart.
        products = ops.multiply(ops.unsqueeze(values, -2), ops.constant(weight))
        product = ops.reduce_sum(products, _LAST)
        return product if bias is None else ops.add(product, ops.constant(bias))

    def add(self, first: Any, second: Any) -> Any:
        return ops.add(first, second)

    def activate(self, name: str, values: Any) -> Any:
        return _ACTIVATIONS[name](values)

    def layer_norm(self, values: Any, weight: Weights, bias: Weights) -> Any:
        normal = ops.mvn(values, _LAST, normalize_variance=True, eps=NORM_EPSILON, eps_mode="inside_sqrt")
        return ops.add(ops.multiply(normal, ops.constant(weight)), ops.constant(bias))

    def unit_length(self, values: Any) -> Any:
        return ops.normalize_l2(values, _LAST, eps=1e-24, eps_mode="max")


def _mean_sqrt_len(hidden: Any) -> Any:
    return ops.multiply(ops.reduce_mean(hidden, _TOKENS), ops.sqrt(_token_count(hidden)))


def _weighted_mean(hidden: Any) -> Any:
    one = np.float32(1)
    weights = ops.range(one, ops.add(_token_count(hidden), one), one, output_type="f32")
    total = ops.reduce_sum(ops.multiply(hidden, ops.unsqueeze(weights, -1)), _TOKENS)
    return ops.divide(total, ops.reduce_sum(weights, [0]))


def _token_count(hidden: Any) -> Any:
    return ops.convert(ops.gather(ops.shape_of(hidden), 1, 0), np.float32)


_POOLINGS: dict[PoolingMode, Callable[[Any], Any]] = {
    # As an exported classifier selects it, so that `keep_first_token` recognises it.
    "cls": lambda hidden: ops.squeeze(ops.gather(hidden, [0], 1), _TOKENS),
    "lasttoken": lambda hidden: ops.squeeze(ops.gather(hidden, [-1], 1), _TOKENS),
    "max": lambda hidden: ops.reduce_max(hidden, _TOKENS),
    "mean": lambda hidden: ops.reduce_mean(hidden, _TOKENS),
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
}

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "Identity": lambda values: values,
    "Tanh": ops.tanh,
    "ReLU": ops.relu,
    "ReLU6": lambda values: ops.clamp(values, 0.0, 6.0),
    "LeakyReLU": lambda values: ops.prelu(values, np.array([0.01], dtype=np.float32)),
    "ELU": lambda values: ops.elu(values, 1.0),
    "GELU": lambda values: ops.gelu(values, "erf"),
    "SiLU": ops.swish,
    "Sigmoid": ops.sigmoid,
    "Softplus": ops.softplus,
    "Mish": ops.mish,
    "Hardswish": ops.hswish,
}
