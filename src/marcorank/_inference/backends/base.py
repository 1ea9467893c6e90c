"""The inner seam: token batch in, logits out."""

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
        device: Where it runs, as torch spells devices.
        precision: What it computes in.
        max_padded_tokens: Batch size at which it is fast, in tokens with padding; 1 runs each sequence alone.
        parallel_batches: How many calls of `logits` may run at once, each from a thread of its own.
    """

    name: str
    device: str
    precision: str
    max_padded_tokens: int
    parallel_batches: int

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return one logit a row. Shape: (batch,), float32."""
        ...
