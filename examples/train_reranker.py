"""Train a small cross-encoder on your own questions with the scores of larger or slower models, its teachers.

    python examples/train_reranker.py MY_COLLECTION --output my-reranker
    marcorank rerank --model my-reranker "how do I open a file?" passages.txt

A collection is a folder with `corpus.jsonl.gz` (one object per line: id, text) and `train.jsonl.gz` (query and, if you
have them, pos and neg: ids of passages that answer the query and of some that do not). `NAME=1000` after `--limit` uses
at most 1,000 queries of the collection NAME.

How it works: BM25 and a bi-encoder find candidates for each question, and every teacher scores them: bi-encoders,
SPLADE models and any model that `Reranker` loads. The model then learns the mean of the teachers' scores, with a small
bonus for passages that are labelled as answers. At the end its last layer is scaled so that `activation="sigmoid"` and
a threshold of 0 fit. If you stop it, the same command resumes from the last checkpoint; the scores are kept, too.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.cross_encoder.losses import MarginMSELoss
from teachers import Encoder, RerankerTeacher, Scores, Teacher, mine, read_collection
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from marcorank.evaluation import Collection as JudgedCollection
from marcorank.evaluation import calibrate

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The logits of MS MARCO cross-encoders have about this standard deviation.
LOGIT_STD = 4.0
# What a label adds to the teachers' score of a passage, in logits. More of it teaches the gaps of the labels, too.
LABEL_BONUS = 1.5
MARGIN_SHARE = 0.2
# Candidates of a question that are compared in one step.
TOGETHER = 16
HELD_OUT_SHARE, MAX_HELD_OUT = 0.05, 500
# Words that people leave out when they type a query.
FILLERS = frozenset(
    "a an the is are was were do does did of to in on for what which who how when where why can i my it".split()  # noqa: SIM905
)


class TrainingData(NamedTuple):
    """Questions with their candidates and what the teachers say about them; one row for each question.

    Attributes:
        questions: The texts.
        passages: The texts of each question's candidates.
        targets: The logits to learn.
        labels: Which candidates are known answers.
    """

    questions: list[str]
    passages: list[list[str]]
    targets: Scores
    labels: NDArray[np.bool_]

    def part(self, rows: slice) -> TrainingData:
        """Return some of the questions."""
        return TrainingData(self.questions[rows], self.passages[rows], self.targets[rows], self.labels[rows])

    def dataset(self, chance: random.Random) -> Dataset:
        """Return the rows of a training set: a question and some of its candidates, so that each is seen once."""
        rows = []
        for number, question in enumerate(self.questions):
            order = chance.sample(range(len(self.passages[number])), len(self.passages[number]))
            size = min(TOGETHER, len(order))
            for start in range(0, len(order) - size + 1, size):
                chosen = order[start : start + size]
                rows.append(
                    {
                        "query": as_typed(question, chance),
                        "docs": [self.passages[number][index] for index in chosen],
                        "labels": self.targets[number, chosen].tolist(),
                    }
                )
        return Dataset.from_list(chance.sample(rows, len(rows)))


def as_typed(query: str, chance: random.Random) -> str:
    """Return the query unchanged, without its question mark, or as keywords."""
    kind = chance.random()
    if kind < 0.5:
        return query
    bare = query.rstrip(" ?")
    words = [word for word in bare.split() if word.lower() not in FILLERS]
    return " ".join(words) if kind > 0.9 and len(words) > 1 else bare


def prepare(args: argparse.Namespace) -> TrainingData:
    """Find candidates and let the teachers score them, or read what an earlier run saved."""
    chance = random.Random(args.seed)  # noqa: S311
    limits = {name: int(limit) for name, _, limit in (given.partition("=") for given in args.limit)}
    collection = read_collection(args.collections, limits, chance)
    chance.shuffle(collection.questions)
    encoders = [Encoder(name, SentenceTransformer, args.max_length) for name in args.bi_encoder]
    teachers: list[Teacher] = [
        *encoders,
        *(Encoder(name, SparseEncoder, args.max_length) for name in args.sparse_encoder),
        *(RerankerTeacher(name, args.max_length) for name in args.reranker),
    ]
    if not teachers:
        raise SystemExit("No teacher: name at least one with --bi-encoder, --sparse-encoder or --reranker.")
    cache = args.output / "teachers"
    cache.mkdir(parents=True, exist_ok=True)
    candidates = mine(collection, encoders[0] if encoders else None, cache, args.seed)
    labels = np.array(
        [np.isin(found, question.answers) for found, question in zip(candidates, collection.questions, strict=True)]
    )
    scores = [teacher.scores(collection, candidates, cache) for teacher in teachers]
    for teacher, values in zip(teachers, scores, strict=True):
        print(f"{teacher.name}: {share_on_top(values, labels)}")
    return TrainingData(
        [question.text for question in collection.questions],
        [[collection.passages[index] for index in found] for found in candidates],
        targets_of(scores, labels),
        labels,
    )


def targets_of(scores: list[Scores], labels: NDArray[np.bool_]) -> Scores:
    """Return the mean of the teachers' scores on the scale of logits, with the bonus of the labels."""
    mean = np.mean([values / spread(values) for values in scores], axis=0)
    targets: Scores = (mean * LOGIT_STD / spread(mean) + LABEL_BONUS * labels).astype(np.float32)
    return targets


def spread(scores: Scores) -> float:
    """Return the mean standard deviation of the scores of one question's candidates."""
    return max(float(scores.std(axis=1).mean()), 1e-6)


def share_on_top(scores: Scores, labels: NDArray[np.bool_]) -> str:
    """Say how well scores agree with the labels."""
    known = labels.any(axis=1)
    if not known.any():
        return f"{scores.size:,} scores"
    first = np.take_along_axis(labels, scores.argmax(axis=1)[:, None], axis=1)[known].mean()
    return f"{scores.size:,} scores; a known answer comes first for {first:.0%} of the questions"


class DistillationLoss(MarginMSELoss):
    """Learn the teachers' distribution over a question's candidates, and the distances between their scores.

    The distribution (Kullback-Leibler) cares about what is on top, the distances about all candidates. The mean squared
    error of centred logits is half that of all differences between two candidates.
    """

    def forward(self, inputs: list[Any], labels: list[torch.Tensor], **_: Any) -> torch.Tensor:
        """Return the loss of a batch. Shape of the labels: (questions, candidates)."""
        queries, lists = inputs
        pairs = [(query, passage) for query, passages in zip(queries, lists, strict=True) for passage in passages]
        targets = torch.stack(list(labels)).to(self.model.device)
        logits = self.logits_from_pairs(pairs).float().view_as(targets)
        listwise = torch.nn.functional.kl_div(
            logits.log_softmax(1), targets.log_softmax(1), reduction="batchmean", log_target=True
        )
        margins = (logits - logits.mean(1, keepdim=True) - targets + targets.mean(1, keepdim=True)).square().mean()
        return listwise + MARGIN_SHARE * margins


def start_model(start: str, max_length: int, folder: Path) -> CrossEncoder:
    """Return the cross-encoder to train; if `start` is not one, with a new last layer."""
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(start).save_pretrained(folder)
    return CrossEncoder(str(folder), max_length=max_length, activation_fn=torch.nn.Identity())


def reranking_evaluator(held_out: TrainingData) -> CrossEncoderRerankingEvaluator | None:
    """Return an evaluator for the questions with known answers; None if there are none."""
    samples = [
        {
            "query": question,
            "positive": [text for text, label in zip(passages, labels, strict=True) if label],
            "negative": [text for text, label in zip(passages, labels, strict=True) if not label],
        }
        for question, passages, labels in zip(held_out.questions, held_out.passages, held_out.labels, strict=True)
        if labels.any() and not labels.all()
    ]
    return CrossEncoderRerankingEvaluator(samples, at_k=10, name="held-out", write_csv=False) if samples else None


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that was written to its end; its state is written last."""
    complete = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None


def calibrate_last_layer(model: CrossEncoder, held_out: TrainingData) -> None:
    """Scale the logits, and move 0 to where a passage is as likely as not to be a known answer."""
    names = {f"q{number}": question for number, question in enumerate(held_out.questions)}
    pairs = [
        (question, passage)
        for question, passages in zip(held_out.questions, held_out.passages, strict=True)
        for passage in passages
    ]
    logits = model.predict(pairs, activation_fn=torch.nn.Identity()).reshape(held_out.labels.shape).astype(float)
    judged = JudgedCollection(
        name="held-out",
        queries=names,
        passages={},
        qrels={
            query: {f"d{index}": 1 for index in np.flatnonzero(labels)}
            for query, labels in zip(names, held_out.labels, strict=True)
        },
        run={query: {f"d{index}": 0.0 for index in range(logits.shape[1])} for query in names},
    )

    def fit(values: NDArray[np.float64]) -> Any:
        rows = zip(names, values, strict=True)
        return calibrate(
            judged, {query: {f"d{index}": value for index, value in enumerate(row)} for query, row in rows}
        )

    scale = LOGIT_STD / max(float(logits.std()), 1e-6)
    found = fit(logits)
    zero = -found.b / found.a if found else float(logits.mean())
    [last] = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer.out_features == 1]
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.sub_(zero).mul_(scale)
    print(f"Logits scaled by {scale:.3f}, after {-zero:+.3f}")
    after = fit((logits - zero) * scale) if found else None
    if after:
        print(
            f"Expected calibration error on {len(names)} held-out questions: {after.expected_error_sigmoid:.4f} with "
            f"sigmoid, {after.expected_error:.4f} with Logistic({after.a:.3g}, {after.b:.3g})"
        )
    else:
        print("The held-out questions have no known answers to fit probabilities to.")


def main() -> None:
    """Parse the command line, prepare, train, evaluate, calibrate, and save."""
    parser = argparse.ArgumentParser(description="Train a small cross-encoder on your own questions, with teachers.")
    parser.add_argument(
        "collections", nargs="+", type=Path, metavar="COLLECTION", help="folder with corpus and queries"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the model, its checkpoints and scores")
    parser.add_argument(
        "--limit", nargs="*", default=[], metavar="NAME=N", help="maximum number of queries of a collection"
    )
    encoder = "sentence-transformers/all-MiniLM-L6-v2"
    parser.add_argument("--bi-encoder", nargs="*", default=[encoder], help="teachers; the first finds candidates, too")
    parser.add_argument("--sparse-encoder", nargs="*", default=[], help="teachers: SPLADE models")
    parser.add_argument(
        "--reranker", nargs="*", default=["ms-marco-MiniLM-L6-v2"], help="teachers: whatever Reranker loads"
    )
    parser.add_argument("--start", default=encoder, help="model to train: a cross-encoder, or an encoder of any kind")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of query and passage in training")
    parser.add_argument("--epochs", type=float, default=1, help="how often each candidate is seen")
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many; overrides --epochs")
    parser.add_argument(
        "--batch-size", type=int, default=8, help=f"rows a step, each a question with {TOGETHER} candidates"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="small models take up to 5e-4")
    parser.add_argument("--save-steps", type=int, default=200, help="steps between checkpoints and evaluations")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    set_seed(args.seed)
    data = prepare(args)
    count = max(1, min(MAX_HELD_OUT, round(len(data.questions) * HELD_OUT_SHARE)))
    learn, held_out = data.part(slice(count, None)), data.part(slice(count))
    print(f"{len(learn.questions):,} questions to learn from, {count} held out")
    model = start_model(args.start, args.max_length, args.output / "start")
    evaluator = reranking_evaluator(held_out)
    training = CrossEncoderTrainingArguments(
        output_dir=str(args.output / "checkpoints"),
        num_train_epochs=args.epochs,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=20,
        weight_decay=0.01,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        seed=args.seed,
        eval_strategy="steps",
        eval_steps=args.save_steps,
        save_steps=args.save_steps,
        save_total_limit=2,
        logging_steps=50,
        report_to="none",
    )
    chance = random.Random(args.seed)  # noqa: S311
    trainer = CrossEncoderTrainer(
        model=model,
        args=training,
        train_dataset=learn.dataset(chance),
        eval_dataset=held_out.dataset(chance),
        loss=DistillationLoss(model),
        evaluator=evaluator,
    )
    before = trainer.evaluate()
    trainer.train(resume_from_checkpoint=last_checkpoint(args.output / "checkpoints"))
    after = trainer.evaluate()
    for name in ("eval_loss", "eval_held-out_ndcg@10"):
        if name in after:
            print(f"{name.removeprefix('eval_')}: {before[name]:.4f} -> {after[name]:.4f}")
    calibrate_last_layer(model, held_out)
    model.save_pretrained(str(args.output))
    print(f"Saved to {args.output}")


if __name__ == "__main__":
    main()
