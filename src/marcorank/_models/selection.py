"""From settings to an engine: which backend, device and precision, and why; no file of the model is looked at."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from marcorank._inference.cpu import cpu_features
from marcorank._models import catalogue
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from marcorank._inference.pairs import LongPassages

BackendName = Literal["auto", "openvino", "onnx", "torch"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]

BACKENDS: tuple[str, ...] = get_args(BackendName)
PRECISIONS: tuple[str, ...] = get_args(Precision)
# What a backend can do somewhere; the processor or GPU decides what it can do here.
_PRECISIONS_OF = {
    "openvino": ("fp32", "bf16", "fp16", "int8"),
    "onnx": ("fp32", "int8"),
    "torch": ("fp32", "bf16", "fp16"),
}
_NEEDS = {"openvino": ("openvino",), "onnx": ("onnxruntime",), "torch": ("torch", "sentence_transformers")}
# Present where an NVIDIA driver is: torch is only imported to look for a GPU where there can be one.
_GPU_SIGNS = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """All that decides which scorer is loaded; see `Reranker` for what each means."""

    model: str
    backend: BackendName = "auto"
    device: str | None = None
    precision: Precision = "auto"
    threads: int | None = None
    max_length: int = 512
    max_query_tokens: int | None = None
    long_passages: LongPassages = "truncate"
    revision: str | None = None
    cache_folder: str | None = None
    local_files_only: bool | None = None
    allow_pickle: bool = False
    cache_size: int = 0
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engine runs a model, and why.

    Attributes:
        backend: `"openvino"`, `"onnx"` or `"torch"`.
        device: As torch spells devices.
        precision: What it computes in.
        reason: Why, for people.
    """

    backend: str
    device: str
    precision: str
    reason: str


def installed(backend: str) -> bool:
    """Whether the packages of a backend are here; none of them is imported."""
    return all(importlib.util.find_spec(name) for name in _NEEDS[backend])


def choose(settings: ModelSettings) -> Choice:
    """Decide on backend, device and precision.

    Raises:
        InvalidInputError: The settings contradict each other.
    """
    if settings.model == catalogue.BUNDLED:
        return _bundled(settings)
    backend, device, reason = _backend(settings)
    if settings.precision == "auto":
        precision, because = _best_precision(backend, device)
        return Choice(backend, device, precision, f"{reason}; {because}")
    if settings.precision not in _PRECISIONS_OF[backend]:
        others = [name for name, able in _PRECISIONS_OF.items() if settings.precision in able]
        raise InvalidInputError(
            f"`precision` is {settings.precision!r}; the {backend} backend can do "
            f"{' and '.join(map(repr, _PRECISIONS_OF[backend]))}. {settings.precision} takes "
            f"{' or '.join(f'`backend={name!r}`' for name in others)}."
        )
    return Choice(backend, device, settings.precision, f"{reason}; precision {settings.precision} was asked for")


def _bundled(settings: ModelSettings) -> Choice:
    if settings.backend not in {"auto", "onnx"} or settings.precision not in {"auto", "int8"}:
        raise InvalidInputError(
            f"The bundled model is one int8 ONNX file; found `backend={settings.backend!r}` and "
            f"`precision={settings.precision!r}`. Leave both at 'auto', or name another model."
        )
    return Choice("onnx", settings.device or "cpu", "int8", "the bundled model is an int8 ONNX file")


def _backend(settings: ModelSettings) -> tuple[str, str, str]:
    wanted, device, precision = settings.backend, settings.device, settings.precision
    if wanted == "torch":
        return "torch", device or ("cuda" if _gpu_usable() else "cpu"), "torch was asked for"
    if wanted != "auto":
        return wanted, device or "cpu", f"{wanted} was asked for"
    if device not in {None, "cpu"}:
        return "torch", str(device), f"device {device} was asked for, which torch runs"
    if device is None and precision != "int8" and _gpu_usable():
        return "torch", "cuda", "torch sees a GPU"
    return _on_cpu(precision)


def _on_cpu(precision: str) -> tuple[str, str, str]:
    better_in_torch = (precision == "fp16" and "arm64" not in cpu_features()) or (
        precision == "bf16" and not _processor_computes_bf16() and installed("torch")
    )
    if installed("openvino") and not better_in_torch:
        return "openvino", "cpu", "openvino is installed, the fastest on a CPU"
    if precision == "fp16" or (precision == "bf16" and installed("torch")):
        return "torch", "cpu", f"of what is installed, torch computes in {precision} on a CPU"
    if precision == "bf16":
        # Not here, but what to install for it.
        return "openvino", "cpu", "openvino computes in bf16 on a CPU"
    hint = "pip install 'marcorank[openvino]' makes it faster"
    return "onnx", "cpu", f"openvino is not installed ({hint}), and onnxruntime is the next fastest on a CPU"


def _best_precision(backend: str, device: str) -> tuple[str, str]:
    """Return the fastest precision that ranks as fp32 does, and why."""
    if backend == "onnx":
        return "fp32", "onnxruntime computes in fp32, and int8 has to be asked for"
    if device != "cpu":
        if _gpu_computes_bf16(device):
            return "bf16", "this GPU computes in bf16, which ranks as fp32 does"
        return "fp32", f"{device} has no fast bf16"
    if _processor_computes_bf16():
        return "bf16", "this processor computes in bf16, which ranks as fp32 does"
    return "fp32", "this processor has no bf16 instructions"


def _processor_computes_bf16() -> bool:
    return bool(cpu_features() & {"avx512_bf16", "amx_bf16"})


def _gpu_usable() -> bool:
    signs = os.name == "nt" or any(Path(sign).exists() for sign in _GPU_SIGNS)
    if not signs or not installed("torch"):
        return False
    from marcorank._inference.backends.torch import cuda_available

    return cuda_available()


def _gpu_computes_bf16(device: str) -> bool:
    if not device.startswith("cuda") or not installed("torch"):
        return False
    from marcorank._inference.backends.torch import cuda_computes_bf16

    return cuda_computes_bf16()
