"""Build a model that ships in the wheel from a folder of weights.

    python scripts/build_bundled.py SOURCE_FOLDER
    python scripts/build_bundled.py SOURCE_FOLDER --check COLLECTION_FOLDER
    python scripts/build_bundled.py SOURCE_FOLDER --output FOLDER --only-tables --batch-tokens 1024

Writes config.json, tokenizer.json and onnx/model_int8.onnx; the model card in the same folder is edited by hand.
`--check` prints the card's figures: ranking quality, difference to fp32, speed and start-up time on a collection
of queries.jsonl.gz, corpus.jsonl.gz, qrels.tsv and run.tsv.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import onnx
import onnxruntime
from check_bundled import MODEL_FILE, check
from int8_graph import Quantizer
from onnx import helper
from tokenizers import Tokenizer

from marcorank._inference.backends.onnx import BATCH_TOKENS
from marcorank._models.export import export_onnx

OUTPUT = Path(__file__).parents[1] / "src" / "marcorank" / "bundled"
# Each model must stay small, so that the wheel is an unproblematic dependency.
SIZE_LIMIT_BYTES = 25_000_000


def build(source: Path, output: Path, fp32_folder: Path, *, only_tables: bool, batch_tokens: int | None) -> None:
    """Export `source` to `fp32_folder` in fp32 and write the int8 model with its tokenizer to `output`.

    Both read the same tokens, in the same batches.
    """
    fp32_path = export_onnx(source, fp32_folder)
    fp32 = onnx.load(fp32_path)
    if batch_tokens is not None:
        # Metadata by which the onnx backend reads several pairs at once; the int8 model keeps it.
        helper.set_model_props(fp32, {BATCH_TOKENS: str(batch_tokens)})
        onnx.save(fp32, fp32_path)
    int8 = fold_constants(Quantizer(fp32, only_tables=only_tables).run())
    (output / MODEL_FILE).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(int8, output / MODEL_FILE)
    tokenizer = Tokenizer.from_file(str(fp32_folder / "tokenizer.json"))
    # Training saves its own maximum length in the file; at inference the caller chooses it.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(output / "tokenizer.json"), pretty=False)
    config = json.loads((fp32_folder / "config.json").read_text(encoding="utf-8"))
    # transformers knows this name, so that CrossEncoder, for one, can run the file with onnxruntime. The graph is what
    # `architectures` says.
    config["model_type"] = "bert"
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # The fp32 model must truncate at the same length: a tokenizer_config.json can set another.
    for file in fp32_folder.glob("*.json"):
        file.unlink()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(output / name, fp32_folder)
    files = [output / "config.json", output / "tokenizer.json", output / MODEL_FILE]
    for file in files:
        print(f"{file.stat().st_size:>12,} bytes  {file.relative_to(output)}")
    total = sum(file.stat().st_size for file in files)
    print(f"{total:>12,} bytes  together")
    if total > SIZE_LIMIT_BYTES:
        raise SystemExit(f"The files have {total:,} bytes: at most {SIZE_LIMIT_BYTES:,} may ship for one model.")


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with constant shape arithmetic folded, which takes a third off the load time.

    Use only onnxruntime's basic optimisation level, which does not depend on the machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(path)
    foreign = {node.op_type for node in folded.graph.node if node.domain}
    if foreign:
        raise SystemExit(f"The graph holds operators outside the ONNX standard: {sorted(foreign)}.")
    # onnxruntime lists every domain that it supports, used or not; other versions may support others.
    standard = [opset for opset in folded.opset_import if not opset.domain]
    del folded.opset_import[:]
    folded.opset_import.extend(standard)
    onnx.checker.check_model(folded, full_check=True)
    return folded


def main() -> None:
    """Parse the command line, build, and check if requested."""
    parser = argparse.ArgumentParser(description="Build a model that ships in the wheel.")
    parser.add_argument("source", type=Path, help="folder with config.json, tokenizer files and safetensors")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: src/marcorank/bundled")
    parser.add_argument(
        "--only-tables",
        action="store_true",
        help="quantise only large tables, such as word embeddings, and the products with them",
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        metavar="N",
        help="let onnxruntime read several pairs at once, up to N padded tokens",
    )
    parser.add_argument("--check", type=Path, metavar="COLLECTION_FOLDER", help="print the model card's figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fp32_folder = Path(folder, "fp32")
        build(
            arguments.source,
            arguments.output,
            fp32_folder,
            only_tables=arguments.only_tables,
            batch_tokens=arguments.batch_tokens,
        )
        if arguments.check:
            check(arguments.check, fp32_folder, arguments.output)


if __name__ == "__main__":
    main()
