"""The two sides of a pair, as a bi-encoder would read each, and what the models that compare them share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import BertConfig, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

if TYPE_CHECKING:
    from torch import Tensor


class PairConfig(BertConfig):  # type: ignore[misc]
    """Configuration of a BERT that tells the two sides of a pair apart.

    Attributes:
        cls_token_id: The passage gets its own copy of this token, as in the bi-encoder.
        sep_token_id: Marks the end of the query and of the passage.
    """

    def __init__(self, cls_token_id: int = 101, sep_token_id: int = 102, **settings: Any) -> None:
        super().__init__(**settings)
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id


class Pair(NamedTuple):
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


def read_pair(input_ids: Tensor, attention_mask: Tensor, segments: Tensor, config: PairConfig) -> Pair:
    """Tell query (segment 0) and passage apart. Shape: (batch, tokens), int64, each."""
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
    return Pair(ids, real, query, passage, positions, word)


class PairClassifier(BertPreTrainedModel):  # type: ignore[misc]
    """A BERT that returns one logit for `[CLS] query [SEP] passage [SEP]`. Subclasses define `_logits`."""

    def __init__(self, config: PairConfig) -> None:
        super().__init__(config)
        self.num_labels = 1

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, **_: Any
    ) -> SequenceClassifierOutput:
        """Return one logit per row.

        Shape:
            input_ids, attention_mask, token_type_ids: (batch, tokens), int64; segment 0 is the query.
            logits: (batch, 1), float32.
        """
        pair = read_pair(input_ids, attention_mask, token_type_ids, self.config)
        return SequenceClassifierOutput(logits=self._logits(pair))

    def _logits(self, pair: Pair) -> Tensor:
        raise NotImplementedError
