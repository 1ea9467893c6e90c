"""`marcorank bench`: how fast this machine reranks, beside what else is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank._models.catalogue import BUNDLED
from marcorank.bench.engines import PEERS
from marcorank.bench.records import SCENARIOS, Results, Settings
from marcorank.cli.bench_report import change_lines, report_lines
from marcorank.cli.models import present_files
from marcorank.cli.options import add_settings, at_least, new_parser
from marcorank.cli.progress import Progress
from marcorank.errors import InvalidInputError
from marcorank.settings import BACKENDS, DEFAULT_MODEL, PRECISIONS, RerankerSettings

if TYPE_CHECKING:
    import argparse

_NONE = "none"
_DEFAULTS = Settings(models=(BUNDLED,))
_USAGE = "marcorank bench [MODEL ...] [options]"
_EXAMPLES = f"""\
Every backend and precision that is installed is measured, and beside it the
other rerankers that are installed and can load the same weights. Each has a
process of its own; they take turns with the same request, which is made of
Python's documentation. Nothing is downloaded.

Without MODEL: bundled, and {DEFAULT_MODEL}
if it is in the cache.

examples:
  marcorank bench
  marcorank bench ./my-reranker --chart speed.svg --json today.json
  marcorank bench ./my-reranker --compare last-month.json
  marcorank bench ./my-reranker --backend openvino --precision bf16 int8 --peers none
  marcorank bench bundled --scenarios concurrent lag
"""


def add_command(commands: Any) -> None:
    """Add this command to the command line."""
    summary = "measure how fast this machine reranks"
    parser = new_parser(commands, "bench", summary=summary, run=run, usage=_USAGE, epilog=_EXAMPLES)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="bundled, hub names or models' folders")

    who = parser.add_argument_group("who takes part")
    who.add_argument(
        "--backend", nargs="+", choices=BACKENDS[1:], default=(), help="one or several engines (default: all)"
    )
    who.add_argument(
        "--precision", nargs="+", choices=PRECISIONS[1:], default=(), help="one or several (default: all but fp16)"
    )
    who.add_argument(
        "--peers",
        nargs="+",
        choices=(*PEERS, _NONE),
        default=tuple(PEERS),
        metavar="NAME",
        help=f"other rerankers: {', '.join(PEERS)}, or none (default: all that are installed)",
    )
    who.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cpu)")
    who.add_argument("--threads", type=at_least(1), metavar="N", help="of each engine (default: its own choice)")
    add_settings(who, ["cache_folder"])

    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--candidates",
        type=at_least(1),
        default=_DEFAULTS.candidates,
        metavar="N",
        help="passages of a request (default: %(default)s)",
    )
    what.add_argument(
        "--lengths",
        nargs=2,
        type=at_least(16),
        default=_DEFAULTS.lengths,
        metavar="TOKENS",
        help="minimum and maximum tokens of query and passage (default: 95 414)",
    )
    what.add_argument(
        "--rounds", type=at_least(1), default=_DEFAULTS.rounds, metavar="N", help="turns (default: %(default)s)"
    )
    what.add_argument(
        "--cold-starts",
        type=at_least(1),
        default=_DEFAULTS.cold_starts,
        metavar="N",
        help="fresh processes of each (default: %(default)s)",
    )
    what.add_argument(
        "--scenarios",
        nargs="+",
        choices=SCENARIOS,
        default=(),
        help="beyond one request at a time: many at once, many passages, their memory, an event loop's lag",
    )
    what.add_argument(
        "--concurrency",
        type=at_least(1),
        default=_DEFAULTS.concurrency,
        metavar="N",
        help="requests at once in concurrent (default: %(default)s)",
    )
    what.add_argument(
        "--lag-requests",
        type=at_least(1),
        default=_DEFAULTS.lag_requests,
        metavar="N",
        help="requests at once in lag (default: %(default)s)",
    )
    what.add_argument(
        "--passages",
        type=at_least(1),
        default=_DEFAULTS.passages,
        metavar="N",
        help="the many of scale and memory (default: %(default)s)",
    )
    what.add_argument("--no-limit", action="store_true", help="do not measure the machine's own limit")
    what.add_argument(
        "--timeout",
        type=at_least(1),
        default=int(_DEFAULTS.timeout_s),
        metavar="S",
        help="maximum wait for an answer, in seconds (default: %(default)s)",
    )

    result = parser.add_argument_group("output")
    result.add_argument("--json", metavar="FILE", help="write everything, to compare with later")
    result.add_argument("--chart", metavar="FILE", help="draw the speeds, as .png or .svg")
    result.add_argument("--compare", metavar="FILE", help="show what changed since that --json")
    parser.set_defaults(usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Measure, write and show."""
    from marcorank.bench.chart import check_chart_path, write_chart
    from marcorank.bench.running import run_bench

    if args.lengths[0] > args.lengths[1]:
        args.usage_error("--lengths takes the smaller number of tokens first")
    if _NONE in args.peers and len(args.peers) > 1:
        args.usage_error("--peers none stands alone")
    # Who waits for minutes should not learn then that a file cannot be read or drawn.
    before = Results.read_json(args.compare) if args.compare else None
    if args.chart:
        check_chart_path(args.chart)
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise InvalidInputError(f"{args.json!r} cannot be written: its folder does not exist.")
    with Progress("Making the passages") as progress:
        results = run_bench(_settings(args), lambda text: setattr(progress, "text", text))
    for line in report_lines(results):
        print(line)
    if before is not None:
        for line in change_lines(before, results):
            print(line)
    if args.json:
        results.write_json(args.json)
    if args.chart:
        write_chart(results, args.chart)
    return 0 if any(row.measured for row in results.rows) else 1


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        models=tuple(args.models) or _default_models(args.cache_folder),
        backends=tuple(args.backend),
        precisions=tuple(args.precision),
        peers=() if _NONE in args.peers else tuple(args.peers),
        device=args.device,
        threads=args.threads,
        candidates=args.candidates,
        lengths=(args.lengths[0], args.lengths[1]),
        rounds=args.rounds,
        cold_starts=args.cold_starts,
        scenarios=tuple(args.scenarios),
        concurrency=args.concurrency,
        lag_requests=args.lag_requests,
        passages=args.passages,
        timeout_s=args.timeout,
        cache_folder=args.cache_folder,
        product_sizes=() if args.no_limit else _DEFAULTS.product_sizes,
    )


def _default_models(cache_folder: str | None) -> tuple[str, ...]:
    settings = RerankerSettings(DEFAULT_MODEL, cache_folder=cache_folder, local_files_only=True)
    if present_files(settings):
        return BUNDLED, DEFAULT_MODEL
    print(
        f"marcorank: note: {DEFAULT_MODEL} is measured too once it is here: marcorank models download {DEFAULT_MODEL}",
        file=sys.stderr,
    )
    return (BUNDLED,)
