"""Fetches the weights of graphs, and finds another backend where OpenVINO cannot read a graph."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from marcorank._inference.backends.graph_files import weight_files
from marcorank._models.selection import installed
from marcorank._text import first_few
from marcorank.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from marcorank._inference.scorer import RequestScorer
    from marcorank.settings import RerankerSettings


def fetch_weights(graph: Path, fetch: Callable[[str], Path | None], *, where: str) -> Path:
    """Fetch the files in which a graph has its weights, such as those of models above 2 GB, and return the graph.

    Args:
        graph: An ONNX file or an OpenVINO IR.
        fetch: Fetches a file of the model; returns None if there is none.
        where: Where files are looked up, for messages.
    """
    folder = "onnx/" if graph.parent.name == "onnx" else ""
    missing = [
        name for name in weight_files(graph) if not (graph.parent / name).is_file() and fetch(f"{folder}{name}") is None
    ]
    if not missing:
        return graph
    # A graph may be a link to one that has its weights beside it.
    linked = graph.resolve()
    if all((linked.parent / name).is_file() for name in missing):
        return linked
    raise ModelLoadError(
        f"{str(graph)!r} has its weights in {first_few(missing)} beside it; found no such file in {where}. "
        "Download or export the model again."
    )


def load_without_openvino(
    settings: RerankerSettings, load: Callable[[RerankerSettings], RequestScorer], error: ModelLoadError
) -> tuple[RerankerSettings, RequestScorer]:
    """Load a model that OpenVINO cannot read with the next best backend; return its settings and the loaded model.

    Raises:
        ModelLoadError: `error`, the reason of OpenVINO, if a backend was requested or no other can load the model.
    """
    others: list[Literal["onnx", "torch"]] = []
    if settings.backend == "auto" and settings.precision in {"auto", "fp32"}:
        others.append("onnx")
    if settings.backend == "auto" and settings.precision != "int8" and installed("torch"):
        others.append("torch")
    for backend in others:
        chosen = replace(settings, backend=backend)
        with suppress(ModelLoadError):
            return chosen, load(chosen)
    raise error
