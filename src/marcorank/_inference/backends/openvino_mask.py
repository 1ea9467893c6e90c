"""A change to an OpenVINO graph: without padding there is nothing to mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from openvino import Model
from openvino import opset13 as ops

if TYPE_CHECKING:
    from collections.abc import Iterable

_MASK = "attention_mask"
# What a mask adds is evaluated at these numbers of tokens, and at the most that there can be: a window of attention
# masks nothing of what is shorter.
_LENGTHS = (1, 7, 64)
_LONGEST_EVALUATED = 1024


def drop_mask(model: Any, compile_model: Any, *, longest: int | None) -> bool:
    """Leave out what the attention mask adds to scores, where that is nothing for sequences without padding.

    Args:
        model: An `openvino.Model`; it is changed in place. For a mask of ones its logits stay the same, and any other
            has no effect any more.
        compile_model: Makes a part of it executable.
        longest: Most tokens that it can read; None if that is not known.

    Returns:
        Whether the graph had the form that is known here; else it is left as it was.
    """
    if longest is None or longest > _LONGEST_EVALUATED:
        return False
    nodes = model.get_ordered_ops()
    of_mask = _reached(nodes, {_MASK})
    of_others = _reached(nodes, {name for node in model.inputs for name in node.names} - {_MASK})
    only_of_mask = of_mask - of_others
    added = []
    for node in nodes:
        if node.get_name() in only_of_mask or node.get_type_name() == "ShapeOf":
            continue
        masks = [target.get_source_output() for target in node.inputs() if _source(target) in only_of_mask]
        scores = [target.get_source_output() for target in node.inputs() if _source(target) not in only_of_mask]
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
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(score)
    model.validate_nodes_and_infer_types()
    return True


def _reached(nodes: Iterable[Any], names: set[str]) -> set[str]:
    """Return the names of the nodes whose values depend on inputs of these names; a shape is no value."""
    reached: set[str] = set()
    for node in nodes:
        kind = node.get_type_name()
        if kind == "Parameter":
            hit = bool(names & set(node.output(0).names))
        else:
            hit = kind != "ShapeOf" and any(_source(target) in reached for target in node.inputs())
        if hit:
            reached.add(node.get_name())
    return reached


def _source(target: Any) -> str:
    return str(target.get_source_output().get_node().get_name())


def _all_zero(model: Any, names: set[str], compile_model: Any, *, lengths: Iterable[int]) -> bool:
    """Whether these nodes are 0 for a mask of ones, at each of the lengths."""
    copied = model.clone()
    found = [node for node in copied.get_ordered_ops() if node.get_friendly_name() in names]
    if len(found) != len(names):
        return False
    part = compile_model(Model([ops.result(node.output(0)) for node in found], copied.get_parameters()))
    for tokens in lengths:
        ones = np.ones((1, tokens), dtype=np.int64)
        answers = part({node.any_name: ones.astype(node.element_type.to_dtype()) for node in copied.inputs})
        if any(np.any(answer != 0) for answer in answers.values()):
            return False
    return True
