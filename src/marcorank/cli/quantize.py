"""`marcorank models quantize`: a static int8 model, and what it costs."""

from __future__ import annotations

import importlib.util
import shlex
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from marcorank._arguments import whole_number
from marcorank._inference.cpu import Workers
from marcorank._inference.scheduler import Scheduler
from marcorank._inference.scorer import CrossEncoderScorer
from marcorank._models.catalogue import BUNDLED
from marcorank._models.loading import LocalFolder, graph_file, load_scorer, locate
from marcorank._models.quantization import import_packages, quantize
from marcorank._models.selection import ModelSettings, choose
from marcorank._text import table
from marcorank.cli.options import add_file_options, file_settings, new_parser
from marcorank.cli.progress import Progress
from marcorank.cli.reading import read_requests
from marcorank.errors import InvalidInputError, MissingExtraError
from marcorank.evaluation import wording
from marcorank.reranker import Reranker

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from marcorank._inference.pairs import PairEncoder, TokenBatch
    from marcorank.collections.records import Collection
    from marcorank.collections.requests import Request

    Requests = Sequence[tuple[str, Sequence[str]]]

_LEAST_PAIRS, _MOST_PAIRS = 20, 300
# Without a collection the file itself shows what changes: some queries are enough for that.
_QUERIES_LOOKED_AT, _PASSAGES_LOOKED_AT = 50, 20
_LEAST_QUERIES_LOOKED_AT = 5
_MEASURE = "nDCG@10"
_TOP = 3
_CHANCE = 0.05
_LEAST_GAIN = 0.00005
_FP32, _DYNAMIC, _STATIC = "fp32", "int8 made when loaded", "int8 of the file"
_FILES_OF_TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json")
_EXAMPLES = """\
FILE holds a query with passages a line, of the kind that will be ranked:
{"query": "...", "passages": ["...", "..."]}. Up to 300 pairs of it decide the
scales of the activations. Nothing has to be judged.

The openvino backend makes int8 of any model while it loads, without this. What
the file gains or costs beside that is printed: with --collection in nDCG@10,
else as the agreement with fp32.

example:
  marcorank models quantize ./my-reranker --calibrate queries.jsonl \\
      --collection my-collection
"""


def add_command(actions: Any) -> None:
    """Add this command to those of `marcorank models`."""
    parser = new_parser(
        actions,
        "quantize",
        summary="make a static int8 model for the openvino backend, and measure it",
        run=run,
        epilog=_EXAMPLES,
    )
    parser.add_argument("name", metavar="NAME", help="hub name or a model's folder")
    parser.add_argument(
        "--calibrate", metavar="FILE", required=True, help="queries with their passages, JSONL, also as .gz"
    )
    parser.add_argument(
        "--collection", metavar="SOURCE", help="judged queries to measure on, as `marcorank eval` takes them"
    )
    parser.add_argument("--top-k", type=int, default=20, metavar="N", help="candidates of a judged query (default: 20)")
    parser.add_argument("--output", metavar="DIR", help="folder to write (default: where a Reranker of NAME looks)")
    add_file_options(parser)


def run(args: argparse.Namespace) -> int:
    """Quantise, measure, and tell."""
    if args.name == BUNDLED:
        raise InvalidInputError("The bundled model is int8 already; there is nothing to quantise.")
    import_packages()
    top_k = whole_number("top_k", args.top_k, 1)
    requests = _requests(args.calibrate)
    pairs = list(islice(_spread(requests, np.random.default_rng(0)), _MOST_PAIRS))
    if len(pairs) < _LEAST_PAIRS:
        raise InvalidInputError(
            f"{args.calibrate!r} holds {wording.count(len(pairs), 'pair')} of a query and a passage; expected at "
            f"least {_LEAST_PAIRS}, better {_MOST_PAIRS}, of different queries."
        )
    with Progress() as progress:
        collection = None if args.collection is None else _collection(args.collection, progress)
        settings = ModelSettings(args.name, backend="openvino", precision="fp32", **file_settings(args))
        progress.text = f"Loading {args.name}"
        scorer = cast("CrossEncoderScorer", load_scorer(settings))
        files = locate(settings)
        graph = cast("Path", graph_file(files, choose(settings)))
        target = Path(args.output).expanduser() if args.output else files.export_folder()
        progress.text = f"Quantising {files.name}"
        file = quantize(
            graph,
            list(_encoded(scorer.encoder, requests, pairs)),
            target,
            texts=[text for name in _FILES_OF_TEXTS if (text := files.fetch(name))],
        )
        queries = len({query for query, _ in pairs})
        with progress.hidden():
            print(
                f"Wrote {file} ({_size(file) / 1e6:.1f} MB), calibrated on {len(pairs)} pairs of "
                f"{wording.count(queries, 'query', 'queries')}"
            )
            by_name = not args.output and not isinstance(files, LocalFolder)
            model = shlex.quote(files.name if by_name else str(target))
            print(f"Use it with: --model {model} --backend openvino --precision int8\n", flush=True)
        rerankers = _rerankers(scorer, graph, file)
        if collection is None:
            lines = _agreement(rerankers, requests, pairs, args.calibrate, progress)
        else:
            lines = _measured(rerankers, collection, top_k, progress)
    print("\n".join([*lines, f"To go back to that one, delete {file}"]))
    return 0


def _requests(source: str) -> list[Request]:
    return [request for request in read_requests(source, text_field=None) if request.passages]


def _spread(requests: Sequence[Request], generator: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Yield the places of pairs in random order: one of each query, then a second of each, and so on."""
    queries = generator.permutation(len(requests)).tolist()
    passages = [generator.permutation(len(request.passages)).tolist() for request in requests]
    for turn in range(max(map(len, passages), default=0)):
        yield from ((query, passages[query][turn]) for query in queries if turn < len(passages[query]))


def _encoded(
    encoder: PairEncoder, requests: Sequence[Request], pairs: Iterable[tuple[int, int]]
) -> Iterator[TokenBatch]:
    for query, passage in pairs:
        request = requests[query]
        encoded = encoder.encode(request.query, [request.passages[passage].text])
        yield encoder.batch([(encoded.query_ids, encoded.windows[0])])


def _size(file: Path) -> int:
    return file.stat().st_size + file.with_suffix(".bin").stat().st_size


def _rerankers(scorer: CrossEncoderScorer, graph: Path, file: Path) -> list[Reranker]:
    from marcorank._inference.backends.openvino import OpenvinoBackend

    def of(source: Path) -> Scheduler:
        return Scheduler(OpenvinoBackend(source, device="cpu", precision="int8", workers=Workers.of(None)))

    # By its name the model would be read from the file alone, once it is there.
    schedulers = {_FP32: scorer.scheduler, _DYNAMIC: of(graph), _STATIC: of(file)}
    return [
        Reranker(CrossEncoderScorer(scheduler, scorer.encoder, name=name)) for name, scheduler in schedulers.items()
    ]


# --- with judgements


def _collection(source: str, progress: Progress) -> Collection:
    for package in ("ir_measures", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"`--collection` needs {package}: pip install 'marcorank[evaluation]'")
    from marcorank.collections.reading import read_collection

    progress.text = f"Reading {source}"
    return read_collection(source)


def _measured(rerankers: list[Reranker], collection: Collection, top_k: int, progress: Progress) -> list[str]:
    from marcorank.evaluation.evaluating import evaluate

    evaluation = evaluate(
        collection,
        rerankers,
        top_k=top_k,
        measures=[_MEASURE],
        progress=lambda done, total, label: setattr(progress, "text", _scoring(label, done, total)),
    )
    (depth,) = evaluation.model(_FP32).depths
    rows = [["first stage", wording.value(depth.measures[0].first_stage), "", "", "", ""]]
    same = _same_top({result.label: result.logits for result in evaluation.models})
    for result in evaluation.models:
        (depth,) = result.depths
        comparison = evaluation.compare(result.label, _FP32)[_MEASURE]
        is_fp32 = result.label == _FP32
        rows.append(
            [
                result.label,
                wording.value(depth.measures[0].value),
                "" if is_fp32 else wording.signed(comparison.difference),
                "" if is_fp32 else wording.p_value(comparison.p_value),
                "" if is_fp32 else same[result.label],
                "-" if depth.latency_p50_ms is None else _seconds(depth.latency_p50_ms / 1000),
            ]
        )
    gain = evaluation.compare(_STATIC, _DYNAMIC)[_MEASURE]
    queries = wording.count(len(collection.queries), "judged query", "judged queries")
    return [
        f"{collection.name}: {queries}, up to {top_k} candidates each",
        *_table(["model", _MEASURE, "difference", "p", f"same top {_TOP}", "s/query"], rows),
        "Difference and p are from fp32. Same top 3: queries that keep the three best",
        "passages, in any order. s/query: median.",
        "",
        _verdict(
            gain.difference,
            ("ranks worse here than", "ranks as well here as", "ranks better here than"),
            f"{_MEASURE} {wording.signed(gain.difference)}, p {wording.p_value(gain.p_value)}",
        ),
        *(["The difference may be chance."] if gain.difference and gain.p_value > _CHANCE else []),
    ]


# --- without


@dataclass(frozen=True, slots=True)
class _Scored:
    """What one model made of the queries that are looked at.

    Attributes:
        logits: By query and passage, each by its place.
        seconds: Median of a query.
    """

    logits: dict[str, dict[str, float]]
    seconds: float


def _agreement(
    rerankers: list[Reranker],
    requests: Sequence[Request],
    pairs: Sequence[tuple[int, int]],
    source: str,
    progress: Progress,
) -> list[str]:
    looked_at, unused = _looked_at(requests, pairs)
    scored = {reranker.name: _scored(reranker, looked_at, progress) for reranker in rerankers}
    same = _same_top({name: found.logits for name, found in scored.items()})
    numbers = {name: _flat(found.logits) for name, found in scored.items()}
    errors = {name: float(np.std(found - numbers[_FP32])) for name, found in numbers.items()}
    rows = [
        [
            name,
            f"{np.std(numbers[name]):.2f}",
            "" if name == _FP32 else f"{errors[name]:.2f}",
            "" if name == _FP32 else same[name],
            _seconds(found.seconds),
        ]
        for name, found in scored.items()
    ]
    kept = "were not used for calibration" if unused else "were used for calibration in part, since few are left"
    return [
        f"Agreement with fp32 on {wording.count(len(looked_at), 'query', 'queries')} of {source}, with pairs that",
        f"{kept}:",
        *_table(["model", "std of logits", "error", f"same top {_TOP}", "s/query"], rows),
        "Error: standard deviation of what differs from fp32. Same top 3: queries that",
        "keep the three best passages, in any order. s/query: median. What that means",
        "for the ranking, judged queries tell: --collection.",
        "",
        _verdict(
            errors[_DYNAMIC] - errors[_STATIC],
            ("is farther from fp32 here than", "is as near to fp32 here as", "is nearer to fp32 here than"),
            f"error {errors[_STATIC]:.2f}, not {errors[_DYNAMIC]:.2f}",
        ),
    ]


def _looked_at(requests: Sequence[Request], pairs: Sequence[tuple[int, int]]) -> tuple[Requests, bool]:
    """Return queries with passages to compare models on, and whether calibration has seen none of those pairs."""
    used = set(pairs)
    left = [
        (request.query, [passage.text for place, passage in enumerate(request.passages) if (query, place) not in used])
        for query, request in enumerate(requests)
    ]
    # The best three of three are always the same.
    telling = [(query, texts) for query, texts in left if len(texts) > _TOP]
    unused = len(telling) >= _LEAST_QUERIES_LOOKED_AT
    if not unused:
        telling = [(request.query, [passage.text for passage in request.passages]) for request in requests]
    chosen = np.random.default_rng(0).permutation(len(telling))[:_QUERIES_LOOKED_AT]
    return [(telling[place][0], telling[place][1][:_PASSAGES_LOOKED_AT]) for place in chosen.tolist()], unused


def _scored(reranker: Reranker, requests: Requests, progress: Progress) -> _Scored:
    logits, seconds = {}, []
    reranker.warm_up()
    for number, (query, texts) in enumerate(requests):
        progress.text = f"Scoring with {reranker.name}: {number} of {len(requests)} queries"
        began = time.perf_counter()
        found = reranker.score(query, texts)
        seconds.append(time.perf_counter() - began)
        logits[str(number)] = {str(place): float(logit) for place, logit in enumerate(found)}
    return _Scored(logits, float(np.median(seconds)))


def _flat(logits: Mapping[str, Mapping[str, float]]) -> NDArray[np.float64]:
    return np.array([logit for found in logits.values() for logit in found.values()])


# --- both


def _same_top(logits: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, str]:
    """Return how many queries keep their best passages, by model; only those with more passages count."""
    telling = [key for key, found in logits[_FP32].items() if len(found) > _TOP]
    best = {name: [_best(found[key]) for key in telling] for name, found in logits.items()}
    return {
        name: f"{sum(mine == right for mine, right in zip(found, best[_FP32], strict=True))} of {len(telling)}"
        for name, found in best.items()
    }


def _best(logits: Mapping[str, float]) -> set[str]:
    return set(sorted(logits, key=logits.__getitem__, reverse=True)[:_TOP])


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return table([*header, ""], [[*row, ""] for row in rows], left=("model",), width=10_000)


def _scoring(label: str, done: int, total: int) -> str:
    return f"Scoring with {label}: {done:,} of {total:,} pairs" if done < total else "Measuring"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}"


def _verdict(gain: float, told: tuple[str, str, str], numbers: str) -> str:
    """Say whether the file is worth it beside the int8 that needs none: for a loss, for nothing, and for a gain."""
    # What is nothing as it is shown is no difference to tell of.
    sign = 0 if abs(gain) < _LEAST_GAIN else 1 if gain > 0 else -1
    return f"The file {told[1 + sign]} the {_DYNAMIC} ({numbers})."
