"""Judged queries with candidates, and the types of runs and judgements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
"""Grades by query_id and doc_id; 0 is judged and not relevant."""

Run: TypeAlias = Mapping[str, Mapping[str, float]]
"""Scores by query_id and doc_id, best first."""


@dataclass(frozen=True, slots=True)
class Collection:
    """Judged queries with the candidates of a first stage.

    Attributes:
        name: Shown in tables and reports.
        queries: Texts by query_id: those that are judged.
        passages: Texts by doc_id: at least every candidate's.
        qrels: What is judged.
        run: First-stage scores of each query's candidates, best first; a query without results has none.
        notes: What was odd in the input and what became of it, a sentence each.
    """

    name: str
    queries: Mapping[str, str]
    passages: Mapping[str, str]
    qrels: Qrels
    run: Run
    notes: tuple[str, ...] = ()
