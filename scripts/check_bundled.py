"""Compares the int8 model that build_bundled.py has written with its fp32 graph."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Encoding, Tokenizer

from marcorank import Reranker
from marcorank.evaluation import evaluate_runs, read_collection

if TYPE_CHECKING:
    from marcorank.evaluation import Collection

# Logits by query_id and doc_id, best first.
Run = dict[str, dict[str, float]]
# For the times, and for the scores of single pairs.
SOME_QUERIES = 10
SOME_PASSAGES = 20
REPEATS = 3
STARTS = 7
MODEL_FILE = Path("onnx", "model_int8.onnx")
MAX_LENGTH_TOKENS = 512


def check(collection_folder: Path, fp32_folder: Path, int8_folder: Path) -> None:
    """Print how the int8 model compares with fp32 on a collection: ranking, logits, time."""
    collection = read_collection(collection_folder)
    with (
        Reranker(fp32_folder, backend="onnx", precision="fp32") as fp32,
        Reranker(int8_folder, backend="onnx", precision="int8") as int8,
    ):
        runs = {name: rerank(model, collection) for name, model in (("fp32", fp32), ("int8", int8))}
        measured = evaluate_runs(
            {"first stage": collection.run, **runs}, collection.qrels, measures=["nDCG@10", "nDCG@3"]
        )
        print(f"\n{measured}")
        print_differences(runs["fp32"], runs["int8"])
        print_batch_differences(int8_folder, collection)
        print_times(collection, {"fp32": fp32, "int8": int8}, truncating_tokenizer(int8_folder))
    print(f"\nnew process, ms from the first import to the first score (median of {STARTS})")
    for name, folder in (("fp32", fp32_folder), ("int8", int8_folder)):
        print(f"  {name}  {median(start_ms(folder, name) for _ in range(STARTS)):.0f}")


def rerank(model: Reranker, collection: Collection) -> Run:
    """Rank every query's candidates."""
    found: Run = {}
    for query_id, candidates in collection.run.items():
        doc_ids = list(candidates)
        ranking = model.rank(collection.queries[query_id], texts(collection, query_id))
        found[query_id] = {doc_ids[result.index]: result.logit for result in ranking}
    return found


def texts(collection: Collection, query_id: str) -> list[str]:
    """Return the texts of a query's candidates."""
    return [collection.passages[doc_id] for doc_id in collection.run[query_id]]


def print_differences(fp32: Run, int8: Run) -> None:
    """Print how far the int8 logits are from fp32."""
    pairs = [(query_id, doc_id) for query_id, logits in fp32.items() for doc_id in logits]
    exact = np.array([fp32[query_id][doc_id] for query_id, doc_id in pairs])
    differences = np.abs(exact - [int8[query_id][doc_id] for query_id, doc_id in pairs])
    shared = [len({*list(fp32[query_id])[:3]} & {*list(int8[query_id])[:3]}) / 3 for query_id in fp32]
    print("\nlogits, int8 against fp32")
    print(f"  standard deviation of fp32  {exact.std():.2f}")
    print(f"  mean, largest difference    {differences.mean():.3f}, {differences.max():.3f}")
    print(f"  top 3 in common             {np.mean(shared):.1%}")


def print_batch_differences(folder: Path, collection: Collection) -> None:
    """Print how far logits from padded batches are from those of single pairs, in bare onnxruntime.

    `Reranker` reads the pairs of most models one at a time on a CPU.
    """
    tokenizer = truncating_tokenizer(folder)
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    query_ids = list(collection.run)[:SOME_QUERIES]
    furthest = 0.0
    for query_id in query_ids:
        pairs = [(collection.queries[query_id], text) for text in texts(collection, query_id)[:SOME_PASSAGES]]
        tokenizer.no_padding()
        alone = np.concatenate([logits(session, [tokenizer.encode(*pair)]) for pair in pairs])
        tokenizer.enable_padding()
        furthest = max(furthest, float(np.abs(logits(session, tokenizer.encode_batch(pairs)) - alone).max()))
    print(f"  int8 in a batch and alone   {furthest:.2g} apart at most ({len(query_ids)} queries)")


def truncating_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a model, with the maximum length that `Reranker` has by default."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH_TOKENS, strategy="only_second")
    return tokenizer


def logits(session: onnxruntime.InferenceSession, pairs: list[Encoding]) -> npt.NDArray[np.float32]:
    """Score pairs, padded to equal length, in one batch."""
    given = {
        "input_ids": [pair.ids for pair in pairs],
        "attention_mask": [pair.attention_mask for pair in pairs],
        "token_type_ids": [pair.type_ids for pair in pairs],
    }
    found: npt.NDArray[np.float32] = session.run(
        ["logits"], {one.name: np.array(given[one.name], np.int64) for one in session.get_inputs()}
    )[0]
    return found[:, 0]


def print_times(collection: Collection, models: dict[str, Reranker], tokenizer: Tokenizer) -> None:
    """Time both models on the same requests, in turn, so that a busy machine slows both."""
    candidates = {query_id: texts(collection, query_id) for query_id in list(collection.run)[:SOME_QUERIES]}
    groups = {
        "first candidates": {query_id: found[:SOME_PASSAGES] for query_id, found in candidates.items()},
        "longest candidates": {
            query_id: sorted(found, key=len)[-SOME_PASSAGES:] for query_id, found in candidates.items()
        },
    }
    print(f"\nms for {SOME_PASSAGES} passages, median, models alternating")
    for title, requests in groups.items():
        times: dict[str, list[float]] = {name: [] for name in models}
        for query_id, passages in list(requests.items()) * REPEATS:
            for name, model in models.items():
                start = time.perf_counter()
                model.score(collection.queries[query_id], passages)
                times[name].append(1000 * (time.perf_counter() - start))
        tokens = median(
            count_tokens(tokenizer, collection.queries[query_id], found) for query_id, found in requests.items()
        )
        row = ", ".join(f"{name} {median(values):.0f}" for name, values in times.items())
        print(f"  {title} ({tokens:.0f} tokens): {row}")


def count_tokens(tokenizer: Tokenizer, query: str, passages: list[str]) -> int:
    """Count the tokens that a model reads for these passages."""
    return sum(len(pair.ids) for pair in tokenizer.encode_batch([(query, passage) for passage in passages]))


def start_ms(folder: Path, precision: str) -> float:
    """Time from the first import to the first score, in a separate process."""
    code = (
        "import time; start = time.perf_counter()\n"
        "import sys\n"
        "from marcorank import Reranker\n"
        "with Reranker(sys.argv[1], backend='onnx', precision=sys.argv[2]) as reranker:\n"
        "    reranker.score('a query', ['a short passage'])\n"
        "    print(1000 * (time.perf_counter() - start))\n"
    )
    command = [sys.executable, "-c", code, str(folder), precision]
    # The command is fixed in this file; only its two arguments vary.
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603
