"""Build a model that ships in the wheel from a folder of weights.

    python scripts/build_bundled.py SOURCE_FOLDER
    python scripts/build_bundled.py SOURCE_FOLDER --check COLLECTION_FOLDER
    python scripts/build_bundled.py SOURCE_FOLDER --output FOLDER --only-tables --batch-tokens 1024

Writes config.json, tokenizer.json and onnx/model_int8.onnx; the model card in the same folder is edited by hand.
`--check` prints the card's figures: ranking quality, difference to fp32, speed and start-up time on a collection
of queries.jsonl.gz, corpus.jsonl.gz, qrels.tsv and run.tsv.

The int8 arithmetic differs from onnxruntime's `quantize_dynamic` in these ways, all in standard operators:

* Every token has its own activation scale; `quantize_dynamic` uses one scale for a whole batch, so that a passage's
  score depends on the rest of the batch.
* A table of word embeddings whose pairs of columns take at most 256 values each, as initialise_bundled.py makes it, is
  stored as one byte for each pair, without loss. In other tables each word has its own scale.
* A table that is also an output layer is stored once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from json_lines import read_texts
from onnx import helper, numpy_helper
from tokenizers import Encoding, Tokenizer

from marcorank._inference.backends.onnx import BATCH_TOKENS
from marcorank._models.export import export_onnx

Floats = npt.NDArray[np.float32]

OUTPUT = Path(__file__).parents[1] / "src" / "marcorank" / "bundled"
MODEL_FILE = Path("onnx", "model_int8.onnx")
# Each model must stay small, so that the wheel is an unproblematic dependency.
SIZE_LIMIT_BYTES = 25_000_000
# x86 processors without VNNI add two u8*s8 products in 16 bits: 2 * 255 * 63 still fits, 2 * 255 * 127 saturates.
WEIGHT_LIMIT = 63
ACTIVATION_LIMIT = 127
ZERO_POINT = 128
CODES = 256
# The tables of positions and segments are too small to be worth the rounding errors.
LARGE_TABLE_VALUES = 1_000_000
MAX_LENGTH_TOKENS = 512


# ---------------------------------------------------------------------------------------------------- building


def build(source: Path, output: Path, fp32_folder: Path, *, only_tables: bool, batch_tokens: int | None) -> None:
    """Export `source` to `fp32_folder` in fp32 and write the int8 model with its tokenizer to `output`."""
    fp32_path = export_onnx(source, fp32_folder)
    graph = Quantizer(onnx.load(fp32_path), only_tables=only_tables).run()
    (output / MODEL_FILE).parent.mkdir(parents=True, exist_ok=True)
    fold_constants(graph, output / MODEL_FILE)
    if batch_tokens is not None:
        add_batch_tokens(output / MODEL_FILE, batch_tokens)
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
    files = [output / "config.json", output / "tokenizer.json", output / MODEL_FILE]
    for file in files:
        print(f"{file.stat().st_size:>12,} bytes  {file.relative_to(output)}")
    total = sum(file.stat().st_size for file in files)
    print(f"{total:>12,} bytes  together")
    if total > SIZE_LIMIT_BYTES:
        raise SystemExit(f"The files have {total:,} bytes: at most {SIZE_LIMIT_BYTES:,} may ship for one model.")


def fold_constants(model: onnx.ModelProto, path: Path) -> None:
    """Save with constant shape arithmetic folded, which takes a third off the load time.

    Use only onnxruntime's basic optimisation level, which does not depend on the machine.
    """
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
    onnx.save(folded, path)


def add_batch_tokens(path: Path, count: int) -> None:
    """Say in the file's metadata that batches of this many padded tokens save time."""
    model = onnx.load(path)
    helper.set_model_props(model, {BATCH_TOKENS: str(count)})
    onnx.save(model, path)


class Quantizer:
    """Converts a BERT-like graph to int8: large tables and the products with them, and all others unless `only_tables`.

    Products of two activations stay in fp32.
    """

    def __init__(self, model: onnx.ModelProto, *, only_tables: bool) -> None:
        self.model = model
        self.only_tables = only_tables
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.quantized: dict[str, str] = {}
        # The first product with each matrix, whose int8 weights the others share.
        self.products: dict[str, str] = {}
        self._name_constants_once()
        self.output_layers = self._find_output_layers()

    def run(self) -> onnx.ModelProto:
        """Rewrite the model in place and return it."""
        graph = self.model.graph
        # onnxruntime multiplies, converts and scales in one pass where the scale is (runtime scalar) * (constants).
        # The activation scales are applied after that, so the scalar is 1: the largest entry of any attention mask.
        self._add("ReduceMax", ["attention_mask"], "one_int64", keepdims=0)
        self._add("Cast", ["one_int64"], "one", to=onnx.TensorProto.FLOAT)
        for node in graph.node:
            if node.op_type == "MatMul" and self._is_converted(node.input[1]):
                self._product(node)
            elif node.op_type == "Gather" and self._is_large_table(node.input[0]):
                self._lookup(node)
            else:
                self.nodes.append(node)
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in graph.node for name in node.input}
        del graph.initializer[:]
        graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in used)
        return self.model

    def _product(self, node: onnx.NodeProto) -> None:
        weights = self._values(node.input[1])
        rows, columns = weights.shape
        data, scales = to_int8(weights, WEIGHT_LIMIT, axis=0)
        tokens = self._quantize(node.input[0], rows)
        name = node.output[0]
        stored = self.products.setdefault(node.input[1], name)
        zero = self._constant("zero_point", np.uint8(ZERO_POINT))
        self._add("MatMulInteger", [tokens, self._constant(f"{stored}/weights", data), zero], f"{name}/int32")
        self._add("Cast", [f"{name}/int32"], f"{name}/float", to=onnx.TensorProto.FLOAT)
        self._add("Mul", ["one", self._constant(f"{stored}/scales", scales[0])], f"{name}/column_scales")
        self._add("Mul", [f"{name}/float", f"{name}/column_scales"], f"{name}/columns")
        width = self._constant(f"width_{columns}", np.array([columns], np.int64))
        self._add("Concat", [f"{tokens}/axes", width], f"{name}/shape", axis=0)
        self._add("Reshape", [f"{name}/columns", f"{name}/shape"], f"{name}/reshaped")
        self._add("Mul", [f"{name}/reshaped", f"{tokens}/scales"], name)

    def _quantize(self, name: str, width: int) -> str:
        """Add the nodes that turn (batch, sequence, width) float32 into (batch * sequence, width) uint8.

        Query, key and value read the same activations: these are converted once.
        """
        if name in self.quantized:
            return self.quantized[name]
        out = self.quantized[name] = f"{name}/uint8"
        self._add("Abs", [name], f"{out}/abs")
        self._add("ReduceMax", [f"{out}/abs"], f"{out}/max", axes=[-1], keepdims=1)
        tiny = self._constant("tiny", np.float32(1e-9))
        self._add("Max", [f"{out}/max", tiny], f"{out}/positive")
        step = self._constant("step", np.float32(1 / ACTIVATION_LIMIT))
        self._add("Mul", [f"{out}/positive", step], f"{out}/scales")
        flat = self._constant("flat", np.array([-1], np.int64))
        self._add("Reshape", [f"{out}/scales", flat], f"{out}/flat_scales")
        self._add("Shape", [f"{out}/flat_scales"], f"{out}/count")
        self._add("Expand", [self._constant("zero_point", np.uint8(ZERO_POINT)), f"{out}/count"], f"{out}/zero_points")
        matrix = self._constant(f"matrix_{width}", np.array([-1, width], np.int64))
        self._add("Reshape", [name, matrix], f"{out}/matrix")
        self._add("QuantizeLinear", [f"{out}/matrix", f"{out}/flat_scales", f"{out}/zero_points"], out, axis=0)
        self._add("Shape", [name], f"{out}/axes", end=-1)
        return out

    def _name_constants_once(self) -> None:
        """Remove the `Identity` nodes by which the exporter names a constant that is used twice."""
        copies = {
            node.output[0]: node.input[0]
            for node in self.model.graph.node
            if node.op_type == "Identity" and node.input[0] in self.constants
        }
        others = [node for node in self.model.graph.node if node.output[0] not in copies]
        for node in others:
            node.input[:] = [copies.get(name, name) for name in node.input]
        del self.model.graph.node[:]
        self.model.graph.node.extend(others)

    def _find_output_layers(self) -> dict[str, str]:
        """Return the products with a table of word embeddings: the outputs of their nodes, by the name of the table."""
        nodes = self.model.graph.node
        tables = {node.input[0] for node in nodes if node.op_type == "Gather" and self._is_large_table(node.input[0])}
        # The first of several products, under whose name the weights are stored.
        products = {node.input[1]: node.output[0] for node in reversed(nodes) if node.op_type == "MatMul"}
        return {
            table: output
            for table in tables
            for weights, output in products.items()
            if self._is_large_table(weights) and np.array_equal(self._values(table).T, self._values(weights))
        }

    def _lookup(self, node: onnx.NodeProto) -> None:
        table, ids = node.input
        output = node.output[0]
        if table in self.output_layers:
            self._look_up_columns(self.output_layers[table], ids, output)
        elif (coded := to_codes(self._values(table))) is not None:
            self._look_up_codes(table, coded, ids, output)
        else:
            data, scales = to_int8(self._values(table), 127, axis=1)
            self._add("Gather", [self._constant(f"{table}/int8", data), ids], f"{output}/rows")
            self._add("Cast", [f"{output}/rows"], f"{output}/float", to=onnx.TensorProto.FLOAT)
            self._add("Gather", [self._constant(f"{table}/scales", scales), ids], f"{output}/row_scales")
            self._add("Mul", [f"{output}/float", f"{output}/row_scales"], output)

    def _look_up_columns(self, product: str, ids: str, output: str) -> None:
        """Read from the weights of a product, whose columns are the words: (width, words)."""
        self._add("Gather", [f"{product}/weights", ids], f"{output}/columns", axis=1)
        self._add("Transpose", [f"{output}/columns"], f"{output}/rows", perm=[1, 2, 0])
        self._add("Cast", [f"{output}/rows"], f"{output}/float", to=onnx.TensorProto.FLOAT)
        self._add("Gather", [f"{product}/scales", ids], f"{output}/flat_scales")
        last = self._constant("last", np.array([-1], np.int64))
        self._add("Unsqueeze", [f"{output}/flat_scales", last], f"{output}/row_scales")
        self._add("Mul", [f"{output}/float", f"{output}/row_scales"], output)

    def _look_up_codes(self, table: str, coded: tuple[npt.NDArray[np.uint8], Floats], ids: str, output: str) -> None:
        codes, pairs = coded
        starts = np.arange(codes.shape[1], dtype=np.int32) * CODES
        self._add("Gather", [self._constant(f"{table}/codes", codes), ids], f"{output}/bytes")
        self._add("Cast", [f"{output}/bytes"], f"{output}/codes", to=onnx.TensorProto.INT32)
        self._add("Add", [f"{output}/codes", self._constant(f"{table}/starts", starts)], f"{output}/places")
        self._add("Gather", [self._constant(f"{table}/pairs", pairs), f"{output}/places"], f"{output}/pairs")
        shape = self._constant(f"rows_{2 * codes.shape[1]}", np.array([0, 0, 2 * codes.shape[1]], np.int64))
        self._add("Reshape", [f"{output}/pairs", shape], output)

    def _is_converted(self, weights: str) -> bool:
        return self._is_large_table(weights) if self.only_tables else weights in self.constants

    def _is_large_table(self, name: str) -> bool:
        tensor = self.constants.get(name)
        return tensor is not None and len(tensor.dims) == 2 and int(np.prod(tensor.dims)) >= LARGE_TABLE_VALUES

    def _values(self, name: str) -> Floats:
        values: Floats = numpy_helper.to_array(self.constants[name]).astype(np.float32)
        return values

    def _constant(self, name: str, value: npt.ArrayLike) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))


def to_int8(values: Floats, limit: int, axis: int) -> tuple[npt.NDArray[np.int8], Floats]:
    """Round `values` to -limit..limit, one scale for each slice along the other axis than `axis`.

    Shape:
        values: (rows, columns) float32.
        returns: (rows, columns) int8, and (1, columns) float32 for axis 0 or (rows, 1) for axis 1.
    """
    scales = np.maximum(np.abs(values).max(axis, keepdims=True), 1e-12) / limit
    return np.round(values / scales).astype(np.int8), scales.astype(np.float32)


def to_codes(table: Floats) -> tuple[npt.NDArray[np.uint8], Floats] | None:
    """Return a byte for each pair of columns, and the pairs that the bytes stand for; None if that is impossible.

    Shape:
        table: (rows, columns) float32.
        returns: (rows, columns / 2) uint8, and (columns / 2 * 256, 2) float32.
    """
    if table.shape[1] % 2:
        return None
    count = table.shape[1] // 2
    codes, pairs = np.zeros((len(table), count), np.uint8), np.zeros((count, CODES, 2), np.float32)
    for place in range(count):
        values, found = np.unique(table[:, 2 * place : 2 * place + 2], axis=0, return_inverse=True)
        if len(values) > CODES:
            return None
        codes[:, place], pairs[place, : len(values)] = found.reshape(-1), values
    return codes, pairs.reshape(-1, 2)


# ---------------------------------------------------------------------------------------------------- checking


class Collection(NamedTuple):
    """A test collection's judged queries with their first-stage candidates, tokenised."""

    qrels: dict[str, dict[str, int]]
    candidates: dict[str, list[str]]
    pairs: dict[str, list[Encoding]]


def check(collection_folder: Path, output: Path, fp32_folder: Path) -> None:
    """Print how the int8 model compares with fp32: ranking, logits, time."""
    paths = {"fp32": fp32_folder / "onnx" / "model.onnx", "int8": output / MODEL_FILE}
    sessions = {name: load(path) for name, path in paths.items()}
    collection = read_collection(collection_folder, output / "tokenizer.json")
    logits = {name: score_all(session, collection) for name, session in sessions.items()}
    first_stage = {query: -np.arange(len(ids), dtype=np.float32) for query, ids in collection.candidates.items()}
    print(f"\n{len(collection.pairs)} queries, onnxruntime {onnxruntime.__version__}\n\nnDCG@10")
    for name, scores in {"first stage": first_stage, **logits}.items():
        print(f"  {name:12} {ndcg_at_10(collection, scores):.4f}")
    print_differences(collection, logits["fp32"], logits["int8"], sessions["int8"])
    print_times(collection, sessions)
    print("\nnew process, ms from the first import to the first score (median of 7)")
    for name, path in paths.items():
        print(f"  {name:12} {median(start_ms(path, output / 'tokenizer.json') for _ in range(7)):.0f}")


def read_collection(folder: Path, tokenizer_path: Path) -> Collection:
    """Read and tokenise the queries that have judgements."""

    def rows(name: str) -> list[list[str]]:
        return [line.split("\t") for line in (folder / name).read_text(encoding="utf-8").splitlines()]

    queries, passages = read_texts(folder / "queries.jsonl.gz"), read_texts(folder / "corpus.jsonl.gz")
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for query, passage, grade in rows("qrels.tsv"):
        qrels[query][passage] = int(grade)
    candidates: dict[str, list[str]] = defaultdict(list)
    for query, passage, *_ in rows("run.tsv"):
        if query in qrels:
            candidates[query].append(passage)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer.enable_truncation(MAX_LENGTH_TOKENS, strategy="only_second")
    pairs = {
        query: tokenizer.encode_batch([(queries[query], passages[passage]) for passage in ids])
        for query, ids in candidates.items()
    }
    return Collection(qrels, candidates, pairs)


def load(path: Path) -> onnxruntime.InferenceSession:
    """Open a model with onnxruntime's own settings."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def score(session: onnxruntime.InferenceSession, pairs: list[Encoding], budget_tokens: int = 1024) -> Floats:
    """Score pairs in length-sorted batches of at most `budget_tokens` padded tokens; 1 scores each alone."""
    known = [given.name for given in session.get_inputs()]
    logits = np.zeros(len(pairs), np.float32)
    batch: list[int] = []
    for index in sorted(range(len(pairs)), key=lambda index: len(pairs[index].ids)):
        if batch and (len(batch) + 1) * len(pairs[index].ids) > budget_tokens:
            logits[batch] = run(session, [pairs[i] for i in batch], known)
            batch = []
        batch.append(index)
    if batch:
        logits[batch] = run(session, [pairs[i] for i in batch], known)
    return logits


def run(session: onnxruntime.InferenceSession, pairs: list[Encoding], names: list[str]) -> Floats:
    """Score one batch, padded to its longest pair."""
    shape = (len(pairs), max(len(pair.ids) for pair in pairs))
    feed = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for row, pair in enumerate(pairs):
        feed["input_ids"][row, : len(pair.ids)] = pair.ids
        feed["attention_mask"][row, : len(pair.ids)] = 1
        feed["token_type_ids"][row, : len(pair.ids)] = pair.type_ids
    logits: Floats = session.run(["logits"], {name: feed[name] for name in names})[0]
    return logits[:, 0]


def score_all(session: onnxruntime.InferenceSession, collection: Collection) -> dict[str, Floats]:
    """Score every query's candidates."""
    return {query: score(session, pairs) for query, pairs in collection.pairs.items()}


def ndcg_at_10(collection: Collection, scores: dict[str, Floats]) -> float:
    """Mean nDCG@10 of the candidates ordered by `scores`."""
    import ir_measures

    ranked = {
        query: dict(zip(collection.candidates[query], values.tolist(), strict=True)) for query, values in scores.items()
    }
    return float(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], collection.qrels, ranked)[ir_measures.nDCG @ 10])


def print_differences(
    collection: Collection,
    fp32: dict[str, Floats],
    int8: dict[str, Floats],
    session: onnxruntime.InferenceSession,
) -> None:
    """Print how far the int8 logits are from fp32, and from themselves in other batches."""
    differences = np.concatenate([np.abs(int8[query] - fp32[query]) for query in fp32])
    shared = [len(top_3(int8[query]) & top_3(fp32[query])) / 3 for query in fp32]
    some = list(fp32)[:10]
    alone = [np.abs(score(session, collection.pairs[query], budget_tokens=1) - int8[query]).max() for query in some]
    print("\nlogits, int8 against fp32")
    print(f"  standard deviation of fp32  {np.concatenate(list(fp32.values())).std():.2f}")
    print(f"  mean, largest difference    {differences.mean():.3f}, {differences.max():.3f}")
    print(f"  top 3 in common             {np.mean(shared):.1%}")
    print(f"  int8 in a batch and alone   {max(alone):.2g} apart at most ({len(some)} queries)")


def top_3(logits: Floats) -> set[int]:
    """Positions of the three best candidates."""
    return set(np.argsort(-logits, kind="stable")[:3].tolist())


def print_times(collection: Collection, sessions: dict[str, onnxruntime.InferenceSession]) -> None:
    """Time both models on the same pairs, in turn, so that a busy machine slows both."""
    longest = sorted((pair for pairs in collection.pairs.values() for pair in pairs), key=lambda pair: -len(pair.ids))
    groups = {
        "first 20 candidates": [pairs[:20] for pairs in list(collection.pairs.values())[:10]],
        "20 long passages": [longest[start::10][:20] for start in range(10)],
    }
    print("\nms for 20 pairs, median, batches of 1,024 padded tokens, models alternating")
    for title, group in groups.items():
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for pairs in group * 3:
            for name, session in sessions.items():
                start = time.perf_counter()
                score(session, pairs)
                times[name].append(1000 * (time.perf_counter() - start))
        tokens = median(sum(len(pair.ids) for pair in pairs) for pairs in group)
        row = ", ".join(f"{name} {median(values):.0f}" for name, values in times.items())
        print(f"  {title} ({tokens:.0f} tokens): {row}")


def start_ms(model: Path, tokenizer: Path) -> float:
    """Time from the first import to the first score, in a separate process."""
    code = (
        "import time; start = time.perf_counter()\n"
        "import sys, numpy, onnxruntime, tokenizers\n"
        "pair = tokenizers.Tokenizer.from_file(sys.argv[2]).encode('a query', 'a short passage')\n"
        "model = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "given = {'input_ids': pair.ids, 'attention_mask': pair.attention_mask, 'token_type_ids': pair.type_ids}\n"
        "model.run(None, {i.name: numpy.array([given[i.name]]) for i in model.get_inputs()})\n"
        "print(1000 * (time.perf_counter() - start))\n"
    )
    command = [sys.executable, "-c", code, str(model), str(tokenizer)]
    # The command is fixed in this file; only its two paths vary.
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603


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
            check(arguments.check, arguments.output, fp32_folder)


if __name__ == "__main__":
    main()
