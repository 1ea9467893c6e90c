"""For train_reranker.py: questions, candidates for each of them, and scores of the candidates by teacher models.

Everything that takes long is saved block by block, so that a run that was stopped goes on where it was, and a second
run with the same questions and teachers starts at once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import bm25s
import numpy as np
import torch
from scipy import sparse
from sentence_transformers import SentenceTransformer, SparseEncoder
from tqdm import tqdm

from marcorank import Reranker

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# Candidates of a question: of its answers, of the passages that BM25 and the first bi-encoder find, and at random.
ANSWERS, BY_WORDS, BY_MEANING, CANDIDATES = 4, 10, 10, 32
# Half of them are the best that were found, and the other half are drawn from so many.
SEARCH_DEPTH = 60
# The heaviest terms of a sparse vector; the others hardly change its scores.
QUESTION_TERMS, PASSAGE_TERMS = 64, 192
BLOCK = 256
# A reranker reads every pair, so its blocks take longer.
RERANKER_BLOCK = 32

Scores: TypeAlias = "NDArray[np.float32]"


class Question(NamedTuple):
    """A question, and the numbers of passages that answer it and of some that do not."""

    text: str
    answers: list[int]
    negatives: list[int]


class Collection(NamedTuple):
    """The passages and questions of all folders."""

    passages: list[str]
    questions: list[Question]


def read_collection(folders: list[Path], limits: dict[str, int], chance: random.Random) -> Collection:
    """Read the folders; of those with a limit, a random sample of the questions."""
    passages: list[str] = []
    questions: list[Question] = []
    for folder in folders:
        rows = _read_rows(folder / "train.jsonl.gz")
        limit = limits.get(folder.name, len(rows))
        numbers = {}
        for passage in _read_rows(folder / "corpus.jsonl.gz"):
            numbers[passage["id"]] = len(passages)
            passages.append(passage["text"])
        for row in chance.sample(rows, limit) if limit < len(rows) else rows:
            answers, negatives = (
                [numbers[doc] for doc in row.get(name, ()) if doc in numbers] for name in ("pos", "neg")
            )
            questions.append(Question(row["query"], answers, negatives))
    return Collection(passages, questions)


def _read_rows(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


class Encoder:
    """A bi-encoder or a SPLADE model: it reads questions and passages apart, and a score is a product of vectors."""

    def __init__(self, name: str, kind: type[SentenceTransformer | SparseEncoder], max_length: int) -> None:
        self.name, self._kind, self._max_length = name, kind, max_length
        self._model: SentenceTransformer | SparseEncoder | None = None

    def scores(self, collection: Collection, candidates: NDArray[np.int64], cache: Path) -> Scores:
        """Score the candidates of every question. Shape: (questions, candidates)."""
        questions, passages = self.vectors(collection, cache)
        rows = [passages[found] @ questions[index].T for index, found in enumerate(candidates)]
        return np.stack([row.toarray() if sparse.issparse(row) else row for row in rows]).reshape(candidates.shape)

    def vectors(self, collection: Collection, cache: Path) -> tuple[Any, Any]:
        """Return a matrix of the questions and one of the passages: arrays, or sparse matrices of scipy."""
        folder = cache / f"{_file_name(self.name)}-{digest(fingerprint(self.name), self._max_length, *collection)}"
        questions = [question.text for question in collection.questions]
        return (
            self._encode(questions, "encode_query", QUESTION_TERMS, folder / "questions"),
            self._encode(collection.passages, "encode_document", PASSAGE_TERMS, folder / "passages"),
        )

    def _encode(self, texts: list[str], method: str, terms: int, folder: Path) -> Any:
        def encode(block: slice) -> torch.Tensor:
            if self._model is None:
                self._model = self._kind(self.name)
                self._model.max_seq_length = self._max_length
            own = {"max_active_dims": terms} if self._kind is SparseEncoder else {"normalize_embeddings": True}
            vectors = getattr(self._model, method)(
                texts[block], batch_size=32, convert_to_tensor=True, show_progress_bar=False, **own
            )
            return vectors.cpu().float()

        blocks = in_blocks(folder, f"{self.name} reads {folder.name}", len(texts), BLOCK, encode)
        if self._kind is SentenceTransformer:
            return torch.cat(blocks).numpy()
        parts = [block.coalesce() for block in blocks]
        return sparse.vstack(
            [sparse.csr_matrix((part.values().numpy(), part.indices().numpy()), part.shape) for part in parts], "csr"
        )


class RerankerTeacher:
    """Any model that `Reranker` loads: a cross-encoder, a server, or `bundled`."""

    def __init__(self, name: str, max_length: int) -> None:
        self.name, self._max_length = name, max_length
        self._model: Reranker | None = None

    def scores(self, collection: Collection, candidates: NDArray[np.int64], cache: Path) -> Scores:
        """Score the candidates of every question. Shape: (questions, candidates)."""

        def score(block: slice) -> torch.Tensor:
            if self._model is None:
                self._model = Reranker(self.name, max_length=self._max_length)
            pairs = zip(collection.questions[block], candidates[block], strict=True)
            return torch.tensor(
                np.stack(
                    [self._model.score(question.text, [collection.passages[i] for i in row]) for question, row in pairs]
                )
            )

        key = digest(fingerprint(self.name), self._max_length, *collection, candidates.tolist())
        folder = cache / f"{_file_name(self.name)}-{key}"
        blocks = in_blocks(folder, f"{self.name} scores pairs", len(collection.questions), RERANKER_BLOCK, score)
        return torch.cat(blocks).numpy()


Teacher = Encoder | RerankerTeacher


def mine(collection: Collection, encoder: Encoder | None, cache: Path, seed: int) -> NDArray[np.int64]:
    """Choose the candidates of every question. Shape: (questions, CANDIDATES), or fewer if there are fewer passages."""
    file = cache / f"candidates-{digest(seed, encoder and fingerprint(encoder.name), *collection)}.npy"
    if not file.exists():
        candidates = _mine(collection, encoder, cache, random.Random(seed))  # noqa: S311
        part = file.with_suffix(".part.npy")
        np.save(part, candidates)
        part.replace(file)
    found: NDArray[np.int64] = np.load(file)
    return found


def _mine(collection: Collection, encoder: Encoder | None, cache: Path, chance: random.Random) -> NDArray[np.int64]:
    count = len(collection.passages)
    depth = min(SEARCH_DEPTH, count)
    words = bm25s.tokenize(collection.passages, stopwords="en", show_progress=False)
    asked = bm25s.tokenize([question.text for question in collection.questions], stopwords="en", show_progress=False)
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    by_words, _ = index.retrieve(asked, k=depth, show_progress=False)
    questions, passages = encoder.vectors(collection, cache) if encoder else (None, None)
    chosen = []
    for number, question in enumerate(tqdm(collection.questions, desc="Finding candidates", unit="question")):
        lists = [(by_words[number].tolist(), BY_WORDS)]
        if encoder:
            similar = passages @ questions[number]
            nearest = np.argpartition(-similar, depth - 1)[:depth]
            lists.append((nearest[np.argsort(-similar[nearest])].tolist(), BY_MEANING))
        found = dict.fromkeys(question.answers[:ANSWERS])
        for ranked, wanted in lists:
            found |= dict.fromkeys(ranked[: wanted // 2])
            rest = ranked[wanted // 2 :]
            found |= dict.fromkeys(chance.sample(rest, min(wanted - wanted // 2, len(rest))))
        found |= dict.fromkeys(chance.sample(question.negatives, min(4, len(question.negatives))))
        # Passages at random show what is plainly wrong, and fill the list.
        found |= dict.fromkeys(chance.sample(range(count), min(CANDIDATES, count)))
        chosen.append(list(found)[:CANDIDATES])
    return np.array(chosen)


def in_blocks(
    folder: Path, task: str, count: int, size: int, compute: Callable[[slice], torch.Tensor]
) -> list[torch.Tensor]:
    """Compute blocks of rows, and save each; a block that has a file is read from it."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = []
    for start in tqdm(range(0, count, size), desc=task, unit="block"):
        stop = min(start + size, count)
        file = folder / f"{start}-{stop}.pt"
        if not file.exists():
            part = file.with_suffix(".part")
            torch.save(compute(slice(start, stop)), part)
            part.replace(file)
        blocks.append(torch.load(file, weights_only=True))
    return blocks


def fingerprint(name: str) -> list[Any]:
    """Tell models apart by name, and folders by their files too: a student may become a teacher of its own folder."""
    files = sorted(Path(name).rglob("*")) if Path(name).is_dir() else []
    return [name, [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]]


def digest(*values: Any) -> str:
    """Return a short name for values that JSON can express."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def _file_name(model: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in Path(model).name)[:40]
