"""`marcorank models quantize`: the file that it makes, who reads it, what is told of it, and what is refused."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import openvino
import pytest
from tokenizers import Tokenizer

from hub_server import HubServer
from marcorank import InvalidInputError, MissingExtraError, ModelLoadError, Reranker
from marcorank._inference.backends.openvino import shared_core
from marcorank._inference.backends.openvino_graph import keep_first_token
from marcorank._inference.pairs import PairEncoder
from marcorank._models.catalogue import CATALOGUE, QUANTIZED_IR_FILE
from marcorank._models.quantization import import_packages, quantize
from marcorank.cli import main
from random_models import QUERY, WORDS, bi_encoder, passages

PASSAGES = passages(12, seed=5)
TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json")
MINILM_L6 = CATALOGUE[3]


def texts(count, *, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=int(size))) for size in rng.integers(3, 40, size=count)]


def requests(queries=6, each=5):
    return [{"query": f"{QUERY} {row}", "passages": texts(each, seed=row)} for row in range(queries)]


def batches(folder, *, count=24):
    """Pairs as a model of this folder reads them."""
    encoder = PairEncoder(Tokenizer.from_file(str(folder / "tokenizer.json")), max_length=128)
    encoded = encoder.encode(QUERY, texts(count, seed=3))
    return [encoder.batch([(encoded.query_ids, window)]) for window in encoded.windows]


@pytest.fixture(scope="module")
def quantised(small_bert, tmp_path_factory):
    """The folder of a quantised model, which tests may copy."""
    folder = tmp_path_factory.mktemp("quantised") / "model"
    quantize(
        small_bert / "onnx/model.onnx", batches(small_bert), folder, texts={name: small_bert / name for name in TEXTS}
    )
    return folder


@pytest.fixture
def model(small_bert, tmp_path):
    """A model's folder that may be changed."""
    return shutil.copytree(small_bert, tmp_path / "model")


@pytest.fixture
def write(tmp_path):
    """Write rows of JSONL and return the path."""

    def write_file(rows, name="queries.jsonl"):
        path = tmp_path / name
        content = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write_file


@pytest.fixture
def run(capsys):
    """Run the command in this process; returns exit status, standard output and standard error."""

    def run_command(*arguments):
        try:
            status = main(["models", "quantize", *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_command


def int8(folder):
    return Reranker(folder, backend="openvino", precision="int8").score(QUERY, PASSAGES)


def test_the_file_takes_the_place_of_int8_made_while_loading(model, write, run):
    """A file in the model's own folder is read by openvino in int8 and by nothing else; who deletes it is back."""
    before, fp32 = int8(model), Reranker(model, backend="openvino", precision="fp32").score(QUERY, PASSAGES)
    config = (model / "config.json").stat()
    status, out, error = run(model, "--calibrate", write(requests()))
    assert (status, error) == (0, "")
    file = model / QUANTIZED_IR_FILE
    assert out.startswith(f"Wrote {file} (")
    assert "calibrated on 30 pairs of 6 queries" in out
    assert f"Use it with: --model {model} --backend openvino --precision int8" in out
    assert out.endswith(f"delete {file}\n")
    found = int8(model)
    assert not np.array_equal(found, before)
    assert 0 < np.abs(found - fp32).max() < 2
    assert np.corrcoef(found, fp32)[0, 1] > 0.97
    assert np.array_equal(Reranker(model, backend="openvino", precision="fp32").score(QUERY, PASSAGES), fp32)
    assert (model / "config.json").stat() == config
    assert not list(model.parent.glob(".*"))
    file.unlink()
    assert np.array_equal(int8(model), before)


def test_the_output_is_a_model_of_its_own(small_bert, tmp_path, write, run):
    """The folder of --output holds all that int8 needs, the source stays as it was, a second run gives the same."""
    before = sorted(small_bert.rglob("*"))
    target = tmp_path / "new" / "with blank"
    arguments = (small_bert, "--calibrate", write(requests(), "queries.jsonl.gz"), "--output", target)
    status, out, error = run(*arguments)
    assert (status, error) == (0, "")
    assert f"Use it with: --model '{target}' --backend" in out
    assert sorted(path.name for path in target.rglob("*") if path.is_file()) == sorted(
        [*TEXTS, "marcorank_int8.bin", "marcorank_int8.xml"]
    )
    first = int8(target)
    assert run(*arguments)[0] == 0
    assert np.array_equal(int8(target), first)
    assert sorted(small_bert.rglob("*")) == before


@pytest.mark.parametrize("kind", ["small_bert", "small_roberta"])
def test_what_is_sensitive_stays_as_it_was(request, kind, tmp_path):
    """Query, key and value have quantised inputs; the products of attention have none."""
    folder = request.getfixturevalue(kind)
    file = quantize(folder / "onnx/model.onnx", batches(folder), tmp_path / "out")
    quantised = Counter()
    for node in shared_core().read_model(file).get_ordered_ops():
        if node.get_type_name() == "MatMul":
            source = node.input_value(0).get_node()
            # Shapes may change between the two.
            while source.get_type_name() in {"Reshape", "Transpose", "Gather", "Multiply"}:
                source = source.input_value(0).get_node()
            quantised[node.get_friendly_name().split("/")[-2], source.get_type_name() == "FakeQuantize"] += 1
    assert quantised["query", True] == quantised["key", True] == quantised["value", True] == 2
    assert quantised["self", False] == 4
    assert quantised["self", True] == 0


@pytest.mark.parametrize("activation", ["gelu", "relu", "gelu_new", "silu"])
def test_the_feed_forward_layer_is_known_by_its_activation(activation, tmp_path):
    """Whatever the activation and however it is made of operations, the product behind it stays as it was."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from marcorank._models.export import export_onnx
    from random_models import save

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    save(BertForSequenceClassification(BertConfig(**size, num_labels=1, hidden_act=activation)), tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "model")
    graph = shared_core().read_model(tmp_path / "model/onnx/model.onnx")
    from marcorank._models.quantization import _kept_in_fp32

    left = [name for name in _kept_in_fp32(graph) if "/layer." in name]
    parts = Counter(name.split("layer.")[1].split("/", 1)[1].rsplit("/", 1)[0] for name in left)
    assert parts == {"attention/self": 4, "output/dense": 2}


def test_the_last_layer_is_computed_for_one_token(quantised):
    """The file keeps what a Reranker would have left out while loading, so that int8 is no slower for it."""
    graph = shared_core().read_model(quantised / QUANTIZED_IR_FILE)
    keep_first_token(graph)
    of_one = [
        node
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "MatMul"
        and node.output(0).get_partial_shape().rank.get_length() == 3
        and node.output(0).get_partial_shape()[1] == openvino.Dimension(1)
    ]
    assert len(of_one) == 4


def test_a_collection_shows_what_it_costs(small_bert, tmp_path, write, run):
    """With judged queries, nDCG of the first stage, of fp32 and of both kinds of int8 is shown, and a comparison."""
    judged = [{**row, "relevant": [row["query"].count("a") % 5]} for row in requests(8, 6)]
    status, out, error = run(
        *(small_bert, "--calibrate", write(requests()), "--output", tmp_path / "out"),
        *("--collection", write(judged, "judged.jsonl"), "--top-k", 5),
    )
    assert (status, error) == (0, "")
    lines = out.splitlines()[3:]
    assert lines[0] == "judged: 8 judged queries, up to 5 candidates each"
    assert lines[1].split() == ["model", "nDCG@10", "difference", "p", "ms/query"]
    assert [line[:18].strip() for line in lines[2:6]] == [
        "first stage",
        "fp32",
        "int8 at load time",
        "int8 of the file",
    ]
    assert re.search(r"int8 of the file against int8 at load time: [+-]0\.\d{4}, p (< )?\d", out)
    assert max(map(len, lines[:-1])) <= 80


def test_at_most_300_pairs_calibrate(small_bert, tmp_path, write, run):
    """Of more pairs, 300 of all queries are used; without judged queries nothing is measured."""
    status, out, _ = run(small_bert, "--calibrate", write(requests(40, 12)), "--output", tmp_path / "out")
    assert status == 0
    assert "calibrated on 300 pairs of 40 queries" in out
    assert "nDCG" not in out


def test_a_model_of_the_hub_is_found_by_its_name(small_bert, tmp_path, write, run):
    """Without --output the file lies where a Reranker of that name looks."""
    server = HubServer()
    server.add(MINILM_L6.name, MINILM_L6.revision, small_bert)
    fetch = ("models", "download", MINILM_L6.name, "--backend", "onnx", "--cache-folder", str(tmp_path / "cache"))
    try:
        subprocess.run(  # noqa: S603
            [sys.executable, "-m", "marcorank", *fetch],
            check=True,
            capture_output=True,
            env={**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"},
        )
    finally:
        server.stop()
    where = {"cache_folder": tmp_path / "cache", "local_files_only": True}
    before = Reranker(MINILM_L6.name, backend="openvino", precision="int8", **where).score(QUERY, PASSAGES)
    status, out, error = run(
        MINILM_L6.name, "--calibrate", write(requests()), "--offline", "--cache-folder", tmp_path / "cache"
    )
    assert (status, error) == (0, "")
    assert f"Use it with: --model {MINILM_L6.name} --backend openvino --precision int8" in out
    after = Reranker(MINILM_L6.name, backend="openvino", precision="int8", **where).score(QUERY, PASSAGES)
    assert not np.array_equal(after, before)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "holds 0 pairs of a query and a passage; expected at least 20"),
        (requests(2, 3), "holds 6 pairs of a query and a passage; expected at least 20, better 300"),
        ([*requests(), "{"], "line 7 is not JSON"),
        ([*requests(), {"query": "no passages"}], "line 7 has no field 'passages'"),
        ([*requests(), {"query": " ", "passages": ["a"]}], "line 7: 'query' is"),
    ],
)
def test_what_cannot_calibrate_is_told(small_bert, write, run, rows, complaint):
    """One line that names the file and what is wrong with it; nothing is written."""
    before = sorted(small_bert.rglob("*"))
    status, out, error = run(small_bert, "--calibrate", write(rows))
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert "queries.jsonl" in error
    assert complaint in error
    assert sorted(small_bert.rglob("*")) == before


def test_models_that_cannot_be_quantised_are_told(small_bert, tmp_path, write, run):
    """The bundled model, one with torch weights alone, one with two labels and a folder of nothing: a line each."""
    calibrate = ("--calibrate", write(requests()))
    torch_only = shutil.copytree(small_bert, tmp_path / "torch", ignore=shutil.ignore_patterns("onnx"))
    labels = shutil.copytree(small_bert, tmp_path / "labels")
    config = json.loads((labels / "config.json").read_text())
    (labels / "config.json").write_text(json.dumps({**config, "id2label": {"0": "no", "1": "yes"}}))
    (tmp_path / "empty").mkdir()
    for name, complaint in {
        "bundled": "'bundled' is int8 already",
        "bundled-tiny": "'bundled-tiny' is int8 already",
        torch_only: f"`marcorank models export {torch_only}`",
        labels: "has 2 labels ('no', 'yes')",
        tmp_path / "empty": "has no weights",
        "no-such-model": "Model 'no-such-model' is unknown",
    }.items():
        status, out, error = run(name, *calibrate)
        assert (status, out, error.count("\n")) == (1, "", 1)
        assert complaint in error


def test_an_output_that_cannot_be_written_is_told_at_once(small_bert, tmp_path, write, run):
    """A file in the way, as the folder or above it, costs no minutes of quantising."""
    (tmp_path / "file").write_text("here already")
    for output, complaint in {"file": "is a file; expected a folder", "file/sub": "cannot be written"}.items():
        status, out, error = run(small_bert, "--calibrate", write(requests()), "--output", tmp_path / output)
        assert (status, out) == (1, "")
        assert complaint in error


@pytest.mark.parametrize("wrong", ["text", KeyboardInterrupt])
def test_a_run_that_breaks_off_leaves_nothing(small_bert, quantised, tmp_path, monkeypatch, wrong):
    """Neither a folder half written nor one beside it; and a file that was there already stays whole."""
    target = shutil.copytree(quantised, tmp_path / "out")
    graph, pairs = small_bert / "onnx/model.onnx", batches(small_bert)
    texts_of = {name: small_bert / name for name in TEXTS}
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    if wrong == "text":
        with pytest.raises(OSError, match="gone"):
            quantize(graph, pairs, target, texts={**texts_of, "gone": tmp_path / "gone"})
    else:

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(openvino, "save_model", interrupt)
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            quantize(graph, pairs, target, texts=texts_of)
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            quantize(graph, pairs, tmp_path / "other", texts=texts_of)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert os.listdir(tmp_path) == ["out"]  # noqa: PTH208 -- what is hidden, too


def test_a_graph_that_is_no_graph_is_named(tmp_path, small_bert):
    """A damaged file is a ModelLoadError with its path."""
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelLoadError, match=r"model\.onnx' cannot be quantised"):
        quantize(tmp_path / "model.onnx", batches(small_bert), tmp_path / "out")
    with pytest.raises(InvalidInputError, match="is a file"):
        quantize(tmp_path / "model.onnx", batches(small_bert), tmp_path / "model.onnx")


# Warnings of the converter, which is no part of this package.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_bi_encoder_is_no_reranker(tmp_path, small_bert, write, run):
    """A graph whose output is hidden states is refused as by a Reranker."""
    import torch
    from transformers import AutoModel

    folder = bi_encoder(tmp_path / "bi")
    (folder / "onnx").mkdir()
    example = {name: torch.ones((2, 9), dtype=torch.long) for name in ("input_ids", "attention_mask")}
    model = openvino.convert_model(
        AutoModel.from_pretrained(folder, attn_implementation="eager"), example_input=example
    )
    openvino.save_model(model, folder / "openvino/openvino_model.xml")
    status, out, error = run(folder, "--calibrate", write(requests()))
    assert (status, out) == (1, "")
    assert "openvino_model.xml" in error


@pytest.mark.parametrize("package", ["nncf", "scipy"])
def test_a_missing_package_names_the_extra(small_bert, write, run, monkeypatch, package, tmp_path):
    """A missing package is an error before anything is done, with the pip command."""
    if package == "nncf":
        monkeypatch.setitem(sys.modules, "nncf", None)
        with pytest.raises(MissingExtraError, match="nncf"):
            import_packages()
    else:
        find = __import__("importlib.util").util.find_spec
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find(name))
    calibrate = ("--calibrate", write(requests()), "--collection", tmp_path)
    status, out, error = run(small_bert, *calibrate, "--output", tmp_path / "out")
    assert (status, out) == (1, "")
    assert error.endswith("pip install 'marcorank[quantize]'\n")
    assert not (tmp_path / "out").exists()


def test_nothing_is_sent_printed_or_left_in_the_home_folder(small_bert, tmp_path, write):
    """A run opens no connection, starts no process, writes nothing at home, shows no bar and restores the loggers."""
    home = tmp_path / "home"
    home.mkdir()
    arguments = ["models", "quantize", str(small_bert), "--calibrate", str(write(requests()))]
    code = f"""
import logging, multiprocessing, socket, sys
def stop(*_, **__):
    print("someone connects")
    raise OSError
socket.socket.connect = multiprocessing.Process.start = stop
from marcorank.cli import main
status = main({[*arguments, "--output", str(tmp_path / "out")]!r})
import rich
assert logging.getLoggerClass() is logging.Logger and rich.get_console().file is sys.stdout
assert "openvino_telemetry" not in sys.modules
sys.exit(status)
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    found = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "HOME": str(home)},
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith(f"Wrote {tmp_path}")
    assert "someone connects" not in found.stdout
    assert not list(home.rglob("*"))
    assert logging.getLoggerClass() is logging.Logger
