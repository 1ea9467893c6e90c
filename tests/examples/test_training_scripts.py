"""The scripts that make the bundled model: from a small collection and random teachers to an int8 file that ranks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification

from compressed_files import write_lines, write_rows
from marcorank import Reranker
from random_models import QUERY, Shape, bert, bi_encoder, masked_language_model, passages

SCRIPTS = Path(__file__).parents[2] / "scripts"
# The layers 3 and 4 have something to learn of their own, and the last layer is computed for `[CLS]` alone.
SIX_LAYERS = Shape(6, 32, 2, 64)
# For questions of the first set, more candidates are looked for: the others of its passages.
SETS = ("web", "boolq")
QUESTIONS, PASSAGES, CANDIDATES = 10, 64, 32


def run(script: str, *arguments: object) -> str:
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions and candidates of two sets, three random teachers, and what the first script makes of them."""
    folder = tmp_path_factory.mktemp("bundled")
    chance = np.random.default_rng(0)
    names, rows, candidates = [], [], []
    for name in SETS:
        texts = [f"Number {n} of {name}:" + " it goes on." * (1 + n % 20) for n in range(PASSAGES)]
        passages = [{"id": f"p{number}", "text": text} for number, text in enumerate(texts)]
        write_rows(folder / "sets" / name / "corpus.jsonl.gz", passages)
        for number in range(QUESTIONS):
            others = chance.permutation(np.delete(np.arange(PASSAGES), number))[: CANDIDATES - 1]
            candidates.append(len(names) + np.array([number, *others], np.int32))
            rows.append({"query": f"what goes on with the number {number}?", "set": name})
        names += [f"{name}/p{number}" for number in range(PASSAGES)]
    write_lines(folder / "distill" / "passages.txt.gz", names)
    write_rows(folder / "distill" / "queries.jsonl.gz", rows)
    labelled = np.tile(np.arange(CANDIDATES) == 0, (len(rows), 1)).astype(np.int8)
    np.savez(folder / "distill" / "candidates.npz", passage=np.array(candidates), labelled=labelled)
    masked_language_model(folder / "splade")
    bi_encoder(folder / "small", SIX_LAYERS)
    bi_encoder(folder / "large", seed=1)
    sources = [folder / name for name in ("distill", "sets", "splade", "small", "large")]
    run("prepare_bundled.py", *sources, "--output", folder / "prepared.npz")
    return folder


@pytest.fixture(scope="module")
def scripts():
    """The modules of the scripts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import prepare_bundled
        import train_bundled
        import training_examples

        yield SimpleNamespace(prepare=prepare_bundled, examples=training_examples, train=train_bundled)
        for name in ("calibration", "prepare_bundled", "training_examples", "train_bundled"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def examples(folder, scripts):
    tokenizer = Tokenizer.from_file(str(folder / "small" / "tokenizer.json"))
    return scripts.examples.TrainingExamples(folder / "distill", folder / "sets", folder / "prepared.npz", tokenizer)


def test_search_queries_get_more_candidates_and_none_twice(examples):
    """The further candidates of a search query are those passages of its set that it did not have."""
    for number, question in enumerate(examples.questions):
        found = question.passages.tolist()
        assert len(found) == len(set(found)) == (2 * CANDIDATES if number < QUESTIONS else CANDIDATES)
        assert {place // PASSAGES for place in found} == {number // QUESTIONS}


def test_teachers_score_as_their_libraries_do(folder, scripts, examples):
    """SPLADE's dot product, the large model's cosine, and the best cosines of the query's tokens, for one question."""
    texts = scripts.prepare.read_pool(folder / "distill", folder / "sets")
    question = examples.questions[3]
    passages = [texts.passages[place] for place in question.passages]
    splade = SparseEncoder(str(folder / "splade"), device="cpu")
    asked = splade.encode([texts.questions[3]], max_active_dims=scripts.prepare.QUESTION_TERMS).to_dense()
    held = splade.encode(passages, max_active_dims=scripts.prepare.PASSAGE_TERMS).to_dense()
    np.testing.assert_allclose(question.scores[:, 0], (held @ asked[0]).cpu(), rtol=1e-4)
    large = SentenceTransformer(str(folder / "large"), device="cpu")
    cosines = large.similarity(large.encode([texts.questions[3]]), large.encode(passages))[0]
    np.testing.assert_allclose(question.scores[:, 1], cosines.cpu(), atol=5e-3)
    for place, name in enumerate(("small", "large")):
        model = SentenceTransformer(str(folder / name), device="cpu")
        states = [
            torch.nn.functional.normalize(found[1:-1], dim=-1)
            for found in model.encode([texts.questions[3], *passages], output_value="token_embeddings")
        ]
        best = torch.stack([(states[0] @ found.T).amax(1).clamp(0, 1) for found in states[1:]])
        np.testing.assert_allclose(question.cosines[place] / 255, best.cpu(), atol=2e-2)


def test_a_document_scores_as_the_best_of_its_passages(examples):
    """A group of passages has the scores of one by late interaction, where that one is the best for every token."""
    question = examples.questions[0]
    alone = examples.scores(0, question, [[place] for place in range(len(question.passages))])
    np.testing.assert_allclose(alone, question.scores, rtol=1e-5)
    together = examples.scores(0, question, [[0, 5], [5, 0], [7, 7]])
    assert (together[:2, [0, 2, 3]] >= np.maximum(alone[0], alone[5])[[0, 2, 3]] - 1e-6).all()
    np.testing.assert_allclose(together[0], together[1], rtol=1e-5)
    np.testing.assert_allclose(together[2], alone[7], rtol=1e-5)


def test_examples_are_documents_at_times(examples):
    """An example has eight candidates, with a logit and the cosines of each; some have texts of several passages."""
    longest = max(map(len, examples.passages))
    lengths = []
    for seed in range(40):
        example = examples.draw(2, np.random.default_rng(seed))
        assert len(example.candidates) == len(example.targets) == len(example.cosines) == 8
        assert example.cosines.shape == (8, len(example.question), 2)
        assert example.vectors.shape == (8, 2, examples.width)
        lengths.append(max(map(len, example.candidates)))
    assert min(lengths) <= longest < max(lengths) <= 400


def test_a_run_goes_on_and_its_model_loads(folder):
    """The second run starts where the first one ended, and sentence-transformers loads what it saved."""
    arguments = [folder / name for name in ("distill", "sets", "prepared.npz", "small")]
    steps = []
    for minutes in (0.02, 0.06):
        text = run("train_bundled.py", *arguments, "--output", folder / "run", "--minutes", minutes, "--held-out", 8)
        assert "8 held-out questions with answers" in text
        assert re.search(r"calibration error of sigmoid: 0\.\d+", text)
        steps.append(torch.load(folder / "run" / "state.pt", weights_only=True)["step"])
    assert 0 < steps[0] < steps[1]
    pairs = [(QUERY, f"Number {number} of web: it goes on.") for number in range(PASSAGES)]
    logits = CrossEncoder(str(folder / "run" / "model"), device="cpu").predict(pairs)
    assert logits.shape == (PASSAGES,)
    assert np.isfinite(logits).all()


def test_training_and_int8_score_as_sentence_transformers_does(scripts, tmp_path):
    """What training computes in bf16, and the int8 model, rank as the weights do in fp32."""
    source = bert(tmp_path / "source")
    texts = [text for text in passages(60) if text.strip() and len(text) < 2000]
    expected = CrossEncoder(str(source), device="cpu").predict([(QUERY, text) for text in texts])
    model = BertForSequenceClassification.from_pretrained(source).eval()
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokens = [np.array(tokenizer.encode(text, add_special_tokens=False).ids) for text in (QUERY, *texts)]
    with torch.no_grad():
        found = scripts.train.outputs_of(
            model, scripts.train.copies_of(model), [(tokens[0], text) for text in tokens[1:]]
        )
    # Random weights magnify what is rounded.
    assert np.corrcoef(found.parts[:, 0], expected)[0, 1] > 0.99
    run("build_bundled.py", source, "--output", tmp_path / "int8")
    scores = Reranker(tmp_path / "int8", backend="onnx", precision="int8").score(QUERY, texts)
    assert np.corrcoef(scores, expected)[0, 1] > 0.99
