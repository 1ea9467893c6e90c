"""A cheaper model skims all passages, and the model reads the best of them."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcorank import ClosedError, InvalidInputError, Logistic, Reranker, RerankTimeoutError, ScoreError
from marcorank.testing import WordOverlapScorer

QUERY = "red apple"
PASSAGES = [f"passage {number}" for number in range(10)]


class Numbers:
    """Scores a passage by its number, or by less for a greater one, and keeps what it read."""

    def __init__(self, name, sign=1.0):
        self.name = name
        self.sign = sign
        self.read: list[list[str]] = []

    def score(self, query, passages):
        self.read.append(list(passages))
        return [self.sign * float(passage.split()[-1]) for passage in passages]


class Waits(Numbers):
    """Does not answer until it may."""

    def __init__(self, name):
        super().__init__(name)
        self.may_answer = threading.Event()

    def score(self, query, passages):
        self.may_answer.wait()
        return super().score(query, passages)


class Fails(Numbers):
    def score(self, query, passages):
        raise RuntimeError("out of memory")


def cascade(strong=None, weak=None, **settings):
    return Reranker(strong or Numbers("strong"), skim=weak or Numbers("weak", -1.0), **{"skim_keep": 3, **settings})


def indices(ranking):
    return [result.index for result in ranking]


def test_the_model_reads_the_best_of_the_skimming_model():
    """The others follow in the order of the skimming model, and say that it alone scored them."""
    strong, weak = Numbers("strong"), Numbers("weak", -1.0)
    ranking = cascade(strong, weak).rank(QUERY, PASSAGES)
    assert weak.read == [PASSAGES]
    assert strong.read == [PASSAGES[:3]]
    assert indices(ranking) == [2, 1, 0, 3, 4, 5, 6, 7, 8, 9]
    assert [result.score for result in ranking] == [2.0, 1.0, 0.0, *[None] * 7]
    assert [result.logit for result in ranking] == [2.0, 1.0, 0.0, *[None] * 7]
    assert [result.scored_by for result in ranking] == [None] * 3 + ["weak"] * 7
    assert [result.skim_logit for result in ranking] == [-float(index) for index in indices(ranking)]
    assert [result.rank for result in ranking] == list(range(1, 11))
    assert ranking.model == "strong"
    assert json.loads(json.dumps(ranking.to_dicts())) == ranking.to_dicts()
    assert "skim" in str(ranking).splitlines()[1]


def test_ranks_of_the_first_stage_have_a_say_in_what_is_read():
    """By the sum of reciprocal ranks; without a score of every passage the skimming model decides alone."""
    strong = Numbers("strong")
    scores = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0]
    scores[0], scores[1] = 9.5, 9.0  # so 9 is first, then 0, 1, 8, 7, ...
    expected = sorted(
        range(10), key=lambda index: -1 / (61 + index) - 1 / (61 + sorted(scores)[::-1].index(scores[index]))
    )
    ranking = cascade(strong).rank(QUERY, PASSAGES, retrieval_scores=scores)
    assert strong.read == [[PASSAGES[index] for index in sorted(expected[:3])]]
    assert strong.read != [PASSAGES[:3]]
    assert indices(ranking)[3:] == expected[3:]
    assert cascade().rank(QUERY, PASSAGES, retrieval_scores=[None, *scores[1:]]) == cascade().rank(QUERY, PASSAGES)


@given(st.permutations(range(10)))
def test_a_permutation_of_the_input_changes_no_cascade(order):
    """With and without first-stage scores, also where many of these are equal."""
    for given_scores in ([3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.3, 5.8, 9.7, 9.3], [0.5, 0.5, 0.5, 0.9, 0.9] * 2, None):
        expected = [result.text for result in cascade().rank(QUERY, PASSAGES, retrieval_scores=given_scores)]
        moved = cascade().rank(
            QUERY,
            [PASSAGES[index] for index in order],
            retrieval_scores=given_scores and [given_scores[index] for index in order],
        )
        assert [result.text for result in moved] == expected


def test_top_n_keeps_what_the_model_read():
    """The best of those that the model read, as without a skimming model that happens to be right."""
    assert indices(cascade().rank(QUERY, PASSAGES, top_n=2)) == [2, 1]
    with pytest.raises(InvalidInputError, match=r"`top_n` is 4 and `skim_keep` 3; .*Raise `skim_keep`"):
        cascade().rank(QUERY, PASSAGES, top_n=4)


def test_few_passages_are_not_skimmed():
    """With no more than `skim_keep` the result is that of the model alone."""
    weak = Numbers("weak")
    ranking = cascade(weak=weak).rank(QUERY, PASSAGES[:3])
    assert weak.read == []
    assert ranking == Reranker(Numbers("strong")).rank(QUERY, PASSAGES[:3])
    assert len(cascade().rank(QUERY, [])) == 0


def test_all_copies_of_a_text_are_read_together():
    """They count once, and all of them have its score."""
    strong = Numbers("strong")
    copies = [*PASSAGES[:2], PASSAGES[0], *PASSAGES[2:5], PASSAGES[1]]
    ranking = cascade(strong).rank(QUERY, copies)
    assert strong.read == [PASSAGES[:3]]
    assert indices(ranking) == [3, 1, 6, 0, 2, 4, 5]
    assert [result.score is None for result in ranking] == [False] * 5 + [True] * 2


def test_a_long_request_changes_nothing_for_a_short_one():
    """In `rank_many`, only requests with more than `skim_keep` passages are skimmed."""
    weak = Numbers("weak", -1.0)
    rankings = cascade(weak=weak).rank_many([(QUERY, PASSAGES[:2]), (QUERY, PASSAGES), (QUERY, [])])
    assert weak.read == [PASSAGES]
    assert rankings == [cascade().rank(QUERY, passages) for passages in (PASSAGES[:2], PASSAGES, [])]
    slow = Waits("late")
    late = cascade(slow, timeout_s=0.2)
    with pytest.raises(RerankTimeoutError, match="Model `late` did not answer"):
        late.rank_many([(QUERY, PASSAGES[:2]), (QUERY, PASSAGES)])
    late.on_error = "passthrough"
    outcomes = [ranking.status.outcome for ranking in late.rank_many([(QUERY, PASSAGES[:2]), (QUERY, PASSAGES)])]
    slow.may_answer.set()
    assert outcomes == ["passthrough", "skim"]


def test_thresholds_are_on_the_scale_of_the_model():
    """A passage that the model did not read has no score, so it passes no threshold; likewise with `max_drop`."""
    assert indices(cascade().rank(QUERY, PASSAGES, score_threshold=-100)) == [2, 1, 0]
    assert indices(cascade(activation="sigmoid").rank(QUERY, PASSAGES, score_threshold=0.6)) == [2, 1]
    assert indices(cascade(activation=Logistic(1.0, 0.0), max_drop=0.9).rank(QUERY, PASSAGES)) == [2, 1, 0]


def test_ties_keep_the_order_of_the_input():
    """Also among those that the skimming model chose and those that it did not."""
    same = Numbers("same", 0.0)
    assert indices(cascade(same, same).rank(QUERY, PASSAGES)) == list(range(10))


def test_blend_and_near_duplicates_in_a_cascade():
    """The first stage is mixed among those that were read; near-duplicates take no place of `skim_keep`."""
    ranking = cascade(blend=1.0).rank(QUERY, PASSAGES)
    assert indices(ranking) == list(range(10))
    assert [result.blended_score is None for result in ranking] == [False] * 3 + [True] * 7
    copy = "a copy of one and the same text, to which a number was added at the end: "
    copies = [f"{copy} 0", f"{copy} 1", f"{copy} 2", "nothing like it 3"]
    strong = Numbers("strong")
    ranking = cascade(strong, max_similarity=0.6).rank(QUERY, copies)
    assert strong.read == [[copies[0], copies[3]]]
    assert indices(ranking) == [3, 0]
    assert [one.index for one in ranking.skipped] == [1, 2]


def test_rank_many_and_arank():
    """Give the same as `rank`."""
    expected = cascade().rank(QUERY, PASSAGES)
    assert cascade().rank_many([(QUERY, PASSAGES), (QUERY, PASSAGES[:2])])[0] == expected
    assert asyncio.run(cascade().arank(QUERY, PASSAGES)) == expected


def test_scores_are_those_of_the_model():
    """`score` asks the model for all passages, and the skimming model for none."""
    weak = Numbers("weak")
    assert cascade(weak=weak).score(QUERY, PASSAGES).tolist() == [float(number) for number in range(10)]
    assert weak.read == []


def test_out_of_time_after_the_skim(caplog):
    """The order of the skimming model, marked and logged, without scores; the threshold is not on its scale."""
    slow = Waits("slow after the skim")  # other tests log about "slow", and the same is logged once a minute
    reranker = cascade(slow, timeout_s=0.2)
    ranking = reranker.rank(QUERY, PASSAGES, top_n=3, score_threshold=5.0)
    slow.may_answer.set()
    assert indices(ranking) == [0, 1, 2]
    assert [result.score for result in ranking] == [None] * 3
    assert [result.scored_by for result in ranking] == ["weak"] * 3
    assert (ranking.status.outcome, ranking.status.error) == ("skim", "RerankTimeoutError")
    assert "in the order after the skim" in str(ranking)
    assert "the order after the skim was kept" in caplog.text


def test_out_of_time_with_a_fallback():
    """The fallback ranks, if it can; else the order of the skimming model is kept."""
    slow = Waits("slow")
    ranking = cascade(slow, timeout_s=0.4, fallback=Numbers("other")).rank(QUERY, PASSAGES, top_n=2)
    assert (ranking.model, indices(ranking), ranking.status.outcome) == ("other", [9, 8], "fallback")
    ranking = cascade(slow, timeout_s=0.4, fallback=Fails("broken")).rank(QUERY, PASSAGES, top_n=2)
    assert (ranking.model, indices(ranking), ranking.status.outcome) == ("slow", [0, 1], "skim")
    slow.may_answer.set()


def test_out_of_time_during_the_skim():
    """There is no order to keep, so the call fails as one without a skimming model does."""
    slow = Waits("slow")
    with pytest.raises(RerankTimeoutError, match=r"Model `slow` did not answer within 0\.2 s. Increase"):
        cascade(weak=slow, timeout_s=0.2).rank(QUERY, PASSAGES)
    slow.may_answer.set()


def test_a_model_that_fails_after_the_skim():
    """Raises, or keeps the better of the two orders with `on_error="passthrough"`."""
    with pytest.raises(ScoreError, match="out of memory"):
        cascade(Fails("broken")).rank(QUERY, PASSAGES)
    ranking = cascade(Fails("broken"), on_error="passthrough").rank(QUERY, PASSAGES)
    assert (indices(ranking), ranking.status.outcome) == (list(range(10)), "skim")


def test_a_skimming_model_that_fails():
    """Counts as a failure of the call: nothing is read."""
    strong = Numbers("strong")
    with pytest.raises(ScoreError, match="Model `broken` raised RuntimeError"):
        cascade(strong, Fails("broken")).rank(QUERY, PASSAGES)
    ranking = cascade(strong, Fails("broken"), on_error="passthrough").rank(QUERY, PASSAGES)
    assert (indices(ranking), ranking.status.outcome) == (list(range(10)), "passthrough")
    assert strong.read == []


def test_a_slow_skimming_scorer_does_not_block_others():
    """Calls of one reranker run beside each other, although its own model needs only one thread."""
    slow = Waits("slow")
    reranker = Reranker("bundled", skim=slow, skim_keep=3)

    async def both():
        waiting = asyncio.create_task(reranker.arank(QUERY, PASSAGES))
        await asyncio.sleep(0)
        other = await asyncio.wait_for(reranker.arank(QUERY, PASSAGES[:2]), 60)
        assert not waiting.done()
        slow.may_answer.set()
        return await waiting, other

    waited, other = asyncio.run(both())
    assert (len(waited), len(other)) == (10, 2)


@pytest.mark.parametrize(
    ("skim", "name"),
    [
        (Reranker(WordOverlapScorer(), timeout_s=1.0), "timeout_s"),
        (Reranker(WordOverlapScorer(), fallback="bundled"), "fallback"),
        (Reranker(WordOverlapScorer(), skim="bundled"), "skim"),
        (Reranker(WordOverlapScorer(), blend=0.3), "blend"),
        (Reranker(WordOverlapScorer(), max_similarity=0.3), "max_similarity"),
    ],
)
def test_settings_that_a_skimming_model_would_not_use_are_refused(skim, name):
    """By name, with where they belong."""
    with pytest.raises(InvalidInputError, match=f"`skim` is a reranker with `{name}`, which it would not use"):
        Reranker("bundled", skim=skim)


@pytest.mark.parametrize("value", [3, ["bundled"], WordOverlapScorer])
def test_a_skimming_model_is_a_model(value):
    """Anything else is refused by name; so is a number of passages below one."""
    with pytest.raises(InvalidInputError, match=r"`skim` is .*; expected a model name"):
        Reranker("bundled", skim=value)
    with pytest.raises(InvalidInputError, match="`skim_keep` is 0"):
        Reranker("bundled", skim="bundled", skim_keep=0)


def test_settings_come_back():
    """In dicts, JSON, pickles and `repr`; a skimming model given by name shares some of them."""
    reranker = Reranker("bundled", skim="bundled", skim_keep=7, blend=0.25, max_similarity=0.9, min_n=2, threads=1)
    assert Reranker.from_dict(json.loads(json.dumps(reranker.to_dict()))).to_dict() == reranker.to_dict()
    assert pickle.loads(pickle.dumps(reranker)).to_dict() == reranker.to_dict()  # noqa: S301
    assert repr(reranker) == (
        "Reranker('bundled', threads=1, skim='bundled', skim_keep=7, blend=0.25, max_similarity=0.9, min_n=2)"
    )
    assert reranker.skim.to_dict()["threads"] == 1
    given = Reranker("bundled", skim=Reranker("bundled", threads=2), threads=1)
    assert given.to_dict()["skim"]["threads"] == 2
    assert Reranker.from_dict(given.to_dict()).skim.to_dict()["threads"] == 2


def test_close_closes_a_model_of_its_own():
    """A skimming reranker that was given stays open; one that was closed says so."""
    shared = Reranker(Numbers("weak"))
    cascade(weak=shared).close()
    shared.rank(QUERY, PASSAGES)
    reranker = cascade(weak=shared)
    shared.close()
    with pytest.raises(ClosedError, match="The reranker of `weak` was closed"):
        reranker.rank(QUERY, PASSAGES)
    with pytest.raises(InvalidInputError, match="`skim_keep` of a Reranker cannot be changed"):
        reranker.skim_keep = 5
