"""What inference backends share: their protocol, and the check of a graph that is loaded from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from marcorank.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from marcorank._inference.pairs import TokenBatch

_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class Backend(Protocol):
    """A loaded model on one device.

    Attributes:
        name: `"onnx"`, `"openvino"` or `"torch"`.
        device: Device name, as in torch.
        precision: Precision of the computation.
        max_padded_tokens: Best batch size in tokens, including padding; 1 runs each sequence alone.
        parallel_batches: Number of parallel calls of `logits`, each in its own thread.
    """

    name: str
    device: str
    precision: str
    max_padded_tokens: int
    parallel_batches: int

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return one logit per row. Shape: (batch,), float32."""
        ...


def check_graph(file: Path, inputs: set[str], output_shapes: Sequence[Sequence[object]]) -> None:
    """Raise `ModelLoadError` unless a graph accepts token batches and returns one logit per row.

    A dynamic size in `output_shapes` is not an int.
    """
    if not inputs <= _INPUTS or "input_ids" not in inputs:
        raise ModelLoadError(
            f"{str(file)!r} has the inputs {sorted(inputs)}; expected input_ids and optionally "
            f"{sorted(_INPUTS - {'input_ids'})}, as in sequence-classification exports."
        )
    if len(output_shapes) != 1 or not _is_one_per_row(output_shapes[0]):
        raise ModelLoadError(
            f"{str(file)!r} has outputs of shapes {[list(shape) for shape in output_shapes]}; a reranker needs "
            "one output with one logit per pair, shape (batch, 1)."
        )


def _is_one_per_row(shape: Sequence[object]) -> bool:
    return len(shape) == 1 or (len(shape) == 2 and (shape[1] == 1 or not isinstance(shape[1], int)))
