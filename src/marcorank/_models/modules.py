"""Reads what sentence-transformers saves beside the weights: a prompt, and the modules after the encoder.

The onnx and openvino backends follow these files without sentence-transformers. What they cannot follow has a reason in
`Modules.torch_only`, and is left to torch.
"""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from marcorank._files import stays_in_folder
from marcorank._inference.head import ACTIVATIONS, POOLING_MODES, Dense, Head, LayerNorm, UnitLength
from marcorank._models.catalogue import PICKLED_WEIGHTS
from marcorank._models.hub import TORCH_FILES
from marcorank._text import quoted, quoted_path
from marcorank.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from marcorank._inference.head import PoolingMode

_MODULES, _CONFIG, _TRANSFORMER = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
_TOKENIZER, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
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
# Tokenizers without a limit have a huge number, or infinity.
NO_LIMIT = 1_000_000
# Settings of the transformer module that change how a pair is tokenised.
_TOKENISING = ("do_lower_case", "processing_kwargs", "tokenizer_name_or_path", "query_length", "document_length")


@dataclass(frozen=True, slots=True)
class Modules:
    """What the files of a model say beside its config, tokenizer and weights.

    Attributes:
        prompt: Text before each query; often empty.
        takes_instruction: Whether the prompt may be replaced: the model was saved with prompts, or has a template.
        head: What follows the encoder; None if the encoder's own model returns the logit.
        torch_only: Why only torch can run the model; None if onnx and openvino can, too.
        max_length: Maximum number of tokens; None if these files do not limit it.
        saved_with: Version of sentence-transformers that saved the modules; None if there are none that an old version
            would miss.
        files: The files that were read, by their names in the model folder.
    """

    prompt: str = ""
    takes_instruction: bool = False
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
        """Return a small file that most models lack; None if there is none."""
        ...


class _NotUnderstoodError(Exception):
    """A module that is computed by sentence-transformers alone."""


def read_modules(files: ModelFiles) -> Modules:
    """Read the prompt and the modules of a model; a model without these files has neither.

    Raises:
        ModelLoadError: A file is missing, or is not what sentence-transformers writes.
    """
    read = _Reader(files)
    has_template = "chat_template" in read.optional(_TOKENIZER) or read.has(_TEMPLATE)
    config = read.optional(_CONFIG)
    # As sentence-transformers decides whether to follow the list of modules.
    if config.get("model_type") != "CrossEncoder" or not read.has(_MODULES):
        reason = "it has a chat template" if has_template else None
        return Modules(takes_instruction=has_template, torch_only=reason, files=read.files)
    first, *others = _listed_modules(read)
    transformer = read.optional(_TRANSFORMER)
    modalities = _dict_of(transformer, "modality_config", _TRANSFORMER)
    prompts = _dict_of(config, "prompts", _CONFIG)
    head = None
    reason = None
    try:
        _check_transformer(first, transformer, modalities, output="token_embeddings" if others else _SCORES)
        head = _head(read, others) if others else None
    except _NotUnderstoodError as error:
        reason = str(error)
    return Modules(
        prompt=_default_prompt(config, prompts),
        takes_instruction="message" in modalities or any(prompts.values()),
        head=head,
        torch_only=reason,
        max_length=token_limit(transformer, "max_seq_length", _TRANSFORMER),
        saved_with=_version(config) if others else None,
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
    return _object(file)


def token_limit(config: Mapping[str, Any], name: str, file: str) -> int | None:
    """Return a maximum number of tokens from a file of a model; None if it is not there.

    Raises:
        ModelLoadError: It is not a number of tokens.
    """
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
        raise ModelLoadError(f"`{name}` in {file} is {quoted(value)}; expected a number of tokens.")
    return None if value >= NO_LIMIT else int(value)


def torch_files(folder: Path) -> dict[str, Path]:
    """Return the files that sentence-transformers reads, by their path in the folder."""
    folders = [folder, *(folder / path for path in _module_paths(folder / _MODULES))]
    read = {path for parent in folders for path in _matching(parent)}
    return {path.relative_to(folder).as_posix(): path for path in read}


def _matching(folder: Path) -> Iterable[Path]:
    found = [path for pattern in TORCH_FILES for path in folder.glob(pattern)]
    # Pickled weights are not read where there are others, and may have been downloaded by another program.
    return found if any(path.suffix == ".safetensors" for path in found) else [*found, *folder.glob(PICKLED_WEIGHTS)]


def _module_paths(modules: Path) -> list[str]:
    # A file that cannot be read is for the backend to report.
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        paths = [str(module["path"]) for module in json.loads(modules.read_bytes()) if module["path"]]
        return [path for path in paths if stays_in_folder(path)]
    return []


def _object(file: Path) -> dict[str, Any]:
    content = _parsed(file)
    if not isinstance(content, dict):
        raise ModelLoadError(f"{quoted_path(file)} contains a {type(content).__name__}; expected a JSON object.")
    return content


def _parsed(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
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
        """Whether the model has an optional file."""
        if (path := self.model.fetch_optional(name)) is not None:
            self.files[name] = path
        return path is not None

    def optional(self, name: str) -> dict[str, Any]:
        """Return the content of an optional JSON file, empty if there is none."""
        return _object(self.files[name]) if self.has(name) else {}

    def required(self, name: str) -> Path:
        """Return the path of a file that another file names."""
        if (path := self.model.fetch(name)) is None:
            raise ModelLoadError(f"Model `{self.model.name}` has no {name} in {self.model.location}.")
        self.files[name] = path
        return path

    def config(self, module: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a module."""
        return _object(self.required(f"{module['path']}/config.json"))

    def weights(self, module: Mapping[str, Any], **shapes: tuple[int, ...]) -> list[NDArray[np.float32]]:
        """Return the weights of a module, each of the shape that it has to have; `__` in a name is a dot."""
        file = self.required(f"{module['path']}/model.safetensors")
        tensors = _tensors(file)
        found = []
        for key, shape in shapes.items():
            name = key.replace("__", ".")
            if name not in tensors or tensors[name].shape != shape:
                what = f"of shape {list(tensors[name].shape)}" if name in tensors else "missing"
                raise ModelLoadError(
                    f"`{name}` in {quoted_path(file)} is {what}; expected shape {list(shape)}. Download the model "
                    "again."
                )
            found.append(tensors[name])
        return found


def _listed_modules(read: _Reader) -> list[dict[str, Any]]:
    file = read.files[_MODULES]
    modules = _parsed(file)
    if not isinstance(modules, list) or not modules or not all(isinstance(one, dict) for one in modules):
        raise ModelLoadError(f"{quoted_path(file)} is not a list of modules.")
    for module in modules:
        if not isinstance(module.get("type"), str) or not isinstance(module.get("path"), str):
            raise ModelLoadError(f"{quoted_path(file)} has a module without `type` and `path`.")
        if not stays_in_folder(module["path"]):
            raise ModelLoadError(
                f"{quoted_path(file)} names {quoted(module['path'])} as the folder of a module; expected a folder "
                "inside its own."
            )
    return modules


def _dict_of(config: Mapping[str, Any], name: str, file: str) -> dict[str, Any]:
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        raise ModelLoadError(f"`{name}` in {file} is {quoted(value)}; expected an object.")
    return value or {}


def _default_prompt(config: Mapping[str, Any], prompts: Mapping[str, Any]) -> str:
    name = config.get("default_prompt_name")
    if name is None:
        return ""
    if not isinstance(name, str) or name not in prompts:
        raise ModelLoadError(
            f"`default_prompt_name` in {_CONFIG} is {quoted(name)}; expected one of `prompts`: {quoted(list(prompts))}."
        )
    prompt = prompts[name]
    if not isinstance(prompt, (str, type(None))):
        raise ModelLoadError(f"The prompt {quoted(name)} in {_CONFIG} is {quoted(prompt)}; expected a string.")
    return prompt or ""


def _version(config: Mapping[str, Any]) -> str:
    versions = config.get("__version__")
    found = versions.get("sentence_transformers") if isinstance(versions, dict) else versions
    return found if isinstance(found, str) else "5.4"


def _check_transformer(
    module: Mapping[str, Any], config: Mapping[str, Any], modalities: Mapping[str, Any], *, output: str
) -> None:
    if _class_name(module) != "Transformer" or module["path"]:
        raise _NotUnderstoodError(f"its first module is {_described(module)}, not a Transformer in the model folder")
    if "message" in modalities:
        raise _NotUnderstoodError("it has a chat template")
    changed = next((name for name in _TOKENISING if config.get(name)), None)
    if changed is not None:
        raise _NotUnderstoodError(f"its {_TRANSFORMER} sets `{changed}`")
    expected = {"method": "forward", "method_output_name": "logits" if output == _SCORES else "last_hidden_state"}
    text = modalities.get("text", expected)
    if config.get("module_output_name", output) != output or text != expected:
        raise _NotUnderstoodError(f"its {_TRANSFORMER} takes {quoted(text)} of the transformer")


def _head(read: _Reader, modules: list[dict[str, Any]]) -> Head:
    pooling, *layers = modules
    if _class_name(pooling) != "Pooling":
        raise _NotUnderstoodError(f"{_described(pooling)} follows its encoder")
    modes, encoder_width = _pooling(read, pooling)
    found: list[Dense | LayerNorm | UnitLength] = []
    name, width = _POOLED, encoder_width * len(modes)
    for module in layers:
        kind = _class_name(module)
        if kind == "Dropout":
            continue
        config = read.optional(f"{module['path']}/config.json") if kind == "Normalize" else read.config(module)
        if config.get("module_input_name", _POOLED) != name:
            raise _NotUnderstoodError(f"{_described(module)} does not read the output of the module before it")
        name = config.get("module_output_name") or name
        if kind == "Dense":
            dense = _dense(read, module, config, width)
            found.append(dense)
            width = len(dense.weight)
        elif kind == "LayerNorm":
            found.append(LayerNorm(*read.weights(module, norm__weight=(width,), norm__bias=(width,))))
        elif kind == "Normalize":
            found.append(UnitLength())
        else:
            raise _NotUnderstoodError(f"{_described(module)} is not a layer that onnx and openvino compute")
    if name != _SCORES or width != 1:
        raise _NotUnderstoodError(f"its modules end in {quoted(name)} of width {width}; expected 'scores' of width 1")
    return Head(encoder_width, modes, tuple(found))


def _pooling(read: _Reader, module: Mapping[str, Any]) -> tuple[tuple[PoolingMode, ...], int]:
    """Return the modes of a pooling, and the width of the hidden states that it reads."""
    config = read.config(module)
    width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    if not isinstance(width, int):
        raise ModelLoadError(
            f"`embedding_dimension` in {module['path']}/config.json is {quoted(width)}; expected the width of the "
            "encoder."
        )
    given = config.get("pooling_mode") or [mode for key, mode in _LEGACY_POOLING.items() if config.get(key)] or "mean"
    modes = given if isinstance(given, list) else [given]
    if not config.get("include_prompt", True):
        raise _NotUnderstoodError("its pooling leaves the prompt out")
    known = [mode for name in modes for mode in POOLING_MODES if mode == name]
    if len(known) != len(modes):
        raise _NotUnderstoodError(f"its pooling is {quoted(given)}")
    return tuple(known), width


def _dense(read: _Reader, module: Mapping[str, Any], config: Mapping[str, Any], width: int) -> Dense:
    path, _, activation = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")
    if not path.startswith("torch.") or activation not in ACTIVATIONS:
        raise _NotUnderstoodError(f"{_described(module)} has the activation {quoted(f'{path}.{activation}')}")
    inputs, outputs = config.get("in_features"), config.get("out_features")
    if inputs != width or not isinstance(outputs, int):
        raise ModelLoadError(
            f"{module['path']}/config.json has {quoted(inputs)} `in_features` and {quoted(outputs)} `out_features`; "
            f"the module before it has {width} outputs."
        )
    (weight,) = read.weights(module, linear__weight=(outputs, width))
    (bias,) = read.weights(module, linear__bias=(outputs,)) if config.get("bias", True) else (None,)
    adds_input = bool(config.get("use_residual"))
    projects = adds_input and outputs != width
    (residual,) = read.weights(module, residual__weight=(outputs, width)) if projects else (None,)
    return Dense(weight, bias, activation, adds_input, residual)


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
