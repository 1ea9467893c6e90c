"""Scores pairs through `CrossEncoder.predict`, for models whose pairs sentence-transformers makes up itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._inference.backends.torch import UNTRUNCATED
from marcorank._inference.pairs import encodable_text
from marcorank._inference.scorer import PassageScores, PlainScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from marcorank._inference.scheduler import Scheduler
    from marcorank._inference.scorer import Request

_BATCH_SIZE = 4


class PredictScorer(PlainScorer):
    """A cross-encoder that inserts each pair into a chat template, or tokenises it in a way of its own.

    Truncation is reported; windows are not supported.
    """

    def __init__(self, scheduler: Scheduler, *, name: str, prompt: str, max_length: int | None) -> None:
        """Keep the `Scheduler` of a `TorchBackend`, which scorers share and which keeps the model loaded."""
        self._predict = _Predict(scheduler, name=name, prompt=prompt, max_length=max_length)
        super().__init__(self._predict)

    def score_requests(self, requests: Sequence[Request]) -> list[PassageScores]:
        """Score the requests one after the other."""
        return [
            PassageScores(scores.logits, truncated=self._predict.truncated(query, passages))
            for (query, passages), scores in zip(requests, super().score_requests(requests), strict=True)
        ]


class _Predict:
    def __init__(self, scheduler: Any, *, name: str, prompt: str, max_length: int | None) -> None:
        self.name = name
        self._scheduler = scheduler
        self._backend = scheduler.backend
        self._prompt = prompt
        limits = [limit for limit in (max_length, self._backend.cross_encoder.max_seq_length) if limit is not None]
        self._max_length = min(limits, default=None)

    def score(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Return one logit per passage, in input order. Shape: (passages,), float32."""
        import torch

        with self._backend.predict_lock:
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
        if self._max_length is None or not passages:
            return np.zeros(len(passages), dtype=np.bool_)
        with self._backend.predict_lock:
            features = self._backend.cross_encoder.preprocess(
                _pairs(query, passages), prompt=self._prompt, processing_kwargs={"text": UNTRUNCATED}
            )
        lengths = features["attention_mask"].sum(dim=1).numpy()
        return np.asarray(lengths > self._max_length)

    def _processing(self) -> dict[str, Any]:
        return {} if self._max_length is None else {"text": {"max_length": self._max_length}}


def _pairs(query: str, passages: Sequence[str]) -> list[tuple[str, str]]:
    return [(encodable_text(query), encodable_text(passage)) for passage in passages]
