"""Rank long documents in two ways: truncated to what the model can read, and in windows over the whole text.

A cross-encoder of this kind reads 512 tokens, about 2,000 characters. `long_passages="truncate"` scores the beginning
of a longer document and reports it. `"windows"` scores all of it: the best window counts, and `span` is its position.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from pydoc_data.topics import topics

from marcorank import Ranking, Reranker

# Chapters of Python's reference; the answers to the questions come late in them.
CHAPTERS = ["attribute-access", "comparisons", "raise", "strings", "try", "typesmapping"]
QUESTIONS = [
    "What happens when finally contains a return statement?",
    "How does raise from None suppress the exception context?",
    "Does a dictionary keep the order of insertion?",
]


def places(ranking: Ranking, names: list[str]) -> dict[str, str]:
    """Return the rank and the score of each document, for the table."""
    return {names[hit.index]: f"{hit.rank:>4}  {hit.score:6.2f}" for hit in ranking}


def main() -> None:
    """Rank the documents in both ways, and print both ranks and the best window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument(
        "--docs", type=Path, help="folder of .md and .txt files; default: chapters of Python's reference"
    )
    parser.add_argument("--model", default="bundled", help="cross-encoder: bundled, a hub name or a folder")
    args = parser.parse_args()

    documents = {name: topics[name] for name in CHAPTERS}
    if args.docs:
        files = sorted(file for file in args.docs.rglob("*") if file.suffix in {".md", ".txt"})
        documents = {str(file.relative_to(args.docs)): file.read_text(encoding="utf-8") for file in files}
    names, texts = list(documents), list(documents.values())

    cut = Reranker(args.model)
    whole = Reranker(args.model, long_passages="windows")  # the weights are shared with `cut`
    for question in args.questions:
        first_part, windows = cut.rank(question, texts), whole.rank(question, texts)
        print(f"\n{question}\n")
        print(f"{'':34}{'truncated':>12}{'windows':>14}")
        print(f"{'document':<22}{'characters':>12}{'rank   score':>14}{'rank   score':>14}")
        beginning, anywhere = places(first_part, names), places(windows, names)
        for name in anywhere:
            print(f"{name:<22}{len(documents[name]):>12}  {beginning[name]}  {anywhere[name]}")
        print(f"Truncation read only the beginning of {sum(hit.truncated for hit in first_part)} of {len(texts)}.")

        best = windows[0]
        start, end = best.span
        print(f"Best window: characters {start} to {end} of {names[best.index]}; its best paragraph:")
        paragraphs = best.text[start:end].split("\n\n")
        print(textwrap.indent(cut.rank(question, paragraphs, top_n=1)[0].text, "    "))


if __name__ == "__main__":
    main()
