"""Train a small cross-encoder that could ship in the wheel, on teacher scores; for your own data see examples/.

    python scripts/train_bundled.py DISTILL_FOLDER COLLECTIONS_FOLDER START_FOLDER --output FOLDER --minutes 600
    python scripts/build_bundled.py FOLDER/model --output OUTPUT_FOLDER

DISTILL_FOLDER holds the questions (queries.jsonl.gz: query, set), the pool of passages (passages.txt.gz: `set/id`) and
candidates.npz: `passage` (numbers of passages in the pool), `bi_encoder`, `splade` (scores of two teachers) and
`labelled` (1 for a known answer), each with one row per question. Further candidates of some questions are taken from
the file after `--more-candidates`: `query` (number of the question), `passage`, `bi_encoder`, `splade`.
COLLECTIONS_FOLDER holds a folder for each set, with corpus.jsonl.gz. START_FOLDER is a BERT with one label.

This is faster than a general trainer, so that hours of a few cores count: the last layer is computed for `[CLS]` alone,
matrix products are in bf16, and each core has a batch of its own. The learning rate falls to 0 at the end of the time
given. The run is saved every four minutes; the same command resumes, with the time that was left. FOLDER/model is the
exponential mean of the weights, calibrated on questions that were held out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import BertForSequenceClassification

# How often questions of a set are drawn, whatever its size; a set that is not named is not used. Search queries first.
WEIGHTS = {
    "web": 10,
    "qed-nq": 4.5,
    "boolq": 2,
    "nq-aquamuse": 1,
    "bioasq": 0.9,
    "medquad": 0.8,
    "stackexchange-small": 0.8,
    "squad-nqg-test": 0.7,
    "squadshifts-new_wiki": 0.7,
    "selqa": 0.7,
    "nq-sure-nonoverlap": 0.6,
    "expertqa": 0.5,
    "pubmedqa": 0.5,
    "covidqa": 0.4,
    "timeqa-human": 0.3,
    "techqa-react-mit": 0.2,
    "zre-wiki": 0.05,
}
CLS, SEP, QUESTION_MARK = 101, 102, 1029
QUESTIONS_A_STEP, CANDIDATES = 16, 16
# Pairs of similar length in one matrix.
CHUNK = 48
LOGIT_STD, LABEL_BONUS = 4.0, 1.5
HELD_OUT = 1500
EMA = 0.9985
SAVE_S, REPORT_S = 240, 60

Pair = tuple[NDArray[np.uint16], NDArray[np.uint16]]


class Lessons(NamedTuple):
    """Tokens of the questions and passages, and each question's candidates with the logits to learn."""

    questions: list[NDArray[np.uint16]]
    passages: list[NDArray[np.uint16]]
    candidates: list[NDArray[np.int32]]
    targets: list[NDArray[np.float32]]
    labelled: NDArray[np.int8]
    weights: NDArray[np.float64]


def read_lessons(distill: Path, collections: Path, more: Path | None, tokenizer: Tokenizer) -> Lessons:
    """Read and tokenise all questions and passages."""
    names = _lines(distill / "passages.txt.gz")
    wanted: dict[str, dict[str, int]] = defaultdict(dict)
    for number, name in enumerate(names):
        folder, _, passage_id = name.partition("/")
        wanted[folder][passage_id] = number
    texts = [""] * len(names)
    for folder, numbers in wanted.items():
        for row in map(json.loads, _lines(collections / folder / "corpus.jsonl.gz")):
            if row["id"] in numbers:
                texts[numbers[row["id"]]] = row["text"]
    rows = [json.loads(line) for line in _lines(distill / "queries.jsonl.gz")]
    sets = np.array([row["set"] for row in rows])
    weights = np.zeros(len(rows))
    for name, weight in WEIGHTS.items():
        weights[sets == name] = weight / max(1, (sets == name).sum())

    # `np.load` reads an array anew at each look-up.
    given = dict(np.load(distill / "candidates.npz"))
    spreads = [float(given[teacher].astype(np.float32).std(1).mean()) for teacher in ("bi_encoder", "splade")]

    def mean_score(scores: dict[str, Any]) -> NDArray[np.float32]:
        mean: NDArray[np.float32] = sum(
            scores[teacher].astype(np.float32) / spread
            for teacher, spread in zip(("bi_encoder", "splade"), spreads, strict=True)
        )
        return mean

    factor = LOGIT_STD / float(mean_score(given).std(1).mean())
    candidates, targets = list(given["passage"]), list(factor * mean_score(given) + LABEL_BONUS * given["labelled"])
    if more:
        found = dict(np.load(more))
        for question, passages, scores in zip(
            found["query"], found["passage"], factor * mean_score(found), strict=True
        ):
            candidates[question] = np.concatenate([candidates[question], passages])
            targets[question] = np.concatenate([targets[question], scores])
    return Lessons(
        _tokens(tokenizer, [row["query"] for row in rows], 40),
        _tokens(tokenizer, texts, 256),
        candidates,
        targets,
        given["labelled"],
        weights / weights.sum(),
    )


def _lines(file: Path) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n") for line in lines]


def _tokens(tokenizer: Tokenizer, texts: list[str], most: int) -> list[NDArray[np.uint16]]:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [np.array(found.ids[:most], np.uint16) for found in tokenizer.encode_batch(texts, add_special_tokens=False)]


class Batch(NamedTuple):
    """Pairs of similar length, padded; `mask` is added to attention scores."""

    ids: torch.Tensor
    segments: torch.Tensor
    mask: torch.Tensor


def pad(pairs: list[Pair], max_length: int) -> Batch:
    """Join and pad pairs; passages are truncated."""
    joined = [
        [CLS, *question.tolist(), SEP, *passage[: max_length - 3 - len(question)].tolist(), SEP]
        for question, passage in pairs
    ]
    longest = max(map(len, joined))
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in joined])
    lengths = torch.tensor([len(tokens) for tokens in joined])[:, None]
    starts = torch.tensor([len(question) + 2 for question, _ in pairs])[:, None]
    positions = torch.arange(longest)[None]
    mask = torch.zeros(ids.shape).masked_fill_(positions >= lengths, -1e4)[:, None, None]
    return Batch(ids, ((positions >= starts) & (positions < lengths)).long(), mask)


def logits_of(model: BertForSequenceClassification, pairs: list[Pair], max_length: int) -> torch.Tensor:
    """Score pairs as the model does, with the last layer for `[CLS]` alone. Shape: (pairs,)."""
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))
    batches = [
        pad([pairs[index] for index in order[start : start + CHUNK]], max_length)
        for start in range(0, len(order), CHUNK)
    ]
    # One look-up: the gradient of the table is as large as the table.
    words = model.bert.embeddings.word_embeddings(torch.cat([batch.ids.reshape(-1) for batch in batches]))
    parts = words.split([batch.ids.numel() for batch in batches])
    with torch.autocast("cpu", torch.bfloat16):
        found = [
            _forward(model, part.view(*batch.ids.shape, -1), batch) for part, batch in zip(parts, batches, strict=True)
        ]
    return torch.cat(found).float()[torch.tensor(order).argsort()]


def _forward(model: BertForSequenceClassification, words: torch.Tensor, batch: Batch) -> torch.Tensor:
    embeddings, layers = model.bert.embeddings, model.bert.encoder.layer
    positions = embeddings.position_embeddings.weight[: words.shape[1]]
    states = embeddings.LayerNorm(words + embeddings.token_type_embeddings(batch.segments) + positions)
    for number, layer in enumerate(layers):
        attention = layer.attention.self
        asking = states if number < len(layers) - 1 else states[:, :1]

        def heads(values: torch.Tensor, count: int = attention.num_attention_heads) -> torch.Tensor:
            return values.view(*values.shape[:2], count, -1).transpose(1, 2)

        query, key, value = heads(attention.query(asking)), heads(attention.key(states)), heads(attention.value(states))
        # torch's own fused attention is three times as slow at these sizes.
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + batch.mask.to(query.dtype)
        context = (torch.softmax(scores, -1, dtype=scores.dtype) @ value).transpose(1, 2).flatten(2)
        asking = layer.attention.output.LayerNorm(layer.attention.output.dense(context) + asking)
        states = layer.output.LayerNorm(layer.output.dense(functional.gelu(layer.intermediate.dense(asking))) + asking)
    return model.classifier(torch.tanh(model.bert.pooler.dense(states[:, 0])))[:, 0]  # type: ignore[no-any-return]


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss: who is on top, who is further down, and the distances. Shape: (questions, candidates), twice."""

    def divergence(temperature: float) -> torch.Tensor:
        ours, theirs = (values.div(temperature).log_softmax(1) for values in (logits, targets))
        return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    distance = logits - logits.mean(1, keepdim=True) - targets + targets.mean(1, keepdim=True)
    return divergence(1) + 2 * divergence(3) + 0.2 * distance.square().mean()


class Training:
    """A run: its weights, their mean, and how far it is."""

    def __init__(self, args: argparse.Namespace, lessons: Lessons) -> None:
        self.args, self.lessons = args, lessons
        self.model = BertForSequenceClassification.from_pretrained(args.start, num_labels=1).train()
        self.mean = BertForSequenceClassification.from_pretrained(args.start, num_labels=1).eval()
        self.parameters = list(self.model.parameters())
        # Each word occurs rarely, so that its gradient is mostly noise: with the full rate, unseen words drift apart.
        table = self.model.bert.embeddings.word_embeddings.weight
        rest = [values for values in self.parameters if values is not table]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [values for values in rest if values.ndim > 1], "weight_decay": 0.01, "share": 1.0},
                {"params": [values for values in rest if values.ndim == 1], "weight_decay": 0.0, "share": 1.0},
                {"params": [table], "weight_decay": 0.0, "share": args.embedding_share},
            ],
            lr=args.learning_rate,
            betas=(0.9, 0.98),
        )
        self.step, self.seconds = 0, 0.0
        held_out = np.random.default_rng(args.seed).permutation(len(lessons.questions))[:HELD_OUT]
        self.held_out: list[int] = held_out.tolist()
        weights = lessons.weights.copy()
        weights[held_out] = 0
        self.chances = weights.cumsum() / weights.sum()
        self.file = args.output / "state.pt"
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.mean.load_state_dict(state["mean"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the state; a kill leaves the old one or the new one."""
        state = {
            "model": self.model.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.file)

    def run(self) -> None:
        """Train until the time is over."""
        total, started = 60 * self.args.minutes, time.monotonic() - self.seconds
        saved = reported = time.monotonic()
        losses: list[float] = []
        with ThreadPoolExecutor(self.args.threads) as pool:
            while (passed := time.monotonic() - started) < total:
                rate = self.args.learning_rate * (1 - passed / total) * min(1, (self.step + 1) / 50)
                losses.append(self._take_step(pool, rate))
                self.seconds = passed
                now = time.monotonic()
                if now - reported > REPORT_S:
                    pairs = self.step * QUESTIONS_A_STEP * CANDIDATES
                    print(
                        f"{passed / 60:6.1f} min  {pairs:>10,} pairs  rate {rate:.2e}  loss {np.mean(losses):.4f}  "
                        f"held out {self.held_out_loss():.4f}",
                        flush=True,
                    )
                    reported, losses = time.monotonic(), []
                if now - saved > SAVE_S:
                    self.save()
                    saved = now
        self.save()

    def _take_step(self, pool: ThreadPoolExecutor, rate: float) -> float:
        share = QUESTIONS_A_STEP // self.args.threads
        found = list(pool.map(lambda thread: self._gradients(share, thread), range(self.args.threads)))
        for index, values in enumerate(self.parameters):
            given = [gradients[index] for gradients, _ in found if gradients[index] is not None]
            values.grad = torch.stack(given).mean(0) if given else None
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        torch.nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimizer.step()
        self.step += 1
        keep = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.parameters()), self.parameters, 1 - keep)
        return float(np.mean([loss for _, loss in found]))

    def _gradients(self, count: int, thread: int) -> tuple[tuple[torch.Tensor | None, ...], float]:
        # A generator of its own for each step, so that a resumed run draws what it would have drawn.
        chance = np.random.default_rng([self.args.seed, self.step, thread])
        pairs: list[Pair] = []
        targets = []
        for number in np.searchsorted(self.chances, chance.random(count)):
            question = self.lessons.questions[number]
            if question[-1] == QUESTION_MARK and len(question) > 2 and chance.random() < 0.6:
                question = question[:-1]
            chosen = chance.permutation(len(self.lessons.candidates[number]))[:CANDIDATES]
            pairs += [(question, self.lessons.passages[i]) for i in self.lessons.candidates[number][chosen]]
            targets.append(self.lessons.targets[number][chosen])
        logits = logits_of(self.model, pairs, self.args.max_length).view(count, CANDIDATES)
        loss = loss_of(logits, torch.from_numpy(np.stack(targets)).float())
        return torch.autograd.grad(loss, self.parameters, allow_unused=True), loss.item()

    @torch.no_grad()
    def held_out_loss(self, count: int = 50) -> float:
        """Return the loss of the mean weights on some of the questions that were held out."""
        losses = []
        for number in self.held_out[:count]:
            pairs = [
                (self.lessons.questions[number], self.lessons.passages[i]) for i in self.lessons.candidates[number]
            ]
            logits = logits_of(self.mean, pairs, self.args.max_length)[None]
            losses.append(loss_of(logits, torch.from_numpy(self.lessons.targets[number])[None].float()).item())
        return float(np.mean(losses))

    @torch.no_grad()
    def calibrate(self) -> None:
        """Scale the last layer of the mean weights: standard deviation 4, and 0 where an answer is as likely as not."""
        logits, answers = [], []
        for number in self.held_out:
            if not self.lessons.labelled[number].any():
                continue
            count = len(self.lessons.labelled[number])
            found = self.lessons.candidates[number][:count]
            pairs = [(self.lessons.questions[number], self.lessons.passages[i]) for i in found]
            logits.append(logits_of(self.mean, pairs, 512).numpy())
            answers.append(self.lessons.labelled[number] > 0)
        values, known = np.concatenate(logits).astype(np.float64), np.concatenate(answers)
        slope, intercept = _fit(values, known)
        zero, scale = -intercept / slope, LOGIT_STD / values.std()
        self.mean.classifier.weight.mul_(scale)
        self.mean.classifier.bias.sub_(zero).mul_(scale)
        print(f"{len(logits)} held-out questions with answers: logits scaled by {scale:.4f}, after {-zero:+.4f}")
        print(f"expected calibration error of sigmoid: {_calibration_error((values - zero) * scale, known):.4f}")
        print(f"the same with the scale that fits best: {_calibration_error(values * slope + intercept, known):.4f}")
        # As CrossEncoder writes it: its `predict` gives logits.
        self.mean.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
        self.mean.save_pretrained(self.args.output / "model")


def _fit(logits: NDArray[np.float64], known: NDArray[np.bool_]) -> tuple[float, float]:
    """Return slope and intercept of the logistic regression, by Newton's method."""
    inputs = np.stack([logits / logits.std(), np.ones_like(logits)], 1)
    weights = np.zeros(2)
    for _ in range(50):
        likely = 1 / (1 + np.exp(-inputs @ weights))
        hessian = inputs.T @ (inputs * (likely * (1 - likely))[:, None])
        weights += np.linalg.solve(hessian, inputs.T @ (known - likely))
    return float(weights[0] / logits.std()), float(weights[1])


def _calibration_error(log_odds: NDArray[np.float64], known: NDArray[np.bool_]) -> float:
    likely = 1 / (1 + np.exp(-log_odds))
    too_high = np.bincount(np.minimum((likely * 10).astype(int), 9), weights=likely - known)
    return float(np.abs(too_high).sum() / len(known))


def main() -> None:
    """Parse the command line, train, calibrate, and save."""
    parser = argparse.ArgumentParser(description="Train a small cross-encoder for the wheel on teacher scores.")
    parser.add_argument("distill", type=Path, help="folder of the questions, candidates and scores")
    parser.add_argument("collections", type=Path, help="folder of the folders with the passages")
    parser.add_argument("start", type=Path, help="folder of the BERT to start from, with tokenizer.json")
    parser.add_argument("--output", type=Path, required=True, help="folder of the state and the model")
    parser.add_argument("--more-candidates", type=Path, metavar="FILE", help="further scored candidates, .npz")
    parser.add_argument("--minutes", type=float, default=600.0, help="time to train (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="highest rate of the layers")
    parser.add_argument("--embedding-share", type=float, default=0.1, help="share of it for the word embeddings")
    parser.add_argument("--max-length", type=int, default=112, help="tokens of question and passage")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="each has a part of a step")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    # Every thread computes for itself: waiting for each other in each product costs more than it saves.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(args.start / "tokenizer.json"))
    training = Training(args, read_lessons(args.distill, args.collections, args.more_candidates, tokenizer))
    training.run()
    training.calibrate()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (args.output / "model" / name).write_bytes((args.start / name).read_bytes())


if __name__ == "__main__":
    main()
