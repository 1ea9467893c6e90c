"""Candidates scored by several models: query by query, from depth to depth, each pair once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from marcorank.errors import InvalidInputError, MarcoRankError
from marcorank.evaluation.scores import ScoreStore, scoring_settings
from marcorank.reranker import Reranker

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import ExitStack

    from marcorank.collections.records import Collection

    Progress = Callable[[int, int, str], None]

# What tells models of the same name apart.
_TELLING = ("backend", "precision", "device", "long_passages", "max_length", "max_query_tokens", "commit", "scorer")
# A few texts that were changed between two calls, and so were scored apart, do not hide the time of all others.
_TIMED_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Contender:
    """A model that takes part.

    Attributes:
        label: Tells it from the others.
        reranker: Scores.
        settings: What decides which logits it gives.
        store: The logits that are known.
    """

    label: str
    reranker: Reranker
    settings: Mapping[str, Any]
    store: ScoreStore


def contenders_of(
    rerankers: Sequence[Reranker], scores_folder: str | os.PathLike[str] | None, stack: ExitStack
) -> list[Contender]:
    """Give each reranker its label and its store, which the stack closes.

    Raises:
        InvalidInputError: Two of them give the same scores, or a store cannot be opened.
        MarcoRankError: The files of a model cannot be had.
    """
    settings = _tried(rerankers, scoring_settings)
    return [
        Contender(label, reranker, made_by, stack.enter_context(ScoreStore.in_folder(scores_folder, made_by)))
        for label, reranker, made_by in zip(_labels(rerankers, settings), rerankers, settings, strict=True)
    ]


def score_missing(
    contenders: Sequence[Contender], collection: Collection, depths: Sequence[int], progress: Progress | None
) -> None:
    """Score what no store holds yet, and keep each part at once.

    Args:
        contenders: One after the other.
        collection: Queries and candidates.
        depths: Ascending. Each adds a part of a query's candidates, which is scored and timed on its own.
        progress: Called with scored pairs, all pairs and a label, before anything is scored and after each part.

    Raises:
        MarcoRankError: A model cannot be loaded, or fails.
    """
    missing = {
        contender.label: sum(
            len(contender.store.missing(query_id, query, passages.values()))
            for query_id, query, passages in _candidates(collection, depths[-1])
        )
        for contender in contenders
    }
    total = len(contenders) * sum(len(set(passages.values())) for *_, passages in _candidates(collection, depths[-1]))
    unfinished = [contender for contender in contenders if missing[contender.label]]
    done = total - sum(missing.values())
    if progress is not None:
        progress(done, total, (unfinished or contenders)[0].label)
    _tried([contender.reranker for contender in unfinished], Reranker.warm_up)
    for contender in unfinished:
        for query_id, query, passages in _candidates(collection, depths[-1]):
            for piece in _pieces(passages, depths):
                doc_ids = {text: doc_id for doc_id, text in reversed(piece.items())}
                texts = contender.store.missing(query_id, query, piece.values())
                if not texts:
                    continue
                began = time.perf_counter()
                logits = contender.reranker.score(query, texts)
                seconds = time.perf_counter() - began
                contender.store.add(
                    query_id, query, {doc_ids[text]: text for text in texts}, logits.tolist(), seconds=seconds
                )
                done += len(texts)
                if progress is not None:
                    progress(done, total, contender.label)


def logits_of(contender: Contender, collection: Collection, top_k: int) -> dict[str, dict[str, float]]:
    """Return the logits of each query's first candidates by query_id and doc_id, in the order of the first stage."""
    return {
        query_id: dict(zip(passages, contender.store.logits(query_id, query, passages.values()), strict=True))
        for query_id, query, passages in _candidates(collection, top_k)
        if passages
    }


def latencies_ms(contender: Contender, collection: Collection, top_k: int) -> list[float] | None:
    """Return the milliseconds of queries that have candidates; None where too few of them were timed at this depth."""
    seconds = [
        contender.store.seconds(query_id, query, passages.values())
        for query_id, query, passages in _candidates(collection, top_k)
        if passages
    ]
    known = [1000.0 * took for took in seconds if took is not None]
    return known if len(known) >= _TIMED_SHARE * len(seconds) else None


def _tried(rerankers: Sequence[Reranker], trial: Callable[[Reranker], Any]) -> list[Any]:
    """Try something with each reranker, and tell of all that fail: who compares six must not start six times."""

    def result_or_error(reranker: Reranker) -> Any:
        try:
            return trial(reranker)
        except MarcoRankError as error:
            if len(rerankers) == 1:
                raise
            return error

    results = [result_or_error(reranker) for reranker in rerankers]
    failed = [pair for pair in zip(rerankers, results, strict=True) if isinstance(pair[1], MarcoRankError)]
    if failed:
        told = "\n".join(f"{reranker!r}: {error}" for reranker, error in failed)
        first: MarcoRankError = failed[0][1]
        raise type(first)(
            f"{len(failed)} of {len(rerankers)} models cannot be run, and nothing was scored.\n{told}"
        ) from first
    return results


def _labels(rerankers: Sequence[Reranker], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name each model so that it is told from the others."""
    labels = []
    for place, reranker in enumerate(rerankers):
        namesakes = [made_by for other, made_by in zip(rerankers, settings, strict=True) if other.name == reranker.name]
        differing = [key for key in _TELLING if len({str(made_by.get(key)) for made_by in namesakes}) > 1]
        told = ", ".join(_told(key, settings[place].get(key)) for key in differing)
        labels.append(f"{reranker.name} ({told})" if told else reranker.name)
    for label, made_by in zip(labels, settings, strict=True):
        if labels.count(label) > 1 or settings.count(made_by) > 1:
            raise InvalidInputError(
                f"`models` holds {label!r} more than once with settings that give the same scores; expected each "
                "once. A scorer of your own is told from others by its attribute `name`."
            )
    return labels


def _told(key: str, value: object) -> str:
    if key == "commit":
        return f"commit={str(value)[:7]}"
    return str(value) if key in {"backend", "precision", "device", "scorer"} else f"{key}={value}"


def _candidates(collection: Collection, top_k: int) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield query_id, query and the texts of its first candidates by doc_id, best first."""
    for query_id, query in collection.queries.items():
        doc_ids = islice(collection.run.get(query_id, ()), top_k)
        yield query_id, query, {doc_id: collection.passages[doc_id] for doc_id in doc_ids}


def _pieces(passages: Mapping[str, str], depths: Sequence[int]) -> Iterator[dict[str, str]]:
    """Yield what each depth adds to the one before."""
    items = list(passages.items())
    for start, end in zip((0, *depths), depths, strict=False):
        yield dict(items[start:end])
