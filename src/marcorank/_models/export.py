"""Turn a cross-encoder's safetensors into an ONNX file that the onnx and openvino backends can run.

Only this module needs both torch and transformers; they are imported when an export starts.
"""

from __future__ import annotations

import shutil
import warnings
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

from marcorank._files import staged_folder
from marcorank._inference.backends.telemetry import without_telemetry
from marcorank._inference.backends.torch import load_cross_encoder
from marcorank._models.loading import LocalFolder
from marcorank._models.modules import read_modules
from marcorank._models.vocabulary import has_vocabulary
from marcorank._progress import without_transformers_bars
from marcorank._text import first_few
from marcorank.errors import MissingExtraError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["export_onnx"]

# Opset 17 is the first with LayerNormalization as one node; the exporter pairs it with IR version 8.
# Every onnxruntime since 1.12 reads both.
_OPSET = 17
_ONNX_FILE = "onnx/model.onnx"
_COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Both sides compute in fp32: logits of standard deviation 4 differ by less than 1e-4. A baked-in shape or mask
# differs by far more.
_CHECK_TOLERANCE = 1e-3
_SEVERITY_FATAL = 4


def export_onnx(source: Path, target: Path) -> Path:
    """Write `target/onnx/model.onnx` and the tokenizer and config files that go with it.

    The graph computes in fp32, and contains the head of a model that is made of modules. `token_type_ids` is an input
    only where the model distinguishes two segments.

    Shape:
        input_ids, attention_mask, token_type_ids: (batch, sequence) int64, both axes dynamic.
        logits: (batch, 1) float32.

    An interrupted export changes nothing. Files of the same names in an existing `target`, which may be `source`, are
    replaced, others are kept.
    """
    if not (source / "config.json").is_file():
        raise ModelLoadError(
            f"No `config.json` in {str(source)!r}: expected a local folder with a cross-encoder's config, "
            "tokenizer and safetensors."
        )
    try:
        # torch imports onnx itself, at the end of an export.
        import onnx  # noqa: F401
        import torch
        import transformers

        import marcorank.interaction  # noqa: F401  # registers the architecture with transformers
    except ImportError as error:
        raise MissingExtraError(
            "Exporting a model needs torch, transformers and onnx: pip install 'marcorank[torch]'"
        ) from error
    with staged_folder(target, last=_ONNX_FILE) as staging, _quiet(transformers):
        modules = read_modules(LocalFolder(source, str(source)))
        if modules.torch_only is not None:
            raise ModelLoadError(f"The model in {str(source)!r} cannot be exported to ONNX: {modules.torch_only}.")
        head: list[Any] = []
        if modules.head is None:
            model = _load_model(transformers, source)
        else:
            model, head = _load_modules(source, modules.saved_with)
        tokenizer = _from_folder(transformers.AutoTokenizer, source)
        _copy_texts(source, tokenizer, staging, modules.files)
        try:
            with _without_graph_dumps(torch):
                _trace(torch, model, head, _input_names(model, tokenizer), staging / _ONNX_FILE)
        except Exception as error:
            # The exporter's own errors, and those of model code that cannot be traced, have no common class.
            raise ModelLoadError(f"The model in {str(source)!r} cannot be exported to ONNX: {error}") from error
    return target / _ONNX_FILE


def _load_model(transformers: Any, source: Path) -> Any:
    config = _from_folder(transformers.AutoConfig, source)
    if config.num_labels != 1:
        raise ModelLoadError(f"The model in {str(source)!r} has {config.num_labels} labels: a reranker has exactly 1.")
    processor = transformers.models.auto.processing_auto.PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if processor is not None:
        # It would be traced without the other inputs.
        raise ModelLoadError(
            f"The model in {str(source)!r} cannot be exported to ONNX: {config.model_type} reads more than texts; "
            f"its inputs come from a {processor}."
        )
    model, info = _from_folder(
        transformers.AutoModelForSequenceClassification,
        source,
        config=config,
        # The fused attention kernels trace to shapes fixed by the example input.
        attn_implementation="eager",
        output_loading_info=True,
        use_safetensors=True,
    )
    if info["missing_keys"]:
        # transformers fills these with random numbers; a bi-encoder's folder, which has no classifier, ends here.
        raise ModelLoadError(
            f"The weights in {str(source)!r} lack {first_few(sorted(info['missing_keys']))}: "
            "this is not a cross-encoder's checkpoint."
        )
    return model.float().eval()


def _load_modules(source: Path, saved_with: str | None) -> tuple[Any, list[Any]]:
    """Return the encoder of a cross-encoder that is made of modules, and the modules that follow it."""
    model = load_cross_encoder(
        source,
        device="cpu",
        precision="fp32",
        allow_pickle=False,
        saved_with=saved_with,
        attn_implementation="eager",
    )
    transformer, *head = model
    return transformer.model, head


def _from_folder(kind: Any, source: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(source, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:
        # transformers raises OSError, ValueError, KeyError and safetensors' own class for a damaged folder.
        raise ModelLoadError(
            f"Cannot load a cross-encoder with safetensors weights from {str(source)!r}: {error}"
        ) from error


def _copy_texts(source: Path, tokenizer: Any, folder: Path, module_files: Iterable[str]) -> None:
    for name in {*_COPIED, *module_files}:
        if (source / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    if (folder / "tokenizer.json").is_file():
        return
    if hasattr(tokenizer, "backend_tokenizer") and has_vocabulary(tokenizer.backend_tokenizer):
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    else:
        raise ModelLoadError(
            f"The tokenizer in {str(source)!r} has no fast version: expected a `tokenizer.json` "
            "or files that one can be made from."
        )


def _input_names(model: Any, tokenizer: Any) -> list[str]:
    names = ["input_ids", "attention_mask"]
    # RoBERTa's code accepts token_type_ids but its table has one row: there the input would be dead weight.
    if (
        "token_type_ids" in tokenizer.model_input_names
        and "token_type_ids" in signature(model.forward).parameters
        and getattr(model.config, "type_vocab_size", 0) > 1
    ):
        names.append("token_type_ids")
    return names


def _trace(torch: Any, model: Any, head: list[Any], names: list[str], path: Path) -> None:
    class Logits(torch.nn.Module):  # type: ignore[misc]  # torch is Any here, so that importing this module stays cheap
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.head = torch.nn.ModuleList(head)

        def forward(self, *inputs: Any) -> Any:
            given = dict(zip(names, inputs, strict=True))
            output = self.model(**given)
            if not self.head:
                return output.logits
            features = {"token_embeddings": output.last_hidden_state, "attention_mask": given["attention_mask"]}
            for module in self.head:
                features = _after(module, features)
            return features["scores"]

    # The exporter restores the mode it finds on the outer module, for the whole tree.
    module = Logits().eval()
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "sequence"} for name in names}
    axes["logits"] = {0: "batch"}
    with torch.inference_mode():
        torch.onnx.export(
            module,
            _example(torch, model, names, batch=2, sequence=16),
            str(path),
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=_OPSET,
            # The newer exporter needs onnxscript; this one needs torch alone.
            dynamo=False,
        )
        _check(module, _example(torch, model, names, batch=3, sequence=23), names, path)


def _after(module: Any, features: dict[str, Any]) -> dict[str, Any]:
    if getattr(module, "pooling_mode", None) == "cls":
        # Padding is on the right. A constant index lets the backends see that only the first token is read.
        return {**features, "sentence_embedding": features["token_embeddings"][:, 0]}
    return dict(module(features))


def _example(torch: Any, model: Any, names: list[str], *, batch: int, sequence: int) -> tuple[Any, ...]:
    """Token ids, mask and segments with padding in the last row, so that the mask is part of the trace.

    Shape:
        each: (batch, sequence) int64.
    """
    count = torch.arange(batch * sequence).reshape(batch, sequence)
    # The first ids are special tokens in most vocabularies, and RoBERTa reads positions from the padding id.
    inputs = {
        # Without a vocabulary, characters are the ids.
        "input_ids": 5 + count % (getattr(model.config, "vocab_size", 128) - 5),
        "attention_mask": torch.ones_like(count),
        "token_type_ids": (count % sequence >= sequence // 2).long(),
    }
    inputs["attention_mask"][-1, sequence // 2 :] = 0
    return tuple(inputs[name] for name in names)


def _check(module: Any, example: tuple[Any, ...], names: list[str], path: Path) -> None:
    """Compare the file with the model on another shape: tracing follows one example and can miss a branch."""
    with without_telemetry():
        import onnxruntime

    options = onnxruntime.SessionOptions()
    # Its log goes to stderr; the errors are raised anyway.
    options.log_severity_level = _SEVERITY_FATAL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
    found, expected = session.run(["logits"], feed)[0], module(*example).numpy()
    difference = float(abs(found - expected).max())
    if not difference < _CHECK_TOLERANCE:
        raise ValueError(f"its logits would differ by {difference:.2g} from the original's")


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep progress bars, load reports and warnings off the caller's terminal, then restore the settings."""
    log = transformers.utils.logging
    level = log.get_verbosity()
    log.set_verbosity_error()
    try:
        with without_transformers_bars, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)


@contextmanager
def _without_graph_dumps(torch: Any) -> Iterator[None]:
    """Keep torch from printing the whole graph when an export fails.

    The exporter means to dump it only if its log is on, but tests the function and not its result.
    """
    core, name = torch._C, "_jit_set_onnx_log_enabled"  # noqa: SLF001
    switch = getattr(core, name)
    setattr(core, name, lambda _enabled: None)
    try:
        yield
    finally:
        setattr(core, name, switch)
