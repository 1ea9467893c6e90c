"""The onnxruntime backend; does not need torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from marcorank._inference.backends.base import hidden_output
from marcorank._inference.backends.graph_files import mentions, without_links
from marcorank._inference.backends.telemetry import without_telemetry
from marcorank._inference.head import logits_of
from marcorank._text import quoted
from marcorank.errors import InvalidInputError, ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from marcorank._inference.cpu import Workers
    from marcorank._inference.head import Head
    from marcorank._inference.pairs import TokenBatch

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# On a CPU each pair runs alone unless the file asks for batches: they add padding, and alone, a logit depends on its
# pair only.
_MAX_PADDED_TOKENS = {"cpu": 1, "cuda": 32768}
# A number in the metadata of a file whose graph reads a query once for all its passages: there, batches save time.
BATCH_TOKENS = "marcorank.batch_tokens"
_SEVERITY_FATAL = 4


class OnnxBackend:
    """A cross-encoder in an onnxruntime session on `"cpu"`, `"cuda"` or `"cuda:N"`, in `"fp32"` or `"int8"`."""

    name = "onnx"

    def __init__(self, file: Path, *, device: str, precision: str, workers: Workers, head: Head | None = None) -> None:
        """Load a model, with the head that follows it unless the graph contains it."""
        with without_telemetry():
            import onnxruntime

        kind, _, number = device.partition(":")
        provider = _PROVIDERS.get(kind)
        available = onnxruntime.get_available_providers()
        if provider not in available:
            usable = [name for name, known in _PROVIDERS.items() if known in available]
            raise InvalidInputError(
                f"`device` is {quoted(device)}; the onnx backend can use {' or '.join(map(repr, usable))} on this "
                "machine."
            )
        options = onnxruntime.SessionOptions()
        # Its log bypasses Python logging and goes to stderr; errors are raised anyway.
        options.log_severity_level = _SEVERITY_FATAL
        # All batches share one thread pool; each also runs in the thread of its caller.
        options.intra_op_num_threads = workers.threads - workers.count + 1
        provider_options = {"device_id": number or "0"} if kind == "cuda" else {}
        try:
            with without_links(file, file.resolve().parent) as path:
                session = onnxruntime.InferenceSession(str(path), options, providers=[(provider, provider_options)])
        except Exception as error:  # onnxruntime raises its own classes, all direct children of Exception
            raise ModelLoadError(
                f"{str(file)!r} cannot be read as an ONNX model ({error}). Delete the file and download or export "
                "it again."
            ) from error
        if provider not in session.get_providers():
            raise InvalidInputError(
                f"`device` is {quoted(device)}, but onnxruntime could not start {provider} and would run on the CPU; "
                "check the CUDA libraries, or use 'cpu'."
            )
        inputs = {node.name: node.type for node in session.get_inputs()}
        outputs = {node.name: node.shape for node in session.get_outputs()}
        hidden = hidden_output(file, set(inputs), outputs, head)
        self.device = device
        self.precision = precision
        batch_tokens = session.get_modelmeta().custom_metadata_map.get(BATCH_TOKENS, "")
        self.max_padded_tokens = _MAX_PADDED_TOKENS[kind]
        if mentions(file, "DynamicQuantizeLinear"):
            # It uses one scale per batch; a pair that runs alone does not depend on others.
            self.max_padded_tokens = 1
        elif kind == "cpu" and batch_tokens.isdecimal():
            self.max_padded_tokens = min(max(int(batch_tokens[:9]), 1), _MAX_PADDED_TOKENS["cuda"])
        self.parallel_batches = workers.count if kind == "cpu" else 1
        self.runs_in_callers = kind == "cpu"
        self._session = session
        self._outputs = None if hidden is None else [hidden]
        self._head = None if hidden is None else head
        self._dtypes = {name: np.int32 if kind == "tensor(int32)" else np.int64 for name, kind in inputs.items()}

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return one logit per row. Shape: (batch,), float32."""
        feed = {name: getattr(batch, name).astype(dtype, copy=False) for name, dtype in self._dtypes.items()}
        (output,) = self._session.run(self._outputs, feed)
        if self._head is not None:
            return logits_of(self._head, np.asarray(output, dtype=np.float32), batch.attention_mask.sum(axis=1))
        logits = np.asarray(output, dtype=np.float32)
        return logits[:, 0] if logits.ndim == 2 and logits.shape[1] == 1 else logits
