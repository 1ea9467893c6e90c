"""Turn a bi-encoder into the source of the bundled model, with the architecture of `marcorank.interaction`.

    python scripts/initialise_bundled.py BI_ENCODER COLLECTION... --output SOURCE_FOLDER
    python scripts/build_bundled.py SOURCE_FOLDER

BI_ENCODER is a BERT with a word-piece tokenizer, such as sentence-transformers/all-MiniLM-L6-v2. Its weights do not
change. The document frequencies of the words are counted on the passages of the collections: `corpus.jsonl.gz` in each
folder, one object per line with `text`.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer

from marcorank.interaction import InteractionBertConfig, InteractionBertForSequenceClassification

MAX_LENGTH_TOKENS = 256


def main() -> None:
    """Parse the command line, count, and save."""
    parser = argparse.ArgumentParser(description="Turn a bi-encoder into the source of the bundled model.")
    parser.add_argument("bi_encoder", help="hub name or folder")
    parser.add_argument("collections", nargs="+", type=Path, metavar="COLLECTION", help="folder with corpus.jsonl.gz")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    args = parser.parse_args()
    config = InteractionBertConfig.from_pretrained(args.bi_encoder, num_labels=1)
    model = InteractionBertForSequenceClassification.from_pretrained(args.bi_encoder, config=config)
    tokenizer = AutoTokenizer.from_pretrained(args.bi_encoder)
    texts = list(dict.fromkeys(text for folder in args.collections for text in passages_of(folder)))
    seen: Counter[int] = Counter()
    for ids in tokenizer(texts, add_special_tokens=False, truncation=True, max_length=MAX_LENGTH_TOKENS)["input_ids"]:
        seen.update(set(ids))
    model.set_word_weights([seen[number] for number in range(config.vocab_size)], len(texts))
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


def passages_of(folder: Path) -> list[str]:
    """Read the texts of a collection's passages."""
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


if __name__ == "__main__":
    main()
