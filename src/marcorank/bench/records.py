"""Settings and results of a benchmark. The results keep the raw times; every figure is computed from them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._drawing import check_matplotlib
from marcorank._files import errors_named, errors_of_writing, written
from marcorank._text import html_table, quoted, quoted_path, shorten
from marcorank.bench.chart import Bar, speed_chart
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from typing_extensions import Self

    from marcorank._figure import NotebookFigure

FORMAT = 2
"""Of the JSON file; goes up when an older reader would misunderstand it."""

MARCORANK = "marcorank"
SCENARIOS = ("concurrent", "lag")

# The frameworks' own rerankers need no other package.
_FRAMEWORKS = ("langchain", "llama-index", "llama-index-sbert")
_REFERENCE = "sentence-transformers"
_CHART_NAMES = {"langchain": "LangChain", "llama-index": "LlamaIndex", "flashrank": "FlashRank"}
_CHART_FORMATS = (".png", ".svg")


def check_chart_path(path: str | os.PathLike[str]) -> None:
    """Check the ending of the path, and that matplotlib is installed, before an hour is spent on measuring.

    Raises:
        InvalidInputError: The path does not end in .png or .svg.
        MissingExtraError: matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in _CHART_FORMATS:
        raise InvalidInputError(
            f"The file of the chart is {quoted_path(path)}; expected a name that ends in {' or '.join(_CHART_FORMATS)}."
        )
    check_matplotlib("bench")


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured; each field is an option of `marcorank bench`. No backends or precisions stand for all."""

    models: tuple[str, ...]
    backends: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int | None = None
    candidates: int = 20
    lengths: tuple[int, int] = (95, 414)
    rounds: int = 7
    cold_starts: int = 3
    scenarios: tuple[str, ...] = ()
    concurrency: int = 32
    lag_requests: int = 200
    timeout_s: float = 900
    cache_folder: str | None = None
    # Rows of the matrices that the machine's limit is measured with; empty to skip it. Small ones fit into caches,
    # large ones hide the cost of starting a product.
    limit_sizes: tuple[int, ...] = (1024, 2048, 4096)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Take the settings from values by name, and ignore other names."""
        known: dict[str, Any] = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        # JSON and argparse make lists.
        known |= {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**known)


@dataclass(slots=True)
class Row:
    """One contestant with one model, and its measurements.

    Attributes:
        model: `"bundled"`, `"bundled-tiny"`, a hub name or a folder.
        contestant: `"marcorank"` or the name of a peer.
        backend: Backend of marcorank; empty for a peer.
        precision: Precision that it computes in.
        reason: Why it could not be measured completely; None if it was.
        reason_kind: Name of the error's class behind the reason.
        cold_start_s: Seconds from the start of a process to its first ranking.
        rounds_s: Seconds of the requests in each round.
        peak_memory_bytes: Peak memory of its process; None if the system does not report it.
        order: Indices of the passages, best first.
        logits: Logits in the order of the request; None if the contestant returns none.
        flops: Operations of a request; None for an unknown architecture.
        scenarios: Figures of each scenario, or the reason why it failed.
    """

    model: str
    contestant: str
    backend: str = ""
    precision: str = "fp32"
    reason: str | None = None
    reason_kind: str | None = None
    cold_start_s: list[float] = field(default_factory=list)
    rounds_s: list[list[float]] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    order: list[int] = field(default_factory=list)
    logits: list[float] | None = None
    flops: float | None = None
    scenarios: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The contestant's name on a screen, without the model."""
        return f"{MARCORANK} {self.backend} {self.precision}" if self.contestant == MARCORANK else self.contestant

    @property
    def chart_name(self) -> str:
        """The contestant's name in a chart."""
        return _CHART_NAMES.get(self.contestant, self.label)

    @property
    def name(self) -> str:
        """Contestant and model; unique in a run."""
        return f"{self.label} with {self.model}"

    @property
    def measured(self) -> bool:
        """Whether nothing failed and there are times."""
        return self.reason is None and any(self.rounds_s)

    @property
    def p50_s(self) -> float:
        """Median time of a request."""
        return self._percentile(50)

    @property
    def p95_s(self) -> float:
        """95th percentile of the time of a request."""
        return self._percentile(95)

    def _percentile(self, percent: float) -> float:
        return float(np.percentile([seconds for times in self.rounds_s for seconds in times], percent))


@dataclass(slots=True)
class Results:
    """The results of a benchmark.

    Attributes:
        settings: What was measured.
        machine: Processor, system and versions.
        workload: The request: its query, passages and lengths.
        rows: One per contestant and model, measured or not.
        limits: Speed of a large matrix product in each round, by precision and library, in 10^9 operations per second.
        not_installed: Names of the missing peers.
        date: Start of the run, ISO 8601 in UTC.
    """

    settings: Settings
    machine: dict[str, Any]
    workload: dict[str, Any]
    rows: list[Row]
    limits: dict[str, dict[str, list[float]]]
    not_installed: list[str]
    date: str

    @property
    def processor(self) -> str:
        """Processor and cores."""
        cores = self.machine["usable_cores"]
        return f"{self.machine['processor']}, {cores} core{'s' if cores > 1 else ''}"

    def measured(self, model: str) -> list[Row]:
        """Return the measured contestants of a model, fastest first."""
        return sorted((row for row in self.rows if row.measured and row.model == model), key=lambda row: row.p50_s)

    def baseline(self, model: str) -> Row:
        """Return the row that the speeds of a measured model are relative to.

        The faster of LangChain's and LlamaIndex's own rerankers, else sentence-transformers, else one of these with
        another model of the run, else the slowest.
        """
        return min(
            (row for row in self.rows if row.measured and row.contestant in {*_FRAMEWORKS, _REFERENCE}),
            key=lambda row: (row.model != model, row.contestant == _REFERENCE, row.p50_s),
            default=self.measured(model)[-1],
        )

    def reference(self, model: str) -> Row:
        """Return the row that a measured model's results are compared with.

        Of those with logits, that of sentence-transformers, else one in fp32, preferably of marcorank.
        """

        def distance(row: Row) -> tuple[bool, ...]:
            is_peer = row.contestant != MARCORANK
            return row.logits is None, row.contestant != _REFERENCE, row.precision != "fp32", is_peer

        return min((row for row in self.rows if row.measured and row.model == model), key=distance)

    def limit(self, precision: str) -> tuple[float, str] | None:
        """Return the speed of the fastest large product in a precision, and its library; None if there is none."""
        return max(((max(speeds), library) for library, speeds in self.limits.get(precision, {}).items()), default=None)

    def figures(self, row: Row) -> dict[str, Any]:
        """Return the figures of a row, None for unknown ones; empty if the row was not measured."""
        if not row.measured:
            return {}
        baseline, reference = self.baseline(row.model), self.reference(row.model)
        limit, difference = self.limit(row.precision), None
        if row.logits is not None and reference.logits is not None:
            difference = float(np.max(np.abs(np.subtract(row.logits, reference.logits))))
        return {
            "p50_ms": row.p50_s * 1e3,
            "p95_ms": row.p95_s * 1e3,
            "passages_per_s": len(self.workload["passages"]) / row.p50_s,
            "speed": baseline.p50_s / row.p50_s,
            "baseline": baseline.name,
            "share_of_limit": None if row.flops is None or limit is None else row.flops / row.p50_s / 1e9 / limit[0],
            "cold_start_s": float(np.median(row.cold_start_s)),
            "peak_memory_mb": None if row.peak_memory_bytes is None else row.peak_memory_bytes / 1e6,
            "reference": reference.name,
            "largest_difference": difference,
            "same_top_3": row.order[:3] == reference.order[:3],
        }

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a file, with the figures of each row.

        Raises:
            InvalidInputError: The path cannot be written.
        """
        rows = [{**asdict(row), "figures": self.figures(row)} for row in self.rows]
        with written(path) as file:
            json.dump({"format": FORMAT, **asdict(self), "rows": rows}, file, indent=1, ensure_ascii=False)
            file.write("\n")

    def plot(self) -> NotebookFigure:
        """Draw the speeds of the measured contestants of each model, fastest first.

        Returns:
            A figure of matplotlib. Notebooks show it; `savefig` writes it to a file.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        models = [model for model in dict.fromkeys(self.settings.models) if self.measured(model)]
        bars: list[Bar] = []
        for model in models:
            bars += [Bar(Path(model).name)] if len(models) > 1 else []
            for row in self.measured(model):
                speed, milliseconds = self.figures(row)["speed"], row.p50_s * 1e3
                text = f"{speed:.1f}x, {milliseconds:,.{0 if milliseconds >= 10 else 1}f} ms"
                bars.append(Bar(row.chart_name, speed, text, is_own=row.contestant == MARCORANK))
        baselines = " or ".join(dict.fromkeys(self.baseline(model).chart_name for model in models))
        passages = len(self.workload["passages"])
        caption = f"Speed ({baselines} = 1) and median time of a request with {passages} passages."
        return speed_chart(bars, f"Reranking on {self.processor}", caption).figure()

    def write_chart(self, path: str | os.PathLike[str]) -> None:
        """Write the chart of `plot` to a file.

        Raises:
            InvalidInputError: The path does not end in .png or .svg, or cannot be written.
            MissingExtraError: matplotlib is not installed.
        """
        check_chart_path(path)
        figure = self.plot()
        with errors_of_writing(path):
            if Path(path).suffix.lower() == ".svg":
                with written(path) as file:
                    file.write(figure.to_svg())
            else:
                figure.savefig(path, dpi=160)

    def _repr_html_(self) -> str:
        """Return a table for notebooks, with all texts escaped."""
        header = ("model", "reranker", "p50 ms", "p95 ms", "speed", "MB", "same top 3")
        rows = []
        for model in dict.fromkeys(row.model for row in self.rows):
            for row in self.measured(model):
                figures = self.figures(row)
                memory = "-" if figures["peak_memory_mb"] is None else f"{figures['peak_memory_mb']:,.0f}"
                times = (f"{figures[name]:,.1f}" for name in ("p50_ms", "p95_ms"))
                same = "yes" if figures["same_top_3"] else "no"
                rows.append((shorten(Path(model).name), row.label, *times, f"{figures['speed']:.1f}x", memory, same))
        passages = len(self.workload["passages"])
        return html_table(
            f"{self.processor}; requests of {passages} passages; {self.date}", header, rows, left=header[:2]
        )

    @classmethod
    def read_json(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file of `write_json`.

        Raises:
            InvalidInputError: The file cannot be read, or is not the result of a benchmark.
        """
        shown = repr(str(path))
        with errors_named(shown):
            text = Path(path).read_text(encoding="utf-8")
        try:
            content = json.loads(text)
            if (version := content.pop("format")) == FORMAT:
                content["settings"] = Settings.of(content["settings"])
                for row in content["rows"]:
                    del row["figures"]
                content["rows"] = [Row(**row) for row in content["rows"]]
                return cls(**content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidInputError(
                f"{shown} is not a result of `marcorank bench --json`: {type(error).__name__} {error}."
            ) from error
        raise InvalidInputError(
            f"{shown} has format {quoted(version)}; this version reads {FORMAT}. Run the benchmark again."
        )
