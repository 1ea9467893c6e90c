"""Logits equal those of sentence-transformers, for every model shape and on every text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

import marcorank
from marcorank import Reranker
from marcorank._models.catalogue import BUNDLED_MODELS
from marcorank._models.export import export_onnx
from patience import PATIENCE_S
from random_models import MINILM_L6, MINILM_L12, QUERY, TINYBERT_L2, bert, passages, predict, roberta

# sentence-transformers moves its own logits by 1e-4 with its batch size, at a standard deviation of about 4.
TOLERANCE = 3e-4
TEXTS = passages()


@pytest.fixture(scope="module", params=[TINYBERT_L2, MINILM_L6, MINILM_L12], ids=["tinybert-l2", "l6", "l12"])
def shaped(request, tmp_path_factory):
    folder = bert(tmp_path_factory.mktemp("shape"), request.param)
    export_onnx(folder, folder)
    return folder, predict(folder, QUERY, TEXTS)


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_each_shape_scores_as_sentence_transformers(shaped, backend):
    """fp32 logits of real range equal `CrossEncoder.predict`, together and alone."""
    folder, expected = shaped
    reranker = Reranker(folder, backend=backend, precision="fp32")
    assert 3 < expected.std() < 5
    np.testing.assert_allclose(reranker.score(QUERY, TEXTS), expected, atol=TOLERANCE, rtol=0)
    alone = [reranker.score(QUERY, [text])[0] for text in TEXTS[-5:]]
    np.testing.assert_allclose(alone, expected[-5:], atol=TOLERANCE, rtol=0)


def test_the_bundled_weights_score_as_sentence_transformers(bundled_in_fp32):
    """The weights in the wheel, in fp32, equal `CrossEncoder.predict` on every backend."""
    expected = predict(bundled_in_fp32, QUERY, TEXTS)
    for backend in ("onnx", "openvino", "torch"):
        found = Reranker(bundled_in_fp32, backend=backend, precision="fp32").score(QUERY, TEXTS)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0, err_msg=backend)


# What CrossEncoder does with `backend="onnx"`, whose package optimum-onnx does not work with transformers 5 yet.
WITHOUT_MARCORANK = """
import json
import sys
from pathlib import Path

import onnxruntime
from transformers import AutoConfig, AutoTokenizer

folder = Path(sys.argv[1])
query, texts = json.load(sys.stdin)
config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
tokens = tokenizer(
    [query] * len(texts), texts, padding=True, truncation=True, max_length=config.max_position_embeddings,
    return_tensors="np",
)
session = onnxruntime.InferenceSession(folder / "onnx" / "model_int8.onnx", providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {given.name: tokens[given.name] for given in session.get_inputs()})
assert config.num_labels == 1
assert not any(name.startswith("marcorank") for name in sys.modules)
print(json.dumps(logits[:, 0].tolist()))
"""


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_the_bundled_models_run_without_marcorank(name):
    """With the folder in the wheel, transformers reads configuration and tokenizer; onnxruntime gives our logits."""
    folder = Path(marcorank.__file__).parent / name.replace("-", "_")
    found = subprocess.run(  # noqa: S603
        [sys.executable, "-c", WITHOUT_MARCORANK, folder],
        input=json.dumps([QUERY, TEXTS]),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    np.testing.assert_allclose(json.loads(found.stdout), Reranker(name).score(QUERY, TEXTS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_a_model_with_one_segment_scores_as_sentence_transformers(small_roberta, backend):
    """RoBERTa: other special tokens, no segment ids, positions from behind the padding's id."""
    texts = [text for text in TEXTS if text]
    found = Reranker(small_roberta, backend=backend, precision="fp32").score(QUERY, texts)
    np.testing.assert_allclose(found, predict(small_roberta, QUERY, texts), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "family", ["Roberta", "Camembert", "XLMRoberta", "Data2VecText", "Esm", "IBert", "Longformer", "MPNet", "GPT2"]
)
def test_no_model_reads_behind_its_positions(family, tmp_path):
    """Of 130 positions, families of RoBERTa's kind can use 128; longer sequences are truncated, and that is reported.

    The tokenizer sets no limit here.
    """
    folder = roberta(tmp_path, family=family)
    texts = [TEXTS[-1], "berlin"]
    expected = predict(folder, QUERY, texts)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    del tokenizer_config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    backends = ["torch"]
    # The windows of Longformer cannot be exported, nor can the code of GPT-2 in transformers 4.
    if family != "Longformer" and not (family == "GPT2" and transformers.__version__.startswith("4.")):
        export_onnx(folder, folder)
        backends += ["onnx", "openvino"]
    for backend in backends:
        with Reranker(folder, backend=backend, precision="fp32", max_length=1024) as reranker:
            ranking = sorted(reranker.rank(QUERY, texts), key=lambda result: result.index)
        assert [result.truncated for result in ranking] == [True, False]
        np.testing.assert_allclose([result.logit for result in ranking], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("model", ["small_interaction", "small_splade"])
@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_the_bundled_architectures_score_as_sentence_transformers(request, model, backend):
    """Both equal `CrossEncoder.predict`, together and alone."""
    folder = request.getfixturevalue(model)
    expected = predict(folder, QUERY, TEXTS)
    reranker = Reranker(folder, backend=backend, precision="fp32")
    np.testing.assert_allclose(reranker.score(QUERY, TEXTS), expected, atol=TOLERANCE, rtol=0)
    alone = [reranker.score(QUERY, [text])[0] for text in TEXTS[-5:]]
    np.testing.assert_allclose(alone, expected[-5:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("model", "separator"), [("small_bert", "[SEP]"), ("small_roberta", "</s>")])
@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_special_tokens_in_texts_score_as_in_sentence_transformers(request, model, separator, backend):
    """Only with `special_tokens="text"` are they text, also where both settings share the weights of one model."""
    folder = request.getfixturevalue(model)
    texts = [f"berlin {separator} {QUERY} {separator}", f"museum{separator}wall", "museum"]
    parsed, as_text = (
        Reranker(folder, backend=backend, precision="fp32", special_tokens=mode).warm_up() for mode in ("parse", "text")
    )
    for _ in range(2):
        found, changed = parsed.score(QUERY, texts), as_text.score(QUERY, texts)
        np.testing.assert_allclose(found, predict(folder, QUERY, texts), atol=TOLERANCE, rtol=0)
        assert np.abs(found - changed)[:2].min() > 10 * TOLERANCE
        assert changed[2] == pytest.approx(found[2], abs=TOLERANCE)


@pytest.mark.parametrize("model", ["small_bert", "small_roberta", "small_splade"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_rounds_no_logit(request, model, precision):
    """The head of a model in half precision computes in fp32, so that logits are not rounded into ties."""
    texts = passages(40, seed=2)[:40]
    folder = request.getfixturevalue(model)
    found = Reranker(folder, backend="torch", precision=precision).score(QUERY, texts)
    expected = Reranker(folder, backend="torch", precision="fp32").score(QUERY, texts)
    assert np.corrcoef(found, expected)[0, 1] > 0.95
    assert len(set(found.tolist())) == len(set(texts))
