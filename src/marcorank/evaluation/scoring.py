"""Scores the candidates of a collection with several models: query by query, each pair once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from marcorank._text import quoted, shorten
from marcorank.errors import InvalidInputError, MarcoRankError, RemoteError
from marcorank.evaluation.scores import ScoreStore
from marcorank.reranker import Reranker, scorer_fingerprint, skim_for

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import ExitStack

    from marcorank.collections.records import Collection

    Progress = Callable[[int, int, str], None]

# A few texts that changed between two calls, and so were timed apart, do not hide the latency of all others.
_MIN_TIMED_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A reranker with a unique label and a store of the known logits."""

    label: str
    reranker: Reranker
    store: ScoreStore

    def logits(self, collection: Collection, top_k: int) -> dict[str, dict[str, float]]:
        """Return the logits of each query's first candidates by query_id and doc_id, in first-stage order."""
        return {
            query_id: dict(zip(passages, self.store.logits(query_id, query, passages.values()), strict=True))
            for query_id, query, passages in _candidates(collection, top_k)
        }

    def latencies_ms(self, collection: Collection, top_k: int) -> list[float] | None:
        """Return the latency of each query; None if too few were timed at this depth."""
        seconds = [
            self.store.seconds(query_id, query, passages.values())
            for query_id, query, passages in _candidates(collection, top_k)
        ]
        known = [1000.0 * took for took in seconds if took is not None]
        return known if len(known) >= _MIN_TIMED_SHARE * len(seconds) else None


def evaluated_models(
    rerankers: Sequence[Reranker], scores_folder: str | os.PathLike[str] | None, stack: ExitStack
) -> list[EvaluatedModel]:
    """Give each reranker its label and its store, which the stack closes."""
    fingerprints = _for_each(rerankers, scorer_fingerprint)
    return [
        EvaluatedModel(label, reranker, stack.enter_context(ScoreStore.in_folder(scores_folder, settings)))
        for label, reranker, settings in zip(_labels(rerankers, fingerprints), rerankers, fingerprints, strict=True)
    ]


def skimming_models(
    models: Sequence[EvaluatedModel], skim: object, scores_folder: str | os.PathLike[str] | None, stack: ExitStack
) -> list[EvaluatedModel | None]:
    """Return the model that would skim for each model, with its store, or None if it would be the model itself.

    Models that share it, or of which one is evaluated as well, share its logits. The stack closes what is made here.
    """
    if skim is None:
        return [None] * len(models)
    known = list(models)
    found = []
    for model in models:
        reranker = skim_for(model.reranker, skim)
        if reranker is not skim:
            stack.callback(reranker.close)
        settings = scorer_fingerprint(reranker)
        skimmer = next((one for one in known if one.store.settings == settings), None)
        if skimmer is None:
            store = stack.enter_context(ScoreStore.in_folder(scores_folder, settings))
            skimmer = EvaluatedModel(reranker.name, reranker, store)
            known.append(skimmer)
        found.append(None if skimmer is model else skimmer)
    return found


def score_missing(
    models: Sequence[EvaluatedModel], collection: Collection, depths: Sequence[int], progress: Progress | None
) -> None:
    """Score the pairs that no store holds yet, and store each part at once.

    The candidates between two of the ascending depths are scored and timed separately.
    """
    queries = list(_candidates(collection, depths[-1]))
    missing = [
        sum(len(model.store.missing(query_id, query, passages.values())) for query_id, query, passages in queries)
        for model in models
    ]
    total = len(models) * sum(len(set(passages.values())) for *_, passages in queries)
    unfinished = [model for model, pairs in zip(models, missing, strict=True) if pairs]
    done = total - sum(missing)
    if progress is not None:
        progress(done, total, (unfinished or models)[0].label)
    _for_each([model.reranker for model in unfinished], Reranker.warm_up)
    for model in unfinished:
        for query_id, query, passages in queries:
            for start, end in zip((0, *depths), depths, strict=False):
                part = list(passages.items())[start:end]
                texts = model.store.missing(query_id, query, [text for _, text in part])
                if not texts:
                    continue
                began = time.perf_counter()
                logits = model.reranker.score(query, texts)
                seconds = time.perf_counter() - began
                doc_ids = {text: doc_id for doc_id, text in reversed(part)}
                scored = {doc_ids[text]: text for text in texts}
                model.store.add(query_id, query, scored, logits.tolist(), seconds=seconds)
                done += len(texts)
                if progress is not None:
                    progress(done, total, model.label)


def _for_each(rerankers: Sequence[Reranker], function: Callable[[Reranker], Any]) -> list[Any]:
    """Call a function with each reranker, and report all failures at once."""

    def attempt(reranker: Reranker) -> Any:
        try:
            return function(reranker)
        except MarcoRankError as error:
            if len(rerankers) == 1:
                raise
            return error

    results = [attempt(reranker) for reranker in rerankers]
    failed = [pair for pair in zip(rerankers, results, strict=True) if isinstance(pair[1], MarcoRankError)]
    if failed:
        reasons = "\n".join(f"{shorten(repr(reranker), 200)}: {error}" for reranker, error in failed)
        first: MarcoRankError = failed[0][1]
        # The error of a status cannot be made from a message alone.
        kind = RemoteError if isinstance(first, RemoteError) else type(first)
        raise kind(
            f"{len(failed)} of {len(rerankers)} models cannot be run, and nothing was scored.\n{reasons}"
        ) from first
    return results


def _labels(rerankers: Sequence[Reranker], fingerprints: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the name of each model, with the settings in which it differs from others of that name."""
    labels = []
    for reranker, settings in zip(rerankers, fingerprints, strict=True):
        namesakes = [other for one, other in zip(rerankers, fingerprints, strict=True) if one.name == reranker.name]
        shown = ", ".join(
            _shown_setting(name, value)
            for name, value in settings.items()
            if name != "files" and any(other.get(name) != value for other in namesakes)
        )
        labels.append(f"{reranker.name} ({shown})" if shown else reranker.name)
    for label, settings in zip(labels, fingerprints, strict=True):
        if labels.count(label) > 1 or fingerprints.count(settings) > 1:
            raise InvalidInputError(
                f"`models` holds {quoted(label)} more than once with settings that give the same scores; expected each "
                "once. Custom scorers are distinguished by their attribute `name`."
            )
    return labels


def _shown_setting(name: str, value: object) -> str:
    if name == "commit":
        return f"commit={str(value)[:7]}"
    return str(value) if name in {"backend", "precision", "device", "scorer"} else f"{name}={value}"


def _candidates(collection: Collection, top_k: int) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield each query that has candidates: its query_id, its text, and the texts of its first candidates by doc_id."""
    for query_id, query in collection.queries.items():
        doc_ids = islice(collection.run.get(query_id, ()), top_k)
        if passages := {doc_id: collection.passages[doc_id] for doc_id in doc_ids}:
            yield query_id, query, passages
