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
BUNDLED_TINY = "bundled-tiny"
BUNDLED_MODELS = (BUNDLED, BUNDLED_TINY)
ORGANISATION = "cross-encoder"
# In place of languages, where the authors list none.
MULTILINGUAL = "multilingual"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model in the catalogue. A figure without a published source is None.

    Attributes:
        name: Name on the hub, in the new spelling.
        aliases: Older names of the same repository, which redirect online.
        revision: Commit that is loaded unless you pass another.
        licence: SPDX identifier of the licence.
        languages: ISO 639-1 codes of the languages it was trained on, or only `multilingual`.
        max_length: Maximum number of tokens of a query and a passage together.
        layers: Transformer layers.
        hidden_size: Width of the hidden states.
        parameters: Number of trainable parameters.
        ndcg_dl19: nDCG@10 on TREC DL 2019, from 0 to 100.
        mrr_dev: MRR@10 on the MS MARCO dev set, from 0 to 100.
        passages_per_s_v100: Passages per second on a V100.
        ndcg_mteb: nDCG@10 on the retrieval tasks of MTEB(eng, v2), from 0 to 1, mean over six embedding models whose
            top 100 are reranked.
        pairs_per_s_cpu: Pairs per second of up to 512 tokens on a Core i7-13700K, in fp32.
        pairs_per_s_h100: The same on an H100, in bf16.
        ndcg_beir: nDCG@10, mean over 17 data sets of BEIR, from 0 to 100.
        ndcg_mkqa: nDCG@10, mean over the 26 languages of MKQA, from 0 to 100.
    """

    name: str
    aliases: tuple[str, ...]
    revision: str
    licence: str
    languages: tuple[str, ...]
    max_length: int
    layers: int
    hidden_size: int
    parameters: int
    ndcg_dl19: float | None
    mrr_dev: float | None
    passages_per_s_v100: int | None
    ndcg_mteb: float | None
    pairs_per_s_cpu: float | None
    pairs_per_s_h100: int | None
    ndcg_beir: float | None
    ndcg_mkqa: float | None

    @property
    def spellings(self) -> tuple[str, ...]:
        """All names under which the model may be cached."""
        return (self.name, *self.aliases)


# Source: public lock files, registries and download scripts that pin these commits.
_REVISIONS = {
    "ms-marco-TinyBERT-L2-v2": "81d1926f67cb8eee2c2be17ca9f793c7c3bd20cc",
    "ms-marco-MiniLM-L2-v2": "1b5cd67b15209f24824c50370e0397743aa9b787",
    "ms-marco-MiniLM-L4-v2": "777b2f369bc1c2f850df8bd367ed1654bda4497b",
    "ms-marco-MiniLM-L6-v2": "c5ee24cb16019beea0893ab7796b1df96625c6b8",
    "ms-marco-MiniLM-L12-v2": "7b0235231ca2674cb8ca8f022859a6eba2b1c968",
    "ettin-reranker-17m-v1": "9e4aa35321a6dd1a43ca313f500c4b4f7cfb5cc6",
    "ettin-reranker-32m-v1": "b33e5ceb5110773ea9cf5e00c9bedc83a8c2afdd",
    "ettin-reranker-68m-v1": "d166fa88ddde3c42bc3ee92f7df476d941c8204a",
    "ettin-reranker-150m-v1": "025501c4e0f9bbeb4c5b198318e0089ff061cc14",
    "gte-reranker-modernbert-base": "f7481e6055501a30fb19d090657df9ec1f79ab2c",
    "mxbai-rerank-xsmall-v1": "b5c6e9da73abc3711f593f705371cdbe9e0fe422",
    "mxbai-rerank-base-v1": "800f24c113213a187e65bde9db00c15a2bb12738",
    "jina-reranker-v1-tiny-en": "aca45de6945b5dc6399abcd2a9c55ded5dc9111f",
    "jina-reranker-v1-turbo-en": "b8c14f4e723d9e0aab4732a7b7b93741eeeb77c2",
    "mmarco-mMiniLMv2-L12-H384-v1": "1427fd652930e4ba29e8149678df786c240d8825",
    "bge-reranker-base": "2cfc18c9415c912f9d8155881c133215df768a70",
    "bge-reranker-v2-m3": "953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e",
}
# nDCG@10 on TREC DL 2019, MRR@10 on MS MARCO, passages per second. Source: the model cards.
_MS_MARCO_FIGURES = {
    "ms-marco-TinyBERT-L2-v2": (69.84, 32.56, 9000),
    "ms-marco-MiniLM-L2-v2": (71.01, 34.85, 4100),
    "ms-marco-MiniLM-L4-v2": (73.04, 37.70, 2500),
    "ms-marco-MiniLM-L6-v2": (74.30, 39.01, 1800),
    "ms-marco-MiniLM-L12-v2": (74.31, 39.02, 960),
}
# nDCG@10 on MTEB, pairs per second on a CPU and a GPU. Source: https://huggingface.co/blog/ettin-reranker
_MTEB_FIGURES = {
    "ms-marco-MiniLM-L4-v2": (0.4979, 206.2, 4029),
    "ms-marco-MiniLM-L6-v2": (0.5082, 143.9, 3817),
    "ms-marco-MiniLM-L12-v2": (0.5066, 75.9, 3311),
    "ettin-reranker-17m-v1": (0.5576, 267.4, 7517),
    "ettin-reranker-32m-v1": (0.5779, 92.5, 6602),
    "ettin-reranker-68m-v1": (0.5915, 31.2, 4913),
    "ettin-reranker-150m-v1": (0.5994, 14.0, 3237),
    "gte-reranker-modernbert-base": (0.5843, 14.7, 1418),
    "mxbai-rerank-xsmall-v1": (0.4968, 38.9, 2636),
    "mxbai-rerank-base-v1": (0.4865, 13.4, 1953),
    "bge-reranker-base": (0.4890, 19.2, 2858),
    "bge-reranker-v2-m3": (0.5526, 6.0, 1569),
}
# nDCG@10 on BEIR and MKQA. Source: the model cards of jina-reranker-v1-turbo-en and jina-reranker-v2-base-multilingual.
_JINA_FIGURES = {
    "ms-marco-MiniLM-L6-v2": (48.64, None),
    "mxbai-rerank-xsmall-v1": (48.80, None),
    "mxbai-rerank-base-v1": (49.19, None),
    "jina-reranker-v1-tiny-en": (48.54, None),
    "jina-reranker-v1-turbo-en": (49.60, None),
    "mmarco-mMiniLMv2-L12-H384-v1": (45.40, 53.37),
    "bge-reranker-v2-m3": (53.65, 54.17),
}
_MMARCO_LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "id", "it", "ja", "nl", "pt", "ru", "vi", "zh")


def _short(name: str) -> str:
    return name.split("/")[1]


def _model(
    name: str,
    shape: tuple[int, int, int],
    *,
    max_length: int = 512,
    languages: tuple[str, ...] = ("en",),
    licence: str = "Apache-2.0",
    aliases: tuple[str, ...] = (),
) -> ModelInfo:
    unknown = (None, None, None)
    return ModelInfo(
        name,
        aliases,
        _REVISIONS[_short(name)],
        licence,
        languages,
        max_length,
        *shape,
        *_MS_MARCO_FIGURES.get(_short(name), unknown),
        *_MTEB_FIGURES.get(_short(name), unknown),
        *_JINA_FIGURES.get(_short(name), unknown[:2]),
    )


def _ms_marco(size: str, layers: int, hidden_size: int, parameters: int) -> ModelInfo:
    prefix = f"{ORGANISATION}/ms-marco-{size}-L"
    aliases = (f"{prefix}-{layers}-v2",)
    return _model(f"{prefix}{layers}-v2", (layers, hidden_size, parameters), aliases=aliases)


def _ettin(size: str, layers: int, hidden_size: int, encoder_parameters: int) -> ModelInfo:
    # Dense without bias, LayerNorm, Dense to one score.
    head = hidden_size * hidden_size + 2 * hidden_size + hidden_size + 1
    shape = (layers, hidden_size, encoder_parameters + head)
    return _model(f"{ORGANISATION}/ettin-reranker-{size}-v1", shape, max_length=7999)


MS_MARCO: tuple[ModelInfo, ...] = (
    _ms_marco("TinyBERT", 2, 128, 4_386_049),
    _ms_marco("MiniLM", 2, 384, 15_615_745),
    _ms_marco("MiniLM", 4, 384, 19_164_673),
    _ms_marco("MiniLM", 6, 384, 22_713_601),
    _ms_marco("MiniLM", 12, 384, 33_360_385),
)
# Parameters in round thousands are rounded by the authors.
OTHERS: tuple[ModelInfo, ...] = (
    _ettin("17m", 7, 256, 16_797_440),
    _ettin("32m", 10, 384, 31_883_136),
    _ettin("68m", 19, 512, 68_144_640),
    _ettin("150m", 22, 768, 149_014_272),
    _model("Alibaba-NLP/gte-reranker-modernbert-base", (22, 768, 149_605_633), max_length=8192),
    _model("mixedbread-ai/mxbai-rerank-xsmall-v1", (12, 384, 70_830_337)),
    _model("mixedbread-ai/mxbai-rerank-base-v1", (12, 768, 184_000_000)),
    _model("jinaai/jina-reranker-v1-tiny-en", (4, 384, 33_000_000), max_length=8192),
    _model("jinaai/jina-reranker-v1-turbo-en", (6, 384, 37_771_777), max_length=8192),
    _model(f"{ORGANISATION}/mmarco-mMiniLMv2-L12-H384-v1", (12, 384, 117_641_089), languages=_MMARCO_LANGUAGES),
    _model("BAAI/bge-reranker-base", (12, 768, 278_044_417), languages=("en", "zh"), licence="MIT"),
    _model("BAAI/bge-reranker-v2-m3", (24, 1024, 567_755_777), languages=(MULTILINGUAL,), max_length=8192),
)
CATALOGUE = MS_MARCO + OTHERS

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
            if folded in (spelling.casefold(), _short(spelling).casefold()):
                return info
    return None


def is_path(name: str) -> bool:
    """Return whether a name can only be the path of a folder."""
    return name.startswith((".", "/", "~")) or "\\" in name


def unknown_model(name: str, reason: str) -> UnknownModelError:
    """Return the error for an unknown model name, with suggestions of similar names unless it is a path."""
    short = {_short(spelling): info.name for info in CATALOGUE for spelling in info.spellings}
    matches = difflib.get_close_matches(name[-100:].rpartition("/")[2], [*short, *BUNDLED_MODELS], n=3, cutoff=0.6)
    suggested = dict.fromkeys(short.get(match, match) for match in matches)
    hint = f" Did you mean {' or '.join(map(repr, suggested))}?" if suggested and not is_path(name) else ""
    return UnknownModelError(
        f"Model {quoted_path(name)} is unknown: {reason}.{hint} Expected 'bundled', 'bundled-tiny', a Hub name such as "
        f"'{CATALOGUE[3].name}', or the path of a model folder such as './my-model'."
    )
