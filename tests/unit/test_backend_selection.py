"""Which backend, device and precision run, by what is installed and what the processor can."""

from __future__ import annotations

import pytest

from marcorank import InvalidInputError, Reranker
from marcorank._models import loading, selection
from marcorank._models.hub import HubModel
from marcorank._models.selection import choose
from marcorank.errors import MissingExtraError
from marcorank.settings import RerankerSettings


@pytest.fixture
def machine(monkeypatch):
    """Set what this machine seems to have: our own two questions about it are answered by the test."""

    def have(*backends, features=(), gpu=False, gpu_bf16=True):
        monkeypatch.setattr(selection, "installed", lambda backend: backend in backends)
        monkeypatch.setattr(selection, "cpu_features", lambda: frozenset(features))
        monkeypatch.setattr(selection, "_gpu_usable", lambda: gpu)
        monkeypatch.setattr(selection, "_gpu_supports_bf16", lambda device: gpu_bf16 and device.startswith("cuda"))

    return have


def chosen(**settings):
    choice = choose(RerankerSettings("owner/model", **settings))
    return choice.backend, choice.device, choice.precision


BF16 = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")


@pytest.mark.parametrize(
    ("backends", "features", "settings", "expected"),
    [
        (("onnx", "openvino", "torch"), BF16, {}, ("openvino", "cpu", "bf16")),
        (("onnx", "openvino", "torch"), ("avx2",), {}, ("openvino", "cpu", "fp32")),
        (("onnx", "openvino"), ("amx_bf16",), {}, ("openvino", "cpu", "bf16")),
        (("onnx", "torch"), BF16, {}, ("onnx", "cpu", "fp32")),
        (("onnx",), BF16, {}, ("onnx", "cpu", "fp32")),
        (("onnx",), BF16, {"precision": "int8"}, ("onnx", "cpu", "int8")),
        (("onnx", "openvino"), BF16, {"precision": "int8"}, ("openvino", "cpu", "int8")),
        (("onnx", "openvino"), BF16, {"precision": "fp32"}, ("openvino", "cpu", "fp32")),
        (("onnx", "torch"), BF16, {"precision": "bf16"}, ("torch", "cpu", "bf16")),
        (("onnx",), BF16, {"precision": "bf16"}, ("openvino", "cpu", "bf16")),
        (("onnx", "openvino", "torch"), BF16, {"precision": "bf16"}, ("openvino", "cpu", "bf16")),
        (("onnx", "openvino", "torch"), ("avx2",), {"precision": "bf16"}, ("torch", "cpu", "bf16")),
        (("onnx", "openvino", "torch"), BF16, {"precision": "fp16"}, ("torch", "cpu", "fp16")),
        (("onnx", "openvino", "torch"), ("arm64",), {"precision": "fp16"}, ("openvino", "cpu", "fp16")),
        (("onnx", "openvino", "torch"), BF16, {"backend": "torch"}, ("torch", "cpu", "bf16")),
        (("onnx", "openvino", "torch"), ("avx2",), {"backend": "torch"}, ("torch", "cpu", "fp32")),
        (("onnx", "openvino", "torch"), BF16, {"backend": "onnx"}, ("onnx", "cpu", "fp32")),
        (("onnx", "openvino", "torch"), BF16, {"device": "mps"}, ("torch", "mps", "fp32")),
        (("onnx", "openvino", "torch"), BF16, {"backend": "onnx", "device": "cuda"}, ("onnx", "cuda", "fp32")),
    ],
)
def test_the_fastest_that_ranks_as_fp32_is_taken(machine, backends, features, settings, expected):
    """`auto` goes by what is installed and what the processor can; what is asked for is kept."""
    machine(*backends, features=features)
    assert chosen(**settings) == expected


@pytest.mark.parametrize(
    ("settings", "gpu_bf16", "expected"),
    [
        ({}, True, ("torch", "cuda", "bf16")),
        ({}, False, ("torch", "cuda", "fp32")),
        ({"precision": "fp16"}, True, ("torch", "cuda", "fp16")),
        ({"precision": "int8"}, True, ("openvino", "cpu", "int8")),
        ({"device": "cpu"}, True, ("openvino", "cpu", "fp32")),
        ({"device": "cuda:1"}, True, ("torch", "cuda:1", "bf16")),
        ({"backend": "openvino"}, True, ("openvino", "cpu", "fp32")),
    ],
)
def test_a_gpu_is_taken_unless_told_otherwise(machine, settings, gpu_bf16, expected):
    """A GPU is run by torch, in bf16 where the GPU has it; a CPU backend, device or int8 stays on the CPU."""
    machine("onnx", "openvino", "torch", features=("avx2",), gpu=True, gpu_bf16=gpu_bf16)
    assert chosen(**settings) == expected


def test_the_reason_says_what_would_be_faster(machine):
    """Who has no openvino reads how to get it."""
    machine("onnx", features=BF16)
    assert "pip install 'marcorank[openvino]' for more speed" in choose(RerankerSettings("owner/model")).reason


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"backend": "onnx", "precision": "bf16"},
            "supports 'fp32' and 'int8'. For bf16, use `backend='openvino'` or .*torch",
        ),
        ({"backend": "torch", "precision": "int8"}, "For int8, use `backend='openvino'` or `backend='onnx'`"),
    ],
)
def test_a_precision_that_a_backend_lacks_names_those_that_have_it(machine, settings, match):
    """What cannot be combined is said with what can."""
    machine("onnx", "openvino", "torch")
    with pytest.raises(InvalidInputError, match=match):
        choose(RerankerSettings("owner/model", **settings))


@pytest.mark.parametrize("settings", [{"backend": "openvino"}, {"precision": "bf16"}])
def test_nothing_is_downloaded_for_a_backend_that_is_not_installed(settings, monkeypatch, machine):
    """The error says what to install, and not that the network is unreachable."""
    machine("onnx", features=BF16)
    monkeypatch.setattr(loading, "installed", lambda backend: backend == "onnx")
    monkeypatch.setattr(HubModel, "fetch", lambda *_: pytest.fail("something was fetched"))
    with pytest.raises(MissingExtraError, match=r"needs openvino: pip install 'marcorank\[openvino\]'"):
        Reranker("owner/model", **settings).warm_up()
