"""Rewrites the fp32 graph of a BERT to int8, in standard operators.

It differs from onnxruntime's `quantize_dynamic` in these ways:

* Every token has its own activation scale; `quantize_dynamic` uses one scale for a whole batch, so that a passage's
  score depends on the rest of the batch.
* A table of word embeddings whose pairs of columns take at most 256 values each, as initialise_bundled.py makes it, is
  stored as one byte for each pair, without loss. In other tables each word has its own scale.
* A table that is also an output layer is stored once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Floats = npt.NDArray[np.float32]

# x86 processors without VNNI add two u8*s8 products in 16 bits: 2 * 255 * 63 still fits, 2 * 255 * 127 saturates.
WEIGHT_LIMIT = 63
ACTIVATION_LIMIT = 127
ZERO_POINT = 128
CODES = 256
# The tables of positions and segments are too small to be worth the rounding errors.
LARGE_TABLE_VALUES = 1_000_000


class Quantizer:
    """Converts a BERT-like graph to int8: large tables and the products with them, and all others unless `only_tables`.

    Products of two activations stay in fp32.
    """

    def __init__(self, model: onnx.ModelProto, *, only_tables: bool) -> None:
        self.model = model
        self.only_tables = only_tables
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.quantized: dict[str, str] = {}
        # The first product with each matrix, whose int8 weights the others share.
        self.products: dict[str, str] = {}
        self._name_constants_once()
        self.output_layers = self._find_output_layers()

    def run(self) -> onnx.ModelProto:
        """Rewrite the model in place and return it."""
        graph = self.model.graph
        # onnxruntime multiplies, converts and scales in one pass where the scale is (runtime scalar) * (constants).
        # The activation scales are applied after that, so the scalar is 1: the largest entry of any attention mask.
        self._add("ReduceMax", ["attention_mask"], "one_int64", keepdims=0)
        self._add("Cast", ["one_int64"], "one", to=onnx.TensorProto.FLOAT)
        for node in graph.node:
            if node.op_type == "MatMul" and self._is_converted(node.input[1]):
                self._product(node)
            elif node.op_type == "Gather" and self._is_large_table(node.input[0]):
                self._lookup(node)
            else:
                self.nodes.append(node)
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in graph.node for name in node.input}
        del graph.initializer[:]
        graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in used)
        return self.model

    def _product(self, node: onnx.NodeProto) -> None:
        weights = self._values(node.input[1])
        rows, columns = weights.shape
        data, scales = to_int8(weights, WEIGHT_LIMIT, axis=0)
        tokens = self._quantize(node.input[0], rows)
        name = node.output[0]
        stored = self.products.setdefault(node.input[1], name)
        zero = self._constant("zero_point", np.uint8(ZERO_POINT))
        self._add("MatMulInteger", [tokens, self._constant(f"{stored}/weights", data), zero], f"{name}/int32")
        self._add("Cast", [f"{name}/int32"], f"{name}/float", to=onnx.TensorProto.FLOAT)
        self._add("Mul", ["one", self._constant(f"{stored}/scales", scales[0])], f"{name}/column_scales")
        self._add("Mul", [f"{name}/float", f"{name}/column_scales"], f"{name}/columns")
        width = self._constant(f"width_{columns}", np.array([columns], np.int64))
        self._add("Concat", [f"{tokens}/axes", width], f"{name}/shape", axis=0)
        self._add("Reshape", [f"{name}/columns", f"{name}/shape"], f"{name}/reshaped")
        self._add("Mul", [f"{name}/reshaped", f"{tokens}/scales"], name)

    def _quantize(self, name: str, width: int) -> str:
        """Add the nodes that turn (batch, sequence, width) float32 into (batch * sequence, width) uint8.

        Query, key and value read the same activations: these are converted once.
        """
        if name in self.quantized:
            return self.quantized[name]
        out = self.quantized[name] = f"{name}/uint8"
        self._add("Abs", [name], f"{out}/abs")
        self._add("ReduceMax", [f"{out}/abs"], f"{out}/max", axes=[-1], keepdims=1)
        tiny = self._constant("tiny", np.float32(1e-9))
        self._add("Max", [f"{out}/max", tiny], f"{out}/positive")
        step = self._constant("step", np.float32(1 / ACTIVATION_LIMIT))
        self._add("Mul", [f"{out}/positive", step], f"{out}/scales")
        flat = self._constant("flat", np.array([-1], np.int64))
        self._add("Reshape", [f"{out}/scales", flat], f"{out}/flat_scales")
        self._add("Shape", [f"{out}/flat_scales"], f"{out}/count")
        self._add("Expand", [self._constant("zero_point", np.uint8(ZERO_POINT)), f"{out}/count"], f"{out}/zero_points")
        matrix = self._constant(f"matrix_{width}", np.array([-1, width], np.int64))
        self._add("Reshape", [name, matrix], f"{out}/matrix")
        self._add("QuantizeLinear", [f"{out}/matrix", f"{out}/flat_scales", f"{out}/zero_points"], out, axis=0)
        self._add("Shape", [name], f"{out}/axes", end=-1)
        return out

    def _name_constants_once(self) -> None:
        """Remove the `Identity` nodes by which the exporter names a constant that is used twice."""
        copies = {
            node.output[0]: node.input[0]
            for node in self.model.graph.node
            if node.op_type == "Identity" and node.input[0] in self.constants
        }
        others = [node for node in self.model.graph.node if node.output[0] not in copies]
        for node in others:
            node.input[:] = [copies.get(name, name) for name in node.input]
        del self.model.graph.node[:]
        self.model.graph.node.extend(others)

    def _find_output_layers(self) -> dict[str, str]:
        """Return the products with a table of word embeddings: the outputs of their nodes, by the name of the table."""
        nodes = self.model.graph.node
        tables = {node.input[0] for node in nodes if node.op_type == "Gather" and self._is_large_table(node.input[0])}
        # The first of several products, under whose name the weights are stored.
        products = {node.input[1]: node.output[0] for node in reversed(nodes) if node.op_type == "MatMul"}
        return {
            table: output
            for table in tables
            for weights, output in products.items()
            if self._is_large_table(weights) and np.array_equal(self._values(table).T, self._values(weights))
        }

    def _lookup(self, node: onnx.NodeProto) -> None:
        table, ids = node.input
        output = node.output[0]
        if table in self.output_layers:
            self._look_up_columns(self.output_layers[table], ids, output)
        elif (coded := to_codes(self._values(table))) is not None:
            self._look_up_codes(table, coded, ids, output)
        else:
            data, scales = to_int8(self._values(table), 127, axis=1)
            self._add("Gather", [self._constant(f"{table}/int8", data), ids], f"{output}/rows")
            self._add("Cast", [f"{output}/rows"], f"{output}/float", to=onnx.TensorProto.FLOAT)
            self._add("Gather", [self._constant(f"{table}/scales", scales), ids], f"{output}/row_scales")
            self._add("Mul", [f"{output}/float", f"{output}/row_scales"], output)

    def _look_up_columns(self, product: str, ids: str, output: str) -> None:
        """Read from the weights of a product, whose columns are the words: (width, words)."""
        self._add("Gather", [f"{product}/weights", ids], f"{output}/columns", axis=1)
        self._add("Transpose", [f"{output}/columns"], f"{output}/rows", perm=[1, 2, 0])
        self._add("Cast", [f"{output}/rows"], f"{output}/float", to=onnx.TensorProto.FLOAT)
        self._add("Gather", [f"{product}/scales", ids], f"{output}/flat_scales")
        last = self._constant("last", np.array([-1], np.int64))
        self._add("Unsqueeze", [f"{output}/flat_scales", last], f"{output}/row_scales")
        self._add("Mul", [f"{output}/float", f"{output}/row_scales"], output)

    def _look_up_codes(self, table: str, coded: tuple[npt.NDArray[np.uint8], Floats], ids: str, output: str) -> None:
        codes, pairs = coded
        starts = np.arange(codes.shape[1], dtype=np.int32) * CODES
        self._add("Gather", [self._constant(f"{table}/codes", codes), ids], f"{output}/bytes")
        self._add("Cast", [f"{output}/bytes"], f"{output}/codes", to=onnx.TensorProto.INT32)
        self._add("Add", [f"{output}/codes", self._constant(f"{table}/starts", starts)], f"{output}/places")
        self._add("Gather", [self._constant(f"{table}/pairs", pairs), f"{output}/places"], f"{output}/pairs")
        shape = self._constant(f"rows_{2 * codes.shape[1]}", np.array([0, 0, 2 * codes.shape[1]], np.int64))
        self._add("Reshape", [f"{output}/pairs", shape], output)

    def _is_converted(self, weights: str) -> bool:
        return self._is_large_table(weights) if self.only_tables else weights in self.constants

    def _is_large_table(self, name: str) -> bool:
        tensor = self.constants.get(name)
        return tensor is not None and len(tensor.dims) == 2 and int(np.prod(tensor.dims)) >= LARGE_TABLE_VALUES

    def _values(self, name: str) -> Floats:
        values: Floats = numpy_helper.to_array(self.constants[name]).astype(np.float32)
        return values

    def _constant(self, name: str, value: npt.ArrayLike) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))


def to_int8(values: Floats, limit: int, axis: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """Round `values` to -limit..limit, one scale for each slice along the other axis than `axis`.

    Shape:
        values: (rows, columns) float32.
        returns: (rows, columns) int8, and (1, columns) float32 for axis 0 or (rows, 1) for axis 1.
    """
    scales = np.maximum(np.abs(values).max(axis, keepdims=True), 1e-12) / limit
    return np.round(values / scales).astype(np.int8), scales.astype(np.float32)


def to_codes(table: Floats) -> tuple[npt.NDArray[np.uint8], Floats] | None:
    """Return a byte for each pair of columns, and the pairs that the bytes stand for; None if that is impossible.

    Shape:
        table: (rows, columns) float32.
        returns: (rows, columns / 2) uint8, and (columns / 2 * 256, 2) float32.
    """
    if table.shape[1] % 2:
        return None
    count = table.shape[1] // 2
    codes, pairs = np.zeros((len(table), count), np.uint8), np.zeros((count, CODES, 2), np.float32)
    for place in range(count):
        values, found = np.unique(table[:, 2 * place : 2 * place + 2], axis=0, return_inverse=True)
        if len(values) > CODES:
            return None
        codes[:, place], pairs[place, : len(values)] = found.reshape(-1), values
    return codes, pairs.reshape(-1, 2)
