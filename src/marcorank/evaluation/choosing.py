"""Chooses settings on one half of the queries, measures them on the other, and recommends what passes both.

Choosing and measuring on the same queries would find a gain in any data: of nine weights, the luckiest one nearly
always looks better than none. So "off" wins wherever the queries cannot tell.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from marcorank.evaluation.comparison import compare
from marcorank.evaluation.measures import mean
from marcorank.evaluation.records import Choice, Choices, HalfResult, HeldOutThreshold, SweepPoint
from marcorank.evaluation.sweep import Setting
from marcorank.evaluation.thresholds import SHOWN_RECALL, judged_candidates, threshold_for_recall
from marcorank.evaluation.wording import count, signed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from marcorank.evaluation.records import Comparison
    from marcorank.evaluation.sweep import Sweep

    Values = Mapping[str, float]

MARGIN = 0.005
"""What a setting that saves time may lose."""

WEIGHTS = tuple(tenths / 10 for tenths in range(1, 10))
KEEPS = (10, 20, 30, 50, 100, 200, 500)
# The interval of fewer than ten queries means little.
_MIN_QUERIES = 20


def choose(
    sweep: Sweep,
    latencies_ms: Mapping[int, float | None],
    *,
    relevant_grade: int = 1,
    skim: str | None = None,
    skim_latency_ms: float | None = None,
    seed: int = 0,
) -> Choices:
    """Choose the weight of `blend`; then, with that weight, `top_k` and `skim_keep`.

    Args:
        sweep: Measures settings.
        latencies_ms: Median time of a query by `top_k`; None where it was not timed. Every setting is compared with the
            greatest `top_k`.
        relevant_grade: Minimum grade that counts as relevant, for the threshold.
        skim: Name of the skimming model whose logits the sweep knows, or None.
        skim_latency_ms: Median time of the skimming model for all candidates of a query.
        seed: Seed of the halves and the intervals.
    """
    # No query has more candidates than that, whatever depth was asked for.
    most = max(map(len, sweep.collection.run.values()))
    by_depth = {min(depth, most): latency for depth, latency in sorted(latencies_ms.items())}
    depths = list(by_depth)
    off = Setting(depths[-1])
    keeps = [] if skim is None else [keep for keep in KEEPS if keep < off.top_k]
    times = _Times(by_depth, skim_latency_ms)
    tried = [Setting(depth) for depth in depths]
    tried += [off._replace(skim_keep=keep) for keep in keeps]
    # The last one is the order of the first stage, which no half chooses.
    tried += [off._replace(blend=weight) for weight in (*WEIGHTS, 1.0)]
    options: list[Choice] = []
    threshold, note, suffices = None, None, None
    queries = len(sweep.collection.qrels)
    if queries < _MIN_QUERIES:
        note = (
            f"{count(queries, 'judged query is', 'judged queries are')} too few to choose from; at least "
            f"{_MIN_QUERIES} are needed, and 100 are better"
        )
    else:
        folds = _Folds(sweep, off, seed)
        blend = folds.blend()
        weights = [half.chosen or 0.0 if blend.recommended else 0.0 for half in blend.halves]
        options = [
            blend,
            *(
                times.checked(folds.saving(option, sizes, weights), off)
                for option, sizes in (("top_k", depths[:-1]), ("skim_keep", keeps))
                if sizes
            ),
        ]
        options = times.without_slower(options, off)
        threshold = _held_out_threshold(sweep, folds.halves, relevant_grade)
        recommended = recommended_setting(options, off.top_k)
        tried.append(recommended)
        first_stage = mean(sweep.values(off.having("blend", 1.0)))
        suffices = first_stage >= max(mean(sweep.values(setting)) for setting in (off, recommended))
    return Choices(
        measure=str(sweep.measure),
        top_k=off.top_k,
        skim=skim,
        options=tuple(options),
        threshold=threshold,
        sweep=tuple(
            SweepPoint(*setting, value=mean(sweep.values(setting)), latency_p50_ms=times.of(setting))
            for setting in dict.fromkeys(tried)
        ),
        note=note,
        first_stage_suffices=suffices,
    )


def recommended_setting(options: Sequence[Choice], top_k: int) -> Setting:
    """Return all that is recommended as one setting."""
    setting = Setting(top_k)
    for choice in options:
        setting = setting.having(choice.option, choice.recommended)
    return setting


class _Folds:
    """Two halves of the queries, each of which chooses what is measured on the other.

    Attributes:
        halves: Their query ids. They depend on the ids and the seed only.
    """

    def __init__(self, sweep: Sweep, off: Setting, seed: int) -> None:
        self._sweep = sweep
        self._off = off
        self._seed = seed
        ordered = sorted(sweep.collection.qrels)
        shuffled = [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]
        self.halves = (shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :])

    def blend(self) -> Choice:
        """Choose a weight that gains."""
        settings = {weight: self._off._replace(blend=weight) for weight in WEIGHTS}

        def gaining(queries: Sequence[str]) -> float | None:
            weight = self._cautious_weight(settings, queries)
            low, _ = self._compared(settings[weight], self._off, queries).interval
            return weight if low > 0 else None

        chosen = [gaining(queries) for queries in self.halves]
        choice = self._choice("blend", [(value, self._off.having("blend", value), self._off) for value in chosen])
        given = [value for value in chosen if value is not None]
        if len(given) < len(chosen):
            return replace(choice, reason=f"on {_which(chosen)} no weight gains more than chance could explain")
        low = choice.held_out.interval[0]
        if low <= 0:
            return replace(choice, reason="on the other half, the gain of what each half chose may be chance")
        reason = f"what each half chose gains {signed(choice.held_out.difference)} on the other half"
        return replace(choice, recommended=min(given), reason=reason)

    def saving(self, option: str, sizes: Sequence[int], weights: Sequence[float]) -> Choice:
        """Choose the smallest size that loses nothing that matters; each half has the weight that it chose."""
        tested = []
        for queries, weight in zip(self.halves, weights, strict=True):
            off = self._off._replace(blend=weight)
            settings = {size: off.having(option, size) for size in sizes}
            best = max(self._mean(setting, queries) for setting in (off, *settings.values()))
            size = next(
                (
                    size
                    for size, setting in settings.items()
                    if self._mean(setting, queries) >= best - MARGIN
                    and self._compared(setting, off, queries).interval[0] >= -MARGIN
                ),
                None,
            )
            tested.append((size, off if size is None else settings[size], off))
        choice = self._choice(option, tested)
        chosen = [value for value, *_ in tested]
        given = [value for value in chosen if value is not None]
        if len(given) < len(chosen):
            reason = f"on {_which(chosen)} a loss of more than {MARGIN} cannot be ruled out for any of {_listed(sizes)}"
            return replace(choice, reason=reason)
        low, high = choice.held_out.interval
        if low < -MARGIN:
            return replace(choice, reason=f"what each half chose may lose more than {MARGIN} on the other half")
        reason = f"what each half chose changes the other half by {signed(low)} to {signed(high)}"
        return replace(choice, recommended=max(given), reason=reason)

    def _choice(self, option: str, tested: Sequence[tuple[float | None, Setting, Setting]]) -> Choice:
        """Measure what each half chose, given with the setting and what it is compared with, on the other half."""
        halves: list[HalfResult] = []
        value: dict[str, float] = {}
        baseline: dict[str, float] = {}
        for (chosen, setting, off), queries in zip(tested, reversed(self.halves), strict=True):
            found, usual = self._values(setting, queries), self._values(off, queries)
            halves.append(HalfResult(chosen, len(queries), mean(found), mean(usual)))
            value |= found
            baseline |= usual
        return Choice(option, None, "", (halves[0], halves[1]), _comparison(value, baseline, self._seed))

    def _cautious_weight(self, settings: Mapping[float, Setting], queries: Sequence[str]) -> float:
        """Return the smallest weight that is within one standard error of the best."""
        found = {weight: np.array([*self._values(each, queries).values()]) for weight, each in settings.items()}
        best = max(found.values(), key=lambda values: float(values.mean()))
        for weight, values in found.items():
            behind = best - values
            if behind.mean() <= behind.std(ddof=1) / math.sqrt(len(queries)):
                return weight
        raise AssertionError("the best is within any error of itself")

    def _compared(self, setting: Setting, off: Setting, queries: Sequence[str]) -> Comparison:
        return _comparison(self._values(setting, queries), self._values(off, queries), self._seed)

    def _mean(self, setting: Setting, queries: Sequence[str]) -> float:
        return mean(self._values(setting, queries))

    def _values(self, setting: Setting, queries: Sequence[str]) -> dict[str, float]:
        values = self._sweep.values(setting)
        return {query_id: values[query_id] for query_id in queries}


class _Times:
    """Median times of settings, as far as they are known, from those of ascending depths."""

    def __init__(self, latencies_ms: Mapping[int, float | None], skim_ms: float | None) -> None:
        self._by_depth = {0: 0.0, **{depth: ms for depth, ms in latencies_ms.items() if ms is not None}}
        self._skim_ms = skim_ms

    def of(self, setting: Setting) -> float | None:
        """Return the median time of a query in milliseconds."""
        if setting.skim_keep is None:
            return self._by_depth.get(setting.top_k)
        if self._skim_ms is None or setting.skim_keep > max(self._by_depth):
            return None
        # Between two depths that were timed, the time grows with the number of passages.
        return self._skim_ms + float(np.interp(setting.skim_keep, list(self._by_depth), list(self._by_depth.values())))

    def checked(self, choice: Choice, off: Setting) -> Choice:
        """Add how much time is saved; leave off what is known to save none."""
        if choice.recommended is None:
            return choice
        ours, theirs = self.of(off.having(choice.option, choice.recommended)), self.of(off)
        if ours is None or theirs is None:
            return replace(choice, reason=f"{choice.reason}; how much time it saves is not known")
        if ours >= theirs:
            return replace(choice, recommended=None, reason="it saves no time")
        return replace(choice, reason=f"{choice.reason}, in {100 * ours / theirs:.0f} % of the time")

    def without_slower(self, options: Sequence[Choice], off: Setting) -> list[Choice]:
        """Recommend one way to save time: two were not measured together."""
        saving = [choice for choice in options if choice.option != "blend" and choice.recommended is not None]
        if len(saving) < 2:
            return list(options)
        taken = {one.option: self.of(off.having(one.option, one.recommended)) for one in saving}
        # Without times, the one that needs no second model.
        fastest = min(taken, key=lambda option: math.inf if taken[option] is None else taken[option] or 0.0)
        return [
            replace(choice, recommended=None, reason=f"`{fastest}` saves more")
            if choice in saving and choice.option != fastest
            else choice
            for choice in options
        ]


def _comparison(values: Values, baseline: Values, seed: int) -> Comparison:
    return compare({"": values}, {"": baseline}, seed=seed)[""]


def _which(chosen: Sequence[float | None]) -> str:
    return "one half" if any(chosen) else "both halves"


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _held_out_threshold(
    sweep: Sweep, halves: tuple[list[str], list[str]], relevant_grade: int
) -> HeldOutThreshold | None:
    """Choose a threshold on each half, and count what it keeps on the other."""
    collection = sweep.collection
    found = [
        judged_candidates(
            replace(
                collection,
                queries={query_id: collection.queries[query_id] for query_id in half},
                qrels={query_id: collection.qrels[query_id] for query_id in half},
            ),
            sweep.logits,
            relevant_grade=relevant_grade,
        )
        for half in halves
    ]
    if not all(candidates.relevant.any() for candidates in found):
        return None
    kept = [
        other.logits >= threshold_for_recall(chosen_on, SHOWN_RECALL)
        for chosen_on, other in zip(found, reversed(found), strict=True)
    ]
    relevant = [candidates.relevant for candidates in reversed(found)]
    return HeldOutThreshold(
        aim=SHOWN_RECALL,
        recall=float((np.concatenate(kept) & np.concatenate(relevant)).sum() / np.concatenate(relevant).sum()),
        kept_per_query=float(np.concatenate(kept).sum()) / len(collection.queries),
    )
