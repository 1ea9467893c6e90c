"""Rerank the results of a search engine, and match them with your own records.

The results are JSON objects with a title, a url and a snippet; other keys are kept. Without `--results` the program
reads search_results.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from marcorank import Reranker


def main() -> None:
    """Read results, rank them by title and snippet, and print the old and the new rank of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", nargs="?", help="default: the query in the file")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("search_results.json"))
    parser.add_argument("--model", default="bundled", help="cross-encoder: bundled, a hub name or a folder")
    parser.add_argument("--top-n", type=int, default=None, help="results to keep; default: all")
    args = parser.parse_args()

    found = json.loads(args.results.read_text(encoding="utf-8"))
    records = found["results"]
    query = args.query or found["query"]

    # The title often says what a result is about, so the model should read it as well.
    texts = [f"{record['title']}. {record['snippet']}" for record in records]
    ranking = Reranker(args.model).rank(query, texts, top_n=args.top_n)

    print(f"Results for {query!r}, reranked by {ranking.model}\n")
    print(f"{'new':>3}  {'old':>3}  {'score':>7}  result")
    for hit in ranking:
        # `index` is the position in the input list, and so identifies the record.
        record = records[hit.index]
        print(f"{hit.rank:>3}  {hit.index + 1:>3}  {hit.score:7.2f}  {record['title']}\n{'':19}{record['url']}")


if __name__ == "__main__":
    main()
