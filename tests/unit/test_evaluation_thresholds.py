"""Suggested thresholds, top_n and top_k."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from marcorank.collections.records import Collection
from marcorank.evaluation.measures import mean, parse_measures, per_query, reranked
from marcorank.evaluation.thresholds import cuts, judged_candidates
from marcorank.ranking import order_logits

# Some far apart, some closer than the digits that are printed, some equal.
LOGIT = st.one_of(
    st.floats(-12, 12, width=32),
    st.floats(0, 0.0009765625, width=32),
    st.sampled_from([0.0, 0.5, float(np.float32(-0.3))]),
)


@st.composite
def judged(draw) -> tuple[Collection, dict[str, dict[str, float]]]:
    """Draw up to four queries with candidates, logits, and grades from -1 to 3 for some candidates."""
    run, qrels, logits = {}, {}, {}
    for query_id in draw(st.lists(st.sampled_from(["q1", "q2", "q3", "q4"]), min_size=1, unique=True)):
        scores = draw(st.lists(LOGIT, max_size=25))
        run[query_id] = {f"d{index}": -float(index) for index in range(len(scores))}
        logits[query_id] = {f"d{index}": score for index, score in enumerate(scores)}
        grades = draw(st.lists(st.none() | st.integers(-1, 3), min_size=len(scores), max_size=len(scores)))
        found = {f"d{index}": grade for index, grade in enumerate(grades) if grade is not None}
        qrels[query_id] = {**found, "somewhere else": 1}
    return collection_of(run, qrels), logits


def collection_of(run, qrels) -> Collection:
    return Collection("tiny", dict.fromkeys(qrels, "text"), {}, qrels, run)


def one_query(logits, relevant) -> tuple[Collection, dict[str, dict[str, float]]]:
    """Return one query whose candidates are all judged."""
    names = [f"d{index}" for index in range(len(logits))]
    grades = {name: int(name in {f"d{index}" for index in relevant}) for name in names}
    run = {"q": {name: -float(index) for index, name in enumerate(names)}}
    return collection_of(run, {"q": grades}), {"q": dict(zip(names, map(float, logits), strict=True))}


def kept_by_a_reranker(threshold, collection, logits) -> dict[str, set[str]]:
    """Return what a reranker keeps at the printed threshold."""
    kept = {}
    for query_id, scored in logits.items():
        names = list(scored)
        order = order_logits(
            np.array(list(scored.values()), dtype=np.float32),
            activation="identity",
            score_threshold=float(f"{threshold:.4f}"),
            top_n=None,
        )
        kept[query_id] = {names[index] for index in order.indices}
    return kept


@given(judged(), st.integers(1, 2))
def test_every_threshold_keeps_what_it_says(data, relevant_grade):
    """The printed threshold gives the recall, precision and number beside it."""
    collection, logits = data
    found = cuts(collection, logits, relevant_grade=relevant_grade)
    assume(found is not None)
    grades = {
        (query_id, doc_id): collection.qrels[query_id].get(doc_id) for query_id in logits for doc_id in logits[query_id]
    }
    relevant = {pair for pair, grade in grades.items() if grade is not None and grade >= relevant_grade}
    counted = {pair for pair, grade in grades.items() if grade is not None or found.unjudged_as_irrelevant}
    for point in [*found.curve, *found.for_recall.values(), *filter(None, found.for_precision.values())]:
        assert point.score_threshold == round(point.score_threshold, 4)
        kept = kept_by_a_reranker(point.score_threshold, collection, logits)
        pairs = {(query_id, doc_id) for query_id, doc_ids in kept.items() for doc_id in doc_ids}
        assert point.recall == pytest.approx(len(pairs & relevant) / len(relevant))
        assert point.kept_per_query == pytest.approx(len(pairs) / len(collection.queries))
        if pairs & counted:
            assert point.precision == pytest.approx(len(pairs & relevant) / len(pairs & counted))
        else:
            assert point.precision is None


@given(judged())
def test_a_wanted_recall_is_kept_by_the_highest_threshold(data):
    """The threshold reaches the recall, and no higher one with four decimals does."""
    collection, logits = data
    found = cuts(collection, logits, recalls=(0.5, 0.8, 1.0))
    assume(found is not None)
    relevant = {
        query_id: {doc_id for doc_id in scored if collection.qrels[query_id].get(doc_id, 0) >= 1}
        for query_id, scored in logits.items()
    }
    total = sum(map(len, relevant.values()))
    for recall, point in found.for_recall.items():
        higher = kept_by_a_reranker(point.score_threshold + 0.0001, collection, logits)
        assert point.recall >= recall
        assert sum(len(higher[query_id] & relevant[query_id]) for query_id in logits) / total < recall


def test_thresholds_by_hand():
    """Ten candidates with logits from 9.5 down to 0.5, relevant are the 1st, 2nd, 4th and 8th."""
    collection, logits = one_query([9.5 - index for index in range(10)], [0, 1, 3, 7])
    found = cuts(collection, logits, recalls=(0.5, 0.75, 0.9), precisions=(0.9, 0.6, 0.5, 0.4))
    assert {recall: point.score_threshold for recall, point in found.for_recall.items()} == {
        0.5: 8.5,
        0.75: 6.5,
        0.9: 2.5,
    }
    point = found.for_recall[0.75]
    assert (point.recall, point.precision, point.kept_per_query) == (0.75, 0.75, 4.0)
    # At least 5 are kept; of 5, 6, 7, 8, 9 and 10 there are 3, 3, 3, 4, 4 and 4 relevant.
    precisions = {wanted: point and point.score_threshold for wanted, point in found.for_precision.items()}
    assert precisions == {0.9: None, 0.6: 5.5, 0.5: 4.5, 0.4: 0.5}
    assert (found.curve[0].score_threshold, found.curve[0].recall, found.curve[0].precision) == (0.5, 1.0, 0.4)
    assert (found.curve[-1].score_threshold, found.curve[-1].recall, found.curve[-1].precision) == (9.5001, 0.0, None)
    assert len(found.curve) == 11


def test_a_precision_holds_from_the_threshold_on():
    """A threshold that reaches the precision while a higher one does not is not chosen."""
    # 0.6 for the first 5 and again for the first 10, but 0.5 for the first 6 to 8.
    collection, logits = one_query(range(20, 0, -1), [0, 1, 2, 7, 8, 9])
    found = cuts(collection, logits, precisions=(0.6, 0.375))
    assert found.for_precision[0.6].score_threshold == 16.0
    assert found.for_precision[0.375].kept_per_query == 16.0


def test_single_passages_at_the_top_do_not_decide_on_a_precision():
    """A threshold has to keep at least 5 % of the number of relevant candidates."""
    # The 100 relevant ones come after 2 others: only above 20 kept does 0.9 hold, and 5 % of 100 are 5.
    collection, logits = one_query(range(300, 0, -1), range(2, 102))
    assert cuts(collection, logits, precisions=(0.9,)).for_precision[0.9] is None
    collection, logits = one_query(range(3000, 0, -1), range(2, 1002))
    point = cuts(collection, logits, precisions=(0.9,)).for_precision[0.9]
    assert point.kept_per_query == pytest.approx(1000 / 0.9, abs=1)


def test_logits_closer_than_the_digits_are_kept_together():
    """No printed threshold can separate them."""
    collection, logits = one_query([1.00002, 1.00001, 0.5], [0])
    point = cuts(collection, logits, recalls=(1.0,)).for_recall[1.0]
    assert (point.score_threshold, point.kept_per_query, point.precision) == (1.0, 2.0, 0.5)


@pytest.mark.parametrize("logit", [0.3, -0.3, 1.1, 2.675, -7.0001, 0.00005, -0.00005, 12345.6789, 0.0])
def test_rounding_down_is_exact(logit):
    """The threshold keeps its logit and is at most 0.0001 lower."""
    for value in (logit, float(np.float32(logit)), math.nextafter(logit, 1e9), math.nextafter(logit, -1e9)):
        collection, logits = one_query([value], [0])
        threshold = cuts(collection, logits, recalls=(1.0,)).for_recall[1.0].score_threshold
        assert threshold <= value < threshold + 0.000100001
        assert f"{threshold:.4f}" == f"{threshold:.10f}"[:-6]


def test_a_long_curve_is_thinned_out():
    """At most 200 points, from everything kept to nothing kept, in steps of recall too."""
    random = np.random.default_rng(0)
    collection, logits = one_query(random.normal(size=5000), random.choice(5000, 40, replace=False))
    curve = cuts(collection, logits).curve
    assert 100 < len(curve) <= 200
    thresholds = [point.score_threshold for point in curve]
    assert thresholds == sorted(set(thresholds))
    assert (curve[0].recall, curve[0].kept_per_query) == (1.0, 5000.0)
    assert (curve[-1].recall, curve[-1].precision, curve[-1].kept_per_query) == (0.0, None, 0.0)
    assert {round(point.recall * 40) for point in curve} == set(range(41))


@given(judged())
def test_top_n_recall_is_that_of_the_first_results(data):
    """The recall at n is the share of relevant candidates among the first n results of each query."""
    collection, logits = data
    found = cuts(collection, logits)
    assume(found is not None)
    deepest = max(map(len, logits.values()))
    assert list(found.top_n_recall) == list(range(1, deepest + 1))
    new_order = {query_id: list(results) for query_id, results in reranked(collection.run, logits, 99).items()}
    ranks = [
        rank
        for query_id, order in new_order.items()
        for rank, doc_id in enumerate(order, 1)
        if collection.qrels[query_id].get(doc_id, 0) >= 1
    ]
    for n, recall in found.top_n_recall.items():
        assert recall == pytest.approx(sum(rank <= n for rank in ranks) / len(ranks))
    # So few candidates are 1 % each.
    assert found.top_n == max(ranks)


def test_top_n_ends_where_little_is_gained():
    """After `top_n` no result adds 1 % of the relevant candidates; at most 50 are considered."""
    run, qrels, logits = {}, {}, {}
    # Of 200 queries 150 have their relevant passage first, 48 third, 1 fourth and 1 as the 60th.
    for number, rank in enumerate([1] * 150 + [3] * 48 + [4, 60]):
        run[f"q{number}"] = {f"d{index}": -float(index) for index in range(1, 61)}
        logits[f"q{number}"] = run[f"q{number}"]
        qrels[f"q{number}"] = {f"d{index}": int(index == rank) for index in range(1, 61)}
    found = cuts(collection_of(run, qrels), logits)
    assert found.top_n == 3
    assert list(found.top_n_recall) == list(range(1, 51))
    assert found.top_n_recall[50] == pytest.approx(0.995)


def test_top_k_values_are_the_measure_at_each_depth():
    """Depths go from 1 to all candidates; `top_k` is the smallest within 0.005 of the best."""
    random = np.random.default_rng(3)
    run, qrels, logits = {}, {}, {}
    for number in range(30):
        query_id = f"q{number}"
        run[query_id] = {f"d{index}": -float(index) for index in range(120 - number)}
        logits[query_id] = {doc_id: float(random.normal()) for doc_id in run[query_id]}
        qrels[query_id] = {f"d{index}": int(random.integers(0, 3)) for index in range(8)}
        for index in range(8):
            logits[query_id][f"d{index}"] += 3 * qrels[query_id][f"d{index}"]
    collection = collection_of(run, qrels)
    found = cuts(collection, logits, measure="RR@5")
    assert list(found.top_k_value) == [1, 2, 3, 5, 10, 15, 20, 30, 50, 75, 100, 120]
    (measure,) = parse_measures(["RR@5"])
    for top_k, value in found.top_k_value.items():
        assert value == pytest.approx(mean(per_query([measure], qrels, reranked(run, logits, top_k))["RR@5"]))
    highest = max(found.top_k_value.values())
    assert found.top_k_value[found.top_k] >= highest - 0.005
    assert all(value < highest - 0.005 for top_k, value in found.top_k_value.items() if top_k < found.top_k)


def test_depths_that_were_not_scored_are_left_out():
    """Candidates without a logit are below the greatest top_k, and are ignored."""
    collection, logits = one_query([3.0, 2.0, 1.0, 0.0], [1, 3])
    del logits["q"]["d2"], logits["q"]["d3"]
    found = cuts(collection, logits)
    assert list(found.top_k_value) == [1, 2]
    assert (found.curve[0].recall, found.curve[0].kept_per_query) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("grades", "as_irrelevant", "precision"),
    [
        # Only relevant passages are judged: the two others count as not relevant.
        ({"d0": 1, "d1": 2}, True, 0.5),
        # Judged with 0 as well: what nobody judged is left out.
        ({"d0": 1, "d1": 2, "d2": 0}, False, 2 / 3),
        ({"d0": 1, "d1": 2, "d2": -1}, False, 2 / 3),
        # A 0 here and there does not make the others judged.
        ({"d0": 1, "d1": 2, "d2": 0, **{f"x{number}": 1 for number in range(20)}}, True, 0.5),
        # Everything is judged.
        ({"d0": 1, "d1": 2, "d2": 1, "d3": 1}, False, 1.0),
    ],
)
def test_candidates_without_a_judgement(grades, as_irrelevant, precision):
    """They are left out if the judgements name passages that are not relevant, else they count as not relevant."""
    collection, logits = one_query([4.0, 3.0, 2.0, 1.0], [])
    collection = dataclasses.replace(collection, qrels={"q": grades})
    found = cuts(collection, logits)
    assert found.unjudged_as_irrelevant is as_irrelevant
    assert found.curve[0].precision == pytest.approx(precision)
    assert found.curve[0].kept_per_query == 4.0


def test_the_relevant_grade_decides_who_is_relevant():
    """Grades below it are not relevant."""
    collection, logits = one_query([3.0, 2.0, 1.0], [])
    collection = dataclasses.replace(collection, qrels={"q": {"d0": 1, "d1": 2, "d2": 0}})
    assert judged_candidates(collection, logits, relevant_grade=1).relevant.tolist() == [True, True, False]
    assert judged_candidates(collection, logits, relevant_grade=2).relevant.tolist() == [False, True, False]
    assert cuts(collection, logits, relevant_grade=3) is None


@pytest.mark.parametrize("relevant", [[], None])
def test_without_a_relevant_candidate_there_is_no_cut(relevant):
    """Without a relevant candidate, or without any, the result is None."""
    collection, logits = one_query([2.0, 1.0], relevant or [])
    if relevant is None:
        collection, logits = dataclasses.replace(collection, run={}), {}
    assert cuts(collection, logits) is None


def test_one_relevant_candidate_is_enough():
    """One relevant candidate is enough for a threshold; a precision needs at least 5 candidates."""
    collection, logits = one_query([1.5], [0])
    found = cuts(collection, logits)
    assert {point.score_threshold for point in found.for_recall.values()} == {1.5}
    assert set(found.for_precision.values()) == {None}
    assert (found.top_n, found.top_k, found.top_n_recall, found.top_k_value) == (1, 1, {1: 1.0}, {1: 1.0})
