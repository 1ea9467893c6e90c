"""Scale the logits of the source of a bundled model, so that their standard deviation is 4.

    python scripts/calibrate_bundled.py SOURCE_FOLDER COLLECTION...

Each collection is a folder with corpus.jsonl.gz (one object per line: `id`, `text`) and train.jsonl.gz (`query`, `pos`,
`neg`: ids of passages that answer the query, and of others that BM25 finds). A candidate with logit 0 becomes as likely
relevant as not, if one in five is. Each collection gives the same number of queries, drawn at random, with up to two
answers and as many others as make 20 candidates. The order of passages does not change.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from calibration import fit
from json_lines import read_rows, read_texts
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification

import marcorank.interaction  # noqa: F401  # registers the architectures with transformers
from marcorank import Reranker
from marcorank._models.export import export_onnx

ANSWERS, CANDIDATES = 2, 20


def main() -> None:
    """Parse the command line, score, and save the scaled layer."""
    parser = argparse.ArgumentParser(description="Scale the logits of the source of a bundled model.")
    parser.add_argument("source", type=Path, help="folder written by initialise_bundled.py or initialise_tiny.py")
    parser.add_argument("collections", nargs="+", type=Path, metavar="COLLECTION", help="folder of a training set")
    parser.add_argument("--queries", type=int, default=5, help="of each collection (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    chance = random.Random(args.seed)  # noqa: S311  # not for secrets
    drawn = [row for folder in args.collections for row in draw(folder, args.queries, chance)]
    logits: list[float] = []
    answers: list[bool] = []
    with tempfile.TemporaryDirectory() as fp32:
        export_onnx(args.source, Path(fp32))
        with Reranker(fp32, backend="onnx") as reranker:
            for query, passages, answer_count in tqdm(drawn, "queries"):
                logits += reranker.score(query, passages).tolist()
                answers += [number < answer_count for number in range(len(passages))]
    found = fit(np.array(logits), np.array(answers))
    print(f"{len(drawn):,} queries, {len(answers):,} candidates, {sum(answers):,} of them answers\n{found}")
    model = AutoModelForSequenceClassification.from_pretrained(args.source)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.startswith(("similarities.", "classifier.")):
                values.mul_(found.scale)
        model.similarities.bias.sub_(found.zero * found.scale)
    model.save_pretrained(args.source)


def draw(folder: Path, count: int, chance: random.Random) -> list[tuple[str, list[str], int]]:
    """Draw queries. Return each with its passages, answers first, and the number of answers."""
    passages = read_texts(folder / "corpus.jsonl.gz")
    rows = read_rows(folder / "train.jsonl.gz")
    drawn = []
    for row in chance.sample(rows, min(count, len(rows))):
        answers = row["pos"][:ANSWERS]
        ids = [*answers, *row["neg"]][:CANDIDATES]
        drawn.append((row["query"], [passages[passage_id] for passage_id in ids], len(answers)))
    return drawn


if __name__ == "__main__":
    main()
