"""OpenVINO: the fastest on a CPU; needs no torch."""

from __future__ import annotations

from collections import deque
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._inference.backends.graphs import check_graph
from marcorank._inference.backends.telemetry import without_telemetry
from marcorank.errors import InvalidInputError, MissingExtraError, ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from marcorank._inference.cpu import Workers
    from marcorank._inference.pairs import TokenBatch

# As OpenVINO calls them: the inference precision, and the capability of the processor that it takes.
_PRECISIONS = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "fp16": ("f16", "FP16"), "int8": ("f32", "INT8")}


class OpenvinoBackend:
    """A cross-encoder compiled by OpenVINO for the CPU, from an ONNX file or OpenVINO's own IR.

    The last layer is computed for the first token alone where nothing else reads it, which changes no logit.
    In `int8` the weights are rounded to 8 bits with one scale an output, and the activations with one scale for
    some hundred values of one token, so that a logit does not depend on the batch; no calibration is needed.

    Attributes:
        name: `"openvino"`.
        device: `"cpu"`.
        precision: `"fp32"`, `"bf16"`, `"fp16"` or `"int8"`.
        max_padded_tokens: 1: each pair runs alone, and nothing is padded.
        parallel_batches: How many pairs run at once.
    """

    name = "openvino"

    def __init__(
        self, file: Path, *, device: str, precision: str, workers: Workers, longest: int | None = None
    ) -> None:
        """Read and compile a model.

        Args:
            file: An ONNX file, or an IR with its weights beside it.
            device: `"cpu"`.
            precision: To compute in.
            workers: Threads, and how many pairs run at once.
            longest: Most tokens that the model can read; None if that is not known.

        Raises:
            MissingExtraError: openvino is not installed.
            InvalidInputError: OpenVINO cannot use the device or the precision here.
            ModelLoadError: The file is damaged, or is no cross-encoder with one logit.
        """
        core = shared_core()
        from openvino import properties

        from marcorank._inference.backends.openvino_graph import keep_first_token, quantize_weights
        from marcorank._inference.backends.openvino_mask import drop_mask

        if device != "cpu":
            raise InvalidInputError(f"`device` is {device!r}; the openvino backend runs on 'cpu' alone.")
        hint = _precision(core, precision)
        try:
            model = core.read_model(file)
        except Exception as error:  # a RuntimeError of many kinds
            raise ModelLoadError(
                f"{str(file)!r} cannot be read by OpenVINO ({_first_line(error)}). Delete the file and fetch or export "
                "it again; an IR needs its .bin beside the .xml."
            ) from error
        check_graph(
            file,
            {node.any_name for node in model.inputs},
            [[size.get_length() if size.is_static else None for size in node.partial_shape] for node in model.outputs],
        )
        for node in model.inputs:
            if node.partial_shape.is_static:
                raise ModelLoadError(
                    f"{str(file)!r} takes inputs of the fixed shape {list(node.shape)}; expected dynamic "
                    "axes, as `marcorank models export` makes them."
                )
        keep_first_token(model)
        self._reads_mask = not drop_mask(model, partial(core.compile_model, device_name="CPU"), longest=longest)
        options: dict[str, Any] = {
            properties.hint.inference_precision: hint,
            properties.inference_num_threads: workers.threads,
            properties.num_streams: workers.count,
            # Pinned threads of two processes would share some cores and leave others idle.
            properties.hint.enable_cpu_pinning: False,
        }
        if precision == "int8":
            options[properties.hint.dynamic_quantization_group_size] = quantize_weights(model)
        try:
            self._compiled = core.compile_model(model, "CPU", options)
        except Exception as error:
            raise ModelLoadError(f"OpenVINO cannot compile {str(file)!r}: {_first_line(error)}") from error
        self.device = device
        self.precision = precision
        self.max_padded_tokens = 1
        self.parallel_batches = workers.count
        self._dtypes = {node.any_name: node.element_type.to_dtype() for node in model.inputs}
        # A request holds the buffers of one pass; who runs one takes it out.
        self._idle: deque[Any] = deque(self._compiled.create_infer_request() for _ in range(workers.count))

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return one logit a row. Shape: (batch,), float32."""
        if not self._reads_mask and not batch.attention_mask.all():
            return np.concatenate([self.logits(row) for row in batch.rows()])
        feed = {name: getattr(batch, name).astype(dtype, copy=False) for name, dtype in self._dtypes.items()}
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            output = request.infer(feed, share_inputs=True)[0]
            logits = np.array(output, dtype=np.float32)
        finally:
            self._idle.append(request)
        return logits[:, 0] if logits.ndim == 2 and logits.shape[1] == 1 else logits


@lru_cache(maxsize=1)
def shared_core() -> Any:
    """Return the one `openvino.Core` of this process.

    Each brings its CPU plugin, and with it a stack for signal handlers, which it takes back when it ends. Where two do
    so out of order, the next signal, such as Ctrl-C, kills the process. This one lives as long as the process.

    Raises:
        MissingExtraError: openvino is not installed.
    """
    try:
        with without_telemetry():
            import openvino
    except ImportError as error:
        raise MissingExtraError("The openvino backend needs openvino: pip install 'marcorank[openvino]'") from error
    return openvino.Core()


def computes(precision: str) -> bool:
    """Whether this processor can compute in a precision, as OpenVINO finds.

    Raises:
        MissingExtraError: openvino is not installed.
    """
    return _PRECISIONS[precision][1] in _able(shared_core())


def _able(core: Any) -> set[str]:
    return set(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _precision(core: Any, precision: str) -> Any:
    """Return the type to compute in, if this processor has it."""
    from openvino import Type

    able = _able(core)
    usable = [name for name, (_, capability) in _PRECISIONS.items() if capability in able]
    if precision not in usable:
        raise InvalidInputError(
            f"`precision` is {precision!r}; with the openvino backend this processor can compute in "
            f"{' and '.join(map(repr, usable))}."
        )
    hint, _ = _PRECISIONS[precision]
    # What is not quantised, such as attention, is as precise as `auto` is.
    if precision == "int8" and "BF16" in able:
        hint = "bf16"
    return getattr(Type, hint)


def _first_line(error: Exception) -> str:
    """Return what OpenVINO says is wrong, without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    return (told or lines or [type(error).__name__])[0].rstrip(".:")
