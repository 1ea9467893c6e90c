"""Scores pairs through `CrossEncoder.predict`, for models whose pairs sentence-transformers makes up itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._inference.backends.torch import UNTRUNCATED, computing
from marcorank._inference.scorer import PassageScores, PlainScorer
from marcorank._inference.words import encodable_text
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from marcorank._inference.scheduler import Scheduler
    from marcorank._inference.scorer import Request

_BATCH_SIZE = 4


class PredictScorer(PlainScorer):
    """A cross-encoder that inserts each pair into a chat template, or tokenises it in a way of its own.

    Truncation of passages is reported, and a query that leaves no room for a passage is an error. Windows are not
    supported.
    """

    def __init__(self, scheduler: Scheduler, *, name: str, prompt: str, max_length: int | None) -> None:
        """Keep the `Scheduler` of a `TorchBackend`, which scorers share and which keeps the model loaded."""
        self._predict = _Predict(scheduler, name=name, prompt=prompt, max_length=max_length)
        super().__init__(self._predict)

    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score the requests one after the other."""
        return [
            PassageScores(scores.logits, truncated=self._predict.truncated(query, passages), query_truncated=False)
            for (query, passages), scores in zip(requests, super().score_requests(requests), strict=True)
        ]


class _Predict:
    def __init__(self, scheduler: Any, *, name: str, prompt: str, max_length: int | None) -> None:
        self.name = name
        self._scheduler = scheduler
        self._backend = scheduler.backend
        self._prompt = encodable_text(prompt)
        limits = [limit for limit in (max_length, self._backend.cross_encoder.max_seq_length) if limit is not None]
        self._max_length = min(limits, default=None)

    def score(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Return one logit per passage, in input order. Shape: (passages,), float32."""
        import torch

        if self._max_length is not None and (others := self._count_tokens(query, "")) >= self._max_length:
            raise InvalidInputError(
                f"The query, with the prompt or template of `{self.name}`, has {others} tokens; that leaves none of "
                f"{self._max_length} for a passage. Shorten the query or `instruction`, or raise `max_length`."
            )
        with self._backend.predict_lock, computing:
            scores = self._backend.cross_encoder.predict(
                _pairs(query, passages),
                prompt=self._prompt,
                batch_size=_BATCH_SIZE,
                show_progress_bar=False,
                activation_fn=torch.nn.Identity(),
                processing_kwargs=self._processing(),
            )
        return np.asarray(scores, dtype=np.float32)

    def truncated(self, query: str, passages: Sequence[str]) -> NDArray[np.bool_]:
        """Return whether each pair is longer than the limit. Shape: (passages,), bool."""
        limit = self._max_length
        if limit is None:
            return np.zeros(len(passages), dtype=np.bool_)
        others = self._count_tokens(query, "")
        return np.array(
            [
                others + len(text.encode("utf-8", "replace")) > limit and self._count_tokens(query, text) > limit
                for text in passages
            ],
            dtype=np.bool_,
        )

    def _count_tokens(self, query: str, passage: str) -> int:
        with self._backend.predict_lock:
            features = self._backend.cross_encoder.preprocess(
                _pairs(query, [passage]), prompt=self._prompt, processing_kwargs={"text": UNTRUNCATED}
            )
        return int(features["attention_mask"].sum())

    def _processing(self) -> dict[str, Any]:
        return {} if self._max_length is None else {"text": {"max_length": self._max_length}}


def _pairs(query: str, passages: Sequence[str]) -> list[tuple[str, str]]:
    return [(encodable_text(query), encodable_text(passage)) for passage in passages]
