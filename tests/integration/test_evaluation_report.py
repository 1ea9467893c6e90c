"""The report: one self-contained page, for any number of queries and any text."""

from __future__ import annotations

import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from marcorank import InvalidInputError, MissingExtraError, Reranker
from marcorank._drawing import LIGHT
from marcorank.collections.records import Collection
from marcorank.evaluation import evaluate, evaluate_runs
from marcorank.evaluation.calibration import calibrate
from marcorank.evaluation.choosing import choose
from marcorank.evaluation.comparison import depth_result
from marcorank.evaluation.measures import parse_measures
from marcorank.evaluation.recommending import with_code
from marcorank.evaluation.records import ModelResult
from marcorank.evaluation.report import KINDS
from marcorank.evaluation.results import Evaluation
from marcorank.evaluation.sweep import Sweep
from marcorank.evaluation.thresholds import cuts
from marcorank.testing import WordOverlapScorer

VOID = {"meta", "br", "hr", "img", "input", "link"}
CSS = re.compile(r"<style>.*?</style>", re.DOTALL)


class Page(HTMLParser):
    """Parses a page into elements with their attributes and words, and checks that each element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def collection(queries, *, candidates=10, relevant=1, seed=0, name="made", text=None):
    """Return a collection with randomly chosen relevant candidates."""
    chance = np.random.default_rng(seed)
    passages, texts, qrels, run = {}, {}, {}, {}
    for number in range(queries):
        query_id = f"q{number}"
        texts[query_id] = text or f"query number {number}"
        run[query_id] = {f"{query_id}-d{index}": float(candidates - index) for index in range(candidates)}
        passages.update(dict.fromkeys(run[query_id], text or f"words of {number}"))
        wanted = set(chance.choice(sorted(run[query_id]), relevant, replace=False).tolist())
        qrels[query_id] = {doc_id: int(doc_id in wanted) for doc_id in run[query_id]}
    return Collection(name, texts, passages, qrels, run)


def noisy(of, *, skill=2.0, seed=0):
    """Return noisy logits that correlate with the grades."""
    chance = np.random.default_rng(seed)
    return {
        query_id: {doc_id: skill * of.qrels[query_id].get(doc_id, 0) + chance.normal() for doc_id in results}
        for query_id, results in of.run.items()
    }


def evaluated(of, *labels, depths=(10,), names=("nDCG@10", "R@5"), timed=True, logits=None):
    measures = parse_measures(names)
    results = []
    for seed, label in enumerate(labels or ("model",)):
        given = logits or noisy(of, seed=seed)
        times = [1.0 + seed, 3.0 + seed] if timed else None
        results.append(
            ModelResult(
                label=label,
                settings={
                    "model": label,
                    "max_length": 512,
                    "revision": None,
                    "files": {"model.onnx": "0123456789ab" * 5, "tokenizer.json": "ba9876543210" * 5},
                },
                depths=tuple(depth_result(of, given, depth, measures, times) for depth in depths),
                logits=given,
                cuts=cuts(of, given, measure=measures[0]),
                calibration=calibrate(of, given),
            )
        )
    return Evaluation(of, tuple(map(str, measures)), tuple(results))


def render_report(evaluation, *, model=None):
    """Return the page that an evaluation writes."""
    with tempfile.TemporaryDirectory() as folder:
        evaluation.write_report(Path(folder) / "report.html", model=model)
        return (Path(folder) / "report.html").read_text(encoding="utf-8")


def pictures(html):
    return re.findall(r"<svg .*?</svg>", html, re.DOTALL)


def check(html):
    """Check what holds for every report, and return the parsed page."""
    page = Page(html)
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert name not in {"src", "srcset", "action", "data", "onload", "onclick", "onerror"}
            if name.endswith("href"):
                assert (value or "").startswith("#")
            assert not name.startswith("on")
            assert not re.search(r"url\((?!#)", value or "")
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {name for name, _ in page.elements}
    assert "url(" not in CSS.search(html)[0]
    assert "@import" not in CSS.search(html)[0]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes[n][1:] for _, attributes in page.elements for n in attributes if n.endswith("href")}
    assert targets <= set(ids)
    variables = set(re.findall(r"(--[\w-]+):", html))
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= variables
    for svg in pictures(html):
        assert ET.fromstring(svg).get("aria-label")  # noqa: S314 -- ours
        assert not re.search(r"#[0-9a-fA-F]{6}\b|nan|inf", svg)
    return page


def test_a_real_evaluation_ends_in_a_page_with_its_numbers(tmp_path):
    """The table has the values of every depth and measure."""
    of = collection(12, candidates=20, relevant=3)
    evaluation = evaluate(of, Reranker(WordOverlapScorer()), top_k=(5, 20), measures=["nDCG@10", "RR@10", "R@5"])
    evaluation.write_report(tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html == render_report(evaluation)
    text = check(html).text
    for depth in evaluation.models[0].depths:
        for found in depth.measures:
            row = (
                f"{depth.top_k} {found.measure} {found.first_stage:.4f} {found.identity:.4f} {found.value:.4f} "
                f"{found.best:.4f} {found.difference:+.4f} {found.interval[0]:+.4f} to {found.interval[1]:+.4f}"
            )
            assert row in text
            assert f"{found.wins} / {found.ties} / {found.losses}" in text


def test_the_heading_says_whether_it_helped():
    """A significant gain helps, a significant loss hurts, anything else may be chance; the numbers are given."""
    of = collection(40)
    good, bad, none = noisy(of, skill=6), noisy(of, skill=-6), noisy(of, skill=0, seed=5)
    first = evaluated(of, "good", logits=good).models[0].depths[0].measures[0]
    text = check(render_report(evaluated(of, "good", logits=good))).text
    assert "good helps." in text
    assert f"goes from {first.identity:.4f} to {first.value:.4f} ({first.difference:+.4f}, 95 % interval" in text
    assert f"Queries: {first.wins} better, {first.ties} the same, {first.losses} worse." in text
    assert "chance" not in text.split("The reranked candidates are compared")[0]
    assert "bad hurts." in check(render_report(evaluated(of, "bad", logits=bad))).text
    text = check(render_report(evaluated(of, "none", logits=none))).text
    assert "none makes no difference that can be distinguished from chance." in text


def test_one_query_proves_nothing():
    """With one query the page is complete, and even a large gain may be chance."""
    of = collection(1, candidates=5, relevant=0)
    of = Collection("one", of.queries, of.passages, {"q0": {"q0-d3": 1, "q0-d0": 0}}, of.run)
    logits = {"q0": {doc_id: float(doc_id == "q0-d3") for doc_id in of.run["q0"]}}
    text = check(render_report(evaluated(of, logits=logits, depths=(5,)))).text
    assert "model makes no difference that can be distinguished from chance." in text
    assert "p 1.000) with top_k 5. Queries: 1 better, 0 the same, 0 worse." in text
    assert "Judged queries: 1." in text
    assert "No query got worse." in text


def test_nothing_relevant_among_the_candidates():
    """Without a relevant candidate there are no thresholds and no calibration, and the page says why."""
    of = collection(4, relevant=0)
    evaluation = evaluated(of)
    assert evaluation.models[0].cuts is None
    text = check(render_report(evaluation)).text
    assert "No relevant passage is among the candidates, so no threshold can be chosen." in text
    assert "No relevant passage is among the candidates that were reranked." in text
    assert "No calibration could be fitted" in text
    assert "changes nothing." in text


def test_a_query_without_candidates():
    """A query without candidates is counted as such."""
    of = collection(5)
    run = {query_id: results for query_id, results in of.run.items() if query_id != "q3"}
    of = Collection(of.name, of.queries, of.passages, of.qrels, run)
    text = check(render_report(evaluated(of))).text
    assert "10 per query (median), 0 to 10; queries without candidates: 1" in text
    assert "Out of reach, because they are not among the candidates: 1." in text


def test_three_thousand_queries_make_a_small_page(tmp_path):
    """The page of 3,000 queries stays below 2 MB: no figure has an element for each query."""
    of = collection(3000, candidates=20, relevant=2, text="A passage of some length. " * 20)
    evaluated(of, "one", depths=(20,), names=("nDCG@10",)).write_report(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    check(html)
    assert max(html.count("<path", *found.span()) for found in re.finditer(r"<svg .*?</svg>", html, re.DOTALL)) < 200


def test_markup_in_texts_is_escaped():
    """Markup in queries, passages, ids, names, notes and settings is escaped."""
    evil = "</p></details><script>alert('x')</script> \"quoted\" & <img src=x onerror=alert(1)> {{ 7*7 }} 😀 مرحبا \x00"
    of = collection(3, text=evil, name=evil)
    run = {query: {f"{doc_id}{evil}": score for doc_id, score in found.items()} for query, found in of.run.items()}
    qrels = {query: {f"{doc_id}{evil}": grade for doc_id, grade in found.items()} for query, found in of.qrels.items()}
    passages = {f"{doc_id}{evil}": text for doc_id, text in of.passages.items()}
    of = Collection(evil, of.queries, passages, qrels, run, notes=(evil,))
    page = check(render_report(evaluated(of, evil, logits=noisy(of, skill=-3))))
    assert page.text.count("<script>alert('x')</script> \"quoted\" & <img src=x onerror=alert(1)> {{ 7*7 }} 😀") > 20


def test_files_are_named_with_the_beginning_of_their_digests():
    """Digests of files are abbreviated."""
    text = check(render_report(evaluated(collection(3)))).text
    assert "model.onnx 0123456789ab, tokenizer.json ba9876543210" in text
    assert "0123456789ab0" not in text


def test_half_a_surrogate_pair_can_be_written(tmp_path):
    """Half a surrogate pair, which UTF-8 cannot hold, is written as an escape sequence."""
    of = collection(3, text="half \ud83d pair")
    evaluated(of, "model \udc00", logits=noisy(of, skill=-3)).write_report(tmp_path / "report.html")
    text = check((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert r"half \ud83d pair" in text
    assert r"model \udc00" in text


def test_long_passages_are_folded_and_truncated():
    """The beginning is shown, the rest is folded, and the page reports how much of a very long passage is missing."""
    of = collection(3, text="word " * 20_000)
    html = render_report(evaluated(of, logits=noisy(of, skill=-3)))
    text = check(html).text
    assert "Truncated: 2,000 of 100,000 characters are shown." in text
    assert len(html) < 1_000_000
    of = collection(3, text="x" * 500)
    html = render_report(evaluated(of, logits=noisy(of, skill=-3)))
    assert "Truncated" not in html
    assert re.search(r"<summary[^>]*><span[^>]*>x{280}</span>.*?</summary><p class=\"text\"[^>]*>x{220}</p>", html)


def test_long_queries_are_truncated():
    """A very long query is truncated, and the page says so."""
    of = collection(3, text="query " * 1000)
    page = check(render_report(evaluated(of, logits=noisy(of, skill=-3))))
    assert "(500 of 6,000 characters)" in page.text


def test_worst_losses_show_both_orders():
    """The query that lost most comes first, with its passages before and after, their grades and logits."""
    of = collection(2, candidates=3, relevant=0)
    qrels = {"q0": {"q0-d0": 2, "q0-d1": 0}, "q1": {"q1-d0": 1, "q1-d1": 1}}
    of = Collection("two", {"q0": "lost much", "q1": "lost little"}, of.passages, qrels, of.run)
    logits = {"q0": {"q0-d0": -1.5, "q0-d1": 0.25, "q0-d2": 3.0}, "q1": {"q1-d0": 0.0, "q1-d1": 1.0, "q1-d2": 0.5}}
    html = render_report(evaluated(of, logits=logits, depths=(3,)))
    losses = check(html).text.split("Worst losses")[-1].split("Best gains")[0]
    assert losses.index("lost much") < losses.index("lost little")
    assert "1.0000 to 0.5000 (-0.5000)" in losses
    assert "Relevant in the top 5: 1 before, 1 after. First relevant passage: rank 1 before, 3 after." in losses
    before, after = losses.split("lost little")[0].split("Reranked")
    assert "1 grade 2, relevant logit -1.500 now 3 q0-d0" in before
    first, last = "1 not judged logit 3.000 was 3 q0-d2", "3 grade 2, relevant logit -1.500 was 1 q0-d0"
    assert 0 < after.index(first) < after.index(last)
    assert "No query got better." in html


def test_relevant_passages_are_counted_where_they_moved():
    """Each relevant candidate is counted once, in the cell of its two ranks."""
    of = collection(1, candidates=5, relevant=0)
    qrels = {"q0": {"q0-d0": 1, "q0-d2": 1, "q0-d3": 1, "q0-d4": 1, "q0-d1": 0, "elsewhere": 1}}
    of = Collection("one", of.queries, of.passages, qrels, of.run)
    # From ranks 1, 3, 4 and 5 to 4, 1, 2 and 5: one down, two up, one where it was.
    logits = {"q0": {"q0-d0": 2.0, "q0-d1": 3.0, "q0-d2": 5.0, "q0-d3": 4.0, "q0-d4": 1.0}}
    html = render_report(evaluated(of, logits=logits, depths=(5,)))
    assert "Of 4 relevant candidates 2 moved up and 1 down; the median rank went from 3.5 to 3." in html
    assert "Out of reach, because they are not among the candidates: 1." in html
    (picture,) = [svg for svg in pictures(html) if "Ranks of relevant passages" in svg]
    assert picture.count("fill: var(--gain)") == 2
    assert picture.count("fill: var(--loss)") == 1
    root = ET.fromstring(picture)  # noqa: S314 -- ours
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    axes = ["rank after reranking", "rank in the first stage", *["1", "2-3", "4-5"] * 2]
    assert sorted(texts) == sorted([*axes, *["1"] * 4])


def test_thresholds_and_calibration_stand_in_the_page():
    """Thresholds are printed with four decimals, the calibration as code to paste."""
    evaluation = evaluated(collection(60, relevant=2))
    found = evaluation.models[0]
    text = check(render_report(evaluation)).text
    for point in found.cuts.for_recall.values():
        assert f"{point.score_threshold:.4f} " in text
    assert f"activation=Logistic(a={found.calibration.a:.6g}, b={found.calibration.b:.6g})" in text
    assert f"plain sigmoid {found.calibration.log_loss_sigmoid:.4f}" in text


@pytest.fixture(scope="module")
def chosen():
    """An evaluation of two models with choices, and its report."""
    of = collection(30, candidates=60, relevant=3)
    logits = noisy(of, skill=6)
    (measure,) = parse_measures(["nDCG@10"])
    sweep = Sweep(of, logits, measure, skim_logits=logits)
    choices = choose(sweep, {20: 20.0, 60: 60.0}, skim="s", skim_latency_ms=5.0)
    evaluation = evaluated(of, "one", "two", logits=logits, depths=(20, 60), names=("nDCG@10",))
    models = (replace(evaluation.models[0], choices=choices), evaluation.models[1])
    evaluation = Evaluation(of, evaluation.measures, models)
    return evaluation, render_report(evaluation, model="one")


def words_of(svg):
    return {"".join(one.itertext()) for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}  # noqa: S314


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_draws_the_charts_of_its_report(kind, chosen):
    """Each kind is a figure with the title and the labels that it has in the report, and colours of its own."""
    evaluation, html = chosen
    figure = evaluation.plot(kind, model="one")
    svg = figure.to_svg()
    assert not re.search(r"var\(|nan|inf\b", svg)
    assert f"<h3>{figure.title}</h3>" in html
    (picture,) = [one for one in pictures(html) if f'aria-label="{figure.title}"' in one]
    labels = words_of(picture) | {figure.title}
    if kind == "quality":
        assert {"1 one", "2 two"} <= words_of(svg)
        labels -= {"1", "2"}
    assert labels <= words_of(svg)


def test_a_chart_needs_only_what_it_shows(chosen, monkeypatch):
    """The comparison of models reads no candidates."""
    for name in ("judged_candidates", "query_changes"):
        monkeypatch.setattr(f"marcorank.evaluation.report.{name}", None)
    assert chosen[0].plot().title


def test_what_cannot_be_drawn_is_said():
    """A wrong kind lists all kinds; without relevant candidates or choices the message says what is missing."""
    evaluation = evaluated(collection(4, relevant=0))
    with pytest.raises(InvalidInputError, match="`kind` is 'speed'; expected one of 'quality', 'gains', 'moves'"):
        evaluation.plot("speed")
    with pytest.raises(InvalidInputError, match=r"nothing to draw for 'moves'. No relevant passage is among"):
        evaluation.plot("moves")
    with pytest.raises(InvalidInputError, match=r"nothing to draw for 'top_n'. .* so no threshold can be chosen"):
        evaluation.plot("top_n")
    with pytest.raises(InvalidInputError, match=r"nothing to draw for 'blend'. No settings were tried"):
        evaluation.plot("blend")
    with pytest.raises(InvalidInputError, match="'other'; expected one of 'model'"):
        evaluation.plot("gains", model="other")


def test_a_notebook_shows_tables_with_escaped_texts():
    """Evaluations, compared runs and cuts are tables of the numbers that are printed, in the notebook's colours."""
    evaluation = evaluated(collection(30, relevant=2, name="<i>made</i>"), "<b>model</b>")
    runs = evaluate_runs(
        {"<u>one</u>": evaluation.collection.run, "two": evaluation.collection.run}, evaluation.collection.qrels
    )
    cuts = evaluation.models[0].cuts
    for shown, expected in ((evaluation, "&lt;b&gt;model"), (runs, "&lt;u&gt;one"), (cuts, "recall 90 %")):
        html = shown._repr_html_()
        Page(html)
        assert expected in html
        assert not re.search("<[biu]>|color|background", html)
    found = evaluation.models[0].depths[0].measures[0]
    assert f'<td style="text-align: right">{found.value:.4f}</td>' in evaluation._repr_html_()
    assert f"{cuts.for_recall[0.9].score_threshold:.4f}" in cuts._repr_html_()


def test_notebooks_have_the_colours_of_the_light_page():
    """The colours of figures are those of the style sheet."""
    light = render_report(evaluated(collection(2))).partition("@media")[0]
    names = {f"model-{index}": colour for index, colour in enumerate(LIGHT.models)}
    names |= {name: getattr(LIGHT, name) for name in ("ink", "muted", "grid", "gain", "loss")}
    for name, colour in names.items():
        assert f"--{name}: {colour};" in light


@pytest.mark.parametrize("timed", [True, False])
def test_choices_stand_in_the_page(timed):
    """What is recommended, why, as which code, and quality against latency with a label at each setting."""
    of = collection(40, candidates=60, relevant=3)
    logits = noisy(of, skill=6)
    (measure,) = parse_measures(["nDCG@10"])
    sweep = Sweep(of, logits, measure, skim_logits=logits)
    times = {20: 20.0, 50: 50.0, 60: 60.0} if timed else {20: None, 50: None, 60: None}
    choices = choose(sweep, times, skim="skimming", skim_latency_ms=5.0 if timed else None)
    reranker = Reranker("bundled")
    choices = with_code(choices, reranker, "skimming", has_scores=False)
    evaluation = evaluated(of, logits=logits, depths=(60,), names=("nDCG@10",))
    (model,) = evaluation.models
    html = render_report(Evaluation(of, evaluation.measures, (replace(model, choices=choices),)))
    text = check(html).text
    assert "skim_keep: 10 is recommended; " in text
    assert "blend: leave it off; " in text
    assert "all that is recommended together: nDCG@10 " in text
    assert "reranking: " not in text
    assert "skim_keep half 1 10 half 2" in text
    assert "blend half 1" not in text
    assert 'Reranker("bundled", skim="skimming", skim_keep=10)' in text
    (picture,) = [svg for svg in pictures(html) if "top_k and skim_keep" in svg]
    root = ET.fromstring(picture)  # noqa: S314 -- ours
    labels = [
        "".join(element.itertext())
        for element in root.iter("{http://www.w3.org/2000/svg}text")
        if "var(--gain)" in element.get("style", "") or "var(--loss)" in element.get("style", "")
    ]
    assert sorted(labels) == sorted(["20", "50", "60", "10", "20", "30", "50"])
    assert ("are not measured but added" in text) == timed
    assert "Choose settings" not in check(render_report(evaluation)).text


def test_the_page_says_to_leave_reranking_off():
    """The model is worse than the first stage, so that nothing is recommended."""
    of = collection(40, relevant=2)
    logits = noisy(of, skill=-1)
    (measure,) = parse_measures(["nDCG@10"])
    choices = choose(Sweep(of, logits, measure, skim_logits=None), {10: None})
    evaluation = evaluated(of, logits=logits, names=("nDCG@10",))
    (model,) = evaluation.models
    html = render_report(Evaluation(of, evaluation.measures, (replace(model, choices=choices),)))
    assert re.search(r"reranking: leave it off; nDCG@10 of all queries is 0\.\d{4} for ", check(html).text)


@pytest.mark.parametrize(
    ("count", "depths", "timed"),
    [(1, (10,), False), (1, (1, 3, 10), True), (6, (10,), True), (30, (1, 3, 10), False), (30, (10,), True)],
)
def test_any_number_of_models_and_depths(count, depths, timed):
    """One model or many, one depth or several, timed or not: every model is in the heading, the table and the chart."""
    labels = [f"model {number}" for number in range(count)]
    evaluation = evaluated(collection(6), *labels, depths=depths, timed=timed)
    assert {f"{number + 1} {label}" for number, label in enumerate(labels)} <= words_of(
        evaluation.plot("quality").to_svg()
    )
    text = check(render_report(evaluation)).text
    for label in labels:
        assert text.count(label) >= 4
    assert ("Nothing was timed." in text) is not timed


def test_the_best_model_is_shown_unless_another_is_named():
    """The details are those of the best model, or of the one that `model` names."""
    of = collection(30)
    good, bad = evaluated(of, "good", logits=noisy(of, skill=5)), evaluated(of, "bad", logits=noisy(of, skill=-5))
    both = Evaluation(of, good.measures, (*bad.models, *good.models))
    assert "The rest of this page shows 2 good with" in check(render_report(both)).text
    assert "The rest of this page shows 1 bad with" in check(render_report(both, model="bad")).text
    with pytest.raises(InvalidInputError, match=r"'other'; expected one of 'bad', 'good'"):
        render_report(both, model="other")


def test_the_same_evaluation_gives_the_same_page_in_any_thread(monkeypatch):
    """Pages depend neither on chance, time and other threads nor on matplotlib's settings, and do not change those."""
    import matplotlib as mpl

    evaluation = evaluated(collection(8), "a", "b", depths=(5, 10))
    page = render_report(evaluation)
    monkeypatch.setitem(mpl.rcParams, "axes.linewidth", 7.0)
    monkeypatch.setitem(mpl.rcParams, "xtick.direction", "in")
    settings = dict(mpl.rcParams)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(render_report, [evaluation] * 4)) == {page}
    assert dict(mpl.rcParams) == settings


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named_with_its_command(monkeypatch, package):
    """If a package of the extra is missing, the error has the pip command."""
    evaluation = evaluated(collection(2))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r'pip install "marcorank\[evaluation\]"'):
        render_report(evaluation)


def test_a_path_that_cannot_be_written_is_an_error(tmp_path):
    """A path that is a folder is an error, and no file is left behind."""
    with pytest.raises(InvalidInputError, match="is a folder; expected the path of a file"):
        evaluated(collection(2)).write_report(tmp_path)
    assert not list(tmp_path.iterdir())
