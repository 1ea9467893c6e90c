"""`evaluate`, which reranks and measures, and `evaluate_runs`, which measures finished runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING, Any

from marcorank._arguments import whole_number
from marcorank._models.catalogue import BUNDLED
from marcorank._text import first_few, quoted
from marcorank.collections.reading import read_collection
from marcorank.collections.records import Collection
from marcorank.errors import InvalidInputError, MissingExtraError
from marcorank.evaluation.calibration import calibrate
from marcorank.evaluation.choosing import choose
from marcorank.evaluation.comparison import compare, depth_result
from marcorank.evaluation.measures import DEFAULT_MEASURES, mean, parse_measures, per_query
from marcorank.evaluation.recommending import with_code
from marcorank.evaluation.records import ModelResult
from marcorank.evaluation.results import Evaluation, RunResult, RunsEvaluation
from marcorank.evaluation.scoring import evaluated_models, score_missing, skimming_models
from marcorank.evaluation.sweep import Sweep, has_first_stage_scores
from marcorank.evaluation.thresholds import cuts
from marcorank.reranker import Reranker, changed_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ir_measures import Measure

    from marcorank.collections.records import Qrels, Run
    from marcorank.evaluation.records import Choices, DepthResult
    from marcorank.evaluation.scoring import EvaluatedModel, Progress
    from marcorank.scorer import Scorer

    ModelLike = str | os.PathLike[str] | Reranker

DEFAULT_TOP_K = (10, 20, 50, 100)
# Settings that change an order without changing a logit.
_SWEPT = ("skim", "blend", "max_similarity", "max_drop")


def evaluate(
    collection: Collection | str | os.PathLike[str],
    models: ModelLike | Iterable[ModelLike] = BUNDLED,
    *,
    top_k: int | Iterable[int] | None = None,
    skim: ModelLike | Scorer | None = None,
    measures: Iterable[str | Measure] = DEFAULT_MEASURES,
    relevant_grade: int = 1,
    scores_folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Evaluation:
    """Rerank the first stage of a collection with each model, at each depth, and measure the results.

    Every judged query counts; a query without candidates has the value 0. Queries are scored and timed one at a time.
    A pair is scored once, however many depths use it.

    `blend`, `top_k` and, with `skim`, `skim_keep` are chosen on one half of the queries and measured on the other;
    what holds there is recommended.

    Args:
        collection: A `Collection`, or anything that `read_collection` takes.
        models: Names, paths and rerankers, one or several.
        top_k: Numbers of candidates to rerank, one or several. None uses 10, 20, 50 and 100, up to the first that no
            query's candidates exceed.
        skim: A cheaper model that may read all candidates first; see the setting `skim` of `Reranker`. It reads each
            candidate once, whatever number of them the models would read after it.
        measures: Names in the spelling of ir_measures, such as `"nDCG@10"` or `"RR(rel=2)@10"`.
        relevant_grade: Minimum grade that counts as relevant, for measures that name no grade, for the thresholds and
            for the calibration.
        scores_folder: Folder in which logits are saved as soon as they are computed; a later call scores only the
            missing ones. None saves nothing.
        progress: Called with the number of scored pairs, the number of all pairs and the label of the model, once
            before anything is scored and then after each part of a query's candidates.
        seed: Seed of the randomisation tests and the bootstrap intervals.

    Raises:
        InvalidInputError: An argument is not allowed, or the collection or the folder cannot be used.
        MissingExtraError: A package of the extra `evaluation` is missing.
        ScoreError: A model did not return one finite logit for each passage.
        MarcoRankError: A model cannot be loaded; then no model is run.
    """
    if not isinstance(collection, Collection):
        collection = read_collection(collection)
    _check(collection)
    depths = _depths(top_k, collection)
    grade = whole_number("relevant_grade", relevant_grade, 1)
    parsed = parse_measures(measures, relevant_grade=grade)
    # What a measure does not take in these judgements shows before anything is scored.
    per_query(parsed, collection.qrels, collection.run)
    if importlib.util.find_spec("scipy") is None:
        raise MissingExtraError('Calibration needs the package scipy: pip install "marcorank[evaluation]"')
    results = []
    with ExitStack() as stack:
        rerankers = [
            model if isinstance(model, Reranker) else stack.enter_context(Reranker(model)) for model in _listed(models)
        ]
        for reranker in rerankers:
            _check_not_swept(reranker)
        evaluated = evaluated_models(rerankers, scores_folder, stack)
        skimming = skimming_models(evaluated, skim, scores_folder, stack)
        others = [model for model in dict.fromkeys(skimming) if model is not None and model not in evaluated]
        score_missing([*evaluated, *others], collection, depths, progress)
        for model, skimmer in zip(evaluated, skimming, strict=True):
            logits = model.logits(collection, depths[-1])
            measured = tuple(
                depth_result(collection, logits, depth, parsed, model.latencies_ms(collection, depth), seed=seed)
                for depth in depths
            )
            choices = _choices(collection, logits, parsed[0], measured, skimmer, relevant_grade=grade, seed=seed)
            results.append(
                ModelResult(
                    label=model.label,
                    settings=model.store.settings,
                    depths=measured,
                    logits=logits,
                    cuts=cuts(collection, logits, relevant_grade=grade, measure=parsed[0]),
                    calibration=calibrate(collection, logits, relevant_grade=grade),
                    choices=with_code(choices, model.reranker, skim, has_scores=has_first_stage_scores(collection.run)),
                )
            )
    return Evaluation(
        collection=collection,
        measures=tuple(map(str, parsed)),
        models=tuple(results),
        relevant_grade=grade,
        notes=(*collection.notes, *_relevance_notes(collection.qrels), *_latency_notes(results)),
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
    """Measure finished runs and compare each with a baseline.

    Evaluate retrievers and query engines with and without a reranker by their runs, which `run_of` collects.

    Args:
        runs: Runs by label, such as `"without"` and `"with"`; results of each query, best first.
        qrels: Judgements. Every judged query counts; a query without results has the value 0.
        measures: Names in the spelling of ir_measures.
        relevant_grade: Minimum grade that counts as relevant, for measures that name no grade.
        baseline: Label of the run with which the others are compared; None for the first.
        seed: Seed of the randomisation tests and the bootstrap intervals.

    Raises:
        InvalidInputError: An argument is not allowed, or no run has any judged passage.
        MissingExtraError: A package of the extra `evaluation` is missing.
    """
    if not isinstance(runs, Mapping) or not runs:
        raise InvalidInputError(f"`runs` is {quoted(runs)}; expected a mapping of label to run, with at least one.")
    if not qrels:
        raise InvalidInputError("`qrels` is empty; expected grades by query_id and doc_id.")
    base = next(iter(runs)) if baseline is None else baseline
    if base not in runs:
        raise InvalidInputError(f"`baseline` is {quoted(base)}; expected one of {first_few(runs, 10)}.")
    for label, run in runs.items():
        if run and not run.keys() & qrels.keys():
            raise InvalidInputError(
                f"Run {quoted(label)} has none of the judged queries: its first query_id is "
                f"{quoted(next(iter(run)))}, the first "
                f"in the qrels {quoted(next(iter(qrels)))}; expected the same query ids in both."
            )
    retrieved = {doc_id for run in runs.values() for results in run.values() for doc_id in results}
    _check_doc_ids(qrels, retrieved, f"the results of the runs {first_few(runs)}")
    parsed = parse_measures(measures, relevant_grade=whole_number("relevant_grade", relevant_grade, 1))
    values = {label: per_query(parsed, qrels, run) for label, run in runs.items()}
    results = [
        RunResult(label=label, measure=name, value=mean(found[name]), comparison=comparison, per_query=found[name])
        for label, found in values.items()
        for name, comparison in compare(found, values[base], seed=seed).items()
    ]
    return RunsEvaluation(baseline=base, queries=len(qrels), runs=tuple(results))


def _choices(
    collection: Collection,
    logits: Run,
    measure: Measure,
    depths: Sequence[DepthResult],
    skimmer: EvaluatedModel | None,
    *,
    relevant_grade: int,
    seed: int,
) -> Choices:
    top_k = depths[-1].top_k
    skim_times = None if skimmer is None else skimmer.latencies_ms(collection, top_k)
    return choose(
        Sweep(collection, logits, measure, skim_logits=None if skimmer is None else skimmer.logits(collection, top_k)),
        {depth.top_k: depth.latency_p50_ms for depth in depths},
        relevant_grade=relevant_grade,
        skim=None if skimmer is None else skimmer.reranker.name,
        skim_latency_ms=median(skim_times) if skim_times else None,
        seed=seed,
    )


def _check_not_swept(reranker: Reranker) -> None:
    changed = [name for name in changed_settings(reranker) if name in _SWEPT]
    if changed:
        names = " and ".join(f"`{name}`" for name in changed)
        raise InvalidInputError(
            f"{reranker.name} has {names}; expected a reranker without, because `evaluate` compares such settings "
            "itself. Pass it without them, and a skimming model as `skim` of `evaluate`."
        )


def _check(collection: Collection) -> None:
    name, run = collection.name, collection.run
    if not collection.queries:
        raise InvalidInputError(f"Collection {quoted(name)} has no judged query; expected at least one.")
    for query_id in sorted({*collection.queries} ^ {*collection.qrels}):
        missing = "judgement" if query_id in collection.queries else "text"
        if missing == "judgement" or query_id in run:
            raise InvalidInputError(
                f"Collection {quoted(name)} has no {missing} for query {quoted(query_id)}; expected a text and "
                "judgements for each query that has candidates."
            )
    candidates = [(query_id, doc_id) for query_id in collection.queries for doc_id in run.get(query_id, ())]
    if not candidates:
        raise InvalidInputError(
            f"Collection {quoted(name)} has no candidate for any of its {len(collection.queries)} judged queries; "
            "expected the same query ids in run and qrels."
        )
    for query_id, doc_id in candidates:
        if doc_id not in collection.passages:
            raise InvalidInputError(
                f"Collection {quoted(name)} has no text for passage {quoted(doc_id)}, a candidate of query "
                f"{quoted(query_id)}; expected a text for every candidate."
            )
    _check_doc_ids(collection.qrels, collection.passages, f"the corpus of collection {quoted(name)}")


def _check_doc_ids(qrels: Qrels, doc_ids: Iterable[str], where: str) -> None:
    """Check that there is any judged passage: where ids are spelled in two ways, all values would be 0."""
    judged = {doc_id: None for grades in qrels.values() for doc_id in grades}
    known = set(doc_ids)
    if judged and known and known.isdisjoint(judged):
        raise InvalidInputError(
            f"{len(judged)} of {len(judged)} judged passages, such as {first_few([next(iter(judged))])}, are not in "
            f"{where}, only others such as {first_few([min(known)])}; expected the same doc ids in both. Are zeros or "
            "prefixes missing?"
        )


def _depths(top_k: object, collection: Collection) -> tuple[int, ...]:
    if top_k is None:
        most = max(len(collection.run.get(query_id, ())) for query_id in collection.queries)
        return tuple(depth for below, depth in zip((0, *DEFAULT_TOP_K), DEFAULT_TOP_K, strict=False) if below < most)
    given = list(top_k) if isinstance(top_k, Iterable) and not isinstance(top_k, (str, bytes)) else [top_k]
    if not given:
        raise InvalidInputError("`top_k` is empty; expected at least one number of candidates to rerank.")
    return tuple(sorted({whole_number("top_k", depth, 1) for depth in given}))


def _listed(models: object) -> list[Any]:
    given = [models] if isinstance(models, (str, os.PathLike, Reranker)) else models
    if not isinstance(given, Iterable) or not (listed := list(given)):
        raise InvalidInputError(
            f"`models` is {quoted(models)}; expected a model name, a Reranker, or several of those."
        )
    for model in listed:
        if not isinstance(model, (str, os.PathLike, Reranker)):
            raise InvalidInputError(
                f"A model is {quoted(model)}; expected a name, the path of a model folder, or a Reranker, which can "
                "wrap a custom scorer."
            )
    return listed


def _relevance_notes(qrels: Qrels) -> list[str]:
    """Say how many queries no ranking can answer."""
    without = sum(max(grades.values(), default=0) < 1 for grades in qrels.values())
    if not without:
        return []
    return [f"judged queries without a relevant passage, which count as 0: {without:,} of {len(qrels):,}"]


def _latency_notes(results: Iterable[ModelResult]) -> Iterator[str]:
    for result in results:
        untimed = [str(depth.top_k) for depth in result.depths if depth.latency_p50_ms is None]
        if untimed:
            yield (
                f"The latency of {result.label} at top_k {', '.join(untimed)} was not measured: the candidates were "
                "scored in parts for other depths."
            )
