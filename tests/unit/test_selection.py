"""Blending with the first stage, near-duplicates, and the end of a ranking at a drop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcorank import InvalidInputError, Logistic, Reranker, SkippedPassage
from marcorank._selection.near_duplicates import without_near_duplicates

QUERY = "red apple"
# Scored 0, 1, 2, ...
PASSAGES = [f"passage {number}" for number in range(6)]
LOGISTIC = Logistic(1.0, 0.0)


class Numbers:
    """Scores a passage by the number at its end."""

    name = "numbers"

    def score(self, query, passages):
        return [float(passage.split()[-1]) for passage in passages]


def ranked(passages=PASSAGES, top_n=None, retrieval_scores=None, **settings):
    return Reranker(Numbers(), **settings).rank(QUERY, passages, top_n=top_n, retrieval_scores=retrieval_scores)


def indices(ranking):
    return [result.index for result in ranking]


def test_no_blend_is_the_order_of_the_model():
    """First-stage scores change nothing without a weight, and no field of an option is in the output."""
    plain, scored = ranked(), ranked(retrieval_scores=[9, 8, 7, 6, 5, 4])
    assert plain == scored
    assert set(plain[0].to_dict()) == {
        *("index", "rank", "score", "logit", "text", "truncated", "span", "unknown_tokens")
    }


def test_a_blend_of_one_is_the_order_of_the_first_stage():
    """By its scores where all passages have one, else by its ranks; scores stay those of the model."""
    by_rank = ranked(blend=1.0)
    assert indices(by_rank) == [0, 1, 2, 3, 4, 5]
    assert [result.score for result in by_rank] == [0, 1, 2, 3, 4, 5]
    assert indices(ranked(blend=1.0, retrieval_scores=[1, 9, 3, 8, 2, 0])) == [1, 3, 2, 4, 0, 5]
    assert indices(ranked(blend=1.0, retrieval_scores=[1, 9, 3, None, 2, 0])) == [0, 1, 2, 3, 4, 5]


def test_blended_scores_are_weighted_sums_of_scaled_ones():
    """Both are scaled to 0 to 1 over the passages: 0.75 times the model, 0.25 times the first stage."""
    ranking = ranked(["a 0", "b 5", "c 10"], blend=0.25, retrieval_scores=[1e300, 0, -1e300])
    assert {result.index: result.blended_score for result in ranking} == {2: 0.75, 1: 0.5, 0: 0.25}
    assert json.loads(json.dumps(ranking.to_dicts())) == ranking.to_dicts()
    assert "blended" in str(ranking)
    assert "0.7500" in ranking._repr_html_()


def test_a_blend_of_equal_scores_keeps_the_order_of_the_input():
    """One passage, or several with the same scores, are no division by zero."""
    assert indices(ranked(["a 1"], blend=0.5)) == [0]
    assert indices(ranked(["a 1", "b 1", "c 1"], blend=0.5, retrieval_scores=[2, 2, 2])) == [0, 1, 2]
    assert len(ranked([], blend=0.5)) == 0
    tiny = ranked(["a 1", "b 2", "c 3"], blend=0.5, retrieval_scores=[5e-324, 0, 0])
    assert [result.blended_score for result in tiny] == [0.5, 0.25, 0.0]


@given(st.permutations(range(6)))
def test_a_permutation_of_the_input_changes_no_blend(order):
    """With first-stage scores, the order of the input decides ties alone."""
    scores = [0.3, 0.1, 0.9, 0.5, 0.2, 0.4]
    expected = [result.text for result in ranked(blend=0.4, retrieval_scores=scores, max_similarity=0.9)]
    moved = ranked(
        [PASSAGES[index] for index in order],
        blend=0.4,
        retrieval_scores=[scores[index] for index in order],
        max_similarity=0.9,
    )
    assert [result.text for result in moved] == expected


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1, 2], r"`retrieval_scores` has 2 numbers for 6 passages"),
        ("123456", r"`retrieval_scores` is a str; expected one number, or None, per passage"),
        ([1, 2, 3, 4, 5, float("nan")], r"`retrieval_scores\[5\]` is nan; expected a finite number or None"),
        ([1, 2, "3", 4, 5, 6], r"`retrieval_scores\[2\]` is '3'"),
        ([1, True, 3, 4, 5, 6], r"`retrieval_scores\[1\]` is True"),
    ],
)
def test_first_stage_scores_are_checked(scores, message):
    """Also without a blend, which is off by default."""
    with pytest.raises(InvalidInputError, match=message):
        ranked(retrieval_scores=scores)


def test_rank_many_takes_first_stage_scores():
    """As the third part of a request; requests with and without them may be mixed."""
    requests = [(QUERY, PASSAGES, [0, 0, 0, 1, 0, 0]), (QUERY, PASSAGES), (QUERY, PASSAGES, None)]
    rankings = Reranker(Numbers(), blend=1.0).rank_many(requests, top_n=1)
    assert [ranking[0].index for ranking in rankings] == [3, 0, 0]


@pytest.mark.parametrize("name", ["blend", "max_similarity", "max_drop"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", True])
def test_shares_are_from_0_to_1(name, value):
    """Anything else is refused by name."""
    with pytest.raises(InvalidInputError, match=f"`{name}` is .*expected a number from 0 to 1"):
        Reranker(Numbers(), **{name: value})


def shingles(text):
    """The definition of the module, without its arrays."""
    spaced = " ".join(text.lower().split()) + "\0" * 8
    return {
        spaced[start : start + 8]
        for start in range(len(spaced) - 8)
        if spaced[start] != " " and (start == 0 or spaced[start - 1] == " " or "\u2e80" <= spaced[start] <= "\ud7a3")
    }


def similarity(one, other):
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second) if first | second else 1.0


WORDS = st.sampled_from(["berlin ", "Berlin ", "spree", " \n", "\u3000", "a", "\U0001f642", "東京", "都", "\ud800", ""])
TEXTS = st.lists(WORDS, max_size=12).map("".join)


@given(st.lists(TEXTS, max_size=12), st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.99]))
def test_near_duplicates_are_those_above_the_similarity(texts, max_similarity):
    """Each text that is kept is at most that similar to all that were kept before; the others name their closest."""
    kept, skipped = without_near_duplicates(texts, max_similarity=max_similarity)
    assert sorted([*kept, *(one.position for one in skipped)]) == list(range(len(texts)))
    for position in range(len(texts)):
        similarities = {other: similarity(texts[position], texts[other]) for other in kept if other < position}
        closest = max(similarities.values(), default=-1.0)
        assert (position in kept) == (closest <= max_similarity)
    for one in skipped:
        assert one.similarity == pytest.approx(similarity(texts[one.position], texts[one.similar_to]))


COPIES = [
    "The population of Berlin is 3.5 million people, as of 2016, and it grows every year. 9",
    "the population of  Berlin is 3.5 million people, as of 2016, and it grows every year. 8",
    "The Spree flows through Berlin from the south-east to the north-west of the city. 7",
    "The population of Berlin is 3.5 million people, as of 2016, and it grows every year.. 6",
    "Bread is baked from flour, water and salt, and from yeast or from sourdough. 5",
]


def test_near_duplicates_are_named_and_replaced_by_the_next():
    """`top_n` counts what is left; the ranking says what was left out, and why."""
    ranking = ranked(COPIES, top_n=3, max_similarity=0.7)
    assert indices(ranking) == [0, 2, 4]
    assert [result.rank for result in ranking] == [1, 2, 3]
    assert [(one.index, one.similar_to) for one in ranking.skipped] == [(1, 0), (3, 0)]
    assert all(isinstance(one, SkippedPassage) and 0.7 < one.similarity < 1 for one in ranking.skipped)
    assert "Near-duplicates left out: 2" in str(ranking)
    assert ranked(COPIES).skipped == ()


def test_copies_below_the_last_result_are_not_compared():
    """A ranking with enough results names only the copies of better passages than its last."""
    assert ranked(COPIES, top_n=1, max_similarity=0.7).skipped == ()


def test_a_ranking_ends_at_a_drop_of_probability():
    """Before the first result that is less probable by more than `max_drop`; `min_n` and `top_n` are its limits."""
    passages = ["a 4", "b 3.9", "c 0", "d -0.1", "e -5"]
    assert indices(ranked(passages, activation=LOGISTIC, max_drop=0.3)) == [0, 1]
    assert indices(ranked(passages, activation=LOGISTIC, max_drop=0.3, min_n=3)) == [0, 1, 2, 3]
    assert indices(ranked(passages, activation=LOGISTIC, max_drop=0.3, min_n=5)) == [0, 1, 2, 3, 4]
    assert indices(ranked(passages, activation=LOGISTIC, max_drop=0.3, top_n=1)) == [0]
    assert indices(ranked(passages, activation=LOGISTIC, max_drop=1.0)) == [0, 1, 2, 3, 4]
    assert indices(ranked([], activation=LOGISTIC, max_drop=0.3)) == []


def test_a_drop_of_a_blend_hides_no_better_result():
    """Where the order is not that of the scores, the end is where all further ones are lower."""
    ranking = ranked(["a 0", "b -3", "c 4", "d -9"], activation=LOGISTIC, blend=0.9, max_drop=0.3)
    assert indices(ranking) == [0, 1, 2]


@pytest.mark.parametrize("activation", ["identity", "sigmoid"])
def test_a_drop_needs_calibrated_probabilities(activation):
    """The same difference of logits, or of their sigmoids, means something else for another query."""
    with pytest.raises(InvalidInputError, match=r"`max_drop` is 0\.3 .*not calibrated.*Fit a Logistic"):
        Reranker(Numbers(), activation=activation, max_drop=0.3)
    reranker = Reranker(Numbers(), activation=LOGISTIC, max_drop=0.3)
    with pytest.raises(InvalidInputError, match="`max_drop` is"):
        reranker.activation = activation


def test_the_minimum_is_not_above_the_maximum():
    """`min_n` above `top_n` is refused by name."""
    with pytest.raises(InvalidInputError, match="`min_n` is 4 and `top_n` 3"):
        ranked(top_n=3, activation=LOGISTIC, max_drop=0.3, min_n=4)
    assert len(ranked(top_n=3, min_n=4)) == 3  # it limits the drop alone


def test_all_options_together():
    """Blended, without near-duplicates, ended at a drop: each as it is alone."""
    ranking = ranked(
        [*COPIES, "Something else entirely -9"],
        top_n=4,
        activation=Logistic(0.5, -3.0),
        blend=0.2,
        max_similarity=0.7,
        max_drop=0.25,
    )
    assert indices(ranking) == [0, 2, 4]
    scores = np.array([result.score for result in ranking])
    assert (np.diff(scores) >= -0.25).all()


def test_a_cut_at_a_drop_is_refused_for_a_fallback_that_is_not_calibrated():
    """Before the model fails; a fallback by name or object has the activation of the reranker."""
    settings = {"activation": LOGISTIC, "max_drop": 0.3}
    reranker = Reranker(Numbers(), **settings, fallback=Reranker(Numbers(), activation="sigmoid"))
    with pytest.raises(InvalidInputError, match=r"`max_drop` is 0\.3, but the fallback numbers has `act.*sigmoid"):
        reranker.rank(QUERY, PASSAGES)
    assert len(Reranker(Numbers(), **settings, fallback=Numbers()).rank(QUERY, PASSAGES)) == 6
