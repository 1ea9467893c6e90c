"""What a benchmark found, as lines for a terminal."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from marcorank._text import one_line, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from marcorank.bench.records import Results, Row

_HEADER = ("who", "p50 ms", "p95 ms", "passages/s", "speed", "of limit", "cold s", "MB", "off by", "same top 3")
_UNKNOWN = "-"


def report_lines(results: Results) -> Iterator[str]:
    """Yield all that is worth a line."""
    machine, workload = results.machine, results.workload
    cores = f"{machine['usable_cores']} core{'s' if machine['usable_cores'] > 1 else ''}"
    yield (
        f"{machine['processor']}, {cores}; {len(workload['passages'])} passages of {min(workload['lengths'])} to "
        f"{max(workload['lengths'])} tokens, {workload['tokens']:,} in all; {results.settings.rounds} rounds"
    )
    for model in dict.fromkeys(row.contestant.model for row in results.rows):
        rows = [row for row in results.rows if row.contestant.model == model]
        yield ""
        yield one_line(model)
        yield from _table(results, [row for row in rows if row.measured])
        yield from _not_measured(rows)
        yield from _scenarios(rows)
    yield ""
    yield from _limits(results)
    if results.not_installed:
        yield f"not installed: {', '.join(results.not_installed)}"


def change_lines(before: Results, after: Results) -> Iterator[str]:
    """Yield what changed between two runs."""
    yield ""
    yield f"since {before.date} (marcorank {before.machine['packages'].get('marcorank', '?')})"
    if before.machine["processor"] != after.machine["processor"]:
        yield f"note: that was another processor, {before.machine['processor']}"
    if before.workload["lengths"] != after.workload["lengths"]:
        yield "note: that was another request; its times are not comparable"
    old = {row.contestant.key: row for row in before.rows if row.measured}
    rows = []
    for row in after.rows:
        known = old.pop(row.contestant.key, None)
        if known is not None and row.measured:
            rows.append(
                [
                    row.contestant.label,
                    _ms(known.p50_s),
                    _ms(row.p50_s),
                    f"{known.p50_s / row.p50_s:.2f}x",
                    one_line(row.contestant.model),
                ]
            )
    header = ("who", "p50 ms then", "p50 ms now", "speed-up", "model")
    yield from table(header, rows, left=("who", "model"), width=_width())
    for precision in dict.fromkeys(limit.precision for limit in after.limits):
        then, now = before.limit(precision), after.limit(precision)
        if then is not None and now is not None:
            # What this moved by, everything may have moved by.
            yield f"the machine itself in {precision}: {then.best:,.0f} GFLOP/s then, {now.best:,.0f} now"
    if old:
        yield f"only then: {', '.join(f'{label} with {one_line(model)}' for model, label in old)}"


def _table(results: Results, rows: list[Row]) -> Iterator[str]:
    if not rows:
        return
    shown = [_cells(row, results.figures(row)) for row in sorted(rows, key=lambda row: row.p50_s)]
    yield from table(_HEADER, shown, left=("who",), width=_width())
    baseline, reference = results.baseline(rows[0].contestant.model), results.reference(rows[0].contestant.model)
    if baseline is not None and reference is not None:
        other = "" if baseline.contestant.model == rows[0].contestant.model else f" with {baseline.contestant.model}"
        yield f"speed: {baseline.contestant.label}{other} = 1; off by, top 3: against {reference.contestant.label}"


def _cells(row: Row, figures: dict[str, Any]) -> list[str]:
    return [
        row.contestant.label,
        _ms(row.p50_s),
        _ms(row.p95_s),
        _number(figures["passages_per_s"], ".0f"),
        _number(figures["speed"], ".1f") + "x",
        _number(figures["share_of_limit"], ".0%"),
        _number(figures["cold_start_s"], ".2f"),
        _number(figures["peak_memory_mb"], ",.0f"),
        _number(figures["largest_difference"], ".1g"),
        "yes" if figures["same_top_3"] else "NO",
    ]


def _not_measured(rows: list[Row]) -> Iterator[str]:
    """Yield each reason once, with all that it stopped."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.reason is not None:
            reasons.setdefault(row.reason, []).append(row.contestant.label)
    for reason, labels in reasons.items():
        yield f"not measured: {', '.join(labels)}: {one_line(reason)}"


def _scenarios(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        for name, found in row.scenarios.items():
            yield f"{name}: {row.contestant.label}: {found.get('reason') or _SENTENCES[name](found)}"


def _concurrent(found: dict[str, Any]) -> str:
    return (
        f"{found['requests']} requests at once have {found['threads_of_one_call']:.0%} (threads) and "
        f"{found['tasks_of_one_call']:.0%} (tasks) of the throughput of one call"
    )


def _scale(found: dict[str, Any]) -> str:
    return (
        f"a passage among {found['many']:,} takes {found['time_per_passage_ratio']:.2f} times as long as among "
        f"{found['few']:,}"
    )


def _memory(found: dict[str, Any]) -> str:
    if found["peak_memory_ratio"] is None:
        return "this system does not report it"
    return (
        f"{found['many']:,} passages of 512 tokens take {found['many_bytes'] / 1e6:,.0f} MB, "
        f"{found['peak_memory_ratio']:.2f} times as much as {found['few']:,}"
    )


def _lag(found: dict[str, Any]) -> str:
    return (
        f"while {found['requests']} requests ran, the event loop was late by {found['p99_s'] * 1e3:.1f} ms (p99), "
        f"{found['p50_s'] * 1e3:.1f} ms (p50)"
    )


_SENTENCES = {"concurrent": _concurrent, "scale": _scale, "memory": _memory, "lag": _lag}


def _limits(results: Results) -> Iterator[str]:
    for precision in dict.fromkeys(limit.precision for limit in results.limits if limit.gflops):
        best = results.limit(precision)
        if best is not None:
            yield f"limit in {precision}: {best.best:,.0f} GFLOP/s ({best.engine}, {best.size} x {best.size})"
    for limit in results.limits:
        if limit.reason is not None:
            yield f"no limit of {limit.engine}, {limit.precision}: {one_line(limit.reason)}"
    leanest = [row.least_flops / row.flops for row in results.rows if row.flops and row.least_flops]
    if leanest and min(leanest) < 1:
        yield (
            "of limit: counts all layers for all tokens; a backend that leaves out what reaches no logit does "
            f"{min(leanest):.0%} of that"
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.1f}"


def _number(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else format(value, form)


def _width() -> int:
    return shutil.get_terminal_size().columns
