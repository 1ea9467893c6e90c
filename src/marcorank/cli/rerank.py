"""`marcorank rerank`: rank the passages of a file or a pipe."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

from marcorank._arguments import score_threshold_or_none
from marcorank._files import json_line
from marcorank._models.catalogue import BUNDLED
from marcorank._text import counted, one_line, quoted, quoted_path, table
from marcorank.cli import rerank_files
from marcorank.cli.options import add_settings, at_least, new_parser, settings_of
from marcorank.cli.progress import Progress
from marcorank.cli.reading import INPUT_FORMATS, STANDARD_INPUT, read_passages, read_requests
from marcorank.cli.writing import opened
from marcorank.collections.requests import Request, answer_row, result_row
from marcorank.ranking import shown_number
from marcorank.reranker import Reranker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from marcorank.ranking import Ranking

# Enough to fill batches, few enough that results come while the input is still being read.
_PASSAGES_AT_ONCE = 512
_REQUESTS_AT_ONCE = 32

_USAGE = """marcorank rerank [options] QUERY [FILE]
       marcorank rerank [options] --requests FILE
       marcorank rerank [options] --input FILES --output FOLDER"""
_EXAMPLES = """\
Passages are lines of text, JSONL (one object per line), a JSON array, or CSV or
TSV with a header, with the text in the field `text`, `passage`, `page_content`
or `content`, or in that of --text-field. JSONL results keep the
fields of their passage and add `index` (position in the input, from 0), `rank`,
`score` and `logit`; an input field with one of these names is renamed to
`input_score` and so on. With --requests, each input line holds a query and its
passages, and each output line their `results`. With --input, such rows come
from any number of JSONL or Parquet files, and the output is a folder with one
file for each shard. If the command is interrupted, run it again to resume.

examples:
  marcorank rerank "how to open a file" passages.txt
  marcorank rerank "how to open a file" hits.jsonl --top-n 5 --output best.jsonl
  grep -rh file docs | marcorank rerank "how to open a file"
  marcorank rerank --requests queries.jsonl --activation sigmoid
  marcorank rerank "how to open a file" hits.jsonl --blend 0.3 --top-n 5
  marcorank rerank --requests queries.jsonl --model my-model --skim bundled-tiny
  marcorank rerank --input 'candidates/*.parquet' --output ranked --engine ray
"""


def add_command(commands: Any) -> None:
    """Add this command to the command line."""
    parser = new_parser(
        commands, "rerank", summary="rank the passages of a file or a pipe", run=run, usage=_USAGE, epilog=_EXAMPLES
    )
    parser.add_argument("query", nargs="?", metavar="QUERY", help="the query")
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="passages, may be compressed; - or nothing for standard input"
    )

    source = parser.add_argument_group("input")
    source.add_argument(
        "--requests", metavar="FILE", help="JSONL with {query, passages} on each line, instead of QUERY and FILE"
    )
    source.add_argument(
        "--input-format",
        choices=INPUT_FORMATS,
        default="auto",
        help="default: by the file extension, or else by the content",
    )
    source.add_argument("--text-field", metavar="NAME", help="field or column that holds the text of a passage")

    result = parser.add_argument_group("output")
    result.add_argument(
        "--top-n", type=at_least(1), metavar="N", help="maximum number of results for each query (default: all)"
    )
    result.add_argument("--score-threshold", type=_number, metavar="X", help="minimum score of a result")
    add_settings(result, ["activation"])
    result.add_argument(
        "--format", choices=("table", "jsonl"), help="default: table on a terminal, jsonl to a pipe or a file"
    )
    result.add_argument("--output", metavar="FILE", help="default: standard output")
    rerank_files.add_options(parser)

    more = parser.add_argument_group("order and selection")
    more.add_argument(
        "--skim",
        metavar="NAME",
        help="a cheaper model that reads all passages first; --model reads only the best of them. The others follow "
        "without a score",
    )
    add_settings(more, ["skim_keep", "blend", "max_similarity", "max_drop", "min_n"])

    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default=BUNDLED,
        metavar="NAME",
        help="bundled, bundled-tiny, a Hub name, a model's folder, or a server such as tei+http://host:8080 "
        "(default: bundled)",
    )
    add_settings(model)
    parser.set_defaults(usage_error=parser.error, surplus_hint=" Put a query of several words in quotes.")


def run(args: argparse.Namespace) -> int:
    """Rank the passages and write the results."""
    if rerank_files.is_wanted(args):
        return rerank_files.run(args, settings_of(args))
    if (args.query is None) == (args.requests is None):
        args.usage_error(
            "give either QUERY, or --requests with a file of queries and their passages, or --input with any number "
            "of such files"
        )
    if args.requests is not None and args.input_format not in {"auto", "jsonl"}:
        args.usage_error(f"--requests reads JSONL; --input-format {args.input_format} is for passages")
    on_terminal = args.output is None and sys.stdout.isatty()
    show = _table if (args.format or ("table" if on_terminal else "jsonl")) == "table" else _json
    reranker = Reranker(args.model, **settings_of(args))
    done = 0
    with reranker, opened(args.output) as out, Progress() as progress:
        for chunk in _chunks(_requests(args)):
            passages = sum(len(request.passages) for request in chunk)
            progress.text = f"Ranking {passages} passages with {reranker.name}" + (f" ({done} done)" if done else "")
            rankings = reranker.rank_many(
                [request.parts for request in chunk],
                top_n=args.top_n,
                score_threshold=args.score_threshold,
            )
            with progress.hidden():
                for request, ranking in zip(chunk, rankings, strict=True):
                    out.writelines(show(request, ranking, args))
                out.flush()
            done += passages
            # The next requests may be typed on the same terminal.
            progress.text = ""
    return 0


def _requests(args: argparse.Namespace) -> Iterator[Request]:
    if args.requests is not None:
        if args.requests == STANDARD_INPUT:
            _prompt_for("requests, one JSON object per line")
        yield from read_requests(args.requests, text_field=args.text_field)
        return
    source = args.file or STANDARD_INPUT
    if source == STANDARD_INPUT:
        _prompt_for(f"passages for the query {quoted(args.query)}, one per line")
    elif not os.path.exists(source) and os.path.isfile(args.query):  # noqa: PTH110, PTH113 -- no OSError for any text
        args.usage_error(
            f"QUERY comes before FILE: {quoted_path(args.query)} is a file, and {quoted_path(source)} is not"
        )
    found = read_passages(source, input_format=args.input_format, text_field=args.text_field)
    if found.blank_lines:
        print(f"marcorank: note: blank lines skipped: {found.blank_lines}", file=sys.stderr)
    if found.columns:
        print(
            f"marcorank: note: the input looks like a table of {found.columns} columns, and its lines are ranked as "
            "they are; to rank a column, use --input-format csv or tsv, and --text-field",
            file=sys.stderr,
        )
    if not found.passages:
        print("marcorank: note: the input has no passages", file=sys.stderr)
    yield Request(args.query, found.passages, {})


def _prompt_for(what: str) -> None:
    if sys.stdin.isatty():
        end = "Ctrl-Z and Enter" if sys.platform == "win32" else "Ctrl-D"
        print(f"marcorank: reading {what}; end with {end}", file=sys.stderr)


def _chunks(requests: Iterable[Request]) -> Iterator[list[Request]]:
    chunk: list[Request] = []
    passages = 0
    for request in requests:
        chunk.append(request)
        passages += len(request.passages)
        if passages >= _PASSAGES_AT_ONCE or len(chunk) >= _REQUESTS_AT_ONCE:
            yield chunk
            chunk, passages = [], 0
    if chunk:
        yield chunk


def _json(request: Request, ranking: Ranking, args: argparse.Namespace) -> Iterator[str]:
    if args.requests is None:
        for result in ranking:
            yield json_line(result_row(request.passages[result.index], result))
    else:
        yield json_line(answer_row(request, ranking))


def _table(request: Request, ranking: Ranking, args: argparse.Namespace) -> Iterator[str]:
    skipped = f"; near-duplicates left out: {len(ranking.skipped)}" if ranking.skipped else ""
    passages = counted(len(request.passages), "passage")
    yield f"{len(ranking)} of {passages} for '{one_line(ranking.query)}', ranked by {ranking.model}{skipped}\n"
    if len(ranking):
        columns = {
            **({"blended": "blended_score"} if args.blend else {}),
            "score": "score",
            **({"logit": "logit"} if args.activation != "identity" else {}),
            **({"skim": "skim_logit"} if args.skim is not None else {}),
        }
        header = ["rank", "index", *columns, "text"]
        rows = [
            [
                str(result.rank),
                str(result.index),
                *(shown_number(getattr(result, name)) for name in columns.values()),
                one_line(result.text if result.span is None else result.text[slice(*result.span)]),
            ]
            for result in ranking
        ]
        for line in table(header, rows, left=(), width=shutil.get_terminal_size().columns):
            yield f"{line}\n"
    if args.requests is not None:
        yield "\n"


def _number(text: str) -> float | None:
    try:
        return score_threshold_or_none(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"found {quoted(text)}; expected a number on the scale of the scores"
        ) from error
