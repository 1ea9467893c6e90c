"""`marcorank models`: list, download, export and quantise models."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank._inference.cpu import cpu_features
from marcorank._models.catalogue import (
    BUNDLED,
    BUNDLED_MODELS,
    BUNDLED_TINY,
    FP32_IR_FILES,
    FP32_ONNX_FILES,
    MS_MARCO,
    MULTILINGUAL,
    OTHERS,
    QUANTIZED_IR_FILE,
    int8_onnx_files,
)
from marcorank._models.loading import LocalFolder, locate
from marcorank._text import quoted_path, table
from marcorank.cli import quantize
from marcorank.cli.options import FILE_OPTIONS, add_settings, new_parser, settings_of
from marcorank.cli.progress import Progress
from marcorank.errors import InvalidInputError, MarcoRankError
from marcorank.reranker import Reranker
from marcorank.settings import RerankerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from marcorank._models.catalogue import ModelInfo
    from marcorank._models.loading import ModelFiles


def _language(codes: Sequence[str]) -> str:
    if len(codes) > 1:
        return str(len(codes))
    return "many" if codes[0] == MULTILINGUAL else codes[0]


# By heading: the field of `ModelInfo`, and how it is shown.
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "size": ("parameters", lambda count: f"{count / 1e6:.3g}M"),
    "lang": ("languages", _language),
    "max": ("max_length", str),
    "DL19": ("ndcg_dl19", "{:.2f}".format),
    "V100/s": ("passages_per_s_v100", str),
    "MTEB": ("ndcg_mteb", "{:.4f}".format),
    "CPU/s": ("pairs_per_s_cpu", "{:.1f}".format),
}
_MS_MARCO_COLUMNS = ("size", "DL19", "V100/s", "MTEB", "CPU/s")
_OTHER_COLUMNS = ("size", "lang", "max", "MTEB", "CPU/s")
_NOTES = f"""\
size: parameters. DL19: nDCG@10 on TREC DL 2019. MTEB: nDCG@10 on MTEB English
retrieval, mean over six embedding models (0.4934 without reranking). V100/s
and CPU/s: passages per second on a V100 and a Core i7-13700K. lang: language,
or how many. max: tokens of query and passage together; the models of the first
table are English and read 512. All as published; - is unknown.
here: which files are on this machine.
You may omit the owner of a name. --json shows full names, licences, the
commits to which the models are pinned, and all figures.
{BUNDLED} and {BUNDLED_TINY} come with marcorank; nDCG@10 on TREC DL 2021: 0.626
and 0.573 (BM25: 0.446)."""


def add_command(commands: Any) -> None:
    """Add this command and its own commands to the command line."""
    summary = "list, download, export and quantise models"
    parser = new_parser(commands, "models", summary=summary, run=_list)
    # Not defaults of the options: `list` would reset what is given before it.
    parser.set_defaults(json=False, cache_folder=None)
    _add_list_options(parser)
    actions = parser.add_subparsers(title="commands (default: list)", metavar="COMMAND")

    listing = new_parser(actions, "list", summary="list the models, and which of their files are here", run=_list)
    _add_list_options(listing)

    download = new_parser(
        actions, "download", summary="download a model for use offline, and check that it runs", run=_download
    )
    download.add_argument("name", metavar="NAME", help="Hub name")
    add_settings(download, ("backend", "device", "precision", "threads", "revision", "cache_folder"))

    export = new_parser(actions, "export", summary="export a model to ONNX (needs torch)", run=_export)
    export.add_argument("name", metavar="NAME", help="Hub name, or path of a model folder")
    export.add_argument("--output", metavar="DIR", help="output folder (default: where Reranker(NAME) looks)")
    add_settings(export, FILE_OPTIONS)

    quantize.add_command(actions)


def present_files(settings: RerankerSettings) -> list[str]:
    """Return which of a model's weights are on this machine; the network is not used.

    Args:
        settings: `local_files_only` has to be True.

    Returns:
        Some of `fp32 onnx`, `int8 onnx`, `openvino`, `torch`, `pickled torch`, `exported onnx` and `static int8`.
    """
    files = locate(settings)
    if not (_has(files, "config.json") and _has(files, "tokenizer.json")):
        return []
    exported = LocalFolder(files.export_folder(), files.name)
    kinds: list[tuple[str, ModelFiles, tuple[str, ...]]] = [
        ("fp32 onnx", files, FP32_ONNX_FILES),
        ("int8 onnx", files, int8_onnx_files(cpu_features())),
        ("openvino", files, FP32_IR_FILES),
        ("torch", files, ("model.safetensors", "model.safetensors.index.json")),
        ("pickled torch", files, ("pytorch_model.bin", "pytorch_model.bin.index.json")),
        # A file exported to a local folder is one of its own files.
        ("exported onnx", exported, () if isinstance(files, LocalFolder) else FP32_ONNX_FILES),
        ("static int8", exported, (QUANTIZED_IR_FILE,)),
    ]
    return [kind for kind, where, names in kinds if _has(where, *names)]


def _has(files: ModelFiles, *candidates: str) -> bool:
    try:
        return files.fetch(*candidates) is not None
    except MarcoRankError:
        return False


def _add_list_options(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="write JSON")
    parser.add_argument(
        "--cache-folder",
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="folder for Hub files (default: the Hugging Face cache)",
    )


def _list(args: argparse.Namespace) -> int:
    ms_marco = [*map(_bundled_entry, BUNDLED_MODELS), *(_entry(info, args.cache_folder) for info in MS_MARCO)]
    others = [_entry(info, args.cache_folder) for info in OTHERS]
    if args.json:
        print(json.dumps([*ms_marco, *others], indent=2))
        return 0
    print(_table(ms_marco, _MS_MARCO_COLUMNS))
    print(f"\n{_table(others, _OTHER_COLUMNS)}")
    print(f"\n{_NOTES}")
    return 0


def _entry(info: ModelInfo, cache_folder: str | None) -> dict[str, Any]:
    settings = RerankerSettings(info.name, cache_folder=cache_folder, local_files_only=True)
    return {**asdict(info), "present": present_files(settings)}


def _bundled_entry(name: str) -> dict[str, Any]:
    settings = RerankerSettings(name, local_files_only=True)
    file = locate(settings).fetch("config.json")
    config = json.loads(file.read_text(encoding="utf-8")) if file else {}
    return {
        "name": name,
        "layers": config.get("num_hidden_layers"),
        "hidden_size": config.get("hidden_size"),
        "present": ["bundled"] if present_files(settings) else [],
    }


def _table(entries: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    rows = [_row(entry, columns) for entry in entries]
    return "\n".join(table(["model", *columns, "here"], rows, left=["model"], width=width))


def _row(entry: dict[str, Any], columns: Sequence[str]) -> list[str]:
    shown = [(entry.get(field), show) for field, show in map(_COLUMNS.__getitem__, columns)]
    cells = [show(value) if value else "-" for value, show in shown]
    return [entry["name"].rpartition("/")[2], *cells, ", ".join(entry["present"]) or "no"]


def _download(args: argparse.Namespace) -> int:
    if args.name in BUNDLED_MODELS:
        print(f"{args.name} is part of the package; there is nothing to download.")
        return 0
    if Path(args.name).expanduser().is_dir():
        raise InvalidInputError(f"{quoted_path(args.name)} is on this machine already; there is nothing to download.")
    # Loading knows which files a backend needs, and proves that they are complete.
    with Reranker(args.name, **settings_of(args)) as reranker, Progress(f"Downloading {reranker.name}"):
        reranker.warm_up()
    present = present_files(RerankerSettings(args.name, **{**settings_of(args), "local_files_only": True}))
    print(f"{reranker.name} runs; on this machine: {', '.join(present) or 'weights in another format'}")
    return 0


def _export(args: argparse.Namespace) -> int:
    if args.name in BUNDLED_MODELS:
        raise InvalidInputError(f"{quoted_path(args.name)} is an ONNX file already; there is nothing to export.")
    from marcorank._models.export import export_onnx

    files = locate(RerankerSettings(args.name, **settings_of(args)))
    with Progress(f"Exporting {files.name}"):
        source = files.snapshot(allow_pickle=False)
        target = Path(args.output).expanduser() if args.output else files.export_folder()
        file = export_onnx(source, target)
    print(f"Wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")
    print(f"Use it with: --model {shlex.quote(str(target))}")
    if not args.output and not isinstance(files, LocalFolder):
        print(f"The name {files.name} finds it too, unless the Hub has an ONNX file of that model.")
    return 0
