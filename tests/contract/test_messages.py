"""What messages show of a wrong value: enough to find it, and no more, because they reach logs and traces."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError

import marcorank
from marcorank import Logistic, MarcoRankError, Reranker, langchain, llama_index, otel
from marcorank.cli import main
from marcorank.errors import InvalidInputError
from marcorank.evaluation import (
    Collection,
    calibrate,
    cuts,
    evaluate,
    evaluate_runs,
    read_collection,
    read_qrels,
    read_run,
    run_of,
    write_run,
)
from marcorank.plots import plot_rank_changes
from marcorank.ray import ServeSettings, rerank_dataset
from marcorank.remote import RemoteScorer
from marcorank.serving.requests import RequestError, read_request
from marcorank.serving.running import serve
from marcorank.serving.settings import ProcessSettings
from marcorank.settings import RerankerSettings, descriptions
from marcorank.testing import WordOverlapScorer

LONG = "private " * 150_000
IMAGE = [{"type": "image", "base64": LONG}]
RUN = {"q": {"a": 1.0}}
SHARED = WordOverlapScorer()


class Retriever(BaseRetriever):
    """Finds one document."""

    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(page_content="a")]


class Scorer:
    """Does what it is told, under a long name."""

    name = LONG

    def __init__(self, result):
        self.result = result

    def score(self, query, passages):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class Unprintable:
    """Cannot be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")


def retriever(**settings):
    """Return a retriever of ours around one that works."""
    settings = {"base_retriever": Retriever(), "reranker": langchain.MarcoRerank(reranker=SHARED), **settings}
    return langchain.RerankRetriever(**settings)


def collection(**parts):
    """Return a collection of one query with one passage."""
    parts = {"name": "c", "queries": {"q": "a"}, "passages": {"a": "a"}, "qrels": {"q": {"a": 1}}, "run": RUN, **parts}
    return Collection(**parts)


def nodes():
    """Return one node."""
    return [NodeWithScore(node=TextNode(text="a"), score=0.5)]


CALLS = {
    "rank: query": lambda: Reranker(SHARED).rank(LONG.encode(), ["a"]),
    "rank: an image as the query": lambda: Reranker(SHARED).rank(IMAGE, ["a"]),
    "rank: an array as the query": lambda: Reranker(SHARED).rank(np.zeros(1_000_000), ["a"]),
    "rank: a blank query": lambda: Reranker(SHARED).rank(" " * 1_000_000, ["a"]),
    "rank: passage": lambda: Reranker(SHARED).rank("q", [Document(page_content=LONG)]),
    "rank: what cannot be shown": lambda: Reranker(SHARED).rank("q", [Unprintable()]),
    "rank: top_n": lambda: Reranker(SHARED).rank("q", ["a"], top_n=LONG),
    "rank: a top_n of 5,000 digits": lambda: Reranker(SHARED).rank("q", ["a"], top_n=-(10**5000)),
    "rank: score_threshold": lambda: Reranker(SHARED).rank("q", ["a"], score_threshold={LONG: LONG}),
    "arank: query": lambda: asyncio.run(Reranker(SHARED).arank(IMAGE, ["a"])),
    "arank: passage": lambda: asyncio.run(Reranker(SHARED).arank("q", [LONG.encode()])),
    "rank_many: request": lambda: Reranker(SHARED).rank_many([LONG]),
    "rank_many: passage": lambda: Reranker(SHARED).rank_many([("q", [IMAGE])]),
    "score: passage": lambda: Reranker(SHARED).score("q", [(LONG, LONG)]),
    "a scorer that raises": lambda: Reranker(Scorer(ValueError(LONG))).rank("q", ["a"]),
    "a scorer that raises, in a task": lambda: asyncio.run(Reranker(Scorer(ValueError(LONG))).arank("q", ["a"])),
    "a scorer that gives texts": lambda: Reranker(Scorer([LONG])).rank("q", ["a"]),
    "a scorer that gives NaN": lambda: Reranker(Scorer([float("nan")])).rank("q", ["a"]),
    "a scorer as a dict": lambda: Reranker(Scorer([1.0])).to_dict(),
    "model: a path": lambda: Reranker(f"./{LONG}"),
    "model: a name": lambda: Reranker(LONG.replace(" ", "")),
    "cache_folder": lambda: Reranker("owner/model", cache_folder=LONG, local_files_only=True).warm_up(),
    "revision": lambda: Reranker("owner/model", revision=LONG, local_files_only=True).warm_up(),
    "fallback: a server": lambda: Reranker("bundled", fallback={"url": LONG}),
    "model: an object": lambda: Reranker(IMAGE),
    "fallback": lambda: Reranker("bundled", fallback=IMAGE),
    "otel.instrument": lambda: otel.instrument(LONG),
    "Logistic": lambda: Logistic(LONG, 0.0),
    "from_dict": lambda: Reranker.from_dict({LONG: 1, 2: 3}),
    "MarcoRerank of LangChain: query": lambda: langchain.MarcoRerank(reranker=SHARED).compress_documents(
        [Document(page_content="a")], IMAGE
    ),
    "MarcoRerank of LangChain: documents": lambda: langchain.MarcoRerank(reranker=SHARED).compress_documents(LONG, "q"),
    "MarcoRerank of LangChain: a chain": lambda: langchain.MarcoRerank(reranker=SHARED).as_runnable().invoke({LONG: 1}),
    "MarcoRerank of LangChain: a text": lambda: langchain.MarcoRerank(reranker=SHARED).rerank([IMAGE], "q"),
    "MarcoRerank of LangChain: a field": lambda: langchain.MarcoRerank(**{LONG: 1}),
    "MarcoRerank of LangChain: text_fields": lambda: langchain.MarcoRerank(text_fields=LONG),
    "MarcoCrossEncoder": lambda: langchain.MarcoCrossEncoder(reranker=SHARED).score([("q", LONG, "z")]),
    "MarcoCrossEncoder: a query": lambda: langchain.MarcoCrossEncoder(reranker=SHARED).score([(IMAGE, "a")]),
    "RerankRetriever: query": lambda: retriever().invoke(IMAGE),
    "RerankRetriever: query, async": lambda: asyncio.run(retriever().ainvoke(IMAGE)),
    "RerankRetriever: base_retriever": lambda: retriever(base_retriever=LONG),
    "RerankRetriever: reranker": lambda: retriever(reranker=LONG),
    "RerankRetriever: top_n": lambda: retriever(top_n=LONG),
    "RerankRetriever: a field": lambda: retriever(**{LONG: 1}),
    "MarcoRerank of LlamaIndex: query": lambda: llama_index.MarcoRerank(reranker=SHARED).postprocess_nodes(
        nodes(), query_str=IMAGE
    ),
    "MarcoRerank of LlamaIndex: bundle": lambda: llama_index.MarcoRerank(reranker=SHARED).postprocess_nodes(
        nodes(), query_bundle=LONG
    ),
    "MarcoRerank of LlamaIndex: bundle, async": lambda: asyncio.run(
        llama_index.MarcoRerank(reranker=SHARED).apostprocess_nodes(nodes(), QueryBundle(IMAGE))
    ),
    "MarcoRerank of LlamaIndex: a field": lambda: llama_index.MarcoRerank(**{LONG: 1}),
    "MarcoRerank of LlamaIndex: metadata_mode": lambda: llama_index.MarcoRerank(metadata_mode=LONG),
    "MarcoRerank of LlamaIndex: from_dict": lambda: llama_index.MarcoRerank.from_dict({LONG: 1}),
    "evaluate: models": lambda: evaluate(collection(), [IMAGE]),
    "evaluate: a model": lambda: evaluate(collection(), LONG),
    "evaluate: measures": lambda: evaluate(collection(), "bundled", measures=LONG),
    "evaluate: a measure": lambda: evaluate(collection(), "bundled", measures=[LONG]),
    "evaluate: top_k": lambda: evaluate(collection(), "bundled", top_k=[LONG]),
    "evaluate: a path": lambda: evaluate(LONG, "bundled"),
    "evaluate: a query without judgements": lambda: evaluate(collection(queries={"q": "a", LONG: "a"}), "bundled"),
    "evaluate: a passage without text": lambda: evaluate(collection(run={"q": {LONG: 1.0}}), "bundled"),
    "evaluate_runs: runs": lambda: evaluate_runs(LONG, {"q": {"a": 1}}),
    "evaluate_runs: baseline": lambda: evaluate_runs({LONG: RUN}, {"q": {"a": 1}}, baseline=LONG * 2),
    "evaluate_runs: other queries": lambda: evaluate_runs({LONG: {LONG: {"a": 1.0}}}, {"q": {"a": 1}}),
    "cuts: a logit": lambda: cuts(collection(run={"q": {LONG: 1.0}}), {"q": {LONG: LONG}}),
    "calibrate: a logit": lambda: calibrate(collection(run={"q": {LONG: 1.0}}), {"q": {LONG: float("nan")}}),
    "run_of: search": lambda: run_of(LONG, {"q": "a"}),
    "run_of: doc_id": lambda: run_of(Retriever(), {LONG: "a"}, doc_id=LONG),
    "run_of: metadata": lambda: run_of(
        lambda _: [Document(page_content="a", metadata={f"{LONG}{i}": 1 for i in range(20)})], {"q": "a"}, doc_id="id"
    ),
    "run_of: query": lambda: run_of(Retriever(), {"q": IMAGE}),
    "read_collection": lambda: read_collection(LONG),
    "read_collection: split": lambda: read_collection(Path(__file__).parent, split=LONG),
    "read_run": lambda: read_run(LONG),
    "read_qrels": lambda: read_qrels(LONG),
    "write_run: tag": lambda: write_run(RUN, "run.txt", tag=LONG),
    "write_run: id": lambda: write_run({LONG: {"a": 1.0}}, "run.txt", tag="t"),
    "write_run: score": lambda: write_run({"q": {"a": LONG}}, "run.txt", tag="t"),
    "write_run: path": lambda: write_run(RUN, LONG, tag="t"),
    "RemoteScorer: url": lambda: RemoteScorer(LONG),
    "RemoteScorer: scheme": lambda: RemoteScorer(f"{'x' * 1_000_000}://host"),
    "RemoteScorer: host": lambda: RemoteScorer(f"http://{'private.' * 100_000}com"),
    "RemoteScorer: path": lambda: RemoteScorer(f"tei+http://host/{'private' * 100_000}"),
    "RemoteScorer: dialect": lambda: RemoteScorer("http://host", dialect=LONG),
    "RemoteScorer: model": lambda: RemoteScorer("tei+http://host", model=LONG),
    "RemoteScorer: settings": lambda: RemoteScorer("tei+http://host", max_attempts=IMAGE),
    "RemoteScorer: from_dict": lambda: RemoteScorer.from_dict({"url": "tei+http://host", LONG: 1}),
    "RemoteScorer: passage": lambda: RemoteScorer("tei+http://host").score("q", [LONG.encode()]),
    "plot_rank_changes: before": lambda: plot_rank_changes(LONG),
    "plot_rank_changes: a candidate": lambda: plot_rank_changes(["a"], [IMAGE]),
    "plot_rank_changes: another candidate": lambda: plot_rank_changes(["a"], [LONG]),
    "plot_rank_changes: no new order": lambda: plot_rank_changes([LONG]),
    "plot_rank_changes: top_n": lambda: plot_rank_changes(["a"], ["a"], top_n=LONG),
    "plot_rank_changes: title": lambda: plot_rank_changes(["a"], ["a"], title=IMAGE),
    "server: settings": lambda: ServeSettings.of({LONG: 1}),
    "server: a setting": lambda: ServeSettings.of({}, {"MARCORANK_MAX_BATCH": LONG}),
    "server: host": lambda: serve(ProcessSettings(host=LONG, port=0)),
    "server: model": lambda: ProcessSettings(model=LONG).reranker().warm_up(),
    "rerank_dataset": lambda: rerank_dataset(LONG, "out", model="bundled"),
    **{
        f"Reranker: {name}": lambda name=name: Reranker("bundled", **{name: IMAGE})
        for name in descriptions(RerankerSettings)
        if name not in {"model", "fallback"}
    },
    **{
        f"{adapter.__module__}.{adapter.__name__}: {name}": lambda adapter=adapter, name=name: adapter(**{name: IMAGE})
        for adapter in (langchain.MarcoRerank, langchain.MarcoCrossEncoder, llama_index.MarcoRerank)
        for name in adapter.model_fields
        if name != "callback_manager"
    },
}


def check(message):
    """Fail if a message is long or holds a long part of the value."""
    assert message
    assert len(message) < 1000
    assert "private " * 38 not in message
    assert "private" * 43 not in message


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_message_holds_no_long_part_of_a_value(call):
    """A wrong value of a megabyte, of any kind and at any entry, gives a short error of ours."""
    with pytest.raises((MarcoRankError, ValidationError)) as caught:
        call()
    check(str(caught.value))


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (
            lambda _: Reranker("bundled", top_n=3),
            "'top_n'. `top_n` is an argument of `rank`: reranker.rank(query, passages",
        ),
        (lambda _: Reranker("bundled", top_k=3), "Did you mean 'top_n'? `top_n` is an argument of `rank`"),
        (lambda core: core.rank("q", ["a"], top_k=1), "Reranker.rank() got .* 'top_k'. Did you mean 'top_n'?"),
        (
            lambda core: core.rank("q", ["a"], activation="sigmoid"),
            "`activation` is a setting: Reranker(..., activation",
        ),
        (lambda core: core.score("q", ["a"], top_n=1), "Reranker.score() got .* `top_n` is an argument of `rank`"),
        (lambda core: core.rank_many([], top_k=1), "Reranker.rank_many() got .* Did you mean 'top_n'?"),
        (lambda core: asyncio.run(core.arank("q", ["a"], top_k=1)), "Reranker.arank() got .* Did you mean 'top_n'?"),
    ],
)
def test_an_unknown_argument_is_explained(call, advice):
    """A name that exists elsewhere, or almost so, says where it belongs; the error is the TypeError of Python."""
    with pytest.raises(TypeError, match=re.escape(advice).replace(re.escape(".*"), ".*")):
        call(Reranker(SHARED))


def test_the_methods_keep_their_signatures():
    """What explains unknown arguments is invisible to editors and to frameworks that look for coroutines."""
    assert list(inspect.signature(Reranker.rank).parameters)[:4] == ["self", "query", "passages", "top_n"]
    assert [name for name in vars(Reranker) if inspect.iscoroutinefunction(getattr(Reranker, name))] == ["arank"]


@pytest.mark.parametrize(
    ("query", "passages", "advice"),
    [
        (
            ["a", "b"],
            "q",
            "`query` is ['a', 'b'] and `passages` is 'q'; expected the query first, and then the passages.",
        ),
        (
            "q",
            [Document("a")],
            "`passages[0]` is <Document object>; expected a str. Pass `page_content` of a document, or",
        ),
        ("q", Document("a"), "`passages` is a Document; expected a list of str.*`marcorank.langchain.MarcoRerank`"),
        ("q", nodes(), "Pass `get_content()` of a node, or rank nodes with `marcorank.llama_index.MarcoRerank`."),
        ("q", [{"text": "a"}], "expected a str. Pass the text in it, such as passage['text']."),
        ("q", [None], "expected a str. Leave out passages without text, or pass ''."),
        ("q", [3], "`passages[0]` is 3; expected a str. Pass its text."),
    ],
)
@pytest.mark.parametrize("method", ["rank", "score"])
def test_advice_fits_what_was_passed(method, query, passages, advice):
    """Swapped arguments, documents, nodes and dicts each have advice of their own."""
    with pytest.raises(InvalidInputError, match=re.escape(advice).replace(re.escape(".*"), ".*")):
        getattr(Reranker(SHARED), method)(query, passages)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://host:1", r"`model` does not name the API .* as in 'tei\+http://host:1'\.$"),
        ("tie+http://host", "`model` begins with 'tie'; expected one of tei, vllm"),
        ("cohere+http://host", "`model` has no name of a model, which a cohere server needs; append it to the URL"),
        ("tei+http://u:p@host", "`model` contains a user name or password; remove them and pass `token`"),
    ],
)
def test_a_message_about_an_address_names_the_argument_that_holds_it(address, message):
    """`Reranker` has no `url`, `dialect` or `api_key`."""
    with pytest.raises(InvalidInputError, match=message):
        Reranker(address)


ROWS = {
    "no object": LONG,
    "no fields": {LONG: 1, **{f"{LONG}{i}": 1 for i in range(20)}},
    "query": {"query": [LONG], "passages": ["a"], "relevant": [0]},
    "passages": {"query": "q", "passages": LONG, "relevant": [0]},
    "passage": {"query": "q", "passages": [[LONG]], "relevant": [0]},
    "text": {"query": "q", "passages": [{"text": {LONG: LONG}}], "relevant": [0]},
    "score": {"query": "q", "passages": [{"text": "a", "score": LONG}], "relevant": [0]},
    "id": {"query": "q", "passages": [{"text": "a", "id": [LONG]}], "relevant": [0]},
    "query_id": {"query_id": f"\n{LONG}", "query": "q", "passages": ["a"], "relevant": [0]},
    "relevant": {"query": "q", "passages": ["a"], "relevant": LONG},
    "an entry": {"query": "q", "passages": ["a"], "relevant": [[LONG]]},
    "a grade": {"query": "q", "passages": ["a"], "relevant": {LONG: LONG}},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_message_about_a_file_holds_no_long_part_of_it(row, tmp_path):
    """Files hold the texts of users too."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(MarcoRankError) as caught:
        read_collection(path)
    check(str(caught.value).replace(str(path), "rows.jsonl"))


@pytest.mark.parametrize(
    "text",
    [
        "q Q0 a 1 LONG t\n",
        "q a LONG\nq b 1\n",
        "LONG\n",
        "LONG\tLONG\tLONG\tLONG\tLONG\n",
        "q\tLONG\t1\nq\tLONG\t2\n",
    ],
)
@pytest.mark.parametrize("read", [read_run, read_qrels])
def test_a_message_about_columns_holds_no_long_part_of_them(read, text, tmp_path):
    """Runs and qrels as well."""
    path = tmp_path / "run.txt"
    path.write_text(text.replace("LONG", "private" * 100_000), encoding="utf-8")
    with pytest.raises(MarcoRankError) as caught:
        read(path)
    check(str(caught.value).replace(str(path), "run.txt"))


@pytest.mark.parametrize(
    "body",
    [
        LONG,
        {"query": [LONG], "texts": ["a"]},
        {"query": "q", "texts": LONG},
        {"query": "q", "texts": [{LONG: LONG}]},
        {"query": "q", "documents": [[LONG]]},
        {"query": "q", "documents": ["a"], "model": [LONG]},
        {"query": "q", "documents": ["a"], "top_n": LONG},
        {"query": "q", "texts": ["a"], "raw_scores": LONG},
        {"query": "q", "texts": ["a"], "truncation_direction": LONG},
    ],
)
def test_a_response_of_the_server_holds_no_long_part_of_a_request(body):
    """What a client sent is not sent back to it, or to the log."""
    with pytest.raises(RequestError) as caught:
        read_request(json.dumps(body).encode(), cohere=False, max_batch=10, max_length=512)
    check(str(caught.value))


@pytest.mark.parametrize(
    "arguments",
    [
        ["rerank", "q", LONG],
        ["rerank", "q", "--model", LONG],
        ["rerank", "--requests", LONG],
        ["rerank", "q", "FILE", "--text-field", LONG],
        ["rerank", "q", "--top-n", LONG],
        ["rerank", "q", "--score-threshold", LONG],
        ["rerank", "q", "--activation", LONG],
        ["rerank", "--input", LONG, "--output", "out"],
        ["eval", LONG],
        ["eval", "none", "--top-k", LONG],
        ["serve", "--host", LONG],
        ["serve", "--port", LONG],
        ["models", "download", LONG],
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)
def test_a_message_of_the_command_line_holds_no_long_part_of_an_option(arguments, capsys, tmp_path):
    """Errors and usage errors alike."""
    path = tmp_path / "passages.jsonl"
    path.write_text('{"text": "a"}\n', encoding="utf-8")
    arguments = [str(path) if argument == "FILE" else argument for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(arguments))
    assert ended.value.code
    check(capsys.readouterr().err.splitlines()[-1].replace(str(path), "FILE"))


# Paths of files that are open, excerpts, choices that were checked, and records that marcorank wrote.
BOUNDED = ("str(", "excerpt(", "beginning", "settings.", "name", "file.name", "error.name", "platform.node()")
BOUNDED += ("float(", "shorten(", "_PASSAGES", "_QUERY", "value", "header[1]", "self.settings")


def test_every_message_shows_values_in_one_way():
    """A value is shown by `quoted`; only what is bounded already, such as a path that exists, has a plain repr."""
    package = Path(marcorank.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        special = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("__")]
        skipped = {id(inner) for node in special for inner in ast.walk(node)}
        found += [
            f"{path.relative_to(package)}, line {node.lineno}: {ast.unparse(node.value)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.FormattedValue) and node.conversion == ord("r") and id(node) not in skipped
        ]
    assert [where for where in found if not where.split(": ", 1)[1].startswith(BOUNDED)] == []
