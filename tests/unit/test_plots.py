"""Charts of rankings: what they show, whatever they are given, and that they leave no trace in matplotlib."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest
from IPython.core.formatters import DisplayFormatter
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from matplotlib.figure import Figure

from marcorank import InvalidInputError, MissingExtraError, RankedPassage, Ranking
from marcorank.plots import plot_rank_changes

SVG = "{http://www.w3.org/2000/svg}"
BLUE, ORANGE = "#0b62b0", "#c2500a"


def ranking(*indices, query="how do I open a file?", texts=None):
    """Return a ranking of passages with these positions in the input."""
    results = tuple(
        RankedPassage(index, rank, 2.5 - rank, 2.5 - rank, texts[index] if texts else f"passage {index}")
        for rank, index in enumerate(indices, 1)
    )
    return Ranking(query, "tiny", results)


def texts_of(figure):
    """Return all texts of a chart, with their colours where they have one."""
    root = ET.fromstring(figure.to_svg())  # noqa: S314 -- ours
    return {"".join(one.itertext()).strip(): one.get("style", "") for one in root.iter(f"{SVG}text")}


def test_a_ranking_draws_itself():
    """Ranks on both sides, scores and texts are in the chart; the best are blue, and what they replaced is orange."""
    figure = ranking(4, 0, 2, 1, 3).plot(top_n=2)
    assert isinstance(figure, Figure)
    found = texts_of(figure)
    for text in ("how do I open a file?", "first stage", "reranked, score", "1.50", "-2.50", "passage 3"):
        assert text in found
    assert BLUE in found["passage 4"]
    assert BLUE in found["passage 0"]
    assert ORANGE in found["passage 1"]
    assert not {BLUE, ORANGE} & set(re.findall("#[0-9a-f]{6}", found["passage 2"]))
    assert "the best 2 after reranking. Before, they were at ranks 5, 1. Orange: what they replaced" in " ".join(found)


def test_orders_of_both_frameworks_are_matched():
    """Texts, documents, nodes and rankings may be mixed; what the new order leaves out has no new rank."""
    texts = ["one", "two", "three", "two"]
    documents = [Document(text, id=f"{index}") for index, text in enumerate(texts)]
    nodes = [NodeWithScore(node=TextNode(text=text, id_=f"{index}"), score=0.5) for index, text in enumerate(texts)]
    scored = [Document("two", id="3", metadata={"relevance_score": 1.25}), Document("three", id="2")]
    expected = "Before, they were at ranks 4, 3"
    for before, after in (
        (documents, scored),
        (nodes, [NodeWithScore(node=TextNode(text="two", id_="3"), score=1.25), nodes[2]]),
        (["a", "b", "three", "two"], scored),
        (documents[::-1][::-1], iter(scored)),
    ):
        found = " ".join(texts_of(plot_rank_changes(before, after)))
        assert expected in found
        assert "1.25" in found
    # Without ids the first of equal texts is meant, and then the next.
    assert "ranks 2, 4, 1" in " ".join(texts_of(plot_rank_changes(texts, ["two", "two", "one"])))
    assert "ranks 2, 1." in " ".join(texts_of(plot_rank_changes(ranking(0, 1), ranking(1, 0))))


def test_chunks_that_share_an_id_are_matched_by_their_texts():
    """Where an exact match comes later, it is not taken by one that has only the id or only the text."""
    before = [Document("one", id="x"), Document("two", id="x"), Document("three", id="y")]
    assert "ranks 2, 1, 3" in " ".join(texts_of(plot_rank_changes(before, [before[1], before[0], before[2]])))
    shortened = [Document("ONE", id="x"), Document("two", id="x"), Document("THREE", id="y")]
    assert "ranks 1, 2, 3" in " ".join(texts_of(plot_rank_changes(before, shortened)))
    other = [Document("one", id="z"), Document("one", id="x")]
    assert "ranks 2, 1" in " ".join(texts_of(plot_rank_changes([before[0], Document("one", id="w")], other)))


def test_labels_and_titles_are_the_callers():
    """`label` gets each candidate of the first stage; by default it is the text without rules under headings."""
    documents = [Document("Heading\n*******\n\nText of it", metadata={"source": "a.md"})]
    assert "Heading Text of it" in texts_of(plot_rank_changes(documents, documents))
    found = texts_of(plot_rank_changes(documents, documents, label=lambda one: one.metadata["source"], title="Mine"))
    assert {"a.md", "Mine"} <= set(found)
    assert "Ranks before and after reranking" in texts_of(plot_rank_changes(["a"], ["a"]))


@pytest.mark.parametrize(
    "text",
    [
        "$x_1$ \\frac{",
        "日本語のテキスト",
        "half \ud83d pair",
        "a\x00\x07b\u202e",
        "<b>&amp;</b>",
        "",
        " " * 50,
        "é" * 5000,
    ],
)
def test_any_text_can_be_drawn(text):
    """Formulas, scripts without a font, control characters, markup and long texts are text, without a warning."""
    figure = ranking(0, 1, query=text or "q", texts=[text, f"{text} 2"]).plot()
    shown = texts_of(figure)
    figure.to_svg().encode()
    if text.startswith("$"):
        assert f"{text} 2" in shown
    assert max(map(len, shown)) < 140


def test_small_and_large_rankings_can_be_drawn():
    """None, one and a thousand candidates; where texts would lie on each other, only the best have one."""
    assert "No candidates." in texts_of(Ranking("q", "tiny", ()).plot())
    assert "Blue: the best 1 after reranking. Before, it was at rank 1." in texts_of(ranking(0).plot())
    large = ranking(*reversed(range(1000))).plot()
    assert large.get_figheight() < 20
    found = texts_of(large)
    shown = {text for text in found if text.startswith("passage")}
    assert shown == {f"passage {number}" for number in (0, 1, 2, 997, 998, 999)}
    assert "Ranks 1 to 1,000, on a logarithmic scale" in " ".join(found)


def test_texts_of_many_best_do_not_lie_on_each_other():
    """However many are highlighted, those that have room have a text, and the caption stays short."""
    figure = ranking(*reversed(range(1000))).plot(top_n=1000)
    shown = [text for text in texts_of(figure) if text.startswith("passage")]
    assert 5 < len(shown) < 60
    heights = sorted(one.xy[1] for one in figure.axes[0].texts if one.get_text() in shown and one.xy[0] == 1)
    assert min(after / before for before, after in pairwise(heights)) > 1000 ** (1 / 31)
    assert max(map(len, texts_of(figure))) < 160


def test_notebooks_show_charts_without_pyplot():
    """IPython takes a chart for an SVG, opaque and with a name for screen readers."""
    shown = DisplayFormatter().format(ranking(1, 0).plot())[0]
    root = ET.fromstring(shown["image/svg+xml"])  # noqa: S314 -- ours
    assert root.get("aria-label") == "how do I open a file?"
    assert "fill: #ffffff" in shown["image/svg+xml"]
    assert "<style" not in shown["image/svg+xml"]


def test_nothing_leaks_into_matplotlib(monkeypatch):
    """Settings of the process change no chart, charts change no settings, and several threads may draw."""
    drawn = ranking(2, 0, 1).plot().to_svg()
    monkeypatch.setitem(mpl.rcParams, "font.size", 40.0)
    monkeypatch.setitem(mpl.rcParams, "path.sketch", (1.0, 100.0, 2.0))
    monkeypatch.setitem(mpl.rcParams, "savefig.facecolor", "black")
    settings = dict(mpl.rcParams)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: ranking(2, 0, 1).plot().to_svg(), range(4))) == {drawn}
    assert dict(mpl.rcParams) == settings


def test_pyplot_stays_out_of_it():
    """Importing loads no matplotlib, and drawing no pyplot, which would choose a backend for the process."""
    code = (
        "import sys; from marcorank import Ranking, RankedPassage; import marcorank.plots;"
        "print('matplotlib' in sys.modules);"
        "Ranking('q', 'm', (RankedPassage(0, 1, 1.0, 1.0, 'a'),)).plot().to_svg();"
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.split() == ["False", "True", "False"]


def test_a_missing_matplotlib_is_named_with_its_command(monkeypatch):
    """The error has the pip command of the smallest extra."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'Plots need matplotlib: pip install "marcorank\[plot\]"'):
        ranking(0).plot()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("text", ["a"]), "`before` is 'text'; expected candidates, best first"),
        ((3,), "`before` is 3; expected candidates"),
        ((["a"], {"a": 1}), "`after` is {'a': 1}; expected candidates"),
        ((["a"],), r"`before\[0\]` is 'a' and `after` is missing; expected .* unless `before` is a `Ranking`"),
        (([3], ["a"]), r"`before\[0\]` is 3; expected a text, a document"),
        ((["a"], ["a", "b"]), r"`after\[1\]` is not in `before`: 'b'. Expected the same candidates"),
        ((["a"], ["a", "a"]), r"`after\[1\]` is not in `before`: 'a'"),
    ],
)
def test_wrong_candidates_are_named(arguments, message):
    """The message has the position, what was found and what is expected."""
    with pytest.raises(InvalidInputError, match=message):
        plot_rank_changes(*arguments)


@pytest.mark.parametrize(("name", "value"), [("top_n", 0), ("top_n", "3"), ("title", 3), ("title", "")])
def test_wrong_options_are_named(name, value):
    """As in every call."""
    with pytest.raises(InvalidInputError, match=f"`{name}` is "):
        ranking(0).plot(**{name: value})
