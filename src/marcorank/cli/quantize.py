"""`marcorank models quantize`: build a static int8 model, and measure what it costs."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from marcorank._inference.cpu import Workers
from marcorank._inference.scheduler import Scheduler
from marcorank._inference.scorer import CrossEncoderScorer
from marcorank._models.catalogue import BUNDLED_MODELS
from marcorank._models.loading import TEXT_FILES, LocalFolder, load_scorer, locate, resolve
from marcorank._models.modules import read_modules
from marcorank._models.quantization import import_packages, quantize
from marcorank._text import quoted_path, table
from marcorank.cli.options import FILE_OPTIONS, add_settings, at_least, new_parser, settings_of
from marcorank.cli.progress import Progress
from marcorank.cli.reading import read_requests
from marcorank.errors import InvalidInputError, MissingExtraError
from marcorank.evaluation import wording
from marcorank.reranker import Reranker
from marcorank.settings import RerankerSettings

if TYPE_CHECKING:
    import argparse

    from marcorank._inference.pairs import PairEncoder, TokenBatch
    from marcorank.evaluation.results import Evaluation

_MIN_PAIRS, _MAX_PAIRS = 20, 300
_MEASURE = "nDCG@10"
_FP32, _DYNAMIC, _STATIC = "fp32", "int8 at load time", "int8 of the file"
_EPILOG = """\
FILE is JSONL with a query and passages on each line, like those that you will
rank: {"query": "...", "passages": ["...", "..."]}. Up to 300 pairs, chosen at
random, calibrate the scales of the activations. No judgements are needed.

The openvino backend can also quantise any model to int8 at load time. With
--collection, the command compares the new file with that and with fp32.

example:
  marcorank models quantize ./my-reranker --calibrate queries.jsonl \\
      --collection my-collection
"""


def add_command(actions: Any) -> None:
    """Add this command to those of `marcorank models`."""
    parser = new_parser(
        actions,
        "quantize",
        summary="build a static int8 model for the openvino backend",
        run=run,
        epilog=_EPILOG,
    )
    parser.add_argument("name", metavar="NAME", help="Hub name, or path of a model folder")
    parser.add_argument(
        "--calibrate", metavar="FILE", required=True, help="queries with their passages: JSONL, may be gzipped"
    )
    parser.add_argument(
        "--collection", metavar="SOURCE", help="judged queries to measure nDCG@10 on, as for `marcorank eval`"
    )
    parser.add_argument(
        "--top-k", type=at_least(1), default=20, metavar="N", help="candidates of each judged query (default: 20)"
    )
    parser.add_argument("--output", metavar="DIR", help="output folder (default: where Reranker(NAME) looks)")
    add_settings(parser, FILE_OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Quantise the model; with `--collection`, measure it."""
    if args.name in BUNDLED_MODELS:
        raise InvalidInputError(f"{quoted_path(args.name)} is int8 already; there is nothing to quantise.")
    import_packages()
    pairs = _calibration_pairs(args.calibrate)
    with Progress() as progress:
        collection = None
        if args.collection is not None:
            _check_evaluation_packages()
            from marcorank.collections.reading import read_collection

            progress.text = f"Reading {args.collection}"
            collection = read_collection(args.collection)
        settings = RerankerSettings(args.name, backend="openvino", precision="fp32", **settings_of(args))
        progress.text = f"Loading {args.name}"
        scorer = cast("CrossEncoderScorer", load_scorer(settings))
        files = locate(settings)
        graph = cast("Path", resolve(files, settings)[1])
        modules = read_modules(files)
        target = Path(args.output).expanduser() if args.output else files.export_folder()
        progress.text = f"Quantising {files.name}"
        file = quantize(
            graph,
            [_encoded(scorer.encoder, query, passage) for query, passage in pairs],
            target,
            texts={name: text for name in TEXT_FILES if (text := files.fetch(name))} | dict(modules.files),
            head=modules.head,
        )
        by_name = not args.output and not isinstance(files, LocalFolder)
        model = shlex.quote(files.name if by_name else str(target))
        with progress.hidden():
            size = sum(part.stat().st_size for part in (file, file.with_suffix(".bin"))) / 1e6
            queries = wording.count(len({query for query, _ in pairs}), "query", "queries")
            print(f"Wrote {file} ({size:.1f} MB), calibrated on {len(pairs)} pairs of {queries}")
            print(f"Use it with: --model {model} --backend openvino --precision int8", flush=True)
        if collection is not None:
            from marcorank.evaluation.evaluating import evaluate

            progress.text = f"Measuring on {args.collection}"
            rerankers = _rerankers(scorer, graph, file)
            evaluation = evaluate(collection, rerankers, top_k=args.top_k, measures=[_MEASURE])
            with progress.hidden():
                print("\n".join(["", *_comparison(evaluation), ""]))
    print(f"To return to the int8 that is made at load time, delete {file}")
    return 0


def _check_evaluation_packages() -> None:
    for package in ("ir_measures", "scipy"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"`--collection` needs {package}: pip install 'marcorank[quantize]'")


def _calibration_pairs(source: str) -> list[tuple[str, str]]:
    """Return queries with one of their passages each, in random order."""
    pairs = [
        (request.query, passage.text)
        for request in read_requests(source, text_field=None)
        for passage in request.passages
    ]
    if len(pairs) < _MIN_PAIRS:
        raise InvalidInputError(
            f"{quoted_path(source)} holds {wording.count(len(pairs), 'pair')} of a query and a passage; expected at "
            f"least {_MIN_PAIRS}, better {_MAX_PAIRS}, of different queries."
        )
    return [pairs[index] for index in np.random.default_rng(0).permutation(len(pairs))[:_MAX_PAIRS].tolist()]


def _encoded(encoder: PairEncoder, query: str, passage: str) -> TokenBatch:
    encoded = encoder.encode(query, [passage])
    return encoder.batch([(encoded.query_ids, encoded.windows[0])])


def _rerankers(scorer: CrossEncoderScorer, graph: Path, file: Path) -> list[Reranker]:
    from marcorank._inference.backends.openvino import OpenvinoBackend

    def int8(source: Path) -> Scheduler:
        return Scheduler(OpenvinoBackend(source, device="cpu", precision="int8", workers=Workers.of(None)))

    # Not by name: once the file exists, int8 under that name means the file.
    schedulers = {_FP32: scorer.scheduler, _DYNAMIC: int8(graph), _STATIC: int8(file)}
    return [
        Reranker(CrossEncoderScorer(scheduler, scorer.encoder, name=name)) for name, scheduler in schedulers.items()
    ]


def _comparison(evaluation: Evaluation) -> list[str]:
    """Return a table of the three models, and how the two kinds of int8 compare."""
    first_stage = evaluation.models[0].depths[0].measures[0].first_stage
    rows = [["first stage", wording.value(first_stage), "", "", ""]]
    for result in evaluation.models:
        (depth,) = result.depths
        compared = evaluation.compare(result.label, _FP32)[_MEASURE]
        difference = [wording.signed(compared.difference), wording.p_value(compared.p_value)]
        rows.append(
            [
                result.label,
                wording.value(depth.measures[0].value),
                *(["", ""] if result.label == _FP32 else difference),
                wording.milliseconds(depth.latency_p50_ms),
            ]
        )
    collection = evaluation.collection
    queries = wording.count(len(collection.queries), "judged query", "judged queries")
    gain = evaluation.compare(_STATIC, _DYNAMIC)[_MEASURE]
    return [
        f"{collection.name}: {queries}, up to {depth.top_k} candidates each",
        *table(["model", _MEASURE, "difference", "p", "ms/query"], rows, left=["model"]),
        "difference: from fp32. ms/query: median.",
        "",
        f"{_STATIC} against {_DYNAMIC}: {wording.signed(gain.difference)}, p {wording.p_value(gain.p_value)}",
    ]
