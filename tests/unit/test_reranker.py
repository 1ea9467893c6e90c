"""The face of the core, with a scorer that needs no model."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

from marcorank import ClosedError, InvalidInputError, Logistic, Reranker, ScoreError, UnknownModelError
from marcorank.testing import WordOverlapScorer

QUERY = "red apple"
PASSAGES = ["green pear", "red apple", "red cherry", "", "red apple"]


class FixedScorer:
    """Returns what it is told to, and keeps what it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked: list[list[str]] = []

    def score(self, query, passages):
        self.asked.append(list(passages))
        return self.answer(passages) if callable(self.answer) else self.answer


def reranker(**settings) -> Reranker:
    return Reranker(WordOverlapScorer(), **settings)


def test_scores_are_logits_in_input_order():
    """`score` gives one float32 a passage and does not sort."""
    scores = reranker(activation="sigmoid").score(QUERY, PASSAGES)
    assert scores.dtype == np.float32
    assert scores.tolist() == [-5.0, 5.0, 0.0, -5.0, 5.0]


def test_rank_gives_the_best_first():
    """Index, rank, score, logit and text fit together; equal passages keep their order."""
    ranking = reranker().rank(QUERY, PASSAGES, top_n=3)
    assert [(result.index, result.rank, result.logit, result.text) for result in ranking] == [
        (1, 1, 5.0, "red apple"),
        (4, 2, 5.0, "red apple"),
        (2, 3, 0.0, "red cherry"),
    ]
    assert ranking.query == QUERY
    assert ranking.model == "word-overlap"
    assert type(ranking[0].score) is float
    assert ranking[0].truncated is None


def test_sigmoid_scores_and_their_threshold():
    """The threshold is on the scale that the user sees."""
    ranking = reranker(activation="sigmoid").rank(QUERY, PASSAGES, score_threshold=0.5)
    assert [result.index for result in ranking] == [1, 4, 2]
    assert ranking[2].score == 0.5


@pytest.mark.parametrize("activation", ["sigmoid", Logistic(0.5, -1.0)])
def test_a_threshold_beyond_probabilities_is_refused(activation):
    """One on the scale of logits would keep everything or nothing; also if only the fallback has probabilities."""
    spare = WordOverlapScorer()
    spare.name = "spare"
    by_fallback = reranker(fallback=Reranker(spare, activation=activation))
    for threshold in (-0.5, 1.5):
        for refusing, name in ((reranker(activation=activation), "word-overlap"), (by_fallback, "spare")):
            with pytest.raises(
                InvalidInputError, match=f"is {threshold}, but {name} has `act.*Pass `activation='ident"
            ):
                refusing.rank(QUERY, PASSAGES, score_threshold=threshold)
        assert len(reranker().rank(QUERY, PASSAGES, score_threshold=threshold)) in {2, 3}
    assert len(reranker(activation=activation).rank(QUERY, PASSAGES, score_threshold=0)) == len(PASSAGES)
    assert len(reranker(activation=activation).rank(QUERY, PASSAGES, score_threshold=1)) == 0


def test_scores_of_a_fitted_map_and_their_threshold():
    """A Logistic, or its dict, gives scores on its scale, and the threshold is on that scale."""
    for activation in (Logistic(0.5, -1.0), {"a": 0.5, "b": -1.0}):
        ranking = reranker(activation=activation).rank(QUERY, PASSAGES, score_threshold=0.2)
        assert [(result.index, result.logit) for result in ranking] == [(1, 5.0), (4, 5.0), (2, 0.0)]
        # The sigmoid of 0.5 x 5 - 1 and of -1.
        assert [result.score for result in ranking] == pytest.approx([0.817574, 0.817574, 0.268941], abs=1e-6)


def test_equal_passages_are_scored_once():
    """Duplicates cost nothing and get the same score."""
    scorer = FixedScorer(lambda passages: range(len(passages)))
    scores = Reranker(scorer).score("q", ["a", "b", "a", "c", "b"])
    assert scorer.asked == [["a", "b", "c"]]
    assert scores.tolist() == [0, 1, 0, 2, 1]


def test_no_passages_give_no_results_and_no_model_call():
    """An empty list is no error and wakes no model, in whatever form it comes."""
    scorer = FixedScorer([])
    chosen = Reranker(scorer)
    assert len(chosen.rank("q", [])) == 0
    assert chosen.score("q", iter(())).shape == (0,)
    assert [len(ranking) for ranking in chosen.rank_many([("q", []), ("r", ())])] == [0, 0]
    assert chosen.rank_many([]) == []
    assert scorer.asked == []


async def test_rank_many_and_arank_equal_rank():
    """Several queries at once and the async form give what single calls give."""
    chosen = reranker()
    requests = [(QUERY, PASSAGES), ("pear", []), ("green", ["green", "blue"])]
    single = [chosen.rank(query, passages, top_n=2) for query, passages in requests]
    assert chosen.rank_many(requests, top_n=2) == single
    assert [await chosen.arank(query, passages, top_n=2) for query, passages in requests] == single


def test_the_list_that_was_given_is_not_changed():
    """Inputs are deep-equal before and after; a generator is read once."""
    passages = list(PASSAGES)
    chosen = reranker()
    expected = chosen.rank(QUERY, passages)
    assert passages == PASSAGES
    assert chosen.rank(QUERY, (passage for passage in passages)) == expected


@pytest.mark.parametrize("value", [0, -1, True, "3", 2.0, float("nan")])
def test_top_n_must_be_none_or_a_whole_number_from_one(value):
    """A top_n that means nothing is named, not guessed at."""
    with pytest.raises(InvalidInputError, match=rf"`top_n` is {value!r}; expected a whole number of at least 1"):
        reranker().rank(QUERY, PASSAGES, top_n=value)


@pytest.mark.parametrize("value", [True, "0.5", float("nan"), float("-inf"), [1], 10**400])
def test_a_threshold_must_be_a_number(value):
    """A threshold that cannot be compared is named."""
    with pytest.raises(InvalidInputError, match=r"`score_threshold` is .*expected None or a finite number"):
        reranker().rank(QUERY, PASSAGES, score_threshold=value)


@pytest.mark.parametrize("value", [None, 7, 1.5, b"text", ["nested"]])
def test_a_passage_that_is_no_text_is_named_by_its_index(value):
    """None and numbers among the passages are errors that say where."""
    with pytest.raises(InvalidInputError, match=r"`passages\[1\]` is .*expected a str"):
        reranker().rank(QUERY, ["fine", value])


@pytest.mark.parametrize(("value", "found"), [("one text", "str"), (b"x", "bytes"), ({"a": 1}, "dict"), (None, "None")])
def test_passages_must_be_a_collection(value, found):
    """A single text is not taken for a list of characters."""
    with pytest.raises(InvalidInputError, match=rf"`passages` is a {found}.*expected a list of str"):
        reranker().rank(QUERY, value)


@pytest.mark.parametrize(("value", "found"), [("", "blank"), ("  \n", "blank"), (None, "None"), (3, "3")])
@pytest.mark.parametrize("passages", [PASSAGES, []])
def test_a_query_must_be_text(value, found, passages):
    """A blank query or no text at all is an error, whatever the passages."""
    with pytest.raises(InvalidInputError, match=rf"`query` is .*{found}.*expected"):
        reranker().rank(value, passages)


@pytest.mark.parametrize("value", ["q", ("q",), ("q", [], None, 3), None])
def test_a_request_must_be_a_pair(value):
    """rank_many names a request that is not (query, passages), or these with first-stage scores."""
    with pytest.raises(InvalidInputError, match=r"A request is .*expected a pair"):
        reranker().rank_many([value])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("backend", "tensorflow"),
        ("backend", None),
        ("precision", "int4"),
        ("activation", "softmax"),
        ("activation", ["identity"]),
        ("activation", {"a": 1.0}),
        ("long_passages", "split"),
        ("special_tokens", "drop"),
        ("max_length", 8),
        ("max_length", True),
        ("max_query_tokens", 0),
        ("device", ""),
        ("revision", 3),
        ("local_files_only", 1),
        ("allow_pickle", "yes"),
        ("token", 5),
        ("cache_folder", ""),
        ("cache_folder", 5),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(setting, value):
    """The message holds the setting, the value and what is allowed; it comes before anything is loaded."""
    with pytest.raises(InvalidInputError, match=rf"`{setting}` is .*expected"):
        Reranker("bundled", **{setting: value})


@pytest.mark.parametrize("value", [None, 3, object(), WordOverlapScorer])
def test_a_model_must_be_a_name_a_folder_or_a_scorer(value):
    """Anything else is named, a class instead of an object too."""
    with pytest.raises(InvalidInputError, match=r"`model` is .*expected a model name"):
        Reranker(value)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ms-marco-MiniLM-L-6-v3", "cross-encoder/ms-marco-MiniLM-L6-v2"),
        ("bundle", "bundled"),
        ("", "it is blank"),
        ("./no-such-folder", "path of a model folder"),
        ("/no/such/folder", "no such folder"),
        ("C:\\models\\mine", "no such folder"),
        ("~nobody-of-this-name/model", "it is not a valid path"),
        ("x" * 5000, "it is not a valid path"),
    ],
)
def test_an_unknown_model_names_what_comes_near(name, near):
    """A name that can be no model fails at once, with near matches."""
    with pytest.raises(UnknownModelError, match=near.replace("\\", r"\\")):
        Reranker(name)


def test_broken_scorers_are_reported():
    """NaN or the wrong number of scores is an error that names passage and model."""
    with pytest.raises(ScoreError, match=r"`FixedScorer` returned nan for `passages\[1\]`"):
        Reranker(FixedScorer([1.0, float("nan")])).rank("q", ["a", "b"])
    with pytest.raises(ScoreError, match="3 passages; expected one float per passage"):
        Reranker(FixedScorer([1.0])).rank("q", ["a", "b", "c"])


def test_a_broken_score_names_the_passage_that_was_given():
    """The index is that of the caller's list, although equal passages are scored once."""
    scorer = FixedScorer(lambda texts: [float("nan") if text == "bad" else 1.0 for text in texts])
    with pytest.raises(ScoreError, match=r"`passages\[3\]`"):
        Reranker(scorer).rank("q", ["a", "a", "a", "bad"])


def test_a_scorer_may_be_empty_or_have_methods_of_its_own():
    """A scorer is told from a name by its type, and from the package's own scorers too."""

    class Sized(WordOverlapScorer):
        def __len__(self):
            return 0

        def score_requests(self, requests):
            raise NotImplementedError

    assert Reranker(Sized()).rank(QUERY, PASSAGES)[0].index == 1


def wait_until_closed(chosen):
    """Return when new calls are refused, which is before those that were accepted have ended."""
    while True:
        try:
            chosen.rank(QUERY, [])
        except ClosedError:
            return
        os.sched_yield()


def test_a_call_that_outlives_close_leaves_no_model_behind(load):
    """What is loaded for the last call of a closed reranker is let go."""
    begun, go_on = threading.Event(), threading.Event()
    loaded: list[weakref.ref[WordOverlapScorer]] = []

    def make():
        begun.set()
        assert go_on.wait(30)
        scorer = WordOverlapScorer()
        loaded.append(weakref.ref(scorer))
        return scorer

    load(make)
    chosen = Reranker("bundled")
    found: list[object] = []
    calling = threading.Thread(target=lambda: found.append(chosen.rank(QUERY, PASSAGES)))
    calling.start()
    assert begun.wait(30)
    closing = threading.Thread(target=chosen.close)
    closing.start()
    wait_until_closed(chosen)
    go_on.set()
    for thread in (calling, closing):
        thread.join(timeout=30)
    gc.collect()
    assert len(found[0]) == 5
    assert [scorer() for scorer in loaded] == [None]


def test_settings_round_trip_through_dict_json_and_pickle():
    """A few hundred bytes of settings, the token never among them."""
    chosen = Reranker("bundled", activation="sigmoid", max_length=128, token="secret-token", cache_folder="~/models")
    settings = json.loads(json.dumps(chosen.to_dict()))
    again = Reranker.from_dict(settings)
    assert again.to_dict() == chosen.to_dict() == pickle.loads(pickle.dumps(chosen)).to_dict()  # noqa: S301
    assert copy.deepcopy(chosen).to_dict() == chosen.to_dict()
    assert len(pickle.dumps(chosen)) < 1000
    assert "secret-token" not in repr(chosen) + str(settings) + str(pickle.dumps(chosen))
    assert repr(chosen).startswith("Reranker('bundled', max_length=128, cache_folder=")


def test_a_fitted_map_round_trips_with_the_settings():
    """Dict, JSON, pickle and copies keep `a` and `b`, and the repr shows them."""
    chosen = Reranker("bundled", activation=Logistic(0.8, -1.2))
    settings = json.loads(json.dumps(chosen.to_dict()))
    assert settings["activation"] == {"a": 0.8, "b": -1.2}
    for again in (Reranker.from_dict(settings), pickle.loads(pickle.dumps(chosen)), copy.deepcopy(chosen)):  # noqa: S301
        assert again.activation == Logistic(0.8, -1.2)
        assert again.to_dict() == chosen.to_dict()
    assert repr(chosen) == "Reranker('bundled', activation=Logistic(a=0.8, b=-1.2))"


def test_unknown_settings_are_refused():
    """A dict with a key that is no setting is an error and not ignored."""
    with pytest.raises(InvalidInputError, match="Unknown settings 'batch_size'; expected some of"):
        Reranker.from_dict({"model": "bundled", "batch_size": 32})


def test_a_scorer_object_pickles_with_the_reranker_but_has_no_dict():
    """Pickle keeps the object; `to_dict` says that it cannot."""
    again = pickle.loads(pickle.dumps(reranker(activation="sigmoid")))  # noqa: S301
    assert again.rank(QUERY, PASSAGES)[0].index == 1
    assert again.activation == "sigmoid"
    with pytest.raises(InvalidInputError, match="only a reranker with a model name or folder"):
        again.to_dict()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_closed_reranker_is_closed_in_a_forked_child_too():
    """The hook after a fork makes new locks and threads, and opens nothing again."""
    code = (
        "import os\n"
        "from marcorank import ClosedError, Reranker\n"
        "from marcorank.testing import WordOverlapScorer\n"
        "closed, still_open = Reranker(WordOverlapScorer()), Reranker(WordOverlapScorer())\n"
        "closed.close()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    assert len(still_open.rank('a', ['a'])) == 1\n"
        "    try:\n"
        "        closed.rank('a', ['a'])\n"
        "    except ClosedError:\n"
        "        os._exit(0)\n"
        "    os._exit(1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)  # noqa: S603


def test_a_closed_reranker_says_so():
    """After close, or at the end of a with block, every call is an error; closing twice is none."""
    with reranker() as chosen:
        chosen.rank(QUERY, PASSAGES)
    chosen.close()
    with pytest.raises(ClosedError, match="was closed"):
        chosen.rank(QUERY, PASSAGES)
    with pytest.raises(ClosedError, match="was closed"):
        asyncio.run(chosen.arank(QUERY, PASSAGES))


def test_close_finishes_what_waits():
    """Calls that were accepted get their answers although the reranker is closed behind them."""
    begun, go_on = threading.Event(), threading.Event()

    def answer(passages):
        begun.set()
        assert go_on.wait(30)
        return [1.0] * len(passages)

    chosen = Reranker(FixedScorer(answer))

    async def scenario():
        tasks = [asyncio.create_task(chosen.arank("q", [text])) for text in ("first", "second", "third")]
        await asyncio.to_thread(begun.wait, 30)
        closing = asyncio.create_task(asyncio.to_thread(chosen.close))
        await asyncio.to_thread(wait_until_closed, chosen)
        go_on.set()
        await closing
        return await asyncio.gather(*tasks)

    assert [ranking[0].text for ranking in asyncio.run(scenario())] == ["first", "second", "third"]


@pytest.fixture
def slow_loading(load):
    """Models load until told to go on: an event for the begin and one for the end."""
    begun, go_on = threading.Event(), threading.Event()

    def make():
        begun.set()
        assert go_on.wait(30)
        return WordOverlapScorer()

    load(make)
    return begun, go_on


async def test_the_event_loop_is_free_while_a_model_loads(slow_loading):
    """A second caller hands over its work although the first one's model is still being loaded."""
    begun, go_on = slow_loading
    chosen = Reranker("bundled")
    first = asyncio.create_task(chosen.arank(QUERY, PASSAGES))
    await asyncio.to_thread(begun.wait, 30)
    second = asyncio.create_task(chosen.arank(QUERY, PASSAGES))
    await asyncio.sleep(0)
    go_on.set()
    assert await first == await second


async def test_the_event_loop_is_free_while_scores_are_made():
    """The scorer waits for something that only the event loop can do."""
    loop_ran = threading.Event()

    def answer(passages):
        assert loop_ran.wait(30)
        return [1.0] * len(passages)

    task = asyncio.create_task(Reranker(FixedScorer(answer)).arank("q", ["a"]))
    await asyncio.sleep(0)
    loop_ran.set()
    assert len(await task) == 1


async def test_the_work_of_a_cancelled_caller_is_dropped():
    """What was cancelled before its turn is never scored."""
    begun, go_on = threading.Event(), threading.Event()

    def answer(passages):
        begun.set()
        assert go_on.wait(30)
        return [1.0] * len(passages)

    scorer = FixedScorer(answer)
    chosen = Reranker(scorer)
    many = 200  # more than there are threads for
    first = [asyncio.create_task(chosen.arank("q", ["first"])) for _ in range(many)]
    assert await asyncio.to_thread(begun.wait, 30)
    second = asyncio.create_task(chosen.arank("q", ["second"]))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError, match=r"^$"):
        await second
    go_on.set()
    await asyncio.gather(*first)
    await chosen.arank("q", ["third"])
    assert scorer.asked == [["first"]] * many + [["third"]]


async def test_many_tasks_and_threads_share_one_reranker():
    """200 tasks and 8 threads get what serial calls get."""
    chosen = reranker()
    requests = [(f"word{number} red", [f"word{number}", "red", "word1", ""]) for number in range(200)]
    serial = [chosen.rank(query, passages) for query, passages in requests]
    in_threads: list[object] = [None] * len(requests)

    def work(start: int) -> None:
        for place in range(start, len(requests), 8):
            in_threads[place] = chosen.rank(*requests[place])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    assert await asyncio.gather(*(chosen.arank(*request) for request in requests)) == serial
    for thread in threads:
        thread.join()
    assert in_threads == serial


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_can_go_on():
    """Threads of the parent do not exist in a child; it starts its own instead of waiting for ever."""
    chosen = reranker()
    asyncio.run(chosen.arank(QUERY, PASSAGES))
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        found = asyncio.run(chosen.arank(QUERY, PASSAGES))
        os._exit(0 if found[0].index == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_while_a_model_loads_can_go_on(slow_loading):
    """A lock that another thread held at the fork is a new one in the child."""
    begun, go_on = slow_loading
    chosen = Reranker("bundled")
    thread = threading.Thread(target=chosen.warm_up)
    thread.start()
    assert begun.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        go_on.set()
        os._exit(0 if chosen.rank(QUERY, PASSAGES)[0].index == 1 else 1)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_warm_up_runs_the_model_once():
    """It returns the reranker itself, so that it can be chained."""
    scorer = WordOverlapScorer()
    chosen = Reranker(scorer)
    assert chosen.warm_up() is chosen
    assert scorer.calls == 1


def test_the_dict_of_a_fallback_goes_through_json_and_is_a_copy(tmp_path):
    """A path becomes text and a Logistic a dict; changing the dict that was given changes nothing."""
    given = {"model": tmp_path, "activation": Logistic(1, 0)}
    chosen = reranker(fallback=given)
    given["model"] = "other/model"
    assert chosen.fallback.model == str(tmp_path)
    dumped = Reranker("bundled", fallback=chosen.fallback).to_dict()["fallback"]
    assert json.loads(json.dumps(dumped)) == dumped
    plain = Reranker("bundled", fallback={"model": tmp_path, "activation": Logistic(1, 0)}).to_dict()["fallback"]
    assert plain == {"model": str(tmp_path), "activation": {"a": 1.0, "b": 0.0}}
