"""What a benchmark is asked and what it found. Raw times are kept; every figure is made of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._files import errors_named, written
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from typing_extensions import Self

FORMAT = 1
"""Of the JSON file; goes up when an older reader would misunderstand it."""

MARCORANK = "marcorank"
SCENARIOS = ("concurrent", "scale", "memory", "lag")
"""What can be measured beyond one request at a time."""

# The frameworks' own rerankers: what someone has who has not installed anything for it.
_FRAMEWORKS = ("langchain", "llama-index", "llama-index-sbert")
_REFERENCE_PEER = "sentence-transformers"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured.

    Attributes:
        models: `"bundled"`, hub names or folders.
        backends: Of marcorank; empty for all.
        precisions: Of marcorank; empty for all but fp16, which CPUs are slow in.
        peers: Names of peers.
        device: As torch spells it; None for the CPU.
        threads: Threads of each engine; None for its own choice.
        candidates: Passages of a request.
        lengths: Minimum and maximum number of tokens of query and passage.
        rounds: How often each contestant has its turn.
        cold_starts: Fresh processes for each contestant.
        scenarios: Some of `SCENARIOS`.
        concurrency: Requests at once in `concurrent`.
        lag_requests: Requests at once in `lag`.
        passages: The larger number of passages in `scale` and `memory`.
        timeout_s: Longest silence of a contestant.
        cache_folder: Where hub models are kept; None for the Hugging Face cache.
        seed: Of the passages.
        product_sizes: Rows and columns of the matrices that the machine's limit is looked for with; empty to leave it.
    """

    models: tuple[str, ...]
    backends: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    device: str | None = None
    threads: int | None = None
    candidates: int = 20
    lengths: tuple[int, int] = (95, 414)
    rounds: int = 7
    cold_starts: int = 3
    scenarios: tuple[str, ...] = ()
    concurrency: int = 32
    lag_requests: int = 200
    passages: int = 10_000
    timeout_s: float = 900
    cache_folder: str | None = None
    seed: int = 0
    # Small enough for caches, large enough to hide what starting a product costs: the best one depends on the machine.
    product_sizes: tuple[int, ...] = (1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who is measured.

    Attributes:
        model: `"bundled"`, a hub name or a folder.
        engine: `"marcorank"`, or the name of a peer.
        backend: Of marcorank, else empty.
        precision: What it computes in.
    """

    model: str
    engine: str
    backend: str
    precision: str

    @property
    def label(self) -> str:
        """Name for people, without the model."""
        return f"{self.engine} {self.backend} {self.precision}" if self.engine == MARCORANK else self.engine

    @property
    def key(self) -> tuple[str, str]:
        """A key that no other contestant has."""
        return self.model, self.label


@dataclass(slots=True)
class Row:
    """What was found of one contestant.

    Attributes:
        contestant: Who.
        reason: Why it could not be measured, or not to the end; None if all went well.
        reason_kind: Class of the error behind the reason.
        cold_start_s: From the start of a process to its first ranking.
        rounds_s: Times of the requests in each round.
        peak_memory_bytes: Of its process, after all rounds; None where the system does not report it.
        order: Indices of the passages, best first.
        logits: One a passage; None where it gives none.
        flops: Of one request, every layer computed for every token; None for a model whose shape is not known.
        least_flops: The same without what reaches no logit: the last layer of all tokens but the first.
        scenarios: By scenario, what `scenarios` found, or the reason why it could not.
    """

    contestant: Contestant
    reason: str | None = None
    reason_kind: str | None = None
    cold_start_s: list[float] = field(default_factory=list)
    rounds_s: list[list[float]] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    order: list[int] = field(default_factory=list)
    logits: list[float] | None = None
    flops: float | None = None
    least_flops: float | None = None
    scenarios: dict[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether all went well and there are times."""
        return self.reason is None and any(self.rounds_s)

    @property
    def p50_s(self) -> float:
        """Median time of a request."""
        return self._percentile(50)

    @property
    def p95_s(self) -> float:
        """Time that 95 of 100 requests stay below."""
        return self._percentile(95)

    def _percentile(self, share: float) -> float:
        return float(np.percentile([seconds for turn in self.rounds_s for seconds in turn], share))


@dataclass(slots=True)
class Limit:
    """Speed of one engine's large matrix products at one precision.

    Attributes:
        engine: `"torch"`, `"onnxruntime"` or `"openvino"`.
        precision: Of the products.
        size: Rows and columns of the square matrices that were fastest.
        gflops: 10^9 operations a second, one value a product; multiply and add are two.
        reason: Why there are none; None if there are.
    """

    engine: str
    precision: str
    size: int = 0
    gflops: list[float] = field(default_factory=list)
    reason: str | None = None

    @property
    def best(self) -> float:
        """The fastest product."""
        return max(self.gflops)


@dataclass(slots=True)
class Results:
    """All that a benchmark found.

    Attributes:
        settings: What was asked.
        machine: Processor, system and versions.
        workload: The request: its query, passages and lengths.
        rows: One a contestant, measured or not.
        limits: One an engine and precision.
        not_installed: By peer, how to install it.
        date: When it began, ISO 8601 in UTC.
    """

    settings: Settings
    machine: dict[str, Any]
    workload: dict[str, Any]
    rows: list[Row]
    limits: list[Limit]
    not_installed: dict[str, str]
    date: str

    def baseline(self, model: str) -> Row | None:
        """Return what the speeds of a model are relative to.

        The faster of LangChain's and LlamaIndex' own rerankers with the same weights, else sentence-transformers,
        else the same of another model of the run, else the slowest.
        """
        own = [row for row in self.rows if row.measured and row.contestant.model == model]
        others = [row for row in self.rows if row.measured and row.contestant.model != model]
        for rows in (own, others):
            for engines in (_FRAMEWORKS, (_REFERENCE_PEER,)):
                found = [row for row in rows if row.contestant.engine in engines]
                if found:
                    return min(found, key=lambda row: row.p50_s)
        return max(own, key=lambda row: row.p50_s, default=None)

    def reference(self, model: str) -> Row | None:
        """Return whose logits those of a model are compared with: sentence-transformers', else an engine's in fp32."""
        own = [row for row in self.rows if row.measured and row.contestant.model == model]
        return min(own, key=_distance_from_reference, default=None)

    def limit(self, precision: str) -> Limit | None:
        """Return the fastest large product at a precision."""
        known = [limit for limit in self.limits if limit.precision == precision and limit.gflops]
        return max(known, key=lambda limit: limit.best, default=None)

    def figures(self, row: Row) -> dict[str, Any]:
        """Return what is made of a row's times; None stands for what is not known."""
        baseline, reference = self.baseline(row.contestant.model), self.reference(row.contestant.model)
        limit = self.limit(row.contestant.precision)
        if not row.measured or baseline is None or reference is None:
            return {}
        return {
            "p50_ms": row.p50_s * 1e3,
            "p95_ms": row.p95_s * 1e3,
            "passages_per_s": len(self.workload["passages"]) / row.p50_s,
            "speed": baseline.p50_s / row.p50_s,
            "baseline": list(baseline.contestant.key),
            "share_of_limit": _share(row.flops, row.p50_s, limit),
            "least_share_of_limit": _share(row.least_flops, row.p50_s, limit),
            "cold_start_s": float(np.median(row.cold_start_s)),
            "peak_memory_mb": None if row.peak_memory_bytes is None else row.peak_memory_bytes / 1e6,
            "reference": list(reference.contestant.key),
            "largest_difference": _largest_difference(row.logits, reference.logits),
            "same_top_3": row.order[:3] == reference.order[:3],
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {
            "format": FORMAT,
            **asdict(self),
            "rows": [{**asdict(row), "figures": self.figures(row)} for row in self.rows],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Make results of what `to_dict` returned."""
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content["settings"].items()
        }
        rows = []
        for stored in content["rows"]:
            fields = {name: value for name, value in stored.items() if name != "figures"}
            rows.append(Row(**{**fields, "contestant": Contestant(**stored["contestant"])}))
        rest = {name: content[name] for name in ("machine", "workload", "not_installed", "date")}
        return cls(Settings(**settings), rows=rows, limits=[Limit(**limit) for limit in content["limits"]], **rest)

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a file.

        Raises:
            InvalidInputError: The path cannot be written.
        """
        with written(path) as file:
            json.dump(self.to_dict(), file, indent=1, ensure_ascii=False)
            file.write("\n")

    @classmethod
    def read_json(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `write_json` wrote.

        Raises:
            InvalidInputError: The file cannot be read, or is not a result of this benchmark.
        """
        shown = repr(str(path))
        with errors_named(shown):
            text = Path(path).read_text(encoding="utf-8")
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise InvalidInputError(
                    f"{shown} has format {content['format']!r}; this version reads {FORMAT}. Run the benchmark anew."
                )
            return cls.from_dict(content)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(
                f"{shown} holds no results of `marcorank bench --json`: {type(error).__name__} {error}."
            ) from error


def _distance_from_reference(row: Row) -> tuple[bool, bool, bool, int]:
    contestant = row.contestant
    return (
        row.logits is None,
        contestant.engine != _REFERENCE_PEER,
        contestant.precision != "fp32",
        contestant.engine != MARCORANK,
    )


def _share(flops: float | None, seconds: float, limit: Limit | None) -> float | None:
    return None if flops is None or limit is None else flops / seconds / 1e9 / limit.best


def _largest_difference(logits: Sequence[float] | None, others: Sequence[float] | None) -> float | None:
    return None if logits is None or others is None else float(np.max(np.abs(np.subtract(logits, others))))
