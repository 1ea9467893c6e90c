"""The scripts that make the bundled model of a bi-encoder and a SPLADE model, with small random ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sentence_transformers import CrossEncoder

import marcorank.interaction  # noqa: F401  # registers the architecture with transformers
from compressed_files import write_rows
from marcorank import Reranker
from marcorank._models.loading import load_scorer
from marcorank.evaluation import evaluate
from marcorank.settings import RerankerSettings
from random_models import SMALL, Shape, bi_encoder, masked_language_model, passages, splade

SCRIPTS = Path(__file__).parents[2] / "scripts"
# Narrow, but with a table of words that is large enough to be rounded.
NARROW = Shape(2, 36, 2, 72)
TEXTS = [text for text in passages() if text.strip() and len(text) < 600]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both models, a training set, a judged collection, and the source of `bundled` before its logits are scaled."""
    folder = tmp_path_factory.mktemp("bundled")
    bi_encoder(folder / "bi-encoder", NARROW)
    splade(folder / "splade", NARROW)
    rows = [{"id": f"p{number}", "text": text} for number, text in enumerate(TEXTS)]
    doc_ids = [row["id"] for row in rows]
    questions = [
        {"query": " ".join(row["text"].split()[:6]), "pos": [row["id"]], "neg": [i for i in doc_ids if i != row["id"]]}
        for row in rows
    ]
    queries = [{"id": row["id"], "text": question["query"]} for row, question in zip(rows, questions, strict=True)]
    write_rows(folder / "set" / "corpus.jsonl.gz", rows)
    write_rows(folder / "set" / "train.jsonl.gz", questions)
    write_rows(folder / "judged" / "corpus.jsonl.gz", rows)
    write_rows(folder / "judged" / "queries.jsonl.gz", queries)
    (folder / "judged" / "qrels.tsv").write_text("".join(f"{doc_id}\t{doc_id}\t1\n" for doc_id in doc_ids))
    (folder / "judged" / "run.tsv").write_text(
        "".join(f"{query_id}\t{doc_id}\t{rank}\n" for query_id in doc_ids for rank, doc_id in enumerate(doc_ids, 1))
    )
    done = run(
        "initialise_bundled.py", folder / "bi-encoder", folder / "splade", folder / "set", "--output", folder / "source"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def logits(source: Path) -> np.ndarray:
    model = CrossEncoder(str(source), device="cpu")
    queries = [" ".join(text.split()[:6]) for text in TEXTS]
    return model.predict([(query, text) for query in queries for text in TEXTS]).reshape(len(queries), -1)


def test_the_file_in_the_wheel_ranks_as_its_source(folder):
    """Scaled logits have standard deviation 4 and the same order; the int8 file has them too, and tables only once."""
    before = logits(folder / "source")
    done = run("calibrate_bundled.py", folder / "source", folder / "set", "--queries", 100)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{len(TEXTS)} queries" in done.stdout
    after = logits(folder / "source")
    np.testing.assert_allclose(after.std(), 4.0, rtol=1e-3)
    np.testing.assert_array_equal(before.argsort(1), after.argsort(1))

    built = folder / "built"
    done = run("build_bundled.py", folder / "source", "--output", built, "--check", folder / "judged")
    assert done.returncode == 0, done.stderr[-3000:]
    checked = done.stdout
    with Reranker(built, backend="onnx", precision="int8") as reranker:
        found = np.array([reranker.score(" ".join(text.split()[:6]), TEXTS) for text in TEXTS])
        (expected,) = evaluate(folder / "judged", reranker, top_k=len(TEXTS), measures=["nDCG@10"]).rows()
    assert np.corrcoef(found.ravel(), after.ravel())[0, 1] > 0.99
    (int8,) = re.findall(r"int8 +nDCG@10 +(\S+)", checked)
    assert expected["first_stage"] < expected["value"] == pytest.approx(float(int8), abs=5e-5)
    (deviation,) = re.findall(r"standard deviation of fp32 +(\S+)", checked)
    assert float(deviation) == pytest.approx(after.std(), abs=0.01)
    assert 0 < float(re.search(r"mean, largest difference +(\S+),", checked)[1]) < 0.5
    assert float(re.search(r"int8 in a batch and alone +(\S+)", checked)[1]) < 1e-4

    tensors = {tensor.name: tensor for tensor in onnx.load(built / "onnx/model_int8.onnx").graph.initializer}
    tables = [
        name
        for name, tensor in tensors.items()
        if 30522 in tensor.dims and len(tensor.dims) == 2 and min(tensor.dims) > 1
    ]
    kinds = sorted((list(tensors[name].dims), numpy_helper.to_array(tensors[name]).dtype.name) for name in tables)
    assert kinds == [([36, 30522], "int8"), ([30522, 18], "uint8")]


def test_the_tiny_file_ranks_as_its_source(folder):
    """Its logits too have standard deviation 4; of its tables, that of words alone is int8, and there once."""
    source, built = folder / "tiny", folder / "tiny-built"
    done = run("initialise_tiny.py", folder / "splade", "--output", source)
    assert done.returncode == 0, done.stderr[-3000:]
    before = logits(source)
    done = run("calibrate_bundled.py", source, folder / "set", "--queries", 100)
    assert done.returncode == 0, done.stderr[-3000:]
    after = logits(source)
    np.testing.assert_allclose(after.std(), 4.0, rtol=1e-3)
    np.testing.assert_array_equal(before.argsort(1), after.argsort(1))

    done = run("build_bundled.py", source, "--output", built, "--only-tables", "--batch-tokens", 64)
    assert done.returncode == 0, done.stderr[-3000:]
    with Reranker(built, backend="onnx", precision="int8") as reranker:
        found = np.array([reranker.score(" ".join(text.split()[:6]), TEXTS) for text in TEXTS])
    assert np.corrcoef(found.ravel(), after.ravel())[0, 1] > 0.99
    scorer = load_scorer(RerankerSettings(str(built), backend="onnx", precision="int8"))
    assert scorer.scheduler.backend.max_padded_tokens == 64
    tensors = [numpy_helper.to_array(tensor) for tensor in onnx.load(built / "onnx/model_int8.onnx").graph.initializer]
    assert [(table.shape, table.dtype.name) for table in tensors if table.size > 1_000_000] == [((36, 30522), "int8")]
    assert not [values for values in tensors if values.dtype == np.int8 and values.size < 1_000_000]


def test_models_with_other_words_are_refused(folder, tmp_path):
    """Two models that number their word pieces differently cannot be one."""
    masked_language_model(tmp_path / "splade", SMALL)
    tokenizer = json.loads((tmp_path / "splade" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["berlin"], vocabulary["museum"] = vocabulary["museum"], vocabulary["berlin"]
    (tmp_path / "splade" / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    done = run(
        "initialise_bundled.py",
        folder / "bi-encoder",
        tmp_path / "splade",
        folder / "set",
        "--output",
        tmp_path / "out",
    )
    assert done.returncode == 1
    assert "different word pieces" in done.stderr
    assert not (tmp_path / "out").exists()
