"""The openvino backend: files that it reads, precisions, and what it changes in a graph."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from fake_backend import schedulers
from marcorank import InvalidInputError, ModelLoadError, Reranker
from marcorank._inference.backends import openvino as openvino_backend
from marcorank._inference.backends.openvino import shared_core
from marcorank._inference.backends.openvino_graph import keep_first_token, quantize_weights
from marcorank._inference.cpu import cpu_features
from marcorank._models.export import export_onnx
from marcorank.cli.models import present_files
from marcorank.settings import RerankerSettings
from random_models import MINILM_L6, QUERY, bert, passages, save

PASSAGES = passages(12, seed=5)


@pytest.fixture(scope="module")
def ir_only(small_bert, tmp_path_factory):
    """The small model as OpenVINO's own format alone, as some repositories have it."""
    folder = tmp_path_factory.mktemp("ir")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(small_bert / name, folder / name)
    model = shared_core().read_model(small_bert / "onnx/model.onnx")
    openvino.save_model(model, folder / "openvino/openvino_model.xml", compress_to_fp16=False)
    return folder


@pytest.fixture(scope="module")
def l6(tmp_path_factory):
    folder = bert(tmp_path_factory.mktemp("l6"), MINILM_L6)
    export_onnx(folder, folder)
    return folder


def infer(model, *, rows=3, tokens=24, seed=0):
    """Logits of a model for padded rows, in fp32."""
    rng = np.random.default_rng(seed)
    mask = np.ones((rows, tokens), dtype=np.int64)
    mask[-1, tokens // 2 :] = 0
    feed = {
        "input_ids": rng.integers(5, 50, (rows, tokens)),
        "attention_mask": mask,
        "token_type_ids": (np.arange(tokens) > tokens // 3).astype(np.int64)[None].repeat(rows, 0),
    }
    compiled = shared_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = {node.any_name for node in model.inputs}
    return compiled({name: value for name, value in feed.items() if name in names})[0]


def other_architectures():
    """Classifiers with heads and attention of other kinds, each with one label."""
    import transformers as t

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return {
        "electra": (t.ElectraForSequenceClassification, t.ElectraConfig(**small, vocab_size=30522, embedding_size=32)),
        "xlm-roberta": (t.XLMRobertaForSequenceClassification, t.XLMRobertaConfig(**small, vocab_size=30522)),
        "distilbert": (
            t.DistilBertForSequenceClassification,
            t.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64),
        ),
        "bert-relu": (t.BertForSequenceClassification, t.BertConfig(**small, hidden_act="relu")),
        "albert": (t.AlbertForSequenceClassification, t.AlbertConfig(**small, vocab_size=30522, embedding_size=16)),
    }


@pytest.mark.parametrize("name", list(other_architectures()))
def test_the_last_layer_for_one_token_changes_no_logit(name, tmp_path):
    """Whatever the architecture, a graph gives the same logits after the change, or is left as it was."""
    import torch

    kind, config = other_architectures()[name]
    torch.manual_seed(1)
    config.num_labels = 1
    config.initializer_range = 0.2
    folder = tmp_path / "model"
    save(kind(config), folder)
    export_onnx(folder, tmp_path / "exported")
    model = shared_core().read_model(tmp_path / "exported/onnx/model.onnx")
    before = infer(model)
    keep_first_token(model)
    assert before.std() > 1e-3
    np.testing.assert_allclose(infer(model), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", ["small_bert", "small_roberta"])
def test_the_known_models_compute_the_last_layer_for_one_token(request, model):
    """BERT and RoBERTa are recognised: the last feed-forward layer sees one token a row."""
    file = request.getfixturevalue(model) / "onnx/model.onnx"
    graph = shared_core().read_model(file)
    before = infer(graph)
    assert keep_first_token(graph) is True
    ones = [
        node
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "MatMul"
        and node.output(0).get_partial_shape().rank.get_length() == 3
        and node.output(0).get_partial_shape()[1] == openvino.Dimension(1)
    ]
    # Query, attention output and both feed-forward layers.
    assert len(ones) == 4
    np.testing.assert_allclose(infer(graph), before, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(infer(graph, rows=1, tokens=1), infer(shared_core().read_model(file), rows=1, tokens=1))


# Warnings of the converter, which is no part of this package.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_fused_attention_is_recognised(l6):
    """IRs made by optimum hold attention as one operation; they lose the same work."""
    import torch
    from transformers import AutoModelForSequenceClassification

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = AutoModelForSequenceClassification.from_pretrained(l6, attn_implementation="sdpa").eval()

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.model(input_ids, attention_mask, token_type_ids).logits

    example = {name: torch.ones((2, 9), dtype=torch.long) for name in ("input_ids", "attention_mask", "token_type_ids")}
    model = openvino.convert_model(Logits(), example_input=example)
    kinds = Counter(node.get_type_name() for node in model.get_ordered_ops())
    assert kinds["ScaledDotProductAttention"] == 6
    before = infer(model)
    assert keep_first_token(model) is True
    np.testing.assert_allclose(infer(model), before, atol=1e-4, rtol=1e-4)


def test_a_head_that_reads_every_token_keeps_every_token(small_interaction):
    """The bundled model's architecture compares all tokens; nothing of it may be left out."""
    model = shared_core().read_model(small_interaction / "onnx/model.onnx")
    before = infer(model)
    keep_first_token(model)
    np.testing.assert_allclose(infer(model), before, atol=1e-5, rtol=1e-5)


def test_a_head_that_also_reads_the_others_keeps_them(small_bert):
    """Where the first token is taken, but all hidden states are read elsewhere too, nothing is left out."""
    model = shared_core().read_model(small_bert / "onnx/model.onnx")
    (head,) = [node for node in model.get_ops() if node.get_friendly_name().endswith("pooler/Gather")]
    mean = ops.reduce_mean(head.input_value(0), [1, 2], keep_dims=False)
    result = model.get_results()[0]
    both = ops.add(result.input_value(0), ops.unsqueeze(mean, [1]))
    result.input(0).replace_source_output(both.output(0))
    model.validate_nodes_and_infer_types()
    before = infer(model)
    assert keep_first_token(model) is False
    np.testing.assert_allclose(infer(model), before, atol=1e-5, rtol=1e-5)


def test_quantised_weights_stay_close(l6):
    """Eight bits a weight move logits of standard deviation 4 by a fraction, and shrink the layers to a quarter."""
    model = shared_core().read_model(l6 / "onnx/model.onnx")
    assert quantize_weights(model) == 384
    kinds = [node.get_element_type().get_type_name() for node in model.get_ops() if node.get_type_name() == "Constant"]
    assert kinds.count("i8") == 36
    expected = Reranker(l6, backend="openvino", precision="fp32").score(QUERY, PASSAGES)
    found = Reranker(l6, backend="openvino", precision="int8").score(QUERY, PASSAGES)
    assert 0 < np.abs(found - expected).max() < 1.5
    assert np.corrcoef(found, expected)[0, 1] > 0.99


@pytest.mark.skipif("avx512_bf16" not in cpu_features(), reason="needs a processor with bf16")
def test_auto_is_bf16_where_the_processor_has_it(l6):
    """Logits of standard deviation 4 move by some hundredths, and `auto` is the same as asking for bf16."""
    expected = Reranker(l6, backend="openvino", precision="fp32").score(QUERY, PASSAGES)
    found = Reranker(l6, backend="openvino").score(QUERY, PASSAGES)
    assert 0 < np.abs(found - expected).max() < 0.5
    assert np.array_equal(found, Reranker(l6, backend="openvino", precision="bf16").score(QUERY, PASSAGES))


def test_auto_is_fp32_where_only_the_system_speaks_of_bf16(small_bert, monkeypatch):
    """Flags of the processor that openvino does not confirm are no error, unless bf16 was asked for."""
    monkeypatch.setattr("marcorank._models.selection.cpu_features", lambda: frozenset({"avx512_bf16"}))
    monkeypatch.setitem(openvino_backend._PRECISIONS, "bf16", ("bf16", "NOT HERE"))
    others = schedulers()
    with Reranker(small_bert, backend="openvino", threads=1).warm_up():
        assert [scheduler.backend.precision for scheduler in schedulers() - others] == ["fp32"]
    with pytest.raises(InvalidInputError, match="on this processor the openvino backend supports"):
        Reranker(small_bert, backend="openvino", precision="bf16", threads=1).warm_up()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_logit(small_bert, threads):
    """However many threads compute, a logit is the same to the last bit."""
    expected = Reranker(small_bert, backend="openvino", precision="fp32").score(QUERY, PASSAGES)
    found = Reranker(small_bert, backend="openvino", precision="fp32", threads=threads).score(QUERY, PASSAGES)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_ir_alone_is_enough(small_bert, ir_only, precision):
    """A folder with OpenVINO's own format scores as the ONNX file that it was made of."""
    expected = Reranker(small_bert, backend="openvino", precision=precision).score(QUERY, PASSAGES)
    found = Reranker(ir_only, backend="openvino", precision=precision).score(QUERY, PASSAGES)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_an_ir_is_not_read_behind_its_positions(small_roberta, tmp_path):
    """RoBERTa's IR has 130 positions and reads 128 tokens, also where its tokenizer sets no limit."""
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(small_roberta / name, tmp_path / name)
    model = shared_core().read_model(small_roberta / "onnx/model.onnx")
    openvino.save_model(model, tmp_path / "openvino/openvino_model.xml", compress_to_fp16=False)
    expected = Reranker(small_roberta, backend="openvino", precision="fp32").score(QUERY, PASSAGES)
    found = Reranker(tmp_path, backend="openvino", precision="fp32", max_length=1024).score(QUERY, PASSAGES)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_an_int8_ir_of_the_hub_is_read(small_bert, ir_only, tmp_path):
    """Where there is no other file, int8 takes the quantised IR that repositories carry."""
    shutil.copytree(ir_only, tmp_path, dirs_exist_ok=True)
    for end in ("xml", "bin"):
        (tmp_path / f"openvino/openvino_model.{end}").rename(
            tmp_path / f"openvino/openvino_model_qint8_quantized.{end}"
        )
    assert len(Reranker(tmp_path, backend="openvino", precision="int8").rank(QUERY, PASSAGES)) == len(PASSAGES)
    with pytest.raises(ModelLoadError, match=r"has only a file for openvino .*qint8.*precision='int8'"):
        Reranker(tmp_path, backend="openvino", precision="fp32").warm_up()


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("openvino/openvino_model.xml", "cannot be read by OpenVINO"),
        ("openvino/openvino_model.bin", "cannot be read by OpenVINO|cannot compile"),
    ],
)
def test_a_truncated_ir_is_named(ir_only, tmp_path, file, match):
    """Half a file is one clear error with its path."""
    shutil.copytree(ir_only, tmp_path, dirs_exist_ok=True)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelLoadError, match=match):
        Reranker(tmp_path, backend="openvino", precision="fp32").warm_up()


def test_a_truncated_onnx_file_is_named(small_bert, tmp_path):
    """Half an ONNX file is one clear error with its path and what to do."""
    shutil.copytree(small_bert, tmp_path, dirs_exist_ok=True)
    content = (tmp_path / "onnx/model.onnx").read_bytes()
    (tmp_path / "onnx/model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelLoadError, match=r"model.onnx' cannot be read by OpenVINO \(.+\). If it is damaged"):
        Reranker(tmp_path, backend="openvino").warm_up()


def test_an_ir_without_weights_is_no_model(ir_only, tmp_path):
    """The graph without its .bin does not count as a file that is there."""
    shutil.copytree(ir_only, tmp_path, dirs_exist_ok=True)
    (tmp_path / "openvino/openvino_model.bin").unlink()
    with pytest.raises(ModelLoadError, match="has no weights"):
        Reranker(tmp_path, backend="openvino", precision="fp32").warm_up()


@pytest.mark.skipif("arm64" in cpu_features(), reason="ARM computes in fp16")
def test_a_precision_that_the_processor_lacks_names_what_it_can(small_bert):
    """The message lists the precisions that this processor supports."""
    with pytest.raises(
        InvalidInputError, match=r"`precision` is 'fp16'; .*on this processor the openvino backend supports 'fp32'"
    ):
        Reranker(small_bert, backend="openvino", precision="fp16").warm_up()


def test_a_missing_openvino_names_the_command(small_bert):
    """Asked for by name, the backend says what to install; `auto` goes on without it."""
    code = f"""
import sys
sys.modules["openvino"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "openvino" else find(name, *rest)
from marcorank import MissingExtraError, Reranker
print(Reranker({str(small_bert)!r}, precision="fp32").score("q", ["a b"])[0])
try:
    Reranker({str(small_bert)!r}, backend="openvino").warm_up()
except MissingExtraError as error:
    print(error)
"""
    found = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    score, message = found.stdout.splitlines()
    assert float(score) == pytest.approx(float(Reranker(small_bert, backend="onnx").score("q", ["a b"])[0]), abs=1e-4)
    assert message.endswith("pip install 'marcorank[openvino]'")


def test_a_graph_of_one_length_is_refused(small_bert, tmp_path):
    """A graph that was fixed to one shape says so when it is loaded, not at the first passage of another length."""
    shutil.copytree(small_bert, tmp_path, dirs_exist_ok=True)
    model = shared_core().read_model(tmp_path / "onnx/model.onnx")
    model.reshape({node.any_name: [1, 16] for node in model.inputs})
    openvino.save_model(model, tmp_path / "openvino/openvino_model.xml", compress_to_fp16=False)
    (tmp_path / "onnx/model.onnx").unlink()
    with pytest.raises(ModelLoadError, match=r"an input of fixed shape \[1, 16\]"):
        Reranker(tmp_path, backend="openvino", precision="fp32").rank(QUERY, PASSAGES)


def test_nothing_is_reported(small_bert):
    """A fresh process that ranks with openvino never loads the package that reports its use."""
    code = f"""
import sys
from marcorank import Reranker
Reranker({str(small_bert)!r}, backend="openvino").warm_up()
print("openvino" in sys.modules, [name for name in sys.modules if name.startswith("openvino_telemetry")])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert found.stdout == "True []\n"


def test_the_files_that_are_here_are_named(ir_only, tmp_path):
    """`marcorank models` and `doctor` tell an IR and a static int8 file from other weights."""
    shutil.copytree(ir_only, tmp_path, dirs_exist_ok=True)
    settings = RerankerSettings(str(tmp_path), local_files_only=True)
    assert present_files(settings) == ["openvino"]
    shutil.copyfile(tmp_path / "openvino/openvino_model.xml", tmp_path / "openvino/marcorank_int8.xml")
    assert present_files(settings) == ["openvino", "static int8"]


def heads_in_the_batch() -> openvino.Model:
    """A model whose attention joins heads and batch in one axis, as products of three axes need it."""
    rng = np.random.default_rng(0)
    width, heads, each = 16, 4, 4

    def constant(*shape):
        return ops.constant(rng.normal(size=shape).astype(np.float32))

    ids = ops.parameter([-1, -1], np.int64, name="input_ids")
    hidden = ops.gather(constant(50, width), ids, 0)
    tokens = ops.gather(ops.shape_of(ids), [1], 0)

    def projected():
        split = ops.reshape(ops.matmul(hidden, constant(width, width), False, False), [0, 0, heads, each], True)
        shape = ops.concat([ops.constant([-1]), tokens, ops.constant([each])], 0)
        return ops.reshape(ops.transpose(split, [0, 2, 1, 3]), shape, False)

    query, key, value = projected(), projected(), projected()
    mixed = ops.matmul(ops.softmax(ops.matmul(query, key, False, True), -1), value, False, False)
    shape = ops.concat([ops.constant([-1, heads]), tokens, ops.constant([each])], 0)
    joined = ops.transpose(ops.reshape(mixed, shape, False), [0, 2, 1, 3])
    output = ops.add(ops.reshape(joined, [0, 0, width], True), hidden)
    first = ops.reshape(ops.gather(output, [0], 1), [-1, width], False)
    return openvino.Model([ops.matmul(first, constant(width, 1), False, False)], [ids], "heads")


def test_heads_in_the_batch_are_left_alone():
    """An attention of another form than the known one is not mistaken for it."""
    model = heads_in_the_batch()
    before = infer(model, rows=2, tokens=7)
    assert keep_first_token(model) is False
    np.testing.assert_allclose(infer(model, rows=2, tokens=7), before, atol=1e-5)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs pthread_kill")
def test_ctrl_c_is_still_an_exception_after_models_came_and_went(small_bert):
    """Models that were loaded and let go of leave a process that a signal does not kill."""
    code = f"""
import gc, signal, threading
from marcorank import Reranker
for threads in (1, 2, 3):
    reranker = Reranker({str(small_bert)!r}, backend="openvino", threads=threads).warm_up()
del reranker
gc.collect()
try:
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    threading.Event().wait(30)
except KeyboardInterrupt:
    print("interrupted")
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert (found.returncode, found.stdout) == (0, "interrupted\n")
