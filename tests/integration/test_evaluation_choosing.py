"""`evaluate` chooses settings: what is recommended on data whose answer is known, and as which code."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode

from marcorank import Reranker
from marcorank.errors import InvalidInputError
from marcorank.evaluation import Collection, evaluate
from marcorank.evaluation.choosing import choose
from marcorank.evaluation.measures import parse_measures
from marcorank.evaluation.sweep import Setting, Sweep

(NDCG,) = parse_measures(["nDCG@10"])
SEEDS = range(4)


class ScriptedScorer:
    """Returns known logits, and counts the pairs that it is asked for."""

    def __init__(self, logits, name="scripted"):
        self.name = name
        self.pairs = 0
        self._logits = logits

    def score(self, query, passages):
        if query == "warm":
            return [0.0] * len(passages)
        self.pairs += len(passages)
        return [self._logits[query][passage] for passage in passages]


def made(first_stage, *, seed=0, queries=200, candidates=30):
    """Return a collection, and the logits of a model that knows something, as the grades plus noise.

    `first_stage` makes scores from the grades, the logits and chance.
    """
    chance = np.random.default_rng(seed)
    run, qrels, logits = {}, {}, {}
    for number in range(queries):
        query_id = f"q{number}"
        relevant = (np.arange(candidates) < 5).astype(float)
        ours = (relevant + chance.normal(size=candidates)).astype(np.float32).astype(float)
        scores = first_stage(relevant, ours, chance)
        best_first = np.argsort(-scores, kind="stable").tolist()
        run[query_id] = {f"{query_id}-{index}": float(scores[index]) for index in best_first}
        qrels[query_id] = {f"{query_id}-{index}": int(relevant[index]) for index in range(candidates)}
        logits[query_id] = {f"{query_id}-{index}": float(ours[index]) for index in range(candidates)}
    passages = {doc_id: doc_id for results in run.values() for doc_id in results}
    return Collection("made", {query_id: query_id for query_id in run}, passages, qrels, run), logits


def knows_more(relevant, logits, chance):
    return relevant + chance.normal(size=len(relevant))


def knows_nothing(relevant, logits, chance):
    return chance.normal(size=len(relevant))


def knows_nearly_all(relevant, logits, chance):
    # The noise of the logits as well, so that the model adds nothing.
    return 3 * relevant + logits


def knows_the_same(relevant, logits, chance):
    return logits


def knows_a_little_less(relevant, logits, chance):
    return logits + 0.3 * chance.normal(size=len(relevant))


def noisy(logits, sigma, seed=1):
    """Return logits of a skimming model: those of the model, with noise."""
    chance = np.random.default_rng(seed)
    return {
        query_id: {doc_id: float(np.float32(one + sigma * chance.normal())) for doc_id, one in results.items()}
        for query_id, results in logits.items()
    }


def option(choices, name):
    return next(choice for choice in choices.options if choice.option == name)


# --- what is recommended


@pytest.mark.parametrize("seed", SEEDS)
def test_a_first_stage_that_knows_something_else_is_blended(seed):
    """The gain holds on the queries that did not choose the weight, and the weight is the smaller of the two."""
    collection, logits = made(knows_more, seed=seed)
    (model,) = evaluate(collection, Reranker(ScriptedScorer(logits)), top_k=30, seed=seed).models
    blend = option(model.choices, "blend")
    assert blend.recommended == min(half.chosen for half in blend.halves) > 0
    assert blend.held_out.interval[0] > 0
    assert all(half.value > half.off for half in blend.halves)
    assert sum(half.queries for half in blend.halves) == 200
    assert f"blend={blend.recommended:g}" in model.choices.code["core"]


@pytest.mark.parametrize("first_stage", [knows_nothing, knows_the_same])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_first_stage_that_hurts_or_adds_nothing_is_left_off(first_stage, seed):
    """Neither half chooses a weight, and no code is printed."""
    collection, logits = made(first_stage, seed=seed)
    evaluation = evaluate(collection, Reranker(ScriptedScorer(logits)), top_k=30, seed=seed)
    choices = evaluation.models[0].choices
    blend = option(choices, "blend")
    assert blend.recommended is None
    assert blend.held_out.difference >= -0.002
    assert choices.code == {}
    assert "blend: leave it off; " in str(evaluation)
    assert "import" not in str(evaluation)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_that_a_stronger_first_stage_beats_is_left_off(seed):
    """A weight gains, but the first stage alone ranks better still: there is no code to paste."""
    collection, logits = made(knows_nearly_all, seed=seed)
    evaluation = evaluate(collection, Reranker(ScriptedScorer(logits)), top_k=30, seed=seed)
    (model,) = evaluation.models
    (depth,) = model.depths
    assert option(model.choices, "blend").recommended
    assert model.choices.first_stage_suffices
    assert model.choices.code == {}
    (line,) = re.findall(r"^reranking: leave it off; .+\n.+$", str(evaluation), re.MULTILINE)
    first_stage, off, recommended = map(float, re.findall(r"\d\.\d{4}", line))
    assert (first_stage, off) == (round(depth.measures[0].identity, 4), round(depth.measures[0].value, 4))
    assert off < recommended < first_stage
    assert "\nreranking hurts: nDCG@10 goes from " in str(evaluation)
    assert f"blend: {option(model.choices, 'blend').recommended:g} if you rerank all the same; " in str(evaluation)


def test_a_model_that_changes_no_order_is_left_off():
    """What the first stage gives already needs no model, and no options."""
    collection, logits = made(knows_the_same)
    text = str(evaluate(collection, Reranker(ScriptedScorer(logits)), top_k=30))
    assert re.search(r"^reranking: leave it off; .+\n  .+ in the order of the model's scores$", text, re.MULTILINE)
    assert "\nreranking changes nothing: nDCG@10 goes from " in text


def test_a_skimming_model_of_few_candidates_is_said_not_to_be_tried():
    """There is nothing to leave unread."""
    collection, logits = made(knows_nothing, candidates=10)
    scorer = ScriptedScorer(logits)
    text = str(evaluate(collection, Reranker(scorer), skim=ScriptedScorer(logits, "skimming")))
    assert "\nskim_keep: not tried; 10 candidates are no more than the smallest number to keep, 10" in text


def test_a_model_that_helps_is_not_left_off():
    """The first stage ranks at random."""
    collection, logits = made(knows_nothing)
    evaluation = evaluate(collection, Reranker(ScriptedScorer(logits)), top_k=30)
    assert evaluation.models[0].choices.first_stage_suffices is False
    assert "reranking: " not in str(evaluation)
    assert "\nreranking helps: nDCG@10 goes from " in str(evaluation)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_skimming_model_that_is_as_good_saves_time(seed):
    """Of the numbers that lose nothing that matters, the smallest one is recommended."""
    collection, logits = made(knows_the_same, seed=seed)
    sweep = Sweep(collection, logits, NDCG, skim_logits=noisy(logits, 0.05, seed))
    found = option(choose(sweep, {30: 300.0}, skim="good", skim_latency_ms=30.0, seed=seed), "skim_keep")
    assert found.recommended == max(half.chosen for half in found.halves)
    assert found.held_out.interval[0] >= -0.005


@pytest.mark.parametrize("seed", SEEDS)
def test_a_skimming_model_that_destroys_the_ranking_is_left_off(seed):
    """What it keeps at random is not worth the time that it saves."""
    collection, logits = made(knows_nothing, seed=seed)
    choices = choose(Sweep(collection, logits, NDCG, skim_logits=noisy(logits, 50)), {30: 300.0}, skim="bad", seed=seed)
    found = option(choices, "skim_keep")
    assert found.recommended is None
    assert [half.chosen for half in found.halves] == [None, None]
    assert found.reason == "on both halves a loss of more than 0.005 cannot be ruled out for any of 10, 20"


def test_of_two_ways_to_save_time_the_faster_one_is_recommended():
    """Where both the first stage and the skimming model keep what matters, their times decide."""
    collection, logits = made(knows_the_same)
    sweep = Sweep(collection, logits, NDCG, skim_logits=logits)
    times = {10: 10.0, 20: 20.0, 30: 30.0}
    by_depth = choose(sweep, times, skim="same", skim_latency_ms=3.0)
    assert {choice.option: choice.recommended for choice in by_depth.options} == {
        "blend": None,
        "top_k": 10,
        "skim_keep": None,
    }
    assert option(by_depth, "skim_keep").reason == "`top_k` saves more"
    slow_to_start = choose(sweep, {20: 20.0, 30: 30.0}, skim="same", skim_latency_ms=3.0)
    assert option(slow_to_start, "skim_keep").recommended == 10
    # 3 and, between 0 and 20 ms, 10.
    assert option(slow_to_start, "skim_keep").reason.endswith(", in 43 % of the time")
    assert option(slow_to_start, "top_k").reason == "`skim_keep` saves more"
    # 27 ms are added to the 10 of the model.
    too_slow = choose(sweep, {30: 30.0}, skim="same", skim_latency_ms=27.0)
    assert option(too_slow, "skim_keep").reason == "it saves no time"
    untimed = choose(sweep, dict.fromkeys(times), skim="same")
    assert option(untimed, "top_k").recommended == 10
    assert option(untimed, "top_k").reason.endswith("; how much time it saves is not known")
    assert {point.latency_p50_ms for point in untimed.sweep} == {None}


def test_times_of_cascades_are_added():
    """Between two depths that were timed, the model's time is interpolated."""
    collection, logits = made(knows_nothing, queries=4)
    sweep = Sweep(collection, logits, NDCG, skim_logits=logits)
    choices = choose(sweep, {5: 6.0, 15: 16.0, 30: 46.0}, skim="same", skim_latency_ms=2.0)
    times = {(point.top_k, point.skim_keep): point.latency_p50_ms for point in choices.sweep if not point.blend}
    assert times == {
        (5, None): 6.0,
        (15, None): 16.0,
        (30, None): 46.0,
        (30, 10): pytest.approx(2 + 11),
        (30, 20): pytest.approx(2 + 26),
    }


def test_a_depth_beyond_the_candidates_is_their_number():
    """No number between the two is tried: the model would read all, in a part of the time that reading all takes."""
    collection, logits = made(knows_nothing, queries=4)
    sweep = Sweep(collection, logits, NDCG, skim_logits=logits)
    choices = choose(sweep, {20: 20.0, 1000: 30.0}, skim="same", skim_latency_ms=2.0)
    assert choices.top_k == 30
    assert [point.top_k for point in choices.sweep if not point.blend] == [20, 30, 30, 30]
    assert [point.skim_keep for point in choices.sweep if point.skim_keep] == [10, 20]


def test_a_threshold_is_measured_on_the_other_half():
    """What is kept there is close to the aim, but not equal as it is on the queries that chose it."""
    collection, logits = made(knows_nothing)
    found = choose(Sweep(collection, logits, NDCG, skim_logits=None), {30: None}).threshold
    assert found.aim == 0.9
    assert found.recall == pytest.approx(0.9, abs=0.03)
    assert 10 < found.kept_per_query < 30


def test_few_queries_choose_nothing():
    """Fewer than ten queries in a half say nothing, whatever they seem to say."""
    collection, logits = made(knows_more, queries=19)
    evaluation = evaluate(collection, Reranker(ScriptedScorer(logits)), top_k=30)
    choices = evaluation.models[0].choices
    assert (choices.options, choices.code, choices.first_stage_suffices) == ((), {}, None)
    assert "\nsettings: 19 judged queries are too few to choose from; at least 20 are needed" in str(evaluation)


def test_the_halves_do_not_depend_on_the_order_of_the_queries():
    """A collection in another order gives the same choices; another seed gives other halves."""
    collection, logits = made(knows_more, queries=60)
    reordered = replace(
        collection,
        queries=dict(reversed(collection.queries.items())),
        qrels=dict(reversed(collection.qrels.items())),
        run=dict(reversed(collection.run.items())),
    )

    def halves(of, seed=0):
        return option(choose(Sweep(of, logits, NDCG, skim_logits=None), {30: None}, seed=seed), "blend").halves

    assert halves(reordered) == halves(collection) != halves(collection, seed=1)


# --- the sweep and the product


@pytest.mark.parametrize(
    "setting",
    [
        Setting(20),
        Setting(30, blend=0.4),
        Setting(30, blend=1.0),
        Setting(30, 10),
        Setting(20, 7, 0.3),
        Setting(99, 50, 0.3),
    ],
)
@pytest.mark.parametrize("scored", [True, False])
def test_a_reranker_gives_the_order_of_the_sweep(setting, scored):
    """The same logits and the same settings give the same order, with scores of the first stage or only its order."""
    collection, logits = made(knows_more, queries=5)
    if not scored:
        run = {
            query_id: {doc_id: 30.0 - rank for rank, doc_id in enumerate(of)} for query_id, of in collection.run.items()
        }
        collection = replace(collection, run=run)
    skim_logits = noisy(logits, 1)
    skim = {} if setting.skim_keep is None else {"skim": ScriptedScorer(skim_logits), "skim_keep": setting.skim_keep}
    swept = Sweep(collection, logits, NDCG, skim_logits=skim_logits).run(setting)
    with Reranker(ScriptedScorer(logits), blend=setting.blend, **skim) as reranker:
        for query_id, results in collection.run.items():
            doc_ids = list(results)[: setting.top_k]
            scores = [results[doc_id] for doc_id in doc_ids] if scored else None
            ranking = reranker.rank(query_id, doc_ids, retrieval_scores=scores)
            assert list(swept[query_id]) == [doc_ids[result.index] for result in ranking]


def test_a_pair_is_read_once_by_each_model(tmp_path):
    """The sweep costs no forward pass, and a scores folder is used for the skimming model as well."""
    collection, logits = made(knows_nothing, queries=20)
    states = []
    for expected in (600, 0):
        model, skim = ScriptedScorer(logits), ScriptedScorer(logits, "skimming")
        evaluate(
            collection,
            Reranker(model),
            skim=skim,
            scores_folder=tmp_path,
            progress=lambda done, total, label: states.append((done, total)),
        )
        assert (model.pairs, skim.pairs) == (expected, expected)
    assert states[0] == (0, 1200)
    assert states[-1] == (1200, 1200)


def test_a_skimming_model_may_be_one_of_the_models():
    """It is scored once, skims for the others, and not for itself."""
    collection, logits = made(knows_nothing, queries=20)
    model, small = ScriptedScorer(logits), ScriptedScorer(noisy(logits, 1), "small")
    evaluation = evaluate(collection, [Reranker(model), Reranker(small)], skim=small)
    assert (model.pairs, small.pairs) == (600, 600)
    assert [result.choices.skim for result in evaluation.models] == ["small", None]


@pytest.mark.parametrize(
    "settings", [{"skim": "bundled"}, {"blend": 0.2}, {"max_similarity": 0.8}, {"blend": 0.1, "max_similarity": 0.8}]
)
def test_a_reranker_with_what_is_compared_is_refused(settings):
    """It would not be evaluated with these settings, since only its logits are used."""
    collection, logits = made(knows_nothing, queries=2)
    names = " and ".join(f"`{name}`" for name in settings)
    with pytest.raises(InvalidInputError, match=f"^scripted has {names}; expected a reranker without.*as `skim` of"):
        evaluate(collection, Reranker(ScriptedScorer(logits), **settings))


# --- the code


@pytest.mark.parametrize("is_object", [True, False])
def test_the_code_runs(is_object):
    """All three pieces rank with the recommended settings, for a model by name and for an object."""
    collection, logits = made(knows_more)
    sweep = Sweep(collection, logits, NDCG, skim_logits=None)
    if is_object:
        scorer = ScriptedScorer(logits)
        code = evaluate(collection, Reranker(scorer, max_query_tokens=None), top_k=30).models[0].choices.code
    else:
        from marcorank.evaluation.recommending import with_code

        with Reranker("bundled", max_length=128) as reranker:
            code = with_code(choose(sweep, {30: None}), reranker, None, has_scores=True).code
    texts = list(collection.run["q0"])
    names = {
        "query": "q0",
        "passages": texts,
        "scores": list(collection.run["q0"].values()),
        "scorer": ScriptedScorer(logits) if is_object else None,
        "store": InMemoryVectorStore(DeterministicFakeEmbedding(size=8)),
        "index": VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=MockEmbedding(8)),
    }
    names["store"].add_documents([Document(text) for text in texts])
    names["index"].as_query_engine = lambda as_engine=names["index"].as_query_engine, **more: as_engine(
        llm=MockLLM(), **more
    )
    assert list(code) == ["core", "langchain", "llama_index"]
    for part in code.values():
        exec(part, names)  # noqa: S102 -- what is printed is there to be run
    assert len(names["ranking"].results) == 3
    assert names["ranking"].results[0].blended_score is not None
    assert len(names["retriever"].invoke("q0")) == 3
    assert len(names["engine"].query("q0").source_nodes) == 3
    assert "max_length=128" in code["core"] or is_object


def test_the_code_of_a_cascade_runs():
    """Skimming models by name and as objects are in the code."""
    from marcorank.evaluation.recommending import with_code

    collection, logits = made(knows_a_little_less)
    sweep = Sweep(collection, logits, NDCG, skim_logits=logits)
    choices = choose(sweep, {30: 100.0}, skim="same", skim_latency_ms=1.0)
    with Reranker("bundled") as reranker:
        by_name = with_code(choices, reranker, "bundled", has_scores=True).code["core"]
        assert 'Reranker("bundled", skim="bundled", skim_keep=20)' in by_name
        as_dict = with_code(choices, reranker, Reranker("bundled", max_length=64), has_scores=True).code["core"]
        assert "skim={'model': 'bundled', 'max_length': 64}" in as_dict
        as_object = with_code(choices, reranker, ScriptedScorer(logits), has_scores=True).code["core"]
    assert "retrieval_scores=scores[:30]" in by_name
    for code in (by_name, as_dict, as_object):
        names = {
            "query": "q",
            "passages": ["a", "b"] * 15,
            "scores": [2.0, 1.0] * 15,
            "skim_scorer": ScriptedScorer({"q": {"a": 1.0, "b": 0.0}}),
        }
        exec(code, names)  # noqa: S102 -- what is printed is there to be run
        assert len(names["ranking"].results) == 3
