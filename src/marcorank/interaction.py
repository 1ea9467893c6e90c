"""A cross-encoder that is initialised from a bi-encoder and ranks as well as it before any training.

As in every cross-encoder, BERT reads query and passage in one sequence, but

* a learned gate per layer and head reduces the attention between the two sides, and
* the logit is a weighted sum of similarities between the two sides (of their means, of each query token with its best
  passage token, of shared words) and of a classifier on the `[CLS]` tokens.

With closed gates, the similarities are those of the bi-encoder. Training opens the gates. A cross-encoder with a new
output layer would first have to learn what the bi-encoder already knows.

Needs torch and transformers. Importing this module registers the architecture with transformers, so that
`CrossEncoder(folder)` of sentence-transformers and `Reranker(folder)` load it.

Sources: the best match of each query token is the MaxSim of ColBERT (Khattab and Zaharia, 2020); the share of the
query's words, each with its inverse document frequency, is as old as retrieval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["InteractionBertConfig", "InteractionBertForSequenceClassification"]

# Added to attention scores: the other side gets exp(-3), about 5 %, of its usual attention.
_INITIAL_GATE = -3.0
# Means, best tokens, best tokens by idf, words by idf. The first two sum to 20, the usual scale of bi-encoders.
_INITIAL_WEIGHTS = (10.0, 10.0, 4.0, 1.0)
# Centres the logits of first-stage candidates around 0.
_INITIAL_BIAS = -16.0
_MASKED = -1e4


class InteractionBertConfig(BertConfig):  # type: ignore[misc]
    """Configuration of BERT, with the ids of the special tokens.

    Attributes:
        cls_token_id: The passage gets its own copy of this token, as in the bi-encoder.
        sep_token_id: Marks the end of the query and of the passage.
    """

    model_type = "interaction-bert"

    def __init__(self, cls_token_id: int = 101, sep_token_id: int = 102, **settings: Any) -> None:
        super().__init__(**settings)
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id


class InteractionBertForSequenceClassification(BertPreTrainedModel):  # type: ignore[misc]
    """One logit for `[CLS] query [SEP] passage [SEP]`.

    `from_pretrained` loads a folder of this architecture or of a BERT bi-encoder. Parameters that a bi-encoder lacks
    are initialised so that the model ranks like it; call `set_word_weights` afterwards.
    """

    config_class = InteractionBertConfig

    def __init__(self, config: InteractionBertConfig) -> None:
        super().__init__(config)
        self.num_labels = 1
        self.bert = BertModel(config, add_pooling_layer=False)
        # By layer, direction (query to passage, passage to query) and head.
        self.gates = nn.Parameter(torch.empty(config.num_hidden_layers, 2, config.num_attention_heads))
        self.word_weights = nn.Embedding(config.vocab_size, 1)
        self.similarities = nn.Linear(len(_INITIAL_WEIGHTS), 1)
        self.classifier = nn.Linear(2 * config.hidden_size, 1)
        self.post_init()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            self.gates.fill_(_INITIAL_GATE)
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
        one = torch.ones_like(input_ids[:, :1])
        ids = torch.cat([one * self.config.cls_token_id, input_ids], 1)
        real = torch.cat([one, attention_mask], 1)
        passage = torch.cat([one, token_type_ids], 1) * real
        query = real - passage
        hidden = self._encode(ids, real, query, passage).float()
        word = (ids != self.config.cls_token_id) & (ids != self.config.sep_token_id)
        similarities = self._similarities(ids, hidden, query, passage, word)
        summaries = torch.cat([hidden[:, 1], hidden[:, 0]], 1)
        with torch.autocast(hidden.device.type, enabled=False):
            return SequenceClassifierOutput(logits=self.similarities(similarities) + self.classifier(summaries))

    def _encode(self, ids: Tensor, real: Tensor, query: Tensor, passage: Tensor) -> Tensor:
        """Return the hidden states. Shape: (batch, tokens, width)."""
        embeddings = self.bert.embeddings
        rows, tokens = ids.shape
        # Positions of each side start at 0, as in the bi-encoder. The [CLS] of the passage comes before the query.
        positions = torch.arange(tokens, device=ids.device)[None] - 1
        side_positions = torch.where(passage.bool(), positions + 1 - query.sum(1, keepdim=True), positions)
        side_positions = torch.cat([torch.zeros_like(ids[:, :1]), side_positions[:, 1:]], 1)
        side_positions = side_positions.clamp(0, self.config.max_position_embeddings - 1)
        hidden = embeddings.word_embeddings(ids) + embeddings.position_embeddings(side_positions)
        hidden = embeddings.LayerNorm(hidden + embeddings.token_type_embeddings(torch.zeros_like(ids)))
        sides = torch.stack([query, passage, 1 - real], -1).to(hidden.dtype)[:, None]
        # In training, operations on single tokens skip the padding.
        kept = real.flatten().nonzero()[:, 0] if self.training else None
        hidden = hidden if kept is None else hidden.flatten(0, 1)[kept]
        for layer, gates in zip(self.bert.encoder.layer, self.gates, strict=True):
            hidden = _layer(layer, hidden, sides, gates, kept)
        return _spread(hidden, kept, rows * tokens).view(rows, tokens, -1)

    def _similarities(self, ids: Tensor, hidden: Tensor, query: Tensor, passage: Tensor, word: Tensor) -> Tensor:
        """Return the similarities of the two sides. Shape: (batch, 4), each from -1 or 0 to 1."""
        means = (_mean(hidden, query) * _mean(hidden, passage)).sum(-1)
        query_word, passage_word = (query * word).to(hidden.dtype), passage * word
        directions = functional.normalize(hidden, dim=-1)
        cosines = directions @ directions.transpose(1, 2)
        best = cosines.masked_fill(passage_word[:, None, :] == 0, -1.0).amax(-1)
        shared = ((ids[:, :, None] == ids[:, None, :]) & (passage_word[:, None, :] > 0)).any(-1).to(hidden.dtype)
        weights = self.word_weights(ids)[..., 0].to(hidden.dtype).clamp(min=0) * query_word
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
        evenly = query_word / query_word.sum(1, keepdim=True).clamp(min=1)
        return torch.stack([means, (best * evenly).sum(1), (best * weights).sum(1), (shared * weights).sum(1)], 1)


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


AutoConfig.register(InteractionBertConfig.model_type, InteractionBertConfig)
AutoModelForSequenceClassification.register(InteractionBertConfig, InteractionBertForSequenceClassification)
