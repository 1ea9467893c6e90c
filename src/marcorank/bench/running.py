"""The benchmark itself: who takes part, in which order, and what becomes of those that fail."""

from __future__ import annotations

import itertools
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank._models.loading import locate
from marcorank.bench.contestants import contestants, worth_reporting
from marcorank.bench.engines import PEERS, Setup
from marcorank.bench.flops import request_flops
from marcorank.bench.machine import machine_facts
from marcorank.bench.process import Child, ContestantError
from marcorank.bench.records import MARCORANK, Limit, Results, Row
from marcorank.bench.scenarios import run_scenario
from marcorank.bench.workload import Workload, pair_lengths
from marcorank.errors import MarcoRankError
from marcorank.settings import PRECISIONS, RerankerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from marcorank.bench.records import Contestant, Settings

    Report = Callable[[str], None]

_ENGINES = ("torch", "onnxruntime", "openvino")
# One slow request fills a contestant's turn, or several fast ones.
_TURN_S = 0.4
_MAX_REQUESTS_PER_TURN = 20
# Threads of engines go on looking for work for a while after it is done, in the time of who comes next.
_PAUSE_S = 0.05


@dataclass(slots=True)
class _Running:
    """A contestant whose process runs."""

    row: Row
    child: Child
    repeat: int = 1


def run_bench(settings: Settings, report: Report = lambda _: None) -> Results:
    """Measure all contestants in turn.

    Each has a process of its own, because thread pools of several engines in one process get in each other's way, and
    because only so its peak memory and its cold start are its own. The processes wait while another one works.

    Args:
        settings: What is measured.
        report: Called with what is going on, whenever that changes.

    Raises:
        UnknownModelError: A name is not a model.
        ModelLoadError: The first model has no tokenizer that can be read.
    """
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    report("Making the passages")
    workload = Workload(settings, settings.models[0])
    passages = workload.passages(pair_lengths(settings.candidates, *settings.lengths))
    rows = [Row(contestant) for contestant in contestants(settings)]
    results = Results(
        settings,
        machine=machine_facts(),
        workload=workload.described(passages),
        rows=rows,
        limits=[],
        not_installed={name: PEERS[name].install for name in settings.peers if not PEERS[name].installed},
        date=date,
    )
    with tempfile.TemporaryDirectory(prefix="marcorank-bench-") as scratch, ExitStack() as stack:
        race = _Race(settings, workload, scratch=Path(scratch), stack=stack, report=report)
        race.run(passages, rows, results.limits)
    results.rows = worth_reporting(rows, settings)
    return results


class _Race:
    """One run: the processes and their turns."""

    def __init__(
        self, settings: Settings, workload: Workload, *, scratch: Path, stack: ExitStack, report: Report
    ) -> None:
        self._settings = settings
        self._workload = workload
        self._passages: list[str] = []
        self._scratch = scratch
        self._stack = stack
        self._report = report
        self._setups = itertools.count()

    def run(self, passages: list[str], rows: list[Row], limits: list[Limit]) -> None:
        """Fill the rows and the limits."""
        self._passages = passages
        running: list[_Running] = []
        for number, row in enumerate(rows, 1):
            self._report(f"Loading {number} of {len(rows)}: {_shown(row)}")
            running.extend(self._started(row))
        self._count_flops(running)
        self._cold_starts(running)
        products = self._products(limits, {one.row.contestant.precision for one in running})
        for number in range(self._settings.rounds):
            turn = f"Round {number + 1} of {self._settings.rounds}"
            # Who comes after whom changes, so that nobody always follows the same one.
            first = number % max(1, len(running))
            for contestant in [*running[first:], *running[:first]]:
                self._report(f"{turn}: {_shown(contestant.row)}")
                self._turn(contestant)
            for child, limit in products:
                self._report(f"{turn}: {limit.engine}'s {limit.precision} product")
                self._product(child, limit)
        for contestant in running:
            self._memory(contestant)
        for scenario in self._settings.scenarios:
            for contestant in running:
                if contestant.row.contestant.engine == MARCORANK and contestant.row.measured:
                    self._report(f"Scenario {scenario}: {_shown(contestant.row)}")
                    self._scenario(scenario, contestant)

    def _started(self, row: Row) -> Iterator[_Running]:
        """Start a contestant's process and have it rank; yield nothing if it cannot."""

        def start() -> _Running:
            with ExitStack() as unless_all_goes_well:
                child = unless_all_goes_well.enter_context(self._child())
                self._first_ranking(child, row)
                answer = child.ask("request", query=self._workload.query, passages=self._passages)
                self._stack.push(unless_all_goes_well.pop_all())
            row.order, row.logits = answer["order"], answer["logits"]
            repeat = max(1, min(_MAX_REQUESTS_PER_TURN, round(_TURN_S / answer["seconds"])))
            return _Running(row, child, repeat)

        started = self._guard(row, start)
        if started is not None:
            yield started

    def _child(self) -> Child:
        return Child(threads=self._settings.threads, timeout_s=self._settings.timeout_s)

    def _first_ranking(self, child: Child, row: Row) -> None:
        self._load(child, row.contestant)
        row.cold_start_s.append(time.perf_counter() - child.started)

    def _load(self, child: Child, contestant: Contestant) -> None:
        # Two short passages: what counts is how long it takes until there is a model.
        child.ask(
            "load",
            engine=contestant.engine,
            setup=self._setup(contestant),
            query="how long",
            passages=["not long", "long"],
        )

    def _setup(self, contestant: Contestant) -> Setup:
        settings = self._settings
        scratch = self._scratch / f"{next(self._setups)}"
        scratch.mkdir()
        files = locate(RerankerSettings(contestant.model, cache_folder=settings.cache_folder, local_files_only=True))
        config = files.fetch("config.json")
        return Setup(
            contestant.model,
            str(config.parent.absolute()) if config else "",
            contestant.backend,
            contestant.precision,
            settings.device,
            settings.threads,
            settings.cache_folder,
            str(scratch),
        )

    def _count_flops(self, running: list[_Running]) -> None:
        for model, group in itertools.groupby(running, key=lambda one: one.row.contestant.model):
            counted = request_flops(model, self._workload.query, self._passages, self._settings.cache_folder)
            for contestant in group:
                if counted is not None:
                    contestant.row.flops, contestant.row.least_flops = counted.whole, counted.least

    def _cold_starts(self, running: list[_Running]) -> None:
        for number in range(1, self._settings.cold_starts):
            for contestant in running:
                row = contestant.row
                self._report(f"Cold start {number + 1} of {self._settings.cold_starts}: {_shown(row)}")
                with self._child() as child:
                    self._guard(row, partial(self._first_ranking, child, row))

    def _products(self, limits: list[Limit], wanted: set[str]) -> list[tuple[Child, Limit]]:
        """Find the best size of matrices for each engine and precision."""
        found = []
        for engine in _ENGINES if self._settings.product_sizes else ():
            if self._settings.device not in {None, "cpu"} and engine != "torch":
                continue
            child = self._stack.enter_context(self._child())
            self._report(f"The machine's limit: {engine}")
            try:
                precisions = child.ask(
                    "import_products", engine=engine, device=self._settings.device, threads=self._settings.threads
                )
            except ContestantError as error:
                limits.append(Limit(engine, "all", reason=f"{error}"))
                continue
            for precision in sorted(wanted.intersection(precisions), key=PRECISIONS.index):
                limit = Limit(engine, precision)
                limits.append(limit)
                try:
                    self._report(f"The machine's limit: {engine}'s {precision} product")
                    limit.size, speed = child.ask("best_size", precision=precision, sizes=self._settings.product_sizes)
                    limit.gflops.append(speed)
                    found.append((child, limit))
                except ContestantError as error:
                    limit.reason = f"{error}"
        return found

    def _product(self, child: Child, limit: Limit) -> None:
        time.sleep(_PAUSE_S)
        if limit.reason is None:
            try:
                limit.gflops.append(child.ask("product", precision=limit.precision, size=limit.size))
            except ContestantError as error:
                limit.reason = f"{error}"

    def _turn(self, contestant: _Running) -> None:
        row = contestant.row
        if row.reason is None:
            time.sleep(_PAUSE_S)
            times = self._guard(row, lambda: contestant.child.ask("time", repeat=contestant.repeat))
            if times is not None:
                row.rounds_s.append(times)

    def _memory(self, contestant: _Running) -> None:
        row = contestant.row
        if row.reason is None:
            row.peak_memory_bytes = self._guard(row, lambda: contestant.child.ask("memory"))

    def _scenario(self, name: str, contestant: _Running) -> None:
        row = contestant.row

        def fresh_child() -> Child:
            with ExitStack() as unless_all_goes_well:
                child = unless_all_goes_well.enter_context(self._child())
                self._load(child, row.contestant)
                unless_all_goes_well.pop_all()
            return child

        try:
            row.scenarios[name] = run_scenario(
                name,
                self._settings,
                self._workload,
                child=contestant.child,
                fresh_child=fresh_child,
                passage_s=row.p50_s / len(self._passages),
            )
        except ContestantError as error:
            # What was measured before stays.
            row.scenarios[name] = {"reason": f"{error}"}

    def _guard(self, row: Row, work: Callable[[], Any]) -> Any:
        """Do something for a row; what goes wrong becomes its reason, and the others go on."""
        try:
            return work()
        except ContestantError as error:
            row.reason, row.reason_kind = f"{error}", error.kind
        except MarcoRankError as error:
            row.reason, row.reason_kind = f"{error}", type(error).__name__
        return None


def _shown(row: Row) -> str:
    return f"{row.contestant.label} with {row.contestant.model}"
