"""Builds the site of the documentation from docs/ and the docstrings, into build/site/html.

python scripts/build_site.py [--root FOLDER] [--output FOLDER]

The navigation is that of docs/README.md, which is the home page. A link, an anchor or a reference in a docstring that
leads nowhere fails the build. Nothing is fetched, neither here nor by the browser of a reader.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import griffe  # the parser of mkdocstrings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REPOSITORY = "https://github.com/marcorank/marcorank"
SITE = "https://marcorank.github.io/marcorank/"
ROOT = Path(__file__).parents[1]

# Public modules, in the order of the navigation. Their public names are those of `__all__`.
MODULES = (
    "marcorank",
    "marcorank.langchain",
    "marcorank.llama_index",
    "marcorank.evaluation",
    "marcorank.plots",
    "marcorank.remote",
    "marcorank.ray",
    "marcorank.bench",
    "marcorank.otel",
    "marcorank.testing",
    "marcorank.interaction",
)

_HOME_TITLE = "Cross-encoder reranking for RAG"
_COLAB = "https://colab.research.google.com/github/marcorank/marcorank/blob/main"

# Files outside docs/ that are pages too.
_OTHER_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "src/marcorank/bundled/README.md": "model-card.md",
    "src/marcorank/bundled_tiny/README.md": "model-card-tiny.md",
}
_HOME = "docs/README.md"
_API = f"{SITE}api/"

_FENCE = re.compile(r"(?ms)^(?P<indent> *)```.*?^(?P=indent)```$")
_COMMENT = re.compile(r"(?ms)^<!-- .*? -->\n")
_LINK = re.compile(r"(?P<text>\]\()(?P<file>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")
_HEADING = re.compile(r"^#{2,} (?P<title>.+)$")
_ITEM = re.compile(r"^[*-] .*?\]\((?P<file>[^)#\s]+)\)")

# An indented block that begins with an import.
_EXAMPLE = re.compile(r"(?m)^    from marcorank.*\n(?:(?:    .*)?\n)*")

# Of words in the search index; `timeout_s` is one word.
_SEPARATOR = r"""[\s\-,:!=\[\]()"'`/{}|]+|\.(?!\d)"""

_MARKDOWN = [
    "tables",
    "attr_list",
    "md_in_html",
    "pymdownx.superfences",
    {"pymdownx.highlight": {"pygments_lang_class": True}},
    # Anchors as GitHub makes them.
    {"toc": {"permalink": True, "slugify": {"object": "pymdownx.slugs.slugify", "kwds": {"case": "lower"}}}},
]

_DOCSTRINGS = {
    "docstring_section_style": "list",
    "docstring_style": "google",
    "filters": "public",
    "heading_level": 1,
    "members_order": "__all__",
    "merge_init_into_class": True,
    "separate_signature": True,
    "show_attribute_values": False,
    "show_if_no_docstring": False,
    "show_root_full_path": True,
    "show_root_heading": True,
    "show_root_members_full_path": False,
    "show_signature_annotations": True,
    "show_source": False,
    "show_symbol_type_heading": True,
    "show_symbol_type_toc": True,
    "signature_crossrefs": True,
}

# The theme's own asks GitHub for its stars and releases.
_SOURCE_LINK = """<a href="{{ config.repo_url }}" class="md-source">
  <div class="md-source__icon md-icon">{% include ".icons/fontawesome/brands/github.svg" %}</div>
  <div class="md-source__repository">GitHub</div>
</a>
"""

_THEME = {
    "custom_dir": "theme",
    "font": False,  # no fonts of other hosts
    "features": [
        "content.code.copy",
        "navigation.footer",
        "navigation.indexes",
        "navigation.path",
        "navigation.sections",
        "navigation.top",
        "search.highlight",
        "toc.follow",
    ],
    "palette": [
        {"media": "(prefers-color-scheme)", "toggle": {"icon": "lucide/sun-moon", "name": "Switch to light"}},
        {
            "media": "(prefers-color-scheme: light)",
            "scheme": "default",
            "toggle": {"icon": "lucide/sun", "name": "Switch to dark"},
        },
        {
            "media": "(prefers-color-scheme: dark)",
            "scheme": "slate",
            "toggle": {"icon": "lucide/moon", "name": "Switch to the setting of the system"},
        },
    ],
}


class Docstrings(griffe.Extension):
    """Shows settings as a reader of the source, who follows its records, would see them, and links public names."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Leave the default of a field, which is the first argument of what makes it."""
        if isinstance(attr.value, griffe.ExprCall) and str(attr.value.function) in {"setting", "Field"}:
            first = attr.value.arguments[0]
            attr.value = first.value if isinstance(first, griffe.ExprKeyword) else first

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Give constructors the arguments that they have at run time, and link names that docstrings spell in full."""
        from marcorank.reranker import Reranker

        init = pkg["reranker.Reranker.__init__"]
        _, blank, arguments = (Reranker.__init__.__doc__ or "").partition("\n\n")
        init.docstring = griffe.Docstring(blank + arguments, parent=init, parser="google")
        init.parameters = _parameters(pkg["settings.RerankerSettings"], positional="model")
        for name in (
            "langchain._rerank.MarcoRerank",
            "langchain._cross_encoder.MarcoCrossEncoder",
            "llama_index.MarcoRerank",
        ):
            adapter = pkg[name]
            adapter.labels.discard("dataclass")
            adapter.set_member("__init__", griffe.Function("__init__", parameters=_parameters(adapter)))
        public = {f"{name}.{export}" for name in MODULES for export in pkg.modules_collection[name].exports or ()}
        for one in (pkg, *_objects(pkg)):
            if one.name == "model_post_init":
                one.docstring = None  # so that it is not shown
            elif one.docstring:
                one.docstring.value = _shown(one.docstring.value, public)


def _shown(docstring: str, public: set[str]) -> str:
    """Return a docstring with links on full names, examples as Python, and shapes as text."""
    text = re.sub(r"`([\w.]+)`", lambda name: f"[{name[0]}][{name[1]}]" if name[1] in public else name[0], docstring)
    text = re.sub(_EXAMPLE, lambda example: f"```python\n{dedent(example[0]).rstrip()}\n```\n\n", text)
    return re.sub(r"(Returns:\n +Shape): ", r"\1 ", text)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            yield member
            yield from _objects(member)


def _parameters(record: griffe.Class, positional: str = "") -> griffe.Parameters:
    """Return a keyword-only argument for each field of a class and its bases, the model first."""
    fields = {
        name: field
        for one in reversed([record, *record.mro()])
        for name, field in one.attributes.items()
        if field.annotation
        and not name.startswith("_")
        and "property" not in field.labels
        and "ClassVar" not in str(field.annotation)
    }
    constants = {"DEFAULT_MODEL": record.package["settings.DEFAULT_MODEL"].value}
    return griffe.Parameters(
        *(
            griffe.Parameter(
                name,
                annotation=field.annotation,
                default=constants.get(str(field.value), field.value),
                kind=griffe.ParameterKind.positional_or_keyword
                if name == positional
                else griffe.ParameterKind.keyword_only,
            )
            for name, field in sorted(fields.items(), key=lambda item: item[0] not in {"model", "model_name"})
        )
    )


class Sources:
    """The pages of the site, copied from a checkout, with links that lead to pages or to the repository."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        self.targets = {
            page.relative_to(root).as_posix(): page.relative_to(root / "docs").with_suffix(".md").as_posix()
            for page in sorted((root / "docs").rglob("*"))
            if page.suffix in {".md", ".ipynb"}
        }
        self.targets |= {source: target for source, target in _OTHER_PAGES.items() if (root / source).exists()}
        self.targets[_HOME] = "index.md"

    def write(self) -> None:
        """Write all pages and what they show."""
        shutil.copytree(self.root / "docs", self.folder, ignore=shutil.ignore_patterns("*.md", "*.ipynb"))
        for source, target in self.targets.items():
            text = self.page(source)
            self.write_page(target, f"---\ntitle: {_HOME_TITLE}\n---\n\n{text}" if source == _HOME else text)

    def write_page(self, target: str, text: str) -> None:
        """Write one page."""
        path = self.folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def page(self, source: str) -> str:
        """Return the text of a page, with links from where it will be."""
        text = self._notebook(source) if source.endswith(".ipynb") else (self.root / source).read_text(encoding="utf-8")
        parts, end = [], 0
        for fence in _FENCE.finditer(text):
            first, _, rest = fence[0].partition("\n")
            parts += [self._prose(text[end : fence.start()], source), first.removesuffix(" no-run"), "\n", rest]
            end = fence.end()
        return "".join([*parts, self._prose(text[end:], source)])

    def _notebook(self, source: str) -> str:
        """Return a notebook as Markdown, and write its pictures."""
        from nbconvert import MarkdownExporter

        folder = Path(self.targets[source]).with_suffix("")
        names = {"unique_key": folder.name, "output_files_dir": folder.name}
        text, resources = MarkdownExporter().from_filename(str(self.root / source), resources=names)
        for name, content in resources["outputs"].items():
            path = self.folder / folder.parent / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        # Buttons instead of Colab's own picture, which would come from another host.
        buttons = (
            f"[Open in Colab]({_COLAB}/{source}){{ .md-button .md-button--primary }}\n"
            f"[The notebook on GitHub]({REPOSITORY}/blob/main/{source}){{ .md-button }}"
        )
        title, _, rest = str(text).strip().partition("\n")
        return f"{title}\n\n{buttons}\n{rest}"

    def _prose(self, text: str, source: str) -> str:
        def moved(link: re.Match[str]) -> str:
            return f"{link['text']}{self._moved(link['file'], source)}{link['anchor'] or ''}"

        return _LINK.sub(moved, _COMMENT.sub("", text))

    def _moved(self, link: str, source: str) -> str:
        """Return where a link leads from the page that is made of `source`."""
        folder = os.path.dirname(self.targets[source])  # noqa: PTH120
        if link.startswith(_API):
            return os.path.relpath(f"api/{link.removeprefix(_API).rstrip('/') or 'index'}.md", folder)
        if re.match(r"\w+:", link):
            return link
        file = os.path.normpath(os.path.join(os.path.dirname(source), link))  # noqa: PTH118, PTH120
        if file in self.targets:
            return os.path.relpath(self.targets[file], folder)
        if file.startswith("docs/") or not (self.root / file).exists():
            return link  # a picture, or a mistake that the generator reports
        kind = "tree" if (self.root / file).is_dir() else "blob"
        return f"{REPOSITORY}/{kind}/main/{file}"

    def write_api(self, modules: Sequence[str]) -> None:
        """Write a page for each module, and one that lists them."""
        rows = []
        for module in modules:
            self.write_page(f"api/{module}.md", f"---\ntitle: {module}\n---\n\n::: {module}\n")
            rows.append(f"* [`{module}`]({module}.md): {self._summary(module)}\n")
        self.write_page("api/index.md", f"# API\n\nEverything public, from the docstrings.\n\n{''.join(rows)}")

    def _summary(self, module: str) -> str:
        path = self.root / "src" / module.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]

    def navigation(self, modules: Sequence[str]) -> list[Any]:
        """Return the pages in the order of the home page's lists, one section for each of its headings."""
        sections: dict[str, list[Any]] = {"": []}
        for line in (self.root / _HOME).read_text(encoding="utf-8").splitlines():
            if heading := _HEADING.match(line):
                sections[heading["title"]] = []
            elif item := _ITEM.match(line):
                page = self._moved(item["file"], _HOME)
                api = {"API": [page, *(f"api/{module}.md" for module in modules)]}
                sections[[*sections][-1]].append(api if item["file"] == _API else page)
        return [{"Home": "index.md"}, *({title: pages} for title, pages in sections.items() if pages)]


def build(root: Path, output: Path, modules: Sequence[str] = MODULES) -> str:
    """Build the site of a checkout into `output`/html, and return the warnings; empty if the build succeeded."""
    shutil.rmtree(output, ignore_errors=True)
    sources = Sources(root, output / "pages")
    sources.write()
    sources.write_api(modules)
    (output / "theme" / "partials").mkdir(parents=True)
    (output / "theme" / "partials" / "source.html").write_text(_SOURCE_LINK, encoding="utf-8")
    config = {
        "site_name": "marcorank",
        "site_url": SITE,
        "site_description": "Cross-encoder reranking as the second stage of RAG, for LangChain and LlamaIndex.",
        "repo_url": REPOSITORY,
        "docs_dir": "pages",
        "site_dir": "html",
        "nav": sources.navigation(modules),
        "theme": _THEME,
        "extra_css": ["site.css"],
        "markdown_extensions": _MARKDOWN,
        "plugins": [{"search": {"separator": _SEPARATOR}}, {"mkdocstrings": {"handlers": {"python": _python(root)}}}],
    }
    # JSON is YAML too.
    (output / "mkdocs.yml").write_text(json.dumps(config, indent=2), encoding="utf-8")
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", output / "mkdocs.yml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else "\n".join(_plain(done.stdout))


def _python(root: Path) -> dict[str, Any]:
    extension = f"{Path(__file__).resolve()}:Docstrings"
    return {"paths": [str(root / "src")], "options": {**_DOCSTRINGS, "extensions": [extension]}}


def _plain(log: str) -> Iterator[str]:
    """Yield the lines without colours and without the traceback of the generator itself."""
    for line in re.sub(r"\x1b\[[\d;]*m", "", log).splitlines():
        if line.startswith("Traceback"):
            return
        yield line


def main() -> int:
    """Build the site, and print where it is or what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to build from")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site", help="folder, which is replaced")
    arguments = parser.parse_args()
    warnings = build(arguments.root.resolve(), arguments.output.resolve())
    if warnings:
        print(warnings, file=sys.stderr)
        return 1
    print(arguments.output / "html" / "index.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
