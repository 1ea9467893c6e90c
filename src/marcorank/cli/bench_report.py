"""The results of a benchmark as lines for a terminal."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from marcorank._text import one_line, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from marcorank.bench.records import Results, Row

# Header, figure and format of each column.
_COLUMNS = (
    ("passages/s", "passages_per_s", "{:.0f}"),
    ("speed", "speed", "{:.1f}x"),
    ("of limit", "share_of_limit", "{:.0%}"),
    ("cold s", "cold_start_s", "{:.2f}"),
    ("MB", "peak_memory_mb", "{:,.0f}"),
    ("off by", "largest_difference", "{:.1g}"),
)
_SCENARIOS = {
    "concurrent": "{requests} concurrent requests reach {threads_of_one_call:.0%} (threads) and "
    "{tasks_of_one_call:.0%} (tasks) of the throughput of one call",
    "lag": "during {requests} requests, the event loop was late by {p99_ms:.1f} ms (p99), {p50_ms:.1f} ms (p50)",
}


def report_lines(results: Results) -> Iterator[str]:
    """Yield a table per model, its scenarios and failures, and the limits of the machine."""
    workload = results.workload
    yield (
        f"{results.processor}; {len(workload['passages'])} passages of {min(workload['lengths'])} to "
        f"{max(workload['lengths'])} tokens, {workload['tokens']:,} in all; rounds: {results.settings.rounds}"
    )
    for model in dict.fromkeys(row.model for row in results.rows):
        yield from ("", one_line(model))
        measured = results.measured(model)
        if measured:
            header = ("reranker", "p50 ms", "p95 ms", *(column[0] for column in _COLUMNS), "same top 3")
            yield from _table(header, [_cells(results, row) for row in measured])
            baseline, reference = results.baseline(model), results.reference(model)
            shown = baseline.label if baseline.model == model else baseline.name
            yield f"speed: {shown} = 1; off by, top 3: compared with {reference.label}"
        # One line for all contestants with the same reason.
        reasons: dict[str, list[str]] = {}
        for row in results.rows:
            if row.model == model and row.reason is not None:
                reasons.setdefault(row.reason, []).append(row.label)
        for reason, labels in reasons.items():
            yield f"not measured: {', '.join(labels)}: {one_line(reason)}"
        for row in measured:
            for name, figures in row.scenarios.items():
                yield f"{name}: {row.label}: {figures.get('reason') or _SCENARIOS[name].format(**figures)}"
    yield ""
    for precision in results.limits:
        if (limit := results.limit(precision)) is not None:
            yield f"limit in {precision}: {limit[0]:,.0f} GFLOP/s ({limit[1]})"
    if results.not_installed:
        yield f"not installed: {', '.join(results.not_installed)}"


def change_lines(before: Results, after: Results) -> Iterator[str]:
    """Yield the changes between two runs."""
    yield ""
    yield f"since {before.date} (marcorank {before.machine['packages'].get('marcorank', '?')})"
    if before.machine["processor"] != after.machine["processor"]:
        yield f"note: the earlier run was on another processor, {before.machine['processor']}"
    if before.workload["lengths"] != after.workload["lengths"]:
        yield "note: the earlier run had another request; its times are not comparable"
    old, new = ({row.name: row for row in run.rows if row.measured} for run in (before, after))
    rows = [
        [row.label, _ms(old[name].p50_s), _ms(row.p50_s), f"{old[name].p50_s / row.p50_s:.2f}x", one_line(row.model)]
        for name, row in new.items()
        if name in old
    ]
    yield from _table(("reranker", "p50 ms before", "p50 ms now", "speed-up", "model"), rows)
    for precision in after.limits:
        then, now = before.limit(precision), after.limit(precision)
        if then is not None and now is not None:
            # If the machine's speed changed, everything else changed with it.
            yield f"the machine's limit in {precision}: {then[0]:,.0f} GFLOP/s before, {now[0]:,.0f} now"
    if missing := [one_line(name) for name in old if name not in new]:
        yield f"only in the earlier run: {', '.join(missing)}"


def _cells(results: Results, row: Row) -> list[str]:
    figures = results.figures(row)
    shown = ["-" if figures[name] is None else form.format(figures[name]) for _, name, form in _COLUMNS]
    return [row.label, _ms(row.p50_s), _ms(row.p95_s), *shown, "yes" if figures["same_top_3"] else "NO"]


def _table(header: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return table(header, rows, left=("reranker", "model"), width=shutil.get_terminal_size().columns)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.1f}"
