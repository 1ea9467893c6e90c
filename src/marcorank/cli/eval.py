"""`marcorank eval`: measure whether reranking helps on judged queries, and choose settings."""

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
from marcorank.cli.options import add_settings, at_least, new_parser, settings_of
from marcorank.cli.progress import Progress, duration
from marcorank.errors import InvalidInputError, MissingExtraError
from marcorank.reranker import Reranker

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from marcorank.collections.records import Collection
    from marcorank.evaluation.results import Evaluation

_EXAMPLES = """\
SOURCE is a BEIR folder (corpus.jsonl, queries.jsonl, qrels/*.tsv), or JSONL with
one query per line: {"query": "...", "passages": ["...", "..."], "relevant": [0]},
with the passages in first-stage order and the relevant ones by index or id. The
first stage of a folder is --run, or the run in it, or else BM25 over the corpus.

Models, backends and precisions are combined. The output folder contains
  report.html   the results as a page with charts
  results.json  all values, including those of each query
  runs/         a TREC run for each model and depth
  scores/       all logits: if you interrupt the command, run it again to resume;
                if you add a model, only that model is scored

examples:
  marcorank eval candidates.jsonl
  marcorank eval nfcorpus --run bm25.trec --top-k 20 100
  marcorank eval nfcorpus --measures nDCG@10 "RR(rel=2)@10" R@100
  marcorank eval nfcorpus --model bundled ms-marco-MiniLM-L6-v2
  marcorank eval nfcorpus --model ./my-reranker --precision fp32 int8
  marcorank eval nfcorpus --skim ms-marco-TinyBERT-L2-v2
"""


def add_command(commands: Any) -> None:
    """Add this command to the command line."""
    summary = "measure whether reranking helps on judged queries, and choose settings"
    parser = new_parser(
        commands, "eval", summary=summary, run=run, usage="marcorank eval SOURCE [options]", epilog=_EXAMPLES
    )
    parser.add_argument("source", metavar="SOURCE", help="BEIR folder or JSONL file, also as .gz")

    source = parser.add_argument_group("input")
    source.add_argument("--run", dest="run_file", metavar="FILE", help="first stage, a TREC run")
    source.add_argument("--qrels", metavar="FILE", help="judgements, TREC or BEIR")
    source.add_argument("--queries", metavar="FILE", help="texts of the queries, JSONL")
    source.add_argument("--corpus", metavar="FILE", help="texts of the passages, JSONL")
    source.add_argument("--split", default="test", metavar="NAME", help="qrels of a BEIR folder (default: test)")

    measured = parser.add_argument_group("measures")
    measured.add_argument(
        "--top-k",
        nargs="+",
        type=at_least(1),
        metavar="N",
        help="numbers of candidates to rerank (default: 10 20 50 100, as far as there are candidates)",
    )
    measured.add_argument(
        "--measures",
        nargs="+",
        metavar="NAME",
        default=["nDCG@10", "RR@10", "R@10"],
        help="in the spelling of ir_measures (default: nDCG@10 RR@10 R@10)",
    )
    measured.add_argument(
        "--relevant-grade",
        type=at_least(1),
        default=1,
        metavar="N",
        help="minimum grade that counts as relevant (default: 1)",
    )

    result = parser.add_argument_group("output")
    result.add_argument("--output", metavar="FOLDER", help="output folder (default: the collection's name with -eval)")
    result.add_argument(
        "--format", choices=("table", "json"), default="table", help="format on standard output (default: table)"
    )

    model = parser.add_argument_group("models")
    model.add_argument(
        "--model",
        nargs="+",
        default=[BUNDLED],
        metavar="NAME",
        help="bundled, bundled-tiny, Hub names, model folders or servers (default: bundled)",
    )
    model.add_argument(
        "--skim",
        dest="skim_model",
        metavar="NAME",
        help="cheaper model to try as a first reader; it is measured how many candidates the others then have to read",
    )
    add_settings(model, several=("backend", "precision"))


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the files and print the tables."""
    # Checked first: scoring may take an hour.
    for package in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f'The report needs {package}: pip install "marcorank[evaluation]"')
    from marcorank.collections.reading import read_collection
    from marcorank.evaluation.scores import file_name

    with Progress(f"Reading {args.source}"):
        collection = read_collection(
            args.source,
            run=args.run_file,
            qrels=args.qrels,
            queries=args.queries,
            corpus=args.corpus,
            split=args.split,
        )
    _print_notes(collection.notes)
    folder = Path(args.output or f"{file_name(collection.name)}-eval").expanduser()
    if folder.exists() and not folder.is_dir():
        raise InvalidInputError(f"`--output` is {str(folder)!r}, which is a file; expected a folder.")
    evaluation = _evaluation(args, collection, folder / "scores")
    _print_notes(evaluation.notes[len(collection.notes) :])
    with Progress("Writing the report"):
        evaluation.write_json(folder / "results.json")
        evaluation.write_runs(folder / "runs")
        evaluation.write_report(folder / "report.html")
    print(json.dumps(evaluation.rows(), indent=1) if args.format == "json" else evaluation)
    print(f"marcorank: wrote {folder / 'report.html'}, results.json, runs and scores", file=sys.stderr)
    return 0


def _evaluation(args: argparse.Namespace, collection: Collection, scores_folder: Path) -> Evaluation:
    from marcorank.evaluation.evaluating import evaluate

    status = _ScoringStatus()
    with ExitStack() as stack:
        rerankers = [
            stack.enter_context(Reranker(model, **{**settings_of(args), "backend": backend, "precision": precision}))
            for model, backend, precision in itertools.product(args.model, args.backend, args.precision)
        ]
        progress = stack.enter_context(Progress("Preparing the models"))
        try:
            return evaluate(
                collection,
                rerankers,
                top_k=args.top_k,
                skim=args.skim_model,
                measures=args.measures,
                relevant_grade=args.relevant_grade,
                scores_folder=scores_folder,
                progress=lambda done, total, label: setattr(progress, "text", status.line(done, total, label)),
            )
        except KeyboardInterrupt:
            if status.total:
                with progress.hidden():
                    print(
                        f"marcorank: {status.done:,} of {status.total:,} pairs are scored and saved in "
                        f"{scores_folder}; run the same command to resume",
                        file=sys.stderr,
                    )
            raise


class _ScoringStatus:
    """The number of scored pairs, as a progress line with the time left."""

    def __init__(self) -> None:
        self.done = self.total = 0
        self._start: tuple[float, int] | None = None

    def line(self, done: int, total: int, label: str) -> str:
        """Return the progress line."""
        now = time.monotonic()
        self.done, self.total = done, total
        # The pairs that an earlier run scored do not count for the speed of this one.
        self._start = self._start or (now, done)
        started, done_before = self._start
        if done == total:
            return "Measuring"
        line = f"Scoring with {label}: {done:,} of {total:,} pairs"
        if done == done_before:
            return line
        left_s = (now - started) / (done - done_before) * (total - done)
        return f"{line}, {duration(left_s)} left"


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"marcorank: note: {note}", file=sys.stderr)
