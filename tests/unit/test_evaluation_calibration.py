"""Calibration of logits to probabilities."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcorank import Logistic, MissingExtraError, Reranker
from marcorank.collections.records import Collection
from marcorank.evaluation.calibration import calibrate
from marcorank.testing import WordOverlapScorer


def data_of(logits, relevant, *, queries=1) -> tuple[Collection, dict[str, dict[str, float]]]:
    """Return judged candidates, distributed over a number of queries."""
    run: dict[str, dict[str, float]] = {f"q{number}": {} for number in range(queries)}
    qrels: dict[str, dict[str, int]] = {query_id: {} for query_id in run}
    scored: dict[str, dict[str, float]] = {query_id: {} for query_id in run}
    for index, (logit, is_relevant) in enumerate(zip(logits, relevant, strict=True)):
        query_id = f"q{index % queries}"
        run[query_id][f"d{index}"] = -float(index)
        scored[query_id][f"d{index}"] = float(logit)
        qrels[query_id][f"d{index}"] = int(is_relevant)
    return Collection("tiny", dict.fromkeys(run, "text"), {}, qrels, run), scored


def drawn(a, b, *, pairs=20_000, queries=200):
    """Return pairs whose probability of relevance is a logistic function of the logit."""
    random = np.random.default_rng(7)
    logits = random.normal(-1, 4, pairs)
    return data_of(logits, random.random(pairs) < 1 / (1 + np.exp(-(a * logits + b))), queries=queries)


@pytest.mark.parametrize(("a", "b"), [(0.5, -1.0), (1.5, 2.0), (1.0, 0.0)])
def test_the_map_that_made_the_data_is_found(a, b):
    """Slope and intercept are estimated to the error of 20,000 pairs."""
    found = calibrate(*drawn(a, b))
    assert (found.a, found.b) == pytest.approx((a, b), rel=0.05, abs=0.05)
    assert found.judged == 20_000
    assert found.expected_error < 0.02


def test_calibrated_probabilities_are_more_honest_than_the_sigmoid():
    """If the sigmoid is wrong, log loss and expected error decrease; if it is right, they stay."""
    off = calibrate(*drawn(0.4, -2.0))
    assert off.log_loss < off.log_loss_sigmoid - 0.1
    assert off.expected_error < off.expected_error_sigmoid / 5
    right = calibrate(*drawn(1.0, 0.0))
    assert right.log_loss == pytest.approx(right.log_loss_sigmoid, abs=0.001)


@given(
    *(st.integers(1, 30) for _ in range(4)),
    st.floats(-8, 8).filter(lambda low: abs(low) > 0.01),
    st.floats(0.1, 8),
)
def test_two_logits_give_the_shares_of_relevant_pairs(low_relevant, low_other, high_relevant, high_other, low, gap):
    """With two different logits the fit reproduces both shares of relevant pairs, by Platt's targets."""
    logits = [low] * (low_relevant + low_other) + [low + gap] * (high_relevant + high_other)
    relevant = [1] * low_relevant + [0] * low_other + [1] * high_relevant + [0] * high_other
    found = calibrate(*data_of(logits, relevant))
    positive, negative = low_relevant + high_relevant, low_other + high_other
    yes, no = (positive + 1) / (positive + 2), 1 / (negative + 2)
    shares = [
        (count * yes + other * no) / (count + other)
        for count, other in ((low_relevant, low_other), (high_relevant, high_other))
    ]
    if shares[1] - shares[0] < 1e-5:
        assert found is None or shares[1] > shares[0]
        return
    reached = 1 / (1 + np.exp(-(found.a * np.array([low, low + gap]) + found.b)))
    assert reached == pytest.approx(shares, abs=1e-5)


def test_losses_by_hand():
    """With one query the losses are those of the fit; those of the sigmoid follow from the logits alone."""
    # One relevant of four at logit -2, three of four at logit 2. The sigmoid gives 0.119203 and 0.880797.
    found = calibrate(*data_of([-2] * 4 + [2] * 4, [1, 0, 0, 0, 1, 1, 1, 0]))
    # -(ln 0.119203 + 3 ln 0.880797) / 4 on both sides.
    assert found.log_loss_sigmoid == pytest.approx(0.626928, abs=1e-6)
    # 0.25 - 0.119203 in one bin and 0.880797 - 0.75 in another.
    assert found.expected_error_sigmoid == pytest.approx(0.130797, abs=1e-6)
    # Platt's targets are 5/6 and 1/6, so that the shares become (5/6 + 3/6) / 4 = 1/3 and 2/3, and with ln 2 as the
    # log-odds of 2/3 the slope ln 2 / 2.
    assert (found.a, found.b) == pytest.approx((np.log(2) / 2, 0.0), abs=1e-6)
    assert found.log_loss == pytest.approx(-(np.log(1 / 3) + 3 * np.log(2 / 3)) / 4, abs=1e-6)
    assert found.expected_error == pytest.approx(0.75 - 2 / 3, abs=1e-6)
    assert (found.judged, found.relevant) == (8, 4)


def test_losses_are_of_queries_that_were_left_out():
    """A query that contradicts all others is predicted from the others alone."""
    queries = [f"q{number}" for number in range(13)]
    run = {query_id: {"low": 1.0, "high": 0.5} for query_id in queries}
    logits = {query_id: {"low": -4.0, "high": 4.0} for query_id in queries}
    qrels = {query_id: {"low": 0, "high": 1} for query_id in queries} | {"q12": {"low": 1, "high": 0}}
    found = calibrate(Collection("odd", dict.fromkeys(queries, "text"), {}, qrels, run), logits)
    # Of 13 pairs of each logit 12 are right: were all in the fit, its targets would make it (12 x 14/15 + 1/15) / 13.
    right = (12 * 14 / 15 + 1 / 15) / 13
    assert found.a == pytest.approx(np.log(right / (1 - right)) / 4, abs=1e-6)
    assert found.log_loss > -(12 * np.log(right) + np.log(1 - right)) / 13 + 0.01


@pytest.mark.parametrize("queries", [1, 2, 5, 20])
def test_pairs_that_are_told_apart_without_an_error_have_a_finite_map(queries):
    """Separable logits have a finite slope, whatever their scale."""
    for scale in (1e-3, 1.0, 1e3):
        logits = np.concatenate([np.full(40, -2.0), np.full(40, 3.0)]) * scale
        found = calibrate(*data_of(logits, [0] * 40 + [1] * 40, queries=queries))
        assert 0 < found.a * scale < 10
        assert found.log_loss < 0.2


@pytest.mark.parametrize(
    ("logits", "relevant"),
    [
        ([1.0, 2.0], [0, 0]),
        ([1.0, 2.0], [1, 1]),
        ([1.0, 2.0, 1.5, 2.5], [1, 0, 1, 0]),
        ([1.5] * 6, [1, 0] * 3),
        ([-1.0, -1.0, 1.0, 1.0], [0, 1, 0, 1]),
        ([], []),
    ],
    ids=["none relevant", "all relevant", "wrong way round", "one logit", "nothing learnt", "no candidates"],
)
def test_where_nothing_can_be_fitted_there_is_none(logits, relevant):
    """Without relevant or without other candidates, and with uninformative logits, there is no calibration."""
    assert calibrate(*data_of(logits, relevant)) is None


def test_candidates_without_a_judgement_are_left_out_or_not_relevant():
    """They are left out if grade 0 is among the judgements, else they count as not relevant."""
    collection, scored = data_of([3.0, 2.0, -1.0, -2.0, -3.0], [1, 1, 0, 0, 0])
    for judged, pairs in (({"d0": 1, "d1": 1, "d2": 0}, 3), ({"d0": 1, "d1": 1}, 5)):
        found = calibrate(dataclasses.replace(collection, qrels={"q0": judged}), scored)
        assert (found.judged, found.relevant) == (pairs, 2)


def test_the_relevant_grade_decides():
    """Grades below it count as not relevant."""
    collection, scored = data_of([3.0, 2.0, -1.0], [2, 1, 0])
    assert calibrate(collection, scored, relevant_grade=2).relevant == 1


def test_a_calibration_is_used_as_an_activation():
    """The calibration is an activation of a reranker, whose scores are then the probabilities."""
    found = calibrate(*drawn(0.5, -1.0))
    assert found.activation == Logistic(found.a, found.b)
    (result,) = Reranker(WordOverlapScorer(), activation=found.activation).rank("red", ["red"])
    assert result.score == pytest.approx(1 / (1 + np.exp(-(found.a * 5.0 + found.b))))


def test_twice_is_the_same():
    """The result depends neither on chance nor on the order of the logits."""
    collection, scored = drawn(0.5, -1.0, pairs=500, queries=20)
    assert calibrate(collection, scored) == calibrate(collection, dict(reversed(scored.items())))


def test_without_scipy_the_message_has_the_command(monkeypatch):
    """The error about a missing package has the pip command."""
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r'pip install "marcorank\[evaluation\]"'):
        calibrate(*data_of([1.0, 2.0], [0, 1]))
