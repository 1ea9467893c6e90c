"""One record of settings: what is added to it is everywhere, and what is derived from it is up to date."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import marcorank
from marcorank import Reranker, langchain, llama_index
from marcorank.ray import ServeSettings
from marcorank.settings import ModelSettings, RerankerSettings, SharedSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RECORD = fields(RerankerSettings)
SCRIPT = ROOT / "scripts" / "write_reference.py"
MADE_UP = """\
    colour: str = setting(
        "red", "Colour of the logits.", partial(one_of, allowed=("red", "blue")), choices=("red", "blue")
    )
"""
USES = """
import json, pickle
from marcorank import InvalidInputError, Reranker, cli, langchain, llama_index
from marcorank.ray import ServeSettings

blue = Reranker("bundled", colour="blue")
assert blue.to_dict()["colour"] == "blue" and "colour='blue'" in repr(blue)
assert Reranker.from_dict(json.loads(json.dumps(blue.to_dict()))).to_dict() == blue.to_dict()
assert pickle.loads(pickle.dumps(blue)).to_dict()["colour"] == "blue"
for make, model in ((langchain.MarcoRerank, "model_name"), (llama_index.MarcoRerank, "model")):
    adapter = make(**{model: "bundled"}, colour="blue")
    assert adapter.core.to_dict()["colour"] == "blue"
    assert make.model_validate_json(adapter.model_dump_json(exclude={"callback_manager"})).colour == "blue"
    adapter.colour = "red"
    assert adapter.core.to_dict()["colour"] == "red"
    assert make(reranker=blue).colour == "blue"
assert ServeSettings.of({}, {"MARCORANK_COLOUR": "blue"}).reranker().to_dict()["colour"] == "blue"
message = "expected one of 'red', 'blue'."
for wrong in (
    lambda: Reranker("bundled", colour="green"),
    lambda: Reranker.from_dict({"colour": "green"}),
    lambda: langchain.MarcoRerank(colour="green"),
    lambda: llama_index.MarcoRerank(colour="green"),
    lambda: ServeSettings.of({}, {"MARCORANK_COLOUR": "green"}),
):
    try:
        wrong()
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(wrong)
"""


def test_a_setting_that_is_added_to_the_record_is_everywhere(tmp_path):
    """Core, dict, JSON, pickle, both adapters, server, command line and reference know a new setting, and check it."""
    package = tmp_path / "marcorank"
    shutil.copytree(Path(marcorank.__file__).parent, package, copy_function=os.symlink)
    record = package / "settings.py"
    text = record.read_text(encoding="utf-8")
    record.unlink()
    heading = '    """Settings of a model that runs on this machine."""\n'
    assert heading in text
    record.write_text(text.replace(heading, heading + MADE_UP), encoding="utf-8")
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs)

    def run(*arguments: object, status: int = 0) -> str:
        done = subprocess.run(  # noqa: S603
            [sys.executable, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    run("-c", USES)
    assert "--colour {red,blue}" in run("-m", "marcorank", "rerank", "--help")
    assert "--colour {red,blue}" in run("-m", "marcorank", "eval", "--help")
    assert "--colour {red,blue}" in run("-m", "marcorank", "serve", "--help")
    assert "invalid choice: 'green'" in run("-m", "marcorank", "rerank", "q", "--colour", "green", status=2)
    run(SCRIPT, docs)
    reference = (docs / "reference.md").read_text(encoding="utf-8")
    assert "| `colour` | `'red'` | Colour of the logits. |" in reference
    assert "| `--colour` |" in reference
    assert "| `MARCORANK_COLOUR` |" in (docs / "how-to/serve-with-ray.md").read_text(encoding="utf-8")


def test_the_tables_of_settings_are_up_to_date():
    """`python scripts/write_reference.py` would change nothing."""
    spec = importlib.util.spec_from_file_location("write_reference", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for path, written in (("reference.md", script.reference), ("how-to/serve-with-ray.md", script.serving)):
        page = (DOCS / path).read_text(encoding="utf-8")
        assert written(page) == page


def test_signatures_and_fields_are_those_of_the_record():
    """`help(Reranker)` shows the record's signature and help; adapters and server have its fields and defaults."""
    assert all(f"{one.name}: {one.metadata['description'].help}" in Reranker.__init__.__doc__ for one in RECORD)
    assert list(inspect.signature(Reranker).parameters.values()) == list(
        inspect.signature(RerankerSettings).parameters.values()
    )
    shared = {one.name: one.default for one in fields(SharedSettings)}
    for adapter in (langchain.MarcoRerank, langchain.MarcoCrossEncoder, llama_index.MarcoRerank):
        assert shared.items() <= {name: field.default for name, field in adapter.model_fields.items()}.items()
    assert {one.name for one in fields(ModelSettings)} <= {one.name for one in fields(ServeSettings)}
