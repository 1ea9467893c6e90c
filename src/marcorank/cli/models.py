"""`marcorank models`: which models there are, fetching them ahead, making ONNX files and int8 of them."""

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
    CATALOGUE,
    FP32_IR_FILES,
    FP32_ONNX_FILES,
    ORGANISATION,
    QUANTIZED_IR_FILE,
    int8_onnx_files,
)
from marcorank._models.loading import LocalFolder, locate
from marcorank._text import table
from marcorank.cli import quantize
from marcorank.cli.options import FILE_OPTIONS, add_settings, new_parser, settings_of
from marcorank.cli.progress import Progress
from marcorank.errors import InvalidInputError, MarcoRankError
from marcorank.reranker import Reranker
from marcorank.settings import RerankerSettings

if TYPE_CHECKING:
    from marcorank._models.catalogue import ModelInfo
    from marcorank._models.loading import ModelFiles

_TEXT_FILES = ("config.json", "tokenizer.json")
_TORCH_FILES = ("model.safetensors", "model.safetensors.index.json")
# Columns that a narrow terminal has no room for; the notes below the table and --json have the same.
_WIDE_TERMINAL = 100

_LIST_NOTES = """\
nDCG: nDCG@10 on TREC DL 2019. MRR: MRR@10 on the MS MARCO dev set. psg/s:
passages a second on a V100. All three as the model cards publish them.
here: which files are on this machine.
The models' full names begin with {organisation}/, which may be left out."""


def add_command(commands: Any) -> None:
    """Add this command and its own commands to the command line."""
    summary = "list, download, export and quantise models"
    parser = new_parser(commands, "models", summary=summary, run=_list)
    _add_list_options(parser, json_default=False, folder_default=None)
    actions = parser.add_subparsers(title="commands (none: list)", metavar="COMMAND")

    # What is not given here must not undo what is given before `list`.
    listing = new_parser(actions, "list", summary="list the models and what of them is on this machine", run=_list)
    _add_list_options(listing, json_default=argparse.SUPPRESS, folder_default=argparse.SUPPRESS)

    download = new_parser(
        actions, "download", summary="fetch the files of a model for use offline, and check that it runs", run=_download
    )
    download.add_argument("name", metavar="NAME", help="hub name")
    add_settings(download, ("backend", "device", "precision", "threads", "revision", "cache_folder"))

    export = new_parser(
        actions, "export", summary="make an ONNX file of a model that has none (needs torch)", run=_export
    )
    export.add_argument("name", metavar="NAME", help="hub name or a model's folder")
    export.add_argument("--output", metavar="DIR", help="folder to write (default: where a Reranker of NAME looks)")
    add_settings(export, FILE_OPTIONS)

    quantize.add_command(actions)


def present_files(settings: RerankerSettings) -> list[str]:
    """Return which of a model's weights are on this machine; the network is not used.

    Args:
        settings: `local_files_only` has to be True.

    Returns:
        Some of `fp32 onnx`, `int8 onnx`, `openvino`, `torch`, `exported onnx` and `static int8`.
    """
    files = locate(settings)
    if not all(_has(files, name) for name in _TEXT_FILES):
        return []
    return [
        *(["fp32 onnx"] if _has(files, *FP32_ONNX_FILES) else []),
        *(["int8 onnx"] if _has(files, *int8_onnx_files(cpu_features())) else []),
        *(["openvino"] if _has(files, *FP32_IR_FILES) else []),
        *(["torch"] if _has(files, *_TORCH_FILES) else []),
        # In a folder of this machine an export is like any other file.
        *(["exported onnx"] if not isinstance(files, LocalFolder) and _made_here(files, *FP32_ONNX_FILES) else []),
        *(["static int8"] if _made_here(files, QUANTIZED_IR_FILE) else []),
    ]


def _has(files: ModelFiles, *candidates: str) -> bool:
    try:
        return files.fetch(*candidates) is not None
    except MarcoRankError:
        return False


def _made_here(files: ModelFiles, *names: str) -> bool:
    try:
        return _has(LocalFolder(files.export_folder(), files.name), *names)
    except MarcoRankError:
        return False


def _add_list_options(parser: Any, *, json_default: object, folder_default: object) -> None:
    parser.add_argument("--json", action="store_true", default=json_default, help="write JSON")
    parser.add_argument(
        "--cache-folder", metavar="DIR", default=folder_default, help="where hub models are kept (default: HF's cache)"
    )


def _list(args: argparse.Namespace) -> int:
    entries = [_bundled_entry(), *(_entry(info, args.cache_folder) for info in CATALOGUE)]
    if args.json:
        print(json.dumps(entries, indent=2))
        return 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    header, rows = _list_columns(entries, wide=width >= _WIDE_TERMINAL)
    print("\n".join(table(header, rows, left=("model", "licence", "revision"), width=width)))
    print(f"\n{_LIST_NOTES.format(organisation=ORGANISATION)}")
    return 0


def _entry(info: ModelInfo, cache_folder: str | None) -> dict[str, Any]:
    settings = RerankerSettings(info.name, cache_folder=cache_folder, local_files_only=True)
    return {**asdict(info), "present": present_files(settings)}


def _bundled_entry() -> dict[str, Any]:
    settings = RerankerSettings(BUNDLED, local_files_only=True)
    config_file = locate(settings).fetch("config.json")
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file else {}
    return {
        "name": BUNDLED,
        "layers": config.get("num_hidden_layers"),
        "hidden_size": config.get("hidden_size"),
        "present": ["bundled"] if present_files(settings) else [],
    }


def _list_columns(entries: list[dict[str, Any]], *, wide: bool) -> tuple[list[str], list[list[str]]]:
    prefix = f"{ORGANISATION}/"
    columns = {
        "model": [entry["name"].removeprefix(prefix) for entry in entries],
        "layers": [_cell(entry.get("layers")) for entry in entries],
        "width": [_cell(entry.get("hidden_size")) for entry in entries],
        "params": [_millions(entry.get("parameters")) for entry in entries],
        "nDCG": [_cell(entry.get("ndcg_dl19"), ".2f") for entry in entries],
        "MRR": [_cell(entry.get("mrr_dev"), ".2f") for entry in entries],
        "psg/s": [_cell(entry.get("passages_per_s_v100")) for entry in entries],
    }
    if wide:
        columns["licence"] = [_cell(entry.get("licence")) for entry in entries]
        columns["revision"] = [_cell(entry.get("revision"))[:8] for entry in entries]
    columns["here"] = [", ".join(entry["present"]) or "no" for entry in entries]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _cell(value: object, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _millions(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f} M"


def _download(args: argparse.Namespace) -> int:
    if args.name == BUNDLED or Path(args.name).expanduser().is_dir():
        raise InvalidInputError(f"{args.name!r} is on this machine already; there is nothing to download.")
    # Loading is the one place that knows which files an engine needs, and it proves that they are whole.
    with Reranker(args.name, **settings_of(args)) as reranker, Progress(f"Downloading {reranker.name}"):
        reranker.warm_up()
    present = present_files(_local_settings(args))
    print(f"{reranker.name} runs, and is on this machine as: {', '.join(present) or 'another format'}")
    return 0


def _export(args: argparse.Namespace) -> int:
    if args.name == BUNDLED:
        raise InvalidInputError("The bundled model is an ONNX file already; there is nothing to export.")
    from marcorank._models.export import export_onnx

    files = locate(RerankerSettings(args.name, **settings_of(args)))
    with Progress(f"Exporting {files.name}"):
        source = files.snapshot(allow_pickle=False)
        target = Path(args.output).expanduser() if args.output else files.export_folder()
        file = export_onnx(source, target)
    print(f"Wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")
    print(f"Use it with: --model {shlex.quote(str(target))}")
    if not args.output and not isinstance(files, LocalFolder):
        print(f"The name {files.name} finds it too, unless the hub has an ONNX file of that model.")
    return 0


def _local_settings(args: argparse.Namespace) -> RerankerSettings:
    return RerankerSettings(args.name, **{**settings_of(args), "local_files_only": True})
