"""Cross-encoders that sentence-transformers saves with modules, prompts or chat templates."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from sentence_transformers import CrossEncoder

from marcorank import InvalidInputError, ModelLoadError, Reranker
from marcorank._inference.backends.openvino import complete, shared_core
from marcorank._inference.backends.openvino_graph import keep_first_token
from marcorank._inference.cpu import cpu_features
from marcorank._inference.head import POOLING_MODES
from marcorank._models.export import export_onnx
from marcorank._models.loading import LocalFolder
from marcorank._models.modules import read_modules
from marcorank.cli import main
from random_architectures import random_modular
from random_models import (
    BATCH_SIZE,
    MINILM_L6,
    QUERY,
    Shape,
    bert,
    bi_encoder,
    bundled_folder,
    export_encoder,
    modular,
    passages,
)

PASSAGES = passages(12, seed=3)
PROMPT = "Judge the relevance: "
TOLERANCE = 3e-4
BACKENDS = ("torch", "onnx", "openvino")


def predict(folder, texts=PASSAGES, query=QUERY, *, max_length=512, **options):
    model = CrossEncoder(str(folder), device="cpu", max_length=max_length)
    pairs = [(query, text) for text in texts]
    return model.predict(
        pairs, activation_fn=torch.nn.Identity(), batch_size=BATCH_SIZE, show_progress_bar=False, **options
    )


def scores(folder, texts=PASSAGES, query=QUERY, **settings):
    return np.array(Reranker(folder, **{"precision": "fp32", **settings}).score(query, texts))


def changed(folder, target, file, **values):
    """A copy of a folder with other values in a JSON file."""
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps({**content, **values}))
    return target


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A modular cross-encoder as the hub has it: the ONNX file holds the encoder alone."""
    return export_encoder(modular(tmp_path_factory.mktemp("modules")))


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    """A plain BERT cross-encoder that was saved with a prompt, and exported."""
    start = bert(tmp_path_factory.mktemp("start"))
    folder = tmp_path_factory.mktemp("prompted")
    prompts = {"rank": PROMPT, "other": "Something else. "}
    CrossEncoder(str(start), device="cpu", prompts=prompts, default_prompt_name="rank").save_pretrained(str(folder))
    export_onnx(folder, folder)
    return folder


class TestModules:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_scores(self, modules, backend):
        """The head beside the encoder's graph gives the logits of sentence-transformers."""
        expected = predict(modules)
        assert 3 < expected.std() < 5
        assert np.abs(scores(modules, backend=backend) - expected).max() < TOLERANCE

    @pytest.mark.parametrize("pooling", [*POOLING_MODES, ("mean", "max")], ids=str)
    def test_pooling(self, tmp_path, pooling):
        """Every pooling mode on every backend, in batches of different lengths."""
        folder = export_encoder(modular(tmp_path, pooling=pooling))
        expected = predict(folder)
        for backend in BACKENDS:
            assert np.abs(scores(folder, backend=backend) - expected).max() < TOLERANCE, backend

    def test_export(self, modules, tmp_path):
        """An exported file is complete: it needs no head beside it, and is the same on each backend."""
        export_onnx(modules, tmp_path)
        session = onnxruntime.InferenceSession(tmp_path / "onnx/model.onnx")
        assert [output.name for output in session.get_outputs()] == ["logits"]
        expected = predict(modules)
        for backend in ("onnx", "openvino"):
            assert np.abs(scores(tmp_path, backend=backend) - expected).max() < TOLERANCE

    def test_quantize(self, modules, tmp_path):
        """So is a quantised one."""
        lines = [json.dumps({"query": QUERY, "passages": PASSAGES})] * 2
        (tmp_path / "calibration.jsonl").write_text("\n".join(lines))
        given = ["--calibrate", str(tmp_path / "calibration.jsonl"), "--output", str(tmp_path / "out")]
        assert main(["models", "quantize", str(modules), *given]) == 0
        model = shared_core().read_model(tmp_path / "out/openvino/marcorank_int8.xml")
        assert [output.any_name for output in model.outputs] == ["logits"]
        found = scores(tmp_path / "out", backend="openvino", precision="int8")
        assert np.corrcoef(found, predict(modules))[0, 1] > 0.98

    @pytest.mark.parametrize(("pooling", "changed"), [("cls", True), ("mean", False)])
    def test_last_layer(self, tmp_path, pooling, changed):
        """Where only the first token is read, openvino computes the last layer for it alone, as in a classifier."""
        file = export_encoder(modular(tmp_path, pooling=pooling)) / "onnx/model.onnx"
        head = read_modules(LocalFolder(tmp_path, "model")).head
        graph, added = complete(shared_core().read_model(file), file, head)
        assert added
        assert keep_first_token(graph) is changed

    def test_last_layer_with_rotary_positions(self, tmp_path):
        """ModernBERT turns its queries by their position; the layer behind that runs on one token all the same."""
        folder = random_modular("modernbert", tmp_path, pooling="cls", activation="GELU")
        export_onnx(folder, folder)
        graph = shared_core().read_model(folder / "onnx/model.onnx")
        assert keep_first_token(graph)
        for text in (PASSAGES[-1], "short"):
            expected = predict(folder, [text], max_length=64)
            found = scores(folder, [text], backend="openvino", max_length=64)
            assert np.abs(found - expected).max() < TOLERANCE

    def test_precision(self, tmp_path):
        """In bf16, where there is bf16, and int8, logits are about as close to fp32 as a plain classifier's."""
        folders = {
            "modular": export_encoder(modular(tmp_path / "modular", shape=MINILM_L6)),
            "plain": bert(tmp_path / "plain", MINILM_L6),
        }
        export_onnx(folders["plain"], folders["plain"])
        for precision in ("bf16", "int8") if "avx512_bf16" in cpu_features() else ("int8",):
            differences = {}
            for kind, folder in folders.items():
                exact = scores(folder, backend="openvino")
                found = scores(folder, backend="openvino", precision=precision)
                differences[kind] = np.abs(found - exact).mean() / exact.std()
            assert differences["modular"] < 1.5 * differences["plain"]

    def test_torch_keeps_the_head_in_fp32(self, modules):
        """In bf16, logits around 10 would be multiples of 1/16, and many of them equal."""
        found = scores(modules, PASSAGES[:12], backend="torch", precision="bf16")
        assert len(np.unique(found)) == 12
        assert np.abs(found - predict(modules, PASSAGES[:12])).mean() < 0.3


class TestNotUnderstood:
    """What onnx and openvino cannot follow is left to torch, or refused with the reason."""

    @pytest.mark.parametrize(
        ("file", "values", "reason"),
        [
            ("1_Pooling/config.json", {"include_prompt": False}, "its pooling leaves the prompt out"),
            (
                "sentence_bert_config.json",
                {"do_lower_case": True},
                "its sentence_bert_config.json sets `do_lower_case`",
            ),
            (
                "2_Dense/config.json",
                {"activation_function": "torch.nn.modules.activation.CELU"},
                "its module 'Dense' has the activation 'torch.nn.modules.activation.CELU'",
            ),
            (
                "4_Dense/config.json",
                {"module_input_name": "token_embeddings"},
                "its module 'Dense' does not read the output of the module before it",
            ),
        ],
    )
    def test_reason(self, modules, tmp_path, file, values, reason, capsys):
        folder = changed(modules, tmp_path / "model", file, **values)
        for backend in ("onnx", "openvino"):
            with pytest.raises(ModelLoadError, match=re.escape(reason) + r"\. Use `backend='torch'`"):
                Reranker(folder, backend=backend).warm_up()
        with pytest.raises(ModelLoadError, match=re.escape(reason)):
            export_onnx(folder, tmp_path / "exported")
        main(["doctor", "--model", str(folder)])
        shown = " ".join(capsys.readouterr().out.split())
        assert f"(only torch can run this model: {reason}" in shown

    @pytest.mark.parametrize("pooling", ["mean", "cls"])
    def test_auto_takes_torch(self, tmp_path, pooling):
        """The tokens of the prompt are read, and left out of the pooling."""
        prompts = {"prompts": {"rank": PROMPT}, "default_prompt_name": "rank"}
        folder = export_encoder(modular(tmp_path, pooling=pooling, include_prompt=False, **prompts))
        assert np.abs(scores(folder) - predict(folder)).max() < TOLERANCE
        instructed = predict(folder, prompt="Another one. ")
        assert np.abs(scores(folder, instruction="Another one. ") - instructed).max() < TOLERANCE

    def test_a_bi_encoder_is_refused(self, tmp_path):
        """Also one with a list of modules."""
        from sentence_transformers import SentenceTransformer

        start = bi_encoder(tmp_path / "start")
        SentenceTransformer(str(start), device="cpu").save_pretrained(str(tmp_path / "model"))
        export_encoder(tmp_path / "model")
        for backend in BACKENDS:
            with pytest.raises(ModelLoadError):
                Reranker(tmp_path / "model", backend=backend).warm_up()


class TestDamaged:
    """A folder that sentence-transformers refuses, or that could be read in two ways, is refused by name."""

    @pytest.mark.parametrize(
        "file",
        [
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "3_LayerNorm/config.json",
            "3_LayerNorm/model.safetensors",
        ],
    )
    def test_a_missing_or_damaged_file_is_named(self, modules, tmp_path, file):
        folder = shutil.copytree(modules, tmp_path / "model")
        (folder / file).write_bytes(b"\xff")
        with pytest.raises(ModelLoadError, match=re.escape(file)):
            Reranker(folder, backend="onnx").warm_up()
        (folder / file).unlink()
        with pytest.raises(ModelLoadError, match=re.escape(file)):
            Reranker(folder, backend="onnx").warm_up()

    @pytest.mark.parametrize(
        ("file", "values", "message"),
        [
            ("2_Dense/config.json", {"out_features": 5}, "`linear.weight` .* is of shape .*; expected shape"),
            ("2_Dense/config.json", {"in_features": 5}, "has 5 `in_features` .* has 32 outputs"),
            ("1_Pooling/config.json", {"embedding_dimension": "wide"}, "expected the width of the encoder"),
            ("config_sentence_transformers.json", {"prompts": ["a"]}, "`prompts` in .*; expected an object"),
            ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "expected one of `prompts`"),
            (
                "config_sentence_transformers.json",
                {"default_prompt_name": "x", "prompts": {"x": 3}},
                "The prompt 'x' in .* is 3; expected a string",
            ),
            ("sentence_bert_config.json", {"max_seq_length": "128"}, "`max_seq_length` in .* expected a number of"),
            ("sentence_bert_config.json", {"max_seq_length": -1}, "`max_seq_length` in .* expected a number of"),
            ("sentence_bert_config.json", {"modality_config": 3}, "`modality_config` in .*; expected an object"),
            ("tokenizer_config.json", {"model_max_length": "512"}, "`model_max_length` in .* expected a number of"),
        ],
    )
    @pytest.mark.parametrize("backend", ["onnx", "openvino"])
    def test_values(self, modules, tmp_path, backend, file, values, message):
        folder = changed(modules, tmp_path / "model", file, **values)
        with pytest.raises(ModelLoadError, match=message):
            Reranker(folder, backend=backend).warm_up()

    @pytest.mark.parametrize(
        ("module", "name", "shape"),
        [
            ("2_Dense", "linear.bias", None),
            ("2_Dense", "linear.bias", (1,)),
            ("2_Dense", "linear.weight", (32,)),
            ("3_LayerNorm", "norm.weight", (1,)),
            ("3_LayerNorm", "norm.bias", None),
        ],
    )
    def test_weights(self, modules, tmp_path, module, name, shape):
        """A weight that is missing, or that numpy would broadcast."""
        from safetensors.torch import load_file, save_file

        folder = shutil.copytree(modules, tmp_path / "model")
        weights = load_file(folder / module / "model.safetensors")
        if shape is None:
            del weights[name]
        else:
            weights[name] = torch.ones(shape)
        save_file(weights, folder / module / "model.safetensors")
        for backend in BACKENDS:
            with pytest.raises(ModelLoadError, match=re.escape(name)):
                Reranker(folder, backend=backend).warm_up()

    @pytest.mark.parametrize("layers", [1, 3])
    def test_layers(self, tmp_path, layers):
        """Layers of the encoder that no file holds would be random numbers."""
        folder = changed(modular(tmp_path / "start"), tmp_path / "model", "config.json", num_hidden_layers=layers)
        if layers == 1:
            Reranker(folder, backend="torch").warm_up()
            return
        with pytest.raises(ModelLoadError, match=r"no weights for 'encoder\.layer\.2"):
            Reranker(folder, backend="torch").warm_up()
        with pytest.raises(ModelLoadError, match=r"no weights for 'encoder\.layer\.2"):
            export_onnx(folder, tmp_path / "exported")

    @pytest.mark.parametrize("path", ["../evil", "/evil", "C:evil"])
    def test_folders_elsewhere(self, modules, tmp_path, path):
        """Modules are in the model's folder; nothing outside of it is read or written."""
        folder = shutil.copytree(modules, tmp_path / "model")
        listed = json.loads((folder / "modules.json").read_text())
        listed[2]["path"] = path
        (folder / "modules.json").write_text(json.dumps(listed))
        for backend in ("onnx", "openvino"):
            with pytest.raises(ModelLoadError, match="as the folder of a module; expected a folder inside its own"):
                Reranker(folder, backend=backend).warm_up()

    def test_a_head_for_another_encoder(self, tmp_path):
        """The widths of a graph and a head have to agree."""
        wide = export_encoder(modular(tmp_path / "wide", shape=Shape(2, 64, 2, 64)))
        narrow = modular(tmp_path / "narrow")
        shutil.copytree(wide / "onnx", narrow / "onnx")
        for backend in ("onnx", "openvino"):
            with pytest.raises(ModelLoadError, match=r"last_hidden_state of shape \(batch, tokens, 32\)"):
                Reranker(narrow, backend=backend).warm_up()

    def test_a_changed_head_is_another_model(self, tmp_path):
        """Also where another reranker still has the old one loaded, and onnx would not understand it."""
        from safetensors.torch import load_file, save_file

        folder = modular(tmp_path, include_prompt=False)
        before = Reranker(folder, backend="torch", precision="fp32")
        old = np.array(before.score(QUERY, PASSAGES))
        weights = load_file(folder / "4_Dense/model.safetensors")
        save_file({name: 2 * value for name, value in weights.items()}, folder / "4_Dense/model.safetensors")
        assert np.abs(scores(folder, backend="torch") - 2 * old).max() < TOLERANCE


class TestPrompts:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_scores(self, prompted, backend):
        """The saved prompt is read before each query, as `predict` does."""
        expected = predict(prompted)
        assert np.abs(expected - predict(prompted, prompt="")).max() > 0.1
        assert np.abs(scores(prompted, backend=backend) - expected).max() < TOLERANCE

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_instruction(self, prompted, backend):
        """An instruction takes the place of the saved prompt; an empty one means none."""
        for instruction in ("Is this an answer? ", ""):
            found = scores(prompted, backend=backend, instruction=instruction)
            assert np.abs(found - predict(prompted, prompt=instruction)).max() < TOLERANCE

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_plain_model_takes_no_instruction(self, small_bert, backend):
        with pytest.raises(InvalidInputError, match=r"`instruction` is 'Judge'; .* was saved without prompts"):
            Reranker(small_bert, backend=backend, instruction="Judge").warm_up()

    def test_the_prompt_counts_and_is_never_truncated(self, prompted):
        """A long query is truncated behind the prompt, and the pair fits into the limit."""
        long_query = " ".join([QUERY] * 40)
        reranker = Reranker(prompted, backend="onnx", precision="fp32", max_length=64, max_query_tokens=5)
        ranking = reranker.rank(long_query, PASSAGES)
        assert ranking.query_truncated
        first_words = " ".join(QUERY.split()[:5])
        assert (
            np.abs(reranker.score(long_query, PASSAGES) - predict(prompted, query=first_words, max_length=64)).max()
            < TOLERANCE
        )

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("max_length", [24, 64])
    def test_windows(self, prompted, backend, max_length):
        """Each window has the prompt before its query, also where little room is left."""
        text = PASSAGES[-1]
        reranker = Reranker(prompted, backend=backend, precision="fp32", max_length=max_length, long_passages="windows")
        best = reranker.rank(QUERY, [text])[0]
        start, end = best.span
        assert abs(best.logit - predict(prompted, [text[start:end]])[0]) < TOLERANCE

    def test_too_long_a_prompt_is_named(self, prompted):
        with pytest.raises(InvalidInputError, match=r"too small for 3 special tokens, the \d+ tokens of the prompt"):
            Reranker(prompted, backend="onnx", max_length=16, instruction="a long instruction " * 8).warm_up()

    def test_special_tokens_in_a_prompt(self, prompted):
        """They are read as such; with `special_tokens="text"` they could not be."""
        instruction = "Judge [SEP] "
        expected = predict(prompted, prompt=instruction)
        found = scores(prompted, backend="onnx", instruction=instruction)
        assert np.abs(found - expected).max() < TOLERANCE
        with pytest.raises(InvalidInputError, match=r"the prompt of the model has the special token '\[SEP\]'"):
            Reranker(prompted, backend="onnx", instruction=instruction, special_tokens="text").warm_up()

    def test_odd_unicode(self, prompted):
        """Half a surrogate pair in an instruction is replaced, as it is in texts."""
        found = scores(prompted, backend="onnx", instruction="\ud800 Judge: ")
        assert np.abs(found - scores(prompted, backend="onnx", instruction="\ufffd Judge: ")).max() == 0

    def test_export_keeps_the_prompt(self, prompted, tmp_path):
        export_onnx(prompted, tmp_path)
        assert np.abs(scores(tmp_path, backend="onnx") - predict(prompted)).max() < TOLERANCE


TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}Instruct: {{ message.content }} {% endif %}"
    "{% if message.role == 'query' %}Query: {{ message.content }} {% endif %}"
    "{% if message.role == 'document' %}Document: {{ message.content }} {% endif %}"
    "{% endfor %}[SEP] Relevant?"
)


def language_model(folder, *, template, causal):
    """A small random Qwen3 with the bundled tokenizer: a classifier, or one that answers yes or no."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=30522,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    (Qwen3ForCausalLM if causal else Qwen3ForSequenceClassification)(config).save_pretrained(folder)
    shutil.copy(bundled_folder() / "tokenizer.json", folder / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, "pad_token": "[PAD]"}
    if template:
        settings["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


class TestLanguageModels:
    @pytest.mark.parametrize("template", [True, False], ids=["template", "pair"])
    @pytest.mark.parametrize("causal", [True, False], ids=["LogitScore", "classifier"])
    def test_scores(self, tmp_path, template, causal):
        """A model with a chat template scores the pair in its template; truncation is reported."""
        folder = language_model(tmp_path, template=template, causal=causal)
        expected = predict(folder, max_length=128)
        ranking = Reranker(folder, precision="fp32").rank(QUERY, PASSAGES)
        found = np.array([result.logit for result in sorted(ranking, key=lambda result: result.index)])
        assert np.abs(found - expected).max() < TOLERANCE
        truncated = [result.index for result in ranking if result.truncated]
        assert len(PASSAGES) - 1 in truncated
        assert not any(len(PASSAGES[index]) < 100 for index in truncated)

    def test_instruction(self, tmp_path):
        """It is the system message of the template."""
        folder = language_model(tmp_path, template=True, causal=False)
        expected = predict(folder, prompt="Find the answer", max_length=128)
        assert np.abs(scores(folder, instruction="Find the answer") - expected).max() < TOLERANCE
        assert np.abs(scores(folder) - expected).max() > 0.01

    @pytest.mark.parametrize("backend", ["onnx", "openvino"])
    def test_graphs_know_no_template(self, tmp_path, backend):
        folder = language_model(tmp_path, template=True, causal=False)
        with pytest.raises(
            ModelLoadError, match=r"cannot run model .*: it has a chat template\. Use `backend='torch'`"
        ):
            Reranker(folder, backend=backend).warm_up()

    @pytest.mark.parametrize(
        ("setting", "value"), [("special_tokens", "text"), ("long_passages", "windows"), ("max_query_tokens", 8)]
    )
    def test_settings_without_effect_are_refused(self, tmp_path, setting, value):
        folder = language_model(tmp_path, template=True, causal=True)
        with pytest.raises(InvalidInputError, match=f"`{setting}` is .*; sentence-transformers makes the tokens of"):
            Reranker(folder, **{setting: value}).warm_up()

    def test_a_template_without_query_and_document_is_refused(self, tmp_path):
        """An ordinary chat template would leave the texts out, and every pair would score the same."""
        folder = language_model(tmp_path, template=True, causal=False)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["chat_template"] = "{% for message in messages %}{{ message.role }}{% endfor %}"
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(ModelLoadError, match="sentence-transformers cannot tokenise a query and a passage"):
            Reranker(folder).warm_up()

    def test_a_query_that_leaves_no_room_is_refused(self, tmp_path):
        """Truncated inside the template, every passage would score the same."""
        folder = language_model(tmp_path, template=True, causal=True)
        with pytest.raises(InvalidInputError, match=r"has \d+ tokens; that leaves none of 128 for a passage"):
            scores(folder, query="how many people " * 60)

    def test_max_length(self, tmp_path):
        """A lower limit is respected as well."""
        folder = language_model(tmp_path, template=True, causal=True)
        expected = predict(folder, max_length=48)
        assert np.abs(scores(folder, max_length=48) - expected).max() < TOLERANCE


class TestLength:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_limit_of_the_model(self, modules, tmp_path, backend):
        """`max_length=None` takes it; the list of modules overrules the tokenizer."""
        folder = changed(modules, tmp_path / "model", "sentence_bert_config.json", max_seq_length=100)
        expected = CrossEncoder(str(folder), device="cpu").predict(
            [(QUERY, text) for text in PASSAGES], activation_fn=torch.nn.Identity()
        )
        assert np.abs(scores(folder, backend=backend, max_length=None) - expected).max() < TOLERANCE
        assert np.abs(scores(modules, backend=backend, max_length=None) - expected).max() > 0.01
