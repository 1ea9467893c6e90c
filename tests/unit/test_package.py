"""The package as a whole: what importing it costs, and what it names."""

from __future__ import annotations

import importlib
import os
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


def run(code: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)  # noqa: S603
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


def test_the_bundled_model_needs_four_packages():
    """A slim image may leave out huggingface-hub and what else the dependencies bring; other models say so."""
    code = """
import sys
for name in "click filelock flatbuffers fsspec google hf_xet httpx huggingface_hub packaging tqdm yaml".split():
    sys.modules[name] = None
from marcorank import MissingExtraError, Reranker
from marcorank.cli import main

print(Reranker("bundled", backend="onnx").rank("one", ["two", "one"])[0].text)
try:
    Reranker("ms-marco-MiniLM-L6-v2").warm_up()
except MissingExtraError as error:
    print(error)
sys.stderr = sys.stdout
print(main(["doctor"]))
"""
    first, missing, doctor, status = run(code).splitlines()
    assert (first, status) == ("one", "1")
    assert missing.startswith("Model 'cross-encoder/ms-marco-MiniLM-L6-v2' needs the package huggingface-hub: pip")
    assert doctor.endswith("pip install huggingface-hub")


def test_nothing_is_reported_and_nothing_is_written_to_the_home_folder(tmp_path):
    """An onnxruntime of 1.32 or later writes an id there and sends events, unless it is told not to."""
    code = (
        "from marcorank import Reranker; print(Reranker('bundled', backend='onnx').rank('one', ['two', 'one'])[0].text)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert run(code, env=environment | home) == "one"
    assert list(tmp_path.iterdir()) == []


# What Windows does not have.
_POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
_WINDOWS = f"""
import builtins, importlib, os, pkgutil, signal, sys
import httpx, huggingface_hub, numpy, onnxruntime, tokenizers

for name in ("fork", "getpgrp", "killpg", "register_at_fork", "sched_getaffinity"):
    vars(os).pop(name, None)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "pthread_kill", "setitimer"):
    vars(signal).pop(name, None)
# These need names of `os` on the system that they were installed for.
for name in ("langchain_core", "llama_index", "openvino", "ray", "torch"):
    sys.modules[name] = None
real = builtins.__import__

def guarded(name, *rest, **named):
    caller = rest[0] if rest else named.get("globals")
    if name.partition(".")[0] in {_POSIX_MODULES!r} and caller and str(caller.get("__name__")).startswith("marcorank"):
        raise AssertionError(f"{{caller['__name__']}} imports {{name}}")
    return real(name, *rest, **named)

builtins.__import__ = guarded
import marcorank

for module in pkgutil.walk_packages(marcorank.__path__, "marcorank.", onerror=lambda name: None):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            print(module.name)
print(marcorank.Reranker("bundled", backend="onnx").rank("one", ["two", "one"])[0].text)
"""


def test_the_core_works_without_what_only_posix_has():
    """On Windows every module can be imported, and the bundled model ranks."""
    *refused, first = run(_WINDOWS).splitlines()
    assert first == "one"
    # Those need a package that is not installed, whatever the system.
    needs = r"marcorank\.(_inference\.backends\.openvino\w*|interaction|langchain|llama_index|ray)"
    assert [name for name in refused if not re.fullmatch(needs, name)] == []


def test_no_module_imports_at_once_what_only_posix_has():
    """That also holds for modules that need a framework."""
    for file in Path(marcorank.__file__).parent.rglob("*.py"):
        for line in file.read_text("utf-8").splitlines():
            found = re.match(r"(?:import|from) (\w+)", line)
            assert found is None or found[1] not in _POSIX_MODULES, f"{file}: {line}"
