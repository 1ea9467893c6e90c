"""What a benchmark ran on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from marcorank._inference.cpu import cpu_features, processor_name, usable_cores

_PACKAGES = (
    "marcorank",
    "numpy",
    "tokenizers",
    "onnxruntime",
    "openvino",
    "torch",
    "transformers",
    "sentence-transformers",
    "langchain-classic",
    "langchain-community",
    "llama-index-core",
    "llama-index-postprocessor-sbert-rerank",
    "rerankers",
    "flashrank",
    "fastembed",
)


def machine_facts() -> dict[str, object]:
    """Return processor, system and the versions of what takes part."""
    return {
        "processor": processor_name(),
        "features": sorted(cpu_features()),
        "usable_cores": usable_cores(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
