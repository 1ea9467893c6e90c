"""Reads what sentence-transformers saves beside the weights: a prompt, and the modules after the encoder.

The onnx and openvino backends follow these files without sentence-transformers. What they cannot follow has a reason in
`Modules.torch_only`, and is left to torch.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from marcorank._inference.head import ACTIVATIONS, POOLING_MODES, Dense, Head, LayerNorm, UnitLength
from marcorank._text import quoted, quoted_path
from marcorank.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from marcorank._inference.head import PoolingMode

_MODULES, _CONFIG, _TRANSFORMER = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
_TOKENIZER, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
# Read for every model; a model has them or not.
MODULE_FILES = (_MODULES, _CONFIG, _TEMPLATE)
_POOLED, _SCORES = "sentence_embedding", "scores"
# Names in the files of sentence-transformers before 5.4, in the order in which the vectors are joined.
_LEGACY_POOLING: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Settings of the transformer module that change how a pair is tokenised.
_TOKENISING = ("do_lower_case", "processing_kwargs", "tokenizer_name_or_path", "query_length", "document_length")


@dataclass(frozen=True, slots=True)
class Modules:
    """What the files of a model say beside its config, tokenizer and weights.

    Attributes:
        prompt: Text before each query; often empty.
        takes_instruction: Whether the prompt may be replaced: the model was saved with prompts, or has a template.
        pools_prompt: Whether the tokens of the prompt count for the pooling; they do in most models.
        head: What follows the encoder; None if the encoder's own model returns the logit.
        torch_only: Why only torch can run the model; None if onnx and openvino can, too.
        max_length: Maximum number of tokens; None if these files do not limit it.
        saved_with: Version of sentence-transformers that saved the modules; None if there are none that an old version
            would miss.
        files: The files that were read, by their names in the model folder.
    """

    prompt: str = ""
    takes_instruction: bool = False
    pools_prompt: bool = True
    head: Head | None = None
    torch_only: str | None = None
    max_length: int | None = None
    saved_with: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)


class ModelFiles(Protocol):
    """The files of a model, wherever they are stored."""

    @property
    def name(self) -> str:
        """Name of the model, for messages."""
        ...

    @property
    def location(self) -> str:
        """Where files are looked up, for messages."""
        ...

    def fetch(self, *candidates: str) -> Path | None:
        """Return the first of the candidate files that exists; None if there is none."""
        ...

    def fetch_optional(self, file: str) -> Path | None:
        """Return a file that most models lack; None if it does not exist."""
        ...


class _NotUnderstoodError(Exception):
    """A module that is computed by sentence-transformers alone."""


def read_modules(files: ModelFiles) -> Modules:
    """Read the prompt and the modules of a model; a model without these files has neither.

    Raises:
        ModelLoadError: A file is missing, or is not what sentence-transformers writes.
    """
    read = _Reader(files)
    template = "chat_template" in read.json(_TOKENIZER) or read.has(_TEMPLATE)
    config = read.json(_CONFIG)
    # As sentence-transformers decides whether to follow the list of modules.
    if config.get("model_type") != "CrossEncoder" or not read.has(_MODULES):
        reason = "it has a chat template" if template else None
        return Modules(takes_instruction=template, torch_only=reason, files=read.files)
    first, *others = _listed_modules(read)
    transformer = read.json(_TRANSFORMER)
    prompts = config.get("prompts") or {}
    name = config.get("default_prompt_name")
    versions = config.get("__version__") or {}
    template = "message" in transformer.get("modality_config", {})
    head = None
    reason = None
    try:
        _check_transformer(first, transformer)
        head = _head(read, others) if others else None
    except _NotUnderstoodError as error:
        reason = str(error)
    limit = transformer.get("max_seq_length")
    return Modules(
        prompt=(prompts.get(name) or "") if name is not None else "",
        takes_instruction=template or any(prompts.values()),
        head=head,
        torch_only=reason,
        max_length=limit if isinstance(limit, int) else None,
        saved_with=str(versions.get("sentence_transformers", "5.4")) if others else None,
        files=read.files,
    )


def read_json(files: ModelFiles, name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of a JSON file, or the default if the model has no such file.

    Raises:
        ModelLoadError: The file is missing and there is no default, or it is not a JSON object.
    """
    file = files.fetch(name)
    if file is None:
        if default is None:
            raise ModelLoadError(
                f"Model `{files.name}` has no {name} in {files.location}; marcorank cannot load it as a model."
            )
        return default
    content = _parsed(file)
    if not isinstance(content, dict):
        raise ModelLoadError(f"{quoted_path(file)} contains a {type(content).__name__}; expected a JSON object.")
    return content


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{quoted_path(file)} is not valid JSON: {error}") from error


class _Reader:
    """Reads files of a model.

    Attributes:
        model: Where the files are.
        files: Those that were found, by name.
    """

    def __init__(self, files: ModelFiles) -> None:
        self.model = files
        self.files: dict[str, Path] = {}

    def has(self, name: str) -> bool:
        """Whether the model has a file."""
        if (path := self.model.fetch_optional(name)) is not None:
            self.files[name] = path
        return path is not None

    def json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file, empty if there is none."""
        return read_json(self.model, name, {}) if self.has(name) else {}

    def list(self, name: str) -> list[Any]:
        """Return the content of a file that holds a list of objects, one at least."""
        content = _parsed(self.files[name])
        if not isinstance(content, list) or not content or not all(isinstance(one, dict) for one in content):
            raise ModelLoadError(f"{quoted_path(self.files[name])} is not a list of modules.")
        return content

    def weights(self, name: str) -> dict[str, NDArray[np.float32]]:
        """Return the tensors of a safetensors file."""
        if not self.has(name):
            raise ModelLoadError(f"Model `{self.model.name}` has no {name} in {self.model.location}.")
        return _tensors(self.files[name])


def _listed_modules(read: _Reader) -> list[dict[str, Any]]:
    modules = read.list(_MODULES)
    for module in modules:
        if not isinstance(module.get("type"), str) or not isinstance(module.get("path"), str):
            raise ModelLoadError(f"{_MODULES} of model `{read.model.name}` has a module without `type` and `path`.")
    return modules


def _check_transformer(module: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if _class_name(module) != "Transformer" or module["path"]:
        raise _NotUnderstoodError(f"its first module is {_described(module)}, not a Transformer in the model folder")
    if "message" in config.get("modality_config", {}):
        raise _NotUnderstoodError("it has a chat template")
    changed = next((name for name in _TOKENISING if config.get(name)), None)
    if changed is not None:
        raise _NotUnderstoodError(f"its {_TRANSFORMER} sets `{changed}`")


def _head(read: _Reader, modules: list[dict[str, Any]]) -> Head:
    pooling, *layers = modules
    if _class_name(pooling) != "Pooling":
        raise _NotUnderstoodError(f"{_described(pooling)} follows its encoder")
    modes = _pooling_modes(read, pooling)
    found: list[Dense | LayerNorm | UnitLength] = []
    name = _POOLED
    for module in layers:
        config = read.json(f"{module['path']}/config.json")
        kind = _class_name(module)
        if kind == "Dropout":
            continue
        if config.get("module_input_name", _POOLED) != name:
            raise _NotUnderstoodError(f"{_described(module)} does not read the output of the module before it")
        name = config.get("module_output_name") or name
        if kind == "Dense":
            found.append(_dense(read, module, config))
        elif kind == "LayerNorm":
            weights = read.weights(f"{module['path']}/model.safetensors")
            found.append(LayerNorm(weights["norm.weight"], weights["norm.bias"]))
        elif kind == "Normalize":
            found.append(UnitLength())
        else:
            raise _NotUnderstoodError(f"{_described(module)} is not a layer that onnx and openvino compute")
    outputs = len(found[-1].weight) if found and isinstance(found[-1], Dense) else 0
    if name != _SCORES or outputs != 1:
        raise _NotUnderstoodError(f"its modules end in {outputs or 'no'} scores; expected a Dense with 1")
    return Head(modes, tuple(found))


def _pooling_modes(read: _Reader, module: Mapping[str, Any]) -> tuple[PoolingMode, ...]:
    config = read.json(f"{module['path']}/config.json")
    given = config.get("pooling_mode") or [mode for key, mode in _LEGACY_POOLING.items() if config.get(key)] or "mean"
    modes = [given] if isinstance(given, str) else list(given)
    if not config.get("include_prompt", True):
        raise _NotUnderstoodError("its pooling leaves the prompt out")
    known = [mode for name in modes for mode in POOLING_MODES if mode == name]
    if len(known) != len(modes):
        raise _NotUnderstoodError(f"its pooling is {quoted(given)}")
    return tuple(known)


def _dense(read: _Reader, module: Mapping[str, Any], config: Mapping[str, Any]) -> Dense:
    path, _, activation = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")
    if not path.startswith("torch.") or activation not in ACTIVATIONS:
        raise _NotUnderstoodError(f"{_described(module)} has the activation {quoted(f'{path}.{activation}')}")
    weights = read.weights(f"{module['path']}/model.safetensors")
    return Dense(
        weights["linear.weight"],
        weights.get("linear.bias"),
        activation,
        adds_input=bool(config.get("use_residual")),
        residual=weights.get("residual.weight"),
    )


def _class_name(module: Mapping[str, Any]) -> str:
    """Return the name of a class of sentence-transformers; empty for one of somebody else."""
    package, _, name = module["type"].rpartition(".")
    return name if package.startswith("sentence_transformers.") else ""


def _described(module: Mapping[str, Any]) -> str:
    return f"its module {quoted(module['type'].rpartition('.')[2])}"


def _tensors(file: Path) -> dict[str, NDArray[np.float32]]:
    """Read a small safetensors file, whose numbers may be of 16 bits.

    Source: https://github.com/huggingface/safetensors#format. Its own library returns no bf16 in numpy.
    """
    content = file.read_bytes()
    try:
        (size,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + size])
        header.pop("__metadata__", None)
        return {name: _tensor(content[8 + size :], one) for name, one in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{quoted_path(file)} cannot be read as safetensors: {error}") from error


def _tensor(data: bytes, described: Mapping[str, Any]) -> NDArray[np.float32]:
    start, end = described["data_offsets"]
    if described["dtype"] == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data[start:end], dtype="<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(described["shape"])
    dtype = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[described["dtype"]]
    return np.frombuffer(data[start:end], dtype=dtype).astype(np.float32).reshape(described["shape"])
