"""The catalogue: names, near names, weights and the choice of int8 files."""

from __future__ import annotations

import re

import pytest

from marcorank import Reranker
from marcorank._models.catalogue import (
    CATALOGUE,
    MS_MARCO,
    MULTILINGUAL,
    check_weights,
    find,
    has_weights,
    int8_onnx_files,
    unknown_model,
)
from marcorank.errors import ModelLoadError, UnknownModelError
from marcorank.settings import DEFAULT_MODEL


@pytest.mark.parametrize("info", CATALOGUE, ids=lambda info: info.name)
def test_every_spelling_finds_its_model(info):
    """New and old names, in any case, with and without the organisation, mean the same model."""
    assert len(set(info.spellings)) == (2 if info in MS_MARCO else 1)
    for spelling in info.spellings:
        for name in (spelling, spelling.upper(), spelling.split("/")[1]):
            assert find(name) is info


@pytest.mark.parametrize("info", CATALOGUE, ids=lambda info: info.name)
def test_entries_are_complete(info):
    """Each entry pins a full commit; its size, length, licence and languages are known, its figures plausible."""
    assert re.fullmatch("[0-9a-f]{40}", info.revision)
    assert info.licence in {"Apache-2.0", "MIT"}
    assert info.max_length in {512, 7999, 8192}
    assert info.languages == (MULTILINGUAL,) or all(re.fullmatch("[a-z]{2}", code) for code in info.languages)
    assert info.parameters > 30522 * info.hidden_size
    assert (info.ndcg_mteb is None) == (info.pairs_per_s_cpu is None) == (info.pairs_per_s_h100 is None)
    assert 0 < (info.ndcg_mteb or 0.5) < 1
    assert 0 < (info.ndcg_beir or 50) < 100
    assert any((info.ndcg_dl19, info.ndcg_mteb, info.ndcg_beir))


def test_the_ms_marco_models_come_first():
    """They are the default, so they head every list; all have the figures of their model cards."""
    assert CATALOGUE[: len(MS_MARCO)] == MS_MARCO
    assert find(DEFAULT_MODEL) in MS_MARCO
    for info in MS_MARCO:
        assert 0 < info.mrr_dev < info.ndcg_dl19 < 100
        assert (info.licence, info.languages, info.max_length) == ("Apache-2.0", ("en",), 512)


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("ms-marco-MiniLM-L-6-v2", (22_713_601, 512, 0.5082, 143.9, 3817, 48.64, None)),
        ("ettin-reranker-17m-v1", (16_863_745, 7999, 0.5576, 267.4, 7517, None, None)),
        ("alibaba-nlp/GTE-reranker-modernbert-base", (149_605_633, 8192, 0.5843, 14.7, 1418, None, None)),
        ("bge-reranker-v2-m3", (567_755_777, 8192, 0.5526, 6.0, 1569, 53.65, 54.17)),
        ("jina-reranker-v1-turbo-en", (37_771_777, 8192, None, None, None, 49.60, None)),
    ],
)
def test_published_figures(name, figures):
    """Each model has its own figures; what nobody has published is None."""
    info = find(name)
    assert figures == (
        *(info.parameters, info.max_length, info.ndcg_mteb, info.pairs_per_s_cpu, info.pairs_per_s_h100),
        *(info.ndcg_beir, info.ndcg_mkqa),
    )


def test_no_two_entries_share_a_name_or_a_commit():
    """A name leads to one model."""
    spellings = [spelling for info in CATALOGUE for spelling in info.spellings]
    short_names = {spelling.split("/")[1].casefold() for spelling in spellings}
    assert len(short_names) == len(spellings)
    assert len({info.revision for info in CATALOGUE}) == len(CATALOGUE)


@pytest.mark.parametrize(
    "name", ["ms-marco-MiniLM-L-6", "somebody/ms-marco-MiniLM-L6-v2", "bundled", "bundled-tiny", "bert", ""]
)
def test_other_names_are_not_in_the_catalogue(name):
    """A name that only comes near is not taken for a model."""
    assert find(name) is None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cross-encoder/ms-marco-MiniLM-L6-v1", "cross-encoder/ms-marco-MiniLM-L6-v2"),
        ("ms-marco-MiniLM-L-12", "cross-encoder/ms-marco-MiniLM-L12-v2"),
        ("ms-marco-TinyBERT-L2", "cross-encoder/ms-marco-TinyBERT-L2-v2"),
        ("bge-reranker-v2-m4", "BAAI/bge-reranker-v2-m3"),
        ("ettin-reranker-17m", "cross-encoder/ettin-reranker-17m-v1"),
        ("bundeld", "bundled"),
        ("bundled_tiny", "bundled-tiny"),
    ],
)
def test_near_names_are_suggested(name, near):
    """A misspelt name is answered with the name that was meant, ready to copy."""
    error = unknown_model(name, "there is no such folder")
    assert isinstance(error, UnknownModelError)
    assert f"Model '{name}' is unknown: there is no such folder. Did you mean" in str(error)
    assert repr(near) in str(error)
    suggested = re.findall("'([^']+)'", re.search(r"Did you mean (.*)\?", str(error))[1])
    assert len({find(name) or name for name in suggested}) == len(suggested)


@pytest.mark.parametrize(
    "name", ["./my-reranker", "../ms-marco-MiniLM-L6", "~/bundled", "/x/bge-reranker", r"C:\bundled"]
)
def test_a_path_gets_no_suggestion(name):
    """A folder of the user's own may be called anything; the names of models do not help to find it."""
    with pytest.raises(UnknownModelError, match=r"is unknown: there is no such folder\. Expected 'bundled'"):
        Reranker(name)


def test_a_name_that_comes_near_to_nothing_gets_no_suggestion():
    """No guess is better than a wild one; what is expected is said all the same."""
    message = str(unknown_model("somebody/xyz", "the hub has no such repository"))
    assert "Did you mean" not in message
    assert (
        "Expected 'bundled', 'bundled-tiny', a Hub name such as 'cross-encoder/ms-marco-MiniLM-L6-v2', or the path"
        in message
    )


@pytest.mark.parametrize(
    ("features", "first"),
    [
        ({"avx2", "avx512f", "avx512_vnni"}, "onnx/model_qint8_avx512_vnni.onnx"),
        ({"avx2", "avx512f"}, "onnx/model_qint8_avx512.onnx"),
        ({"avx2"}, "onnx/model_quint8_avx2.onnx"),
        ({"arm64"}, "onnx/model_qint8_arm64.onnx"),
        (set(), "onnx/model_int8.onnx"),
    ],
)
def test_the_int8_file_suits_the_processor(features, first):
    """The best file for the instruction set comes first, the portable ones last, and none for another processor."""
    files = int8_onnx_files(frozenset(features))
    assert files[0] == first
    assert files[-2:] == ("onnx/model_int8.onnx", "onnx/model_quantized.onnx")
    assert len(files) == len(features) + 2


@pytest.mark.parametrize(
    ("names", "without_pickle", "with_pickle"),
    [
        (["model.safetensors"], True, True),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], True, True),
        (["pytorch_model.bin"], False, True),
        (["pytorch_model-00001-of-00002.bin"], False, True),
        (["training_args.bin", "config.json"], False, False),
        (["onnx/model.safetensors"], False, False),
        (["adapter_model.safetensors", "adapter_model.bin"], False, False),
        ([], False, False),
    ],
)
def test_which_files_are_weights(names, without_pickle, with_pickle):
    """Safetensors count always, pickles of weights where they are allowed, other pickles never."""
    assert has_weights(names, allow_pickle=False) is without_pickle
    assert has_weights(names, allow_pickle=True) is with_pickle


def test_missing_weights_are_explained():
    """The error tells a folder without weights from one whose weights are pickles, and what to do."""
    check_weights(["model.safetensors"], where="'x'", allow_pickle=False)
    with pytest.raises(ModelLoadError, match=r"'x' has no weights: expected .*onnx/model.onnx, found 'a.txt', 'b.txt'"):
        check_weights(["b.txt", "a.txt"], where="'x'", allow_pickle=True)
    with pytest.raises(ModelLoadError, match=r"'x' has no weights: expected .*, found nothing"):
        check_weights([], where="'x'", allow_pickle=False)
    with pytest.raises(
        ModelLoadError, match=r"only pickled weights \(pytorch_model.bin\).*`allow_pickle=True` if you trust"
    ):
        check_weights(["pytorch_model.bin", "training_args.bin"], where="'x'", allow_pickle=False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["openvino_model.xml", "openvino_model.bin"], r"only a file for openvino .*`backend='openvino'`\."),
        (
            ["onnx/model.onnx", "onnx/model_int8.onnx"],
            r"only an ONNX file \(onnx/model.onnx\)\. Load it with `backend='onnx'`",
        ),
        (
            ["openvino/marcorank_int8.xml", "openvino/marcorank_int8.bin"],
            r"only a file for openvino .*`backend='openvino', precision='int8'`",
        ),
        (["openvino_model.xml"], "has no weights: expected .*, found .*openvino_model.xml"),
        (["adapter_config.json", "adapter_model.safetensors"], "is a LoRA adapter .*Merge it into"),
    ],
)
def test_what_is_no_whole_model_is_named_with_what_it_needs(names, message):
    """Files for openvino are named with the settings that load them, an adapter as one even beside a config."""
    with pytest.raises(ModelLoadError, match=f"^'x' .*{message}"):
        check_weights(["config.json", *names], where="'x'", allow_pickle=True)


def test_a_merged_model_beside_its_adapter_is_a_model():
    """The adapter that was merged may stay in the folder."""
    check_weights(["config.json", "model.safetensors", "adapter_config.json"], where="'x'", allow_pickle=False)
