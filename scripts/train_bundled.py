"""Train a plain cross-encoder for the wheel on the scores of its teachers; for your own data see examples/.

None has ranked better yet than the model that ships, which is not trained: the model card has the figures.

    python scripts/prepare_bundled.py DISTILL_FOLDER COLLECTIONS_FOLDER SPLADE BI_ENCODER LARGE_BI_ENCODER --output FILE
    python scripts/train_bundled.py DISTILL_FOLDER COLLECTIONS_FOLDER FILE START_FOLDER --output FOLDER --minutes 600
    python scripts/build_bundled.py FOLDER/model --output OUTPUT_FOLDER

START_FOLDER is a BERT, such as that of all-MiniLM-L6-v2; scripts/prepare_bundled.py describes the others, and
scripts/training_examples.py what is learned. The model has an output for each teacher, and the logit is their sum, so
that a single output remains in the end. Linear layers, which are thrown away afterwards, have to tell from the hidden
states of the question's tokens how well the passage matches each of them, and from the mean state of each text its
vector by the large bi-encoder. This teaches the layers below to compare the question with the passage, faster than the
logits alone do.

This is faster than a general trainer, so that hours of a few cores count: the last layer is computed for `[CLS]` alone,
in bf16, word embeddings stay as they are, and each core has a batch of its own. The learning rate falls to 0 in the
last part of the time. The run is saved every four minutes; the same command resumes, with the time that was left.
FOLDER/model is the exponential mean of the weights, calibrated on questions that were held out.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from calibration import LOGIT_STD, fit
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional
from training_examples import CANDIDATES, MOST_QUESTION_TOKENS, TEACHERS, Question, TrainingExamples
from transformers import BertForSequenceClassification

CLS, SEP = 101, 102
MAX_LENGTH = 448
QUESTIONS_A_STEP = 16
# Pairs of similar length in one matrix; larger ones do not fit into the caches of a processor and take twice the time.
CHUNK = 8
# In LOGIT_STD. The teachers are not sure of smaller differences.
LEAST_SPREAD = 0.4
# The hidden states behind these layers have to tell what the bi-encoders see.
PROBED_LAYERS = (3, 4)
EMA = 0.998
SAVE_S, REPORT_S = 240, 300

Tokens = NDArray[np.uint16]
Pair = tuple[Tokens, Tokens]
# Weights in bf16, by the fp32 weights of which they are copies.
Copies = dict[torch.Tensor, torch.Tensor]


class Batch(NamedTuple):
    """Pairs of similar length, padded; `mask` is added to attention scores."""

    ids: torch.Tensor
    segments: torch.Tensor
    mask: torch.Tensor


def pad(pairs: list[Pair]) -> Batch:
    """Join and pad pairs; passages are truncated."""
    joined = [
        [CLS, *question.tolist(), SEP, *passage[: MAX_LENGTH - 3 - len(question)].tolist(), SEP]
        for question, passage in pairs
    ]
    # Few different shapes: the library of matrix products keeps a program for each.
    longest = -(-max(map(len, joined)) // 8) * 8
    ids = torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens in joined])
    lengths = torch.tensor([len(tokens) for tokens in joined])[:, None]
    starts = torch.tensor([len(question) + 2 for question, _ in pairs])[:, None]
    positions = torch.arange(longest)[None]
    mask = torch.zeros(ids.shape).masked_fill_(positions >= lengths, -1e4)[:, None, None]
    return Batch(ids, ((positions >= starts) & (positions < lengths)).long(), mask.bfloat16())


class Outputs(NamedTuple):
    """What a model returns for pairs.

    Shape:
        parts: (pairs, teachers); their sum is the logit.
        cosines: for each probed layer (pairs, tokens of the question, bi-encoders).
        vectors: for each probed layer (pairs, 2, width of the large bi-encoder): the question and the passage.
    """

    parts: torch.Tensor
    cosines: list[torch.Tensor]
    vectors: list[torch.Tensor]


class Probe(torch.nn.Module):
    """Tells from hidden states what the bi-encoders see in the texts; only training needs it."""

    def __init__(self, width: int, vector_width: int) -> None:
        super().__init__()
        self.cosines, self.vectors = torch.nn.Linear(width, 2), torch.nn.Linear(width, vector_width)


def copies_of(model: BertForSequenceClassification, *, learn: bool = False) -> Copies:
    """Return the weights of the layers in bf16."""
    return {
        values: values.detach().bfloat16().requires_grad_(learn) for values in model.bert.encoder.layer.parameters()
    }


def outputs_of(
    model: BertForSequenceClassification,
    copies: Copies,
    pairs: list[Pair],
    probes: torch.nn.ModuleList | None = None,
) -> Outputs:
    """Score pairs as the model does, with the last layer for `[CLS]` alone."""
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))
    found = [
        _forward(model, copies, pad([pairs[index] for index in order[start : start + CHUNK]]), probes)
        for start in range(0, len(order), CHUNK)
    ]
    back = torch.tensor(order).argsort()
    probed = [
        [torch.cat(layer)[back] for layer in zip(*chunks, strict=True)]
        for chunks in ([chunk.cosines for chunk in found], [chunk.vectors for chunk in found])
    ]
    return Outputs(torch.cat([chunk.parts for chunk in found])[back], *probed)


def _forward(
    model: BertForSequenceClassification, copies: Copies, batch: Batch, probes: torch.nn.ModuleList | None
) -> Outputs:
    embeddings, layers = model.bert.embeddings, model.bert.encoder.layer
    heads, eps = model.config.num_attention_heads, model.config.layer_norm_eps

    def linear(layer: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
        return functional.linear(values, copies[layer.weight], copies[layer.bias])

    def norm(layer: torch.nn.LayerNorm, values: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(values, layer.normalized_shape, copies[layer.weight], copies[layer.bias], eps)

    def split(values: torch.Tensor) -> torch.Tensor:
        return values.view(*values.shape[:2], heads, -1).transpose(1, 2)

    positions = embeddings.position_embeddings.weight[: batch.ids.shape[1]]
    words = embeddings.word_embeddings(batch.ids)
    states = embeddings.LayerNorm(words + embeddings.token_type_embeddings(batch.segments) + positions).bfloat16()
    cosines, vectors = [], []
    sides = torch.stack([(batch.mask[:, 0, 0] == 0).long() - batch.segments, batch.segments], 1)
    means = (sides / sides.sum(-1, keepdim=True)).bfloat16()
    for number, layer in enumerate(layers):
        attention = layer.attention.self
        asking = states if number < len(layers) - 1 else states[:, :1]
        query, key = split(linear(attention.query, asking)), split(linear(attention.key, states))
        value = split(linear(attention.value, states))
        # torch's own fused attention is three times as slow at these sizes.
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + batch.mask
        context = (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)
        asking = norm(layer.attention.output.LayerNorm, linear(layer.attention.output.dense, context) + asking)
        inner = functional.gelu(linear(layer.intermediate.dense, asking))
        states = norm(layer.output.LayerNorm, linear(layer.output.dense, inner) + asking)
        if probes is not None and number in PROBED_LAYERS:
            probe = probes[PROBED_LAYERS.index(number)]
            found = probe.cosines(states[:, 1 : 1 + MOST_QUESTION_TOKENS].float())
            cosines.append(functional.pad(found, (0, 0, 0, MOST_QUESTION_TOKENS - found.shape[1])))
            vectors.append(probe.vectors((means @ states).float()))
    return Outputs(model.classifier(torch.tanh(model.bert.pooler.dense(states[:, 0].float()))), cosines, vectors)


def divergence(ours: torch.Tensor, theirs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return how far two rankings are apart; a high temperature counts those further down.

    Shape:
        ours, theirs: (questions, candidates).
    """
    first, second = (values.div(temperature).log_softmax(1) for values in (ours, theirs))
    return functional.kl_div(first, second, reduction="batchmean", log_target=True)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of the distances within each question. Shape: (questions, candidates)."""
    return (ours - ours.mean(1, keepdim=True) - theirs + theirs.mean(1, keepdim=True)).square().mean()


def spread_of(targets: torch.Tensor) -> torch.Tensor:
    """Return what to divide logits by, so that close candidates count as much as others. Shape: (questions, 1)."""
    return targets.std(1, keepdim=True).div(LOGIT_STD).clamp(min=LEAST_SPREAD)


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss: who is on top, who is further down, and the distances. Shape: (questions, candidates), twice."""
    return divergence(logits, targets, 1) + 2 * divergence(logits, targets, 3) + 0.2 * distance(logits, targets)


class Training:
    """A run: its weights, their mean, and how far it is."""

    def __init__(self, args: argparse.Namespace, examples: TrainingExamples) -> None:
        self.args, self.examples = args, examples
        torch.manual_seed(args.seed)
        self.model, self.mean = (
            BertForSequenceClassification.from_pretrained(args.start, num_labels=TEACHERS).train() for _ in range(2)
        )
        self.mean.load_state_dict(self.model.state_dict())
        width = self.model.config.hidden_size
        self.probes = torch.nn.ModuleList(Probe(width, examples.width) for _ in PROBED_LAYERS)
        # Each word occurs so rarely that its gradient is mostly noise, and unseen words would stay behind.
        self.model.bert.embeddings.word_embeddings.weight.requires_grad = False
        pairs = zip(self.model.parameters(), self.mean.parameters(), strict=True)
        learned = [(ours, mean) for ours, mean in pairs if ours.requires_grad]
        self.averaged = [mean for _, mean in learned]
        self.parameters = [ours for ours, _ in learned] + list(self.probes.parameters())
        inner = {values for values in self.model.bert.encoder.parameters() if values.ndim == 2}
        matrices, others = (
            [values for values in self.parameters if (values in inner) is found] for found in (True, False)
        )
        # Muon learns faster here than AdamW (see the model card). Each thread updates a part of the matrices.
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices[thread :: args.threads], weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            for thread in range(args.threads)
        ]
        self.optimizers.append(torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True))
        self.step, self.seconds = 0, 0.0
        held_out = np.random.default_rng(args.seed).permutation(len(examples.questions))[: args.held_out]
        self.held_out: list[int] = held_out.tolist()
        weights = examples.weights.copy()
        weights[held_out] = 0
        self.chances = weights.cumsum() / weights.sum()
        self.file = args.output / "state.pt"
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            for name, part in self._saved().items():
                part.load_state_dict(state[name])
            self.step, self.seconds = state["step"], state["seconds"]

    def _saved(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        optimizers = {f"optimizer {number}": optimizer for number, optimizer in enumerate(self.optimizers)}
        return {"model": self.model, "mean": self.mean, "probes": self.probes, **optimizers}

    def save(self) -> None:
        """Write the state; a kill leaves the old one or the new one."""
        state = {name: part.state_dict() for name, part in self._saved().items()}
        part = self.file.with_suffix(".part")
        torch.save(state | {"step": self.step, "seconds": self.seconds}, part)
        part.replace(self.file)

    def run(self) -> None:
        """Train until the time is over."""
        total, started = 60 * self.args.minutes, time.monotonic() - self.seconds
        saved = reported = time.monotonic()
        losses: list[float] = []
        with ThreadPoolExecutor(self.args.threads) as pool:
            while (passed := time.monotonic() - started) < total:
                left = 1 - passed / total
                rate = self.args.learning_rate * min(1, left / self.args.decay, (self.step + 1) / 100)
                losses.append(self._take_step(pool, rate))
                self.seconds = passed
                now = time.monotonic()
                if now - reported > REPORT_S:
                    pairs = self.step * QUESTIONS_A_STEP * CANDIDATES
                    print(
                        f"{passed / 60:6.1f} min  {pairs:>10,} pairs  rate {rate:.2e}  loss {np.mean(losses):.4f}  "
                        f"held out {self.held_out_loss(pool):.4f}",
                        flush=True,
                    )
                    reported, losses = time.monotonic(), []
                if now - saved > SAVE_S:
                    self.save()
                    saved = now
        self.save()

    def _take_step(self, pool: ThreadPoolExecutor, rate: float) -> float:
        threads = range(self.args.threads)
        share = QUESTIONS_A_STEP // self.args.threads
        copies = copies_of(self.model, learn=True)
        found = list(pool.map(lambda thread: self._gradients(copies, share, thread), threads))
        for index, values in enumerate(self.parameters):
            given = [gradients[index] for gradients, _ in found if gradients[index] is not None]
            values.grad = torch.stack(given).float().mean(0) if given else None
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate if isinstance(optimizer, torch.optim.Muon) else rate / 2
        torch.nn.utils.clip_grad_norm_(self.parameters, 5.0)
        list(pool.map(lambda optimizer: optimizer.step(), self.optimizers))
        self.step += 1
        keep = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged, self.parameters[: len(self.averaged)], 1 - keep)
        return float(np.mean([loss for _, loss in found]))

    def _gradients(self, copies: Copies, count: int, thread: int) -> tuple[tuple[torch.Tensor | None, ...], float]:
        # A generator of its own for each step, so that a resumed run draws what it would have drawn.
        chance = np.random.default_rng([self.args.seed, self.step, thread])
        examples = [
            self.examples.draw(int(number), chance) for number in np.searchsorted(self.chances, chance.random(count))
        ]
        pairs = [(example.question, candidate) for example in examples for candidate in example.candidates]
        found = outputs_of(self.model, copies, pairs, self.probes)
        ours = found.parts.view(count, CANDIDATES, TEACHERS)
        theirs = torch.from_numpy(np.stack([example.parts for example in examples])).float()
        logits = ours.sum(-1)
        targets = torch.from_numpy(np.stack([example.targets for example in examples])).float()
        spread = spread_of(targets)
        loss = loss_of(logits / spread, targets / spread)
        # What is compared within a question alone would leave its level to chance.
        levels = torch.tensor([example.level for example in examples])
        loss = loss + 0.02 * (logits.mean(1) - levels).square().mean()
        for teacher in range(TEACHERS):
            one, other = ours[..., teacher] / spread, theirs[..., teacher] / spread
            loss = loss + 0.3 * divergence(one, other, 2) + 0.08 * distance(one, other)
        known = np.full((count, CANDIDATES, MOST_QUESTION_TOKENS, 2), np.nan, np.float32)
        for row, example in zip(known, examples, strict=True):
            row[:, : len(example.question)] = example.cosines
        cosines = torch.from_numpy(known).flatten(0, 1)
        for told in found.cosines:
            loss = loss + 5 * (told - cosines)[~cosines.isnan()].square().mean()
        vectors = torch.from_numpy(np.concatenate([example.vectors for example in examples]))
        for told in found.vectors:
            loss = loss + 1 - functional.cosine_similarity(told, vectors, dim=-1).mean()
        leaves = [copies.get(values, values) for values in self.parameters]
        return torch.autograd.grad(loss, leaves, allow_unused=True), loss.item()

    def held_out_loss(self, pool: ThreadPoolExecutor, count: int = 50) -> float:
        """Return the loss of the mean weights on some of the questions that were held out."""
        copies = copies_of(self.mean)

        def loss(number: int) -> float:
            question = self.examples.questions[number]
            targets = torch.from_numpy(question.targets[: self.examples.judged]).float()
            return loss_of(self._judged_logits(question, copies)[None], targets[None]).item()

        return float(np.mean(list(pool.map(loss, self.held_out[:count]))))

    @torch.no_grad()
    def _judged_logits(self, question: Question, copies: Copies) -> torch.Tensor:
        """Score the candidates about which the labels say something with the mean weights. Shape: (candidates,)."""
        pairs = [(question.tokens, self.examples.passages[i]) for i in question.passages[: self.examples.judged]]
        return outputs_of(self.mean, copies, pairs).parts.sum(1)

    @torch.no_grad()
    def calibrate(self) -> None:
        """Join the outputs of the mean weights to one, and scale it.

        The standard deviation becomes 4. A candidate with logit 0 is as likely an answer as not, if one candidate in
        five is one. Here one in thirty is known to be one, many others are taken at random, and some of the others
        are answers too.
        """
        layer, copies = self.mean.classifier, copies_of(self.mean)
        logits, answers = [], []
        for question in [self.examples.questions[number] for number in self.held_out]:
            if not question.labelled.any():
                continue
            logits.append(self._judged_logits(question, copies).numpy())
            answers.append(question.labelled[: self.examples.judged] > 0)
        values, known = np.concatenate(logits).astype(np.float64), np.concatenate(answers)
        found = fit(values, known)
        zero, scale = found.zero, found.scale
        joined = torch.nn.Linear(layer.in_features, 1)
        joined.weight.copy_(layer.weight.sum(0, keepdim=True) * scale)
        joined.bias.copy_((layer.bias.sum(0, keepdim=True) - zero) * scale)
        self.mean.classifier = joined
        self.mean.config.num_labels = self.mean.num_labels = 1
        print(f"{len(logits)} held-out questions with answers: {found}")
        # As CrossEncoder writes it: its `predict` gives logits.
        self.mean.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
        self.mean.save_pretrained(self.args.output / "model")


def main() -> None:
    """Parse the command line, train, calibrate, and save."""
    parser = argparse.ArgumentParser(description="Train a plain cross-encoder for the wheel on teacher scores.")
    parser.add_argument("distill", type=Path, help="folder of the questions, candidates and scores")
    parser.add_argument("collections", type=Path, help="folder of the folders with the passages")
    parser.add_argument("prepared", type=Path, help="what scripts/prepare_bundled.py wrote")
    parser.add_argument("start", type=Path, help="folder of the BERT to start from, with tokenizer.json")
    parser.add_argument("--output", type=Path, required=True, help="folder of the state and the model")
    parser.add_argument("--minutes", type=float, default=600.0, help="time to train (default: %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, default=2e-4, help="highest rate of matrices; others: half of it"
    )
    parser.add_argument("--decay", type=float, default=0.4, help="share of the time in which it falls to 0")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="each has a part of a step")
    parser.add_argument("--held-out", type=int, default=1500, help="questions to calibrate on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    # Every thread computes for itself: waiting for each other in each product costs more than it saves.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(args.start / "tokenizer.json"))
    training = Training(args, TrainingExamples(args.distill, args.collections, args.prepared, tokenizer))
    training.run()
    training.calibrate()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (args.output / "model" / name).write_bytes((args.start / name).read_bytes())


if __name__ == "__main__":
    main()
