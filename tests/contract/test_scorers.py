"""One suite of promises that every scorer passes: fakes, local models on each backend, and servers."""

from __future__ import annotations

import shutil
import threading
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest

from marcorank import Reranker, Scorer
from marcorank.remote import DIALECTS, RemoteScorer
from marcorank.testing import WordOverlapScorer
from random_models import QUERY, passages
from remote_server import remote_server

PASSAGES = passages(12, seed=3)


@pytest.fixture(scope="module")
def dynamic_int8(small_bert, tmp_path_factory):
    """The same model as onnxruntime quantises it: one activation scale over each batch."""
    from onnxruntime.quantization import quantize_dynamic

    folder = tmp_path_factory.mktemp("int8")
    shutil.copytree(small_bert, folder, dirs_exist_ok=True)
    quantize_dynamic(folder / "onnx/model.onnx", folder / "onnx/model_int8.onnx")
    return folder


def behind(dialect, folders) -> Reranker:
    """A real model behind a server of each kind."""
    return Reranker(f"{folders['servers'][dialect].url}#served", token="of-nobody")


MAKERS = {
    "fake": lambda folders: Reranker(WordOverlapScorer()),
    "bundled": lambda folders: Reranker("bundled"),
    "bundled-tiny": lambda folders: Reranker("bundled-tiny"),
    "onnx": lambda folders: Reranker(folders["bert"], backend="onnx"),
    "onnx-roberta": lambda folders: Reranker(folders["roberta"], backend="onnx"),
    "onnx-dynamic-int8": lambda folders: Reranker(folders["dynamic-int8"], backend="onnx", precision="int8"),
    "openvino-fp32": lambda folders: Reranker(folders["bert"], backend="openvino", precision="fp32"),
    "openvino-auto": lambda folders: Reranker(folders["bert"], backend="openvino"),
    "openvino-int8": lambda folders: Reranker(folders["bert"], backend="openvino", precision="int8"),
    "openvino-roberta": lambda folders: Reranker(folders["roberta"], backend="openvino", precision="fp32"),
    "torch-fp32": lambda folders: Reranker(folders["bert"], backend="torch", precision="fp32"),
    "torch-bf16": lambda folders: Reranker(folders["bert"], backend="torch", precision="bf16"),
    "torch-fp16": lambda folders: Reranker(folders["bert"], backend="torch", precision="fp16"),
    **{f"remote-{dialect}": partial(behind, dialect) for dialect in DIALECTS},
}
# How far a logit may move with its batch: torch and bundled-tiny pad, and in half precision rounding depends on the
# product's shape. Every other engine computes each pair alone.
TOLERANCES = {"bundled-tiny": 1e-4, "torch-fp32": 3e-4, "torch-bf16": 0.5, "torch-fp16": 0.05}


@pytest.fixture(scope="module")
def servers(small_bert):
    """One of each kind, with the same local model behind it."""
    scorer = Reranker(small_bert, backend="onnx")
    with ExitStack() as stack:
        yield {dialect: stack.enter_context(remote_server(dialect, scorer)) for dialect in DIALECTS}


@pytest.fixture(scope="module", params=MAKERS)
def reranker(request, small_bert, small_roberta, dynamic_int8, servers) -> Reranker:
    folders = {"bert": small_bert, "roberta": small_roberta, "dynamic-int8": dynamic_int8, "servers": servers}
    return MAKERS[request.param](folders)


@pytest.fixture
def tolerance(request) -> float:
    return TOLERANCES.get(request.node.callspec.params["reranker"], 0)


def test_one_finite_float_a_passage_in_input_order(reranker, tolerance):
    """Scoring a list equals scoring its passages one by one."""
    scores = reranker.score(QUERY, PASSAGES)
    alone = [float(reranker.score(QUERY, [text])[0]) for text in PASSAGES]
    assert scores.dtype == np.float32
    assert scores.shape == (len(PASSAGES),)
    np.testing.assert_allclose(scores, alone, atol=tolerance, rtol=0)


def test_the_order_of_the_passages_does_not_matter(reranker, tolerance):
    """A passage gets its score wherever it stands."""
    scores = reranker.score(QUERY, PASSAGES)
    np.testing.assert_allclose(reranker.score(QUERY, PASSAGES[::-1])[::-1], scores, atol=tolerance, rtol=0)


def test_the_same_input_gives_the_same_scores(reranker):
    """Scoring is deterministic to the last bit."""
    assert np.array_equal(reranker.score(QUERY, PASSAGES), reranker.score(QUERY, PASSAGES))


def test_blank_and_odd_texts_are_scored(reranker):
    """Empty text, control characters, lone surrogates, emoji and other scripts are passages like others."""
    texts = ["", " ", "\x00", "\ud83d", "🏙️", "柏林", "a" * 5000, "\u202e\u0301"]
    assert np.isfinite(reranker.score("柏林 🏙️ \ud83d?", texts)).all()


def test_threads_share_one_scorer(reranker, tolerance):
    """Eight threads at once get what one gets."""
    expected = reranker.score(QUERY, PASSAGES)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(reranker.score(QUERY, PASSAGES))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for scores in found:
        np.testing.assert_allclose(scores, expected, atol=tolerance, rtol=0)


async def test_async_equals_sync(reranker):
    """`arank` gives the ranking that `rank` gives."""
    assert await reranker.arank(QUERY, PASSAGES) == reranker.rank(QUERY, PASSAGES)


def test_requests_share_batches_without_mixing(reranker, tolerance):
    """Several queries at once score as each alone."""
    requests = [(QUERY, PASSAGES[:5]), ("museum of history", PASSAGES[3:9]), ("river", [])]
    for ranking, (query, texts) in zip(reranker.rank_many(requests), requests, strict=True):
        by_index = np.array([result.score for result in sorted(ranking, key=lambda result: result.index)])
        np.testing.assert_allclose(by_index, reranker.score(query, texts), atol=tolerance, rtol=0)


def test_scorers_follow_the_protocol():
    """What the package ships as a scorer is one by its own definition."""
    assert isinstance(WordOverlapScorer(), Scorer)
    assert isinstance(RemoteScorer("tei+http://127.0.0.1:1"), Scorer)
