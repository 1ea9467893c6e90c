"""Writes the tables of settings into the documentation, from `marcorank.settings` and the command line.

python scripts/write_reference.py [docs]
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from marcorank import cli
from marcorank.cli.options import help_text
from marcorank.serving.settings import ProcessSettings, ServeSettings
from marcorank.settings import RerankerSettings, SharedSettings, descriptions

if TYPE_CHECKING:
    from collections.abc import Iterator

_TABLE = r"(?<=<!-- written by scripts/write_reference.py -->\n)(?:\|.*\n)*"


def reference(page: str) -> str:
    """Return docs/reference.md with the settings as they are now."""
    page = re.sub(_TABLE, lambda _: "".join(_rows_of_reranker()), page, count=1)
    for name, parser in _commands(cli._parser()):  # noqa: SLF001
        rows = "".join(_rows_of_command(parser))
        if rows:
            head, heading, rest = page.partition(f"\n### `{name}`\n")
            section, debug, tail = rest.partition("| `--debug` |")
            names = "|".join(re.findall(r"^\| `(--[\w-]+)`", rows, re.MULTILINE))
            section = re.sub(rf"^\| `(?:{names})` \|.*\n", "", section, flags=re.MULTILINE)
            page = f"{head}{heading}{section}{rows}{debug}{tail}"
    return page


def serving(page: str) -> str:
    """Return docs/how-to/serve-with-ray.md with the settings as they are now."""
    return re.sub(_TABLE, lambda _: "".join(_rows_of_server()), page, count=1)


def _rows_of_reranker() -> Iterator[str]:
    yield "| argument | default | meaning |\n|---|---|---|\n"
    for one in sorted(fields(RerankerSettings), key=lambda one: one.name != "model"):
        yield f"| `{one.name}` | `{one.default!r}` | {one.metadata['description'].help} |\n"


def _rows_of_server() -> Iterator[str]:
    yield "| argument | variable | default | meaning |\n|---|---|---|---|\n"
    for one in sorted(fields(ServeSettings), key=lambda one: one.name != "model"):
        default = "`num_cpus`" if one.name == "threads" else f"`{one.default}`"
        meaning = "As for `Reranker`." if one.name in descriptions(SharedSettings) else one.metadata["description"].help
        yield f"| `{one.name}` | `MARCORANK_{one.name.upper()}` | {default} | {meaning} |\n"


def _rows_of_command(parser: argparse.ArgumentParser) -> Iterator[str]:
    described, of_server = descriptions(SharedSettings), descriptions(ProcessSettings)
    for action in parser._actions:  # noqa: SLF001
        name = action.dest
        as_in_reranker = name in described and action.help == help_text(name)
        if not as_in_reranker and name in of_server and action.help == help_text(name, ProcessSettings):
            setting = of_server[name]
            shown = "" if setting.default is None or setting.is_flag else f" Default: `{setting.default}`."
            yield f"| `{action.option_strings[-1]}` | {setting.help}{shown} |\n"
        elif as_in_reranker:
            choices = ", ".join(f"`{choice}`" for choice in described[action.dest].choices)
            values = f": {'one or several of ' if action.nargs == '+' else ''}{choices}" if choices else ""
            option = action.option_strings[-1]
            yield f"| `{option}` | [`{action.dest}`](#arguments-of-reranker) of `Reranker`{values}. |\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield parser.prog, parser
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for child in action.choices.values():
                yield from _commands(child)


if __name__ == "__main__":
    docs = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs")
    for path, written in ((docs / "reference.md", reference), (docs / "how-to/serve-with-ray.md", serving)):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
