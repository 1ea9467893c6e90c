"""Rerank results that a search engine has given you, and keep your own records joined to them.

The results come as JSON with a title, a url and a snippet each; other keys are kept. Without `--results` the ones in
search_results.json are taken.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from marcorank import Reranker


def main() -> None:
    """Read results, rank them by title and snippet, print the old and the new place of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", nargs="?", help="default: the query in the file")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("search_results.json"))
    parser.add_argument("--model", default="bundled", help="cross-encoder: bundled, a hub name or a folder")
    parser.add_argument("--top-n", type=int, default=None, help="results to keep; default: all")
    args = parser.parse_args()

    found = json.loads(args.results.read_text(encoding="utf-8"))
    records = found["results"]
    query = args.query or found["query"]

    # The title says much of what a result is about: let the model read it as well.
    texts = [f"{record['title']}. {record['snippet']}" for record in records]
    ranking = Reranker(args.model).rank(query, texts, top_n=args.top_n)

    print(f"Results for {query!r}, reranked by {ranking.model}\n")
    print(f"{'new':>3}  {'old':>3}  {'score':>7}  result")
    for hit in ranking:
        # `index` is the place in the list that was ranked, and so the record that the text was made from.
        record = records[hit.index]
        print(f"{hit.rank:>3}  {hit.index + 1:>3}  {hit.score:7.2f}  {record['title']}\n{'':19}{record['url']}")


if __name__ == "__main__":
    main()
