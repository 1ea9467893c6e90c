"""`evaluate` and `evaluate_runs`: scoring, measures, resuming and output."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import fields, replace

import ir_measures
import pandas as pd
import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from llama_index.core import Settings
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from marcorank import Reranker
from marcorank.errors import InvalidInputError, ModelLoadError, RemoteError, ScoreError
from marcorank.evaluation import Collection, Evaluation, calibrate, cuts, evaluate, evaluate_runs, read_run, run_of
from marcorank.evaluation.records import MeasureResult
from marcorank.langchain import MarcoRerank, RerankRetriever
from marcorank.llama_index import MarcoRerank as MarcoNodeRerank
from marcorank.testing import WordOverlapScorer
from remote_server import remote_server, responds

# The words of a query that a passage holds decide its logit: x y z > x y > x > none.
COLLECTION = Collection(
    name="letters",
    queries={"q1": "x y z", "q2": "x y z", "q3": "u v", "q4": "w"},
    passages={"none": "a", "one": "x", "two": "x y", "all": "x y z", "copy": "x y z", "u": "u", "uv": "u v"},
    qrels={"q1": {"all": 2, "two": 1, "none": 0}, "q2": {"one": 1}, "q3": {"uv": 1}, "q4": {"none": 1}},
    run={
        "q1": {"none": 9.0, "one": 8.0, "two": 7.0, "all": 6.0, "copy": 5.0},
        "q2": {"one": 3.0, "all": 2.0},
        "q3": {"u": 2.0, "uv": 1.0, "none": 0.0},
    },
)
TOP_K = (2, 3, 10)
# Two texts of q1's candidates are the same.
PAIRS = 4 + 2 + 3


class CountingScorer(WordOverlapScorer):
    """Records the pairs that it scores, and raises after a given number of them."""

    def __init__(self, name="counting", *, stop_after=math.inf, error=KeyboardInterrupt):
        super().__init__()
        self.name = name
        self.pairs = []
        self._stop_after = stop_after
        self._error = error

    def score(self, query, passages):
        if query == "warm":
            return super().score(query, passages)
        if len(self.pairs) >= self._stop_after:
            raise self._error
        self.pairs += [(query, passage) for passage in passages]
        return super().score(query, passages)


def results_of(collection=COLLECTION, scorer=None, **arguments):
    return evaluate(collection, Reranker(scorer or CountingScorer()), **{"top_k": TOP_K, **arguments})


def found(evaluation, top_k, measure, model=0) -> MeasureResult:
    (depth,) = [depth for depth in evaluation.models[model].depths if depth.top_k == top_k]
    return next(result for result in depth.measures if result.measure == measure)


def without_times(evaluation):
    content = evaluation.to_dict()
    for model in content["models"]:
        for depth in model["depths"]:
            del depth["latency_p50_ms"], depth["latency_p95_ms"]
        for point in model["choices"]["sweep"]:
            del point["latency_p50_ms"]
    return content


# --- what is measured


def test_a_hand_computed_example():
    """Values are means over all judged queries, including those without candidates, for each of the compared orders."""
    evaluation = results_of(measures=["nDCG@3", "RR@10", "R@2"])
    # q1: the first 3 of the first stage are none, one, two. Ideal: grades 2, 1 at ranks 1, 2.
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    # Identity has grade 1 at rank 3; reranked has it at rank 1, which is the best with these three.
    # q2: reranked puts `all`, which is not judged, above `one`: 1 / log2(3) after 1.
    # q3: `uv` comes from rank 2 to 1. q4 has no candidates.
    ndcg = found(evaluation, 3, "nDCG@3")
    assert ndcg.first_stage == pytest.approx((1 / math.log2(4) / ideal + 1 + 1 / math.log2(3) + 0) / 4)
    assert ndcg.identity == ndcg.first_stage
    assert ndcg.value == pytest.approx((1 / math.log2(2) / ideal + 1 / math.log2(3) + 1 + 0) / 4)
    assert ndcg.best == pytest.approx((1 / ideal + 1 + 1 + 0) / 4)
    assert ndcg.difference == pytest.approx(ndcg.value - ndcg.identity)
    assert (ndcg.wins, ndcg.ties, ndcg.losses) == (2, 1, 1)
    assert ndcg.per_query["q4"] == 0
    # With all candidates `all` and `copy`, which is not judged, have the same logit and keep their order.
    assert found(evaluation, 10, "nDCG@3").per_query["q1"] == pytest.approx((2 + 1 / math.log2(4)) / ideal)
    # RR: q1 1/3 to 1, q2 1 to 1/2, q3 1/2 to 1, q4 0.
    assert found(evaluation, 3, "RR@10").identity == pytest.approx((1 / 3 + 1 + 1 / 2) / 4)
    assert found(evaluation, 3, "RR@10").value == pytest.approx((1 + 1 / 2 + 1) / 4)
    # With two candidates q1 has no relevant one: what is beyond them cannot come in.
    assert found(evaluation, 2, "R@2").best == pytest.approx((0 + 1 + 1 + 0) / 4)


def test_measures_are_those_of_ir_measures_on_the_runs_that_are_written(tmp_path):
    """ir_measures computes the same values from the TREC runs."""
    names = ["nDCG@3", "RR@10", "R@2", "P@2", "AP", "Success@1", "Judged@2"]
    evaluation = results_of(measures=names)
    paths = evaluation.write_runs(tmp_path)
    assert [path.name for path in paths] == [f"counting.top{depth}.trec" for depth in TOP_K]
    qrels = {query_id: dict(grades) for query_id, grades in COLLECTION.qrels.items()}
    for path, top_k in zip(paths, TOP_K, strict=True):
        run = list(ir_measures.read_trec_run(str(path)))
        expected = ir_measures.calc_aggregate([ir_measures.parse_measure(name) for name in names], qrels, run)
        for measure, value in expected.items():
            assert found(evaluation, top_k, str(measure)).value == pytest.approx(value), measure
        assert {query_id: list(results) for query_id, results in read_run(path).items()} == {
            query_id: [result.doc_id for result in run if result.query_id == query_id]
            for query_id in ("q1", "q2", "q3")
        }


def test_cuts_and_calibration_are_those_of_the_logits():
    """Thresholds and calibration are computed from the logits of the evaluation."""
    (result,) = results_of(relevant_grade=1).models
    assert result.logits["q2"] == {"one": pytest.approx(10 / 3 - 5), "all": 5.0}
    assert result.cuts == cuts(COLLECTION, result.logits)
    assert result.calibration == calibrate(COLLECTION, result.logits)


def test_the_relevant_grade_reaches_measures_and_cuts():
    """Measures that name no grade get it as part of their name; those that name one keep it."""
    evaluation = results_of(measures=["nDCG@3", "RR@10", "R(rel=1)@10"], relevant_grade=2)
    assert evaluation.measures == ("nDCG@3", "RR(rel=2)@10", "R@10")
    assert found(evaluation, 10, "RR(rel=2)@10").value == pytest.approx(1 / 4)
    assert evaluation.models[0].cuts == cuts(
        COLLECTION, evaluation.models[0].logits, relevant_grade=2, measure="nDCG@3"
    )


def test_a_depth_beyond_the_candidates_takes_what_there_is():
    """A depth beyond the number of candidates gives the same result as all candidates."""
    evaluation = results_of(top_k=(5, 1000))
    assert replace(evaluation.models[0].depths[0], top_k=1000) == evaluation.models[0].depths[1]


@pytest.mark.parametrize(("most", "expected"), [(1, [10]), (10, [10]), (11, [10, 20]), (300, [10, 20, 50, 100])])
def test_depths_by_default_end_where_the_candidates_do(most, expected):
    """The default depths end at the first that no query's candidates exceed."""
    passages = {f"d{number}": f"passage {number}" for number in range(most)}
    collection = Collection(
        name="one",
        queries={"q": "passage 0", "none": "found nothing"},
        passages=passages,
        qrels={"q": {"d0": 1}, "none": {"d0": 1}},
        run={"q": {doc_id: 1000.0 - index for index, doc_id in enumerate(passages)}},
    )
    (result,) = evaluate(collection, Reranker(WordOverlapScorer())).models
    assert [depth.top_k for depth in result.depths] == expected


def test_the_tables_suggest_thresholds():
    """A line below the table has the suggestions of the result; without a relevant candidate there are none."""
    evaluation = results_of()
    found_cuts = evaluation.models[0].cuts
    point = found_cuts.for_recall[0.9]
    assert str(evaluation).splitlines()[-2] == (
        f"suggested by these queries: top_n {found_cuts.top_n}; score_threshold "
        f"{point.score_threshold:.4f} keeps {100 * point.recall:.4g} % of the relevant candidates"
    )
    qrels = {query_id: {"none": 0} for query_id in COLLECTION.queries}
    assert "suggested" not in str(results_of(replace(COLLECTION, qrels=qrels)))


def test_nothing_relevant_is_no_reason_to_fail():
    """Measures are 0, and there are no thresholds and no calibration."""
    qrels = {query_id: {"none": 0} for query_id in COLLECTION.queries}
    evaluation = results_of(replace(COLLECTION, qrels=qrels))
    assert found(evaluation, 3, "nDCG@10").value == found(evaluation, 3, "nDCG@10").best == 0
    assert (evaluation.models[0].cuts, evaluation.models[0].calibration) == (None, None)
    assert "judged queries without a relevant passage, which count as 0: 4 of 4" in evaluation.notes


def test_the_seed_decides_the_intervals():
    """The same call gives the same figures; another seed draws other samples."""
    doc_ids = list(COLLECTION.passages)
    collection = replace(
        COLLECTION,
        queries={f"q{number}": "x y z" for number in range(40)},
        qrels={f"q{number}": {doc_ids[number % 3]: 1, doc_ids[number % 5]: 2} for number in range(40)},
        run={f"q{number}": dict.fromkeys(doc_ids[number % 6 :], 1.0) for number in range(40)},
    )
    first, again, other = (results_of(collection, seed=seed) for seed in (0, 0, 1))
    assert without_times(first) == without_times(again)
    assert found(first, 3, "nDCG@10").value == found(other, 3, "nDCG@10").value
    assert found(first, 3, "nDCG@10").interval != found(other, 3, "nDCG@10").interval


# --- what is scored


def test_a_pair_is_scored_once():
    """A pair is scored once, however many depths and ids it occurs under."""
    scorer = CountingScorer()
    results_of(replace(COLLECTION, queries={**COLLECTION.queries, "q2": "x y"}), scorer)
    assert len(scorer.pairs) == len(set(scorer.pairs)) == PAIRS


def test_the_second_time_nothing_is_scored(tmp_path):
    """With the same folder, a second call returns the same results and latencies without running the model."""
    first = results_of(scores_folder=tmp_path)
    scorer = CountingScorer()
    again = results_of(scorer=scorer, scores_folder=tmp_path)
    assert scorer.calls == 0
    assert again.to_dict() == first.to_dict()
    assert first.models[0].depths[0].latency_p50_ms > 0


@pytest.mark.parametrize("stop_after", range(PAIRS))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ScoreError("no logits")])
def test_an_interruption_loses_no_scored_pair(tmp_path, stop_after, error):
    """After Ctrl-C or an error at any point, the next call scores only the missing pairs and finds the same."""
    stopped, second, every = CountingScorer(stop_after=stop_after, error=error), CountingScorer(), CountingScorer()
    uninterrupted = results_of(scorer=every)
    with pytest.raises(type(error), match=rf"^{error}$"):
        results_of(scorer=stopped, scores_folder=tmp_path)
    resumed = results_of(scorer=second, scores_folder=tmp_path)
    assert len(stopped.pairs) >= stop_after
    assert sorted(stopped.pairs + second.pairs) == sorted(every.pairs)
    assert without_times(resumed) == without_times(uninterrupted)
    assert results_of(scores_folder=tmp_path).to_dict() == resumed.to_dict()


def test_an_interruption_in_the_callback_loses_nothing_either(tmp_path):
    """Pairs are saved before the callback reports them."""
    told = []

    def stop(*progress):
        told.append(progress)
        if progress[0] >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        results_of(scores_folder=tmp_path, progress=stop)
    second = CountingScorer()
    results_of(scorer=second, scores_folder=tmp_path)
    assert len(second.pairs) == PAIRS - told[-1][0]


def test_progress_counts_pairs():
    """Progress starts at the known pairs, grows with each part, and ends at all pairs."""
    told = []
    results_of(progress=lambda *progress: told.append(progress))
    assert told == [(done, PAIRS, "counting") for done in (0, 2, 3, 4, 6, 8, 9)]


def test_progress_goes_on_where_it_stopped(tmp_path):
    """Pairs that an earlier call scored count as done from the start, over all models."""
    results_of(scores_folder=tmp_path)
    told = []
    models = [Reranker(CountingScorer(name)) for name in ("counting", "other")]
    evaluate(COLLECTION, models, top_k=TOP_K, scores_folder=tmp_path, progress=lambda *at: told.append(at))
    assert told[0] == (PAIRS, 2 * PAIRS, "other")
    assert told[-1] == (2 * PAIRS, 2 * PAIRS, "other")


def test_more_depths_and_changed_texts_score_what_is_new(tmp_path):
    """With the same folder, deeper evaluations and changed texts score only the new pairs."""
    results_of(top_k=2, scores_folder=tmp_path)
    deeper, changed = CountingScorer(), CountingScorer()
    results_of(scorer=deeper, scores_folder=tmp_path)
    assert deeper.pairs == [("x y z", "x y"), ("x y z", "x y z"), ("u v", "a")]
    passages = {**COLLECTION.passages, "u": "u, changed"}
    results_of(replace(COLLECTION, passages=passages), scorer=changed, scores_folder=tmp_path)
    assert changed.pairs == [("u v", "u, changed")]


def test_a_time_that_was_not_taken_is_not_made_up(tmp_path):
    """Candidates that were scored together with others have no latency of their own, and a note says so."""
    results_of(top_k=10, scores_folder=tmp_path)
    evaluation = results_of(top_k=(2, 10), scores_folder=tmp_path)
    shallow, deep = evaluation.models[0].depths
    assert shallow.latency_p50_ms is shallow.latency_p95_ms is None
    assert deep.latency_p50_ms is not None
    assert "The latency of counting at top_k 2 was not measured:" in evaluation.notes[-1]
    assert "top_k 2:" not in str(evaluation).rpartition("median latency")[2]


def test_the_collection_may_be_a_path(tmp_path):
    """`evaluate` takes a path as well as a collection."""
    rows = [{"query": "x y", "passages": ["x", "x y"], "relevant": [1]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = results_of(path)
    assert found(evaluation, 2, "RR@10").value == 1
    assert evaluation.collection.name == "rows"


def test_the_bundled_model_is_the_default():
    """Without `models`, the bundled model is evaluated."""
    collection = Collection(
        name="files",
        queries={"q": "how do I open a file?"},
        passages={"1": "a list is mutable", "2": "open() opens a file"},
        qrels={"q": {"2": 1}},
        run={"q": {"1": 2.0, "2": 1.0}},
    )
    (result,) = evaluate(collection, top_k=2).models
    assert result.label == "bundled"
    assert result.settings["precision"] == "int8"
    expected = Reranker("bundled").score(collection.queries["q"], list(collection.passages.values()))
    assert list(result.logits["q"].values()) == expected.tolist()
    assert result.depths[0].measures[0].value == 1


# --- several models


def test_models_of_one_name_are_told_apart(small_bert):
    """The label names only the settings that differ."""
    models = [
        Reranker(small_bert, backend="onnx"),
        Reranker(small_bert, backend="torch", device="cpu", precision="fp32"),
        Reranker(small_bert, backend="torch", device="cpu", precision="fp32", max_length=64),
        Reranker(WordOverlapScorer()),
    ]
    labels = [result.label for result in evaluate(COLLECTION, models, top_k=1).models]
    name = str(small_bert)
    assert labels == [
        f"{name} (onnx, max_length=512)",
        f"{name} (torch, max_length=512)",
        f"{name} (torch, max_length=64)",
        "word-overlap",
    ]


@pytest.mark.parametrize(
    "models", [["bundled", "bundled"], ["bundled", Reranker("bundled", activation="sigmoid", backend="onnx")]]
)
def test_a_model_takes_part_once(models):
    """Two models that give the same scores are refused."""
    with pytest.raises(InvalidInputError, match="holds 'bundled' more than once"):
        evaluate(COLLECTION, models)


def test_two_servers_that_fail_are_both_named():
    """The error of two servers with an error status names both."""
    with remote_server("tei") as first, remote_server("tei") as second:
        first.fault = second.fault = responds(404, {"error": "no such model"})
        with pytest.raises(RemoteError, match=r"2 of 2 models cannot be run(.|\n)*404(.|\n)*404"):
            evaluate(COLLECTION, [first.url, second.url])


def test_all_models_are_tried_before_one_is_run(tmp_path, small_bert):
    """If several models cannot run, one error names all of them."""
    scorer = CountingScorer()
    models = [
        Reranker(scorer),
        Reranker("bundled", precision="fp32"),
        Reranker(small_bert, backend="onnx", precision="int8"),
    ]
    with pytest.raises(InvalidInputError, match=r"2 of 3 models cannot be run(.|\n)*'bundled'(.|\n)*no int8 ONNX file"):
        evaluate(COLLECTION, models, scores_folder=tmp_path)
    damaged = tmp_path / "damaged"
    (damaged / "onnx").mkdir(parents=True)
    (damaged / "config.json").write_text("{}")
    (damaged / "tokenizer.json").write_text("{}")
    (damaged / "onnx" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelLoadError, match=r"1 of 2 models cannot be run, and nothing was scored\.\n.*damaged"):
        evaluate(COLLECTION, [Reranker(scorer), Reranker(damaged, backend="onnx")], scores_folder=tmp_path)
    assert scorer.pairs == []


def test_two_models_are_compared_by_query():
    """A comparison has the difference of the means, and the wins and losses by query."""
    reverse = WordOverlapScorer()
    reverse.name = "reverse"
    reverse.score = lambda query, passages: [-logit for logit in WordOverlapScorer().score(query, passages)]
    evaluation = evaluate(
        COLLECTION, [Reranker(WordOverlapScorer()), Reranker(reverse)], top_k=TOP_K, measures=["RR@10"]
    )
    # RR at 3: q1 1 against 1/3, q2 1/2 against 1, q3 1 against 1/3.
    compared = evaluation.compare("word-overlap", "reverse", top_k=3)["RR@10"]
    assert compared.difference == pytest.approx((1 + 1 / 2 + 1) / 4 - (1 / 3 + 1 + 1 / 3) / 4)
    assert (compared.wins, compared.ties, compared.losses) == (2, 1, 1)
    assert evaluation.compare("reverse", "word-overlap")["RR@10"].difference == pytest.approx(
        found(evaluation, 10, "RR@10", 1).value - found(evaluation, 10, "RR@10", 0).value
    )
    with pytest.raises(InvalidInputError, match="label 'other'; expected one of 'word-overlap', 'reverse'"):
        evaluation.compare("word-overlap", "other")
    with pytest.raises(
        InvalidInputError, match="`top_k` is 4; expected one of the depths that were evaluated: 2, 3, 10"
    ):
        evaluation.compare("word-overlap", "reverse", top_k=4)


def test_runs_of_models_with_like_names_do_not_overwrite_each_other(tmp_path):
    """Labels that become the same file name get a number."""
    models = [Reranker(CountingScorer(name)) for name in ("a/b", "a:b", "A-b")]
    paths = evaluate(COLLECTION, models, top_k=2).write_runs(tmp_path / "new" / "runs")
    assert [path.name for path in paths] == ["a-b.top2.trec", "a-b-2.top2.trec", "A-b-3.top2.trec"]


# --- what comes out


def test_rows_make_a_data_frame():
    """There is one flat, JSON-serialisable row for each model, depth and measure."""
    evaluation = results_of()
    frame = pd.DataFrame(evaluation.rows())
    assert len(frame) == len(TOP_K) * 3
    row = frame[(frame.top_k == 3) & (frame.measure == "nDCG@10")].iloc[0]
    assert row.value == found(evaluation, 3, "nDCG@10").value
    assert (row.interval_low, row.interval_high) == found(evaluation, 3, "nDCG@10").interval
    assert json.loads(json.dumps(evaluation.rows())) == evaluation.rows()


def test_json_holds_everything_but_texts_and_logits(tmp_path):
    """The dict of `to_dict` survives a JSON round trip, and `write_json` writes it."""
    evaluation = results_of()
    content = evaluation.to_dict()
    evaluation.write_json(tmp_path / "new" / "results.json")
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == content == json.loads(json.dumps(content))
    assert content["collection"] == {"name": "letters", "queries": 4, "passages": 7, "candidates": 10, "judgements": 6}
    (model,) = content["models"]
    assert model["depths"][1]["measures"][0]["per_query"] == found(evaluation, 3, "nDCG@10").per_query
    assert set(model["depths"][1]["measures"][0]) == {field.name for field in fields(MeasureResult)}
    assert model["cuts"]["for_recall"]["0.8"]["recall"] >= 0.8
    assert model["calibration"] is None or model["calibration"]["a"] > 0


def test_text_shows_the_table():
    """Each depth and measure has a line with the values of its row."""
    evaluation = results_of()
    text = str(evaluation)
    result = found(evaluation, 3, "nDCG@10")
    assert text.startswith("letters: 4 judged queries, up to 5 candidates each\n\ncounting\n")
    (line,) = [line for line in text.splitlines() if line.split()[:2] == ["3", "nDCG@10"]]
    assert line.split()[2:7] == [
        *(f"{value:.4f}" for value in (result.first_stage, result.identity, result.value, result.best)),
        f"{result.difference:+.4f}",
    ]
    assert line.endswith("2/1/1")
    # Head, blank, label, header; and below the rows verdict, latency, thresholds, and settings.
    assert len(text.splitlines()) == 4 + len(TOP_K) * 3 + 4
    last = found(evaluation, TOP_K[-1], "nDCG@10")
    verdict = f"reranking {last.verdict}: nDCG@10 goes from {last.identity:.4f} to {last.value:.4f}"
    assert f"{verdict} (top_k {TOP_K[-1]})" in text.splitlines()


def test_the_report_is_a_page(tmp_path):
    """The report is written into a folder that is created if necessary."""
    results_of().write_report(tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text().lower().startswith("<!doctype html>")


def test_an_evaluation_is_plain_to_look_at():
    """`repr` contains no texts and no logits."""
    assert repr(results_of()) == "Evaluation(measures=('nDCG@10', 'RR@10', 'R@10'), relevant_grade=1, notes=())"


def test_what_cannot_be_written_is_named(tmp_path):
    """The message names the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="file' cannot be written"):
        results_of().write_json(tmp_path / "file" / "results.json")


# --- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": []}, r"`models` is \[\]; expected"),
        ({"models": None}, "`models` is None; expected"),
        ({"models": [WordOverlapScorer()]}, "A model is <.*WordOverlapScorer.*expected a name"),
        ({"top_k": 0}, "`top_k` is 0; expected a whole number of at least 1"),
        ({"top_k": (10, True)}, "`top_k` is True"),
        ({"top_k": "10"}, "`top_k` is '10'"),
        ({"top_k": ()}, "`top_k` is empty"),
        ({"measures": ["R"]}, "Measure 'R' cannot be computed: `cutoff` is missing"),
        ({"measures": ["Accuracy"]}, "Measure 'Accuracy' cannot be computed"),
        ({"relevant_grade": 0}, "`relevant_grade` is 0"),
        ({"collection": replace(COLLECTION, queries={}, qrels={})}, "'letters' has no judged query"),
        ({"collection": replace(COLLECTION, run={})}, "no candidate for any of its 4 judged queries"),
        ({"collection": replace(COLLECTION, passages={})}, "no text for passage 'none', a candidate of query 'q1'"),
        ({"collection": replace(COLLECTION, qrels={"q1": {}})}, "no judgement for query 'q2'"),
        ({"collection": replace(COLLECTION, queries={"q1": "x"})}, "no text for query 'q2'"),
        (
            {"collection": replace(COLLECTION, qrels={query_id: {"007": 1} for query_id in COLLECTION.queries})},
            "1 of 1 judged passages, such as '007', are not in the corpus of collection 'letters', only others such as",
        ),
        pytest.param(
            {"measures": ["ERR@10"], "collection": replace(COLLECTION, qrels={**COLLECTION.qrels, "q1": {"all": 5}})},
            "greatest grade of the qrels is 5, and ERR@10 is defined for grades of at most 4",
            marks=pytest.mark.skipif(shutil.which("perl") is None, reason="ir_measures computes ERR in Perl"),
        ),
        ({"collection": "no-such-folder"}, "no-such-folder"),
        ({"scores_folder": __file__}, "cannot be written"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    """Each message has the value found, and nothing is scored."""
    scorer = CountingScorer()
    with pytest.raises(InvalidInputError, match=message):
        evaluate(**{"collection": COLLECTION, "models": Reranker(scorer), **arguments})
    assert scorer.calls == 0


# --- finished runs


RUNS = {
    "before": {"q1": {"none": 3.0, "all": 2.0}, "q2": {"one": 1.0}, "unknown": {"one": 1.0}},
    "after": {"q1": {"all": 0.5, "none": 0.25}, "q2": {"none": 2.0, "one": 1.0}, "q3": {"uv": 1.0}},
}


def test_finished_runs_are_compared():
    """A query without results counts as 0, one that is not judged does not count."""
    evaluation = evaluate_runs(RUNS, COLLECTION.qrels, measures=["RR@10"])
    before, after = evaluation.rows()
    assert (before["value"], after["value"]) == ((1 / 2 + 1) / 4, (1 + 1 / 2 + 1) / 4)
    assert after["difference"] == 1 / 4
    assert (after["wins"], after["ties"], after["losses"]) == (2, 1, 1)
    assert (before["difference"], before["p_value"]) == (0, 1)
    assert evaluation.runs[1].per_query == {"q1": 1, "q2": 0.5, "q3": 1, "q4": 0}
    assert evaluate_runs(RUNS, COLLECTION.qrels, baseline="after").rows()[0]["difference"] < 0
    lines = str(evaluation).splitlines()
    assert lines[0] == "4 judged queries; differences from 'before'"
    assert lines[2].split() == ["before", "RR@10", "0.3750", "-", "-", "-", "-"]
    assert lines[3].split()[:4] == ["after", "RR@10", "0.6250", "+0.2500"]


def test_retrievers_are_evaluated_with_and_without_the_reranker():
    """A LangChain retriever and the same retriever with reranking are compared by their runs."""
    documents = [Document(text, id=doc_id) for doc_id, text in COLLECTION.passages.items()]
    first_stage = RunnableLambda(lambda query: documents)
    reranked = RerankRetriever(
        base_retriever=first_stage, reranker=MarcoRerank(reranker=Reranker(WordOverlapScorer())), top_n=None
    )
    runs = {name: run_of(search, COLLECTION.queries) for name, search in (("without", first_stage), ("with", reranked))}
    without, with_reranker = evaluate_runs(runs, COLLECTION.qrels, measures=["RR@10"]).rows()
    # Without: `two` is at rank 3, `one` at 2, `uv` at 7, `none` at 1. With: q1 has `all` at rank 1, q2 has `one` at 4
    # behind two with all words and one with two, q3 has `uv` at 1, and q4, of whose word nobody has one, is as before.
    assert without["value"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 7 + 1) / 4)
    assert with_reranker["value"] == pytest.approx((1 + 1 / 4 + 1 + 1) / 4)
    assert (with_reranker["wins"], with_reranker["ties"], with_reranker["losses"]) == (2, 1, 1)


def test_query_engines_are_evaluated_with_and_without_the_reranker(monkeypatch):
    """A LlamaIndex query engine is evaluated by the source nodes of its answers."""
    # Without text no LLM is asked, but llama-index looks for one.
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    monkeypatch.setattr(Settings, "_tokenizer", str.split)
    nodes = [NodeWithScore(node=TextNode(id_=doc_id, text=text)) for doc_id, text in COLLECTION.passages.items()]

    class Everything(BaseRetriever):
        def _retrieve(self, query_bundle):
            return nodes

    rerank = MarcoNodeRerank(reranker=Reranker(WordOverlapScorer()), top_n=None)
    runs = {
        name: run_of(
            RetrieverQueryEngine.from_args(Everything(), response_mode="no_text", node_postprocessors=postprocessors),
            COLLECTION.queries,
        )
        for name, postprocessors in (("without", []), ("with", [rerank]))
    }
    without, with_reranker = evaluate_runs(runs, COLLECTION.qrels, measures=["RR@10"]).rows()
    assert without["value"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 7 + 1) / 4)
    assert with_reranker["value"] == pytest.approx((1 + 1 / 4 + 1 + 1) / 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": {}}, "`runs` is {}; expected a mapping of label to run, with at least one"),
        ({"runs": [RUNS["before"]]}, "expected a mapping of label to run"),
        ({"qrels": {}}, "`qrels` is empty"),
        ({"baseline": "middle"}, "`baseline` is 'middle'; expected one of 'before', 'after'"),
        ({"runs": {"other": {"1": {"one": 1.0}}}}, "'other' has none of the judged queries: its first query_id is '1'"),
        (
            {"qrels": {"q1": {"007": 1, "008": 0}}},
            "2 of 2 judged passages, such as '007', are not in the results of the runs 'before', 'after', only",
        ),
        ({"measures": []}, "`measures` is empty"),
    ],
)
def test_wrong_runs_are_named(arguments, message):
    """Each message has the value found and what was expected."""
    with pytest.raises(InvalidInputError, match=message):
        evaluate_runs(**{"runs": RUNS, "qrels": COLLECTION.qrels, **arguments})


# --- the package


def test_importing_the_package_loads_nothing_heavy():
    """Importing the package loads no dependency of the extra."""
    code = "import sys, marcorank.evaluation; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    heavy = {"ir_measures", "scipy", "matplotlib", "jinja2", "bm25s", "numpy", "onnxruntime"}
    assert not heavy & set(done.stdout.split())


def test_reading_and_scoring_load_no_drawing():
    """Evaluating loads neither matplotlib nor jinja2 nor bm25s."""
    code = (
        "import sys; from marcorank import Reranker; from marcorank.testing import WordOverlapScorer;"
        "from marcorank.evaluation import *;"
        "c = Collection('c', {'q': 'x'}, {'d': 'x'}, {'q': {'d': 1}}, {'q': {'d': 1.0}});"
        "str(evaluate(c, Reranker(WordOverlapScorer())));"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert not {"matplotlib", "jinja2", "bm25s"} & set(done.stdout.split())


def test_every_public_name_of_the_evaluation_exists():
    """`__all__` is complete, and each name can be imported."""
    from marcorank import evaluation

    assert set(evaluation.__all__) == set(evaluation._HOME) <= set(dir(evaluation))
    for name in evaluation.__all__:
        assert getattr(evaluation, name).__name__ == name
    assert evaluation.Evaluation is Evaluation
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        _ = evaluation.evaluat
