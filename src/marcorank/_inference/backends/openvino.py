"""The OpenVINO backend, the fastest on a CPU; does not need torch."""

from __future__ import annotations

from collections import deque
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._forks import ForkLock
from marcorank._inference.backends.base import UnreadableGraphError, hidden_output
from marcorank._inference.backends.graph_files import without_links
from marcorank._inference.backends.telemetry import without_telemetry
from marcorank._text import message_of, quoted, shorten
from marcorank.errors import InvalidInputError, MissingExtraError, ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from marcorank._inference.cpu import Workers
    from marcorank._inference.head import Head
    from marcorank._inference.pairs import TokenBatch

# Names in OpenVINO: the inference precision, and the CPU capability that it needs.
_PRECISIONS = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "fp16": ("f16", "FP16"), "int8": ("f32", "INT8")}
# How long the freeing of a model waits for another thread; after that it may only meet a fork at a bad moment.
_MAX_WAIT_S = 1.0
_CAPABILITIES = "OPTIMIZATION_CAPABILITIES"


class OpenvinoBackend:
    """A cross-encoder compiled by OpenVINO for the CPU, from an ONNX file or OpenVINO's own IR.

    The last layer is computed only for the first token if nothing else is read, which does not change the logits.
    In `int8` the weights are rounded to 8 bits with one scale per output, and the activations with one scale per few
    hundred values of a token, so a logit does not depend on the batch; no calibration is needed.
    """

    name = "openvino"
    runs_in_callers = True

    def __init__(
        self,
        file: Path,
        *,
        device: str,
        precision: str,
        workers: Workers,
        longest: int | None = None,
        head: Head | None = None,
    ) -> None:
        """Load and compile a model, with the head that follows it unless the graph contains it.

        It has at most `longest` tokens; None if that is unknown.
        """
        with _engines:
            self._open(file, head, device=device, precision=precision, workers=workers, longest=longest)

    def _open(
        self, file: Path, head: Head | None, *, device: str, precision: str, workers: Workers, longest: int | None
    ) -> None:
        core = shared_core()
        from openvino import Tensor, properties

        from marcorank._inference.backends.openvino_graph import keep_first_token, quantize_weights
        from marcorank._inference.backends.openvino_mask import drop_mask

        if device != "cpu":
            raise InvalidInputError(f"`device` is {quoted(device)}; the openvino backend supports only 'cpu'.")
        hint = _precision(precision)
        model, added = complete(read_graph(file), file, head)
        for node in model.inputs:
            if node.partial_shape.is_static:
                raise ModelLoadError(
                    f"{str(file)!r} has an input of fixed shape {list(node.shape)}; expected dynamic axes, "
                    "as in the result of `marcorank models export`."
                )
        keep_first_token(model)
        drops_mask = drop_mask(model, partial(core.compile_model, device_name="CPU"), longest=longest)
        # Neither reads the padding of other rows.
        self._needs_single_rows = drops_mask or added
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
            raise ModelLoadError(f"OpenVINO cannot compile {str(file)!r}: {_reason(error)}") from error
        self.device = device
        self.precision = precision
        self.max_padded_tokens = 1  # each pair runs alone, without padding
        self.parallel_batches = workers.count
        self._tensor = Tensor
        self._dtypes = {node.any_name: node.element_type.to_dtype() for node in model.inputs}
        # An infer request holds the buffers of one pass, so it is removed while in use.
        self._idle: deque[Any] = deque(self._compiled.create_infer_request() for _ in range(workers.count))

    def __del__(self) -> None:
        """Free the engine, but not while another thread forks."""
        held = _engines.acquire(_MAX_WAIT_S)
        try:
            self.__dict__.clear()
        finally:
            if held:
                _engines.release()

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return one logit per row. Shape: (batch,), float32."""
        if self._needs_single_rows and not batch.attention_mask.all():
            return np.concatenate([self.logits(row) for row in batch.rows()])
        inputs = [np.ascontiguousarray(getattr(batch, name), dtype) for name, dtype in self._dtypes.items()]
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            # A dict of inputs, or a copy of the outputs, would take longer than all of our own steps of a short pair.
            for number, values in enumerate(inputs):
                request.set_input_tensor(number, self._tensor(values, shared_memory=True))
            logits = np.array(request.infer(share_outputs=True)[0], dtype=np.float32)
        finally:
            self._idle.append(request)
        return logits[:, 0] if logits.ndim == 2 and logits.shape[1] == 1 else logits


def read_graph(file: Path) -> Any:
    """Return an ONNX file or an IR as an `openvino.Model`.

    Raises:
        UnreadableGraphError: OpenVINO does not accept the file.
    """
    core = shared_core()
    try:
        with without_links(file, file.parent.resolve()) as path:
            try:
                return core.read_model(path)
            except Exception as error:  # a RuntimeError for many reasons
                raise UnreadableGraphError(
                    f"{str(file)!r} cannot be read by OpenVINO ({_reason(error)}). If it is damaged, delete it and "
                    "download or export it again; an IR needs its .bin file next to the .xml."
                ) from error
    except OSError as error:  # such as no space for copies
        raise UnreadableGraphError(
            f"The weights of {str(file)!r} cannot be linked or copied: {message_of(error)}"
        ) from error


def shared_core() -> Any:
    """Return the one `openvino.Core` of this process.

    Each core loads a CPU plugin, which installs an alternate signal stack and removes it when it is destroyed. If two
    cores are destroyed out of order, the next signal, such as Ctrl-C, kills the process. This one is never destroyed.
    """
    with _engines:
        return _core()


@lru_cache(maxsize=1)
def _core() -> Any:
    try:
        with without_telemetry():
            import openvino
    except ImportError as error:
        raise MissingExtraError("The openvino backend needs openvino: pip install 'marcorank[openvino]'") from error
    return openvino.Core()


def _end_idle_threads() -> None:
    """End the threads of the compiled models that were freed.

    OpenVINO keeps them for the next model with the same number of streams. A forked child inherits this pool but not
    its threads, and would wait for them forever. A CPU plugin empties the pool when it is destroyed, which takes a
    millisecond; models in use keep their threads. The plugin of this core lives and dies in one thread, so it leaves
    the signal stack as it was.
    """
    if _core.cache_info().currsize:
        import openvino

        openvino.Core().get_property("CPU", _CAPABILITIES)  # loads the plugin


# Held to make and to free engines. During a fork the freed threads would come back, and two threads that edit graphs in
# Python deadlock: one holds the interpreter and waits for a lock of OpenVINO, the other one the other way round.
_engines = ForkLock(_end_idle_threads)


def complete(model: Any, file: Path, head: Head | None) -> tuple[Any, bool]:
    """Return a graph that computes logits, and whether the head had to be added to it.

    Raises:
        ModelLoadError: The graph is not one of a reranker.
    """
    from marcorank._inference.backends.openvino_head import with_head

    outputs = {
        _name_of(node, number): [size.get_length() if size.is_static else None for size in node.partial_shape]
        for number, node in enumerate(model.outputs)
    }
    hidden = hidden_output(file, {node.any_name for node in model.inputs}, outputs, head)
    if hidden is None or head is None:
        return model, False
    return with_head(model, head, model.output(hidden)), True


def _name_of(output: Any, number: int) -> str:
    return str(output.any_name) if output.names else str(number)


def computes(precision: str) -> bool:
    """Whether OpenVINO supports a precision on this processor."""
    return precision in _usable_precisions()


def _usable_precisions() -> list[str]:
    capabilities = shared_core().get_property("CPU", _CAPABILITIES)
    return [name for name, (_, capability) in _PRECISIONS.items() if capability in capabilities]


def _precision(precision: str) -> Any:
    """Return the OpenVINO type for a precision that this processor supports."""
    from openvino import Type

    usable = _usable_precisions()
    if precision not in usable:
        raise InvalidInputError(
            f"`precision` is {quoted(precision)}; on this processor the openvino backend supports "
            f"{' and '.join(map(repr, usable))}."
        )
    # Operations that are not quantised, such as attention, run in the precision of `auto`.
    hint = "bf16" if precision == "int8" and "bf16" in usable else _PRECISIONS[precision][0]
    return getattr(Type, hint)


def _reason(error: Exception) -> str:
    """Return what an OpenVINO error says, without source locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    messages = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    return shorten("; ".join(line.rstrip(".:") for line in messages or lines), 600) or type(error).__name__
