"""What is known of models: names, pinned revisions, licence, published figures, and which file serves what."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from marcorank.errors import ModelLoadError, UnknownModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BUNDLED = "bundled"
ORGANISATION = "cross-encoder"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of the catalogue.

    Attributes:
        name: Name on the hub, in the new spelling.
        aliases: Older names of the same repository, which redirect online.
        revision: Commit that is loaded unless another is asked for.
        licence: SPDX identifier.
        layers: Transformer layers.
        hidden_size: Width of the hidden states.
        parameters: Trainable numbers in the model.
        ndcg_dl19: nDCG@10 on TREC DL 2019, from 0 to 100, as published.
        mrr_dev: MRR@10 on the MS MARCO dev set, from 0 to 100, as published.
        passages_per_s_v100: Passages a second on a V100, as published.

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
        """Every name under which a cache may hold the model."""
        return (self.name, *self.aliases)


def _entry(
    new: str, old: str, revision: str, shape: tuple[int, int, int], figures: tuple[float, float, int]
) -> ModelInfo:
    return ModelInfo(
        f"{ORGANISATION}/ms-marco-{new}-v2",
        (f"{ORGANISATION}/ms-marco-{old}-v2",),
        revision,
        "Apache-2.0",
        *shape,
        *figures,
    )


# Source of the revisions: public lock files and fetch scripts that name them with `onnx/model.onnx`.
CATALOGUE: tuple[ModelInfo, ...] = (
    _entry(
        "TinyBERT-L2", "TinyBERT-L-2", "81d1926f67cb8eee2c2be17ca9f793c7c3bd20cc",
        (2, 128, 4_386_049), (69.84, 32.56, 9000),
    ),
    _entry(
        "MiniLM-L2", "MiniLM-L-2", "1b5cd67b15209f24824c50370e0397743aa9b787",
        (2, 384, 15_615_745), (71.01, 34.85, 4100),
    ),
    _entry(
        "MiniLM-L4", "MiniLM-L-4", "777b2f369bc1c2f850df8bd367ed1654bda4497b",
        (4, 384, 19_164_673), (73.04, 37.70, 2500),
    ),
    _entry(
        "MiniLM-L6", "MiniLM-L-6", "c5ee24cb16019beea0893ab7796b1df96625c6b8",
        (6, 384, 22_713_601), (74.30, 39.01, 1800),
    ),
    _entry(
        "MiniLM-L12", "MiniLM-L-12", "7b0235231ca2674cb8ca8f022859a6eba2b1c968",
        (12, 384, 33_360_385), (74.31, 39.02, 960),
    ),
)  # fmt: skip

# Inside a model's folder; the first that exists is taken.
FP32_ONNX_FILES: tuple[str, ...] = ("onnx/model.onnx", "model.onnx")
# OpenVINO's own format; each has its weights in a .bin beside it.
FP32_IR_FILES: tuple[str, ...] = ("openvino/openvino_model.xml", "openvino_model.xml")
INT8_IR_FILES: tuple[str, ...] = ("openvino/openvino_model_qint8_quantized.xml",)
# What `marcorank models quantize` makes.
QUANTIZED_IR_FILE = "openvino/marcorank_int8.xml"
# As transformers names them; other pickles, such as training_args.bin, are no weights.
PICKLED_WEIGHTS = "pytorch_model*.bin"
# By instruction set, best first; a file made for another one may saturate or be slow.
_INT8_ONNX_FILES: tuple[tuple[str, str], ...] = (
    ("avx512_vnni", "onnx/model_qint8_avx512_vnni.onnx"),
    ("avx512f", "onnx/model_qint8_avx512.onnx"),
    ("avx2", "onnx/model_quint8_avx2.onnx"),
    ("arm64", "onnx/model_qint8_arm64.onnx"),
)
_PORTABLE_INT8_ONNX_FILES: tuple[str, ...] = ("onnx/model_int8.onnx", "onnx/model_quantized.onnx")


def int8_onnx_files(features: frozenset[str]) -> tuple[str, ...]:
    """Names of int8 ONNX files that suit a processor, best first.

    Args:
        features: Instruction sets, as `marcorank._inference.cpu.cpu_features` names them.
    """
    made_for = tuple(file for feature, file in _INT8_ONNX_FILES if feature in features)
    return made_for + _PORTABLE_INT8_ONNX_FILES


def has_weights(names: Iterable[str], *, allow_pickle: bool) -> bool:
    """Whether these files of a model's folder hold weights that torch may read."""
    return any(
        fnmatchcase(name, "*.safetensors") or (allow_pickle and fnmatchcase(name, PICKLED_WEIGHTS))
        for name in names
        if "/" not in name
    )


def check_weights(names: Sequence[str], *, where: str, allow_pickle: bool) -> None:
    """Check that there are weights for torch.

    Args:
        names: Files of a model's folder.
        where: What the folder is, for the message.
        allow_pickle: Whether weights that come only as pickle may be read.

    Raises:
        ModelLoadError: There are none, or only pickles and those were not asked for.
    """
    if has_weights(names, allow_pickle=allow_pickle):
        return
    pickles = sorted(name for name in names if fnmatchcase(name, PICKLED_WEIGHTS))
    if pickles:
        raise ModelLoadError(
            f"{where} holds its weights only as pickle ({', '.join(pickles)}), which can run code when it is read. "
            "Save it anew as safetensors, or pass `allow_pickle=True` if you trust its source."
        )
    raise ModelLoadError(
        f"{where} holds no weights: expected *.safetensors or {FP32_ONNX_FILES[0]}, found "
        f"{', '.join(sorted(names)) or 'nothing'}."
    )


def find(name: str) -> ModelInfo | None:
    """Return the catalogue's entry of a hub name in any spelling, with or without the organisation."""
    wanted = name.casefold()
    for info in CATALOGUE:
        for spelling in info.spellings:
            if wanted in (spelling.casefold(), spelling.split("/")[1].casefold()):
                return info
    return None


def unknown_model(name: str, reason: str) -> UnknownModelError:
    """Return the error for a name that is no model, with the names that come near."""
    names = [spelling for info in CATALOGUE for spelling in info.spellings]
    short = {spelling.split("/")[1]: spelling for spelling in names}
    near = difflib.get_close_matches(name.rsplit("/", maxsplit=1)[-1], [*short, BUNDLED], n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(repr(short.get(match, match)) for match in near)}?" if near else ""
    return UnknownModelError(
        f"Model {name!r} is unknown: {reason}.{hint} Expected 'bundled', a hub name such as "
        f"'{CATALOGUE[3].name}', or the path of a model folder such as './my-model'."
    )
