"""Training examples for train_bundled.py: questions with candidates, and the logits that the teachers give them.

There are four teachers, each scaled so that it counts as much as the others within a question: SPLADE, the large
bi-encoder, and late interaction with both bi-encoders, which is the mean over the tokens of the question of their
largest cosines with a token of the passage, weighted by inverse document frequency (MaxSim of ColBERT: Khattab and
Zaharia, 2020).

A candidate is a passage, or a document: several passages in a row, so that the model learns long texts too. What the
teachers would say about a document follows from what they say about its passages: the largest cosine of a token, the
largest weight of a term, and the mean of all states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from calibration import LOGIT_STD
from prepare_bundled import read_pool
from scipy import sparse

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    Floats: TypeAlias = NDArray[np.float32]
    Tokens: TypeAlias = NDArray[np.uint16]

# How often questions of a set are drawn, whatever its size; a set that is not named is not used. Search queries first.
WEIGHTS = {
    "web": 13,
    "qed-nq": 4.5,
    "boolq": 2,
    "bioasq": 1.2,
    "medquad": 1,
    "nq-aquamuse": 1,
    "stackexchange-small": 0.8,
    "pubmedqa": 0.7,
    "squad-nqg-test": 0.7,
    "squadshifts-new_wiki": 0.7,
    "selqa": 0.7,
    "covidqa": 0.6,
    "nq-sure-nonoverlap": 0.6,
    "expertqa": 0.5,
    "timeqa-human": 0.3,
    "techqa-react-mit": 0.2,
    "zre-wiki": 0.05,
}
TEACHERS = 4
QUESTION_MARK = 1029
MOST_QUESTION_TOKENS, MOST_PASSAGE_TOKENS = 40, 198
# Of a document, passages that do not fit are left out.
MOST_DOCUMENT_TOKENS, MOST_FURTHER_PASSAGES, DOCUMENT_SHARE = 400, 5, 0.15
# In so many examples all candidates are from the best third, as they are in what a search finds.
CANDIDATES, CLOSE_SHARE = 8, 0.5
LABEL_BONUS = 1.5


class Question(NamedTuple):
    """A question and its candidates.

    Attributes:
        tokens: Of the question.
        idf: The weight of each token, which sum to 1.
        passages: Numbers of the candidates. Shape: (candidates,).
        labelled: 1 for a known answer. Shape: (candidates,).
        cosines: Largest cosines by bi-encoder, in 255ths. Shape: (2, candidates, tokens).
        scores: By teacher. Shape: (candidates, teachers).
        centre, factor: What makes logits of scores. Shape: (teachers,).
    """

    tokens: Tokens
    idf: Floats
    passages: NDArray[np.int32]
    labelled: NDArray[np.int8]
    cosines: NDArray[np.uint8]
    scores: Floats
    centre: Floats
    factor: Floats

    @property
    def targets(self) -> Floats:
        """The logits to learn. Shape: (candidates,)."""
        return _logits(self.parts(self.scores), self.labelled)

    def parts(self, scores: Floats) -> Floats:
        """Return what each teacher contributes to the logit. Shape: (candidates, teachers)."""
        return (scores - self.centre) * self.factor


class TrainingExample(NamedTuple):
    """A question and some candidates, with all that is to be learned.

    Attributes:
        question: Tokens.
        candidates: Tokens of each candidate.
        parts: What each teacher contributes to the logit. Shape: (candidates, teachers).
        targets: The logits. Shape: (candidates,).
        level: The mean logit by the large bi-encoder alone, comparable between questions.
        cosines: Shape: (candidates, tokens of the question, 2).
        vectors: Of the question and of each candidate, by the large bi-encoder. Shape: (candidates, 2, width).
    """

    question: Tokens
    candidates: list[Tokens]
    parts: Floats
    targets: Floats
    level: float
    cosines: Floats
    vectors: Floats


class TrainingExamples:
    """All questions and passages.

    Attributes:
        questions: In the order of the files.
        judged: Number of a question's candidates, the first ones, about which the labels say something.
        passages: Tokens of each passage.
        width: Of the vectors of the large bi-encoder.
        weights: How often each question is drawn; they sum to 1.
    """

    def __init__(self, distill: Path, collections: Path, prepared: Path, tokenizer: Tokenizer) -> None:
        texts = read_pool(distill, collections)
        # `np.load` reads an array anew at each look-up.
        self._given: dict[str, Any] = dict(np.load(prepared))
        self._terms = {
            name: sparse.csr_matrix(
                tuple(self._given.pop(f"{name}_{part}") for part in ("data", "indices", "indptr")),
                shape=(count, tokenizer.get_vocab_size()),
            )
            for name, count in (("question_terms", len(texts.questions)), ("passage_terms", len(texts.passages)))
        }
        self.passages = _tokens(tokenizer, texts.passages, MOST_PASSAGE_TOKENS)
        self.judged = self._given["passage"].shape[1]
        self.width = self._given["question_vectors"].shape[1]
        seen = np.zeros(tokenizer.get_vocab_size())
        for tokens in self.passages:
            seen[np.unique(tokens)] += 1
        idf = np.log1p((len(self.passages) - seen + 0.5) / (seen + 0.5)).astype(np.float32)
        rows: list[list[int]] = [[] for _ in texts.questions]
        for row, number in enumerate(self._given["question"]):
            rows[number].append(row)
        tokenised = _tokens(tokenizer, texts.questions, MOST_QUESTION_TOKENS)
        questions = [self._read(number, tokens, idf, rows[number]) for number, tokens in enumerate(tokenised)]
        del self._given["cosines"]
        self.questions = self._scale(questions)
        self.weights = np.zeros(len(questions))
        for name, weight in WEIGHTS.items():
            own = texts.question_sets == name
            self.weights[own] = weight / max(1, own.sum())
        self.weights /= self.weights.sum()

    def _read(self, number: int, tokens: Tokens, idf: Floats, rows: list[int]) -> Question:
        passages, labelled = (self._given[name][rows].reshape(-1) for name in ("passage", "labelled"))
        places = [slice(self._given["offsets"][row], self._given["offsets"][row + 1]) for row in rows]
        cosines = [self._given["cosines"][:, place].reshape(2, self.judged, -1) for place in places]
        question = Question(
            tokens,
            idf[tokens] / idf[tokens].sum(),
            passages,
            labelled,
            np.concatenate(cosines, 1),
            *[np.zeros(0, np.float32)] * 3,
        )
        return question._replace(scores=self.scores(number, question, [[place] for place in range(len(passages))]))

    def scores(self, number: int, question: Question, groups: list[list[int]]) -> Floats:
        """Return what each teacher says about groups of a question's candidates. Shape: (groups, teachers)."""
        passages = question.passages
        vector = self._vector(number)
        terms = self._terms["question_terms"][number]
        weights = self._terms["passage_terms"][passages][:, terms.indices].toarray()
        means = self._means(question, groups)
        cosines = means @ vector / (np.linalg.norm(means, axis=1) * np.linalg.norm(vector))
        found = np.zeros((len(groups), TEACHERS), np.float32)
        for row, group in enumerate(groups):
            late = question.cosines[:, group].max(1) @ question.idf / 255
            found[row] = [weights[group].max(0) @ terms.data, cosines[row], *late]
        return found

    def _vector(self, number: int) -> Floats:
        """Return the large bi-encoder's vector of a question. Shape: (width,)."""
        vector: Floats = self._given["question_vectors"][number].astype(np.float32)
        return vector

    def _means(self, question: Question, groups: list[list[int]]) -> Floats:
        """Return the large bi-encoder's vectors of groups, the means of all states. Shape: (groups, width)."""
        lengths = np.array([len(self.passages[i]) + 2 for i in question.passages], np.float32)
        vectors = self._given["passage_vectors"][question.passages].astype(np.float32)
        return np.stack([lengths[group] @ vectors[group] / lengths[group].sum() for group in groups])

    def _scale(self, questions: list[Question]) -> list[Question]:
        """Scale the teachers so that they count the same within each question, and their sums spread as logits do.

        A question whose candidates are alike for the teachers keeps a smaller spread. The first candidates, which were
        not searched for, define the scale of a question.
        """
        spreads = np.array([question.scores[: self.judged].std(0) for question in questions]) + 1e-6
        usual = spreads.mean(0)
        spread = (spreads / usual).mean(1).clip(0.4, 2)
        factors = spread[:, None] / np.maximum(spreads, 0.3 * usual)
        scaled = [
            question._replace(centre=question.scores[: self.judged].mean(0), factor=factor.astype(np.float32))
            for question, factor in zip(questions, factors, strict=True)
        ]
        sums = [question.parts(question.scores[: self.judged]).sum(1).std() for question in scaled]
        self._level = float(np.mean([question.scores[:, 1].mean() for question in questions]))
        self._level_factor = LOGIT_STD / float(usual[1])
        return [question._replace(factor=question.factor * (LOGIT_STD / np.mean(sums))) for question in scaled]

    def draw(self, number: int, chance: np.random.Generator) -> TrainingExample:
        """Draw candidates of a question: of the best third, or half of them of the best quarter; at times documents."""
        question = self.questions[number]
        order, count, half = np.argsort(-question.targets), len(question.passages), CANDIDATES // 2
        if chance.random() < CLOSE_SHARE:
            chosen = chance.permutation(order[: max(CANDIDATES, count // 3)])[:CANDIDATES]
        else:
            best, others = np.split(order, [count // 4])
            chosen = np.concatenate([chance.permutation(best)[:half], chance.permutation(others)[:half]])
        groups = [[int(place)] for place in chosen]
        if chance.random() < DOCUMENT_SHARE:
            groups = [self._extend(question, group, chance) for group in groups]
            scores = self.scores(number, question, groups)
        else:
            scores = question.scores[chosen]
        kept = question.tokens
        if kept[-1] == QUESTION_MARK and len(kept) > 2 and chance.random() < 0.6:
            kept = kept[:-1]
        parts = question.parts(scores)
        cosines = np.stack([question.cosines[:, group].max(1) for group in groups])[..., : len(kept)]
        return TrainingExample(
            kept,
            [np.concatenate([self.passages[question.passages[place]] for place in group]) for group in groups],
            parts,
            _logits(parts, question.labelled[chosen]),
            self._level_factor * float(scores[:, 1].mean() - self._level),
            cosines.transpose(0, 2, 1).astype(np.float32) / 255,
            np.stack([(self._vector(number), mean) for mean in self._means(question, groups)]),
        )

    def _extend(self, question: Question, group: list[int], chance: np.random.Generator) -> list[int]:
        """Make a document of a passage: up to five more candidates of the question before and behind it."""
        length = len(self.passages[question.passages[group[0]]])
        for place in chance.integers(len(question.passages), size=chance.integers(1, MOST_FURTHER_PASSAGES + 1)):
            length += len(self.passages[question.passages[place]])
            if length > MOST_DOCUMENT_TOKENS:
                break
            group = [int(place), *group] if chance.random() < 0.5 else [*group, int(place)]
        return group


def _logits(parts: Floats, labelled: NDArray[np.int8]) -> Floats:
    """Return the logits to learn. Shape: (candidates,)."""
    logits: Floats = parts.sum(1) + LABEL_BONUS * labelled
    return logits


def _tokens(tokenizer: Tokenizer, texts: list[str], most: int) -> list[Tokens]:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [np.array(found.ids[:most], np.uint16) for found in tokenizer.encode_batch(texts, add_special_tokens=False)]
