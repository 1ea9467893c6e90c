"""Train a small cross-encoder on your own questions, on a CPU in an hour or two.

    python examples/train_reranker.py MY_COLLECTION --output my-reranker
    marcorank rerank --model my-reranker "how do I open a file?" passages.txt

A collection is a folder with `corpus.jsonl.gz` (one object per line: id, text) and `train.jsonl.gz` (query, pos, neg:
ids of passages that answer the query and, if you have them, of some that do not). `NAME=1000` after `--limit` uses at
most 1,000 queries of the collection NAME.

How it works: a bi-encoder mines hard negatives. A passage that it scores clearly above the answer is left out, because
it may be an answer too. The model then learns to rank the answer above seven negatives (ListNet). If it starts
from a bi-encoder, it gets the head of `marcorank.interaction`, and ranks as well as that before the first step.
If you stop it with Ctrl-C, the same command resumes from the last checkpoint.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.cross_encoder.losses import ListNetLoss
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint

from marcorank.interaction import InteractionBertConfig, InteractionBertForSequenceClassification

# Passages to search for the negatives of a query, and how many of the best to consider.
SEARCH_DEPTH = 20
# Negatives from the hardest of these, from the others, and from other collections.
HARD, LESS_HARD, FOREIGN = 4, 2, 1
HARDEST = 10
# Weight of the labels in the target. The rest are the bi-encoder's scores: some negatives are unlabelled answers.
SHARE_OF_THE_ANSWER = 0.6
COSINE_FACTOR = 20.0
# A passage that is this much more similar than the answer may be an answer too.
SUSPICIOUS = 0.1
HELD_OUT_SHARE, HELD_OUT_MOST = 0.02, 20
# Words that people leave out when they type a query.
FILLERS = frozenset(
    "a an the is are was were do does did of to in on for what which who how when where why can i my it".split()  # noqa: SIM905
)


class Collection(NamedTuple):
    """The texts of the passages, and the training queries."""

    name: str
    texts: dict[str, str]
    queries: list[dict[str, Any]]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_collection(folder: Path, limit: int | None, chance: random.Random) -> Collection:
    """Read a collection, or a random sample of its queries."""
    queries = read_rows(folder / "train.jsonl.gz")
    if limit is not None and limit < len(queries):
        queries = chance.sample(queries, limit)
    texts = {row["id"]: row["text"] for row in read_rows(folder / "corpus.jsonl.gz")}
    return Collection(folder.name, texts, queries)


def groups_of(
    collection: Collection, bi_encoder: SentenceTransformer, foreign: list[str], chance: random.Random
) -> list[dict[str, Any]]:
    """Build groups of a passage that answers a query, first, and its negatives."""
    ids = list(collection.texts)
    place = {passage: number for number, passage in enumerate(ids)}
    settings = {"normalize_embeddings": True, "batch_size": 64, "show_progress_bar": False}
    with torch.autocast(bi_encoder.device.type, torch.bfloat16):
        passages = bi_encoder.encode(list(collection.texts.values()), **settings)
        queries = bi_encoder.encode([row["query"] for row in collection.queries], **settings)
    groups = []
    for row, direction in zip(collection.queries, queries, strict=True):
        right = [place[passage] for passage in row["pos"] if passage in place]
        if not right:
            continue
        answer = chance.choice(right)
        similar = passages @ direction
        found = np.argpartition(-similar, min(SEARCH_DEPTH, len(ids) - 1))[:SEARCH_DEPTH].tolist()
        given = [place[passage] for passage in row.get("neg", [])[:SEARCH_DEPTH] if passage in place]
        wrong = [number for number in {*found, *given} - {*right} if similar[number] < similar[answer] + SUSPICIOUS]
        wrong.sort(key=lambda number: -similar[number])
        chosen = chance.sample(wrong[:HARDEST], min(HARD, len(wrong[:HARDEST])))
        rest = [number for number in wrong if number not in chosen]
        chosen += chance.sample(rest, min(HARD + LESS_HARD - len(chosen), len(rest)))
        strangers = chance.sample(foreign, HARD + LESS_HARD + FOREIGN - len(chosen))
        cosines = np.array([*similar[[answer, *chosen]], *[0.0] * len(strangers)]) * COSINE_FACTOR
        target = (1 - SHARE_OF_THE_ANSWER) * np.exp(cosines - cosines.max()) / np.exp(cosines - cosines.max()).sum()
        target[0] += SHARE_OF_THE_ANSWER
        groups.append(
            {
                "collection": collection.name,
                "query": as_typed(row["query"], chance),
                "docs": [*(collection.texts[ids[number]] for number in [answer, *chosen]), *strangers],
                # ListNet applies a softmax to the labels, and the softmax of the logarithm is the target itself.
                "labels": np.log(target + 1e-9).round(4).tolist(),
            }
        )
    return groups


def as_typed(query: str, chance: random.Random) -> str:
    """Return the query unchanged, without its question mark, or as keywords."""
    kind = chance.random()
    if kind < 0.5:
        return query
    bare = query.rstrip(" ?")
    words = [word for word in bare.split() if word.lower() not in FILLERS]
    return " ".join(words) if kind > 0.85 and len(words) > 1 else bare


def prepare(args: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return training groups and held-out groups; they are built once and saved in the output folder."""
    kept = [folder / "groups.jsonl.gz", folder / "held-out.jsonl.gz"]
    if not all(file.exists() for file in kept):
        chance = random.Random(args.seed)  # noqa: S311
        limits = {name: int(most) for name, _, most in (limit.partition("=") for limit in args.limit)}
        collections = [read_collection(path, limits.get(path.name), chance) for path in args.collections]
        bi_encoder = SentenceTransformer(args.bi_encoder)
        bi_encoder.max_seq_length = args.max_length
        everything = [text for collection in collections for text in collection.texts.values()]
        learn, held_out = [], []
        for collection in tqdm(collections, desc="Finding wrong answers", unit="collection"):
            groups = groups_of(collection, bi_encoder, everything, chance)
            chance.shuffle(groups)
            count = min(HELD_OUT_MOST, round(len(groups) * HELD_OUT_SHARE))
            held_out += groups[:count]
            learn += groups[count:]
        chance.shuffle(learn)
        for file, groups in zip(kept, (learn, held_out), strict=True):
            part = file.with_suffix(".part")
            with gzip.open(part, "wt", encoding="utf-8") as lines:
                lines.writelines(json.dumps(group, ensure_ascii=False) + "\n" for group in groups)
            part.replace(file)
    learn, held_out = map(read_rows, kept)
    return learn, held_out


def start_model(start: str, groups: list[dict[str, Any]], max_length: int, folder: Path) -> CrossEncoder:
    """Return the cross-encoder to train: the given one, or one built from the given bi-encoder."""
    config = AutoConfig.from_pretrained(start)
    if config.model_type == "bert" and not any("Classification" in name for name in config.architectures or []):
        config = InteractionBertConfig.from_pretrained(start, num_labels=1)
        model = InteractionBertForSequenceClassification.from_pretrained(start, config=config)
        tokenizer = AutoTokenizer.from_pretrained(start)
        texts = list(dict.fromkeys(text for group in groups for text in group["docs"]))[:50_000]
        seen: Counter[int] = Counter()
        for ids in tokenizer(texts, add_special_tokens=False, truncation=True, max_length=256)["input_ids"]:
            seen.update(set(ids))
        model.set_word_weights([seen[number] for number in range(config.vocab_size)], len(texts))
        model.save_pretrained(folder / "start")
        tokenizer.save_pretrained(folder / "start")
        start = str(folder / "start")
    return CrossEncoder(start, num_labels=1, max_length=max_length, activation_fn=torch.nn.Identity())


def evaluator(groups: list[dict[str, Any]]) -> CrossEncoderRerankingEvaluator:
    """Return an evaluator that measures how often the answer is ranked first."""
    samples = [
        {"query": group["query"], "positive": group["docs"][:1], "negative": group["docs"][1:]} for group in groups
    ]
    return CrossEncoderRerankingEvaluator(samples, at_k=8, name="held-out", show_progress_bar=False)


def main() -> None:
    """Parse the command line, prepare, train, evaluate, and save."""
    parser = argparse.ArgumentParser(description="Train a small cross-encoder on your own questions.")
    parser.add_argument(
        "collections", nargs="+", type=Path, metavar="COLLECTION", help="folder with corpus and queries"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the model and of its checkpoints")
    parser.add_argument("--limit", nargs="*", default=[], metavar="NAME=N", help="most queries of a collection")
    parser.add_argument("--start", default="sentence-transformers/all-MiniLM-L6-v2", help="bi-encoder or cross-encoder")
    parser.add_argument("--bi-encoder", default="sentence-transformers/all-MiniLM-L6-v2", help="finds wrong answers")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of query and passage in training")
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many (default: one epoch; 0: no training)")
    parser.add_argument("--batch-size", type=int, default=8, help="queries a step, each with its eight passages")
    parser.add_argument("--learning-rate", type=float, default=4e-5)
    parser.add_argument("--save-steps", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    learn, held_out = prepare(args, args.output)
    print(f"{len(learn):,} queries to learn from, {len(held_out)} held out")
    model = start_model(args.start, learn, args.max_length, args.output)
    if args.steps == 0:
        model.save_pretrained(str(args.output))
        print(f"Saved as it starts, untrained, to {args.output}")
        return
    # Words that are not in the training data keep their embeddings relative to those that are.
    model.model.get_input_embeddings().weight.requires_grad = False
    measure = evaluator(held_out)
    before = measure(model)
    training = CrossEncoderTrainingArguments(
        output_dir=str(args.output / "checkpoints"),
        num_train_epochs=1,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        # A new head needs a higher learning rate than the layers below it.
        learning_rate_mapping={r"gates|similarities|classifier": 50 * args.learning_rate, "word_weights": 5e-4},
        warmup_steps=100,
        weight_decay=0.01,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=args.seed,
        save_steps=args.save_steps,
        logging_steps=50,
        report_to="none",
    )
    trainer = CrossEncoderTrainer(
        model=model,
        args=training,
        train_dataset=Dataset.from_list(
            [{name: group[name] for name in ("query", "docs", "labels")} for group in learn]
        ),
        loss=ListNetLoss(model, mini_batch_size=-1),
    )
    trainer.train(
        resume_from_checkpoint=get_last_checkpoint(training.output_dir) if Path(training.output_dir).exists() else None
    )
    after = measure(model)
    for name, value in after.items():
        print(f"{name}: {before[name]:.4f} -> {value:.4f}")
    model.save_pretrained(str(args.output))
    print(f"Saved to {args.output}")


if __name__ == "__main__":
    main()
