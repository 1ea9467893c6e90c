"""The machine's own limit: large matrix products with the libraries that rerankers compute with.

Runs in a process of its own.
"""

from __future__ import annotations

import time
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._inference.backends.telemetry import without_telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

_TURN_S = 0.25


def product_gflops(library: str, precision: str, sizes: Sequence[int], device: str, threads: int | None) -> float:
    """Return the speed of the fastest square product in 10^9 operations per second; the first call selects its size."""
    speed = _fastest_size(library, precision, tuple(sizes), device, threads)
    best, ends = speed(), time.perf_counter() + _TURN_S
    while time.perf_counter() < ends:
        best = max(best, speed())
    return best


@cache
def _fastest_size(
    library: str, precision: str, sizes: tuple[int, ...], device: str, threads: int | None
) -> Callable[[], float]:
    with without_telemetry():
        __import__(library)

    def prepared(size: int) -> Callable[[], float]:
        random = np.random.default_rng(size)
        left, right = (random.random((size, size), dtype=np.float32) * 2 - 1 for _ in range(2))
        if library == "torch":
            multiply = _torch(precision, left, right, device)
        else:
            multiply = (_onnxruntime if library == "onnxruntime" else _openvino)(precision, left, right, threads)
        multiply()

        def speed() -> float:
            started = time.perf_counter()
            multiply()
            return float(2 * size**3 / (time.perf_counter() - started) / 1e9)

        return speed

    return max(map(prepared, sizes), key=lambda speed: max(speed(), speed()))


def _torch(precision: str, left: NDArray[Any], right: NDArray[Any], device: str) -> Callable[[], Any]:
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}[precision]
    scale = 127 if precision == "int8" else 1
    factors = [(torch.from_numpy(factor).to(device) * scale).to(dtype) for factor in (left, right)]
    product = torch._int_mm if precision == "int8" else torch.matmul  # noqa: SLF001 -- torch has no other int8 product

    def multiply() -> None:
        with torch.inference_mode():
            product(*factors)
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return multiply


def _onnxruntime(precision: str, left: NDArray[Any], right: NDArray[Any], threads: int | None) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if precision == "int8":
        # Its fast products multiply unsigned by signed.
        left, right = ((left + 1) * 127).astype(np.uint8), (right * 127).astype(np.int8)
    session = onnxruntime.InferenceSession(onnx_product(precision), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left, "right": right})


def _openvino(precision: str, left: NDArray[Any], right: NDArray[Any], threads: int | None) -> Callable[[], Any]:
    import openvino
    from openvino import opset13 as operations

    parameter = operations.parameter(left.shape, np.float32)
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if precision == "int8":
        # Quantised inputs and dequantised weights are how its files express an int8 product.
        bounds = [operations.constant(np.float32(bound)) for bound in (-1.28, 1.27)]
        changing: Any = operations.fake_quantize(parameter, *bounds, *bounds, 256)
        stored = operations.convert(operations.constant((right * 127).astype(np.int8)), "f32")
        constant: Any = operations.multiply(stored, operations.constant(np.float32(1 / 127)))
    else:
        changing, constant = parameter, operations.constant(right)
        properties["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    model = openvino.Model([operations.matmul(changing, constant, False, True)], [parameter])  # noqa: FBT003
    request = openvino.Core().compile_model(model, "CPU", properties).create_infer_request()
    return lambda: request.infer([left], share_inputs=True, share_outputs=True)


def onnx_product(precision: str) -> bytes:
    """Return an ONNX model that multiplies `left` by `right`, written without the package onnx.

    Source: the field numbers and types of onnx.proto3.
    """
    operator, types = (b"MatMulInteger", b"\x02\x03\x06") if precision == "int8" else (b"MatMul", b"\x01\x01\x01")
    node = _field(1, b"left") + _field(1, b"right") + _field(2, b"product") + _field(4, operator)
    left, right, product = (
        _field(1, name) + _field(2, _field(1, b"\x08" + bytes([dtype])))
        for name, dtype in zip((b"left", b"right", b"product"), types, strict=True)
    )
    graph = _field(1, node) + _field(2, b"product") + _field(11, left) + _field(11, right) + _field(12, product)
    version, opset = b"\x08\x08", _field(1, b"") + b"\x10\x0d"
    return version + _field(7, graph) + _field(8, opset)


def _field(number: int, content: bytes) -> bytes:
    """Return a field of a protobuf message; the content is shorter than 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content
