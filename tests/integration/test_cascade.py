"""Cascades of real models: the result is what reading twice by hand would give."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from marcorank import Reranker
from random_models import QUERY, passages

KEEP = 8
SHORT = [text for text in passages(16) if len(text) < 1000]
TEXTS = [*SHORT, " ".join(SHORT)]


def by_hand(strong: Reranker, weak: Reranker) -> list[tuple[int, float | None]]:
    """Return index and score of each passage, best first."""
    skimmed = np.argsort(-weak.score(QUERY, TEXTS), kind="stable")
    read = np.sort(skimmed[:KEEP])
    logits = strong.score(QUERY, [TEXTS[index] for index in read])
    best = np.argsort(-logits, kind="stable")
    scored = zip(read[best].tolist(), logits[best].tolist(), strict=True)
    return [*scored, *((int(index), None) for index in skimmed[KEEP:])]


@pytest.mark.parametrize(
    ("backend", "long_passages"), [("openvino", "windows"), ("onnx", "truncate"), ("torch", "truncate")]
)
def test_a_cascade_is_two_readings(small_bert, backend, long_passages):
    """With both models on any backend, and with windows, in `rank`, `arank`, `rank_many` and many threads."""
    settings = {"max_length": 48, "long_passages": long_passages}
    strong, weak = Reranker("bundled", **settings), Reranker(small_bert, backend=backend, **settings)
    expected = by_hand(strong, weak)
    cascade = Reranker("bundled", skim=weak, skim_keep=KEEP, **settings).warm_up()
    with ThreadPoolExecutor(4) as threads:
        rankings = [*threads.map(lambda _: cascade.rank(QUERY, TEXTS), range(4))]
    rankings.append(asyncio.run(cascade.arank(QUERY, TEXTS)))
    rankings += cascade.rank_many([(QUERY, TEXTS), (QUERY, TEXTS[:3])])[:1]
    for ranking in rankings:
        # Below what was read, torch may order passages with nearly equal logits as their batches happen to be.
        end = KEEP if backend == "torch" else None
        assert [(result.index, result.score) for result in ranking][:end] == expected[:end]
        assert sorted(result.index for result in ranking) == list(range(len(TEXTS)))
        with_span = {result.span is not None for result in ranking}
        assert with_span == {long_passages == "windows"}


def test_a_skimming_model_given_by_name_reads_as_the_model_does():
    """It has the length and the windows of the reranker, and shares the weights of an equal model."""
    settings = {"max_length": 48, "long_passages": "windows"}
    alone = Reranker("bundled", **settings)
    cascade = Reranker("bundled", skim="bundled", skim_keep=KEEP, **settings)
    assert [(one.index, one.score) for one in cascade.rank(QUERY, TEXTS)] == by_hand(alone, alone)
