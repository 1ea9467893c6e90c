"""Removes the attention mask from an OpenVINO graph that runs without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from openvino import Model
from openvino import opset13 as ops

from marcorank._inference.backends.openvino_graph import dependent, name_of, replace, sources

if TYPE_CHECKING:
    from collections.abc import Iterable

_MASK = "attention_mask"
# The values added by the mask are evaluated at these lengths and at the maximum length: a sliding attention window
# masks nothing in sequences that are shorter than it.
_LENGTHS = (1, 7, 64)
_MAX_EVALUATED_LENGTH = 1024


def drop_mask(model: Any, compile_model: Any, *, longest: int | None) -> bool:
    """Remove the attention mask from the graph if it adds only zeros for sequences without padding.

    The `openvino.Model` is changed in place: its logits stay the same for a mask of ones, and other masks no longer
    have an effect. `compile_model` compiles a part of it; `longest` is its maximum number of tokens, None if unknown.
    Returns whether the graph was recognised and changed.
    """
    if longest is None or longest > _MAX_EVALUATED_LENGTH:
        return False
    nodes = model.get_ordered_ops()
    others = {name for node in model.inputs for name in node.names} - {_MASK}
    only_from_mask = dependent(nodes, {_MASK}) - dependent(nodes, others)
    added = []
    for node in nodes:
        if node.get_name() in only_from_mask or node.get_type_name() == "ShapeOf":
            continue
        masks = [source for source in sources(node) if name_of(source) in only_from_mask]
        scores = [source for source in sources(node) if name_of(source) not in only_from_mask]
        if not masks:
            continue
        if node.get_type_name() != "Add" or len(scores) != 1:
            return False
        rank = node.output(0).get_partial_shape().rank
        if rank.is_dynamic or scores[0].get_partial_shape().rank != rank:
            return False
        added.append((node, masks[0], scores[0]))
    names = {mask.get_node().get_friendly_name() for _, mask, _ in added}
    if not names or not _all_zero(model, names, compile_model, lengths=(*_LENGTHS, longest)):
        return False
    for node, _, score in added:
        replace(node, score)
    model.validate_nodes_and_infer_types()
    return True


def _all_zero(model: Any, names: set[str], compile_model: Any, *, lengths: Iterable[int]) -> bool:
    """Whether these nodes are 0 for a mask of ones at each length."""
    copied = model.clone()
    found = [node for node in copied.get_ordered_ops() if node.get_friendly_name() in names]
    if len(found) != len(names):
        return False
    part = compile_model(Model([ops.result(node.output(0)) for node in found], copied.get_parameters()))
    for tokens in lengths:
        ones = np.ones((1, tokens), dtype=np.int64)
        try:
            outputs = part({node.any_name: ones.astype(node.element_type.to_dtype()) for node in copied.inputs})
        except RuntimeError:
            # Not every graph takes a sequence of one token, for example if it has convolutions with a stride.
            return False
        if any(np.any(output != 0) for output in outputs.values()):
            return False
    return True
