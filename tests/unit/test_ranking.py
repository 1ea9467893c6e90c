"""Ranking: order, threshold, top_n, activation, finite check, and what a ranking shows."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marcorank import InvalidInputError, Logistic, RankedPassage, Ranking, ScoreError
from marcorank.ranking import (
    RerankStatus,
    activate,
    check_finite,
    check_shape,
    checked_activation,
    order_logits,
    plain_activation,
)

LOGITS = st.lists(st.floats(-50, 50, width=32), max_size=40)
LOGISTIC = st.builds(Logistic, st.floats(0.01, 5), st.floats(-10, 10))
ACTIVATION = st.sampled_from(["identity", "sigmoid"]) | LOGISTIC


def order(logits, activation="identity", score_threshold=None, top_n=None):
    return order_logits(
        np.array(logits, dtype=np.float32), activation=activation, score_threshold=score_threshold, top_n=top_n
    )


@given(LOGITS, ACTIVATION)
def test_sorts_by_logit_and_ties_keep_input_order(logits, activation):
    """Best logit first; equal logits stay in the order in which they came."""
    indices = order(logits, activation).indices.tolist()
    assert indices == sorted(range(len(logits)), key=lambda index: (-np.float32(logits[index]), index))


@given(LOGITS, ACTIVATION, st.none() | st.floats(-60, 60), st.none() | st.integers(1, 50))
def test_threshold_applies_before_top_n(logits, activation, score_threshold, top_n):
    """The threshold is on the scale that is shown and comes before top_n."""
    everything = order(logits, activation)
    passing = [
        (index, score)
        for index, score in zip(everything.indices, everything.scores, strict=True)
        if score_threshold is None or score >= score_threshold
    ]
    cut = order(logits, activation, score_threshold, top_n)
    assert list(zip(cut.indices, cut.scores, strict=True)) == passing[:top_n]


def test_saturated_sigmoid_keeps_the_order_of_the_logits():
    """Logits whose sigmoid is 1.0 in every float are still told apart."""
    found = order([100.0, 200.0, 150.0], "sigmoid")
    assert found.indices.tolist() == [1, 2, 0]
    assert found.scores.tolist() == [1.0, 1.0, 1.0]


def test_zero_is_a_threshold():
    """Only None means that no threshold is given."""
    assert order([1.0, 0.0, -1.0], score_threshold=0).indices.tolist() == [0, 1]


@given(st.floats(-1e4, 1e4, width=32))
def test_sigmoid_is_right_and_never_overflows(logit):
    """The activation equals the logistic function for every size of logit."""
    score = float(activate(np.array([logit], dtype=np.float32), "sigmoid")[0])
    exact = 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
    assert score == pytest.approx(exact, rel=1e-12, abs=1e-300)


@given(st.floats(-100, 100, width=32), LOGISTIC)
def test_a_fitted_map_is_the_logistic_function_of_its_line(logit, logistic):
    """The score is 1 / (1 + exp(-(a * logit + b))), and with a = 1, b = 0 exactly the sigmoid's."""
    logits = np.array([logit], dtype=np.float32)
    log_odds = logistic.a * logit + logistic.b
    assert activate(logits, logistic)[0] == pytest.approx(1 / (1 + math.exp(-log_odds)), rel=1e-12)
    assert activate(logits, Logistic(1, 0))[0] == activate(logits, "sigmoid")[0]


@given(LOGITS, LOGISTIC)
def test_a_fitted_map_keeps_the_order(logits, logistic):
    """A higher logit never has a lower score, so that a threshold on scores is one on logits."""
    assert (np.diff(activate(np.sort(np.array(logits, dtype=np.float32)), logistic)) >= 0).all()


def test_a_fitted_map_never_overflows():
    """Numbers beyond the range of floats end at 0 and 1."""
    logits = np.array([-3e38, -1.0, 0.0, 1.0, 3e38], dtype=np.float32)
    assert activate(logits, Logistic(1e308, -1e308)).tolist() == [0.0, 0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (0, 1, "`a` of Logistic is 0; expected a finite number above 0"),
        (-0.5, 1, "`a` of Logistic is -0.5; expected a finite number above 0"),
        (math.nan, 1, "`a` of Logistic is nan; expected a finite number above 0"),
        (True, 1, "`a` of Logistic is True; expected"),
        ("1", 1, "`a` of Logistic is '1'; expected"),
        (1, math.inf, "`b` of Logistic is inf; expected a finite number"),
        (1, None, "`b` of Logistic is None; expected a finite number"),
    ],
)
def test_a_fitted_map_must_rise_and_be_finite(a, b, message):
    """A map that would turn the order around, or that has no value, is an error."""
    with pytest.raises(InvalidInputError, match=message):
        Logistic(a, b)


@given(LOGISTIC)
def test_a_fitted_map_has_a_plain_form(logistic):
    """JSON, pickle and copies give an equal map; its numbers become Python floats."""
    assert checked_activation(json.loads(json.dumps(plain_activation(logistic)))) == logistic
    assert pickle.loads(pickle.dumps(logistic)) == copy.deepcopy(logistic) == logistic  # noqa: S301
    widened = Logistic(np.float32(0.5), np.int64(-1))
    assert (type(widened.a), type(widened.b), widened) == (float, float, Logistic(0.5, -1.0))


@pytest.mark.parametrize("value", ["softmax", None, ["identity"], {"a": 1}, {"a": 1, "b": 2, "c": 3}, (1, 2), 1.0])
def test_another_activation_is_named(value):
    """The message has what was found and all that is allowed."""
    with pytest.raises(InvalidInputError, match=r"`activation` is .*'identity', 'sigmoid', or a Logistic\(a, b\)"):
        checked_activation(value)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_names_its_passage(broken):
    """NaN and infinity are errors that name passage and model."""
    with pytest.raises(ScoreError, match=r"`tiny` returned .* for `passages\[1\]` \(2 of 3"):
        check_finite(np.array([0.0, broken, broken], dtype=np.float32), model="tiny")


@pytest.mark.parametrize(
    ("values", "found"), [([1.0], r"shape \(1,\)"), ([[1.0, 2.0]], r"\(1, 2\)"), (3.0, r"\(\)"), (["a", "b"], "'a'")]
)
def test_a_scorer_must_return_one_number_a_passage(values, found):
    """Another shape, or no numbers, is an error that says what came and what was expected."""
    with pytest.raises(ScoreError, match=rf"{found}.*expected"):
        check_shape(values, count=2, model="tiny")


def ranking(text: str = "the best\npassage") -> Ranking:
    return Ranking(
        "a <query>",
        "tiny",
        (
            RankedPassage(4, 1, 0.75, 1.1, text, truncated=False),
            RankedPassage(0, 2, 0.25, -1.1, "x" * 200, truncated=True, span=(3, 9)),
        ),
        query_truncated=False,
    )


def test_a_ranking_is_an_immutable_sequence():
    """Length, index, slice and iteration work; nothing can be set."""
    found = ranking()
    assert len(found) == 2
    assert found[0].index == 4
    assert found[:1] == (found[0],)
    assert [result.rank for result in found] == [1, 2]
    with pytest.raises(AttributeError, match="cannot assign"):
        found[0].score = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="does not support item assignment"):
        found[0] = found[1]  # type: ignore[index]


def test_plain_dicts_go_through_json():
    """`to_dicts` holds nothing but what JSON has."""
    assert json.loads(json.dumps(ranking().to_dicts())) == ranking().to_dicts()
    assert ranking().to_dicts()[1]["span"] == [3, 9]


def test_a_ranking_prints_as_a_table():
    """One line a passage under a header, the text cut to one line."""
    lines = str(ranking()).splitlines()
    assert lines[0] == "2 passages for 'a <query>', scored by tiny"
    assert lines[1].split() == ["rank", "index", "score", "logit", "text"]
    assert lines[2].split() == ["1", "4", "0.7500", "1.1000", "the", "best", "passage"]
    assert lines[3].endswith("xxxxxx")
    assert len(str(Ranking("q", "tiny", ())).splitlines()) == 2
    assert str(Ranking("q", "tiny", ranking().results[:1])).startswith("1 passage for 'q', scored by tiny\n")


@pytest.mark.parametrize("logit", [0.75, None])
def test_a_table_has_logits_only_where_they_are_not_the_scores(logit):
    """Logits are a column of their own only with an activation that changes them, on a terminal and in a notebook."""
    same = Ranking("q", "tiny", (RankedPassage(0, 1, 0.75, logit, "a"), RankedPassage(1, 2, None, None, "b")))
    lines = [line.split() for line in str(same).splitlines()]
    assert lines[1:] == [["rank", "index", "score", "text"], ["1", "0", "0.7500", "a"], ["2", "1", "-", "b"]]
    assert "logit" not in same._repr_html_()
    assert "logit" in ranking()._repr_html_()


def test_a_ranking_with_half_a_surrogate_pair_can_be_printed():
    """Texts that were cut in the middle of an emoji are printed with a question mark, everywhere."""
    half = "half \ud83c of a pair"
    passage = RankedPassage(index=0, rank=1, score=1.0, logit=1.0, text=half)
    broken = Ranking(half, half, (passage,), status=RerankStatus("fallback", "ScoreError", half))
    for shown in (str(broken), broken._repr_html_(), str(broken.status)):
        assert "half ? of a pair" in shown
        assert shown.encode()
    assert broken[0].text == half


def test_the_notebook_table_escapes_texts():
    """HTML in queries and passages is shown, not run."""
    table = ranking("<b>the best</b>\npassage")._repr_html_()
    assert "a &lt;query&gt;" in table
    assert "&lt;b&gt;the best&lt;/b&gt; passage" in table
    assert not re.search("<query>|<b>", table)
    assert table.count("<tr>") == 3
