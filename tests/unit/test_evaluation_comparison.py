"""Paired comparison of two rankings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from marcorank.collections.records import Collection
from marcorank.evaluation.comparison import compare as compare_measures
from marcorank.evaluation.comparison import depth_result
from marcorank.evaluation.measures import parse_measures

# Exact in binary: scipy takes sums that are equal but for their rounding as different, and then counts fewer signs.
VALUES = st.sampled_from([0.0, 3 / 32, 11 / 32, 0.5, 41 / 64, 1.0])


def by_query(values) -> dict[str, float]:
    return {f"q{index}": float(value) for index, value in enumerate(values)}


def compare(values, baseline, *, seed=0):
    """Compare one measure."""
    return compare_measures({"x": values}, {"x": baseline}, seed=seed)["x"]


def scipy_p_value(differences, **settings) -> float:
    return stats.permutation_test(
        (np.asarray(differences),),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        **settings,
    ).pvalue


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=9))
def test_few_queries_get_the_exact_p_value(pairs):
    """All signs are tried; the p-value is that of scipy's permutation test."""
    values, baseline = zip(*pairs, strict=True)
    found = compare(by_query(values), by_query(baseline))
    assert found.p_value == pytest.approx(scipy_p_value(np.subtract(values, baseline), n_resamples=np.inf))


def test_differences_that_cancel_but_for_their_rounding_are_no_evidence():
    """1/3 and 1/3 - 0.1 to either side: the mean is 0, and every sign pattern is as far from it."""
    values, baseline = [1 / 3, 1 / 3, 0.0, 0.1], [0.0, 0.1, 1 / 3, 1 / 3]
    assert compare(by_query(values), by_query(baseline)).p_value == 1.0


def test_a_p_value_by_hand():
    """With differences 1, 2 and 3 two of the eight sign patterns are as far from 0: all plus, all minus."""
    found = compare(by_query([2.0, 3.0, 4.0, 5.0]), by_query([1.0, 1.0, 1.0, 5.0]))
    assert found.p_value == 0.25
    assert (found.difference, found.wins, found.ties, found.losses) == (1.5, 3, 1, 0)


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05])
def test_many_queries_get_a_sampled_p_value_and_interval(shift):
    """p-value and interval agree with those of scipy to the error of 10,000 samples."""
    random = np.random.default_rng(5)
    differences = np.round(random.normal(shift, 0.25, 200), 2) * (random.random(200) < 0.8)
    found = compare(by_query(differences), by_query(np.zeros(200)))
    expected = scipy_p_value(differences, n_resamples=20_000, random_state=1)
    assert found.p_value == pytest.approx(expected, abs=5 * (0.25 / 10_000) ** 0.5)
    interval = stats.bootstrap((differences,), np.mean, n_resamples=20_000, method="percentile", random_state=1)
    assert found.interval == pytest.approx(tuple(interval.confidence_interval), abs=0.002)
    assert found.interval[0] < found.difference < found.interval[1]


def test_the_p_value_is_never_zero():
    """The observed signs count as one of the samples."""
    assert compare(by_query([1.0] * 40), by_query([0.0] * 40)).p_value == 1 / 10_001


def test_small_numbers_of_queries_that_differ_are_exact_among_many_that_do_not():
    """Queries that stayed the same change neither the p-value nor its exactness."""
    few = compare(by_query([0.4, 0.2, 0.9]), by_query([0.1, 0.1, 0.1]))
    many = compare(by_query([0.4, 0.2, 0.9, *[0.5] * 500]), by_query([0.1, 0.1, 0.1, *[0.5] * 500]))
    assert few.p_value == many.p_value == 0.25
    assert (many.wins, many.ties, many.losses) == (3, 500, 0)


def test_rounding_makes_no_win():
    """Differences up to 1e-9 are ties, and no difference at all has the p-value 1."""
    found = compare(by_query([0.1 + 0.2, 0.5]), by_query([0.3, 0.5 + 1e-10]))
    assert (found.wins, found.ties, found.losses, found.p_value) == (0, 2, 0, 1.0)
    assert compare(by_query([0.5]), by_query([0.25])).p_value == 1.0


@pytest.mark.parametrize("queries", [1, 3, 1000])
def test_where_all_differ_by_the_same_the_interval_is_that_point(queries):
    """The same holds for one query, without a warning."""
    found = compare(by_query([0.4] * queries), by_query([0.3] * queries))
    assert found.interval == (found.difference, found.difference)
    assert found.difference == pytest.approx(0.1)


def test_the_result_depends_on_values_and_seed_only():
    """The order of the queries, and the measures beside it, change nothing; another seed draws other samples."""
    random = np.random.default_rng(0)
    values, baseline = by_query(random.random(300)), by_query(random.random(300))
    found = compare(values, baseline)
    assert compare(dict(reversed(values.items())), baseline) == found
    beside = compare_measures({"x": baseline, "y": values}, {"x": values, "y": baseline, "z": {}})
    assert list(beside) == ["x", "y"]
    assert beside["y"].p_value == found.p_value
    assert beside["y"].interval == pytest.approx(found.interval)
    assert beside["x"].wins == found.losses
    assert compare(values, baseline, seed=1).interval != found.interval


COLLECTION = Collection(
    name="tiny",
    queries={"q1": "one", "q2": "two", "q3": "without results"},
    passages=dict.fromkeys("abcde", "text"),
    qrels={"q1": {"c": 1}, "q2": {"a": 1, "e": 2}, "q3": {"a": 1}},
    run={"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q2": {"a": 3.0, "b": 2.0, "e": 1.0}},
)
LOGITS = {"q1": {"a": -2.0, "b": 0.0, "c": 4.0}, "q2": {"a": 1.0, "b": 2.0, "e": -3.0}}


def test_a_depth_is_measured_beside_what_it_has_to_be_compared_with():
    """First stage, identity, reranked and best, over all judged queries; wins and losses are against identity."""
    found = depth_result(COLLECTION, LOGITS, 2, parse_measures(["RR@10", "R@10"]), [1.0, 9.0, 2.0])
    rr, recall = found.measures
    assert found.top_k == 2
    # q1: c is third in the first stage and out of reach at depth 2. q2: a is first, and second after reranking.
    assert rr.measure == "RR@10"
    assert rr.per_query == {"q1": 0.0, "q2": 0.5, "q3": 0.0}
    assert rr.per_query_identity == {"q1": 0.0, "q2": 1.0, "q3": 0.0}
    assert (rr.first_stage, rr.identity, rr.value, rr.best) == pytest.approx((4 / 9, 1 / 3, 1 / 6, 1 / 3))
    assert rr.difference == pytest.approx(-1 / 6)
    assert (rr.wins, rr.ties, rr.losses, rr.p_value) == (0, 2, 1, 1.0)
    assert rr.interval[0] < rr.difference < rr.interval[1]
    assert (recall.first_stage, recall.identity, recall.value) == pytest.approx((2 / 3, 1 / 6, 1 / 6))
    assert (found.latency_p50_ms, found.latency_p95_ms) == (2.0, 9.0)


def test_a_depth_beyond_the_candidates_takes_what_there_is():
    """Without times there is no latency."""
    found = depth_result(COLLECTION, LOGITS, 1000, parse_measures(["RR@10"]))
    (rr,) = found.measures
    assert rr.per_query == {"q1": 1.0, "q2": 0.5, "q3": 0.0}
    assert rr.identity == rr.first_stage
    assert (found.latency_p50_ms, found.latency_p95_ms) == (None, None)
    assert depth_result(COLLECTION, LOGITS, 3, parse_measures(["RR@10"]), []).latency_p50_ms is None
