"""The model catalogue: names, pinned revisions, licences, published figures, and the files to load."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from marcorank._inference.cpu import cpu_features
from marcorank._text import first_few, quoted_path
from marcorank.errors import ModelLoadError, UnknownModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BUNDLED = "bundled"
ORGANISATION = "cross-encoder"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model in the catalogue.

    Attributes:
        name: Name on the hub, in the new spelling.
        aliases: Older names of the same repository, which redirect online.
        revision: Commit that is loaded unless you pass another.
        licence: SPDX identifier of the licence.
        layers: Transformer layers.
        hidden_size: Width of the hidden states.
        parameters: Number of trainable parameters.
        ndcg_dl19: nDCG@10 on TREC DL 2019, from 0 to 100, as published.
        mrr_dev: MRR@10 on the MS MARCO dev set, from 0 to 100, as published.
        passages_per_s_v100: Passages per second on a V100, as published.

    Source: the model cards of the `cross-encoder` organisation on the Hugging Face hub.
    """

    name: str
    aliases: tuple[str, ...]
    revision: str
    licence: str
    layers: int
    hidden_size: int
    parameters: int
    ndcg_dl19: float
    mrr_dev: float
    passages_per_s_v100: int

    @property
    def spellings(self) -> tuple[str, ...]:
        """All names under which the model may be cached."""
        return (self.name, *self.aliases)


def _entry(
    size: str, layers: int, hidden_size: int, parameters: int, published: tuple[float, float, int], *, revision: str
) -> ModelInfo:
    prefix = f"{ORGANISATION}/ms-marco-{size}-L"
    aliases = (f"{prefix}-{layers}-v2",)
    return ModelInfo(
        f"{prefix}{layers}-v2", aliases, revision, "Apache-2.0", layers, hidden_size, parameters, *published
    )


# Source of the revisions: public lock files and download scripts that pin them for `onnx/model.onnx`.
CATALOGUE: tuple[ModelInfo, ...] = (
    _entry("TinyBERT", 2, 128, 4_386_049, (69.84, 32.56, 9000), revision="81d1926f67cb8eee2c2be17ca9f793c7c3bd20cc"),
    _entry("MiniLM", 2, 384, 15_615_745, (71.01, 34.85, 4100), revision="1b5cd67b15209f24824c50370e0397743aa9b787"),
    _entry("MiniLM", 4, 384, 19_164_673, (73.04, 37.70, 2500), revision="777b2f369bc1c2f850df8bd367ed1654bda4497b"),
    _entry("MiniLM", 6, 384, 22_713_601, (74.30, 39.01, 1800), revision="c5ee24cb16019beea0893ab7796b1df96625c6b8"),
    _entry("MiniLM", 12, 384, 33_360_385, (74.31, 39.02, 960), revision="7b0235231ca2674cb8ca8f022859a6eba2b1c968"),
)

# Relative to the model folder; the first one that exists is used.
FP32_ONNX_FILES: tuple[str, ...] = ("onnx/model.onnx", "model.onnx")
# OpenVINO's own format; the weights are in a .bin file next to the .xml.
FP32_IR_FILES: tuple[str, ...] = ("openvino/openvino_model.xml", "openvino_model.xml")
INT8_IR_FILES: tuple[str, ...] = ("openvino/openvino_model_qint8_quantized.xml",)
# Written by `marcorank models quantize`.
QUANTIZED_IR_FILE = "openvino/marcorank_int8.xml"
# Named by transformers; other pickles, such as training_args.bin, do not hold weights.
PICKLED_WEIGHTS = "pytorch_model*.bin"
# Written by peft.
ADAPTER_FILE = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model*"
# By instruction set, best first; a file built for a different one may saturate or be slow.
_INT8_ONNX_FILES: tuple[tuple[str, str], ...] = (
    ("avx512_vnni", "onnx/model_qint8_avx512_vnni.onnx"),
    ("avx512f", "onnx/model_qint8_avx512.onnx"),
    ("avx2", "onnx/model_quint8_avx2.onnx"),
    ("arm64", "onnx/model_qint8_arm64.onnx"),
)
_PORTABLE_INT8_ONNX_FILES: tuple[str, ...] = ("onnx/model_int8.onnx", "onnx/model_quantized.onnx")


def int8_onnx_files(features: frozenset[str]) -> tuple[str, ...]:
    """Return the names of the int8 ONNX files that suit a processor with these `cpu_features`, best first."""
    optimised = tuple(file for feature, file in _INT8_ONNX_FILES if feature in features)
    return optimised + _PORTABLE_INT8_ONNX_FILES


def has_weights(names: Iterable[str], *, allow_pickle: bool) -> bool:
    """Whether these files include weights that torch is allowed to load."""
    return any(
        fnmatchcase(name, "*.safetensors") or (allow_pickle and fnmatchcase(name, PICKLED_WEIGHTS))
        for name in names
        if "/" not in name and not fnmatchcase(name, _ADAPTER_WEIGHTS)
    )


def check_weights(names: Sequence[str], *, where: str, allow_pickle: bool) -> None:
    """Raise `ModelLoadError` if a folder with these files has no weights that torch may load."""
    check_not_adapter(names, where)
    if has_weights(names, allow_pickle=allow_pickle):
        return
    pickles = sorted(name for name in names if fnmatchcase(name, PICKLED_WEIGHTS))
    if pickles:
        raise ModelLoadError(
            f"{where} has only pickled weights ({', '.join(pickles)}), which can run code when they are loaded. "
            "Convert them to safetensors, or pass `allow_pickle=True` if you trust the source."
        )
    exported = next((name for name in FP32_ONNX_FILES if name in names), None)
    if exported is not None:
        raise ModelLoadError(f"{where} has only an ONNX file ({exported}). Load it with `backend='onnx'`.")
    quantized = next((name for name in int8_onnx_files(cpu_features()) if name in names), None)
    if quantized is not None:
        raise ModelLoadError(
            f"{where} has only an int8 ONNX file ({quantized}), which is never chosen automatically. Load it with "
            "`backend='onnx', precision='int8'`."
        )
    for files, settings in _IR_SETTINGS:
        found = next((file for file in files if {file, f"{file.removesuffix('.xml')}.bin"} <= {*names}), None)
        if found is not None:
            raise ModelLoadError(f"{where} has only a file for openvino ({found}). Load it with {settings}.")
    raise ModelLoadError(
        f"{where} has no weights: expected *.safetensors or {FP32_ONNX_FILES[0]}, found "
        f"{first_few(sorted(names), 10) or 'nothing'}."
    )


_IR_SETTINGS = (
    (FP32_IR_FILES, "`backend='openvino'`"),
    ((*INT8_IR_FILES, QUANTIZED_IR_FILE), "`backend='openvino', precision='int8'`"),
)


def check_not_adapter(names: Sequence[str], where: str) -> None:
    """Raise `ModelLoadError` if a folder with these files has an adapter in place of a model."""
    is_model = "config.json" in names and has_weights(names, allow_pickle=True)
    if ADAPTER_FILE in names and not is_model:
        raise adapter_without_base(where)


def adapter_without_base(where: str) -> ModelLoadError:
    """Return the error for a LoRA adapter in place of a model."""
    return ModelLoadError(
        f"{where} is a LoRA adapter ({ADAPTER_FILE}), not a model. Merge it into its base model first: "
        "`merge_and_unload()` of peft, then `save_pretrained()` for the model and its tokenizer."
    )


def find(name: str) -> ModelInfo | None:
    """Look up a hub name in the catalogue, in any spelling, with or without the organisation."""
    folded = name.casefold()
    for info in CATALOGUE:
        for spelling in info.spellings:
            if folded in (spelling.casefold(), spelling.split("/")[1].casefold()):
                return info
    return None


def unknown_model(name: str, reason: str) -> UnknownModelError:
    """Return the error for an unknown model name, with suggestions of similar names."""
    short = {spelling.split("/")[1]: info.name for info in CATALOGUE for spelling in info.spellings}
    matches = difflib.get_close_matches(name[-100:].rpartition("/")[2], [*short, BUNDLED], n=3, cutoff=0.6)
    suggested = dict.fromkeys(short.get(match, match) for match in matches)
    hint = f" Did you mean {' or '.join(map(repr, suggested))}?" if suggested else ""
    return UnknownModelError(
        f"Model {quoted_path(name)} is unknown: {reason}.{hint} Expected 'bundled', a Hub name such as "
        f"'{CATALOGUE[3].name}', or the path of a model folder such as './my-model'."
    )
