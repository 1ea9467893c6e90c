"""A cross-encoder made of a bi-encoder and a SPLADE model, which ranks better than either before any training.

As in every cross-encoder, BERT reads query and passage in one sequence, but

* a gate per layer and head reduces the attention between the two sides, and
* the logit is a weighted sum of similarities between the two sides (of their means, of each query token with its best
  passage token, of shared words, of the terms that a SPLADE model gives them) and of a classifier on the `[CLS]`
  tokens.

With closed gates, the similarities of means and of tokens are those of the bi-encoder. Shared words and SPLADE's terms
do not depend on the gates, which start nearly closed; training can open them. A cross-encoder with a new output layer
would first have to learn what the two models already know.

Sources: the best match of each query token is the MaxSim of ColBERT (Khattab and Zaharia, 2020); the share of the
query's words, each with its inverse document frequency, is as old as retrieval; terms and their weights are those of
SPLADE (Formal, Lassance, Piwowarski and Clinchant, 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers import BertModel

from marcorank.interaction.pairs import Pair, PairClassifier, PairConfig
from marcorank.interaction.splade import Splade

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# Added to attention scores: the other side gets exp(-3), about 5 %, of its usual attention.
_INITIAL_GATE = -3.0
# Means, best tokens, best tokens by idf, words by idf, terms.
_INITIAL_WEIGHTS = (10.0, 10.0, 6.0, 2.0, 3.75)
# Brings logits near 0; scripts/calibrate_bundled.py sets the zero.
_INITIAL_BIAS = -16.0
# Far below every attention score, but not so far that half precision overflows.
_MASKED = -1e4


class InteractionBertConfig(PairConfig):
    """Configuration of BERT, with the ids of the special tokens and the shape of the SPLADE model.

    Attributes:
        splade: Settings of the SPLADE model's `BertConfig`, such as `hidden_size`; those left out are `BertConfig`'s
            defaults.
    """

    model_type = "interaction-bert"

    def __init__(self, splade: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.splade = splade or {}


class InteractionBertForSequenceClassification(PairClassifier):
    """One logit for `[CLS] query [SEP] passage [SEP]`.

    `from_pretrained` loads a folder of this architecture or of a BERT bi-encoder. Parameters that a bi-encoder lacks
    are initialised so that the model ranks much like it, but for the SPLADE model, which starts random: call
    `splade.copy_from` and `set_word_weights` afterwards.
    """

    config_class = InteractionBertConfig

    def __init__(self, config: InteractionBertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        # By layer, direction (query to passage, passage to query) and head.
        self.gates = nn.Parameter(torch.empty(config.num_hidden_layers, 2, config.num_attention_heads))
        self.word_weights = nn.Embedding(config.vocab_size, 1)
        self.splade = Splade(config.splade, config.vocab_size)
        self.similarities = nn.Linear(len(_INITIAL_WEIGHTS), 1)
        self.classifier = nn.Linear(2 * config.hidden_size, 1)
        self.post_init()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            self.gates.fill_(_INITIAL_GATE)
        elif module is self.splade:
            module.bias.zero_()
        elif module is self.word_weights:
            module.weight.fill_(1.0)
        elif module is self.similarities:
            module.weight.copy_(torch.tensor([_INITIAL_WEIGHTS]))
            module.bias.fill_(_INITIAL_BIAS)
        elif module is self.classifier:
            module.weight.zero_()
            module.bias.zero_()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def set_word_weights(self, document_frequencies: Sequence[int], documents: int) -> None:
        """Set the weight of each word piece to its inverse document frequency, scaled to a maximum of 1.

        Args:
            document_frequencies: Number of documents that contain each word piece. Shape: (vocabulary,).
            documents: Number of documents.
        """
        frequencies = torch.as_tensor(document_frequencies, dtype=torch.float32)
        idf = torch.log1p((documents - frequencies + 0.5) / (frequencies + 0.5))
        self.word_weights.weight.copy_((idf / idf.max())[:, None])

    def _logits(self, pair: Pair) -> Tensor:
        hidden = _encode(self.bert, pair, self.gates).float()
        summaries = torch.cat([hidden[:, 1], hidden[:, 0]], 1)
        with torch.autocast(hidden.device.type, enabled=False):
            terms = self.splade.match_terms(self.splade(pair))
            similarities = torch.stack([*self._similarities(pair, hidden), terms], 1)
            return self.similarities(similarities) + self.classifier(summaries)

    def _similarities(self, pair: Pair, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return the similarities of the two sides but for that of terms. Shape: (batch,) each, from -1 or 0 to 1."""
        means = (_mean(hidden, pair.query) * _mean(hidden, pair.passage)).sum(-1)
        query_word, passage_word = (pair.query * pair.word).to(hidden.dtype), pair.passage * pair.word
        directions = functional.normalize(hidden, dim=-1)
        cosines = directions @ directions.transpose(1, 2)
        best = cosines.masked_fill(passage_word[:, None, :] == 0, -1.0).amax(-1)
        same = pair.ids[:, :, None] == pair.ids[:, None, :]
        shared = (same & (passage_word[:, None, :] > 0)).any(-1).to(hidden.dtype)
        weights = self.word_weights(pair.ids)[..., 0].to(hidden.dtype).clamp(min=0) * query_word
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
        evenly = query_word / query_word.sum(1, keepdim=True).clamp(min=1)
        return means, (best * evenly).sum(1), (best * weights).sum(1), (shared * weights).sum(1)


def _encode(bert: BertModel, pair: Pair, gates: Tensor) -> Tensor:
    """Return the hidden states. Shape: (batch, tokens, width)."""
    rows, tokens = pair.ids.shape
    embeddings = bert.embeddings
    hidden = embeddings.word_embeddings(pair.ids) + embeddings.position_embeddings(pair.positions)
    hidden = embeddings.LayerNorm(hidden + embeddings.token_type_embeddings(torch.zeros_like(pair.ids)))
    sides = torch.stack([pair.query, pair.passage, 1 - pair.real], -1).to(hidden.dtype)[:, None]
    # In training, operations on single tokens skip the padding.
    kept = pair.real.flatten().nonzero()[:, 0] if bert.training else None
    hidden = hidden if kept is None else hidden.flatten(0, 1)[kept]
    for layer, of_layer in zip(bert.encoder.layer, gates, strict=True):
        hidden = _layer(layer, hidden, sides, of_layer, kept)
    return _spread(hidden, kept, rows * tokens).view(rows, tokens, -1)


def _layer(layer: Any, hidden: Tensor, sides: Tensor, gates: Tensor, kept: Tensor | None) -> Tensor:
    """Apply one layer of BERT, with gates between the sides and the padding masked.

    Shape:
        hidden: (batch, tokens, width), or (kept tokens, width).
        sides: (batch, 1, tokens, 3): whether a token belongs to the query, to the passage, or to the padding.
        gates: (2, heads).
    """
    attention = layer.attention.self
    rows, _, tokens, _ = sides.shape
    count = attention.num_attention_heads

    def heads(values: Tensor, *more: Tensor) -> Tensor:
        split = _spread(values, kept, rows * tokens).view(rows, tokens, count, -1).transpose(1, 2)
        return torch.cat([split, *(extra.expand(-1, count, -1, -1).to(split.dtype) for extra in more)], -1)

    of_query, of_passage, padding = sides.split(1, -1)
    to_passage, to_query = gates[:, :, None, None].to(sides.dtype)
    # With three more dimensions, the product of queries and keys adds the gates and masks the padding, which is cheaper
    # than a bias for each pair of tokens.
    scale = attention.attention_head_size**-0.5
    queries = heads(
        attention.query(hidden) * scale,
        of_query * to_passage,
        of_passage * to_query,
        torch.full_like(of_query, _MASKED),
    )
    keys = heads(attention.key(hidden), of_passage, of_query, padding)
    read = torch.softmax(queries @ keys.transpose(2, 3), -1) @ heads(attention.value(hidden))
    read = read.transpose(1, 2).reshape(rows, tokens, -1)
    read = read if kept is None else read.flatten(0, 1)[kept]
    output = layer.attention.output
    hidden = output.LayerNorm(hidden + output.dense(read))
    return layer.output.LayerNorm(hidden + layer.output.dense(functional.gelu(layer.intermediate.dense(hidden))))


def _spread(values: Tensor, kept: Tensor | None, count: int) -> Tensor:
    """Scatter rows back to their positions among `count` rows; the others are zero."""
    return values if kept is None else values.new_zeros(count, values.shape[-1]).index_copy(0, kept, values)


def _mean(hidden: Tensor, chosen: Tensor) -> Tensor:
    """Return the normalised mean of the chosen tokens. Shape: (batch, width)."""
    weights = chosen.to(hidden.dtype)[..., None]
    return functional.normalize((hidden * weights).sum(1), dim=-1)
