"""The machine's own limit: large matrix products in the engines that rerankers compute with.

Everything here runs in the process of one engine. Each product multiplies a matrix that changes with one that does
not, as layers do, so that an engine may bring the constant one into the order that it likes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._inference.backends.telemetry import without_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_TURN_S = 0.25
_UINT8, _INT8, _INT32, _FLOAT = 2, 3, 6, 1


class Products:
    """Products of one engine.

    Attributes:
        precisions: What the engine can multiply in.
    """

    def __init__(self, engine: str, device: str | None, threads: int | None) -> None:
        """Import the engine."""
        self._device = device or "cpu"
        self._threads = threads
        self._make: Callable[[str, int], Callable[[], Any]] = getattr(self, f"_{engine}")
        self._made: dict[str, Callable[[], Any]] = {}
        self.precisions = {
            "torch": ("fp32", "bf16", "fp16", "int8"),
            "onnxruntime": ("fp32", "int8"),
            "openvino": ("fp32", "bf16", "int8"),
        }[engine]
        with without_telemetry():
            __import__(engine)

    def best_size(self, precision: str, sizes: Sequence[int]) -> tuple[int, float]:
        """Find the size that is fastest; return it and its 10^9 operations a second."""
        best, most = 0, 0.0
        for size in sizes:
            multiply = self._make(precision, size)
            multiply()
            speed = max(_speed(multiply, size) for _ in range(2))
            if speed > most:
                best, most = size, speed
                self._made[precision] = multiply
        return best, most

    def measure(self, precision: str, size: int) -> float:
        """Return 10^9 operations a second of products of the size that `best_size` found, the best of a few."""
        multiply, ends = self._made[precision], time.perf_counter() + _TURN_S
        speeds = [_speed(multiply, size)]
        while time.perf_counter() < ends:
            speeds.append(_speed(multiply, size))
        return max(speeds)

    def _torch(self, precision: str, size: int) -> Callable[[], Any]:
        import torch

        device = self._device
        left, right = (torch.from_numpy(matrix).to(device) for matrix in _matrices(size))
        if precision == "int8":
            left, right = ((matrix * 127).to(torch.int8) for matrix in (left, right))
            product: Callable[[Any, Any], Any] = torch._int_mm  # noqa: SLF001 -- the only int8 product that torch has
        else:
            dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
            left, right = left.to(dtype), right.to(dtype)
            product = torch.matmul

        def multiply() -> None:
            with torch.inference_mode():
                product(left, right)
            if device.startswith("cuda"):
                torch.cuda.synchronize()

        return multiply

    def _onnxruntime(self, precision: str, size: int) -> Callable[[], Any]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        left, right = _matrices(size)
        if precision == "int8":
            # Unsigned by signed is what its fast products take.
            left, right = ((left + 1) * 127).astype(np.uint8), (right * 127).astype(np.int8)
        model = _onnx_product(left, right)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"left": left})

    def _openvino(self, precision: str, size: int) -> Callable[[], Any]:
        import openvino
        from openvino import opset13 as operations

        left, right = _matrices(size)
        given = operations.parameter([size, size], np.float32)
        if precision == "int8":
            # Quantised inputs and dequantised weights are how its files say that a product is int8.
            bounds = [operations.constant(np.float32(bound)) for bound in (-1.28, 1.27)]
            factor: Any = operations.fake_quantize(given, *bounds, *bounds, 256)
            stored = operations.convert(operations.constant((right * 127).astype(np.int8)), "f32")
            constant: Any = operations.multiply(stored, operations.constant(np.float32(1 / 127)))
        else:
            factor, constant = given, operations.constant(right)
        model = openvino.Model([operations.matmul(factor, constant, False, True)], [given])  # noqa: FBT003
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if precision != "int8":
            settings["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
        if self._threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self._threads
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        return lambda: request.infer([left], share_inputs=True, share_outputs=True)


def _speed(multiply: Callable[[], Any], size: int) -> float:
    started = time.perf_counter()
    multiply()
    return 2 * size**3 / (time.perf_counter() - started) / 1e9


def _matrices(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(size)
    left, right = (random.random((size, size), dtype=np.float32) * 2 - 1 for _ in range(2))
    return left, right


def _onnx_product(left: NDArray[Any], right: NDArray[Any]) -> bytes:
    """Return an ONNX model of one product, written by hand: the package onnx is not always there.

    Source: the field numbers of onnx.proto3.
    """
    whole = right.dtype == np.int8
    kinds = (_UINT8, _INT8, _INT32) if whole else (_FLOAT, _FLOAT, _FLOAT)
    node = _field(1, b"left") + _field(1, b"right") + _field(2, b"product")
    node += _field(4, b"MatMulInteger" if whole else b"MatMul")
    constant = b"".join(_number(1, size) for size in right.shape) + _number(2, kinds[1])
    constant += _field(8, b"right") + _field(9, right.tobytes())
    graph = _field(1, node) + _field(2, b"product") + _field(5, constant)
    graph += _field(11, _value(b"left", kinds[0], left.shape))
    graph += _field(12, _value(b"product", kinds[2], (left.shape[0], right.shape[1])))
    return _number(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _number(2, 13))


def _value(name: bytes, kind: int, shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(_field(1, _number(1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _number(1, kind) + _field(2, sizes)))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
