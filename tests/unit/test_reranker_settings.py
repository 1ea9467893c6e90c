"""Settings that are assigned later, have no effect, are missing or are misspelt."""

from __future__ import annotations

import copy
import pickle

import pytest

from marcorank import InvalidInputError, Logistic, Reranker, ScoreError
from marcorank.remote import RemoteScorer
from marcorank.testing import WordOverlapScorer

QUERY = "red apple"
PASSAGES = ["green pear", "red apple"]


class Failing:
    name = "failing"

    def score(self, query, passages):
        raise RuntimeError("out of memory")


class Probabilities(WordOverlapScorer):
    score_kind = "probability"


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("on_error", "bogus", "`on_error` is 'bogus'; expected one of 'raise', 'passthrough'"),
        ("timeout_s", -1, "`timeout_s` is -1; expected None or a number of seconds above 0"),
        ("activation", "softmax", "`activation` is 'softmax'; expected one of"),
        ("activation", Logistic(1, 0), "which is fitted on logits; word-overlap gives probabilities only"),
        ("fallback", 3, "`fallback` is 3; expected a model name"),
        ("fallback", {}, "`fallback` is an empty dict; expected that of a Reranker"),
        ("max_length", 64, "`max_length` of a Reranker cannot be changed; make a new one"),
        ("model", "bundled", "`model` of a Reranker cannot be changed; make a new one"),
    ],
)
def test_what_is_assigned_later_is_checked(name, value, match):
    """A value that the constructor refuses, or that could have no effect, is an error, and nothing changes."""
    reranker = Reranker(Probabilities())
    before = repr(reranker)
    with pytest.raises(InvalidInputError, match=match):
        setattr(reranker, name, value)
    assert repr(reranker) == before
    assert reranker.rank(QUERY, PASSAGES)[0].index == 1


def test_what_is_assigned_later_counts_for_the_next_call_and_for_copies():
    """Each of the four settings, also in the dict, in a pickle and in a copy."""
    reranker = Reranker(Failing())
    with pytest.raises(ScoreError, match="out of memory"):
        reranker.rank(QUERY, PASSAGES)
    reranker.on_error = "passthrough"
    assert reranker.rank(QUERY, PASSAGES).status.outcome == "passthrough"
    reranker.fallback = WordOverlapScorer()
    assert reranker.rank(QUERY, PASSAGES)[0].score == 5.0
    reranker.activation = "sigmoid"
    assert reranker.rank(QUERY, PASSAGES)[0].score == pytest.approx(0.9933, abs=1e-4)
    reranker.timeout_s = 60
    for again in (copy.copy(reranker), pickle.loads(pickle.dumps(reranker))):  # noqa: S301
        assert (again.on_error, again.activation, again.timeout_s) == ("passthrough", "sigmoid", 60.0)
        assert again.rank(QUERY, PASSAGES).results == reranker.rank(QUERY, PASSAGES).results
    named = Reranker("bundled")
    named.fallback = "bundled"
    named.timeout_s = 5
    assert Reranker.from_dict(named.to_dict()).to_dict() == named.to_dict()
    assert (named.to_dict()["fallback"], named.to_dict()["timeout_s"]) == ("bundled", 5.0)


def test_a_fallback_of_somebody_else_keeps_its_activation():
    """A `Reranker` that was given is not changed; one that was made from a name follows."""
    given = Reranker(WordOverlapScorer())
    for fallback, expected in ((given, "identity"), ("bundled", "sigmoid"), ({"model": "bundled"}, "sigmoid")):
        reranker = Reranker(Failing(), fallback=fallback)
        reranker.activation = "sigmoid"
        assert reranker.fallback.activation == expected


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("backend", "onnx"),
        ("device", "cpu"),
        ("precision", "fp32"),
        ("threads", 1),
        ("max_length", 64),
        ("max_query_tokens", 8),
        ("long_passages", "windows"),
        ("revision", "main"),
        ("cache_folder", "models"),
        ("local_files_only", True),
        ("allow_pickle", True),
        ("cache_size", 10),
        ("token", "s3cret"),
    ],
)
def test_settings_without_effect_on_a_scorer_are_refused(setting, value):
    """They are for models on this machine; nobody is left to believe that they count."""
    for scorer in (WordOverlapScorer(), RemoteScorer("tei+http://127.0.0.1:1")):
        with pytest.raises(InvalidInputError, match=f"`{setting}` .*no effect on the scorer .*leave it out") as found:
            Reranker(scorer, **{setting: value})
        assert "s3cret" not in str(found.value)


def test_settings_that_a_fallback_uses_are_allowed_beside_a_scorer():
    """A fallback that was given by name has the threads and the folder of this reranker."""
    reranker = Reranker(Failing(), fallback="bundled", threads=1)
    assert reranker.fallback.to_dict()["threads"] == 1


def test_an_unknown_kind_of_scores_is_refused():
    """A misspelt `score_kind` of a scorer would make logits of probabilities."""

    class Misspelt(WordOverlapScorer):
        score_kind = "probabilities"

    with pytest.raises(InvalidInputError, match=r"`score_kind` of the scorer .* is 'probabilities'; expected"):
        Reranker(Misspelt())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (None, "The settings are None; expected a dict such as `to_dict` returns"),
        ("bundled", "The settings are 'bundled'; expected a dict"),
        ([("model", "bundled")], r"The settings are \[\('model', 'bundled'\)\]; expected a dict"),
        ({}, "The settings are an empty dict; expected one such as `to_dict` returns"),
        ({1: 2, "a": 3}, "Unknown settings 1, 'a'; expected some of"),
        ({"model": "bundled", "presicion": "fp32"}, r"Unknown settings 'presicion'; .*Did you mean 'precision'\?$"),
    ],
)
def test_a_dict_that_is_not_one_of_a_reranker_is_refused(settings, match):
    """The error says what was found, what is missing, and which name is meant."""
    with pytest.raises(InvalidInputError, match=match):
        Reranker.from_dict(settings)


def test_an_empty_dict_is_no_fallback():
    """An empty dict is no way to ask for the default model."""
    with pytest.raises(InvalidInputError, match="`fallback` is an empty dict; expected that of a Reranker"):
        Reranker("bundled", fallback={})


def test_the_dict_of_a_server_is_checked_in_the_same_way():
    """`RemoteScorer.from_dict` names what is wrong too."""
    for settings, match in (
        (None, "The settings are None"),
        ({}, "'url' is missing"),
        ({"url": "tei+http://127.0.0.1:1", "timeout": 3}, r"Did you mean 'timeout_s'\?"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            RemoteScorer.from_dict(settings)


def test_a_misspelt_argument_names_what_is_meant():
    """As for any function it is a TypeError; without a similar name there is no question."""
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'presicion'\. Did you mean 'precision'\?$"):
        Reranker("bundled", presicion="fp32")
    with pytest.raises(TypeError, match=r"Reranker\.__init__\(\) got an unexpected keyword argument 'zzz'\.$"):
        Reranker("bundled", zzz=1)
