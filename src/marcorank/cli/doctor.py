"""`marcorank doctor`: which backend would run on this machine, and why."""

from __future__ import annotations

import json
import platform
import shutil
import textwrap
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank import __version__
from marcorank._inference.cpu import cpu_features, processor_name, usable_cores
from marcorank._inference.scorer import CrossEncoderScorer
from marcorank._models.catalogue import BUNDLED, BUNDLED_MODELS
from marcorank._models.loading import LocalFolder, load_scorer, locate, resolve
from marcorank._models.selection import choose
from marcorank.cli.models import present_files
from marcorank.cli.options import add_settings, new_parser
from marcorank.errors import MarcoRankError, MissingExtraError, UnknownModelError
from marcorank.remote import is_remote
from marcorank.settings import DEFAULT_MODEL, RerankerSettings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from marcorank._models.selection import Choice

# By backend: the packages that it needs, and how to install them.
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
_LABEL_WIDTH = 12


def add_command(commands: Any) -> None:
    """Add this command to the command line."""
    summary = "show which backend would run on this machine, and why"
    parser = new_parser(commands, "doctor", summary=summary, run=run)
    parser.add_argument(
        "--model",
        metavar="NAME",
        help=f"Hub name, or path of a model folder, to check besides {BUNDLED} (default: {DEFAULT_MODEL})",
    )
    add_settings(parser, ["cache_folder"])
    parser.add_argument("--json", action="store_true", help="write JSON")


def run(args: argparse.Namespace) -> int:
    """Inspect the machine, run the models that are on it, and print the findings."""
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise MissingExtraError(
            "`marcorank doctor` looks at the cache of the package huggingface-hub: pip install huggingface-hub"
        ) from error
    models = [_check(name, args.cache_folder) for name in dict.fromkeys((BUNDLED, args.model or DEFAULT_MODEL))]
    gpu, gpu_problem = _gpu()
    found: dict[str, Any] = {
        "marcorank": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": {"name": processor_name(), "features": sorted(cpu_features()), "usable_cores": usable_cores()},
        "gpu": gpu,
        "backends": {name: _versions(packages) for name, (packages, _) in _BACKENDS.items()},
        "frameworks": _versions(_FRAMEWORKS),
        "cache": {
            "folder": str(Path(args.cache_folder or constants.HF_HUB_CACHE).expanduser()),
            "offline": constants.HF_HUB_OFFLINE,
        },
        "models": models,
        "problems": [problem for problem in (gpu_problem, *(entry["problem"] for entry in models)) if problem],
    }
    print(json.dumps(found, indent=2) if args.json else _report(found))
    return 1 if found["problems"] else 0


def _check(name: str, cache_folder: str | None) -> dict[str, Any]:
    """Return which backend a model would use and which of its files are here; run the model unless it is not here."""
    settings = RerankerSettings(name, cache_folder=cache_folder, local_files_only=True)
    entry: dict[str, Any] = {"name": name, "present": [], "trial": None, "problem": None}
    if is_remote(name):
        return entry | {"problem": f"{name} is the address of a server; expected a model that runs on this machine."}
    try:
        # Of the two spellings of some models, the one that other messages show.
        entry["name"] = name = locate(settings).name
        entry |= _described(choose(settings)) | {"present": present_files(settings)}
        if not entry["present"] and not isinstance(locate(settings), LocalFolder):
            return entry
        # The files of a model may rule out the backend that was chosen without looking at them.
        entry |= _described(resolve(locate(settings), settings)[0])
        started = time.perf_counter()
        scorer = load_scorer(settings)
        loaded = time.perf_counter()
        scores = scorer.score_requests([(_QUERY, _PASSAGES)])[0]
        done = time.perf_counter()
    except UnknownModelError as error:
        return entry | {"problem": str(error)}
    except (MarcoRankError, ImportError, OSError) as error:
        advice = " Reinstall marcorank: pip install --force-reinstall marcorank" if name in BUNDLED_MODELS else ""
        return entry | {"problem": f"{name} does not run: {error}{advice}"}
    relevant, other = scores.logits.tolist()
    unknown = None if scores.unknown_tokens is None else int(scores.unknown_tokens.sum())
    backend = scorer.scheduler.backend if isinstance(scorer, CrossEncoderScorer) else None
    entry["trial"] = {
        "backend": f"{backend.name} on {backend.device} in {backend.precision}" if backend else "torch",
        "load_ms": round((loaded - started) * 1e3, 1),
        "rank_ms": round((done - loaded) * 1e3, 1),
        "logits": [round(relevant, 4), round(other, 4)],
        "unknown_tokens": unknown,
    }
    words = sum(len(passage.split()) for passage in _PASSAGES)
    if unknown is not None and 2 * unknown > words:
        entry["problem"] = (
            f"The tokenizer of {name} has {unknown} unknown tokens in two English passages of {words} words; its "
            "files may be mixed up, or it is not a model for English."
        )
    elif relevant <= other:
        entry["problem"] = (
            f"{name} scores {_PASSAGES[1]!r} above the passage that answers {_QUERY!r}; its files may be mixed up, "
            "or it is not a model for English questions."
        )
    return entry


def _described(choice: Choice) -> dict[str, str]:
    return {
        "backend": choice.backend,
        "device": choice.device,
        "precision": choice.precision,
        "reason": choice.reason,
    }


def _gpu() -> tuple[str | None, str | None]:
    """Return the GPUs that torch sees, and what is wrong with torch."""
    if _versions(["torch"])["torch"] is None:
        return None, None
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # broken installations raise each of these
        return None, f"torch is installed but cannot be imported: {error}"
    names = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
    return ", ".join(names) or None, None


def _versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each package; None if it is not installed."""
    return {package: next((found.version for found in distributions(name=package)), None) for package in packages}


def _report(found: dict[str, Any]) -> str:
    processor, cache, problems = found["processor"], found["cache"], found["problems"]
    cores = f"{processor['usable_cores']} usable core{'s' if processor['usable_cores'] > 1 else ''}"
    no_gpu = "torch sees none" if found["backends"]["torch"]["torch"] else "unknown: torch is not installed"
    lines = [
        ("marcorank", f"{found['marcorank']} on Python {found['python']}, {found['platform']}"),
        ("processor", ", ".join([processor["name"], cores, *processor["features"]])),
        ("gpu", found["gpu"] or no_gpu),
        *(
            (name, _packages(versions) + ("" if all(versions.values()) else f": {_BACKENDS[name][1]}"))
            for name, versions in found["backends"].items()
        ),
        ("frameworks", _packages(found["frameworks"])),
        ("cache", f"{cache['folder']} ({'offline: HF_HUB_OFFLINE is set' if cache['offline'] else 'online'})"),
        *(("model", _model_line(entry)) for entry in found["models"]),
        *(("trial", _trial_line(entry["name"], entry["trial"])) for entry in found["models"] if entry["trial"]),
        *(("PROBLEM", problem) for problem in problems),
        ("result", "there are problems, see above" if problems else "no problems found"),
    ]
    width = max(shutil.get_terminal_size().columns, 40)
    return "\n".join(
        textwrap.fill(
            text,
            width,
            initial_indent=label.ljust(_LABEL_WIDTH),
            subsequent_indent=" " * _LABEL_WIDTH,
            # Paths and names are for copying.
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in lines
    )


def _packages(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {found or 'not installed'}" for name, found in versions.items())


def _model_line(entry: dict[str, Any]) -> str:
    name, here = entry["name"], ", ".join(entry["present"])
    if "reason" not in entry:
        return f"{name}: see below"
    if here:
        state = f"on this machine: {here}"
    else:
        state = "see below" if entry["problem"] else f"not on this machine: marcorank models download {name}"
    return f"{name}: {entry['backend']} on {entry['device']} in {entry['precision']} ({entry['reason']}); {state}"


def _trial_line(name: str, trial: dict[str, Any]) -> str:
    relevant, other = trial["logits"]
    unknown = f", {trial['unknown_tokens']} unknown tokens" if trial["unknown_tokens"] else ""
    return (
        f"{name}: {trial['backend']}, loaded in {trial['load_ms']:.0f} ms, 2 passages ranked in "
        f"{trial['rank_ms']:.1f} ms, logits {relevant:.2f} (relevant) and {other:.2f} (irrelevant){unknown}"
    )
