"""Every architecture that transformers offers for sequence classification scores as in sentence-transformers.

Or it is refused with the reason. There is nothing in between: no other score, and no other error.
"""

from __future__ import annotations

import numpy as np
import pytest

from marcorank import MarcoRankError, ModelLoadError, Reranker
from marcorank._models.export import export_onnx
from random_architectures import (
    NOT_FOR_TEXTS,
    mixed_texts,
    model_types,
    random_logit_score,
    random_model,
    random_modular,
    texts_with_special_tokens,
)
from random_models import QUERY, WORDS

TOLERANCE = 3e-4
QUERIES = (QUERY, "museum river spree capital city germany")
# Not all: each export takes a second.
GRAPHS = (
    "albert",
    "camembert",
    "canine",
    "convbert",
    "deberta",
    "distilbert",
    "electra",
    "eurobert",
    "llama",
    "mpnet",
    "nomic_bert",
    "roberta",
    "xlm-roberta",
    "xlnet",
)
# Models of images and markup need a processor, and TAPAS a table.
REFUSED = ("gemma3", "layoutlmv3", "markuplm", "modernvbert", "qwen3_5", "t5gemma2", "tapas", "ultravbert")
# Operators that ONNX lacks, code that takes another way for other inputs, and models of images and markup.
NO_GRAPHS = ("bart", "fnet", "gemma3", "layoutlmv3", "markuplm", "mixtral", "t5", "zamba2")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The models are too small for more."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def predict(cross_encoder, texts, **options):
    """Scores of sentence-transformers for all queries. Shape: (queries * texts,), float32."""
    import torch

    pairs = [(query, text) for query in QUERIES for text in texts]
    return cross_encoder.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False, **options)


def check(folder, *backends, max_length=512, texts=(), refused=False):
    """Hold each backend to the scores of sentence-transformers, or to a refusal where that has to fail as well."""
    from sentence_transformers import CrossEncoder

    try:
        cross_encoder = CrossEncoder(str(folder), device="cpu", local_files_only=True)
        predict(cross_encoder, ["berlin"])
    except Exception:  # each architecture raises its own
        if not refused:
            raise
        for backend in backends:
            with pytest.raises(MarcoRankError, match=r"cannot (load|score a pair)"):
                Reranker(folder, backend=backend, precision="fp32").score(QUERY, ["berlin"])
        return
    rerankers = [Reranker(folder, backend=backend, precision="fp32", max_length=max_length) for backend in backends]
    for kind in (texts or mixed_texts(), texts_with_special_tokens(cross_encoder.tokenizer)):
        expected = predict(cross_encoder, kind)
        found = [np.concatenate([reranker.score(query, kind) for query in QUERIES]) for reranker in rerankers]
        if any(difference(scores, expected) > TOLERANCE for scores in found):
            # Where padding changes the scores of sentence-transformers, those without padding count.
            alone = predict(cross_encoder, kind, batch_size=1)
            expected = alone if difference(alone, expected) > TOLERANCE else expected
        for backend, scores in zip(backends, found, strict=True):
            assert difference(scores, expected) < TOLERANCE, backend


def difference(found, expected):
    """Largest difference; infinite if a score is not a number."""
    return float(np.nan_to_num(np.abs(found - expected), nan=np.inf).max())


@pytest.mark.parametrize("model_type", model_types())
def test_each_architecture_scores_as_sentence_transformers(tmp_path, model_type):
    """On torch."""
    if model_type == "layoutlmv2":
        pytest.importorskip("detectron2", reason="LayoutLMv2 needs it")
    check(random_model(model_type, tmp_path), "torch", refused=model_type in REFUSED)


@pytest.mark.parametrize("model_type", GRAPHS)
def test_an_exported_architecture_scores_as_sentence_transformers(tmp_path, model_type):
    """On onnx and openvino."""
    folder = random_model(model_type, tmp_path)
    export_onnx(folder, folder)
    check(folder, "onnx", "openvino")


@pytest.mark.parametrize("model_type", NO_GRAPHS)
def test_an_architecture_that_has_no_onnx_form_is_not_exported(tmp_path, capfd, model_type):
    """The error has the reason, and nothing else is printed."""
    folder = random_model(model_type, tmp_path)
    capfd.readouterr()
    with pytest.raises(ModelLoadError, match=r"cannot be exported to ONNX: \S"):
        export_onnx(folder, folder)
    assert not (folder / "onnx").exists()
    assert capfd.readouterr() == ("", "")


def test_the_sweep_covers_what_transformers_registers():
    """The list that is read from the source is what the installed version uses."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    assert model_types() == list(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    assert NOT_FOR_TEXTS.union(GRAPHS, NO_GRAPHS) <= set(model_types())


SHAPES = {
    # 8,192 positions, and layers that see a few tokens to both sides.
    "modernbert": {"model_type": "modernbert", "max_position_embeddings": 8192},
    "gte": {"model_type": "gte", "max_position_embeddings": 8192},
    # Relative positions in buckets, no absolute ones, no segments.
    "deberta-v3": {
        "model_type": "deberta-v2",
        "relative_attention": True,
        "position_buckets": 8,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    # The same with a convolution.
    "deberta-v2-xlarge": {
        "model_type": "deberta-v2",
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    # A BERT with the tokenizer of XLM-RoBERTa, which makes no segments.
    "multilingual-minilm": {"model_type": "bert", "tokenizer_of": "xlm-roberta"},
    # A BERT with the tokenizer of RoBERTa, whose words are bytes.
    "bytes": {"model_type": "bert", "tokenizer_of": "roberta"},
    # Its tokenizer makes segments that the model does not read.
    "one-segment": {"model_type": "bert", "type_vocab_size": 2, "tokenizer_of": "albert"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_current_rerankers_score_as_sentence_transformers(tmp_path, shape):
    """On every backend."""
    folder = random_model(folder=tmp_path, **SHAPES[shape])
    export_onnx(folder, folder)
    check(folder, "torch", "onnx", "openvino")
    if SHAPES[shape].get("max_position_embeddings") == 8192:
        texts = [" ".join(WORDS * repeats) for repeats in (1, 3, 12)]
        check(folder, "torch", "onnx", "openvino", max_length=8192, texts=texts)


ENCODERS = ("bert", "modernbert", "xlm-roberta")
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("mean", "max"))
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}Is it an answer?"
)


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
@pytest.mark.parametrize("model_type", ENCODERS)
def test_modular_cross_encoders_score_as_sentence_transformers(tmp_path, model_type, pooling):
    """Each encoder with each pooling, on torch."""
    check(random_modular(model_type, tmp_path, pooling=pooling), "torch")


@pytest.mark.parametrize(
    ("model_type", "pooling", "activation"),
    [("modernbert", "cls", "GELU"), ("modernbert", "mean", None), ("xlm-roberta", "mean", "Tanh")],
)
def test_modular_cross_encoders_are_exported_complete(tmp_path, model_type, pooling, activation):
    """The graph holds the head as well."""
    folder = random_modular(model_type, tmp_path, pooling=pooling, activation=activation)
    export_onnx(folder, folder)
    check(folder, "onnx", "openvino")


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_prompts_that_were_saved_are_read(tmp_path, model_type):
    """On every backend, with one segment and with two."""
    from sentence_transformers import CrossEncoder

    start = random_model(model_type, tmp_path / "start", max_position_embeddings=512)
    prompts = {"rank": "Judge the relevance: "}
    CrossEncoder(str(start), device="cpu", prompts=prompts, default_prompt_name="rank").save_pretrained(
        str(tmp_path / "prompted")
    )
    export_onnx(tmp_path / "prompted", tmp_path / "prompted")
    check(tmp_path / "prompted", "torch", "onnx", "openvino")


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_prompts_of_a_chat_template_are_read(tmp_path, model_type):
    """A language model that classifies reads the pair as its template writes it."""
    from transformers import AutoTokenizer

    folder = random_model(model_type, tmp_path, max_position_embeddings=512)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    check(folder, "torch")


@pytest.mark.parametrize("chat_template", [None, CHAT_TEMPLATE], ids=["plain", "chat"])
def test_prompts_of_a_model_that_says_yes_or_no(tmp_path, chat_template):
    """As Qwen3-Reranker does."""
    check(random_logit_score(tmp_path, chat_template=chat_template), "torch")
