"""`evaluate`, which measures what models make of a first stage, and `evaluate_runs` for what is ranked already."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from marcorank._arguments import whole_number
from marcorank._models.catalogue import BUNDLED
from marcorank.collections.reading import read_collection
from marcorank.collections.records import Collection
from marcorank.errors import InvalidInputError, MissingExtraError
from marcorank.evaluation.calibration import calibrate
from marcorank.evaluation.comparison import compare, depth_result
from marcorank.evaluation.cutting import cuts
from marcorank.evaluation.measures import DEFAULT_MEASURES, mean, parse_measures, per_query
from marcorank.evaluation.records import ModelResult
from marcorank.evaluation.results import Evaluation, RunResult, RunsEvaluation
from marcorank.evaluation.scoring import contenders_of, latencies_ms, logits_of, score_missing
from marcorank.reranker import Reranker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ir_measures import Measure

    from marcorank.collections.records import Qrels, Run
    from marcorank.evaluation.scoring import Progress

    ModelLike = str | os.PathLike[str] | Reranker

DEFAULT_TOP_K = (10, 20, 50, 100)


def evaluate(
    collection: Collection | str | os.PathLike[str],
    models: ModelLike | Iterable[ModelLike] = BUNDLED,
    *,
    top_k: int | Iterable[int] | None = None,
    measures: Iterable[str | Measure] = DEFAULT_MEASURES,
    relevant_grade: int = 1,
    scores_folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Evaluation:
    """Rerank the first stage of a collection with each model, at each depth, and measure what that gives.

    Every judged query counts; one without candidates has 0. Queries are scored one at a time and timed. A pair is
    scored once, however many depths use it.

    Args:
        collection: What `read_collection` returned, or what it takes.
        models: One or several: names or paths as `Reranker` takes them, or rerankers.
        top_k: How many of the first stage's candidates are reranked; one number or several. None takes 10, 20, 50 and
            100, up to the first of them that no query's candidates exceed.
        measures: As ir_measures spells them, such as `"nDCG@10"` or `"RR(rel=2)@10"`.
        relevant_grade: Minimum grade that counts as relevant, to measures that name none themselves, to cuts and to
            the calibration.
        scores_folder: Where logits are kept as soon as they are there; who calls again with the same folder goes on
            where the last call stopped. None keeps nothing.
        progress: Called with the pairs that are scored, with all pairs and with the label of the model: once before
            anything is scored, and then after each part of a query's candidates.
        seed: Of the randomisation tests and the bootstrap intervals.

    Raises:
        InvalidInputError: An argument is not allowed, the collection cannot be used, or the folder cannot.
        MissingExtraError: A package of the extra `evaluation` is missing.
        ScoreError: A model gave something else than one finite logit a passage.
        MarcoRankError: A model cannot be loaded; no other one is run then.
    """
    if not isinstance(collection, Collection):
        collection = read_collection(collection)
    _check(collection)
    depths = _default_depths(collection) if top_k is None else _depths(top_k)
    least_grade = whole_number("relevant_grade", relevant_grade, 1)
    wanted = parse_measures(measures, relevant_grade=least_grade)
    _check_scipy()
    with ExitStack() as stack:
        rerankers = [
            model if isinstance(model, Reranker) else stack.enter_context(Reranker(model)) for model in _listed(models)
        ]
        contenders = contenders_of(rerankers, scores_folder, stack)
        score_missing(contenders, collection, depths, progress)
        results = [
            ModelResult(
                label=contender.label,
                settings=contender.settings,
                depths=tuple(
                    depth_result(
                        collection, logits, depth, wanted, latencies_ms(contender, collection, depth), seed=seed
                    )
                    for depth in depths
                ),
                logits=logits,
                cuts=cuts(collection, logits, relevant_grade=least_grade, measure=wanted[0]),
                calibration=calibrate(collection, logits, relevant_grade=least_grade),
            )
            for contender in contenders
            for logits in [logits_of(contender, collection, depths[-1])]
        ]
    return Evaluation(
        collection=collection,
        measures=tuple(map(str, wanted)),
        models=tuple(results),
        relevant_grade=least_grade,
        notes=(*collection.notes, *_latency_notes(results, collection)),
    )


def evaluate_runs(
    runs: Mapping[str, Run],
    qrels: Qrels,
    *,
    measures: Iterable[str | Measure] = DEFAULT_MEASURES,
    relevant_grade: int = 1,
    baseline: str | None = None,
    seed: int = 0,
) -> RunsEvaluation:
    """Measure finished runs and compare each with one of them.

    This is how retrievers and query engines are evaluated with and without a reranker: `run_of` collects their runs.

    Args:
        runs: By label, such as `"without"` and `"with"`; results of each query, best first.
        qrels: What is judged. Every judged query counts; one without results has 0.
        measures: As ir_measures spells them.
        relevant_grade: Minimum grade that counts as relevant, to measures that name none themselves.
        baseline: Label of the run that the others are compared with; None for the first.
        seed: Of the randomisation tests and the bootstrap intervals.

    Raises:
        InvalidInputError: An argument is not allowed.
        MissingExtraError: A package of the extra `evaluation` is missing.
    """
    if not isinstance(runs, Mapping) or not runs:
        raise InvalidInputError(f"`runs` is {runs!r}; expected at least one run by its label.")
    if not qrels:
        raise InvalidInputError("`qrels` is empty; expected grades by query_id and doc_id.")
    base = next(iter(runs)) if baseline is None else baseline
    if base not in runs:
        raise InvalidInputError(f"`baseline` is {base!r}; expected one of {', '.join(map(repr, runs))}.")
    for label, run in runs.items():
        if run and not run.keys() & qrels.keys():
            raise InvalidInputError(
                f"Run {label!r} has none of the judged queries: its first is {next(iter(run))!r}, that of the qrels "
                f"{next(iter(qrels))!r}. Expected the same query ids in both."
            )
    wanted = parse_measures(measures, relevant_grade=whole_number("relevant_grade", relevant_grade, 1))
    _check_scipy()
    values = {label: per_query(wanted, qrels, run) for label, run in runs.items()}
    return RunsEvaluation(
        baseline=base,
        queries=len(qrels),
        runs=tuple(
            RunResult(
                label=label,
                measure=name,
                value=mean(found[name]),
                comparison=compare(found[name], values[base][name], seed=seed),
                per_query=found[name],
            )
            for label, found in values.items()
            for name in found
        ),
    )


def _check(collection: Collection) -> None:
    name = collection.name
    if not collection.queries:
        raise InvalidInputError(f"Collection {name!r} has no judged query; expected at least one.")
    candidates = [(query_id, doc_id) for query_id in collection.queries for doc_id in collection.run.get(query_id, ())]
    for query_id in sorted({*collection.queries} ^ {*collection.qrels}):
        lacking = "judgement" if query_id in collection.queries else "text"
        if lacking == "judgement" or query_id in collection.run:
            raise InvalidInputError(
                f"Collection {name!r} has no {lacking} for query {query_id!r}; expected a text and judgements for each "
                "query that has candidates."
            )
    if not candidates:
        raise InvalidInputError(
            f"Collection {name!r} has no candidate for any of its {len(collection.queries)} judged queries; expected "
            "the same query ids in run and qrels."
        )
    for query_id, doc_id in candidates:
        if doc_id not in collection.passages:
            raise InvalidInputError(
                f"Collection {name!r} has no text for passage {doc_id!r}, a candidate of query {query_id!r}; expected "
                "a text for every candidate."
            )


def _default_depths(collection: Collection) -> tuple[int, ...]:
    most = max(len(collection.run.get(query_id, ())) for query_id in collection.queries)
    return tuple(depth for below, depth in zip((0, *DEFAULT_TOP_K), DEFAULT_TOP_K, strict=False) if below < most)


def _depths(top_k: object) -> tuple[int, ...]:
    given = list(top_k) if isinstance(top_k, Iterable) and not isinstance(top_k, (str, bytes)) else [top_k]
    if not given:
        raise InvalidInputError("`top_k` is empty; expected at least one number of candidates to rerank.")
    return tuple(sorted({whole_number("top_k", depth, 1) for depth in given}))


def _listed(models: object) -> list[Any]:
    given = [models] if isinstance(models, (str, os.PathLike, Reranker)) else models
    if not isinstance(given, Iterable) or not (listed := list(given)):
        raise InvalidInputError(f"`models` is {models!r}; expected a model name, a Reranker, or several of those.")
    for model in listed:
        if not isinstance(model, (str, os.PathLike, Reranker)):
            raise InvalidInputError(
                f"A model is {model!r}; expected a name, the path of a model folder, or a Reranker, which can hold a "
                "scorer of your own."
            )
    return listed


def _latency_notes(results: Iterable[ModelResult], collection: Collection) -> Iterator[str]:
    for result in results:
        untimed = [str(depth.top_k) for depth in result.depths if depth.latency_p50_ms is None]
        if untimed and collection.run:
            yield (
                f"No latency is known of {result.label} at top_k {', '.join(untimed)}: its candidates were scored "
                "for other depths, in another number at once."
            )


def _check_scipy() -> None:
    if importlib.util.find_spec("scipy") is None:
        raise MissingExtraError('Comparisons need the package scipy: pip install "marcorank[evaluation]"')
