"""The command line: `marcorank rerank | eval | serve | bench | models | doctor`."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from marcorank import __version__
from marcorank._text import message_of
from marcorank.cli import bench, doctor, eval, models, rerank, serve  # noqa: A004 -- the command is named so
from marcorank.cli.options import Parser, refuse_surplus, with_options
from marcorank.errors import MarcoRankError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

_FAILED, _USAGE = 1, 2
# What a shell reports for a program that SIGINT or SIGPIPE ended.
_INTERRUPTED, _BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None for those of this process.

    Returns:
        Exit status: 0 for success, 1 after an error, 130 after Ctrl-C, 141 if the reader of the output is gone.

    Raises:
        SystemExit: 2 for wrong usage; 0 after `--help` and `--version`.
    """
    parser = _parser()
    args, surplus = parser.parse_known_args(argv)
    if surplus:
        refuse_surplus(getattr(args, "parser", parser), surplus)
    if args.command is None:
        parser.print_help(sys.stderr)
        return _USAGE
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A console with another encoding shows `?` for characters that it lacks; the output goes on.
            stream.reconfigure(errors="replace")
    with _notes_on_stderr(args.parser) if getattr(args, "notes", True) else nullcontext():
        try:
            status: int = args.run(args)
            sys.stdout.flush()
        except KeyboardInterrupt:
            print("marcorank: interrupted", file=sys.stderr)
            return _INTERRUPTED
        except BrokenPipeError:
            # Python flushes stdout once more at exit, and would complain there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _BROKEN_PIPE
        except (MarcoRankError, OSError) as error:
            if args.debug:
                traceback.print_exc()
            # The message of an OSError repeats the path, however long.
            shown = error if isinstance(error, MarcoRankError) else message_of(error)
            print(f"marcorank: error: {with_options(str(shown), args.parser)}", file=sys.stderr)
            return _FAILED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="marcorank",
        description="Rerank passages with cross-encoders.",
        epilog="`marcorank COMMAND --help` describes a command. Exit status: 0 success, 1 error, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"marcorank {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    for command in (rerank, eval, serve, bench, models, doctor):
        command.add_command(commands)
    return parser


class _NoteFormatter(logging.Formatter):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__("marcorank: note: %(message)s")
        self._parser = parser

    def format(self, record: logging.LogRecord) -> str:
        return with_options(super().format(record), self._parser)


@contextmanager
def _notes_on_stderr(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Show the library's warnings, such as of truncated passages, as notes."""
    log = logging.getLogger("marcorank")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_NoteFormatter(parser))
    handler.setLevel(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
