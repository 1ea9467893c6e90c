"""What reranking changed, query by query and candidate by candidate, for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from marcorank.evaluation.measures import identity, reranked

if TYPE_CHECKING:
    from marcorank.collections.records import Collection
    from marcorank.evaluation.records import ModelResult


@dataclass(frozen=True, slots=True)
class RankedCandidate:
    """A candidate of a query with its ranks, from 1, in the first stage and after reranking."""

    doc_id: str
    text: str
    grade: int | None
    relevant: bool
    logit: float
    old_rank: int
    new_rank: int


@dataclass(frozen=True, slots=True)
class QueryChange:
    """A query with the first measure's values before and after, and its candidates in first-stage order."""

    query_id: str
    query: str
    before: float
    after: float
    candidates: list[RankedCandidate]

    @property
    def difference(self) -> float:
        """Return what reranking gained."""
        return self.after - self.before


def query_changes(collection: Collection, result: ModelResult, *, relevant_grade: int) -> list[QueryChange]:
    """Return the queries that have candidates at the model's greatest depth, in their order."""
    depth = result.depths[-1]
    found = depth.measures[0]
    orders = reranked(collection.run, result.logits, depth.top_k)
    changes = []
    for query_id, candidates in identity(collection.run, depth.top_k).items():
        grades = collection.qrels.get(query_id, {})
        new_ranks = {doc_id: rank for rank, doc_id in enumerate(orders[query_id], 1)}
        ranked = [
            RankedCandidate(
                doc_id=doc_id,
                text=collection.passages[doc_id],
                grade=grades.get(doc_id),
                relevant=doc_id in grades and grades[doc_id] >= relevant_grade,
                logit=result.logits[query_id][doc_id],
                old_rank=rank,
                new_rank=new_ranks[doc_id],
            )
            for rank, doc_id in enumerate(candidates, 1)
        ]
        query, before = collection.queries[query_id], found.per_query_identity[query_id]
        changes.append(QueryChange(query_id, query, before, found.per_query[query_id], ranked))
    return changes
