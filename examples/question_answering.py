"""Find the sentence that answers a question, or report that there is none.

With `activation="sigmoid"` scores are from 0 to 1, and `score_threshold` is on that scale. A score is not a
probability: 0.5 works for these few sentences and the bundled model. Try it on your own questions, some of them
without an answer.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from marcorank import Reranker

PASSAGES = """
The Danube is the second-longest river in Europe. The Danube rises in the Black Forest in Germany and flows for about
2,850 km to the Black Sea. Four capitals stand on its banks: Vienna, Bratislava, Budapest and Belgrade.

The Rhine begins in the Swiss Alps and reaches the North Sea in the Netherlands. It is among the busiest waterways of
the world. The largest city on the Rhine is Cologne, with more than a million people.

The first bridge over the lower Danube was finished in the year 105. It was built by the architect Apollodorus of
Damascus for the emperor Trajan. For more than a thousand years no longer arch bridge was built.
"""
QUESTIONS = [
    "Where does the Danube rise?",
    "Which architect built the bridge for Trajan?",
    "How many people live in Cologne?",
    "How do I train a neural network?",
]


def main() -> None:
    """Split the text into sentences, rank them for each question, and print the best one above the threshold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--passages", type=Path, help="a text file with a blank line between passages")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of an answer, from 0 to 1")
    parser.add_argument("--model", default="bundled", help="cross-encoder: bundled, a hub name or a folder")
    args = parser.parse_args()

    text = args.passages.read_text(encoding="utf-8") if args.passages else PASSAGES
    passages = [" ".join(passage.split()) for passage in re.split(r"\n\s*\n", text.strip())]
    sentences = [
        (sentence, number)
        for number, passage in enumerate(passages, 1)
        for sentence in re.split(r"(?<=[.!?])\s+", passage)
    ]

    reranker = Reranker(args.model, activation="sigmoid")
    requests = [(question, [sentence for sentence, _ in sentences]) for question in args.questions]
    for ranking in reranker.rank_many(requests, top_n=1, score_threshold=args.threshold):
        print(f"\n{ranking.query}")
        if not ranking:
            print(f"  No answer found: none of {len(sentences)} sentences reaches {args.threshold}.")
        for hit in ranking:
            print(f"  {hit.text}\n  (score {hit.score:.3f}, passage {sentences[hit.index][1]})")


if __name__ == "__main__":
    main()
