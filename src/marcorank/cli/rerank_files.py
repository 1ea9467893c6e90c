"""`marcorank rerank --input FILES --output FOLDER`: rerank any number of files, shard by shard."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from marcorank._text import counted, quoted_path
from marcorank.cli.options import at_least
from marcorank.cli.progress import Progress, duration
from marcorank.jobs.joining import RunFiles
from marcorank.jobs.planning import FORMATS, SHARD_SIZE, plan
from marcorank.reranker import Reranker

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from marcorank.jobs.planning import ShardRun

ENGINES = ("local", "ray")


def add_options(parser: Any) -> None:
    """Add the options for files."""
    group = parser.add_argument_group("many files, instead of QUERY and FILE; --output is then a folder")
    group.add_argument(
        "--input",
        nargs="+",
        metavar="FILES",
        help="JSONL or Parquet files with rows of {query, passages}, folders or patterns",
    )
    group.add_argument("--run", dest="run_file", metavar="FILE", help="a TREC run, instead of --input")
    group.add_argument("--queries", metavar="FILE", help="texts of the queries of --run, as JSONL or .tsv")
    group.add_argument("--corpus", metavar="FILE", help="texts of the passages of --run, as JSONL or .tsv")
    group.add_argument("--engine", choices=ENGINES, help="local: this process (default); ray: a pool of actors")
    group.add_argument("--shard-size", type=at_least(1), metavar="N", help=f"rows per shard (default: {SHARD_SIZE})")
    group.add_argument("--output-format", choices=FORMATS, help="default: parquet if all of the input is, else jsonl")
    group.add_argument("--overwrite", action="store_true", help="delete the output of an earlier run and start again")
    group.add_argument(
        "--workers", type=at_least(1), metavar="N", help="Ray actors (default: as many as there are cores for)"
    )
    group.add_argument(
        "--ray-address", metavar="ADDRESS", help="address of a Ray cluster; auto for the one on this machine"
    )


def is_wanted(args: argparse.Namespace) -> bool:
    """Whether files are to be ranked; an option for files without --input or --run is a usage error."""
    if args.input is not None or args.run_file is not None:
        return True
    for name in ("queries", "corpus", "engine", "shard_size", "output_format", "overwrite", "workers", "ray_address"):
        if getattr(args, name) not in {None, False}:
            args.usage_error(f"--{name.replace('_', '-')} requires --input or --run")
    return False


def run(args: argparse.Namespace, settings: dict[str, Any]) -> int:
    """Rank the files and write the folder; `settings` are those of the reranker without the model."""
    _check_usage(args)
    source = args.input if args.run_file is None else RunFiles(args.run_file, args.queries, args.corpus)
    options = {
        "top_n": args.top_n,
        "score_threshold": args.score_threshold,
        "text_field": args.text_field,
        "shard_size": args.shard_size or SHARD_SIZE,
        "output_format": args.output_format,
        "overwrite": args.overwrite,
    }
    with Progress("Reading the input") as line:

        def show(run: ShardRun) -> None:
            line.text = _progress_text(run)

        if args.engine == "ray":
            done = _rank_with_ray(args, source, {**options, **settings, "progress": show})
        else:
            with Reranker(args.model, **settings) as reranker:
                planned = plan(source, args.output, reranker, **options)
                done = planned.follow(planned.rank_here(reranker), show)
    print(f"marcorank: {_summary(done)}", file=sys.stderr)
    return 0


def _check_usage(args: argparse.Namespace) -> None:
    if args.query is not None or args.requests is not None or (args.input is not None and args.run_file is not None):
        args.usage_error("give one of QUERY, --requests, --input and --run")
    if args.output is None:
        args.usage_error("--input and --run require --output with a folder")
    if (args.run_file is None) != (args.queries is None) or (args.run_file is None) != (args.corpus is None):
        args.usage_error("--run, --queries and --corpus must be used together")
    if args.format is not None or args.input_format != "auto":
        args.usage_error("--format and --input-format are for one query; for files, use --output-format")
    if args.engine != "ray" and (args.workers is not None or args.ray_address is not None):
        args.usage_error("--workers and --ray-address require --engine ray; in this process, use --threads")


def _rank_with_ray(args: argparse.Namespace, source: Sequence[str] | RunFiles, options: dict[str, Any]) -> ShardRun:
    if not args.debug:
        # Otherwise Ray's own processes log to this terminal.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    from marcorank.ray.datasets import rerank_dataset

    return rerank_dataset(
        source, args.output, model=args.model, num_actors=args.workers, address=args.ray_address, **options
    )


def _progress_text(run: ShardRun) -> str:
    text = f"Ranking: {run.skipped + run.ranked} of {run.shards} shards"
    if run.seconds_left is None:
        return text
    return f"{text}, {run.pairs_per_second:,.0f} pairs a second, {duration(run.seconds_left)} left"


def _summary(run: ShardRun) -> str:
    parts = []
    if run.ranked or not run.skipped:
        speed = f" in {duration(run.seconds)}, {run.pairs_per_second:,.0f} a second" if run.pairs else ""
        parts.append(f"ranked {counted(run.ranked, 'shard')} ({run.requests:,} queries, {run.pairs:,} pairs{speed})")
    if run.skipped:
        parts.append(f"skipped {counted(run.skipped, 'shard')} of an earlier run")
    return f"{', '.join(parts)}; {quoted_path(run.output)} holds all {run.shards}"
