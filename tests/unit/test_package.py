"""The package as a whole: what importing it costs, and what it names."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

import marcorank
from marcorank import errors

HEAVY = {
    *("torch", "onnxruntime", "openvino", "transformers", "sentence_transformers", "langchain_core", "llama_index"),
    *("httpx", "ray", "numpy"),
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()


def test_import_loads_nothing_heavy():
    """`import marcorank` is free: no engine, no framework, not even numpy."""
    loaded = run("import sys, marcorank; print(' '.join({name.split('.')[0] for name in sys.modules}))")
    assert not HEAVY & set(loaded.split())


def test_making_a_reranker_loads_no_engine():
    """Nothing is loaded before it is needed, whichever backend is meant."""
    code = "import sys; from marcorank import Reranker; [Reranker(backend=name) for name in ('auto', 'onnx', 'torch')]"
    loaded = run(f"{code}; print(' '.join({{name.split('.')[0] for name in sys.modules}}))")
    assert not (HEAVY - {"numpy"}) & set(loaded.split())


def test_every_public_name_exists():
    """`__all__` is complete and each name can be had; another name is an AttributeError."""
    assert set(marcorank.__all__) == set(marcorank._HOME)
    for name in marcorank.__all__:
        assert getattr(marcorank, name).__name__ == name
    assert set(marcorank.__all__) <= set(dir(marcorank))
    with pytest.raises(AttributeError, match="no attribute 'Rerankr'"):
        _ = marcorank.Rerankr


def test_every_error_is_drawn_in_the_docstring_and_public():
    """The tree in the docstring shows each class with its built-in parent, if it has one of its own."""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.MarcoRankError) and value is not errors.MarcoRankError:
            built_in = "".join(f"({parent.__name__})" for parent in value.__bases__[1:])
            assert f"  {name}{built_in} " in errors.__doc__
            assert name in marcorank.__all__


def test_every_extra_is_documented():
    """The README says what to install for what, and the reference lists everything."""
    root = Path(__file__).parents[2]
    extras = set(metadata("marcorank").get_all("Provides-Extra"))
    in_readme = set(
        re.findall(r"^\| `pip install 'marcorank\[(.+?)\]'`", (root / "README.md").read_text("utf-8"), re.MULTILINE)
    )
    in_reference = set(re.findall(r"^\| `([a-z-]+)` \|", (root / "docs/reference.md").read_text("utf-8"), re.MULTILINE))
    assert in_readme == extras - {"docs", "test"}
    assert extras <= in_reference


def test_every_module_can_be_imported():
    """No module of the package breaks on import."""
    for module in pkgutil.walk_packages(marcorank.__path__, "marcorank."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
