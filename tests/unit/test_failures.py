"""A model that fails, hangs or is slow: who answers in its place, when, and how that is told."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent import futures

import numpy as np
import pytest
from tokenizers import Tokenizer

from fake_backend import FakeBackend, WatchedScheduler
from marcorank import (
    ClosedError,
    InvalidInputError,
    MissingExtraError,
    Reranker,
    RerankTimeoutError,
    ScoreError,
    UnknownModelError,
)
from marcorank._calls.failures import _RateLimitedWarnings
from marcorank._inference.pairs import PairEncoder
from marcorank._inference.scorer import CrossEncoderScorer
from marcorank.ranking import RerankStatus
from marcorank.remote import RemoteScorer
from marcorank.testing import WordOverlapScorer
from random_models import bundled_folder

QUERY = "open a file"
PASSAGES = ["a list is mutable", "open a file with open", "close the file"]


class Failing:
    """Fails as it is told."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error or RuntimeError("out of memory")
        # A warning is logged once for each name and cause; one of its own for each test has all of its warnings.
        self.name = f"failing-{next(numbers)}"
        self.reason = f"Model `{self.name}` raised {type(self.error).__name__}: {self.error}"

    def score(self, query, passages):
        raise self.error


numbers = itertools.count()


class Hanging:
    """Answers when it is let go, or so late that no call may wait for it.

    Attributes:
        answered: How many calls it has answered.
    """

    name = "hanging"

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.answered = 0

    def score(self, query, passages):
        self.go_on.wait(60)
        self.answered += 1
        return [1.0] * len(passages)


@pytest.fixture
def hanging():
    scorer = Hanging()
    yield scorer
    scorer.go_on.set()


@pytest.fixture(params=["rank", "rank_many", "arank"])
def rank(request):
    """The three ways to rank."""

    def call(reranker, query, passages, **cut):
        if request.param == "rank":
            return reranker.rank(query, passages, **cut)
        if request.param == "rank_many":
            return reranker.rank_many([(query, passages)], **cut)[0]
        return asyncio.run(reranker.arank(query, passages, **cut))

    return call


def test_a_failure_is_raised_where_nothing_else_is_asked_for(rank):
    """The default hides nothing."""
    with pytest.raises(ScoreError, match="raised RuntimeError: out of memory"):
        rank(Reranker(Failing()), QUERY, PASSAGES)


def test_a_passthrough_is_the_head_of_the_input_without_scores(rank):
    """The first stage's top_n in its order; the ranking says why, also as JSON."""
    failing = Failing()
    ranking = rank(Reranker(failing, on_error="passthrough"), QUERY, PASSAGES, top_n=2, score_threshold=5.0)
    assert [(result.index, result.rank, result.score, result.logit) for result in ranking] == [
        (0, 1, None, None),
        (1, 2, None, None),
    ]
    assert ranking.status == RerankStatus("passthrough", "ScoreError", failing.reason)
    assert json.loads(json.dumps(ranking.status.to_dict()))["reason"] == failing.reason
    assert f"passthrough: ScoreError: {failing.reason}" in str(ranking)
    assert f"passthrough: ScoreError: {failing.reason}" in ranking._repr_html_()


def test_a_fallback_ranks_where_the_model_fails(rank):
    """Its scores, its name, and a status that says why."""
    expected = Reranker(WordOverlapScorer()).rank(QUERY, PASSAGES, top_n=2)
    failing = Failing()
    ranking = rank(Reranker(failing, fallback=WordOverlapScorer()), QUERY, PASSAGES, top_n=2)
    assert ranking.results == expected.results
    assert ranking.model == "word-overlap"
    assert ranking.status == RerankStatus("fallback", "ScoreError", failing.reason)


@pytest.mark.parametrize("settings", [{}, {"timeout_s": 60}])
def test_a_fault_of_the_program_is_raised_and_never_passed_through(rank, monkeypatch, settings):
    """An error in our own ranking code is no outage: neither the fallback nor the input order hides it."""

    def broken(*_args, **_settings):
        raise AttributeError("a bug")

    monkeypatch.setattr("marcorank._calls.ranker.select", broken)
    reranker = Reranker(WordOverlapScorer(), on_error="passthrough", fallback=WordOverlapScorer(), **settings)
    with pytest.raises(AttributeError, match="a bug"):
        rank(reranker, QUERY, PASSAGES)


def test_a_model_folder_that_cannot_be_read_is_an_outage(tmp_path, monkeypatch):
    """An error of the disk becomes a `ModelLoadError`, which the fallback makes up for."""
    monkeypatch.setattr("marcorank._models.loading.read_json", lambda *_: (_ for _ in ()).throw(PermissionError("no")))
    ranking = Reranker("bundled", fallback=WordOverlapScorer()).rank(QUERY, PASSAGES)
    assert (ranking.status.outcome, ranking.status.error) == ("fallback", "ModelLoadError")


def test_what_nobody_can_answer_goes_on_by_on_error(rank):
    """A fallback that fails too is followed by its own cause, or by the order of the input."""
    failing, fallback = Failing(), Failing(ValueError("also broken"))
    with pytest.raises(ScoreError, match="raised ValueError: also broken") as caught:
        rank(Reranker(failing, fallback=fallback), QUERY, PASSAGES)
    assert str(caught.value.__cause__.__cause__) == failing.reason
    ranking = rank(Reranker(failing, on_error="passthrough", fallback=fallback), QUERY, PASSAGES)
    assert ranking.status == RerankStatus("passthrough", "ScoreError", fallback.reason)


def test_fallbacks_can_be_chained(rank):
    """A reranker as fallback brings its own."""
    chain = Reranker(Failing(), fallback=Reranker(Failing(), fallback=WordOverlapScorer()))
    assert rank(chain, QUERY, PASSAGES).model == "word-overlap"


@pytest.mark.parametrize(
    "error",
    [
        InvalidInputError("a wrong argument"),
        MissingExtraError("pip install something"),
        UnknownModelError("no such model"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_program_are_always_raised(error):
    """No other model and no other order makes them right."""
    reranker = Reranker(Failing(error), on_error="passthrough", fallback=WordOverlapScorer())
    with pytest.raises(type(error), match=str(error) or None):
        reranker.rank(QUERY, PASSAGES)


def test_wrong_arguments_are_raised_with_every_setting(rank):
    """They are looked at before anything can fail."""
    reranker = Reranker(Failing(), on_error="passthrough", fallback=WordOverlapScorer(), timeout_s=1)
    with pytest.raises(InvalidInputError, match="`top_n` is 0"):
        rank(reranker, QUERY, PASSAGES, top_n=0)
    with pytest.raises(InvalidInputError, match="`query` is blank"):
        rank(reranker, " ", PASSAGES)
    with pytest.raises(InvalidInputError, match=r"`passages\[0\]` is None"):
        rank(reranker, QUERY, [None])


def test_scores_that_are_none_are_failures(rank):
    """NaN of a model is no ranking, and no reason to have none."""

    class Broken:
        def score(self, query, passages):
            return [np.nan] * len(passages)

    with pytest.raises(ScoreError, match="nan"):
        rank(Reranker(Broken()), QUERY, PASSAGES)
    assert rank(Reranker(Broken(), on_error="passthrough"), QUERY, PASSAGES).status.error == "ScoreError"


def test_a_call_ends_with_its_time(rank, hanging):
    """An error of its own, a TimeoutError too, that names model and time; and soon enough."""
    with pytest.raises(RerankTimeoutError, match=r"`hanging` did not answer within 0\.1 s") as caught:
        rank(Reranker(hanging, timeout_s=0.1), QUERY, PASSAGES)
    assert isinstance(caught.value, TimeoutError)
    assert not hanging.answered


def test_time_that_is_over_is_a_failure_like_others(rank, hanging):
    """Passed through, or ranked by the fallback, which has the other half of the time."""
    assert rank(Reranker(hanging, timeout_s=0.1, on_error="passthrough"), QUERY, PASSAGES).status.error == (
        "RerankTimeoutError"
    )
    ranking = rank(Reranker(hanging, timeout_s=5, fallback=WordOverlapScorer()), QUERY, PASSAGES)
    assert (ranking.model, ranking.status.reason[:38]) == ("word-overlap", "Model `hanging` did not answer within ")
    assert "2.5 s" in ranking.status.reason


def test_model_and_fallback_share_the_time(rank, hanging):
    """Both hang: the call ends with its own time, not with the sum of theirs."""
    both = Reranker(hanging, timeout_s=0.4, fallback=Reranker(hanging, timeout_s=3600), on_error="passthrough")
    assert rank(both, QUERY, PASSAGES).status.outcome == "passthrough"
    assert not hanging.answered


@pytest.mark.parametrize(
    ("timeout_s", "of_fallback", "match"),
    [
        (0.4, None, r"within 0\.\d+ s, its share of the `timeout_s` of 0\.4 s\. Increase `timeout_s`"),
        (0.4, 3600, r"within 0\.\d+ s, its share of the `timeout_s` of 0\.4 s\. Increase `timeout_s`"),
        (0.4, 0.1, r"within 0\.1 s\. Increase `timeout_s`"),
        (None, 0.1, r"within 0\.1 s\. Increase `timeout_s`"),
    ],
)
def test_the_message_of_a_timeout_names_the_setting(rank, hanging, timeout_s, of_fallback, match):
    """The number of seconds that was set, beside the share of it that the fallback had."""
    model = Failing() if timeout_s is None else hanging
    both = Reranker(model, timeout_s=timeout_s, fallback=Reranker(hanging, timeout_s=of_fallback))
    with pytest.raises(RerankTimeoutError, match=f"`hanging` did not answer {match}"):
        rank(both, QUERY, PASSAGES)


def test_a_model_that_answers_in_time_is_not_touched(rank, load):
    """The settings change nothing where nothing fails."""
    loaded = load(WordOverlapScorer)
    expected = Reranker(WordOverlapScorer()).rank(QUERY, PASSAGES)
    guarded = Reranker(WordOverlapScorer(), timeout_s=60, on_error="passthrough", fallback="bundled")
    assert rank(guarded, QUERY, PASSAGES) == expected
    assert rank(guarded, QUERY, []).results == ()
    assert loaded == []


@pytest.mark.parametrize("timeout_s", [None, 60])
def test_scores_are_never_those_of_somebody_else(timeout_s):
    """`score` gives the scores of the model or an error."""
    passing = Reranker(Failing(), on_error="passthrough", fallback=WordOverlapScorer(), timeout_s=timeout_s)
    with pytest.raises(ScoreError, match="raised RuntimeError: out of memory"):
        passing.score(QUERY, PASSAGES)
    own = Reranker(WordOverlapScorer(), activation="sigmoid", timeout_s=timeout_s)
    assert own.score(QUERY, PASSAGES).tolist() == Reranker(WordOverlapScorer()).score(QUERY, PASSAGES).tolist()


def test_scores_have_a_time_limit_too(hanging):
    """`timeout_s` counts for every call."""
    with pytest.raises(RerankTimeoutError, match=r"within 0\.1 s"):
        Reranker(hanging, timeout_s=0.1).score(QUERY, PASSAGES)


def test_a_local_model_drops_what_is_out_of_time(load):
    """What a timed-out call had waiting is not scored, and the model answers the next one."""
    tokenizer = Tokenizer.from_file(str(bundled_folder() / "tokenizer.json"))
    backend = FakeBackend(
        gated=True, column=3, max_padded_tokens=1
    )  # one passage a batch; its first token is its logit
    scheduler = WatchedScheduler(backend)
    load(lambda: CrossEncoderScorer(scheduler, PairEncoder(tokenizer, max_length=512), name="fake"))
    reranker = Reranker("bundled", timeout_s=0.2)
    with pytest.raises(RerankTimeoutError, match="`bundled` did not answer"):
        reranker.rank("berlin", ["wall", "river", "museum"])
    backend.open_gate()
    reranker.timeout_s = 60
    assert reranker.rank("berlin", ["capital"])[0].logit == tokenizer.token_to_id("capital")
    assert len(backend.batches) <= 2  # of the call that was given up, the one that ran
    assert backend.batches[-1] == [tokenizer.token_to_id("capital")]
    reranker.close()


def test_many_callers_of_a_hanging_scorer_all_end(hanging):
    """More than there are threads for: nobody waits for the time of the others."""
    reranker = Reranker(hanging, timeout_s=0.3, on_error="passthrough")

    async def ask():
        return await asyncio.gather(*(reranker.arank(QUERY, PASSAGES) for _ in range(100)))

    assert {ranking.status.error for ranking in asyncio.run(ask())} == {"RerankTimeoutError"}
    assert not hanging.answered


def test_close_does_not_wait_for_who_was_given_up(hanging):
    """A scorer that never returns does not keep the program."""
    reranker = Reranker(hanging, timeout_s=0.1, on_error="passthrough")
    reranker.rank(QUERY, PASSAGES)
    reranker.close()
    assert not hanging.answered


def test_a_failure_is_logged_once_per_cause_and_minute(rank, caplog):
    """The first at once; the next after a minute, with how many there were meanwhile."""
    now = [1000.0]
    said = _RateLimitedWarnings(lambda: now[0])
    status = RerankStatus("passthrough", "RuntimeError", "out of memory")
    with caplog.at_level(logging.WARNING, "marcorank"):
        for _ in range(5):
            said.warn("m", status, "the order of the input was kept")
        now[0] += 59
        said.warn("m", RerankStatus("passthrough", "OSError", "gone"), "the order of the input was kept")
        said.warn("m", status, "the order of the input was kept")
        now[0] += 2
        said.warn("m", status, "the order of the input was kept")
    first = "Reranking with m failed; the order of the input was kept. RuntimeError: out of memory"
    assert [record.getMessage() for record in caplog.records] == [
        first,
        "Reranking with m failed; the order of the input was kept. OSError: gone",
        f"{first} (5 more like it since the last message)",
    ]
    caplog.clear()
    failing = Failing()
    for _ in range(3):
        rank(Reranker(failing, on_error="passthrough"), QUERY, PASSAGES)
    assert len(caplog.records) == 1


def test_warm_up_loads_the_fallback_and_bears_a_dead_model(caplog, load):
    """An application starts although its server is down, if its calls would be answered all the same."""
    loaded = load(WordOverlapScorer)
    dead = Failing()
    Reranker(dead, fallback="bundled").warm_up()
    assert [settings.model for settings in loaded] == ["bundled"]
    assert f"the other model ranks. ScoreError: {dead.reason}" in caplog.text
    Reranker(Failing(), on_error="passthrough").warm_up()
    with pytest.raises(ScoreError, match="raised RuntimeError: out of memory"):
        Reranker(Failing()).warm_up()


def test_warm_up_bears_a_dead_fallback_too(caplog):
    """What answers is enough; where nothing does, `on_error` decides."""
    dead = Failing()
    Reranker(WordOverlapScorer(), fallback=dead).warm_up()
    assert f"Reranking with {dead.name} failed" in caplog.text
    Reranker(Failing(), fallback=Failing(), on_error="passthrough").warm_up()
    with pytest.raises(ScoreError, match="raised RuntimeError: out of memory"):
        Reranker(Failing(), fallback=Failing()).warm_up()
    with pytest.raises(InvalidInputError, match="wrong"):
        Reranker(WordOverlapScorer(), fallback=Failing(InvalidInputError("wrong"))).warm_up()


@pytest.mark.parametrize(
    "error",
    [StopIteration(), futures.CancelledError(), asyncio.CancelledError()],
    ids=["StopIteration", "cancelled future", "cancelled task"],
)
def test_errors_that_no_future_can_hold_do_not_hang_or_cancel(error):
    """Asyncio would never wake who waits, or take it for a cancellation that nobody asked for."""

    async def ask(reranker):
        return await asyncio.wait_for(reranker.arank(QUERY, PASSAGES), 20)

    with pytest.raises(ScoreError, match=rf"Model `failing-\d+` raised {type(error).__name__}"):
        asyncio.run(ask(Reranker(Failing(error))))
    assert asyncio.run(ask(Reranker(Failing(error), on_error="passthrough"))).status.error == "ScoreError"


def test_a_program_ends_although_a_scorer_hangs():
    """Nothing waits for a thread that was given up, not even the interpreter."""
    code = """
import threading
from marcorank import Reranker
class Hanging:
    def score(self, query, passages):
        threading.Event().wait()
reranker = Reranker(Hanging(), timeout_s=0.1, on_error="passthrough")
print(reranker.rank("a", ["b"]).status.error)
reranker.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)  # noqa: S603
    assert done.stdout == "RerankTimeoutError\n"


def test_what_a_fallback_takes_from_the_settings():
    """Its scale is that of the model, however it was given, unless it says another."""
    down = RemoteScorer("tei+http://127.0.0.1:9", max_attempts=1)
    for fallback in ("bundled", WordOverlapScorer(), {"model": "bundled"}):
        assert Reranker(down, activation="sigmoid", fallback=fallback).fallback.activation == "sigmoid"
    own = {"model": "bundled", "activation": "identity"}
    assert Reranker(down, activation="sigmoid", fallback=own).fallback.activation == "identity"
    behind = Reranker("tei+http://127.0.0.1:9", threads=1, local_files_only=True, fallback="bundled")
    assert (behind.fallback.to_dict()["threads"], behind.fallback.to_dict()["local_files_only"]) == (1, True)
    careful = Reranker("bundled", special_tokens="text", fallback="bundled")
    assert careful.fallback.to_dict()["special_tokens"] == "text"


def test_a_server_as_fallback_goes_through_dicts():
    """With its settings, and without the key."""
    server = RemoteScorer("tei+http://127.0.0.1:9", api_key="s3cret", timeout_s=2, max_attempts=1)
    plain = json.loads(json.dumps(Reranker("bundled", fallback=server).to_dict()))
    assert Reranker.from_dict(plain).fallback.model == server
    assert "s3cret" not in str(plain)


def test_dicts_hold_no_tokens():
    """They would be shown and dumped; no message repeats them."""
    with pytest.raises(InvalidInputError, match="`fallback` holds a `token`") as refused:
        Reranker("bundled", fallback={"model": "bundled", "token": "s3cret"})
    assert "s3cret" not in str(refused.value)
    with pytest.raises(InvalidInputError, match="`model` is a dict") as refused:
        Reranker({"model": "bundled", "token": "s3cret"})
    assert "s3cret" not in str(refused.value)


def test_closing_closes_the_fallback_that_was_made_here():
    """And leaves one that somebody else may use."""
    shared = Reranker(WordOverlapScorer())
    for fallback, closed in ((shared, False), (WordOverlapScorer(), True), ({"model": "bundled"}, True)):
        with Reranker(WordOverlapScorer(), fallback=fallback) as reranker:
            made = reranker.fallback
        if closed:
            with pytest.raises(ClosedError, match="was closed"):
                made.rank(QUERY, PASSAGES)
        else:
            assert made.rank(QUERY, PASSAGES)


def test_the_log_names_who_ranked(caplog):
    """At the end of a chain, or nobody."""
    Reranker(Failing(), fallback=Reranker(Failing(), fallback=WordOverlapScorer())).rank(QUERY, PASSAGES)
    assert [record.getMessage().partition(" failed; ")[2][:20] for record in caplog.records] == [
        "word-overlap ranked.",
        "word-overlap ranked.",
    ]
    caplog.clear()
    Reranker(Failing(), fallback=Reranker(Failing(), on_error="passthrough")).rank(QUERY, PASSAGES)
    (record,) = caplog.records
    assert "; the order of the input was kept. " in record.getMessage()


def test_a_time_limit_of_centuries_is_no_failure(rank):
    """What no lock can wait for is as long as it can."""
    assert rank(Reranker(WordOverlapScorer(), timeout_s=1e300), QUERY, PASSAGES).status is None


def test_settings_round_trip():
    """to_dict, JSON and pickle carry them; a fallback that was named stays a name."""
    reranker = Reranker("bundled", on_error="passthrough", timeout_s=0.5, fallback="bundled")
    plain = json.loads(json.dumps(reranker.to_dict()))
    assert (plain["on_error"], plain["timeout_s"], plain["fallback"]) == ("passthrough", 0.5, "bundled")
    for again in (Reranker.from_dict(plain), pickle.loads(pickle.dumps(reranker))):  # noqa: S301
        assert again.to_dict() == reranker.to_dict()
    nested = Reranker("bundled", fallback=Reranker("bundled", activation="sigmoid"))
    assert Reranker.from_dict(json.loads(json.dumps(nested.to_dict()))).fallback.activation == "sigmoid"
    with_object = Reranker("bundled", fallback=WordOverlapScorer())
    assert pickle.loads(pickle.dumps(with_object)).fallback.name == "word-overlap"  # noqa: S301
    with pytest.raises(InvalidInputError, match="The fallback is the object"):
        with_object.to_dict()
    assert repr(reranker) == "Reranker('bundled', on_error='passthrough', timeout_s=0.5, fallback='bundled')"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_error": "ignore"}, "`on_error` is 'ignore'; expected one of 'raise', 'passthrough'"),
        ({"timeout_s": 0}, "`timeout_s` is 0; expected None or a number of seconds above 0"),
        ({"timeout_s": float("inf")}, "`timeout_s` is inf"),
        ({"timeout_s": "1"}, "`timeout_s` is '1'"),
        ({"timeout_s": True}, "`timeout_s` is True"),
        ({"fallback": 5}, "`fallback` is 5; expected a model name"),
        ({"fallback": {"modle": "bundled"}}, "Unknown settings 'modle'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    """What was found, and what is allowed."""
    with pytest.raises(InvalidInputError, match=message):
        Reranker("bundled", **settings)


def test_an_unknown_fallback_is_found_at_once():
    """Not on the day on which it is needed."""
    with pytest.raises(UnknownModelError, match="no-such-model"):
        Reranker("bundled", fallback="no-such-model")


class Probable:
    """Gives probabilities, as some servers do."""

    name = "probable"
    score_kind = "probability"

    def score(self, query, passages):
        return [0.2, 0.9, 0.5][: len(passages)]


def test_probabilities_are_said_to_be_such(rank):
    """They are scores under either activation, no logits, and sorted."""
    for activation in ("identity", "sigmoid"):
        ranking = rank(Reranker(Probable(), activation=activation), QUERY, PASSAGES)
        assert (ranking.score_kind, [result.index for result in ranking]) == ("probability", [1, 2, 0])
        assert [result.score for result in ranking] == pytest.approx([0.9, 0.5, 0.2])
        assert {result.logit for result in ranking} == {None}
    assert Reranker(Probable(), timeout_s=9).score(QUERY, PASSAGES).tolist() == pytest.approx([0.2, 0.9, 0.5])
    assert Reranker(WordOverlapScorer()).rank(QUERY, PASSAGES).score_kind == "logit"


def test_a_threshold_on_logits_is_refused_where_there_are_none(rank):
    """Also if only the fallback has none; on the scale of probabilities it counts."""
    for reranker in (Reranker(Probable()), Reranker(WordOverlapScorer(), fallback=Probable())):
        with pytest.raises(InvalidInputError, match=r"probable gives probabilities only\. Pass `activation='sigmoid'`"):
            rank(reranker, QUERY, PASSAGES, score_threshold=0.4)
    kept = rank(Reranker(Probable(), activation="sigmoid"), QUERY, PASSAGES, score_threshold=0.4)
    assert [result.index for result in kept] == [1, 2]
    with pytest.raises(InvalidInputError, match=r"is 2\.0, but probable has .*; expected one in that range\.$"):
        rank(Reranker(Probable(), activation="sigmoid"), QUERY, PASSAGES, score_threshold=2)
    with pytest.raises(InvalidInputError, match="which is fitted on logits; probable gives probabilities only"):
        Reranker(Probable(), activation={"a": 1.0, "b": 0.0})


@pytest.mark.parametrize("rank", ["rank", "rank_many"], indirect=True)  # asyncio has cycles of its own
def test_no_failure_keeps_the_model(rank):
    """Errors hold the frames that they came through; those hold neither error nor scorer when the call is over."""

    class Broken:
        def score(self, query, passages):
            raise RuntimeError("broken")  # a new one each time: who keeps an error keeps its frames

    gc.collect()
    gc.disable()
    try:
        reranker = Reranker(Broken(), on_error="passthrough", fallback=Broken())
        scorer = weakref.ref(reranker.model)
        rank(reranker, QUERY, PASSAGES)
        reranker.close()
        del reranker
        assert scorer() is None
    finally:
        gc.enable()
