"""`marcorank bench`: how fast this machine reranks, next to other installed rerankers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank._models.catalogue import BUNDLED
from marcorank._text import quoted_path
from marcorank.bench.contestants import PEERS
from marcorank.bench.records import SCENARIOS, Results, Settings, check_chart_path
from marcorank.cli.bench_report import change_lines, report_lines
from marcorank.cli.models import present_files
from marcorank.cli.options import add_settings, at_least, new_parser
from marcorank.cli.progress import Progress
from marcorank.errors import InvalidInputError
from marcorank.settings import BACKENDS, DEFAULT_MODEL, PRECISIONS, RerankerSettings

if TYPE_CHECKING:
    import argparse

_DEFAULTS = Settings(models=(BUNDLED,))
_USAGE = "marcorank bench [MODEL ...] [options]"
_EXAMPLES = f"""\
Measures every installed backend and precision, next to the other installed
rerankers that can load the same weights. Each has its own process; they take
turns with the same request, which is made from Python's documentation. Nothing
is downloaded.

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
    parser.set_defaults(usage_error=parser.error)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="bundled, bundled-tiny, Hub names or folders")

    who = parser.add_argument_group("contestants")
    _add_choices(who, "--backend", "backends", BACKENDS[1:], "one or several (default: all)")
    _add_choices(who, "--precision", "precisions", PRECISIONS[1:], "one or several (default: all but fp16)")
    peers = f"other rerankers: {', '.join(PEERS)}, or none (default: all that are installed)"
    _add_choices(who, "--peers", "peers", (*PEERS, "none"), peers, default=list(PEERS), metavar="NAME")
    who.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cpu)")
    who.add_argument("--threads", type=at_least(1), metavar="N", help="of each contestant (default: its own)")
    add_settings(who, ["cache_folder"])

    what = parser.add_argument_group("measurements")
    _add_number(what, "--candidates", "passages of a request")
    lengths = "minimum and maximum tokens of query and passage together (default: 95 414)"
    what.add_argument(
        "--lengths", nargs=2, type=at_least(16), default=_DEFAULTS.lengths, metavar="TOKENS", help=lengths
    )
    _add_number(what, "--rounds", "rounds; each contestant has one turn in each")
    _add_number(what, "--cold-starts", "fresh processes of each contestant")
    _add_choices(what, "--scenarios", "scenarios", SCENARIOS, "concurrent requests, and the lag of an event loop")
    _add_number(what, "--concurrency", "concurrent requests in `concurrent`")
    _add_number(what, "--lag-requests", "concurrent requests in `lag`")
    what.add_argument(
        "--no-limit",
        dest="limit_sizes",
        action="store_const",
        const=(),
        default=_DEFAULTS.limit_sizes,
        help="do not measure the machine's own limit",
    )
    _add_number(what, "--timeout", "seconds to wait for a response of a contestant", dest="timeout_s")

    result = parser.add_argument_group("output")
    result.add_argument("--json", metavar="FILE", help="write all measurements, to compare with later")
    result.add_argument("--chart", metavar="FILE", help="draw the speeds, as .png or .svg")
    result.add_argument("--compare", metavar="FILE", help="show the changes since an earlier --json")


def _add_choices(group: Any, option: str, dest: str, choices: Any, text: str, **more: Any) -> None:
    group.add_argument(option, dest=dest, nargs="+", choices=choices, help=text, **{"default": [], **more})


def _add_number(group: Any, option: str, text: str, dest: str | None = None) -> None:
    dest = dest or option[2:].replace("-", "_")
    default = getattr(_DEFAULTS, dest)
    group.add_argument(
        option, dest=dest, type=at_least(1), default=default, metavar="N", help=f"{text} (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print and write the results."""
    from marcorank.bench.running import run_bench

    if args.lengths[0] > args.lengths[1]:
        args.usage_error("--lengths expects the minimum first")
    if "none" in args.peers:
        if len(args.peers) > 1:
            args.usage_error("--peers none excludes other names")
        args.peers = []
    # Nobody should wait for minutes to learn that a file cannot be read or written.
    before = Results.read_json(args.compare) if args.compare else None
    if args.chart:
        check_chart_path(args.chart)
    for path in filter(None, (args.chart, args.json)):
        if not Path(path).absolute().parent.is_dir():
            raise InvalidInputError(f"{quoted_path(path)} cannot be written: its folder does not exist.")
    args.models = args.models or _default_models(args.cache_folder)
    with Progress("Making the passages") as progress:
        results = run_bench(Settings.of(vars(args)), lambda text: setattr(progress, "text", text))
    for line in report_lines(results):
        print(line)
    for line in change_lines(before, results) if before is not None else ():
        print(line)
    if args.json:
        results.write_json(args.json)
    if args.chart:
        results.write_chart(args.chart)
    return 0 if any(row.measured for row in results.rows) else 1


def _default_models(cache_folder: str | None) -> list[str]:
    if present_files(RerankerSettings(DEFAULT_MODEL, cache_folder=cache_folder, local_files_only=True)):
        return [BUNDLED, DEFAULT_MODEL]
    print(
        f"marcorank: note: to measure {DEFAULT_MODEL} too, run `marcorank models download {DEFAULT_MODEL}`",
        file=sys.stderr,
    )
    return [BUNDLED]
