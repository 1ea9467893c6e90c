"""Judged queries with candidates, and the types of runs and judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
"""Grades by query_id and doc_id; 0 means judged as not relevant."""

Run: TypeAlias = Mapping[str, Mapping[str, float]]
"""Scores by query_id and doc_id, best first."""


@dataclass(frozen=True, slots=True)
class Collection:
    """Judged queries with the candidates of a first stage.

    Attributes:
        name: Shown in tables and reports.
        queries: Texts of the judged queries by query_id.
        passages: Texts by doc_id, at least of every candidate.
        qrels: The judgements.
        run: First-stage scores of each query's candidates, best first; queries without results are left out.
        notes: Irregularities of the input and how they were handled, one sentence each.
    """

    name: str
    queries: Mapping[str, str]
    passages: Mapping[str, str]
    qrels: Qrels
    run: Run
    notes: tuple[str, ...] = ()
