"""Turn a bi-encoder and a SPLADE model into the source of the bundled model (`marcorank.interaction`).

    python scripts/initialise_bundled.py BI_ENCODER SPLADE COLLECTION... --output SOURCE_FOLDER
    python scripts/calibrate_bundled.py SOURCE_FOLDER COLLECTION...
    python scripts/build_bundled.py SOURCE_FOLDER

Both are BERTs with the same word pieces, such as sentence-transformers/all-MiniLM-L6-v2 and a small SPLADE model. Their
weights do not change, except that the word embeddings of the bi-encoder are rounded: each pair of columns takes at most
256 different values, so that a pair can be stored as one byte (product quantisation: Jégou, Douze and Schmid, 2011).
The document frequencies of the words are counted on the passages of the collections: `corpus.jsonl.gz` in each folder,
one object per line with `text`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from json_lines import read_rows
from sklearn.cluster import KMeans
from tqdm import tqdm
from transformers import AutoTokenizer, BertForMaskedLM

from marcorank.interaction import InteractionBertConfig, InteractionBertForSequenceClassification
from marcorank.interaction.splade import SPLADE_SETTINGS

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_LENGTH_TOKENS = 256
CODES = 256


def main() -> None:
    """Parse the command line, count, and save."""
    parser = argparse.ArgumentParser(description="Turn two models into the source of the bundled model.")
    parser.add_argument("bi_encoder", help="hub name or folder")
    parser.add_argument("splade", help="hub name or folder of a BERT with a masked language head")
    parser.add_argument("collections", nargs="+", type=Path, metavar="COLLECTION", help="folder with corpus.jsonl.gz")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.bi_encoder)
    if tokenizer.get_vocab() != AutoTokenizer.from_pretrained(args.splade).get_vocab():
        raise SystemExit("The bi-encoder and the SPLADE model have different word pieces.")
    splade = BertForMaskedLM.from_pretrained(args.splade, dtype=torch.float32)
    config = InteractionBertConfig.from_pretrained(args.bi_encoder, num_labels=1)
    config.splade = {name: getattr(splade.config, name) for name in SPLADE_SETTINGS}
    # As CrossEncoder writes it: its `predict` gives logits.
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model = InteractionBertForSequenceClassification.from_pretrained(args.bi_encoder, config=config)
    model.splade.copy_from(splade)
    texts = list(
        dict.fromkeys(row["text"] for folder in args.collections for row in read_rows(folder / "corpus.jsonl.gz"))
    )
    seen: Counter[int] = Counter()
    for ids in tokenizer(texts, add_special_tokens=False, truncation=True, max_length=MAX_LENGTH_TOKENS)["input_ids"]:
        seen.update(set(ids))
    frequencies = [seen[number] for number in range(config.vocab_size)]
    model.set_word_weights(frequencies, len(texts))
    table = model.bert.embeddings.word_embeddings.weight.data
    # A rounding error counts as often as its word occurs, damped as in word2vec's sampling, and at least a little.
    table.copy_(torch.from_numpy(round_pairs(table.numpy(), np.sqrt(1 + np.array(frequencies)))))
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


def round_pairs(table: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Replace each pair of columns by the nearest of 256 pairs, which k-means chooses.

    Shape:
        table: (words, width), with an even width.
        weights: (words,), how much the error of a word counts.
    """
    rounded = np.empty_like(table)
    for start in tqdm(range(0, table.shape[1], 2), "rounding word embeddings"):
        pairs = table[:, start : start + 2]
        means = KMeans(min(CODES, len(np.unique(pairs, axis=0))), n_init=1, max_iter=50, random_state=0)
        codes = means.fit_predict(pairs, sample_weight=weights)
        rounded[:, start : start + 2] = means.cluster_centers_[codes]
    return rounded


if __name__ == "__main__":
    main()
