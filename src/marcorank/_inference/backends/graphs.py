"""What the backends that read a graph from a file check alike, before they run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marcorank.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


def check_graph(file: Path, inputs: set[str], output_shapes: Sequence[Sequence[object]]) -> None:
    """Check that a graph takes token batches and gives one logit a row.

    Args:
        file: Where the graph comes from, for the message.
        inputs: Names of its inputs.
        output_shapes: Shape of each output; a size that is not fixed is no int.

    Raises:
        ModelLoadError: It does not.
    """
    if not inputs <= _INPUTS or "input_ids" not in inputs:
        raise ModelLoadError(
            f"{str(file)!r} takes the inputs {sorted(inputs)}; expected input_ids and at most "
            f"{sorted(_INPUTS - {'input_ids'})}, as sequence-classification exports have."
        )
    one_logit = len(output_shapes) == 1 and (
        len(output_shapes[0]) == 1 or (len(output_shapes[0]) == 2 and not _fixed_above_one(output_shapes[0][1]))
    )
    if not one_logit:
        raise ModelLoadError(
            f"{str(file)!r} gives outputs of the shapes {[list(shape) for shape in output_shapes]}; a reranker needs "
            "one output with one logit a pair, shape (batch, 1)."
        )


def _fixed_above_one(size: object) -> bool:
    return isinstance(size, int) and size != 1
