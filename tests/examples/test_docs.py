"""The documentation is true: its code runs, its links lead somewhere, its reference names everything."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from enum import Enum
from importlib.metadata import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.retrievers import BaseRetriever
from llama_index.core.postprocessor.types import BaseNodePostprocessor

import marcorank
from marcorank import cli, errors, langchain, llama_index, otel, testing
from marcorank._models.catalogue import CATALOGUE, find
from marcorank.ray import rerank_dataset
from marcorank.remote import RemoteScorer
from patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])

_FENCE = re.compile(r"(?ms)^(?P<indent> *)```(?P<kind>\w*)(?P<mark>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$")
_REASON = re.compile(r"<!-- \S.* -->\n\s*\Z")
_LINK = re.compile(r"\[[^\]]+\]\((?!\w+:)(?P<file>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
_HEADING = re.compile(r"(?m)^#+ (?P<title>.+)$")
_ROW = re.compile(r"(?m)^\| `(?P<name>[^`]+)` \| (?P<second>[^|]+) \|")


class Block(NamedTuple):
    """One fenced block of a page."""

    kind: str
    mark: str
    code: str
    start: int
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found["kind"],
            found["mark"].strip(),
            inspect.cleandoc(found["code"]) if found["indent"] else found["code"],
            found.start(),
            text.count("\n", 0, found.start()) + 1,
        )
        for found in _FENCE.finditer(text)
    ]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    # The empty lines make a traceback show the lines of the page.
    code = compile("\n" * block.line + block.code, page_name(page), "exec", dont_inherit=True)
    exec(code, namespace)  # noqa: S102
    for name in re.findall(r"(?m)^def (test_\w+)", block.code):
        namespace[name]()


def run_commands(block: Block, page: Path) -> None:
    for line in block.code.splitlines():
        if line.startswith("$ marcorank"):
            try:
                status = cli.main(shlex.split(line)[2:])
            except SystemExit as error:
                status = error.code
            assert status == 0, f"{page_name(page)}:{block.line}: {line!r} ended with {status}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_blocks_of_a_page_run_from_top_to_bottom(page, tmp_path, monkeypatch, request):
    """Who copies the blocks of a page in their order sees them work; commands end with status 0."""
    monkeypatch.chdir(tmp_path)
    if "my-reranker" in page.read_text(encoding="utf-8"):
        shutil.copytree(request.getfixturevalue("small_bert"), "my-reranker")
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page):
        if block.mark == "no-run":
            continue
        if block.kind == "python":
            run_python(block, page, namespace)
        elif block.kind in {"console", "bash"}:
            run_commands(block, page)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_block_that_is_not_run_says_why(page):
    """Marks are known ones, and each `no-run` has an HTML comment with its reason above it."""
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):
        assert block.mark in {"", "no-run"}, f"{page_name(page)}:{block.line}: unknown mark {block.mark!r}"
        assert block.mark == "" or _REASON.search(text[: block.start]), f"{page_name(page)}:{block.line}: no reason"


# What brings a package that the blocks of a page import.
INSTALLED_BY = {
    "cohere": "cohere",
    "fastapi": "fastapi",
    "langchain.agents": "langchain",
    "langchain_classic": "langchain-classic",
    "langchain_core": "langchain",
    "llama_index.core": "llama-index",
    "llama_index.postprocessor.tei_rerank": "llama-index-postprocessor-tei-rerank",
    "marcorank.ray": "ray",
    "opentelemetry.sdk": "opentelemetry-sdk",
}


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_relative_to(DOCS / "how-to")], ids=page_name)
def test_a_page_names_what_its_blocks_need(page):
    """Who installs what a page says can run it; what a page migrates from is there already."""
    text = page.read_text(encoding="utf-8")
    after = text.partition("## After\n")[2] or text
    commands = re.findall(r"pip install ([^\n`]+)", text)
    installed = {name for command in commands for name in re.split(r"[\s\[\],\"]+", command)}
    needed = {name for module, name in INSTALLED_BY.items() if re.search(rf"(?m)^(?:from|import) {module}\b", after)}
    assert needed - installed == set()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_relative_links_resolve(page):
    """A link to a file of the repository finds it, and a link to a heading finds that."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in _LINK.finditer(text):
        target = (page.parent / link["file"]).resolve() if link["file"] else page
        assert target.exists(), f"{page_name(page)}: {link[0]}"
        assert link["anchor"] is None or link["anchor"] in anchors_of(target), f"{page_name(page)}: {link[0]}"


REPOSITORY = re.compile(
    r"https://(?:github\.com/marcorank/marcorank/blob|raw\.githubusercontent\.com/marcorank/marcorank)/main/"
)
SITE = "https://marcorank.github.io/marcorank/"


def own_files(text: str) -> dict[str, tuple[Path, str]]:
    """File and anchor behind each absolute link to the repository or to the site."""
    found = {}
    for link in re.findall(r"\((https://[^)\s]+)\)", text):
        address, _, anchor = link.partition("#")
        if REPOSITORY.match(address):
            found[link] = ROOT / REPOSITORY.sub("", address), anchor
        elif address.startswith(SITE) and not address.startswith(f"{SITE}api/"):  # its build checks these
            name = address.removeprefix(SITE).rstrip("/")
            suffix = ".ipynb" if name.startswith("notebooks/") else ".md"
            found[link] = DOCS / (f"{name}{suffix}" if name else "README.md"), anchor
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_absolute_links_to_the_project_resolve(page):
    """A link to a file of the repository or to a page of the site finds it in this tree."""
    for link, (file, anchor) in own_files(page.read_text(encoding="utf-8")).items():
        assert file.exists(), f"{page_name(page)}: {link}"
        assert not anchor or anchor in anchors_of(file), f"{page_name(page)}: {link}"


def test_the_readme_has_no_relative_links():
    """They would be broken on the package index, and so would links to headings."""
    text = _FENCE.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert [link[0] for link in _LINK.finditer(text)] == []


@pytest.mark.parametrize(
    ("page", "number"), [(ROOT / "README.md", 3), (DOCS / "README.md", 1)], ids=lambda value: str(value)[-14:]
)
def test_examples_print_the_output_below_them(page, number, capsys):
    """Each block of Python that output follows runs alone and prints it, numbers to a tenth."""
    blocks = blocks_of(page)
    examples = [(code, output) for code, output in pairwise(blocks) if (code.kind, output.kind) == ("python", "text")]
    assert len(examples) == number
    for code, output in examples:
        run_python(code, page, {"__name__": "page"})
        printed = capsys.readouterr().out.splitlines()
        assert [words_of(line) for line in printed] == [words_of(line) for line in output.code.splitlines()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="the line is for a POSIX shell")
def test_the_readme_shows_what_its_command_prints():
    """The pipe into `marcorank rerank` runs as it stands there."""
    (command, *shown_lines) = next(
        block.code.removeprefix("$ ").splitlines()
        for block in blocks_of(ROOT / "README.md")
        if block.kind == "console" and "marcorank rerank" in block.code
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    printed = subprocess.run(  # noqa: S603
        ["bash", "-c", command],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PATH": path},
        timeout=PATIENCE_S,
    )
    assert [words_of(line) for line in printed.stdout.splitlines()] == [words_of(line) for line in shown_lines]


def words_of(line: str) -> list[str]:
    """Words of a printed line, numbers to a tenth."""
    return [f"{float(word):.1f}" if re.fullmatch(r"-?\d+\.\d+", word) else word for word in line.split()]


def anchors_of(page: Path) -> set[str]:
    """Anchors as GitHub makes them of headings."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = (heading["title"].strip().lower() for heading in _HEADING.finditer(text))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def test_the_index_lists_every_page():
    """A page that the index does not name would not be found."""
    index = DOCS / "README.md"
    linked = {(DOCS / link["file"]).resolve() for link in _LINK.finditer(index.read_text(encoding="utf-8"))}
    assert set(DOCS.rglob("*.md")) - {index} <= linked


GUIDE = DOCS / "how-to" / "choose-a-model.md"


def test_the_guide_shows_the_list_of_models_as_it_is_printed(capsys, tmp_path):
    """On a machine that has none of them."""
    assert cli.main(["models", "--cache-folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out in [block.code for block in blocks_of(GUIDE) if block.kind == "text"]


def test_the_guide_has_the_published_figures_of_every_model():
    """Each model of the catalogue has a row with its size, length and figures; what is unknown is empty."""
    table = re.findall(
        r"(?m)^\| `(\S+/\S+)` \| ([\d.]+) M \| .*? \| ([\d,]+) \| (.*?) ?\|$", GUIDE.read_text(encoding="utf-8")
    )
    found = {name: (float(size), length, figures) for name, size, length, figures in table}
    # Two of MS MARCO have the figures of their model cards alone.
    assert found.keys() == {info.name for info in CATALOGUE if info.ndcg_mteb or info.ndcg_beir}
    for name, (size, length, figures) in found.items():
        info = find(name)
        assert info is not None
        assert size == pytest.approx(info.parameters / 1e6, abs=0.06), name
        assert length == f"{info.max_length:,}", name
        published = [info.ndcg_mteb, info.pairs_per_s_cpu, info.pairs_per_s_h100, info.ndcg_beir]
        assert [float(cell) if cell.strip() else None for cell in figures.split("|")] == published, name


REFERENCE = (DOCS / "reference.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Text below a heading, down to the next of any level."""
    _, found, rest = REFERENCE.partition(f"# {title}\n")
    assert found, f"docs/reference.md has no heading {title!r}"
    following = _HEADING.search(rest)
    return rest[: following.start()] if following else rest


def rows(title: str) -> dict[str, str]:
    """First and second column of the table in a section."""
    return {row["name"]: row["second"].strip().strip("`") for row in _ROW.finditer(section(title))}


def shown(default: object) -> str:
    if isinstance(default, Enum):
        return f"{type(default).__name__}.{default.name}"
    return "required" if default is inspect.Parameter.empty else repr(default)


def public_methods(kind: type) -> dict[str, str]:
    """Signatures of the methods that a class itself defines, without types."""
    found = {}
    for name, attribute in vars(kind).items():
        function = getattr(attribute, "__func__", attribute)
        if name.startswith(("_", "model_post_init")) or not inspect.isfunction(function):
            continue
        signature = inspect.signature(getattr(kind, name))
        plain = [
            parameter.replace(annotation=inspect.Parameter.empty)
            for parameter in signature.parameters.values()
            if parameter.name != "self"
        ]
        found[name] = f"{name}{inspect.Signature(plain)}"
    return found


def field_defaults(kind: Any, framework: Any) -> dict[str, str]:
    return {
        name: f"{field.default_factory.__name__}()"
        if field.default_factory
        else shown(inspect.Parameter.empty if field.is_required() else field.default)
        for name, field in kind.model_fields.items()
        if name not in getattr(framework, "model_fields", {})
    }


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        (marcorank.Reranker, "Arguments of `Reranker`"),
        (RemoteScorer, "`marcorank.remote.RemoteScorer`"),
        (rerank_dataset, "`marcorank.ray.rerank_dataset`"),
        (otel.instrument, "`marcorank.otel.instrument`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_reference_holds_every_argument(kind, title):
    """Every argument stands there with its default, and nothing else does."""
    parameters = inspect.signature(kind).parameters.values()
    assert rows(title) == {
        parameter.name: "{}" if parameter.kind is parameter.VAR_KEYWORD else shown(parameter.default)
        for parameter in parameters
    }


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        (marcorank.Reranker, "Methods of `Reranker`"),
        (marcorank.Ranking, "Methods of `Ranking`"),
        (marcorank.RankedPassage, "Methods of `RankedPassage`"),
        (marcorank.Scorer, "`Scorer`"),
        (langchain.MarcoRerank, "Methods of `MarcoRerank` for LangChain"),
        (langchain.MarcoCrossEncoder, "`MarcoCrossEncoder`"),
        (testing.WordOverlapScorer, "`marcorank.testing.WordOverlapScorer`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_reference_holds_every_method(kind, title):
    """Each public method stands there with the signature that it has."""
    missing = [signature for signature in public_methods(kind).values() if f"`{signature}`" not in section(title)]
    assert not missing


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        (marcorank.RankedPassage, "Fields of `RankedPassage`"),
        (marcorank.Ranking, "Fields of `Ranking`"),
        (marcorank.Logistic, "`Logistic`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_reference_holds_every_field_of_a_result(kind, title):
    """Every field stands there, and nothing else does."""
    assert list(rows(title)) == list(kind.__dataclass_fields__)


@pytest.mark.parametrize(
    ("kind", "framework", "title"),
    [
        (langchain.MarcoRerank, BaseDocumentCompressor, "Fields of `MarcoRerank` for LangChain"),
        (langchain.RerankRetriever, BaseRetriever, "`RerankRetriever`"),
        (llama_index.MarcoRerank, BaseNodePostprocessor, "Fields of `MarcoRerank` for LlamaIndex"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_reference_holds_every_field_of_an_adapter(kind, framework, title):
    """Every field stands there with its default, and nothing else does."""
    assert rows(title) == field_defaults(kind, framework)


def test_the_reference_says_which_fields_the_cross_encoder_has():
    """`MarcoCrossEncoder` has the fields of `MarcoRerank` but those that the reference names."""
    without = set(re.findall(r"`(\w+)`", section("`MarcoCrossEncoder`").partition("without")[2].partition(".")[0]))
    assert set(field_defaults(langchain.MarcoRerank, BaseDocumentCompressor)) - without == set(
        field_defaults(langchain.MarcoCrossEncoder, BaseCrossEncoder)
    )


def test_the_reference_holds_every_error():
    """The tree of errors stands there as it is, with the built-in beside each."""
    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    expected = {
        # Of several the one of its own: a RemoteTimeoutError is a ConnectionError too.
        kind.__name__: next(
            base.__name__ for base in (*kind.__bases__[1:], *kind.__mro__) if base.__module__ == "builtins"
        )
        for kind in kinds
    }
    assert rows("Errors") == expected


def test_the_reference_holds_every_public_name():
    """Everything that `marcorank` and the adapters export stands there."""
    names = [*marcorank.__all__, *langchain.__all__, *llama_index.__all__, "WordOverlapScorer"]
    assert [name for name in names if name not in REFERENCE] == []


def test_the_reference_holds_every_extra():
    """Every extra of the package stands there, and nothing else does but none at all."""
    assert set(rows("Extras")) == set(metadata("marcorank").get_all("Provides-Extra"))


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every command that can be run, with its parser."""
    found = {parser.prog: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= commands(child)
    return found


@pytest.mark.parametrize("command", commands(cli._parser()))
def test_the_reference_holds_every_option_of_a_command(command):
    """Every argument and option of a command stands there, and nothing else does."""
    actions = commands(cli._parser())[command]._actions
    expected = {
        action.option_strings[-1] if action.option_strings else str(action.metavar)
        for action in actions
        if not isinstance(action, argparse._SubParsersAction) and action.help != argparse.SUPPRESS
    }
    # argparse's own prog of a command holds the positional arguments of those above it.
    assert set(rows(f"`{command}`")) | {"--help"} == expected
