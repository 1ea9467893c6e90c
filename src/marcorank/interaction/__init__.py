"""The architectures of the bundled models: cross-encoders that rank well before any training.

Both are built from models that read query and passage separately, and compare the two:

* `InteractionBertForSequenceClassification`, of a bi-encoder and a SPLADE model: `"bundled"`;
* `SpladeBertForSequenceClassification`, of a SPLADE model: `"bundled-tiny"`.

Needs torch and transformers. Importing this module registers both with transformers, so that `CrossEncoder(folder)` of
sentence-transformers and `Reranker(folder)` load them.
"""

from transformers import AutoConfig, AutoModelForSequenceClassification

from marcorank.interaction.bert import InteractionBertConfig, InteractionBertForSequenceClassification
from marcorank.interaction.splade import SpladeBertConfig, SpladeBertForSequenceClassification

__all__ = [
    "InteractionBertConfig",
    "InteractionBertForSequenceClassification",
    "SpladeBertConfig",
    "SpladeBertForSequenceClassification",
]

for _config, _model in (
    (InteractionBertConfig, InteractionBertForSequenceClassification),
    (SpladeBertConfig, SpladeBertForSequenceClassification),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForSequenceClassification.register(_config, _model)
