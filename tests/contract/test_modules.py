"""Cross-encoders made of modules, with every version of sentence-transformers that is supported."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sentence_transformers
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from marcorank import ModelLoadError, Reranker
from random_models import QUERY, SMALL, bi_encoder, export_encoder, passages

PASSAGES = passages(6, seed=4)[:6]
READS_MODULES = tuple(map(int, sentence_transformers.__version__.split(".")[:2])) >= (5, 4)
MODULE_TYPES = (
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ("2_Dense", "sentence_transformers.base.modules.dense.Dense"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as sentence-transformers 5.4 saves it, with the encoder's graph, written without it."""
    folder = export_encoder(bi_encoder(tmp_path_factory.mktemp("modules")))
    width = SMALL.hidden
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": name}
        for index, (path, name) in enumerate(MODULE_TYPES)
    ]
    dense = {
        "in_features": width,
        "out_features": 1,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
        "module_input_name": "sentence_embedding",
        "module_output_name": "scores",
    }
    files = {
        "modules.json": modules,
        "config_sentence_transformers.json": {
            "__version__": {"sentence_transformers": "5.4.0"},
            "model_type": "CrossEncoder",
            "prompts": {},
            "default_prompt_name": None,
        },
        "sentence_bert_config.json": {"transformer_task": "feature-extraction"},
        "1_Pooling/config.json": {"embedding_dimension": width, "pooling_mode": "mean", "include_prompt": True},
        "2_Dense/config.json": dense,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    torch.manual_seed(0)
    weights = {"linear.weight": torch.randn(1, width), "linear.bias": torch.randn(1)}
    save_file(weights, folder / "2_Dense/model.safetensors")
    return folder


def expected(folder):
    """The logits by transformers and torch alone."""
    from safetensors.torch import load_file

    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    weights = load_file(folder / "2_Dense/model.safetensors")
    found = []
    for text in PASSAGES:
        tokens = tokenizer(QUERY, text, truncation="only_second", max_length=512, return_tensors="pt")
        with torch.inference_mode():
            mean = encoder(**tokens).last_hidden_state.mean(dim=1)
        found.append((mean @ weights["linear.weight"].T + weights["linear.bias"]).item())
    return np.array(found)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_graphs_need_no_sentence_transformers(folder, backend):
    """The head beside the graph is applied, whatever version is installed."""
    found = Reranker(folder, backend=backend, precision="fp32").score(QUERY, PASSAGES)
    assert np.abs(np.array(found) - expected(folder)).max() < 3e-4


def test_torch_reads_modules_or_says_what_it_needs(folder):
    """A version that would load the encoder alone, with a random head, is refused by name."""
    reranker = Reranker(folder, backend="torch", precision="fp32")
    if READS_MODULES:
        assert np.abs(np.array(reranker.score(QUERY, PASSAGES)) - expected(folder)).max() < 3e-4
    else:
        with pytest.raises(ModelLoadError, match=r"made of modules, .* pip install 'sentence-transformers>=5\.4\.0'"):
            reranker.warm_up()
