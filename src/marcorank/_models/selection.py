"""Chooses backend, device and precision from the settings, without looking at the model files."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from marcorank._inference.cpu import cpu_features
from marcorank._models import catalogue
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from marcorank.settings import RerankerSettings

# What a backend supports in general; the processor or GPU may support less.
_SUPPORTED_PRECISIONS = {
    "openvino": ("fp32", "bf16", "fp16", "int8"),
    "onnx": ("fp32", "int8"),
    "torch": ("fp32", "bf16", "fp16"),
}
_REQUIRED_MODULES = {"openvino": ("openvino",), "onnx": ("onnxruntime",), "torch": ("torch", "sentence_transformers")}
# Present with an NVIDIA driver; without one, importing torch to look for a GPU would waste seconds.
_GPU_SIGNS = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which backend runs a model, and why.

    Attributes:
        backend: `"openvino"`, `"onnx"` or `"torch"`.
        device: Device name, as in torch.
        precision: Precision of the computation.
        reason: Explanation for the user.
    """

    backend: str
    device: str
    precision: str
    reason: str


def installed(backend: str) -> bool:
    """Whether the packages of a backend are installed, without importing them."""
    return all(importlib.util.find_spec(name) for name in _REQUIRED_MODULES[backend])


def choose(settings: RerankerSettings) -> Choice:
    """Choose backend, device and precision.

    Raises:
        InvalidInputError: The settings contradict each other.
    """
    if settings.name in catalogue.BUNDLED_MODELS:
        return _bundled(settings)
    backend, device, reason = _backend(settings)
    if settings.precision == "auto":
        precision, because = _best_precision(backend, device)
        return Choice(backend, device, precision, f"{reason}; {because}")
    if settings.precision not in _SUPPORTED_PRECISIONS[backend]:
        others = [name for name, supported in _SUPPORTED_PRECISIONS.items() if settings.precision in supported]
        raise InvalidInputError(
            f"`precision` is {settings.precision!r}; the {backend} backend supports "
            f"{' and '.join(map(repr, _SUPPORTED_PRECISIONS[backend]))}. For {settings.precision}, use "
            f"{' or '.join(f'`backend={name!r}`' for name in others)}."
        )
    return Choice(backend, device, settings.precision, f"{reason}; precision {settings.precision} was requested")


def _bundled(settings: RerankerSettings) -> Choice:
    if settings.backend not in {"auto", "onnx"} or settings.precision not in {"auto", "int8"}:
        raise InvalidInputError(
            f"{settings.name!r} is an int8 ONNX file; found `backend={settings.backend!r}` and "
            f"`precision={settings.precision!r}`. Leave both at 'auto', or choose another model."
        )
    return Choice("onnx", settings.device or "cpu", "int8", f"{settings.name!r} is an int8 ONNX file")


def _backend(settings: RerankerSettings) -> tuple[str, str, str]:
    backend, device, precision = settings.backend, settings.device, settings.precision
    if backend == "torch":
        return "torch", device or ("cuda" if _gpu_usable() else "cpu"), "torch was requested"
    if backend != "auto":
        return backend, device or "cpu", f"{backend} was requested"
    if device not in {None, "cpu"}:
        return "torch", str(device), f"device {device} was requested, which only torch supports"
    if device is None and precision != "int8" and _gpu_usable():
        return "torch", "cuda", "torch sees a GPU"
    return _on_cpu(precision)


def _on_cpu(precision: str) -> tuple[str, str, str]:
    better_in_torch = (precision == "fp16" and "arm64" not in cpu_features()) or (
        precision == "bf16" and not _processor_supports_bf16() and installed("torch")
    )
    if installed("openvino") and not better_in_torch:
        return "openvino", "cpu", "openvino is installed and the fastest on a CPU"
    if precision == "fp16" or (precision == "bf16" and installed("torch")):
        return "torch", "cpu", f"of the installed backends, torch supports {precision} on a CPU"
    if precision == "bf16":
        # Not installed, but the error then says what to install.
        return "openvino", "cpu", "openvino supports bf16 on a CPU"
    hint = "pip install 'marcorank[openvino]' for more speed"
    return "onnx", "cpu", f"openvino is not installed ({hint}), so onnxruntime is the fastest on a CPU"


def _best_precision(backend: str, device: str) -> tuple[str, str]:
    """Return the fastest precision that ranks as well as fp32, and why."""
    if backend == "onnx":
        return "fp32", "the default of onnxruntime is fp32; int8 has to be requested"
    if device != "cpu":
        if _gpu_supports_bf16(device):
            return "bf16", "this GPU supports bf16, which ranks as well as fp32"
        return "fp32", f"{device} has no fast bf16"
    if _processor_supports_bf16():
        return "bf16", "this processor supports bf16, which ranks as well as fp32"
    return "fp32", "this processor has no bf16 instructions"


def _processor_supports_bf16() -> bool:
    return bool(cpu_features() & {"avx512_bf16", "amx_bf16"})


def _gpu_usable() -> bool:
    signs = os.name == "nt" or any(Path(sign).exists() for sign in _GPU_SIGNS)
    if not signs or not installed("torch"):
        return False
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


def _gpu_supports_bf16(device: str) -> bool:
    if not device.startswith("cuda") or not installed("torch"):
        return False
    import torch

    # Ampere; older GPUs only emulate bf16.
    return bool(torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0))
