"""Turn a cross-encoder's fp32 graph into an int8 one whose scales are fixed by example pairs.

Only this module needs nncf; it is imported when a model is quantised.
"""

from __future__ import annotations

import io
import logging
import shutil
import uuid
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank._inference.backends.telemetry import without_telemetry
from marcorank._models.catalogue import QUANTIZED_IR_FILE
from marcorank.errors import InvalidInputError, MissingExtraError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from marcorank._inference.pairs import TokenBatch

__all__ = ["import_packages", "quantize"]

_FILE = Path(QUANTIZED_IR_FILE)
# What a feed-forward layer has between its two products, as OpenVINO names it; GELU also in parts.
_ACTIVATION_FUNCTIONS = {
    "Gelu", "Erf", "Tanh", "Relu", "Elu", "PRelu", "Sigmoid", "Swish", "HSwish", "Mish", "SoftPlus",
}  # fmt: skip
# What may stand between that function and the second product.
_BETWEEN = {"Add", "Subtract", "Multiply", "Divide", "Power", "Convert", "Split", "VariadicSplit", "Slice"}
# Measured: half of what makes activations uneven goes into the weights. More or less costs accuracy.
_SMOOTHING = 0.5


def import_packages() -> tuple[Any, Any]:
    """Import nncf and openvino so that they report their use to nobody, and return them.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    # nncf makes its own class that of all later loggers.
    of_loggers = logging.getLoggerClass()
    try:
        with without_telemetry():
            import nncf
            import openvino
    except ImportError as error:
        raise MissingExtraError(
            "Quantising a model needs openvino and nncf: pip install 'marcorank[quantize]'"
        ) from error
    finally:
        logging.setLoggerClass(of_loggers)
    return nncf, openvino


def quantize(graph: Path, pairs: Sequence[TokenBatch], target: Path, *, texts: Iterable[Path] = ()) -> Path:
    """Write `target/openvino/marcorank_int8.xml`, its .bin and the tokenizer and config files that go with it.

    Weights have one scale an output, activations one for all tokens, which the pairs decide. Products of attention,
    the second product of each feed-forward layer and the head are left as they are: with those fixed too, the logits
    of a MiniLM-L6 were off by nine times as much. Loading in int8 rounds what is left as it does in any other model.

    Everything is written to a folder beside `target` first and moved when it is complete, so an interrupted call
    changes nothing. Files of the same names in an existing `target` are replaced, others are kept.

    Args:
        graph: ONNX file or OpenVINO IR that computes in fp32.
        pairs: Of the kind that will be scored, some hundred; each as the encoder of the model makes them.
        target: Folder to write. It may be the model's own.
        texts: `config.json` and the tokenizer files, to be copied.

    Returns:
        The path of the .xml file.

    Raises:
        MissingExtraError: nncf or openvino is not installed.
        InvalidInputError: The folder cannot be written.
        ModelLoadError: The graph cannot be read or quantised.
    """
    nncf, openvino = import_packages()
    if target.exists() and not target.is_dir():
        raise InvalidInputError(f"{str(target)!r} is a file; expected a folder to write.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        (staging / _FILE).parent.mkdir(parents=True)
    except OSError as error:
        raise InvalidInputError(f"{str(target)!r} cannot be written: {error.strerror or error}.") from error
    try:
        with _quiet(nncf):
            model = _quantized(nncf, graph, pairs)
            openvino.save_model(model, staging / _FILE, compress_to_fp16=False)
        for text in texts:
            # Those of the model's own folder stay untouched.
            if text.parent.resolve() != target.resolve():
                shutil.copyfile(text, staging / text.name)
        _move(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target / _FILE


def _quantized(nncf: Any, graph: Path, pairs: Sequence[TokenBatch]) -> Any:
    from marcorank._inference.backends.openvino import shared_core
    from marcorank._inference.backends.openvino_graph import keep_first_token

    try:
        model = shared_core().read_model(graph)
        # Before the scales are chosen: in the last layer they then suit the one token that counts.
        keep_first_token(model)
        dtypes = {node.any_name: node.element_type.to_dtype() for node in model.inputs}
        feeds = [{name: getattr(pair, name).astype(dtype) for name, dtype in dtypes.items()} for pair in pairs]
        return nncf.quantize(
            model,
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=_left_as_they_are(model), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTHING)
            ),
        )
    except Exception as error:
        # OpenVINO raises RuntimeError for everything, and nncf classes of its own and whatever its parts do.
        raise ModelLoadError(f"{str(graph)!r} cannot be quantised: {error}") from error


def _left_as_they_are(model: Any) -> list[str]:
    """Return the names of the products that cost more accuracy in 8 bits than they gain in time."""
    names = []
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "ScaledDotProductAttention" or (
            kind == "MatMul"
            and (
                not _is_weight(node.input_value(1))
                # The head runs once a pair.
                or node.input_value(0).get_partial_shape().rank.get_length() != 3
                or _comes_from_activation_function(node.input_value(0))
            )
        ):
            names.append(node.get_friendly_name())
    return names


def _is_weight(output: Any) -> bool:
    node = output.get_node()
    # Weights that were saved in 16 bits.
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _comes_from_activation_function(output: Any) -> bool:
    waiting, seen = [output.get_node()], set()
    while waiting:
        node = waiting.pop()
        kind = node.get_type_name()
        if kind in _ACTIVATION_FUNCTIONS:
            return True
        if kind in _BETWEEN and node.get_name() not in seen:
            seen.add(node.get_name())
            waiting.extend(target.get_source_output().get_node() for target in node.inputs())
    return False


@contextmanager
def _quiet(nncf: Any) -> Iterator[None]:
    """Keep log, progress bars and warnings of nncf off the caller's terminal, then restore the settings."""
    import rich

    level = nncf.nncf_logger.level
    nncf.nncf_logger.setLevel(logging.CRITICAL + 1)
    # The bars go to the console of the process. This is how rich itself exchanges what it is made of.
    console = rich.get_console()
    made_of = vars(console)
    rich.reconfigure(file=io.StringIO())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        console.__dict__ = made_of
        nncf.nncf_logger.setLevel(level)


def _move(staging: Path, target: Path) -> None:
    (target / _FILE).parent.mkdir(parents=True, exist_ok=True)
    # An older graph must not be found beside the new weights, and where the new graph lies, all it needs lies too.
    (target / _FILE).unlink(missing_ok=True)
    files = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
    files.sort(key=lambda file: file == _FILE)
    for file in files:
        (staging / file).replace(target / file)
