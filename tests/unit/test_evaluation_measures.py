"""Measures of rankings, and the rankings that a reranked one is compared with."""

from __future__ import annotations

import math
import shutil
import sys

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcorank import InvalidInputError, MissingExtraError
from marcorank.evaluation.measures import (
    DEFAULT_MEASURES,
    best,
    identity,
    mean,
    parse_measures,
    per_query,
    reranked,
)

NAMES = [
    *("nDCG@10", "nDCG@3", "nDCG", "RR@10", "RR(rel=2)@10", "RR", "R@2", "P@5", "P(rel=2)@1", "AP", "AP(rel=3)@4"),
    *("Success@5", "Judged@2", "Judged"),
]
QUERY_IDS = st.sampled_from(["q1", "q2", "q3", "q4"])
DOC_IDS = [f"d{number}" for number in range(7)]
QRELS = st.dictionaries(
    QUERY_IDS, st.dictionaries(st.sampled_from(DOC_IDS), st.integers(-2, 3), min_size=1), min_size=1
)
# Any scores, tied ones too: the order of the mapping is what counts.
RUN = st.dictionaries(
    QUERY_IDS | st.just("not judged"),
    st.permutations(DOC_IDS).flatmap(
        lambda order: st.lists(st.sampled_from([0.0, 1.0, 2.5]), max_size=len(order)).map(
            lambda scores: dict(zip(order, scores, strict=False))
        )
    ),
)


@given(QRELS, RUN)
def test_means_equal_those_of_ir_measures(qrels, run):
    """For every kind of measure, with graded, negative and missing judgements, ties and queries without results."""
    measures = parse_measures(NAMES)
    by_rank = {
        query_id: {doc_id: -float(index) for index, doc_id in enumerate(results)}
        for query_id, results in run.items()
        if results
    }
    found = per_query(measures, qrels, run)
    assert {name: values.keys() for name, values in found.items()} == {name: qrels.keys() for name in NAMES}
    # pytrec_eval crashes on grades below 0, which mean no more than 0.
    grades = {query_id: {doc_id: max(0, grade) for doc_id, grade in found.items()} for query_id, found in qrels.items()}
    expected = ir_measures.calc_aggregate(measures, grades, by_rank)
    assert {name: mean(values) for name, values in found.items()} == pytest.approx(
        {str(measure): value for measure, value in expected.items()}, abs=1e-12
    )


def test_a_ranking_measured_by_hand():
    """nDCG, RR, P, R, AP, Judged and Success of one ranking; the query without results counts as 0."""
    qrels = {"q": {"a": 3, "b": 1, "c": 2, "d": 0}, "without": {"a": 1}}
    run = {"q": {"x": 9.0, "a": 8.0, "b": 7.0, "c": 6.0}}
    names = ["nDCG@3", "RR@3", "P@3", "R@3", "AP", "Judged@3", "Success@1", "RR(rel=4)@3"]
    found = per_query(parse_measures(names), qrels, run)
    assert {name: values["q"] for name, values in found.items()} == pytest.approx(
        {
            # Gains are 0, 3, 1: 0 / log2(2) + 3 / log2(3) + 1 / log2(4) = 2.392789. The best order has 3, 2, 1:
            # 3 / log2(2) + 2 / log2(3) + 1 / log2(4) = 4.761860.
            "nDCG@3": 0.502490,
            # The first relevant passage is the second.
            "RR@3": 0.5,
            # 2 of 3 results are relevant, and 2 of the 3 relevant passages are among them.
            "P@3": 0.666667,
            "R@3": 0.666667,
            # The precision at each relevant one, divided by their number: (1/2 + 2/3 + 3/4) / 3.
            "AP": 0.638889,
            # x is not judged.
            "Judged@3": 0.666667,
            "Success@1": 0.0,
            "RR(rel=4)@3": 0.0,
        },
        abs=1e-6,
    )
    assert {values["without"] for values in found.values()} == {0.0}
    assert mean(found["RR@3"]) == 0.25


@pytest.mark.skipif(shutil.which("perl") is None, reason="ir_measures computes these measures in Perl")
def test_measures_of_exponential_gains_take_any_ids(capfd):
    """ERR and nDCG with exponential gains, by hand, for ids that are not numbers; nothing reaches standard error."""
    qrels = {"a question": {"d 1": 3, "d-2": 0, "late": 1}, "one-7": {"x": 4}, "none": {"y": 1}, "empty": {}}
    run = {"a question": {"d-2": 9.0, "d 1": 9.0, "unjudged": 1.0}, "one-7": {"x": 1.0}, "none": {"z": 1.0}}
    measures = parse_measures(["ERR@10", "nDCG(dcg='exp-log2')@10", "ERR@1", "RR@10"])
    found = per_query(measures, qrels, run)
    # The chance that a reader stops at a grade is (2 ** grade - 1) / 16.
    assert found["ERR@10"] == pytest.approx(
        {"a question": 7 / 16 / 2, "one-7": 15 / 16, "none": 0, "empty": 0}, abs=1e-5
    )
    ideal = 7 + 1 / math.log2(3)
    assert found["nDCG(dcg='exp-log2')@10"] == pytest.approx(
        {"a question": 7 / math.log2(3) / ideal, "one-7": 1, "none": 0, "empty": 0}, abs=1e-5
    )
    assert found["ERR@1"] == pytest.approx({"a question": 0, "one-7": 15 / 16, "none": 0, "empty": 0}, abs=1e-5)
    assert found["RR@10"] == {"a question": 0.5, "one-7": 1, "none": 0, "empty": 0}
    with pytest.raises(InvalidInputError, match="greatest grade of the qrels is 5, and ERR@10 is defined for grades"):
        per_query(measures, {"q": {"a": 5}}, {"q": {"a": 1.0}})
    assert capfd.readouterr().err == ""


def test_a_query_without_judgements_or_without_results_is_zero():
    """Empty mappings and an empty run are allowed."""
    qrels = {"q": {"a": 1}, "nothing judged": {}}
    measures = parse_measures(NAMES)
    for run in ({}, {"q": {}, "nothing judged": {"a": 1.0}}, {"other": {"a": 1.0}}):
        assert all(values == {"q": 0.0, "nothing judged": 0.0} for values in per_query(measures, qrels, run).values())


def test_grades_below_zero_are_judged_and_not_relevant():
    """Negative grades count as 0."""
    below = {f"q{number}": {f"d{index}": -1 - index for index in range(200)} | {"a": 1} for number in range(50)}
    zero = {query_id: {doc_id: max(0, grade) for doc_id, grade in grades.items()} for query_id, grades in below.items()}
    run = {query_id: dict.fromkeys([*sorted(grades)[50:], "x"], 1.0) for query_id, grades in below.items()}
    measures = parse_measures([*NAMES, "Bpref"])
    assert per_query(measures, below, run) == per_query(measures, zero, run)


def test_many_results_with_close_scores_keep_their_order():
    """Only the order of a run counts, however close or large its scores."""
    order = [f"d{number}" for number in range(3000)]
    qrels = {"q": {"d1500": 1}}
    for scores in ([1.0] * 3000, [20_000_000.0 - index for index in range(3000)], [-1e-12 * p for p in range(3000)]):
        run = {"q": dict(zip(order, scores, strict=True))}
        found = per_query(parse_measures(["RR", "P@1501", "P@1500"]), qrels, run)
        assert [values["q"] for values in found.values()] == pytest.approx([1 / 1501, 1 / 1501, 0])


def test_measures_have_the_names_of_ir_measures():
    """Names, aliases and measure objects are accepted; duplicates are removed."""
    names = ["RR@10", "MRR@10", "RR(rel=1)@10", ir_measures.nDCG @ 10, "RR(rel=2)@10", "MAP"]
    assert list(map(str, parse_measures(names))) == ["RR@10", "nDCG@10", "RR(rel=2)@10", "AP"]
    assert tuple(map(str, parse_measures(DEFAULT_MEASURES))) == DEFAULT_MEASURES


def test_the_relevant_grade_counts_where_a_measure_has_none_of_its_own():
    """The relevant grade becomes part of the measure's name."""
    measures = parse_measures(["nDCG@10", "RR@10", "P(rel=1)@5", "R@10", "Judged@10"], relevant_grade=2)
    assert list(map(str, measures)) == ["nDCG@10", "RR(rel=2)@10", "P@5", "R(rel=2)@10", "Judged@10"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ndcg@10"], r"Measure 'ndcg@10' cannot be computed: measure not found: ndcg\. Expected .* nDCG@10, RR@10"),
        (["nDCG@10", "foo bar"], "Measure 'foo bar' cannot be computed: .*R@100, P@5, AP, Success@5 or Judged@10"),
        ([""], "Measure '' cannot be computed"),
        (["RR(foo=2)"], "Measure 'RR.foo=2.' cannot be computed"),
        (["RBP"], "Measure 'RBP' cannot be computed: .*pip install ir-measures.cwl_eval"),
        (["P"], "Measure 'P' cannot be computed: `cutoff` is missing. Expected a name of ir_measures, such as nDCG@10"),
        (["nDCG@0"], "Measure 'nDCG@0' cannot be computed: `cutoff` is 0; expected a whole number of at least 1"),
        (["nDCG@2.5"], "Measure 'nDCG@2.5' cannot be computed: `cutoff` is 2.5; expected a whole number of at least 1"),
        (["P@True"], "Measure 'P@True' cannot be computed: `cutoff` is True; expected a whole number of at least 1"),
        (["RR(rel=0)@10"], "`rel` is 0; expected a whole number of at least 1"),
        ([ir_measures.nDCG(gains={0: -1, 1: 1}) @ 3], "`gains` are .0: -1, 1: 1.; expected none below 0"),
        (["NumRet"], "Measure 'NumRet' is a count over all queries; expected a mean"),
        ([10], "A measure is 10; expected a name, such as"),
        ([], "`measures` is empty; expected at least one"),
        ("nDCG@10", "`measures` is 'nDCG@10'; expected a list of names"),
    ],
)
def test_a_name_that_stands_for_no_measure_is_named(names, message):
    """The message has the name, the reason, and valid examples."""
    with pytest.raises(InvalidInputError, match=message):
        parse_measures(names)


def test_without_ir_measures_the_message_has_the_command(monkeypatch):
    """The error about a missing package has the pip command."""
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingExtraError, match=r'pip install "marcorank\[evaluation\]"'):
        parse_measures(["nDCG@10"])


def test_reranking_changes_the_first_candidates_only():
    """Candidates below `top_k` are dropped; ties keep first-stage order."""
    run = {"q": {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}, "empty": {}}
    logits = {"q": {"a": -1.0, "b": 2.0, "c": 2.0, "d": 9.0}}
    assert [list(results) for results in identity(run, 3).values()] == [["a", "b", "c"], []]
    assert list(reranked(run, logits, 3)["q"].items()) == [("b", 2.0), ("c", 2.0), ("a", -1.0)]
    assert list(reranked(run, logits, 9)["q"]) == ["d", "b", "c", "a"]
    assert reranked(run, logits, 3)["empty"] == {}


def test_the_best_order_is_by_grade_then_judged_then_first_stage():
    """Judged candidates come before unjudged ones, whatever their grade."""
    run = {"q": dict.fromkeys("abcdefg", 0.0), "not judged": {"x": 1.0, "y": 0.5}}
    qrels = {"q": {"b": 1, "c": 0, "d": 3, "e": -1, "g": 3}}
    assert list(best(run, qrels, 6)["q"]) == ["d", "b", "c", "e", "a", "f"]
    assert list(best(run, qrels, 7)["q"]) == ["d", "g", "b", "c", "e", "a", "f"]
    assert list(best(run, qrels, 6)["not judged"]) == ["x", "y"]


@given(QRELS, RUN, st.randoms(use_true_random=False), st.integers(1, 7))
def test_no_reranking_is_better_than_the_best(qrels, run, random, top_k):
    """At the same depth no logits reach a higher value, of any measure, for any query."""
    measures = parse_measures(NAMES)
    logits = {query_id: {doc_id: random.gauss(0, 1) for doc_id in results} for query_id, results in run.items()}
    reached = per_query(measures, qrels, reranked(run, logits, top_k))
    limit = per_query(measures, qrels, best(run, qrels, top_k))
    for name, values in reached.items():
        assert all(value <= limit[name][query_id] + 1e-12 for query_id, value in values.items())


@pytest.mark.parametrize(
    ("logits", "found"), [({"q": {"a": 1.0}}, "None"), ({}, "None"), ({"q": {"a": 1.0, "b": float("nan")}}, "nan")]
)
def test_a_candidate_without_a_usable_logit_is_named(logits, found):
    """A depth that was not scored, and NaN, are errors that name query and passage."""
    with pytest.raises(InvalidInputError, match=f"The logit of passage '[ab]' for query 'q' is {found}; expected"):
        reranked({"q": {"a": 2.0, "b": 1.0}}, logits, 2)
