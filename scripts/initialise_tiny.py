"""Turn a SPLADE model into the source of the tiny bundled model (`marcorank.interaction`).

    python scripts/initialise_tiny.py SPLADE --output SOURCE_FOLDER
    python scripts/calibrate_bundled.py SOURCE_FOLDER COLLECTION...
    python scripts/build_bundled.py SOURCE_FOLDER --output FOLDER --only-tables --batch-tokens 1024

SPLADE is a BERT with a masked language head. Its weights do not change.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertForMaskedLM

from marcorank.interaction import SpladeBertConfig, SpladeBertForSequenceClassification


def main() -> None:
    """Parse the command line, copy, and save."""
    parser = argparse.ArgumentParser(description="Turn a SPLADE model into the source of the tiny bundled model.")
    parser.add_argument("splade", help="hub name or folder of a BERT with a masked language head")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    args = parser.parse_args()
    config = SpladeBertConfig.from_pretrained(args.splade, num_labels=1)
    # As CrossEncoder writes it: its `predict` gives logits.
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    model = SpladeBertForSequenceClassification(config)
    model.splade.copy_from(BertForMaskedLM.from_pretrained(args.splade, dtype=torch.float32))
    model.save_pretrained(args.output)
    AutoTokenizer.from_pretrained(args.splade).save_pretrained(args.output)


if __name__ == "__main__":
    main()
