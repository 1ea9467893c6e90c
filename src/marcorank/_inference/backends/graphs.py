"""Checks of model graphs, shared by the backends that load a graph from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marcorank.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


def check_graph(file: Path, inputs: set[str], output_shapes: Sequence[Sequence[object]]) -> None:
    """Check that a graph accepts token batches and returns one logit per row.

    Args:
        file: File of the graph, for the message.
        inputs: Names of the inputs.
        output_shapes: Shape of each output; a dynamic size is not an int.

    Raises:
        ModelLoadError: The inputs or outputs are different.
    """
    if not inputs <= _INPUTS or "input_ids" not in inputs:
        raise ModelLoadError(
            f"{str(file)!r} has the inputs {sorted(inputs)}; expected input_ids and optionally "
            f"{sorted(_INPUTS - {'input_ids'})}, as in sequence-classification exports."
        )
    one_logit = len(output_shapes) == 1 and (
        len(output_shapes[0]) == 1 or (len(output_shapes[0]) == 2 and not _fixed_above_one(output_shapes[0][1]))
    )
    if not one_logit:
        raise ModelLoadError(
            f"{str(file)!r} has outputs of shapes {[list(shape) for shape in output_shapes]}; a reranker needs "
            "one output with one logit per pair, shape (batch, 1)."
        )


def _fixed_above_one(size: object) -> bool:
    return isinstance(size, int) and size != 1
