"""Paired comparison of two rankings, with significance."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from marcorank.evaluation.measures import best, identity, mean, per_query, reranked
from marcorank.evaluation.records import Comparison, DepthResult, MeasureResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ir_measures import Measure
    from numpy.typing import NDArray

    from marcorank.collections.records import Collection, Run

SAMPLES = 10_000

_TIE = 1e-9
# Signs and bootstrap samples of this many values at a time: a few megabytes.
_BLOCK = 500_000


def compare(
    values: Mapping[str, Mapping[str, float]], baseline: Mapping[str, Mapping[str, float]], *, seed: int = 0
) -> dict[str, Comparison]:
    """Compare values by measure and query_id with those of a baseline for the same queries.

    The p-value is that of the paired randomisation test: the share of random signs of the differences for which the
    mean is at least as far from 0. With up to 13 queries that differ all signs are tried, else 10,000 are drawn. The
    interval holds the middle 95 % of the means of 10,000 bootstrap samples of the queries. Both depend only on the
    values and the seed.
    """
    # In an order that does not depend on that of the mappings.
    queries = sorted(next(iter(values.values())))
    differences = np.array([[values[name][query] - baseline[name][query] for query in queries] for name in values])
    differences[np.abs(differences) <= _TIE] = 0.0
    p_values = _p_values(differences, seed)
    intervals = _intervals(differences, seed)
    # Means of samples of equal numbers differ by rounding only.
    equal = np.ptp(differences, axis=1) <= _TIE
    compared = {}
    for row, name in enumerate(values):
        difference = mean(values[name]) - mean(baseline[name])
        low, high = (difference, difference) if equal[row] else intervals[row].tolist()
        compared[name] = Comparison(
            difference=difference,
            interval=(low, high),
            p_value=float(p_values[row]),
            wins=int((differences[row] > 0).sum()),
            ties=int((differences[row] == 0).sum()),
            losses=int((differences[row] < 0).sum()),
        )
    return compared


def depth_result(
    collection: Collection,
    logits: Run,
    top_k: int,
    measures: Sequence[Measure],
    latencies: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> DepthResult:
    """Measure the first `top_k` candidates of each query in the order of their logits.

    `latencies` are the milliseconds to rerank the candidates of a query, for each query that was timed.
    """
    run, qrels = collection.run, collection.qrels
    value = per_query(measures, qrels, reranked(run, logits, top_k))
    first_stage = per_query(measures, qrels, run)
    unchanged = per_query(measures, qrels, identity(run, top_k))
    ideal = per_query(measures, qrels, best(run, qrels, top_k))
    results = [
        MeasureResult(
            **asdict(compared),
            measure=name,
            value=mean(value[name]),
            first_stage=mean(first_stage[name]),
            identity=mean(unchanged[name]),
            best=mean(ideal[name]),
            per_query=value[name],
            per_query_identity=unchanged[name],
        )
        for name, compared in compare(value, unchanged, seed=seed).items()
    ]
    return DepthResult(
        top_k=top_k,
        measures=tuple(results),
        latency_p50_ms=float(np.quantile(latencies, 0.5)) if latencies else None,
        latency_p95_ms=float(np.quantile(latencies, 0.95, method="higher")) if latencies else None,
    )


# scipy.stats.permutation_test takes two minutes for ten measures of 3,000 queries at four depths. Here all measures of
# a depth share the samples, and a block of samples is one matrix product.


def _p_values(differences: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Shape: (measures, queries) to (measures,), float64."""
    observed = np.abs(differences.sum(axis=1))
    # Sums that are equal except for rounding count as equally far.
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
        # The observed signs are one of the samples: else a p-value could be 0.
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
    """Split the samples into blocks that take little memory."""
    size = max(1, _BLOCK // queries)
    return [min(size, SAMPLES - start) for start in range(0, SAMPLES, size)]
