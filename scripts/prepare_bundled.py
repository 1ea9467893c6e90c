"""Prepare what train_bundled.py learns from: further candidates, and the vectors of its teachers for all texts.

    python scripts/prepare_bundled.py DISTILL_FOLDER COLLECTIONS_FOLDER SPLADE BI_ENCODER LARGE_BI_ENCODER --output FILE

DISTILL_FOLDER holds the questions (queries.jsonl.gz: query, set), the pool of passages (passages.txt.gz: `set/id`) and
candidates.npz, with one row per question: `passage` (numbers of passages in the pool) and `labelled` (1 for a known
answer). COLLECTIONS_FOLDER holds a folder for each set, with corpus.jsonl.gz. Both bi-encoders have the word pieces of
BERT, such as all-MiniLM-L6-v2 and all-mpnet-base-v2.

The output (.npz) repeats the candidates of all questions (`question`, `passage`, `labelled`). Rows behind them add, for
questions of the set `web`, 32 more passages of that set: the best by the bi-encoder and SPLADE together, the best by
SPLADE, and some that BM25 finds. It holds the vectors of SPLADE and of the large bi-encoder, and for each bi-encoder
and candidate the largest cosine of each token of the question with a token of the passage.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import bm25s
import numpy as np
import torch
from json_lines import read_rows, read_texts
from scipy import sparse
from sentence_transformers import SentenceTransformer, SparseEncoder
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SEARCHED = "web"
BY_BOTH, BY_SPLADE, BY_WORDS, MORE, WORDS_DEPTH = 8, 8, 16, 32, 100
QUESTION_TERMS, PASSAGE_TERMS = 64, 192
# Longer texts are truncated, in tokens with `[CLS]` and `[SEP]`.
QUESTION_TOKENS, PASSAGE_TOKENS = 42, 200
BLOCK = 512


class Texts(NamedTuple):
    """Questions with their sets, and the pool of passages with theirs."""

    questions: list[str]
    question_sets: NDArray[np.str_]
    passages: list[str]
    passage_sets: NDArray[np.str_]


def read_pool(distill: Path, collections: Path) -> Texts:
    """Read the questions and the texts of the pool."""
    with gzip.open(distill / "passages.txt.gz", "rt", encoding="utf-8") as lines:
        names = [line.rstrip("\n").partition("/") for line in lines]
    folders = {folder for folder, _, _ in names}
    texts = {folder: read_texts(collections / folder / "corpus.jsonl.gz") for folder in folders}
    rows = read_rows(distill / "queries.jsonl.gz")
    return Texts(
        [row["query"] for row in rows],
        np.array([row["set"] for row in rows]),
        [texts[folder][passage_id] for folder, _, passage_id in names],
        np.array([folder for folder, _, _ in names]),
    )


def find_more(
    texts: Texts, given: NDArray[np.int32], bi_encoder: SentenceTransformer, terms: list[Any], seed: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return further candidates: numbers of questions, (rows,), and of passages, (rows, 32)."""
    asking = np.flatnonzero(texts.question_sets == SEARCHED)
    pool = np.flatnonzero(texts.passage_sets == SEARCHED)
    questions, passages = [texts.questions[i] for i in asking], [texts.passages[i] for i in pool]
    vectors = [bi_encoder.encode(found, normalize_embeddings=True) for found in (questions, passages)]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(passages, show_progress=False), show_progress=False)
    depth = min(WORDS_DEPTH, len(pool))
    asked = bm25s.tokenize(questions, show_progress=False)
    by_words = index.retrieve(asked, k=depth, show_progress=False).documents
    chance = np.random.default_rng(seed)
    chosen = []
    for start in tqdm(range(0, len(questions), BLOCK), "further candidates"):
        cosines = vectors[0][start : start + BLOCK] @ vectors[1].T
        products = (terms[0][asking[start : start + BLOCK]] @ terms[1][pool].T).toarray()
        both = cosines / cosines.std() + products / products.std()
        for row, mean in enumerate(both):
            known = set(given[asking[start + row]].tolist())
            orders = [
                (np.argsort(-mean), BY_BOTH),
                (np.argsort(-products[row]), BY_SPLADE),
                (chance.permutation(by_words[start + row]), BY_WORDS),
                (chance.permutation(len(pool)), MORE),
            ]
            found: list[int] = []
            for order, count in orders:
                new = (i for i in order.tolist() if i not in found and pool[i] not in known)
                found += [i for i, _ in zip(new, range(min(count, MORE - len(found))), strict=False)]
            chosen.append(pool[found])
    return asking.astype(np.int32), np.array(chosen, np.int32)


def term_weights(splade: SparseEncoder, texts: list[str], terms: int) -> Any:
    """Return the heaviest terms of each text. Shape: (texts, vocabulary), sparse."""
    vectors = splade.encode(texts, max_active_dims=terms, show_progress_bar=True).coalesce().cpu()
    return sparse.csr_matrix((vectors.values().numpy(), vectors.indices().numpy()), shape=tuple(vectors.shape))


class Encoded(NamedTuple):
    """Vectors of all texts by a bi-encoder, and cosines of tokens for all candidates.

    Shape:
        offsets: (rows + 1,). Row r has its part of `cosines`, as (candidates, tokens of the question), in 255ths.
        questions, passages: (texts, width), means of the hidden states, not normalised.
    """

    offsets: NDArray[np.int64]
    cosines: NDArray[np.uint8]
    questions: NDArray[np.float16]
    passages: NDArray[np.float16]


def encode_texts(
    texts: Texts, questions: NDArray[np.int32], passages: NDArray[np.int32], bi_encoder: SentenceTransformer
) -> Encoded:
    """Encode all texts, and compare the tokens of questions, (rows,), with those of passages, (rows, candidates)."""
    bi_encoder.max_seq_length = QUESTION_TOKENS
    encoded = dict(_encode(bi_encoder, texts.questions))
    states = [encoded[number][0] for number in range(len(texts.questions))]
    question_means = np.stack([encoded[number][1] for number in range(len(texts.questions))])
    counts = np.array([len(found) for found in states])[questions]
    offsets = np.concatenate([[0], (passages.shape[1] * counts).cumsum()])
    cosines = np.zeros(offsets[-1], np.uint8)
    order = np.argsort(passages, axis=None, kind="stable")
    starts = np.searchsorted(passages.reshape(-1)[order], np.arange(len(texts.passages) + 1))
    means = np.zeros((len(texts.passages), question_means.shape[1]), np.float16)
    bi_encoder.max_seq_length = PASSAGE_TOKENS
    for number, (found, mean) in _encode(bi_encoder, texts.passages):
        means[number] = mean
        for pair in order[starts[number] : starts[number + 1]] if len(found) else ():
            row, place = divmod(int(pair), passages.shape[1])
            best = (states[questions[row]] @ found.T).amax(1).clamp(0, 1).float()
            start = offsets[row] + place * counts[row]
            cosines[start : start + counts[row]] = np.round(255 * best.numpy())
    return Encoded(offsets, cosines, question_means, means)


def _encode(bi_encoder: SentenceTransformer, texts: list[str]) -> Iterator[tuple[int, tuple[Any, Any]]]:
    """Yield for each text its number, its normalised states without `[CLS]` and `[SEP]`, and the mean of all states."""
    by_length = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in tqdm(range(0, len(texts), BLOCK), "encoding"):
        block = by_length[start : start + BLOCK]
        with torch.autocast("cpu", torch.bfloat16):
            found = bi_encoder.encode([texts[i] for i in block], output_value="token_embeddings", batch_size=64)
        for number, states in zip(block, found, strict=True):
            values = states.cpu().float()
            tokens = torch.nn.functional.normalize(values[1:-1], dim=-1).bfloat16()
            yield number, (tokens, values.mean(0).half().numpy())


def main() -> None:
    """Parse the command line, find candidates, encode all texts, and save."""
    parser = argparse.ArgumentParser(description="Prepare what train_bundled.py learns from.")
    parser.add_argument("distill", type=Path, help="folder of the questions and candidates")
    parser.add_argument("collections", type=Path, help="folder of the folders with the passages")
    parser.add_argument("splade", help="a SPLADE model")
    parser.add_argument("bi_encoder", help="a model of sentence-transformers")
    parser.add_argument("large_bi_encoder", help="a better one")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .npz")
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    texts = read_pool(args.distill, args.collections)
    given = np.load(args.distill / "candidates.npz")
    bi_encoder, splade = SentenceTransformer(args.bi_encoder), SparseEncoder(args.splade)
    terms = [
        term_weights(splade, found, count)
        for found, count in ((texts.questions, QUESTION_TERMS), (texts.passages, PASSAGE_TERMS))
    ]
    asking, more = find_more(texts, given["passage"], bi_encoder, terms, args.seed)
    questions = np.concatenate([np.arange(len(texts.questions), dtype=np.int32), asking])
    passages = np.concatenate([given["passage"], more])
    small = encode_texts(texts, questions, passages, bi_encoder)
    large = encode_texts(texts, questions, passages, SentenceTransformer(args.large_bi_encoder))
    if not np.array_equal(small.offsets, large.offsets):
        raise SystemExit("The bi-encoders split the questions into different tokens.")
    np.savez(
        args.output,
        question=questions,
        passage=passages,
        labelled=np.concatenate([given["labelled"], np.zeros(more.shape, np.int8)]),
        offsets=small.offsets,
        cosines=np.stack([small.cosines, large.cosines]),
        question_vectors=large.questions,
        passage_vectors=large.passages,
        **{
            f"{name}_{part}": getattr(found, part)
            for name, found in zip(("question_terms", "passage_terms"), terms, strict=True)
            for part in ("data", "indices", "indptr")
        },
    )


if __name__ == "__main__":
    main()
