"""Optimisations of an OpenVINO graph: less work in the last layer, and 8-bit weights."""

from __future__ import annotations

from itertools import count
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
from openvino import opset13 as ops
from openvino.passes import ConstantFolding, Manager

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

# With constant parameters, these compute each token independently; products of activations are handled below.
_TOKENWISE = {
    "Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Power", "SquaredDifference", "Sqrt", "Negative",
    "Gelu", "Erf", "Relu", "Tanh", "Sigmoid", "Swish", "Convert", "FakeQuantize",
    "MatMul", "MVN", "ReduceMean", "Softmax", "Reshape", "Transpose", "ScaledDotProductAttention",
}  # fmt: skip
_SWAPS_TOKENS_AND_HEADS = [0, 2, 1, 3]
# Measured: scales for groups of a few hundred values cost little time, and larger groups cost accuracy.
_MAX_GROUP_SIZE = 512


def keep_first_token(model: Any) -> bool:
    """Compute the last layer only for the first token, if the rest of the graph reads only that token.

    A classification head reads the hidden state of the first token. The keys and values of the last attention need all
    tokens, but its queries, the feed-forward layers after it and the norms do not. The `openvino.Model` is changed in
    place, and its logits stay the same. Returns whether the graph was recognised and changed.
    """
    # Folds the axes of norms, which may be computed from the rank of the input.
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    nodes = model.get_ordered_ops()
    varying = dependent(nodes)
    head = next((node for node in nodes if _takes_first_token(node, varying)), None)
    last = None if head is None else _last_layer(nodes, varying, head)
    plan = None if last is None else _plan(varying, *last, head)
    if plan is None:
        return False
    slices, shapes = plan
    firsts: dict[tuple[str, int], Any] = {}
    for target, axis in slices:
        source = target.get_source_output()
        key = (name_of(source), source.get_index())
        if key not in firsts:
            firsts[key] = ops.gather(source, [0], axis).output(0)
        target.replace_source_output(firsts[key])
    for node, shape in shapes:
        # 0 copies the size from the input, which now has one token.
        replace(node, ops.reshape(node.input_value(0), np.array(shape), special_zero=True).output(0))
    model.validate_nodes_and_infer_types()
    return True


def quantize_weights(model: Any) -> int:
    """Quantise the weights of the layers to 8 bits, with one scale per output.

    The word embeddings are not quantised, because reading them is fast, nor the head, which runs once per pair. The
    `openvino.Model` is changed in place. Returns the group size for the scales of activations, which divides the width
    of every layer.
    """
    group = 0
    for node in model.get_ordered_ops():
        weights = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if (
            weights is None
            or weights.get_type_name() != "Constant"
            or len(weights.shape) != 2
            or node.input_value(0).get_partial_shape().rank.get_length() != 3
        ):
            continue
        attributes = node.get_attributes()
        values = weights.data.astype(np.float32)
        values = values if attributes["transpose_b"] else np.ascontiguousarray(values.T)
        scale = np.abs(values).max(axis=1, keepdims=True) / 127
        scale[scale == 0] = 1
        rounded = ops.constant(np.rint(values / scale).astype(np.int8))
        restored = ops.multiply(ops.convert(rounded, np.float32), ops.constant(scale))
        product = ops.matmul(node.input_value(0), restored, attributes["transpose_a"], transpose_b=True)
        replace(node, product.output(0))
        group = gcd(group, values.shape[1])
    model.validate_nodes_and_infer_types()
    return next(group // parts for parts in count(1) if group % parts == 0 and group // parts <= _MAX_GROUP_SIZE)


def dependent(nodes: Iterable[Any], inputs: Collection[str] | None = None) -> set[str]:
    """Return the names of the nodes whose values depend on these inputs, by default on any; shapes do not count."""
    found: set[str] = set()
    for node in nodes:
        kind = node.get_type_name()
        if kind == "Parameter":
            hit = inputs is None or not node.output(0).names.isdisjoint(inputs)
        else:
            hit = kind != "ShapeOf" and any(name_of(source) in found for source in sources(node))
        if hit:
            found.add(node.get_name())
    return found


def sources(node: Any) -> list[Any]:
    """Return the outputs that a node reads."""
    return [target.get_source_output() for target in node.inputs()]


def name_of(output: Any) -> str:
    """Return the name of the node that computes an output."""
    return str(output.get_node().get_name())


def replace(node: Any, output: Any) -> None:
    """Make all readers of a node read another output."""
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(output)


def _takes_first_token(node: Any, varying: set[str]) -> bool:
    """Whether a node selects the first token of hidden states of shape (batch, tokens, width)."""
    if node.get_type_name() != "Gather":
        return False
    hidden, index, axis = sources(node)
    return (
        name_of(hidden) in varying and _rank(hidden) == 3 and _constant(index) == [0] and _constant(axis) in ([1], [-2])
    )


def _mixes_tokens(node: Any, varying: set[str]) -> bool:
    """Whether a node multiplies two activations, as attention does."""
    kind = node.get_type_name()
    return kind == "ScaledDotProductAttention" or (kind == "MatMul" and varying.issuperset(map(name_of, sources(node))))


def _last_layer(nodes: list[Any], varying: set[str], head: Any) -> tuple[list[Any], list[Any]] | None:
    """Return the nodes of the last layer that may run on one token, and which of them are its attention."""
    above = _ancestors([head.input_value(0)])
    mixing = [node for node in nodes if node.get_name() in above and _mixes_tokens(node, varying)]
    if mixing and mixing[-1].get_type_name() == "ScaledDotProductAttention":
        attention = mixing[-1:]
        of_all_tokens = _ancestors(sources(attention[0])[1:3])
    elif len(mixing) >= 2:
        attention = mixing[-2:]
        of_all_tokens = _ancestors([node.input_value(1) for node in attention])
    else:
        return None
    # Queries with rotary positions pass through nodes that are not understood; they are cut behind these.
    odd = [node for node in nodes if node.get_name() in (above & varying) - of_all_tokens and not _is_tokenwise(node)]
    names = (above & varying) - of_all_tokens - _ancestors([output for node in odd for output in node.outputs()])
    layer = [node for node in nodes if node.get_name() in names]
    return (layer, attention) if names.issuperset(node.get_name() for node in attention) else None


def _plan(
    varying: set[str], layer: list[Any], attention: list[Any], head: Any
) -> tuple[list[tuple[Any, int]], list[tuple[Any, list[int]]]] | None:
    """Return the inputs to slice and the reshapes to adjust, or None if a node does not allow it."""
    names = {node.get_name() for node in layer}
    mixes = {node.get_name() for node in attention}
    slices: list[tuple[Any, int]] = []
    shapes: list[tuple[Any, list[int]]] = []
    # Token axis of each output.
    axis_of: dict[str, int] = {}
    for node in layer:
        if not _is_tokenwise(node) or _is_used_beyond(node, names | {head.get_name()}):
            return None
        kind = node.get_type_name()
        axes = set()
        for port, target in enumerate(node.inputs()):
            source = target.get_source_output()
            if name_of(source) in names:
                axes.add(axis_of[name_of(source)])
                continue
            # Keys and values keep all tokens.
            whole = node.get_name() in mixes and port in ({1} if kind == "MatMul" else {1, 2})
            if whole:
                continue
            rank = _rank(source)
            axis = rank - 2
            of_tokens = rank in {3, 4} and source.get_partial_shape()[axis].is_dynamic
            if name_of(source) not in varying and not of_tokens:
                continue  # weights
            if rank not in {3, 4}:
                return None
            axes.add(axis)
            size = source.get_partial_shape()[axis]
            if not (size.is_static and size.get_length() == 1):
                slices.append((target, axis))
        if len(axes) != 1:
            return None
        (axis,) = axes
        if node.get_name() in mixes and axis != 2:
            return None
        if kind == "Reshape":
            shape = _shape_of_one_token(node, axis)
            if shape is None:
                return None
            shapes.append((node, shape))
        axis_of[node.get_name()] = 3 - axis if kind == "Transpose" else axis
    return slices, shapes


def _is_tokenwise(node: Any) -> bool:
    kind = node.get_type_name()
    if kind == "Transpose":
        return bool(_constant(node.input_value(1)) == _SWAPS_TOKENS_AND_HEADS)
    if kind == "Slice":
        return _constant(node.input_value(4)) in ([-1], [_rank(node.input_value(0)) - 1])
    if kind in {"MVN", "ReduceMean"}:
        return _constant(node.input_value(1)) in ([-1], [_rank(node.input_value(0)) - 1])
    if kind == "Softmax":
        return node.get_attributes()["axis"] in {-1, _rank(node.input_value(0)) - 1}
    return kind in _TOKENWISE


def _shape_of_one_token(node: Any, axis: int) -> list[int] | None:
    """Return the new shape of a reshape that splits, joins or keeps heads; None for any other."""
    before, after = node.input_value(0).get_partial_shape(), node.output(0).get_partial_shape()
    ranks = len(before), len(after)
    if ranks == (4, 4) and before == after and after[1].is_static and after[3].is_static:
        return [0, 0, 0, 0]
    if axis != 1:  # heads and batch are joined
        return None
    if ranks == (3, 4) and before[2].is_static and after[3].is_static:
        width, of_head = before[2].get_length(), after[3].get_length()
        return [0, 0, -1, of_head] if of_head < width and width % of_head == 0 else None
    return [0, 0, -1] if ranks == (4, 3) else None


def _is_used_beyond(node: Any, names: set[str]) -> bool:
    readers = (target.get_node() for output in node.outputs() for target in output.get_target_inputs())
    return any(reader.get_name() not in names and reader.get_type_name() != "ShapeOf" for reader in readers)


def _ancestors(outputs: Iterable[Any]) -> set[str]:
    found: set[str] = set()
    waiting = [output.get_node() for output in outputs]
    while waiting:
        node = waiting.pop()
        if node.get_name() not in found:
            found.add(node.get_name())
            waiting.extend(source.get_node() for source in sources(node))
    return found


def _rank(output: Any) -> int:
    rank = output.get_partial_shape().rank
    return int(rank.get_length()) if rank.is_static else -1


def _constant(output: Any) -> list[int] | None:
    node = output.get_node()
    return np.asarray(node.data).ravel().tolist() if node.get_type_name() == "Constant" else None
