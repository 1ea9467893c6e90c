"""What inference backends share: their protocol, and the check of a graph that is loaded from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from marcorank.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from marcorank._inference.head import Head
    from marcorank._inference.pairs import TokenBatch

_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
# The names that optimum and sentence-transformers give to hidden states.
_HIDDEN = ("last_hidden_state", "token_embeddings")
_HIDDEN_RANK = 3


class UnreadableGraphError(ModelLoadError):
    """OpenVINO cannot read a graph, which another backend may read."""


class Backend(Protocol):
    """A loaded model on one device.

    Attributes:
        name: `"onnx"`, `"openvino"` or `"torch"`.
        device: Device name, as in torch.
        precision: Precision of the computation.
        max_padded_tokens: Best batch size in tokens, including padding; 1 runs each sequence alone.
        parallel_batches: Number of parallel calls of `logits`, each in its own thread.
        runs_in_callers: Whether these may be threads of callers.
    """

    name: str
    device: str
    precision: str
    max_padded_tokens: int
    parallel_batches: int
    runs_in_callers: bool

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return one logit per row. Shape: (batch,), float32."""
        ...


def hidden_output(
    file: Path, inputs: set[str], outputs: Mapping[str, Sequence[object]], head: Head | None
) -> str | None:
    """Check a graph, and return its output with hidden states if a head has to follow it; None if it returns logits.

    Args:
        file: The graph, for messages.
        inputs: Names of its inputs.
        outputs: Shapes of its outputs by name; a dynamic size is not an int.
        head: The head beside the graph, which may be part of the graph as well; None if there is none.

    Raises:
        ModelLoadError: The graph does not accept token batches, or returns neither one logit per row nor hidden states
            for the head.
    """
    if not inputs <= _INPUTS or "input_ids" not in inputs:
        raise ModelLoadError(
            f"{str(file)!r} has the inputs {sorted(inputs)}; expected input_ids and optionally "
            f"{sorted(_INPUTS - {'input_ids'})}, as in sequence-classification exports."
        )
    if len(outputs) == 1 and _is_one_per_row(*outputs.values()):
        return None
    expected = "one output with one logit per pair, shape (batch, 1)"
    if head is not None:
        for name in _HIDDEN:
            shape = outputs.get(name, ())
            if len(shape) == _HIDDEN_RANK and (shape[2] == head.width or not isinstance(shape[2], int)):
                return name
        expected += f", or {_HIDDEN[0]} of shape (batch, tokens, {head.width})"
    raise ModelLoadError(
        f"{str(file)!r} has outputs of shapes {[list(shape) for shape in outputs.values()]}; a reranker needs "
        f"{expected}."
    )


def _is_one_per_row(shape: Sequence[object]) -> bool:
    return len(shape) == 1 or (len(shape) == 2 and (shape[1] == 1 or not isinstance(shape[1], int)))
