"""The protocol of inference backends: token batch in, logits out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from marcorank._inference.pairs import TokenBatch


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
