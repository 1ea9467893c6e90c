"""The site of the documentation: what it holds, and what fails its build."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from markdown_it import MarkdownIt
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from marcorank.settings import RerankerSettings, descriptions

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "marcorank"


pytest.importorskip("zensical", reason="it needs Python 3.11")
SPEC = importlib.util.spec_from_file_location("build_site", ROOT / "scripts" / "build_site.py")
build_site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build_site)


def public_names(file: Path) -> list[str]:
    """`__all__` of a module; importing all of them would take ten seconds."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


PUBLIC = {
    ".".join(["marcorank", *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): names
    for file in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__init__.py")]
    if (names := public_names(file))
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built once."""
    output = tmp_path_factory.mktemp("site")
    warnings = build_site.build(ROOT, output)
    assert not warnings, warnings
    return output / "html"


def page(site: Path, name: str) -> str:
    return (site / name / "index.html").read_text(encoding="utf-8")


def test_the_site_holds_every_page_once(site):
    """Every page of docs/, the changelog, the model cards and CONTRIBUTING are built and stand in the navigation."""
    docs = ROOT / "docs"
    files = [path for path in docs.rglob("*") if path.suffix in {".md", ".ipynb"}]
    pages = {path.relative_to(docs).with_suffix("").as_posix() for path in files} - {"README"}
    pages |= {
        "changelog",
        "model-card",
        "model-card-tiny",
        "contributing",
        "api",
        *(f"api/{module}" for module in PUBLIC),
    }
    linked = re.findall(r'<a href="(?:\./)?([^"]+)/" class="md-nav__link', page(site, "."))
    assert sorted(linked) == sorted(pages)
    assert [name for name in pages if not (site / name / "index.html").exists()] == []


def test_every_page_opens_with_a_sentence():
    """It says what a reader can do with the page, before any table, list or code."""
    pages = (ROOT / "docs").rglob("*.md")
    assert [path.name for path in pages if not re.match(r"# .+\n\n[A-Z`].+", path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "source",
    [*(ROOT / "docs").rglob("*.md"), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"],
    ids=lambda source: source.name,
)
def test_a_page_is_read_as_on_github(site, source):
    """Lists, tables, blocks and headings are the same, although Python-Markdown wants other indents than GitHub."""
    name = (
        source.relative_to(ROOT / "docs").with_suffix("").as_posix() if "docs" in source.parts else source.stem.lower()
    )
    text = page(site, "." if name == "README" else name)
    shown = text[text.index("<article") : text.index("</article>")]
    expected = MarkdownIt("commonmark").enable("table").render(source.read_text(encoding="utf-8"))
    for tag in ("h2", "h3", "ul", "ol", "li", "pre", "table", "td", "img", "blockquote"):
        assert len(re.findall(rf"<{tag}[ >]", shown)) == len(re.findall(rf"<{tag}[ >]", expected)), tag


def test_links_to_files_of_the_repository_lead_to_github(site):
    """A program or a module that a page names is one click away; another page is on the site."""
    tutorial = page(site, "tutorial")
    assert 'href="https://github.com/marcorank/marcorank/blob/main/examples/rag_langchain.py"' in tutorial
    assert 'href="../../model-card/"' in page(site, "how-to/choose-a-model")


def test_a_reader_needs_no_other_host(site):
    """No page loads a script, a style, a font or a picture from elsewhere, or asks GitHub for numbers."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link rel="(?:stylesheet|preconnect)")[^>]* (?:src|href)="([^"]+)"', text)
        assert [url for url in loaded if url.startswith(("http", "//"))] == [], path
        assert 'data-md-component="source"' not in text


def test_the_search_finds_guides_and_classes(site):
    """The index has sections of pages, and every public class and function."""
    index = json.loads((site / "search.json").read_text(encoding="utf-8"))
    locations = {item["location"] for item in index["items"]}
    assert "tutorial/" in locations
    assert "api/marcorank/#marcorank.Reranker.rank" in locations


def test_the_reference_documents_every_public_module():
    """A module at the top of the package that has `__all__` is public, and MODULES lists those."""
    assert sorted(build_site.MODULES) == sorted(PUBLIC)


@pytest.mark.parametrize("module", PUBLIC)
def test_the_reference_documents_every_public_name(site, module):
    """Each name of `__all__` has its entry on the page of its module, which it gets by a docstring."""
    text = page(site, f"api/{module}")
    assert [name for name in PUBLIC[module] if f'id="{module}.{name}"' not in text] == []


def test_the_reference_documents_every_setting(site):
    """The constructor of Reranker is shown with each of its settings, which the source has in a record."""
    text = page(site, "api/marcorank")
    assert [name for name in descriptions(RerankerSettings) if f"<b><code>{name}</code></b>" not in text] == []


def test_the_title_of_the_home_page_says_what_this_is(site):
    """It stands in the tab and in the results of a search engine."""
    assert "<title>Cross-encoder reranking for RAG - marcorank</title>" in page(site, ".")


def test_the_copy_button_leaves_out_prompts(site):
    """What it copies runs: all prompts are in an element that the style hides while the script copies."""
    (script,) = (site / "assets" / "javascripts").glob("bundle.*.min.js")
    assert "data-md-copying" in script.read_text(encoding="utf-8")
    style = (site / "site.css").read_text(encoding="utf-8")
    assert re.search(r"\[data-md-copying\] :is\(\.gp, \.go\) \{\s+display: none;", style)
    for path in site.rglob("*.html"):
        blocks = re.findall(r'(?s)<div class="language-console .*?</div>', path.read_text(encoding="utf-8"))
        assert [
            block for block in blocks if re.search(r"(?m)^(?:<[^>]+>)*\$ ", block.replace('<span class="gp">$ ', ""))
        ] == []
        assert [block for block in blocks if '<span class="gp">$ ' not in block] == [], path


def test_a_notebook_is_a_page(tmp_path):
    """Its text, code, pictures and links are on the site, with buttons to run it, and it stands in the navigation."""
    write(tmp_path, "docs/README.md", "# Home\n\n## Start\n\n* [A notebook](notebooks/first.ipynb)\n")
    drawn = new_output("display_data", data={"image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg'/>"})
    cells = [new_markdown_cell("# First\n\nBack [home](../README.md)."), new_code_cell("print(1)", outputs=[drawn])]
    notebook = new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    write(tmp_path, "docs/notebooks/first.ipynb", nbformat.writes(notebook))
    assert build_site.build(tmp_path, tmp_path / "site", []) == ""
    text = page(tmp_path / "site" / "html", "notebooks/first")
    assert 'href="../../"' in text
    file = "github{}/marcorank/marcorank/blob/main/docs/notebooks/first.ipynb"
    assert f'href="https://{file.format(".com")}"' in text
    assert f'href="https://colab.research.google.com/{file.format("")}"' in text
    assert '<span class="nb">print</span>' in text
    (picture,) = re.findall(r'<img alt="svg" src="([^"]+)"', text)
    assert (tmp_path / "site" / "html" / "notebooks" / "first" / picture).exists()
    assert 'href="./notebooks/first/" class="md-nav__link"' in page(tmp_path / "site" / "html", ".")


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_mistake_fails_the_build(tmp_path):
    """A broken link, a broken anchor and a broken reference in a docstring are each reported with file and line."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text(
        "# Home\n\n[one](no-page.md) and [two](README.md#no-heading)\n", "utf-8"
    )
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.onnx", "__pycache__"))
    source = tmp_path / "src" / "marcorank" / "testing.py"
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("Use it in place", "[See][marcorank.Nothing]. Use it in place"), encoding="utf-8")
    warnings = build_site.build(tmp_path, tmp_path / "site", ["marcorank.testing"])
    assert "page does not exist" in warnings
    assert "no-page.md" in warnings
    assert "anchor does not exist" in warnings
    assert "marcorank.Nothing" in warnings
