"""`marcorank doctor`: what would run on this machine, and why."""

from __future__ import annotations

import json
import platform
import shutil
import textwrap
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank import __version__
from marcorank._inference.cpu import cpu_features, processor_name, usable_cores
from marcorank._inference.scorer import CrossEncoderScorer
from marcorank._models.catalogue import BUNDLED
from marcorank._models.loading import load_scorer
from marcorank._models.selection import choose
from marcorank.cli.models import present_files
from marcorank.cli.options import add_settings, new_parser
from marcorank.errors import MarcoRankError
from marcorank.settings import DEFAULT_MODEL, RerankerSettings

if TYPE_CHECKING:
    import argparse

# By backend: the packages that it needs, and what brings them.
_BACKENDS = {
    "onnx": (("onnxruntime", "tokenizers"), "pip install marcorank"),
    "openvino": (("openvino",), "pip install 'marcorank[openvino]'"),
    "torch": (("torch", "sentence-transformers"), "pip install 'marcorank[torch]'"),
}
_FRAMEWORKS = ("langchain-core", "llama-index-core", "sentence-transformers", "chromadb")
_QUERY = "How many people live in Berlin?"
# The first one answers the query; both are the example of the MS MARCO models' cards.
_PASSAGES = (
    "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
    "Berlin is well known for its museums.",
)
_LABEL_CELLS = 12


def add_command(commands: Any) -> None:
    """Add this command to the command line."""
    parser = new_parser(commands, "doctor", summary="show what would run on this machine, and why", run=run)
    parser.add_argument(
        "--model", metavar="NAME", help=f"hub name or folder to look at (default: {BUNDLED} and {DEFAULT_MODEL})"
    )
    add_settings(parser, ["cache_folder"])
    parser.add_argument("--json", action="store_true", help="write JSON")


def run(args: argparse.Namespace) -> int:
    """Inspect the machine, try the bundled model and print the findings."""
    names = [args.model] if args.model else [BUNDLED, DEFAULT_MODEL]
    models = [_look_at(name, args.cache_folder) for name in names]
    tried = [BUNDLED, *(entry["name"] for entry in models if entry["present"] and args.model not in {None, BUNDLED})]
    trials = [_try(name, args.cache_folder) for name in tried]
    torch = _torch()
    found = {
        "marcorank": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": {"name": processor_name(), "features": sorted(cpu_features()), "usable_cores": usable_cores()},
        "gpu": torch["gpu"],
        "backends": {name: _backend(*needs) for name, needs in _BACKENDS.items()},
        "frameworks": {package: _version(package) for package in _FRAMEWORKS},
        "cache": _cache(args.cache_folder),
        "models": models,
        "trials": trials,
    }
    found["problems"] = [
        problem for problem in (torch["problem"], *(entry["problem"] for entry in [*models, *trials])) if problem
    ]
    print(json.dumps(found, indent=2) if args.json else _report(found))
    return 1 if found["problems"] else 0


def _look_at(name: str, cache_folder: str | None) -> dict[str, Any]:
    settings = RerankerSettings(name, cache_folder=cache_folder, local_files_only=True)
    entry: dict[str, Any] = {"name": name, "present": [], "problem": None}
    try:
        choice = choose(settings)
        entry |= {"backend": choice.backend, "device": choice.device, "precision": choice.precision}
        return entry | {"reason": choice.reason, "present": present_files(settings)}
    except MarcoRankError as error:
        return entry | {"problem": str(error)}


def _try(name: str, cache_folder: str | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"model": name, "engine": None, "load_ms": None, "rank_ms": None, "logits": None}
    settings = RerankerSettings(name, cache_folder=cache_folder, local_files_only=True)
    try:
        started = time.perf_counter()
        scorer = load_scorer(settings)
        loaded = time.perf_counter()
        logits = scorer.score_requests([(_QUERY, _PASSAGES)])[0].logits.tolist()
        done = time.perf_counter()
    except (MarcoRankError, ImportError, OSError) as error:
        cure = " Install marcorank anew: pip install --force-reinstall marcorank" if name == BUNDLED else ""
        return entry | {"problem": f"{name} does not run: {error}{cure}"}
    backend = scorer.scheduler.backend if isinstance(scorer, CrossEncoderScorer) else None
    return entry | {
        # What was chosen without a look at the files can end elsewhere: a model may have no ONNX file.
        "engine": _engine(backend.name, backend.device, backend.precision) if backend else "torch",
        "load_ms": round((loaded - started) * 1e3, 1),
        "rank_ms": round((done - loaded) * 1e3, 1),
        "logits": [round(logit, 4) for logit in logits],
        "problem": None if logits[0] > logits[1] else _wrong_order(name),
    }


def _wrong_order(name: str) -> str:
    return (
        f"{name} scores {_PASSAGES[1]!r} above the passage that answers {_QUERY!r}; its files may be mixed up, or it "
        "is no model for English questions."
    )


def _engine(backend: str, device: str, precision: str) -> str:
    return f"{backend} on {device} in {precision}"


def _torch() -> dict[str, str | None]:
    if _version("torch") is None:
        return {"gpu": None, "problem": None}
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # each is how some broken installation shows
        return {"gpu": None, "problem": f"torch is installed but cannot be imported: {error}"}
    gpus = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
    return {"gpu": ", ".join(gpus) or None, "problem": None}


def _backend(packages: tuple[str, ...], command: str) -> dict[str, Any]:
    versions = {package: _version(package) for package in packages}
    return {"packages": versions, "install": None if all(versions.values()) else command}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cache(cache_folder: str | None) -> dict[str, Any]:
    from huggingface_hub import constants

    folder = Path(cache_folder).expanduser() if cache_folder else Path(constants.HF_HUB_CACHE)
    return {"folder": str(folder), "offline": constants.HF_HUB_OFFLINE}


def _report(found: dict[str, Any]) -> str:
    processor, cache = found["processor"], found["cache"]
    cores = f"{processor['usable_cores']} usable core{'s' if processor['usable_cores'] > 1 else ''}"
    lines = [
        ("marcorank", f"{found['marcorank']} on Python {found['python']}, {found['platform']}"),
        ("processor", ", ".join([processor["name"], cores, *processor["features"]])),
        ("gpu", found["gpu"] or _no_gpu(found["backends"]["torch"])),
        *((f"{name}", _backend_line(entry)) for name, entry in found["backends"].items()),
        ("frameworks", ", ".join(f"{name} {known or 'not installed'}" for name, known in found["frameworks"].items())),
        ("cache", f"{cache['folder']} ({'offline: HF_HUB_OFFLINE is set' if cache['offline'] else 'online'})"),
        *(("model", _model_line(entry)) for entry in found["models"]),
        *(("trial", _trial_line(entry)) for entry in found["trials"] if entry["logits"]),
        *(("PROBLEM", problem) for problem in found["problems"]),
        ("result", "something is broken, see above" if found["problems"] else "all is well"),
    ]
    width = max(shutil.get_terminal_size().columns, 40)
    return "\n".join(
        textwrap.fill(
            text,
            width,
            initial_indent=label.ljust(_LABEL_CELLS),
            subsequent_indent=" " * _LABEL_CELLS,
            # A path or a name is for copying.
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in lines
    )


def _no_gpu(torch: dict[str, Any]) -> str:
    return "not looked for: torch is not installed" if torch["packages"]["torch"] is None else "torch sees none"


def _backend_line(entry: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {known or 'missing'}" for name, known in entry["packages"].items())
    return packages if entry["install"] is None else f"{packages}: {entry['install']}"


def _model_line(entry: dict[str, Any]) -> str:
    if entry["problem"]:
        return f"{entry['name']}: see below"
    state = ", ".join(entry["present"])
    here = f"here as {state}" if state else f"not here: marcorank models download {entry['name']}"
    engine = _engine(entry["backend"], entry["device"], entry["precision"])
    return f"{entry['name']}: {engine} ({entry['reason']}); {here}"


def _trial_line(entry: dict[str, Any]) -> str:
    first, second = entry["logits"]
    return (
        f"{entry['model']}: {entry['engine']}, loaded in {entry['load_ms']:.0f} ms, 2 passages in "
        f"{entry['rank_ms']:.1f} ms, "
        f"logits {first:.2f} (the answer) and {second:.2f}"
    )
