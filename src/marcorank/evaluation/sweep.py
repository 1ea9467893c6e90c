"""Ranks the candidates with other settings, from logits that are known already."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from marcorank._selection.blending import order_after_skim
from marcorank._selection.selecting import Read, Selection, select
from marcorank.evaluation.measures import logit_of, per_query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ir_measures import Measure
    from numpy.typing import NDArray

    from marcorank.collections.records import Collection, Run


class Setting(NamedTuple):
    """How the candidates of each query are ranked; see `SweepPoint`."""

    top_k: int
    skim_keep: int | None = None
    blend: float = 0.0

    def having(self, option: str, chosen: float | None) -> Setting:
        """Return this setting with another value of one option; None changes nothing."""
        if chosen is None:
            return self
        return self._replace(blend=chosen) if option == "blend" else self._replace(**{option: int(chosen)})


class Sweep:
    """Measures settings without running a model: the logits of all candidates are known.

    Attributes:
        collection: The collection.
        logits: Those of the model.
        measure: The measure that decides.
    """

    def __init__(self, collection: Collection, logits: Run, measure: Measure, *, skim_logits: Run | None) -> None:
        self.collection = collection
        self.logits = logits
        self.measure = measure
        self._skim_logits = skim_logits
        self._values: dict[Setting, dict[str, float]] = {}

    def values(self, setting: Setting) -> Mapping[str, float]:
        """Return the value of each query; settings that were measured before cost nothing."""
        if setting not in self._values:
            found = per_query([self.measure], self.collection.qrels, self.run(setting))
            self._values[setting] = found[str(self.measure)]
        return self._values[setting]

    def run(self, setting: Setting) -> dict[str, dict[str, float]]:
        """Return the first candidates of each query as a `Reranker` with these settings orders them.

        The numbers are ranks from the end: scores of two models cannot be compared.
        """
        ordered = {}
        for query_id, results in self.collection.run.items():
            if query_id in self.collection.queries:
                first = dict(islice(results.items(), setting.top_k))
                doc_ids = list(first)
                order = self._order(query_id, first, setting)
                ordered[query_id] = {doc_ids[index]: float(len(order) - rank) for rank, index in enumerate(order)}
        return ordered

    def _order(self, query_id: str, first: Mapping[str, float], setting: Setting) -> list[int]:
        logits = _logits_of(self.logits, query_id, first)
        read, unread, scores = np.arange(len(first)), None, first_stage_scores(list(first.values()))
        if setting.skim_keep is not None and self._skim_logits is not None and len(first) > setting.skim_keep:
            skimmed = _logits_of(self._skim_logits, query_id, first)
            order = order_after_skim(skimmed, scores)
            read, unread = np.sort(order[: setting.skim_keep]), order[setting.skim_keep :]
        selected = select(
            [self.collection.passages[doc_id] for doc_id in first],
            Read(read, logits[read]),
            Selection(blend=setting.blend),
            activation="identity",
            retrieval_scores=scores,
            unread=unread,
        )
        order_of_all: list[int] = selected.indices.tolist()
        return order_of_all


def has_first_stage_scores(run: Run) -> bool:
    """Return whether the first stage gave any query more than an order."""
    return any(first_stage_scores(list(results.values())) is not None for results in run.values())


def first_stage_scores(scores: Sequence[float]) -> NDArray[np.float64] | None:
    """Return the scores of the first stage for `blend`; None if they only number the candidates, or are not finite.

    Where a collection is read without scores, its run counts down in steps of 1.
    """
    found = np.array(scores, dtype=np.float64)
    numbered = len(found) > 0 and bool((found[:-1] - found[1:] == 1).all()) and bool((found == np.floor(found)).all())
    return None if numbered or not np.isfinite(found).all() else found


def _logits_of(logits: Run, query_id: str, doc_ids: Mapping[str, float]) -> NDArray[np.float32]:
    given = logits.get(query_id, {})
    return np.array([logit_of(given, query_id, doc_id) for doc_id in doc_ids], dtype=np.float32)
