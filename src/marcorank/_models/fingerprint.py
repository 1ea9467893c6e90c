"""The fingerprint of a scorer: everything that decides which logits it computes."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from marcorank._files import errors_named, sha256_of
from marcorank._inference.backends.base import UnreadableGraphError
from marcorank._inference.backends.graph_files import weight_files
from marcorank._models.graphs import load_without_openvino
from marcorank._models.hub import HubModel
from marcorank._models.loading import TEXT_FILES, LocalFolder, load_scorer, locate, resolve
from marcorank._models.modules import read_modules, torch_files
from marcorank._text import brief
from marcorank.remote import is_remote
from marcorank.scorer import scorer_name
from marcorank.settings import RerankerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from marcorank._models.loading import ModelFiles
    from marcorank._models.selection import Choice
    from marcorank.scorer import Scorer

# What `auto` may resolve differently on another machine.
_RESOLVED = ("backend", "precision", "device")
_FILES = {"files": "model file", "skim_files": "file of the skimming model"}


def fingerprint(model: RerankerSettings | Scorer) -> dict[str, Any]:
    """Return everything that decides the logits of a scorer, ready for JSON.

    `auto` is resolved as loading resolves it on this machine. No model is loaded, unless OpenVINO cannot read its
    graph: only loading shows which other backend can. Files are known by their content, hub models by their commit as
    well; files that are not cached are downloaded. A scorer of your own is known by its class and name only, a server
    by its address.

    Raises:
        MarcoRankError: The settings contradict each other, or a file of the model is missing or cannot be fetched.
    """
    if not isinstance(model, RerankerSettings):
        kind = type(model)
        return {
            "model": scorer_name(model),
            "scorer": f"{kind.__module__}.{kind.__qualname__}",
            "marcorank": _version(),
        }
    if is_remote(model.name):
        return {"model": model.name, "scorer": "server", "marcorank": _version()}
    files = locate(model)
    choice, graph = _resolved_as_loaded(files, model)
    read = _files_of_torch(files, model) if graph is None else _graph_files(files, graph)
    return {
        # A folder may be mounted elsewhere on another machine.
        "model": files.path.resolve().name if isinstance(files, LocalFolder) else files.name,
        "commit": files.commit if isinstance(files, HubModel) else None,
        "backend": choice.backend,
        "precision": choice.precision,
        "device": choice.device.partition(":")[0],
        "max_length": model.max_length,
        "max_query_tokens": model.max_query_tokens,
        "long_passages": model.long_passages,
        "special_tokens": model.special_tokens,
        "instruction": model.instruction,
        "marcorank": _version(),
        "files": {name: _digest(path) for name, path in sorted(read.items())},
    }


def _resolved_as_loaded(files: ModelFiles, settings: RerankerSettings) -> tuple[Choice, Path | None]:
    choice, graph = resolve(files, settings)
    if settings.backend != "auto" or choice.backend != "openvino" or graph is None:
        return choice, graph
    from marcorank._inference.backends.openvino import read_graph

    try:
        read_graph(graph)
    except UnreadableGraphError as error:
        chosen, _ = load_without_openvino(settings, load_scorer, error)
        return resolve(files, chosen)
    return choice, graph


def _version() -> str:
    # Late, because reading metadata would slow down the import of the package.
    from importlib.metadata import version

    return version("marcorank")


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Name what differs between two fingerprints, or two records of settings; empty if nothing does.

    Args:
        there: What was recorded.
        here: What it is now.
    """
    found = [
        f"{name} was {_shown(there, name)} and is {_shown(here, name)}"
        for name in {**there, **here}
        if name not in _FILES and there.get(name) != here.get(name)
    ]
    for name, what in _FILES.items():
        found += content_differences(what, there.get(name) or {}, here.get(name) or {})
    return found


def content_differences(what: str, there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """Name the files whose content differs, each with its kind in front."""

    def change(name: str) -> str:
        return "is new" if name not in there else "is gone" if name not in here else "has changed"

    return [f"the {what} {name} {change(name)}" for name in {**there, **here} if there.get(name) != here.get(name)]


def advice(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return which settings give the recorded fingerprint again; empty where no setting does."""
    wanted = {name: there[name] for name in _RESOLVED if there.get(name) and there[name] != here.get(name)}
    if there.get("commit") and here.get("commit") and there["commit"] != here["commit"]:
        wanted["revision"] = there["commit"]
    if not wanted or there.get("model") != here.get("model"):
        return ""
    return f"To continue, set {', '.join(f'`{name}={value!r}`' for name, value in wanted.items())}."


def _files_of_torch(files: ModelFiles, settings: RerankerSettings) -> dict[str, Path]:
    return torch_files(files.snapshot(allow_pickle=settings.allow_pickle))


def _graph_files(files: ModelFiles, graph: Path) -> dict[str, Path]:
    """Return the files that the onnx and openvino backends read, by name."""
    texts = {name: path for name in TEXT_FILES if (path := files.fetch(name))}
    weights = {name: graph.parent / name for name in weight_files(graph)}
    return {graph.name: graph, **weights, **texts, **read_modules(files).files}


def _digest(path: Path) -> str:
    with errors_named(repr(str(path))):
        found = path.stat()
        return _digest_of(path, (found.st_size, found.st_mtime_ns, found.st_ino))


@lru_cache(maxsize=1024)
def _digest_of(path: Path, _version: tuple[int, int, int]) -> str:
    """Return the digest of a file, computed once for each size, time and inode that it has."""
    return sha256_of(path)


def _shown(values: Mapping[str, Any], name: str) -> str:
    return brief(values[name]) if name in values else "not known"
