"""Options that several commands share, most of them made from the settings of a reranker."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any, NoReturn

from marcorank._arguments import did_you_mean, whole_number
from marcorank._text import quoted, shorten
from marcorank.settings import ModelSettings, SharedSettings, defaults, descriptions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from marcorank.settings import Description

# The scores of a command are not cached: it reads each passage once.
MODEL_OPTIONS = tuple(name for name in defaults(ModelSettings) if name != "cache_size")
_MAX_ERROR_CHARS = 320
_MAX_SURPLUS_CHARS = 160
FILE_OPTIONS = ("revision", "cache_folder", "local_files_only")


class Parser(argparse.ArgumentParser):
    """A parser whose errors do not repeat a long argument."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        super().error(shorten(message, _MAX_ERROR_CHARS))


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
    parser.set_defaults(run=run, parser=parser)
    return parser


def refuse_surplus(parser: argparse.ArgumentParser, surplus: Sequence[str]) -> NoReturn:
    """Report arguments that a command does not have, with the option that each misspelt one resembles, and exit.

    A command may have the default `surplus_hint`, a sentence for surplus arguments that are not options.
    """
    known = sorted(_options(parser))
    misspelt = [argument.partition("=")[0] for argument in surplus if argument.startswith("--")]
    hint = "".join(did_you_mean(name, known) for name in misspelt)
    if not any(argument.startswith("-") for argument in surplus):
        hint = parser.get_default("surplus_hint") or ""
    parser.error(f"unrecognized arguments: {shorten(' '.join(surplus), _MAX_SURPLUS_CHARS)}{hint and '.'}{hint}")


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return set(re.findall(r"--[a-z]+(?:-[a-z]+)*", parser.format_help()))


def with_options(message: str, parser: argparse.ArgumentParser) -> str:
    """Return a message of the library that calls settings by their options, where this command has them.

    So `top_k` becomes `--top-k`, and `precision='fp32'` becomes `--precision fp32`.
    """
    options = _options(parser)
    described = descriptions(SharedSettings)

    def named(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        option = (name in described and described[name].option) or f"--{name.replace('_', '-')}"
        if option not in options or value in {"False", "None"}:
            return found[0]
        return f"`{option}`" if value in {None, "True"} else f"`{option} {value}`"

    return re.sub(r"`(?P<name>[a-z_]+)(='?(?P<value>[^`']*)'?)?`", named, message)


def add_settings(
    group: Any,
    names: Iterable[str] = MODEL_OPTIONS,
    *,
    several: Collection[str] = (),
    record: type[ModelSettings] = SharedSettings,
    keep_defaults: bool = True,
) -> None:
    """Add an option for each of these settings; `settings_of` reads them back.

    Args:
        group: A parser or a group of arguments.
        names: Names of settings.
        several: Those that take one or several values.
        record: What has the settings.
        keep_defaults: Whether an option that is not given has its default; else it is left out.
    """
    described = descriptions(record)
    for name in names:
        setting = described[name]
        default = setting.default if keep_defaults else argparse.SUPPRESS
        option = setting.option or f"--{name.replace('_', '-')}"
        if setting.is_flag:
            more: dict[str, Any] = {"action": "store_true", "default": default}
        else:
            more = {
                "type": _reader(setting, option),
                "choices": setting.choices or None,
                "metavar": None if setting.choices else setting.metavar or "NAME",
                "default": [default] if name in several else default,
                "nargs": "+" if name in several else None,
            }
        group.add_argument(option, dest=name, help=help_text(name, record), **more)


def settings_of(args: argparse.Namespace, record: type[ModelSettings] = SharedSettings) -> dict[str, Any]:
    """Return the settings of a record among the options; by default those of a reranker."""
    known = descriptions(record)
    return {name: value for name, value in vars(args).items() if name in known}


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers of at least `minimum`."""

    def parse(text: str) -> int:
        try:
            return whole_number("option", int(text), minimum)
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"found {quoted(text)}; expected a whole number of at least {minimum}"
            ) from error

    return parse


def _reader(setting: Description, option: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return setting.read(option, text)
        except ValueError as error:
            # argparse puts the name of the option in front.
            message = re.sub(f"^`{option}` (is (?!not ))?", lambda found: "found " if found[1] else "", str(error))
            message = message.removesuffix(".")
            raise argparse.ArgumentTypeError(message) from error

    # argparse itself complains about a value that is not among the choices.
    return str if setting.choices else read


def help_text(name: str, record: type[ModelSettings] = SharedSettings) -> str:
    """Return the help of the option of a setting."""
    setting = descriptions(record)[name]
    # Like the help of the other options: no Markdown, no capital, no full stop, and options instead of settings.
    text = re.sub(r"`([a-z]+_[a-z]+)`", lambda found: f"--{found[1].replace('_', '-')}", setting.help)
    text = text.replace("`", "").removesuffix(".")
    shown = "" if setting.default is None or setting.is_flag else f" (default: {setting.default})"
    return f"{text[0].lower()}{text[1:]}{shown}".replace("%", "%%")
