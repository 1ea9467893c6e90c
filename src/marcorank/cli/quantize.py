"""`marcorank models quantize`: make a static int8 model, and measure what it costs."""

from __future__ import annotations

import importlib.util
import shlex
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
from marcorank._models.selection import choose
from marcorank._text import table
from marcorank.cli.options import FILE_OPTIONS, add_settings, new_parser, settings_of
from marcorank.cli.progress import Progress
from marcorank.cli.reading import read_requests
from marcorank.collections.records import Collection
from marcorank.errors import InvalidInputError, MissingExtraError
from marcorank.evaluation import wording
from marcorank.reranker import Reranker
from marcorank.settings import RerankerSettings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from marcorank._inference.pairs import PairEncoder, TokenBatch
    from marcorank.collections.requests import Request
    from marcorank.evaluation.results import Evaluation

_MIN_PAIRS, _MAX_PAIRS = 20, 300
# Without a collection, these many queries of the calibration file show the agreement with fp32.
_MIN_QUERIES_COMPARED, _QUERIES_COMPARED, _PASSAGES_COMPARED = 5, 50, 20
_MEASURE = "nDCG@10"
_TOP = 3
_ALPHA = 0.05
_MIN_GAIN = 0.00005
_FP32, _DYNAMIC, _STATIC = "fp32", "int8 made when loaded", "int8 of the file"
_FILES_OF_TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json")
_EXAMPLES = """\
FILE is JSONL with a query and its passages on each line, like those that you
will rank: {"query": "...", "passages": ["...", "..."]}. Up to 300 pairs
calibrate the scales of the activations. No judgements are needed.

The openvino backend can also quantise any model to int8 while it loads. The
command compares the new file with that and with fp32: in nDCG@10 on
--collection, or else by its agreement with fp32.

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
    add_settings(parser, FILE_OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Quantise, measure and print the results."""
    if args.name == BUNDLED:
        raise InvalidInputError("The bundled model is int8 already; there is nothing to quantise.")
    import_packages()
    for package in ("ir_measures", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"Measuring a model needs {package}: pip install 'marcorank[quantize]'")
    top_k = whole_number("top_k", args.top_k, 1)
    requests = _requests(args.calibrate)
    pairs = list(islice(_spread(requests, np.random.default_rng(0)), _MAX_PAIRS))
    if len(pairs) < _MIN_PAIRS:
        raise InvalidInputError(
            f"{args.calibrate!r} holds {wording.count(len(pairs), 'pair')} of a query and a passage; expected at "
            f"least {_MIN_PAIRS}, better {_MAX_PAIRS}, of different queries."
        )
    with Progress() as progress:
        collection = None if args.collection is None else _collection(args.collection, progress)
        settings = RerankerSettings(args.name, backend="openvino", precision="fp32", **settings_of(args))
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
            collection, top_k = _judged_by_fp32(rerankers[0], requests, pairs, args.calibrate), _PASSAGES_COMPARED
        evaluation = _evaluated(collection, rerankers, top_k, progress)
    lines = _report(evaluation, judged=args.collection is not None)
    print("\n".join([*lines, f"To go back to that one, delete {file}"]))
    return 0


def _requests(source: str) -> list[Request]:
    return [request for request in read_requests(source, text_field=None) if request.passages]


def _spread(requests: Sequence[Request], generator: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Yield the indices of pairs in random order: one of each query, then a second of each, and so on."""
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


def _collection(source: str, progress: Progress) -> Collection:
    from marcorank.collections.reading import read_collection

    progress.text = f"Reading {source}"
    return read_collection(source)


def _judged_by_fp32(
    fp32: Reranker, requests: Sequence[Request], pairs: Sequence[tuple[int, int]], source: str
) -> Collection:
    """Return queries of the calibration file as a collection in which the top three passages of fp32 are relevant."""
    chosen, unused = _without_calibration(requests, pairs)
    compared = {f"{number}": (query, passages) for number, (query, passages) in enumerate(chosen)}
    best = {key: {one.index for one in fp32.rank(*pair, top_n=_TOP)} for key, pair in compared.items()}
    indices = {key: range(len(passages)) for key, (_, passages) in compared.items()}
    return Collection(
        name=source,
        queries={key: query for key, (query, _) in compared.items()},
        passages={f"{key}-{index}": compared[key][1][index] for key in compared for index in indices[key]},
        qrels={key: {f"{key}-{index}": int(index in best[key]) for index in indices[key]} for key in compared},
        run={key: {f"{key}-{index}": -float(index) for index in indices[key]} for key in compared},
        notes=("were not used for calibration" if unused else "were used for calibration in part, since few are left",),
    )


def _without_calibration(
    requests: Sequence[Request], pairs: Sequence[tuple[int, int]]
) -> tuple[list[tuple[str, list[str]]], bool]:
    """Return queries with passages to compare models on, and whether none of these pairs was used for calibration."""
    used = set(pairs)
    left = [
        (request.query, [passage.text for index, passage in enumerate(request.passages) if (query, index) not in used])
        for query, request in enumerate(requests)
    ]
    # The top three of three are always the same.
    compared = [(query, texts) for query, texts in left if len(texts) > _TOP]
    unused = len(compared) >= _MIN_QUERIES_COMPARED
    if not unused:
        compared = [(request.query, [passage.text for passage in request.passages]) for request in requests]
    chosen = np.random.default_rng(0).permutation(len(compared))[:_QUERIES_COMPARED]
    return [(compared[index][0], compared[index][1][:_PASSAGES_COMPARED]) for index in chosen.tolist()], unused


def _evaluated(collection: Collection, rerankers: list[Reranker], top_k: int, progress: Progress) -> Evaluation:
    from marcorank.evaluation.evaluating import evaluate

    def show(done: int, total: int, label: str) -> None:
        progress.text = f"Scoring with {label}: {done:,} of {total:,} pairs" if done < total else "Measuring"

    return evaluate(collection, rerankers, top_k=top_k, measures=[_MEASURE], progress=show)


def _report(evaluation: Evaluation, *, judged: bool) -> list[str]:
    """Return a table of the three models, and a sentence on whether the file is better than int8 without it."""
    logits = {result.label: _flat(result.logits) for result in evaluation.models}
    errors = {label: float(np.std(found - logits[_FP32])) for label, found in logits.items()}
    same = _same_top({result.label: result.logits for result in evaluation.models})
    header = ["model", _MEASURE, "difference", "p", *([] if judged else ["error"]), f"same top {_TOP}", "s/query"]
    rows = []
    for result in evaluation.models:
        (depth,) = result.depths
        comparison = evaluation.compare(result.label, _FP32)[_MEASURE]
        compared = [
            wording.signed(comparison.difference),
            wording.p_value(comparison.p_value),
            *([] if judged else [f"{errors[result.label]:.2f}"]),
            same[result.label],
        ]
        seconds = "-" if depth.latency_p50_ms is None else f"{depth.latency_p50_ms / 1000:.3f}"
        value = wording.value(depth.measures[0].value)
        rows.append([result.label, value, *([""] * len(compared) if result.label == _FP32 else compared), seconds])
    collection = evaluation.collection
    if judged:
        depth = evaluation.models[0].depths[0]
        rows.insert(0, ["first stage", wording.value(depth.measures[0].first_stage), *[""] * 4])
        queries = wording.count(len(collection.queries), "judged query", "judged queries")
        head, notes = [f"{collection.name}: {queries}, up to {depth.top_k} candidates each"], []
    else:
        queries = wording.count(len(collection.queries), "query", "queries")
        head = [f"Agreement with fp32 on {queries} of {collection.name}, with pairs that", f"{collection.notes[0]}:"]
        notes = [
            f"The top {_TOP} of fp32 count as relevant; to measure quality, pass --collection. Error:",
            f"standard deviation of the logits' difference; fp32's own is {np.std(logits[_FP32]):.2f}.",
        ]
    return [
        *head,
        *table(header, rows, left=["model"]),
        "Difference and p are from fp32. Same top 3: queries that keep the three best",
        "passages, in any order. s/query: median.",
        *notes,
        "",
        *(_quality_verdict(evaluation) if judged else [_error_verdict(errors)]),
    ]


def _quality_verdict(evaluation: Evaluation) -> list[str]:
    gain = evaluation.compare(_STATIC, _DYNAMIC)[_MEASURE]
    verdict = _verdict(
        gain.difference,
        ("ranks worse here than", "ranks as well here as", "ranks better here than"),
        f"{_MEASURE} {wording.signed(gain.difference)}, p {wording.p_value(gain.p_value)}",
    )
    return [verdict, *(["The difference may be chance."] if gain.difference and gain.p_value > _ALPHA else [])]


def _error_verdict(errors: Mapping[str, float]) -> str:
    return _verdict(
        errors[_DYNAMIC] - errors[_STATIC],
        ("is farther from fp32 here than", "is as near to fp32 here as", "is nearer to fp32 here than"),
        f"error {errors[_STATIC]:.2f}, not {errors[_DYNAMIC]:.2f}",
    )


def _verdict(gain: float, wordings: tuple[str, str, str], numbers: str) -> str:
    """Compare the file with int8 made while loading: `wordings` are for a loss, no difference and a gain."""
    # A difference that is shown as zero is not called one.
    sign = 0 if abs(gain) < _MIN_GAIN else 1 if gain > 0 else -1
    return f"The file {wordings[1 + sign]} the {_DYNAMIC} ({numbers})."


def _flat(logits: Mapping[str, Mapping[str, float]]) -> NDArray[np.float64]:
    return np.array([logit for found in logits.values() for logit in found.values()])


def _same_top(logits: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, str]:
    """Return in how many queries with more passages each model has the best passages of fp32."""
    queries = [query_id for query_id, found in logits[_FP32].items() if len(found) > _TOP]
    best = {label: [_best(found[query_id]) for query_id in queries] for label, found in logits.items()}
    return {
        label: f"{sum(mine == right for mine, right in zip(found, best[_FP32], strict=True))} of {len(queries)}"
        for label, found in best.items()
    }


def _best(logits: Mapping[str, float]) -> set[str]:
    return set(sorted(logits, key=logits.__getitem__, reverse=True)[:_TOP])
