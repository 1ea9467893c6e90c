"""`marcorank eval`: whether reranking helps on judged queries, how deep to rerank, and where to cut."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank._models.catalogue import BUNDLED
from marcorank.cli.options import add_settings, new_parser, settings_of
from marcorank.cli.progress import Progress
from marcorank.errors import InvalidInputError, MissingExtraError
from marcorank.reranker import Reranker

if TYPE_CHECKING:
    import argparse

    from marcorank.collections.records import Collection
    from marcorank.evaluation.results import Evaluation

_TOP_K = "10 20 50 100"
_MEASURES = "nDCG@10 RR@10 R@10"
_USAGE = "marcorank eval SOURCE [options]"
_EXAMPLES = """\
SOURCE is a BEIR folder (corpus.jsonl, queries.jsonl, qrels/*.tsv), or JSONL with
a query a line: {"query": "...", "passages": ["...", "..."], "relevant": [0]},
passages in the order of the first stage, relevant ones by index or id. The first
stage of a folder is --run, or the run in it, or else BM25 over the corpus.

Several models, backends and precisions are all combined. The folder of --output
then holds
  report.html   the page to look at
  results.json  everything, per query too
  runs/         a TREC run for each model and depth
  scores/       every logit: who interrupts the command and gives it again goes
                on where it stopped, and a model that is added is scored alone

examples:
  marcorank eval candidates.jsonl
  marcorank eval nfcorpus --run bm25.trec --top-k 20 100
  marcorank eval nfcorpus --measures nDCG@10 "RR(rel=2)@10" R@100
  marcorank eval nfcorpus --model bundled ms-marco-MiniLM-L-6-v2
  marcorank eval nfcorpus --model ./my-reranker --precision fp32 int8
"""


def add_command(commands: Any) -> None:
    """Add this command to the command line."""
    summary = "measure whether reranking helps on judged queries, and where to cut"
    parser = new_parser(commands, "eval", summary=summary, run=run, usage=_USAGE, epilog=_EXAMPLES)
    parser.add_argument("source", metavar="SOURCE", help="a collection's folder or JSONL file, also as .gz")

    source = parser.add_argument_group("input")
    source.add_argument("--run", dest="run_file", metavar="FILE", help="first stage, a TREC run")
    source.add_argument("--qrels", metavar="FILE", help="judgements, TREC or BEIR")
    source.add_argument("--queries", metavar="FILE", help="texts of the queries, JSONL")
    source.add_argument("--corpus", metavar="FILE", help="texts of the passages, JSONL")
    source.add_argument("--split", default="test", metavar="NAME", help="which qrels of a BEIR folder (default: test)")

    what = parser.add_argument_group("what is measured")
    what.add_argument(
        *("--top-k",),
        nargs="+",
        type=int,
        metavar="N",
        help=f"candidates that are reranked (default: {_TOP_K}, up to what there is)",
    )
    what.add_argument(
        "--measures", nargs="+", metavar="NAME", help=f"as ir_measures spells them (default: {_MEASURES})"
    )
    what.add_argument(
        "--relevant-grade", type=int, default=1, metavar="N", help="minimum grade that counts as relevant (default: 1)"
    )

    result = parser.add_argument_group("output")
    result.add_argument("--output", metavar="FOLDER", help="default: the collection's name and -eval, here")
    result.add_argument(
        "--format", choices=("table", "json"), default="table", help="on standard output (default: table)"
    )

    model = parser.add_argument_group("models")
    model.add_argument(
        "--model",
        nargs="+",
        default=[BUNDLED],
        metavar="NAME",
        help="bundled, hub names, models' folders or servers (default: bundled)",
    )
    add_settings(model, several=("backend", "precision"))


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the files and show the tables."""
    # Who waits an hour for scores should not learn then that the page cannot be drawn.
    for package in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f'The report needs {package}: pip install "marcorank[evaluation]"')
    from marcorank.evaluation.scores import file_name

    with Progress(f"Reading {args.source}"):
        collection = _collection(args)
    for note in collection.notes:
        _note(note)
    folder = Path(args.output or f"{file_name(collection.name)}-eval").expanduser()
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"`--output` is {str(folder)!r}, which is a file; expected a folder.")
    evaluation = _evaluation(args, collection, folder)
    for note in evaluation.notes[len(collection.notes) :]:
        _note(note)
    with Progress("Writing the report"):
        evaluation.write_json(folder / "results.json")
        evaluation.write_runs(folder / "runs")
        evaluation.write_report(folder / "report.html")
    if args.format == "json":
        print(json.dumps(evaluation.rows(), indent=1))
    else:
        print(evaluation)
    print(f"marcorank: wrote {folder / 'report.html'}, results.json, runs and scores", file=sys.stderr)
    return 0


def _collection(args: argparse.Namespace) -> Collection:
    from marcorank.collections.reading import read_collection

    return read_collection(
        args.source,
        run=args.run_file,
        qrels=args.qrels,
        queries=args.queries,
        corpus=args.corpus,
        split=args.split,
    )


def _evaluation(args: argparse.Namespace, collection: Collection, folder: Path) -> Evaluation:
    from marcorank.evaluation.evaluating import evaluate

    shown = _Shown()
    with ExitStack() as stack:
        rerankers = [stack.enter_context(reranker) for reranker in _rerankers(args)]
        progress = stack.enter_context(Progress("Looking at the models"))
        given = {} if args.measures is None else {"measures": args.measures}
        try:
            return evaluate(
                collection,
                rerankers,
                top_k=args.top_k,
                relevant_grade=args.relevant_grade,
                scores_folder=folder / "scores",
                progress=lambda done, total, label: setattr(progress, "text", shown.line(done, total, label)),
                **given,
            )
        except KeyboardInterrupt:
            with progress.hidden():
                shown.print_what_is_kept(folder / "scores")
            raise


def _rerankers(args: argparse.Namespace) -> list[Reranker]:
    return [
        Reranker(model, **{**settings_of(args), "backend": backend, "precision": precision})
        for model, backend, precision in itertools.product(args.model, args.backend, args.precision)
    ]


class _Shown:
    """Progress of scoring, for people."""

    def __init__(self) -> None:
        self._done = self._total = 0
        self._first: tuple[float, int] | None = None

    def line(self, done: int, total: int, label: str) -> str:
        """Return what is going on, and how long it may still take."""
        now = time.monotonic()
        self._done, self._total = done, total
        # What an earlier run has scored says nothing of how fast this one is.
        self._first = self._first or (now, done)
        since, before = self._first
        if done == total:
            return "Measuring"
        left = ""
        if done > before:
            left = f", {_duration((now - since) / (done - before) * (total - done))} left"
        return f"Scoring with {label}: {done:,} of {total:,} pairs{left}"

    def print_what_is_kept(self, folder: Path) -> None:
        """Print how much of the work an interruption keeps."""
        if self._total:
            print(
                f"marcorank: {self._done:,} of {self._total:,} pairs are scored and kept in {folder}; the same command "
                "goes on from there",
                file=sys.stderr,
            )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _note(text: str) -> None:
    print(f"marcorank: note: {text}", file=sys.stderr)
