"""Options that several commands share, and what they become."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from marcorank._arguments import whole_number
from marcorank._models.selection import BACKENDS, PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable


def new_parser(
    commands: Any, name: str, *, summary: str, run: Callable[[argparse.Namespace], int], **texts: Any
) -> Any:
    """Add a command that `run` carries out."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=texts.pop("description", f"{summary[0].upper()}{summary[1:]}."),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # A shortened option would change its meaning when another one is added.
        allow_abbrev=False,
        **texts,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def add_engine_options(group: Any) -> None:
    """Add what decides which engine computes."""
    group.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="engine (default: auto, which `marcorank doctor` explains)"
    )
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if torch sees one)")
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="auto is the fastest that ranks as fp32 does; the bundled model is int8",
    )
    group.add_argument(
        "--threads", type=int, metavar="N", help="threads that compute on a CPU (default: the cores that may be used)"
    )


def add_file_options(group: Any) -> None:
    """Add what decides which files of a hub model are taken."""
    add_revision_option(group)
    add_cache_option(group)
    group.add_argument("--offline", action="store_true", help="never use the network")


def add_revision_option(group: Any) -> None:
    """Add which version of a hub model is taken."""
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub (default: the pinned one)")


def add_cache_option(group: Any) -> None:
    """Add where hub models are kept."""
    group.add_argument("--cache-folder", metavar="DIR", help="where hub models are kept (default: HF's cache)")


def file_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what revision, cache folder and `offline` mean to a `Reranker`."""
    return {
        "revision": args.revision,
        "cache_folder": args.cache_folder,
        # Without the option HF_HUB_OFFLINE decides.
        "local_files_only": True if args.offline else None,
    }


def engine_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the options of `add_engine_options` mean to a `Reranker`."""
    return {
        "backend": args.backend,
        "device": args.device,
        "precision": args.precision,
        "threads": args.threads,
    }


def at_least(least: int) -> Callable[[str], int]:
    """Return what makes a whole number of an option's text, and complains of one below `least`."""

    def parse(text: str) -> int:
        try:
            return whole_number("option", int(text), least)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number of at least {least}") from error

    return parse
