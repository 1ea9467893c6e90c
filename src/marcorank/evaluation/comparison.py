"""Whether two rankings differ by more than chance, query by query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from marcorank.errors import InvalidInputError
from marcorank.evaluation.measures import best, identity, mean, per_query, reranked
from marcorank.evaluation.records import DepthResult, MeasureResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ir_measures import Measure
    from numpy.typing import NDArray

    from marcorank.collections.records import Collection, Run

SAMPLES = 10_000

_TIE = 1e-9
# Signs and bootstrap draws of this many values at a time: a few megabytes.
_BLOCK = 500_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two rankings differ in one measure; the fields mean what they mean to `MeasureResult`."""

    difference: float
    interval: tuple[float, float]
    p_value: float
    wins: int
    ties: int
    losses: int


def compare(values: Mapping[str, float], baseline: Mapping[str, float], *, seed: int = 0) -> Comparison:
    """Compare the values of a measure with those of a baseline, paired by query.

    The p-value is that of the paired randomisation test: how often a mean at least as far from 0 comes about where
    each difference gets its sign by chance. All signs are tried where that takes at most 10,000 trials, that is with
    up to 13 queries that differ; else 10,000 are drawn. The interval holds the middle 95 % of the means of 10,000
    bootstrap samples of the queries; with one query, or where all differ by the same, it is that difference. Both
    depend on nothing but the values and the seed.

    Args:
        values: By query_id.
        baseline: The same queries.
        seed: Of the draws.

    Raises:
        InvalidInputError: There are no queries, or not the same ones.
    """
    return compare_all({"": values}, {"": baseline}, seed=seed)[""]


def compare_all(
    values: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Mapping[str, float]], *, seed: int = 0
) -> dict[str, Comparison]:
    """Compare several measures of the same queries at once, by their names; each as `compare` does.

    Raises:
        InvalidInputError: There are no queries, or not the same ones.
    """
    queries = _queries([*values.values(), *(baseline[name] for name in values)])
    differences = np.array([[values[name][query] - baseline[name][query] for query in queries] for name in values])
    differences[np.abs(differences) <= _TIE] = 0.0
    p_values = _p_values(differences, seed)
    intervals = _intervals(differences, seed)
    # Means of samples of equal numbers differ by rounding only.
    equal = np.ptp(differences, axis=1) <= _TIE
    means = {name: mean(values[name]) - mean(baseline[name]) for name in values}
    return {
        name: Comparison(
            difference=difference,
            interval=(difference, difference) if equal[row] else (float(intervals[row, 0]), float(intervals[row, 1])),
            p_value=float(p_values[row]),
            wins=int((differences[row] > 0).sum()),
            ties=int((differences[row] == 0).sum()),
            losses=int((differences[row] < 0).sum()),
        )
        for row, (name, difference) in enumerate(means.items())
    }


def measure_results(
    *,
    value: Mapping[str, Mapping[str, float]],
    first_stage: Mapping[str, Mapping[str, float]],
    identity: Mapping[str, Mapping[str, float]],
    best: Mapping[str, Mapping[str, float]],
    seed: int = 0,
) -> tuple[MeasureResult, ...]:
    """Put together what is known of each measure.

    Args:
        value: Of the reranked candidates, by measure and query_id, as `per_query` gives them.
        first_stage: Of the whole first stage.
        identity: Of the same candidates in the order of the first stage.
        best: Of the same candidates in the best order.
        seed: Of the comparison.

    Raises:
        InvalidInputError: There are no queries, or not the same ones.
    """
    compared = compare_all(value, identity, seed=seed)
    return tuple(
        MeasureResult(
            measure=name,
            value=mean(value[name]),
            first_stage=mean(first_stage[name]),
            identity=mean(identity[name]),
            best=mean(best[name]),
            difference=found.difference,
            interval=found.interval,
            p_value=found.p_value,
            wins=found.wins,
            ties=found.ties,
            losses=found.losses,
            per_query=value[name],
            per_query_identity=identity[name],
        )
        for name, found in compared.items()
    )


def depth_result(
    collection: Collection,
    logits: Run,
    top_k: int,
    measures: Sequence[Measure],
    latencies: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> DepthResult:
    """Return what reranking the first `top_k` candidates of each query gives.

    Args:
        collection: Queries, judgements and first stage.
        logits: Of the candidates, at least down to `top_k`.
        top_k: Candidates of each query.
        measures: As `parse_measures` returns them.
        latencies: Milliseconds to rerank the candidates of one query, of each query that was timed.
        seed: Of the comparison.

    Raises:
        InvalidInputError: A candidate has no usable logit, or nothing is judged.
    """
    run, qrels = collection.run, collection.qrels
    results = measure_results(
        value=per_query(measures, qrels, reranked(run, logits, top_k)),
        first_stage=per_query(measures, qrels, run),
        identity=per_query(measures, qrels, identity(run, top_k)),
        best=per_query(measures, qrels, best(run, qrels, top_k)),
        seed=seed,
    )
    return DepthResult(
        top_k=top_k,
        measures=results,
        latency_p50_ms=float(np.quantile(latencies, 0.5)) if latencies else None,
        latency_p95_ms=float(np.quantile(latencies, 0.95, method="higher")) if latencies else None,
    )


def _queries(all_values: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the queries in an order that does not depend on that of the mappings."""
    queries = sorted(all_values[0]) if all_values else []
    if not queries:
        raise InvalidInputError("There is no judged query to compare; expected at least one.")
    for other in all_values:
        if other.keys() != all_values[0].keys():
            odd = min(other.keys() ^ all_values[0].keys())
            raise InvalidInputError(f"Query {odd!r} has a value on one side only; expected the same queries on both.")
    return queries


# scipy.stats has both, for one measure at a time: its permutation_test takes two minutes for ten measures of 3,000
# queries at four depths. Here all measures of a depth share the draws, and a block of draws is one matrix product.


def _p_values(differences: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Shape: (measures, queries) to (measures,), float64."""
    observed = np.abs(differences.sum(axis=1))
    # What is equal but for rounding counts as equally far.
    reached = observed - _TIE * np.abs(differences).sum(axis=1)
    p_values = np.ones(len(differences))
    sampled = []
    for row, queries in enumerate(differences):
        nonzero = queries[queries != 0]
        if 2 ** len(nonzero) <= SAMPLES:
            signs = 1 - 2.0 * (np.arange(2 ** len(nonzero))[:, None] >> np.arange(len(nonzero)) & 1)
            p_values[row] = (np.abs(signs @ nonzero) >= reached[row]).mean()
        else:
            sampled.append(row)
    if sampled:
        generator = np.random.default_rng(seed)
        # The observed signs are one of the trials: else a p-value could be 0.
        as_far = np.ones(len(sampled))
        for size in _blocks(differences.shape[1]):
            signs = 1 - 2.0 * generator.integers(0, 2, (size, differences.shape[1]), dtype=np.int8)
            as_far += (np.abs(signs @ differences[sampled].T) >= reached[sampled]).sum(axis=0)
        p_values[sampled] = as_far / (SAMPLES + 1)
    return p_values


def _intervals(differences: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Shape: (measures, queries) to (measures, 2), float64."""
    queries = differences.shape[1]
    generator = np.random.default_rng(seed)
    means = []
    for size in _blocks(queries):
        drawn = generator.integers(0, queries, (size, queries)) + queries * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * queries).reshape(size, queries)
        means.append(counts.astype(np.float64) @ differences.T / queries)
    intervals: NDArray[np.float64] = np.quantile(np.concatenate(means), (0.025, 0.975), axis=0).T
    return intervals


def _blocks(queries: int) -> list[int]:
    """Split the samples so that a block of them stays small."""
    size = max(1, min(SAMPLES, _BLOCK // queries))
    whole, rest = divmod(SAMPLES, size)
    return [size] * whole + [rest] * (rest > 0)
