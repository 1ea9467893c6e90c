"""The openvino backend without the attention mask: exact where nothing is padded, and left alone where it matters."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from marcorank import Reranker
from marcorank._inference.backends.openvino import OpenvinoBackend, shared_core
from marcorank._inference.backends.openvino_mask import drop_mask
from marcorank._inference.cpu import Workers
from marcorank._inference.pairs import TokenBatch
from marcorank._models.export import export_onnx
from random_models import QUERY, passages, save


def compiled(model):
    return shared_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def drop(model, longest=512) -> bool:
    return drop_mask(model, lambda part: shared_core().compile_model(part, "CPU"), longest=longest)


def batch(lengths, *, seed=0) -> TokenBatch:
    rng = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    mask = (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64)
    segments = np.broadcast_to(np.arange(shape[1]) > 4, shape).astype(np.int64)
    return TokenBatch(rng.integers(5, 50, shape), mask, segments)


def logits(model, tokens: TokenBatch):
    names = {node.any_name for node in model.inputs}
    return compiled(model)({name: getattr(tokens, name) for name in names})[0].copy()


@pytest.mark.parametrize("name", ["small_bert", "small_roberta"])
@pytest.mark.parametrize("length", [1, 9, 48])
def test_without_padding_no_logit_changes(request, name, length):
    """To the last bit, at every length."""
    file = request.getfixturevalue(name) / "onnx/model.onnx"
    model = shared_core().read_model(file)
    before = logits(model, batch([length] * 3))
    assert drop(model) is True
    assert np.array_equal(logits(model, batch([length] * 3)), before)
    # That the mask is gone, and not only small.
    padded = batch([length + 5, length])
    whole = TokenBatch(padded.input_ids, np.ones_like(padded.attention_mask), padded.token_type_ids)
    assert np.array_equal(logits(model, padded), logits(model, whole))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_padded_batches_are_still_right(small_bert, precision):
    """The scheduler never pads here; whoever does gets what each row gives alone."""
    backend = OpenvinoBackend(
        small_bert / "onnx/model.onnx", device="cpu", precision=precision, workers=Workers.of(None), longest=512
    )
    padded = batch([30, 7, 19, 1])
    alone = [backend.logits(row)[0] for row in padded.rows()]
    assert np.array_equal(backend.logits(padded), alone)
    expected = logits(shared_core().read_model(small_bert / "onnx/model.onnx"), padded)[:, 0]
    np.testing.assert_allclose(backend.logits(padded), expected, atol=1e-4 if precision == "fp32" else 0.5)


def test_a_mask_that_is_read_elsewhere_stays(small_interaction):
    """Such as the bundled model's, which knows by it which words there are."""
    model = shared_core().read_model(small_interaction / "onnx/model.onnx")
    before = logits(model, batch([9, 4]))
    assert drop(model) is False
    assert np.array_equal(logits(model, batch([9, 4])), before)


def with_mask(make):
    """A model that adds to its scores what `make` makes of the mask."""
    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    mask = ops.parameter([-1, -1], np.int64, name="attention_mask")
    for node in (ids, mask):
        node.output(0).set_names({node.get_friendly_name()})
    scores = ops.unsqueeze(ops.convert(ids, np.float32), [2])
    sums = ops.add(scores, ops.unsqueeze(make(ops.convert(mask, np.float32)), [2]))
    return openvino.Model([ops.reduce_sum(sums, [1])], [ids, mask], "masked")


@pytest.mark.parametrize(
    ("make", "dropped"),
    [
        (lambda mask: ops.multiply(ops.subtract(mask, np.float32(1)), np.float32(1e4)), True),
        (lambda mask: ops.multiply(mask, np.float32(0.5)), False),
        # 0 for a mask of ones at the shortest length only.
        (lambda mask: ops.subtract(ops.reduce_sum(mask, [1], keep_dims=True), np.float32(1)), False),
    ],
    ids=["nothing", "something", "nothing for one token"],
)
def test_only_what_adds_nothing_is_left_out(make, dropped):
    """It is evaluated, not guessed."""
    model = with_mask(make)
    before = logits(model, batch([6, 6]))
    assert drop(model) is dropped
    assert np.array_equal(logits(model, batch([6, 6])), before)


def windowed(width):
    """A mask of ones adds nothing unless there are more tokens than the window is wide."""

    def make(mask):
        beyond = ops.subtract(ops.reduce_sum(mask, [1], keep_dims=True), np.float32(width))
        return ops.multiply(ops.maximum(beyond, np.float32(0)), np.float32(-1e4))

    return make


@pytest.mark.parametrize(("longest", "dropped"), [(512, False), (128, True), (None, False), (8192, False)])
def test_a_window_of_attention_counts_at_the_longest_input(longest, dropped):
    """Nothing is left out that masks something of an input that the model can read."""
    assert drop(with_mask(windowed(128)), longest) is dropped


def test_local_attention_is_kept(tmp_path):
    """ModernBERT's layers that see 64 tokens to each side: long pairs score as they do in onnxruntime."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(2)
    config = transformers.ModernBertConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=30522,
        max_position_embeddings=512,
        num_labels=1,
        initializer_range=0.5,
        pad_token_id=0,
        cls_token_id=101,
        sep_token_id=102,
        bos_token_id=101,
        eos_token_id=102,
    )
    save(transformers.ModernBertForSequenceClassification(config), tmp_path)
    export_onnx(tmp_path, tmp_path)
    texts = [" ".join(passages(30, seed=8))[: 400 * number] for number in range(1, 6)]
    found, expected = (
        Reranker(tmp_path, backend=backend, precision="fp32").score(QUERY, texts) for backend in ("openvino", "onnx")
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_graph_without_a_mask_is_left_alone():
    """There is nothing to leave out."""
    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    ids.output(0).set_names({"input_ids"})
    model = openvino.Model([ops.reduce_sum(ops.convert(ids, np.float32), [1], keep_dims=True)], [ids], "bare")
    assert drop(model) is False
