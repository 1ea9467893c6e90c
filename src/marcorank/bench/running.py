"""The benchmark itself: the processes of the contestants and their turns."""

from __future__ import annotations

import platform
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from typing import TYPE_CHECKING

from marcorank._inference.cpu import processor_name, usable_cores
from marcorank.bench.contestants import PEERS, Setup, version_of
from marcorank.bench.process import Child, ContestantError
from marcorank.bench.records import MARCORANK, Results, Row
from marcorank.bench.workload import QUERY, Workload, model_file, pair_lengths, request_flops
from marcorank.settings import BACKENDS, PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from marcorank.bench.records import Settings

    Report = Callable[[str], None]

_LIBRARIES = {
    "torch": ("fp32", "bf16", "fp16", "int8"),
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
# A turn is one slow request or several fast ones.
_TURN_S = 0.4
_MAX_REQUESTS_PER_TURN = 20
# After a request, idle threads keep spinning for a while, which would slow the next contestant.
_PAUSE_S = 0.05
# How much longer than in a request a passage may take in a scenario before it times out.
_SLACK = 20


def run_bench(settings: Settings, report: Report = lambda _: None) -> Results:
    """Measure all contestants in turn.

    Each has its own process, because the thread pools of several libraries in one process interfere, and because peak
    memory and cold start belong to a process. The processes wait while another one works.

    Args:
        settings: What to measure.
        report: Called with a line about the current step whenever it changes.

    Raises:
        UnknownModelError: No model has one of the names.
        ModelLoadError: The first model has no tokenizer, or it cannot be read.
    """
    report("Making the passages")
    workload = Workload(settings.models[0], settings.cache_folder)
    packages = {"marcorank", "tokenizers", *_LIBRARIES}.union(*(peer.packages for peer in PEERS.values()))
    results = Results(
        settings,
        machine={
            "processor": processor_name(),
            "usable_cores": usable_cores(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "packages": {name: version for name in sorted(packages) if (version := version_of(name))},
        },
        workload=workload.request(pair_lengths(settings.candidates, *settings.lengths)),
        rows=list(_rows(settings)),
        limits={},
        not_installed=[name for name in settings.peers if not PEERS[name].installed],
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    with ExitStack() as processes:
        _Run(results, workload, processes, report).measure()
    results.rows = _worth_reporting(results.rows, settings)
    return results


def _rows(settings: Settings) -> Iterator[Row]:
    backends = settings.backends or tuple(name for name in BACKENDS if name != "auto")
    # CPUs compute fp16 slowly or in fp32.
    unasked = {"auto", "fp16"} if settings.device == "cpu" else {"auto"}
    precisions = settings.precisions or tuple(name for name in PRECISIONS if name not in unasked)
    for model in dict.fromkeys(settings.models):
        for peer in settings.peers:
            if PEERS[peer].installed:
                yield Row(model, peer)
        for backend in backends:
            for precision in precisions:
                yield Row(model, MARCORANK, backend, precision)


def _worth_reporting(rows: list[Row], settings: Settings) -> list[Row]:
    """Leave out combinations that marcorank does not support, such as bf16 with onnx, unless the user named them."""
    if settings.backends and settings.precisions:
        return rows
    supported = {row.model for row in rows if row.contestant == MARCORANK and row.reason_kind != "InvalidInputError"}
    return [row for row in rows if row.reason_kind != "InvalidInputError" or row.model not in supported]


@dataclass(slots=True)
class _Contestant:
    """A row and its process, which ranks the request `repeat` times per turn."""

    row: Row
    child: Child
    repeat: int = 1


class _Run:
    """One run: fills the rows and limits of the results."""

    def __init__(self, results: Results, workload: Workload, processes: ExitStack, report: Report) -> None:
        self._results = results
        self._settings = results.settings
        self._workload = workload
        self._passages = results.workload["passages"]
        self._processes = processes
        self._report = report
        # Removed after the processes have ended.
        self._scratch = processes.enter_context(tempfile.TemporaryDirectory(prefix="marcorank-bench-"))
        models, cache_folder = self._settings.models, self._settings.cache_folder
        self._configs = {model: model_file(model, "config.json", cache_folder) for model in models}

    def measure(self) -> None:
        settings = self._settings
        contestants = [contestant for row in self._results.rows if (contestant := self._started(row))]
        for number in range(2, settings.cold_starts + 1):
            for contestant in contestants:
                self._report(f"Cold start {number} of {settings.cold_starts}: {contestant.row.name}")
                with _failures(contestant), self._new_child() as child:
                    self._load(contestant.row, child)
        products = list(self._products({contestant.row.precision for contestant in contestants}))
        for number in range(settings.rounds):
            turn = f"Round {number + 1} of {settings.rounds}"
            # The order changes, so that no contestant always follows the same one.
            first = number % max(1, len(contestants))
            for contestant in contestants[first:] + contestants[:first]:
                self._report(f"{turn}: {contestant.row.name}")
                time.sleep(_PAUSE_S)
                with _failures(contestant):
                    contestant.row.rounds_s.append(contestant.child.ask("time", repeat=contestant.repeat))
            for child, library, precision in products:
                self._report(f"{turn}: matrix product of {library} in {precision}")
                time.sleep(_PAUSE_S)
                self._multiply(child, library, precision)
        for contestant in contestants:
            with _failures(contestant):
                contestant.row.peak_memory_bytes = contestant.child.ask("memory")
        for name in settings.scenarios:
            for contestant in contestants:
                if contestant.row.contestant == MARCORANK and contestant.row.measured:
                    self._report(f"Scenario {name}: {contestant.row.name}")
                    self._measure_scenario(name, contestant)

    def _new_child(self) -> Child:
        return Child(threads=self._settings.threads, timeout_s=self._settings.timeout_s)

    def _started(self, row: Row) -> _Contestant | None:
        """Start a contestant and let it rank the request; None if it fails."""
        self._report(f"Loading {row.name}")
        contestant = _Contestant(row, self._processes.enter_context(self._new_child()))
        with _failures(contestant):
            self._load(row, contestant.child)
            result = contestant.child.ask("request", query=QUERY, passages=self._passages)
            row.order, row.logits = result["order"], result["logits"]
            row.flops = request_flops(row.model, self._passages, self._settings.cache_folder)
            contestant.repeat = max(1, min(_MAX_REQUESTS_PER_TURN, round(_TURN_S / result["seconds"])))
        return contestant if row.reason is None else None

    def _load(self, row: Row, child: Child) -> None:
        """Load a contestant and record its cold start, which ends with a ranking of two short passages."""
        settings, config = self._settings, self._configs[row.model]
        scratch = tempfile.mkdtemp(dir=self._scratch)
        folder = scratch if config is None else str(config.parent.absolute())
        everyone = (settings.device, settings.threads, settings.cache_folder)
        setup = Setup(row.model, row.backend, row.precision, folder, scratch, *everyone)
        child.ask("load", contestant=row.contestant, setup=setup, query="how long", passages=["not long", "long"])
        row.cold_start_s.append(time.perf_counter() - child.started)

    def _products(self, precisions: set[str]) -> Iterator[tuple[Child, str, str]]:
        """Start a process for each library that multiplies in one of the precisions."""
        for library, supported in _LIBRARIES.items() if self._settings.limit_sizes else ():
            if find_spec(library) is not None and (library == "torch" or self._settings.device == "cpu"):
                child = self._processes.enter_context(self._new_child())
                yield from ((child, library, precision) for precision in supported if precision in precisions)

    def _multiply(self, child: Child, library: str, precision: str) -> None:
        settings = self._settings
        # If a library has no such product, others set the limit.
        with suppress(ContestantError):
            product = [library, precision, settings.limit_sizes, settings.device, settings.threads]
            speed = child.ask("product", product=product)
            self._results.limits.setdefault(precision, {}).setdefault(library, []).append(speed)

    def _measure_scenario(self, name: str, contestant: _Contestant) -> None:
        row, settings = contestant.row, self._settings
        lengths = pair_lengths(settings.candidates, *settings.lengths)
        count, options, runs = settings.lag_requests, {}, 1
        if name == "concurrent":
            count, options, runs = settings.concurrency, {"rounds": settings.rounds}, 3 * settings.rounds
        requests = [(QUERY, self._workload.passages(lengths)) for _ in range(count)]
        more_time_s = _SLACK * runs * count * row.p50_s
        try:
            figures = contestant.child.ask("scenario", name=name, requests=requests, more_time_s=more_time_s, **options)
        except ContestantError as error:
            # The other figures of the row stay.
            figures = {"reason": f"{error}"}
        row.scenarios[name] = figures


@contextmanager
def _failures(contestant: _Contestant) -> Iterator[None]:
    """Record an error as the reason of the row and end its process; the other contestants go on."""
    try:
        yield
    except ContestantError as error:
        if contestant.row.reason is None:
            contestant.row.reason, contestant.row.reason_kind = f"{error}", error.kind
        contestant.child.close()
