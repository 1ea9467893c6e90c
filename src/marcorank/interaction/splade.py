"""SPLADE as a part of a cross-encoder, and alone as a small one.

Sources: terms and their weights are those of SPLADE (Formal, Lassance, Piwowarski and Clinchant, 2021); the best match
of each query token is the MaxSim of ColBERT (Khattab and Zaharia, 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from marcorank.interaction.pairs import MASKED, Pair, PairConfig, read_pair

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
_INITIAL_WEIGHTS = (8.0, 30.0)
# SPLADE gives a short query about 20 terms.
_MOST_QUERY_TERMS = 32


class SpladeBertConfig(PairConfig):
    """Configuration of `SpladeBertForSequenceClassification`: that of the SPLADE model, and the special tokens' ids."""

    model_type = "splade-bert"

    # transformers 5 gives a class without a constructor another one.
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)


class SpladeBertForSequenceClassification(BertPreTrainedModel):  # type: ignore[misc]
    """One logit for `[CLS] query [SEP] passage [SEP]`: a weighted sum of what SPLADE says of the two sides.

    Its SPLADE model starts random: call `splade.copy_from` afterwards.
    """

    config_class = SpladeBertConfig

    def __init__(self, config: SpladeBertConfig) -> None:
        super().__init__(config)
        self.num_labels = 1
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

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, **_: Any
    ) -> SequenceClassifierOutput:
        """Return one logit per row.

        Shape:
            input_ids, attention_mask, token_type_ids: (batch, tokens), int64; segment 0 is the query.
            logits: (batch, 1), float32.
        """
        pair = read_pair(input_ids, attention_mask, token_type_ids, self.config)
        return SequenceClassifierOutput(logits=self.similarities(torch.stack(self.splade(pair), 1)))


class Splade(nn.Module):  # type: ignore[misc]
    """Compares the terms that a SPLADE model gives to query and passage, and their tokens; it reads each side alone."""

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

    def forward(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return two similarities. Shape: (batch,), float32, each.

        The first is the dot product of the terms, divided by the number of query tokens: the product alone grows with
        the query, which no other similarity does. The second is the mean, over the query's tokens, of the best cosine
        with a passage token; a token counts as much as its word does among the query's terms.
        """
        # All passages of a batch usually have the same query: the product with the vocabulary is needed once.
        query = slice(1, 1 + pair.query.sum(1).max())
        numbered, row = torch.unique(((pair.ids + 1) * pair.query)[:, query], dim=0, return_inverse=True)
        ids, real = (numbered - 1).clamp(min=0), (numbered > 0).to(pair.ids.dtype)
        asked = self._states(ids, real, torch.arange(ids.shape[1], device=ids.device)[None])
        words = self.bert.embeddings.word_embeddings
        in_query = _term_weights(asked @ words.weight.T, real, self.bias)
        heaviest, terms = in_query.topk(_MOST_QUERY_TERMS)
        of_own_words = in_query.gather(1, ids)

        read = self._states(pair.ids, pair.passage, pair.positions)
        in_passage = _term_weights(read @ words(terms[row]).transpose(1, 2), pair.passage, self.bias[terms[row]])
        is_word = (pair.query * pair.word)[:, query]
        weights = of_own_words[row] * is_word
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
        cosines = functional.normalize(asked, dim=-1)[row] @ functional.normalize(read, dim=-1).transpose(1, 2)
        best = cosines.masked_fill((pair.passage * pair.word)[:, None, :] == 0, -1.0).amax(-1)
        return (heaviest[row] * in_passage).sum(1) / is_word.sum(1).clamp(min=1), (best * weights).sum(1)

    def _states(self, ids: Tensor, read: Tensor, positions: Tensor) -> Tensor:
        """Return the hidden states that are compared with word embeddings. Shape: (rows, tokens, width), float32."""
        positions = positions.clamp(max=self.bert.config.max_position_embeddings - 1)
        return self.transform(self.bert(ids, read, position_ids=positions).last_hidden_state)


def _term_weights(logits: Tensor, read: Tensor, bias: Tensor) -> Tensor:
    """Return SPLADE's weight of each term: the logarithm of 1 and its largest logit. Shape: (rows, terms)."""
    return torch.log1p((logits.masked_fill(read[:, :, None] == 0, MASKED).amax(1) + bias).clamp(min=0))
