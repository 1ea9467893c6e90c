"""SPLADE as a part of a cross-encoder, and alone as a small one.

Sources: terms and their weights are those of SPLADE (Formal, Lassance, Piwowarski and Clinchant, 2021); the best match
of each query token is the MaxSim of ColBERT (Khattab and Zaharia, 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from marcorank.interaction.pairs import Pair, PairClassifier, PairConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BertForMaskedLM

# What decides the shape of a SPLADE model, by the names of `BertConfig`.
SPLADE_SETTINGS = (
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
)
# Terms, best tokens.
_INITIAL_WEIGHTS = (10.0, 30.0)
# SPLADE gives a short query about 20 terms.
_MAX_QUERY_TERMS = 32


class SpladeBertConfig(PairConfig):
    """Configuration of `SpladeBertForSequenceClassification`: that of the SPLADE model, and the special tokens' ids."""

    model_type = "splade-bert"

    # transformers 5 generates a constructor for a config class that defines none.
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)


class SpladeBertForSequenceClassification(PairClassifier):
    """One logit for `[CLS] query [SEP] passage [SEP]`: a weighted sum of two similarities that a SPLADE model gives.

    Its SPLADE model starts random: call `splade.copy_from` afterwards.
    """

    config_class = SpladeBertConfig
    # The part that is not the head, for those who convert models to half precision.
    base_model_prefix = "splade"

    def __init__(self, config: SpladeBertConfig) -> None:
        super().__init__(config)
        self.splade = Splade({name: getattr(config, name) for name in SPLADE_SETTINGS}, config.vocab_size)
        self.similarities = nn.Linear(len(_INITIAL_WEIGHTS), 1)
        self.post_init()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.splade:
            module.bias.zero_()
        elif module is self.similarities:
            module.weight.copy_(torch.tensor([_INITIAL_WEIGHTS]))

    def _logits(self, pair: Pair) -> Tensor:
        with torch.autocast(pair.ids.device.type, enabled=False):
            sides = self.splade(pair)
            similarities = torch.stack([self.splade.match_terms(sides), self.splade.match_tokens(sides)], 1)
            return self.similarities(similarities)


class Query(NamedTuple):
    """The distinct queries of a batch.

    Attributes:
        rows: The query of each pair. Shape: (batch,).
        ids: Shape: (queries, query tokens).
        states: Hidden states that are compared with word embeddings. Shape: (queries, query tokens, width).
        term_logits: The largest logit of each term. Shape: (queries, vocabulary).
        word: 1 for the tokens of a pair's query but `[CLS]` and `[SEP]`. Shape: (batch, query tokens).
    """

    rows: Tensor
    ids: Tensor
    states: Tensor
    term_logits: Tensor
    word: Tensor


class Sides(NamedTuple):
    """Query and passage, each read alone. The shape of the passages' states is (batch, tokens, width)."""

    pair: Pair
    query: Query
    passage_states: Tensor


class Splade(nn.Module):  # type: ignore[misc]
    """Reads each side alone with a SPLADE model, and compares their terms and their tokens."""

    def __init__(self, settings: dict[str, Any], vocab_size: int) -> None:
        super().__init__()
        fixed = {
            "vocab_size": vocab_size,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            # Fused kernels of attention cannot be exported with a free length.
            "attn_implementation": "eager",
        }
        config = BertConfig(**{**settings, **fixed})
        self.bert = BertModel(config, add_pooling_layer=False)
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.empty(vocab_size))

    def copy_from(self, model: BertForMaskedLM) -> None:
        """Copy the weights of a SPLADE model."""
        self.bert.load_state_dict(model.bert.state_dict())
        self.transform.load_state_dict(model.cls.predictions.transform.state_dict())
        self.bias.data.copy_(model.cls.predictions.bias.data)

    def forward(self, pair: Pair) -> Sides:
        """Read both sides."""
        # All passages of a batch usually have the same query: the product with the vocabulary is needed once.
        columns = slice(1, 1 + pair.query.sum(1).max())
        numbered, rows = torch.unique(((pair.ids + 1) * pair.query)[:, columns], dim=0, return_inverse=True)
        ids, real = (numbered - 1).clamp(min=0), (numbered > 0).to(pair.ids.dtype)
        states = self._states(ids, real, torch.arange(ids.shape[1], device=ids.device)[None])
        logits = (states @ self.bert.embeddings.word_embeddings.weight.float().T).amax(1) + self.bias
        query = Query(rows, ids, states, logits, (pair.query * pair.word)[:, columns])
        return Sides(pair, query, self._states(pair.ids, pair.passage, pair.positions))

    def match_terms(self, sides: Sides) -> Tensor:
        """Return the dot product of the terms, divided by the query's length in tokens. Shape: (batch,), float32.

        The product alone grows with the query, which no other similarity does. `[CLS]` and `[SEP]` count: without them,
        the product of a query of one word would outweigh everything else.
        """
        query = sides.query
        in_query, terms = query.term_logits.topk(_MAX_QUERY_TERMS)
        terms = terms[query.rows]
        words = self.bert.embeddings.word_embeddings(terms).float()
        in_passage = (sides.passage_states @ words.transpose(1, 2)).amax(1) + self.bias[terms]
        products = _term_weights(in_query)[query.rows] * _term_weights(in_passage)
        return products.sum(1) / sides.pair.query.sum(1).clamp(min=1)

    def match_tokens(self, sides: Sides) -> Tensor:
        """Return the mean, over the query's tokens, of the best cosine with a passage token. Shape: (batch,), float32.

        A token counts as much as its word does among the query's terms.
        """
        query, pair = sides.query, sides.pair
        weights = _term_weights(query.term_logits.gather(1, query.ids))[query.rows] * query.word
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
        passages = functional.normalize(sides.passage_states, dim=-1)
        cosines = functional.normalize(query.states, dim=-1)[query.rows] @ passages.transpose(1, 2)
        best = cosines.masked_fill((pair.passage * pair.word)[:, None, :] == 0, -1.0).amax(-1)
        return (best * weights).sum(1)

    def _states(self, ids: Tensor, read: Tensor, positions: Tensor) -> Tensor:
        """Return the hidden states that are compared with word embeddings. Shape: (rows, tokens, width), float32.

        Tokens that are not read get the state of the first one, and so no largest logit.
        """
        positions = positions.clamp(max=self.bert.config.max_position_embeddings - 1)
        # The buffers of older transformers end before the second [CLS] of the longest pair.
        segments = torch.zeros_like(ids)
        states = self.transform(self.bert(ids, read, segments, positions).last_hidden_state).float()
        return torch.where(read[:, :, None] > 0, states, states[:, :1])


def _term_weights(largest_logits: Tensor) -> Tensor:
    return torch.log1p(largest_logits.clamp(min=0))
