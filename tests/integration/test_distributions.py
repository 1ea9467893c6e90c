"""What is published: sdists and wheels of marcorank and of its aliases for LangChain and LlamaIndex."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

from patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
MARCORANK = "marcorank"
ALIASES = {
    "langchain-marcorank": ("langchain_marcorank", "marcorank.langchain", "langchain"),
    "llama-index-postprocessor-marcorank": (
        "llama_index.postprocessor.marcorank",
        "marcorank.llama_index",
        "llama-index",
    ),
}
PROJECTS = {MARCORANK: ROOT, **{name: ROOT / "packages" / name for name in ALIASES}}
TOOLS = Path(sysconfig.get_path("scripts"))
# Whatever the time and the machine, these bytes are wanted.
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}

pytestmark = pytest.mark.skipif(not (ROOT / "packages").is_dir(), reason="an sdist has no aliases")


def run(*command: object, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(  # noqa: S603
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(project: Path, folder: Path) -> tuple[Path, Path]:
    """Build the sdist and the wheel of a project."""
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=project, env=EPOCH)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """The sdist and the wheel of each distribution."""
    return {name: build(folder, tmp_path_factory.mktemp(name)) for name, folder in PROJECTS.items()}


def metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as file:
        return message_from_bytes(file.read(next(name for name in file.namelist() if name.endswith("/METADATA"))))


def files_under(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder.parent).as_posix() for path in found}


def test_a_wheel_holds_the_package_and_its_metadata(built):
    """No file is missing and none is there by accident; every package tells type checkers of its types."""
    for name, (_, wheel) in built.items():
        package = "marcorank" if name == MARCORANK else ALIASES[name][0].replace(".", "/")
        with zipfile.ZipFile(wheel) as file:
            names = set(file.namelist())
        info = f"{name.replace('-', '_')}-{metadata(wheel)['Version']}.dist-info"
        about = {
            "METADATA",
            "RECORD",
            "WHEEL",
            "licenses/LICENSE",
            *(["entry_points.txt"] if name == MARCORANK else []),
        }
        source = PROJECTS[name] / ("." if name.startswith("llama") else "src") / package
        top = package.rpartition("/")[0]
        expected = {f"{top}/{path}".lstrip("/") for path in files_under(source)}
        assert names == expected | {f"{info}/{path}" for path in about}
        assert f"{package}/py.typed" in names


def test_an_sdist_holds_what_tests_and_builds_need(built):
    """An sdist has the sources, the tests and the documentation, and nothing of the machine that built it."""
    for name, (sdist, _) in built.items():
        with tarfile.open(sdist) as file:
            names = {member.split("/", 2)[1] for member in file.getnames()}
            assert all(member.isfile() for member in file.getmembers())
        assert names == (
            {"PKG-INFO", ".gitignore", "LICENSE", "README.md", "hatch_build.py", "pyproject.toml"}
            | {"llama_index" if name.startswith("llama") else "src"}
            if name != MARCORANK
            else {"PKG-INFO", ".gitignore", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"}
            | {"constraints.txt", "docs", "examples", "scripts", "src", "tests"}
        )


def test_two_builds_give_the_same_bytes(built, tmp_path):
    """From the sdist, in another folder, with other times and rights of files, the same sdist and wheel are built."""
    for name, (sdist, wheel) in built.items():
        unpacked = tmp_path / name
        shutil.unpack_archive(sdist, unpacked)
        for path in unpacked.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        again = build(next(unpacked.iterdir()), tmp_path / f"{name}-built")
        assert [path.name for path in again] == [sdist.name, wheel.name]
        assert again[0].read_bytes() == sdist.read_bytes()
        assert again[1].read_bytes() == wheel.read_bytes()


def test_the_image_has_the_same_wheel(built, tmp_path):
    """The files that the Dockerfile copies, and no others, are those that the wheel is built from."""
    wheel = built[MARCORANK][1]
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    copied = [name for line in re.findall(r"(?m)^COPY (?!--)(.*) \S+$", dockerfile) for name in line.split()]
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    for name in copied:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path)
    version = {"SETUPTOOLS_SCM_PRETEND_VERSION": metadata(wheel)["Version"]}
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist", cwd=tmp_path, env=EPOCH | version)
    assert next((tmp_path / "dist").iterdir()).read_bytes() == wheel.read_bytes()


def test_nothing_but_the_tokenizer_is_in_the_wheel_twice(built):
    """Both bundled models have the same; check-wheel-contents, which looks for copies too, can only ignore all."""
    by_content: dict[bytes, list[str]] = {}
    with zipfile.ZipFile(built[MARCORANK][1]) as wheel:
        for name in wheel.namelist():
            by_content.setdefault(wheel.read(name), []).append(name)
    copies = [names for content, names in by_content.items() if content and len(names) > 1]
    assert copies == [["marcorank/bundled/tokenizer.json", "marcorank/bundled_tiny/tokenizer.json"]]


def test_the_index_accepts_them(built):
    """Names, versions and descriptions are valid, READMEs render, and wheels have no known mistake."""
    files = [path for pair in built.values() for path in pair]
    run(TOOLS / "twine", "check", "--strict", *files)
    run(TOOLS / "check-wheel-contents", *(wheel for _, wheel in built.values()))


def test_the_metadata_leads_to_the_project(built):
    """Each page of the index links the documentation, the source, the changes and the issues."""
    for _, wheel in built.values():
        urls = dict(url.split(", ", 1) for url in metadata(wheel).get_all("Project-URL"))
        assert set(urls) == {"Homepage", "Documentation", "Repository", "Changelog", "Issues"}
        assert all("://" in url and "marcorank" in url for url in urls.values())


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """A folder with all three wheels, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("installed")
    for _, wheel in built.values():
        shutil.unpack_archive(wheel, folder, "zip")
    return folder


def test_the_version_is_that_of_the_wheel(built, installed):
    """`marcorank.__version__` and `marcorank --version` say which wheel is installed."""
    version = metadata(built[MARCORANK][1])["Version"]
    found = run(sys.executable, "-m", "marcorank", "--version", cwd=installed, env={"PYTHONPATH": str(installed)})
    assert found == f"marcorank {version}\n"


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_gives_the_classes_of_marcorank(name, built, installed, tmp_path):
    """It depends on marcorank of its own version, its README works, and its classes are those of the adapter."""
    module, adapter, extra = ALIASES[name]
    found = metadata(built[name][1])
    assert found["Version"] == metadata(built[MARCORANK][1])["Version"]
    assert found.get_all("Requires-Dist") == [f"marcorank[{extra}]=={found['Version']}"]
    (example,) = re.findall(r"(?ms)^```python\n(.*?)^```$", found.get_payload())
    program = tmp_path / "program.py"
    program.write_text(
        f"{example}\n"
        f"import {module} as alias, {adapter} as adapter\n"
        "assert alias.__file__.startswith(__import__('sys').argv[1]), alias.__file__\n"
        "assert sorted(alias.__all__) == sorted(adapter.__all__), adapter.__all__\n"
        "assert all(getattr(alias, name) is getattr(adapter, name) for name in alias.__all__)\n",
        encoding="utf-8",
    )
    printed = run(sys.executable, program, installed, cwd=tmp_path, env={"PYTHONPATH": str(installed)})
    assert "with statement closes the file" in printed.splitlines()[0]


# That a clone is shallow, or that an archive is not from git.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_version_comes_from_the_tag(tmp_path, monkeypatch):
    """A tag is a release, commits after it lead to the next one, and a clone without tags or git has a version too."""
    project = tmp_path / "clone"
    (project / "src/marcorank").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitattributes", ".git_archival.txt"):
        shutil.copy(ROOT / name, project)
    for name in ALIASES:
        shutil.copytree(ROOT / "packages" / name, project / "packages" / name)

    def git(*arguments: object, cwd: Path = project) -> str:
        return run("git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments, cwd=cwd)

    def version(folder: Path = project) -> str:
        monkeypatch.chdir(folder)  # as build frontends do
        return ProjectMetadata(str(folder), PluginManager()).version

    assert version() == "0.1.dev0"
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-qm", "first")
    assert version() == "0.1.dev1"
    git("tag", "v1.4.0")
    assert version() == "1.4.0"
    assert {version(project / "packages" / name) for name in ALIASES} == {"1.4.0"}
    git("commit", "-qm", "next", "--allow-empty")
    assert version() == "1.4.1.dev1"
    git("archive", "-o", tmp_path / "archive.tar", "HEAD")
    shutil.unpack_archive(tmp_path / "archive.tar", tmp_path / "archive")
    assert version(tmp_path / "archive") == "1.4.1.dev1"
    git("clone", "-q", "--depth=1", "--no-tags", project.as_uri(), tmp_path / "shallow", cwd=tmp_path)
    assert version(tmp_path / "shallow") == "0.1.dev1"
