"""Loading models from folders: what is refused and how it says so, what is shared, what is let go."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest

from fake_backend import schedulers
from marcorank import InvalidInputError, ModelLoadError, Reranker, ScoreError, UnknownModelError
from marcorank._inference.backends.onnx import OnnxBackend
from marcorank._inference.backends.openvino import OpenvinoBackend, shared_core
from marcorank._inference.backends.torch import TorchBackend
from marcorank._inference.cpu import usable_cores
from marcorank._models.catalogue import BUNDLED_MODELS
from marcorank._models.export import export_onnx
from patience import PATIENCE_S
from random_models import QUERY, bert, bundled_folder, passages, save, with_weights_beside

PASSAGES = ["berlin people", "museum"]
BACKENDS = {"onnx": OnnxBackend, "openvino": OpenvinoBackend, "torch": TorchBackend}


def copy(folder, tmp_path, *, without=()):
    target = tmp_path / "model"
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*without))
    return target


def fails(folder, match, **settings):
    with pytest.raises(ModelLoadError, match=match):
        Reranker(folder, **settings).rank(QUERY, PASSAGES)


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch", "auto"])
def test_a_folder_without_weights_says_what_it_holds(small_bert, tmp_path, backend):
    """The message names the folder, what was expected and what was found."""
    folder = copy(small_bert, tmp_path, without=["*.safetensors", "*.onnx"])
    fails(folder, "has no weights: expected .*safetensors or onnx/model.onnx, found .*config.json", backend=backend)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_pickles_are_refused_unless_asked_for(small_bert, tmp_path):
    """A pickle-only folder names the file and the way out; with `allow_pickle` it scores as its safetensors do."""
    import torch
    from safetensors.torch import load_file

    folder = copy(small_bert, tmp_path, without=["*.safetensors", "*.onnx"])
    torch.save(load_file(small_bert / "model.safetensors"), folder / "pytorch_model.bin")
    fails(folder, r"only pickled weights \(pytorch_model.bin\).*allow_pickle=True", backend="torch")
    fails(folder, r"only pickled weights \(pytorch_model.bin\).*allow_pickle=True", backend="auto")
    allowed = Reranker(folder, backend="torch", allow_pickle=True).score(QUERY, PASSAGES)
    np.testing.assert_allclose(allowed, Reranker(small_bert, backend="torch").score(QUERY, PASSAGES), rtol=1e-6)


def test_a_model_with_two_labels_is_no_reranker(tmp_path):
    """Two labels are an error that counts them, not a score from the first."""
    fails(bert(tmp_path / "two", labels=2), "has 2 labels; a reranker needs a model with one logit", backend="torch")


def test_an_embedding_model_is_no_reranker(tmp_path):
    """Where the output layer would be random numbers there is an error and no score."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=1
    )
    save(BertModel(config), tmp_path / "bi-encoder")
    fails(tmp_path / "bi-encoder", "no weights for the output layer .*embedding model", backend="torch")


def test_layers_without_weights_are_no_model(small_bert, tmp_path):
    """Where a layer would be random numbers there is an error and no score."""
    folder = copy(small_bert, tmp_path, without=["onnx"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    fails(folder, r"has no weights for 'bert.encoder.layer.2.*config.json asks for", backend="torch")
    fails(folder, r"has no weights for 'bert.encoder.layer.2.*config.json asks for", backend="auto")


def test_a_model_with_code_of_its_own_runs_from_its_onnx_file_only(small_bert, tmp_path):
    """Its type is that of a BERT, so transformers would load one, and make up the weights that are not there."""
    folder = copy(small_bert, tmp_path)
    config = json.loads((folder / "config.json").read_text())

    def set_code(kind, settings):
        code = {"AutoConfig": settings, "AutoModel": "models.Unused", "AutoModelForSequenceClassification": kind}
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": code}))

    # As jina-reranker-v1-tiny-en and descendants of jina-reranker-v2-base-multilingual have them.
    set_code("modeling_bert.JinaBertForSequenceClassification", "configuration_bert.JinaBertConfig")
    needs = r"needs code from its repository \({}\), .*`backend='onnx'`"
    fails(folder, needs.format("modeling_bert.JinaBertForSequenceClassification"), backend="torch")
    expected = Reranker(small_bert, backend="onnx").score(QUERY, PASSAGES)
    for backend in ("onnx", "openvino"):
        scores = Reranker(folder, backend=backend, precision="fp32").score(QUERY, PASSAGES)
        assert scores == pytest.approx(expected, abs=3e-4)
    set_code("owner/name--modeling_bert.BertForSequenceClassification", "configuration_bert.FlashBertConfig")
    fails(folder, needs.format("configuration_bert.FlashBertConfig"), backend="torch")
    # A repository may keep the code of an architecture that transformers has taken over.
    set_code("owner/name--modeling_bert.BertForSequenceClassification", "configuration_bert.BertConfig")
    scores = Reranker(folder, backend="torch", precision="fp32").score(QUERY, PASSAGES)
    assert scores == pytest.approx(expected, abs=3e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # ModernBERT in transformers 4
def test_a_head_from_pre_training_is_no_output_layer(tmp_path):
    """A masked language model shares a part of its head with a classifier, and still has no weights for the logit."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    config = ModernBertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        pad_token_id=0,
        num_labels=1,
    )
    save(ModernBertForMaskedLM(config), tmp_path / "mlm")
    fails(tmp_path / "mlm", r"no weights for the output layer \(classifier", backend="torch")


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_onnx_file_with_two_labels_is_refused(small_bert, tmp_path, backend):
    """The shape of the graph's output decides, with or without names of labels in the config."""
    import onnx

    folder = copy(small_bert, tmp_path, without=["*.safetensors"])
    model = onnx.load(folder / "onnx/model.onnx")
    logits = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Concat", [logits, logits], ["two"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("two", onnx.TensorProto.FLOAT, ["batch", 2]))
    onnx.save(model, folder / "onnx/model.onnx")
    fails(folder, r"outputs of shapes \[\[('batch'|None), 2\]\]; .*one logit per pair", backend=backend)
    config = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "NO", "1": "YES"}}
    (folder / "config.json").write_text(json.dumps(config))
    fails(folder, r"has 2 labels \('NO', 'YES'\)", backend=backend)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_onnx_file_with_two_outputs_is_refused(small_bert, tmp_path, backend):
    """The graph is checked when it is opened: outputs and their shapes are named."""
    import onnx

    folder = copy(small_bert, tmp_path, without=["*.safetensors"])
    model = onnx.load(folder / "onnx/model.onnx")
    other = onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, ["batch", 1])
    model.graph.node.append(onnx.helper.make_node("Identity", [model.graph.output[0].name], ["other"]))
    model.graph.output.append(other)
    onnx.save(model, folder / "onnx/model.onnx")
    fails(folder, r"outputs of shapes .*needs one output with one logit", backend=backend)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_onnx_file_with_other_inputs_is_refused(small_bert, tmp_path, backend):
    """A graph that is no sequence classifier names its inputs."""
    import onnx

    folder = copy(small_bert, tmp_path, without=["*.safetensors"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["pixels"], ["logits"])],
        "other",
        [value("pixels", onnx.TensorProto.FLOAT, ["batch", 1])],
        [value("logits", onnx.TensorProto.FLOAT, ["batch", 1])],
    )
    onnx.save(
        onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 17)]),
        folder / "onnx/model.onnx",
    )
    fails(folder, r"has the inputs \['pixels'\]; expected input_ids", backend=backend)


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("onnx/model.onnx", "cannot be read as an ONNX model.*download or export it again"),
        ("tokenizer.json", "cannot be read as a tokenizer"),
        ("config.json", "is not valid JSON"),
    ],
)
def test_a_damaged_file_is_named(small_bert, tmp_path, file, match):
    """A truncated file gives one clear error with its path."""
    folder = copy(small_bert, tmp_path)
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    fails(folder, match, backend="onnx")


def test_damaged_safetensors_are_named(small_bert, tmp_path):
    """The torch backend says which folder cannot be loaded, and why."""
    folder = copy(small_bert, tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    fails(folder, "sentence-transformers cannot load .*model", backend="torch")


@pytest.mark.parametrize(
    ("file", "match"), [("tokenizer.json", "no tokenizer.json"), ("config.json", "no config.json")]
)
def test_a_missing_file_is_named(small_bert, tmp_path, file, match):
    """A folder that lacks a part names the part."""
    fails(copy(small_bert, tmp_path, without=[file]), match, backend="onnx")


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_folder_without_a_tokenizer_is_not_scored(small_bert, tmp_path, backend):
    """A checkpoint of a trainer, for which transformers makes a tokenizer without words, names the missing files."""
    folder = copy(small_bert, tmp_path, without=["tokenizer*", "onnx"])
    match = r"(?s)has no vocabulary: .*Expected tokenizer.json or vocab.txt|The folder has no tokenizer.json"
    fails(folder, match, backend=backend)


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
@pytest.mark.parametrize("words", [(), ("\u2581",)])
def test_a_tokenizer_without_words_is_refused(small_bert, tmp_path, backend, words):
    """Such a tokenizer, once saved, is a file like any other, and every text would score the same."""
    from tokenizers import Tokenizer

    folder = copy(small_bert, tmp_path)
    tokenizer = json.loads(Tokenizer.from_file(str(folder / "tokenizer.json")).to_str())
    kept = [token["content"] for token in tokenizer["added_tokens"]] + [*words]
    tokenizer["model"]["vocab"] = {token: tokenizer["model"]["vocab"].get(token, 5) for token in kept}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    fails(folder, r"has no vocabulary: its tokenizer knows only '.*Expected tokenizer.json", backend=backend)


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_a_vocabulary_larger_than_the_embeddings_is_refused(small_bert, tmp_path, backend):
    """A token that has no embedding is an error when the model is loaded, not an index out of range later."""
    from tokenizers import Tokenizer

    folder = copy(small_bert, tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["spree-athen"])
    tokenizer.save(str(folder / "tokenizer.json"))
    match = r"has embeddings for 30522 tokens .*but its tokenizer has ids up to 30522 \('spree-athen'\)"
    fails(folder, match, backend=backend)


def test_a_tokenizer_that_only_transformers_runs_is_refused(tmp_path):
    """A tokenizer without a fast version is named."""
    from transformers import CanineConfig, CanineForSequenceClassification, CanineTokenizer

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = CanineForSequenceClassification(CanineConfig(**sizes, num_hash_buckets=64, num_labels=1))
    model.save_pretrained(tmp_path)
    CanineTokenizer().save_pretrained(tmp_path)
    fails(tmp_path, "has a CanineTokenizer, which has no fast version", backend="torch", precision="fp32")


def test_a_file_is_no_folder(small_bert):
    """The path of a weights file is refused at once, with what is expected."""
    with pytest.raises(UnknownModelError, match="it is a file, not a folder"):
        Reranker(small_bert / "model.safetensors")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"backend": "torch"}, "' is an int8 ONNX file; found `backend='torch'`"),
        ({"precision": "fp32"}, "found .*`precision='fp32'`"),
        ({"device": "tpu"}, "`device` is 'tpu'.*can use 'cpu'"),
        ({"device": "cuda"}, "`device` is 'cuda'.*can use 'cpu'"),
    ],
)
@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_a_bundled_model_names_what_it_can_do(name, settings, match):
    """What the one file cannot do is said with what it can."""
    with pytest.raises(InvalidInputError, match=match):
        Reranker(name, **settings).rank(QUERY, PASSAGES)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"backend": "onnx", "precision": "bf16"},
            "`precision` is 'bf16'; the onnx backend supports 'fp32' and 'int8'",
        ),
        ({"backend": "torch", "precision": "int8"}, "the torch backend supports 'fp32' and 'bf16' and 'fp16'"),
        ({"backend": "openvino", "device": "cuda"}, "`device` is 'cuda'; the openvino backend supports only 'cpu'"),
        ({"backend": "torch", "device": "cuda:0"}, "`device` is 'cuda:0'; torch .* cannot use it on this machine"),
        ({"backend": "torch", "device": "nonsense"}, "`device` is 'nonsense'; torch .* cannot use it on this machine"),
    ],
)
def test_a_backend_names_what_it_can_do(small_bert, settings, match):
    """A precision or device that a backend lacks is an error with those that it has."""
    with pytest.raises(InvalidInputError, match=match):
        Reranker(small_bert, **settings).rank(QUERY, PASSAGES)


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
@pytest.mark.parametrize("long_passages", ["truncate", "windows"])
def test_a_model_that_returns_nan_is_found_out(small_bert, tmp_path, monkeypatch, backend, long_passages):
    """NaN from a local model is an error that names the passage, in windows mode too, and never a last place."""
    reranker = Reranker(small_bert, backend=backend, max_length=32, long_passages=long_passages).warm_up()
    engine = BACKENDS[backend]
    logits = engine.logits

    def broken(self, batch):
        found = logits(self, batch).copy()
        found[batch.attention_mask.sum(axis=1) < 32] = np.nan
        return found

    monkeypatch.setattr(engine, "logits", broken)
    with pytest.raises(ScoreError, match=r"returned nan for `passages\[1\]`"):
        reranker.rank(QUERY, ["museum " * 60, "short"], top_n=1)


def test_one_broken_window_breaks_its_passage(small_bert, monkeypatch):
    """A passage of which a part cannot be scored is not judged by the rest."""
    reranker = Reranker(small_bert, backend="onnx", max_length=32, long_passages="windows").warm_up()
    logits = OnnxBackend.logits
    monkeypatch.setattr(
        OnnxBackend,
        "logits",
        lambda self, batch: logits(self, batch) * np.where(batch.input_ids == 2688, np.nan, 1)[:, -2],
    )
    with pytest.raises(ScoreError, match=r"returned .*nan for `passages\[0\]`"):
        reranker.rank(QUERY, ["museum " * 60 + "wall"])


def test_an_engine_that_fails_is_named(small_bert, monkeypatch):
    """What an engine raises comes as an error of this package, with the size of the batch."""
    reranker = Reranker(small_bert, backend="onnx").warm_up()

    def fail(self, batch):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(OnnxBackend, "logits", fail)
    with pytest.raises(ScoreError, match=r"onnx backend failed on a batch of . x .* tokens on cpu: out of memory"):
        reranker.rank(QUERY, PASSAGES)


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_a_path_means_what_it_means_now(small_bert, tmp_path, monkeypatch, backend):
    """Another folder under the same relative name, or a new file in its place, is another model."""
    other = bert(tmp_path / "b/model", seed=1)
    export_onnx(other, other)
    shutil.copytree(small_bert, tmp_path / "a/model")
    expected = [Reranker(folder, backend=backend).score(QUERY, PASSAGES) for folder in (small_bert, other)]
    alive = []
    for place, scores in zip("ab", expected, strict=True):
        monkeypatch.chdir(tmp_path / place)
        alive.append(Reranker("model", backend=backend))
        assert np.array_equal(alive[-1].score(QUERY, PASSAGES), scores)


def test_int8_needs_a_file(small_bert):
    """Asking for int8 where there is no such file names those that were looked for."""
    fails(small_bert, "no int8 ONNX file for this processor: tried .*model_int8.onnx", backend="onnx", precision="int8")


def test_auto_takes_torch_where_there_is_no_onnx_file(small_bert, tmp_path):
    """With torch installed a folder of safetensors just works."""
    folder = copy(small_bert, tmp_path, without=["*.onnx"])
    assert np.array_equal(
        Reranker(folder).score(QUERY, PASSAGES), Reranker(small_bert, backend="torch").score(QUERY, PASSAGES)
    )
    fails(folder, "no ONNX file .*marcorank models export", backend="onnx")


def test_export_makes_the_onnx_file_that_was_missing(small_bert, tmp_path):
    """After an export the onnx backend finds the file and scores as torch does."""
    folder = copy(small_bert, tmp_path, without=["*.onnx"])
    export_onnx(folder, folder)
    onnx, torch = (
        Reranker(folder, backend=backend, precision="fp32").score(QUERY, passages()) for backend in ("onnx", "torch")
    )
    np.testing.assert_allclose(onnx, torch, atol=3e-4, rtol=0)


@pytest.mark.parametrize(("blocked", "backend"), [("sentence_transformers", "torch"), ("torch", "torch")])
def test_a_missing_extra_names_the_command(small_bert, blocked, backend):
    """Without torch the message holds the pip command; the onnx backend and the bundled model still run."""
    code = f"""
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {blocked!r} else find(name, *rest)
sys.modules[{blocked!r}] = None
from marcorank import MissingExtraError, Reranker
assert len(Reranker({str(small_bert)!r}).rank("q", ["a"])) == 1
assert len(Reranker("bundled").rank("q", ["a"])) == 1
try:
    Reranker({str(small_bert)!r}, backend={backend!r}).rank("q", ["a"])
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert "pip install 'marcorank[torch]'" in done.stdout


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_a_bundled_model_needs_no_torch(name):
    """The first ranking of a fresh process imports neither torch nor transformers, and is a sensible one."""
    code = f"""
import sys
from marcorank import Reranker
ranking = Reranker({name!r}).rank("how do I open a file?", ["Lists are mutable.", "open() opens a file."])
print(ranking[0].index, {{"torch", "transformers"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "1 set()"
    assert done.stderr == ""


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_close_frees_the_weights_at_once(small_bert, tmp_path, backend):
    """They do not wait for the garbage collector, which may not come for a long time."""
    folder = copy(small_bert, tmp_path)
    gc.collect()
    gc.disable()
    try:
        before = set(schedulers())
        reranker = Reranker(folder, backend=backend)
        reranker.rank(QUERY, PASSAGES)
        (engine,) = (weakref.ref(scheduler.backend) for scheduler in set(schedulers()) - before)
        before.clear()
        reranker.close()
        assert engine() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_loads_for_itself():
    """A program that loads the model before it forks: the child ranks and closes without hanging."""
    code = """
import asyncio, os, signal, threading
from pathlib import Path
from marcorank import Reranker
def running():
    others = [task for task in Path("/proc/self/task").glob("*") if task.name != str(threading.get_native_id())]
    return any(task.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "R" for task in others)
shared, dropped = Reranker("bundled"), Reranker("bundled", max_length=64)
texts = ["Lists are mutable.", "open() opens a file."]
expected = shared.rank("how do I open a file?", texts)
asyncio.run(dropped.warm_up().arank("q", texts))
while running():  # until the threads of the engine sleep
    os.sched_yield()
child = os.fork()
if child == 0:
    signal.alarm(600)
    del dropped
    assert asyncio.run(shared.arank("how do I open a file?", texts)) == expected
    shared.close()
    os._exit(0)  # onnxruntime's own clean-up of a child's process hangs
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_weights_beside_a_shared_file_tell_models_apart(small_bert, tmp_path, backend):
    """Two revisions in a cache can share config and graph; their weights are never mixed up."""
    import openvino

    other = bert(tmp_path / "other", seed=1)
    export_onnx(other, other)
    folders = []
    for place, source in zip("ab", (small_bert, other), strict=True):
        folder = copy(source, tmp_path / place, without=["onnx"])
        graph = shared_core().read_model(source / "onnx/model.onnx")
        openvino.save_model(graph, folder / "openvino/openvino_model.xml", compress_to_fp16=False)
        folders.append(folder)
    for name in ("config.json", "openvino/openvino_model.xml"):
        (folders[1] / name).unlink()
        (folders[1] / name).symlink_to(folders[0] / name)
    first, second = (Reranker(folder, backend=backend, precision="fp32") for folder in folders)
    expected = Reranker(other, backend=backend, precision="fp32").score(QUERY, PASSAGES)
    assert not np.allclose(first.score(QUERY, PASSAGES), expected, atol=0.1)
    np.testing.assert_allclose(second.score(QUERY, PASSAGES), expected, atol=1e-4)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_weights_beside_a_graph_belong_to_it(small_bert, tmp_path, backend):
    """Changed weights are another model, and a link to the graph alone finds them where it leads."""
    folder = with_weights_beside(small_bert, tmp_path / "large", "w.0", "w.1")
    first = Reranker(folder, backend=backend, precision="fp32").warm_up()
    expected = first.score(QUERY, PASSAGES)
    linked = copy(folder, tmp_path, without=["onnx"])
    (linked / "model.onnx").symlink_to(folder / "onnx/model.onnx")
    assert np.array_equal(Reranker(linked, backend=backend, precision="fp32").score(QUERY, PASSAGES), expected)
    for name in ("w.0", "w.1"):
        weights = np.fromfile(folder / "onnx" / name, dtype=np.float32)
        (folder / "onnx" / name).unlink()
        (weights * 1.5).tofile(folder / "onnx" / name)
    second = Reranker(folder, backend=backend, precision="fp32").score(QUERY, PASSAGES)
    assert not np.allclose(second, expected, atol=0.1)


@pytest.mark.parametrize("backend", ["onnx", "openvino", "auto"])
def test_weights_may_be_links_to_another_folder(small_bert, tmp_path, backend):
    """Large files that were moved to another disk are still a part of the model, and nothing is left in its folder."""
    folder = with_weights_beside(small_bert, tmp_path / "large", "weights")
    (tmp_path / "disk").mkdir()
    (folder / "onnx/weights").rename(tmp_path / "disk/weights")
    (folder / "onnx/weights").symlink_to(tmp_path / "disk/weights")
    expected = Reranker(small_bert, backend="onnx").score(QUERY, PASSAGES)
    np.testing.assert_allclose(
        Reranker(folder, backend=backend, precision="fp32").score(QUERY, PASSAGES), expected, atol=1e-4
    )
    assert {path.name for path in (folder / "onnx").iterdir()} == {"model.onnx", "weights"}


@pytest.mark.parametrize("location", ["../weights", "/weights", "C:weights", "more/../../weights"])
@pytest.mark.parametrize("backend", ["onnx", "openvino", "auto"])
def test_weights_elsewhere_are_refused(small_bert, tmp_path, backend, location):
    """A graph is read with files of its own folder only."""
    folder = with_weights_beside(small_bert, tmp_path / "large", "weights")
    graph = (folder / "onnx/model.onnx").read_bytes()
    old, new = (b"\n\x08location\x12" + bytes([len(name)]) + name.encode() for name in ("weights", location))
    assert old in graph
    # Lengths around the name would have to change with it, but it is looked for before the rest is read.
    (folder / "onnx/model.onnx").write_bytes(graph.replace(old, new))
    fails(folder, r"names '.*weights' as a file with its weights; expected a file in its own folder", backend=backend)


def test_all_cores_by_name_share_the_weights_with_none(small_bert):
    """`threads=None` means the cores that there are, and so does their number."""
    gc.collect()
    others = schedulers()
    kept = [Reranker(small_bert, backend="onnx", threads=threads).warm_up() for threads in (None, usable_cores())]
    assert len(schedulers() - others) == 1
    for reranker in kept:
        reranker.close()


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
def test_rerankers_with_the_same_settings_share_the_weights(small_bert, backend):
    """Two rerankers hold one model; it is freed when both are closed."""
    gc.collect()
    others = schedulers()
    first, second = (Reranker(small_bert, backend=backend, max_length=length).warm_up() for length in (64, 128))
    (weights,) = map(weakref.ref, schedulers() - others)
    first.close()
    gc.collect()
    assert weights() is not None
    second.close()
    gc.collect()
    assert weights() is None


def test_cuts_are_reported_in_the_log(small_bert, caplog):
    """Cuts are flagged in every result; a cut query is logged every time, cut passages once."""
    reranker = Reranker(small_bert, max_length=32, backend="onnx")
    with caplog.at_level(logging.WARNING, logger="marcorank"):
        for _ in range(2):
            ranking = reranker.rank("berlin " * 40, ["museum " * 40, "wall"])
            assert ranking.query_truncated
            assert {result.index: result.truncated for result in ranking} == {0: True, 1: False}
    assert len(caplog.records) == 3
    assert "A query is longer than 14 tokens" in caplog.text
    assert "does not fit into 32 tokens" in caplog.text


@pytest.mark.parametrize("cache_size", [0, 10])
def test_unknown_tokens_are_reported(caplog, cache_size):
    """The number is in every result, from the cache too; texts that are mostly unknown are logged once of each kind."""
    reranker = Reranker("bundled", cache_size=cache_size)
    passages = ["a" * 101, "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35" * 20, "the wall and " + "b" * 200, "the wall"]
    with caplog.at_level(logging.WARNING, logger="marcorank"):
        for query in ("\U00013000", "\U00013000", QUERY):
            ranking = reranker.rank(query, passages)
            assert {result.index: result.unknown_tokens for result in ranking} == {0: 1, 1: 1, 2: 1, 3: 0}
            assert not any(result.truncated for result in ranking)
    of_query, of_passage = [record.getMessage() for record in caplog.records]
    assert "Half or more of the tokens of a query are unknown" in of_query
    assert "Half or more of the tokens of a passage are unknown" in of_passage


def test_windows_find_what_truncation_cannot_see(small_bert):
    """The best window decides, its span points at it, and it scores as that text alone."""
    reranker = Reranker(small_bert, max_length=64, backend="onnx", long_passages="windows")
    text = passages()[-1]
    best = reranker.rank(QUERY, [text, "short"])
    by_index = {result.index: result for result in best}
    assert by_index[1].span == (0, len("short"))
    start, end = by_index[0].span
    assert by_index[0].truncated is False
    assert 0 < end - start < len(text)
    alone = reranker.score(QUERY, [text[start:end]])
    np.testing.assert_allclose(by_index[0].logit, alone[0], atol=3e-4)
    cut = Reranker(small_bert, max_length=64, backend="onnx").score(QUERY, [text])
    assert by_index[0].logit >= cut[0] - 3e-4


def test_a_language_model_scores_through_predict(tmp_path):
    """A cross-encoder that writes its own prompt loads as in sentence-transformers, and scores the same."""
    from sentence_transformers import CrossEncoder, __version__
    from torch.nn import Identity

    folder = language_model(tmp_path)
    if tuple(map(int, __version__.split(".")[:2])) < (5, 4):
        fails(folder, r"pip install 'sentence-transformers>=5\.4'", backend="torch")
        return

    expected = CrossEncoder(str(folder), device="cpu").predict(
        [(QUERY, text) for text in PASSAGES], activation_fn=Identity(), show_progress_bar=False
    )
    ranking = Reranker(folder, backend="torch", precision="fp32").rank(QUERY, PASSAGES)
    by_index = [result.logit for result in sorted(ranking, key=lambda result: result.index)]
    np.testing.assert_allclose(by_index, expected, atol=3e-4)
    assert ranking[0].truncated is False
    assert ranking[0].unknown_tokens is None
    with pytest.raises(InvalidInputError, match=r"`special_tokens` is 'text'; .*does not support it\. Leave it out"):
        Reranker(folder, backend="torch", special_tokens="text").warm_up()


def language_model(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30522,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=101,
        eos_token_id=102,
    )
    folder = tmp_path / "lm"
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(bundled_folder() / "tokenizer.json", folder / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("limit", [float("inf"), 1e30])
def test_a_tokenizer_without_a_limit_has_that_of_the_settings(small_bert, tmp_path, limit):
    """Infinity and huge numbers, which JSON files of tokenizers hold, mean that there is no limit."""
    folder = tmp_path / "model"
    shutil.copytree(small_bert, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    assert len(Reranker(folder, backend="onnx").rank("q", ["a", "b"])) == 2
