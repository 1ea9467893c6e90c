"""A cross-encoder made of a bi-encoder and a SPLADE model, which ranks better than either before any training.

As in every cross-encoder, BERT reads query and passage in one sequence, but

* a learned gate per layer and head reduces the attention between the two sides, and
* the logit is a weighted sum of similarities between the two sides (of their means, of each query token with its best
  passage token, of shared words, of the terms that a SPLADE model gives them) and of a classifier on the `[CLS]`
  tokens.

With closed gates, all similarities but the last are those of the bi-encoder; the gates do not affect SPLADE, which
reads each side alone. Training opens the gates. A cross-encoder with a new
output layer would first have to learn what the two models already know.

Needs torch and transformers. Importing this module registers the architecture with transformers, so that
`CrossEncoder(folder)` of sentence-transformers and `Reranker(folder)` load it.

Sources: the best match of each query token is the MaxSim of ColBERT (Khattab and Zaharia, 2020); the share of the
query's words, each with its inverse document frequency, is as old as retrieval; terms and their weights are those of
SPLADE (Formal, Lassance, Piwowarski and Clinchant, 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import BertForMaskedLM

__all__ = ["InteractionBertConfig", "InteractionBertForSequenceClassification"]

# Added to attention scores: the other side gets exp(-3), about 5 %, of its usual attention.
_INITIAL_GATE = -3.0
# Means, best tokens, best tokens by idf, words by idf, terms.
_INITIAL_WEIGHTS = (10.0, 10.0, 6.0, 2.0, 0.2)
# Centres the logits of first-stage candidates around 0.
_INITIAL_BIAS = -16.0
_MASKED = -1e4
# SPLADE gives a short query about 20 terms.
_MOST_QUERY_TERMS = 32


class InteractionBertConfig(BertConfig):  # type: ignore[misc]
    """Configuration of BERT, with the ids of the special tokens and the shape of the SPLADE model.

    Attributes:
        cls_token_id: The passage gets its own copy of this token, as in the bi-encoder.
        sep_token_id: Marks the end of the query and of the passage.
        splade: Settings of the SPLADE model's `BertConfig`, such as `hidden_size`; those left out are `BertConfig`'s
            defaults.
    """

    model_type = "interaction-bert"

    def __init__(
        self,
        cls_token_id: int = 101,
        sep_token_id: int = 102,
        splade: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id
        self.splade = splade or {}


class InteractionBertForSequenceClassification(BertPreTrainedModel):  # type: ignore[misc]
    """One logit for `[CLS] query [SEP] passage [SEP]`.

    `from_pretrained` loads a folder of this architecture or of a BERT bi-encoder. Parameters that a bi-encoder lacks
    are initialised so that the model ranks much like it, but for the SPLADE model, which starts random: call
    `splade.copy_from` and `set_word_weights` afterwards.
    """

    config_class = InteractionBertConfig

    def __init__(self, config: InteractionBertConfig) -> None:
        super().__init__(config)
        self.num_labels = 1
        self.bert = BertModel(config, add_pooling_layer=False)
        # By layer, direction (query to passage, passage to query) and head.
        self.gates = nn.Parameter(torch.empty(config.num_hidden_layers, 2, config.num_attention_heads))
        self.word_weights = nn.Embedding(config.vocab_size, 1)
        self.splade = SpladeTerms(config)
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

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, **_: Any
    ) -> SequenceClassifierOutput:
        """Return one logit per row.

        Shape:
            input_ids, attention_mask, token_type_ids: (batch, tokens), int64; segment 0 is the query.
            logits: (batch, 1), float32.
        """
        pair = _read_pair(input_ids, attention_mask, token_type_ids, self.config)
        hidden = _encode(self.bert, pair, self.gates).float()
        summaries = torch.cat([hidden[:, 1], hidden[:, 0]], 1)
        with torch.autocast(hidden.device.type, enabled=False):
            similarities = torch.stack([*self._similarities(pair, hidden), self.splade(pair)], 1)
            return SequenceClassifierOutput(logits=self.similarities(similarities) + self.classifier(summaries))

    def _similarities(self, pair: _Pair, hidden: Tensor) -> tuple[Tensor, ...]:
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


class SpladeTerms(nn.Module):  # type: ignore[misc]
    """The dot product of the terms that a SPLADE model gives to query and passage, each read alone."""

    def __init__(self, config: InteractionBertConfig) -> None:
        super().__init__()
        fixed = {
            "vocab_size": config.vocab_size,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            # Fused kernels of attention cannot be exported with a free length.
            "attn_implementation": "eager",
        }
        own = BertConfig(**{**config.splade, **fixed})
        self.bert = BertModel(own, add_pooling_layer=False)
        self.transform = BertPredictionHeadTransform(own)
        self.bias = nn.Parameter(torch.empty(own.vocab_size))

    def copy_from(self, model: BertForMaskedLM) -> None:
        """Copy the weights of a SPLADE model."""
        self.bert.load_state_dict(model.bert.state_dict())
        self.transform.load_state_dict(model.cls.predictions.transform.state_dict())
        self.bias.data.copy_(model.cls.predictions.bias.data)

    def forward(self, pair: _Pair) -> Tensor:
        """Return the dot products. Shape: (batch,), float32."""
        terms, in_query = self._query_terms(pair)
        states = self._states(pair.ids, pair.passage, pair.positions)
        logits = states @ self.bert.embeddings.word_embeddings(terms).transpose(1, 2)
        in_passage = _term_weights(logits, pair.passage, self.bias[terms])
        return (in_query * in_passage).sum(1)

    def _query_terms(self, pair: _Pair) -> tuple[Tensor, Tensor]:
        """Return the ids and weights of the heaviest terms of the query. Shape: (batch, terms) each."""
        # All passages of a batch usually have the same query: the product with the vocabulary is needed once.
        numbered = ((pair.ids + 1) * pair.query)[:, 1 : 1 + pair.query.sum(1).max()]
        numbered, row = torch.unique(numbered, dim=0, return_inverse=True)
        real = (numbered > 0).to(pair.ids.dtype)
        positions = torch.arange(numbered.shape[1], device=numbered.device)[None]
        states = self._states((numbered - 1).clamp(min=0), real, positions)
        logits = states @ self.bert.embeddings.word_embeddings.weight.T
        weights, terms = _term_weights(logits, real, self.bias).topk(_MOST_QUERY_TERMS)
        return terms[row], weights[row]

    def _states(self, ids: Tensor, read: Tensor, positions: Tensor) -> Tensor:
        """Return the hidden states that are compared with word embeddings. Shape: (rows, tokens, width), float32."""
        positions = positions.clamp(max=self.bert.config.max_position_embeddings - 1)
        return self.transform(self.bert(ids, read, position_ids=positions).last_hidden_state)


class _Pair(NamedTuple):
    """Tokens of query and passage, with a `[CLS]` for the passage before them. Shape: (batch, tokens) each.

    Attributes:
        ids: `[CLS] [CLS] query [SEP] passage [SEP]`, then padding.
        real: 0 for padding.
        query, passage: 1 for the tokens of that side.
        positions: In the token's own side, from 0.
        word: False for `[CLS]` and `[SEP]`.
    """

    ids: Tensor
    real: Tensor
    query: Tensor
    passage: Tensor
    positions: Tensor
    word: Tensor


def _read_pair(input_ids: Tensor, attention_mask: Tensor, segments: Tensor, config: InteractionBertConfig) -> _Pair:
    one = torch.ones_like(input_ids[:, :1])
    ids = torch.cat([one * config.cls_token_id, input_ids], 1)
    real = torch.cat([one, attention_mask], 1)
    passage = torch.cat([one, segments], 1) * real
    query = real - passage
    # Positions of each side start at 0, as in the bi-encoder. The [CLS] of the passage comes before the query.
    places = torch.arange(ids.shape[1], device=ids.device)[None] - 1
    positions = torch.where(passage.bool(), places + 1 - query.sum(1, keepdim=True), places)
    positions = torch.cat([torch.zeros_like(one), positions[:, 1:]], 1).clamp(0, config.max_position_embeddings - 1)
    word = (ids != config.cls_token_id) & (ids != config.sep_token_id)
    return _Pair(ids, real, query, passage, positions, word)


def _encode(bert: BertModel, pair: _Pair, gates: Tensor) -> Tensor:
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


def _term_weights(logits: Tensor, read: Tensor, bias: Tensor) -> Tensor:
    """Return SPLADE's weight of each term: the logarithm of 1 and its largest logit. Shape: (rows, terms)."""
    return torch.log1p((logits.masked_fill(read[:, :, None] == 0, _MASKED).amax(1) + bias).clamp(min=0))


def _mean(hidden: Tensor, chosen: Tensor) -> Tensor:
    """Return the normalised mean of the chosen tokens. Shape: (batch, width)."""
    weights = chosen.to(hidden.dtype)[..., None]
    return functional.normalize((hidden * weights).sum(1), dim=-1)


AutoConfig.register(InteractionBertConfig.model_type, InteractionBertConfig)
AutoModelForSequenceClassification.register(InteractionBertConfig, InteractionBertForSequenceClassification)
