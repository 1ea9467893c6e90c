"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os

# Tests run offline; the hub tests name a server on loopback instead.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("LANGSMITH_TRACING", "false")
# torch's threads would burn the cores that other test processes need, while they wait for work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from pathlib import Path

    from marcorank.settings import RerankerSettings

# No test goes by the clock: a loaded machine may take as long as it likes for an example.
settings.register_profile("marcorank", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("marcorank")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n 3`, one process runs all tests of a file, and one process all files with Ray."""
    from xdist.scheduler import LoadFileScheduling

    class FileScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "ray" if "/test_ray_" in file else file

    return FileScheduling(config, log)


def pytest_collection_finish():
    """What was imported stays, so `gc.collect()` in a test need not look through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def load(monkeypatch):
    """Let rerankers load what a function makes, instead of a model; returns the settings that they load with."""
    from marcorank._inference.scorer import as_request_scorer

    loaded: list[RerankerSettings] = []

    def load_made(make):
        def load_scorer(settings):
            loaded.append(settings)
            made = make()
            return made if hasattr(made, "score_requests") else as_request_scorer(made)

        monkeypatch.setattr("marcorank.reranker.load_scorer", load_scorer)
        return loaded

    return load_made


@pytest.fixture
def tei():
    """A server with the API of text-embeddings-inference, on loopback."""
    from remote_server import remote_server

    with remote_server("tei") as server:
        yield server


@pytest.fixture
def scorer(tei):
    """A scorer on that server."""
    from marcorank.remote import RemoteScorer

    with RemoteScorer(tei.url) as scorer:
        yield scorer


@pytest.fixture(scope="session")
def small_bert(tmp_path_factory) -> Path:
    """A tiny BERT cross-encoder with safetensors and ONNX weights."""
    from marcorank._models.export import export_onnx
    from random_models import bert

    folder = bert(tmp_path_factory.mktemp("bert"))
    export_onnx(folder, folder)
    return folder


@pytest.fixture(scope="session")
def small_interaction(tmp_path_factory) -> Path:
    """A tiny cross-encoder of `marcorank.interaction` with safetensors and ONNX weights."""
    from marcorank._models.export import export_onnx
    from random_models import interaction

    folder = interaction(tmp_path_factory.mktemp("interaction"))
    export_onnx(folder, folder)
    return folder


@pytest.fixture(scope="session")
def small_splade(tmp_path_factory, splade_folder) -> Path:
    """A tiny cross-encoder made of a SPLADE model, with safetensors and ONNX weights."""
    from marcorank._models.export import export_onnx
    from random_models import splade_reranker

    folder = splade_reranker(tmp_path_factory.mktemp("splade-reranker"), splade_folder)
    export_onnx(folder, folder)
    return folder


@pytest.fixture(scope="session")
def small_roberta(tmp_path_factory) -> Path:
    """A tiny RoBERTa cross-encoder with safetensors and ONNX weights."""
    from marcorank._models.export import export_onnx
    from random_models import roberta

    folder = roberta(tmp_path_factory.mktemp("roberta"))
    export_onnx(folder, folder)
    return folder


@pytest.fixture(scope="session")
def splade_folder(tmp_path_factory) -> Path:
    """A tiny SPLADE model."""
    from random_models import Shape, splade

    return splade(tmp_path_factory.mktemp("splade"), Shape(2, 16, 2, 32))


@pytest.fixture(scope="session")
def bundled_in_fp32(tmp_path_factory) -> Path:
    """The bundled weights as fp32 safetensors and ONNX."""
    from marcorank._models.export import export_onnx
    from random_models import bundled_in_fp32 as dequantise

    folder = dequantise(tmp_path_factory.mktemp("bundled"))
    export_onnx(folder, folder)
    return folder
