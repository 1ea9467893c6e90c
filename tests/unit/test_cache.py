"""The score cache: what is remembered, what is forgotten, and that nobody can tell a hit from a fresh score."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import tracemalloc
from weakref import WeakSet

import numpy as np
import pytest

from marcorank import InvalidInputError, Reranker, ScoreError
from marcorank._calls.cache import KnownPassage, ScoreCache, join, split
from marcorank._inference.scorer import PassageScores

QUERY = "red apple"


class CountingScorer:
    """Scores by length in windows mode, and keeps what it was asked."""

    name = "counting"

    def __init__(self):
        self.asked: list[tuple[str, list[str]]] = []

    def score_requests(self, requests):
        self.asked.extend((query, list(passages)) for query, passages in requests)
        return [
            PassageScores(
                np.array([len(text) / 3 if text != "bad" else np.nan for text in passages], dtype=np.float32),
                truncated=np.array([len(text) > 5 for text in passages]),
                spans=tuple((0, len(text)) for text in passages),
                query_truncated=len(query) > 9,
                unknown_tokens=np.array([text.count("b") for text in passages]),
            )
            for query, passages in requests
        ]


@pytest.fixture
def scorer(load):
    counting = CountingScorer()
    load(lambda: counting)
    return counting


def caches() -> WeakSet[ScoreCache]:
    """Return those of this process; other tests' may end at any time."""
    gc.collect()
    return WeakSet(thing for thing in gc.get_objects() if type(thing) is ScoreCache)


def remembered(others: WeakSet[ScoreCache]) -> int:
    return sum(len(cache) for cache in caches() - others)


def test_a_cascade_caches_the_scores_of_both_models(scorer):
    """The skimming model keeps those of all passages, the other one those of the passages that it read."""
    passages = ["a", "bc", "def", "ghij"]
    cascade = Reranker("bundled", skim="bundled", skim_keep=2, cache_size=10)
    first = cascade.rank(QUERY, passages)
    assert scorer.asked == [(QUERY, passages), (QUERY, ["def", "ghij"])]
    assert cascade.rank(QUERY, passages) == first
    assert len(scorer.asked) == 2


def test_a_hit_is_not_scored_and_gives_the_same_ranking(scorer):
    """Hits, misses and mixtures of both give what a reranker without a cache gives, down to spans and flags."""
    cached, plain = Reranker("bundled", cache_size=10), Reranker("bundled")
    for passages in (["a", "bcd"], ["a", "bcd"], ["efghijk", "bcd", "", "bcd", "a"], ["a"]):
        for query in (QUERY, QUERY + "s, many of them"):
            assert cached.rank(query, passages) == plain.rank(query, passages)
    scorer.asked.clear()
    assert np.array_equal(cached.score(QUERY, ["bcd", "a", "lm"]), plain.score(QUERY, ["bcd", "a", "lm"]))
    assert scorer.asked == [(QUERY, ["lm"]), (QUERY, ["bcd", "a", "lm"])]


async def test_sync_async_and_many_share_the_cache(scorer):
    """What one method has scored the others know; where all is known the model is not asked at all."""
    chosen = Reranker("bundled", cache_size=10)
    expected = await chosen.arank(QUERY, ["a", "bcd"])
    assert scorer.asked == [(QUERY, ["a", "bcd"])]
    assert await chosen.arank(QUERY, ["a", "bcd"]) == chosen.rank(QUERY, ["a", "bcd"]) == expected
    assert chosen.rank_many([(QUERY, ["bcd", "a"]), (QUERY, [])])[0][0] == chosen.rank(QUERY, ["bcd", "a"])[0]
    assert len(scorer.asked) == 1


def test_the_query_belongs_to_the_key(scorer):
    """The same passage under another query is another pair, wherever the query ends."""
    chosen = Reranker("bundled", cache_size=10)
    for query, passage in (("ab", "c"), ("a", "bc"), ("2:ab", "c"), ("ab", "\ud800"), ("ab", "\ud801")):
        chosen.rank(query, [passage])
    assert len(scorer.asked) == 5


def test_the_least_recently_used_is_forgotten():
    """The cache never holds more than its size; a look keeps what it finds."""
    cache = ScoreCache(2)
    known = [KnownPassage(float(number), None, None, None, None) for number in range(3)]
    cache.keep(QUERY, ["a", "b"], known[:2])
    assert cache.find(QUERY, ["a"]) == {"a": known[0]}
    cache.keep(QUERY, ["c"], known[2:])
    assert cache.find(QUERY, ["a", "b", "c"]) == {"a": known[0], "c": known[2]}
    cache.keep(QUERY, ["d", "e", "f"], known)
    assert len(cache) == 2


def test_no_text_is_kept():
    """Only digests are: a long passage takes no more room than a short one."""
    cache = ScoreCache(1)
    known = [KnownPassage(0.0, None, None, None, None)]
    tracemalloc.start()
    try:
        cache.keep("q" * 1_000_000, ["p" * 1_000_000], known)
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(cache) == 1
    assert kept_bytes < 100_000


@pytest.mark.parametrize(
    "scores",
    [
        PassageScores(np.array([1 / 3, -0.0], dtype=np.float32)),
        PassageScores(np.array([1e-45, 7], dtype=np.float32), np.array([True, False]), None, False),
        PassageScores(np.array([1, 2], dtype=np.float32), np.array([False, False]), ((0, 3), (4, 9)), True),
        PassageScores(np.array([1, 2], dtype=np.float32), unknown_tokens=np.array([0, 3])),
    ],
)
def test_splitting_and_joining_lose_nothing(scores):
    """Logits to the last bit, and None where a scorer cannot tell."""
    again = join(split(scores))
    assert again.logits.tobytes() == scores.logits.tobytes()
    assert again.logits.dtype == np.float32
    assert (again.truncated is None) == (scores.truncated is None)
    assert scores.truncated is None or again.truncated.tolist() == scores.truncated.tolist()
    assert (again.unknown_tokens is None) == (scores.unknown_tokens is None)
    assert scores.unknown_tokens is None or again.unknown_tokens.tolist() == scores.unknown_tokens.tolist()
    assert (again.spans, again.query_truncated) == (scores.spans, scores.query_truncated)


def test_what_is_not_finite_is_not_remembered(scorer):
    """A request that fails leaves nothing behind; the index in the message is that of the caller's list."""
    chosen = Reranker("bundled", cache_size=10)
    chosen.rank(QUERY, ["a"])
    for _ in range(2):
        with pytest.raises(ScoreError, match=r"returned nan for `passages\[2\]`"):
            chosen.rank(QUERY, ["a", "a", "bad", "new"])
    assert scorer.asked[1:] == [(QUERY, ["bad", "new"])] * 2
    chosen.rank(QUERY, ["a", "new"])
    assert scorer.asked[3:] == [(QUERY, ["new"])]


def test_off_by_default_and_not_for_scorers_of_ones_own(scorer):
    """Without a size nothing is kept; an object that scores may judge passages by their neighbours."""
    chosen = Reranker("bundled")
    assert chosen.rank(QUERY, ["a"]) == chosen.rank(QUERY, ["a"])
    assert len(scorer.asked) == 2
    with pytest.raises(InvalidInputError, match="`cache_size` is 5, which has no effect on the scorer"):
        Reranker(WithNeighbours(), cache_size=5)
    own = Reranker(WithNeighbours())
    assert [own.rank(QUERY, passages)[0].logit for passages in (["a"], ["a", "b"], ["a"])] == [1.0, 2.0, 1.0]


class WithNeighbours:
    def score(self, query, passages):
        return [float(len(passages))] * len(passages)


def test_close_and_copies_forget(scorer):
    """The size is a setting and travels; what is remembered does not."""
    others = caches()
    chosen = Reranker("bundled", cache_size=7)
    chosen.rank(QUERY, ["a"])
    for again in (pickle.loads(pickle.dumps(chosen)), copy.deepcopy(chosen), Reranker.from_dict(chosen.to_dict())):  # noqa: S301
        assert again.to_dict()["cache_size"] == 7
        scorer.asked.clear()
        again.rank(QUERY, ["a"])
        assert scorer.asked == [(QUERY, ["a"])]
        again.close()
    assert repr(chosen) == "Reranker('bundled', cache_size=7)"
    assert remembered(others) == 1
    chosen.close()
    assert remembered(others) == 0


@pytest.mark.parametrize("value", [-1, True, "3", 1.5, None])
def test_the_size_must_be_a_whole_number(value):
    """0 is none; what is no number of passages is named."""
    with pytest.raises(InvalidInputError, match=r"`cache_size` is .*expected a whole number of at least 0"):
        Reranker("bundled", cache_size=value)


def test_threads_share_a_small_cache(scorer):
    """Eight threads that push each other's passages out get what they would get alone."""
    others = caches()
    chosen, plain = Reranker("bundled", cache_size=3), Reranker("bundled")
    requests = [
        (f"word {number % 5}", [f"text {place % 7}" * (place % 4) for place in range(number % 9)])
        for number in range(200)
    ]
    expected = [plain.rank(*request) for request in requests]
    found: list[object] = [None] * len(requests)

    def work(start):
        for place in range(start, len(requests), 8):
            found[place] = chosen.rank(*requests[place])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == expected
    assert 0 < remembered(others) <= 3
