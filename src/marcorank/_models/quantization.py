"""Turn a cross-encoder's fp32 graph into an int8 one whose scales are fixed by example pairs.

Only this module needs nncf; it is imported when a model is quantised.
"""

from __future__ import annotations

import io
import logging
import shutil
import warnings
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from marcorank._files import staged_folder
from marcorank._inference.backends.telemetry import without_telemetry
from marcorank._models.catalogue import QUANTIZED_IR_FILE
from marcorank.errors import MissingExtraError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from marcorank._inference.head import Head
    from marcorank._inference.pairs import TokenBatch

__all__ = ["import_packages", "quantize"]

# Measured: half of what makes activations uneven goes into the weights. More or less costs accuracy.
_SMOOTHING = 0.5


def import_packages() -> tuple[Any, Any]:
    """Import nncf and openvino with their telemetry off, and return them."""
    # nncf makes its own class the default of all later loggers.
    logger_class = logging.getLoggerClass()
    try:
        with without_telemetry():
            import nncf
            import openvino
    except ImportError as error:
        raise MissingExtraError(
            "Quantising a model needs openvino and nncf: pip install 'marcorank[quantize]'"
        ) from error
    finally:
        logging.setLoggerClass(logger_class)
    return nncf, openvino


def quantize(
    graph: Path,
    pairs: Sequence[TokenBatch],
    target: Path,
    *,
    texts: Mapping[str, Path] | None = None,
    head: Head | None = None,
) -> Path:
    """Write `target/openvino/marcorank_int8.xml`, its .bin and the tokenizer and config files that go with it.

    Weights have one scale for each output, activations one for all tokens, calibrated on the pairs. Products of
    attention, the second product of each feed-forward layer and the head stay in fp32: with those quantised too, the
    logits of a MiniLM-L6 were off by nine times as much. Loading in int8 rounds them as in any other model.

    An interrupted call changes nothing. Files of the same names in an existing `target` are replaced, others are kept.

    Args:
        graph: ONNX file or OpenVINO IR that computes in fp32.
        pairs: A few hundred encoded pairs, like those that will be scored.
        target: Folder to write. It may be the model's own.
        texts: `config.json` and the other files to be copied, by their names in the folder.
        head: What follows the encoder, unless the graph contains it; it becomes part of the file.
    """
    nncf, openvino = import_packages()
    with staged_folder(target, last=QUANTIZED_IR_FILE) as staging:
        with _quiet(nncf):
            model = _quantized(nncf, graph, pairs, head)
            openvino.save_model(model, staging / QUANTIZED_IR_FILE, compress_to_fp16=False)
        for name, text in (texts or {}).items():
            # Those of the model's own folder stay untouched.
            if text.resolve() != (target / name).resolve():
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(text, staging / name)
    return target / QUANTIZED_IR_FILE


def _quantized(nncf: Any, graph: Path, pairs: Sequence[TokenBatch], head: Head | None) -> Any:
    from marcorank._inference.backends.openvino import complete, read_graph
    from marcorank._inference.backends.openvino_graph import keep_first_token

    try:
        model, _ = complete(read_graph(graph), graph, head)
        # Before the scales are chosen, so that those of the last layer suit the one token that is used.
        keep_first_token(model)
        dtypes = {node.any_name: node.element_type.to_dtype() for node in model.inputs}
        feeds = [{name: getattr(pair, name).astype(dtype) for name, dtype in dtypes.items()} for pair in pairs]
        return nncf.quantize(
            model,
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=_kept_in_fp32(model), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTHING)
            ),
        )
    except Exception as error:
        # OpenVINO raises RuntimeError for everything, and nncf classes of its own and whatever its parts do.
        raise ModelLoadError(f"{str(graph)!r} cannot be quantised: {error}") from error


def _kept_in_fp32(model: Any) -> list[str]:
    """Return the names of the products that cost more accuracy in 8 bits than they gain in time."""
    return [node.get_friendly_name() for node in model.get_ordered_ops() if _is_sensitive(node)]


def _is_sensitive(node: Any) -> bool:
    if node.get_type_name() != "MatMul":
        return bool(node.get_type_name() == "ScaledDotProductAttention")
    values, weights = node.input_value(0), node.input_value(1)
    if not _is_constant(weights):  # attention
        return True
    if values.get_partial_shape().rank.get_length() != 3:  # the head, which runs once per pair
        return True
    width_in, width_out = list(weights.get_shape())[-2:]
    if node.get_attributes()["transpose_b"]:
        width_in, width_out = width_out, width_in
    # The second product of a feed-forward layer is the one that narrows.
    return bool(width_in > width_out)


def _is_constant(output: Any) -> bool:
    node = output.get_node()
    if node.get_type_name() == "Convert":  # weights that were saved in 16 bits
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


@contextmanager
def _quiet(nncf: Any) -> Iterator[None]:
    """Keep the log, progress bars and warnings of nncf off the caller's terminal, then restore the settings."""
    level = nncf.nncf_logger.level
    nncf.nncf_logger.setLevel(logging.CRITICAL + 1)
    try:
        # The bars of nncf are drawn on standard output.
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        nncf.nncf_logger.setLevel(level)
