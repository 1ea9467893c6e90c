"""The contestants, called as their users call them: marcorank, and other rerankers with the same weights.

Loading and ranking run in the process of one contestant. A peer keeps its own defaults for batch sizes, lengths and
threads.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from marcorank.bench.records import MARCORANK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The frameworks' rerankers shorten their results; the order of all passages says more.
_ALL = 1_000_000
_ONNX_FILE = "onnx/model.onnx"


class UnusableError(Exception):
    """A peer cannot load the model; the message says why."""


class Setup(NamedTuple):
    """What a contestant is loaded with. Peers read `folder`, and may write to `scratch`, which is empty."""

    model: str
    backend: str
    precision: str
    folder: str
    scratch: str
    device: str
    threads: int | None
    cache_folder: str | None


class Loaded(NamedTuple):
    """A loaded contestant.

    Attributes:
        rank: Ranks prepared passages for a query; only this is timed.
        read: Returns index and logit of each passage, best first; the logit is None if the contestant returns none.
        prepare: Returns the passages as `rank` takes them. Called for each request, because some peers change them.
        reranker: The `Reranker`, if the contestant is marcorank.
    """

    rank: Callable[[str, Any], Any]
    read: Callable[[Any], list[tuple[int, float | None]]]
    prepare: Callable[[Sequence[str]], Any] = list
    reranker: Any = None


def load(contestant: str, setup: Setup) -> Loaded:
    """Load a contestant."""
    if contestant == MARCORANK:
        return _marcorank(setup)
    peer = PEERS[contestant]
    if peer.reads == _ONNX_FILE and setup.device != "cpu":
        raise UnusableError("it is measured on the CPU only")
    if not any(Path(setup.folder).glob(peer.reads)):
        raise UnusableError(f"the model has no {peer.reads.removeprefix('*')} file, which it reads")
    return peer.load(setup)


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _marcorank(setup: Setup) -> Loaded:
    from marcorank import Reranker

    reranker = Reranker(
        setup.model,
        backend=setup.backend,  # type: ignore[arg-type]
        precision=setup.precision,  # type: ignore[arg-type]
        device=setup.device,
        threads=setup.threads,
        cache_folder=setup.cache_folder,
        local_files_only=True,
    )
    return Loaded(
        rank=reranker.rank,
        read=lambda ranking: [(passage.index, passage.logit) for passage in ranking],
        reranker=reranker,
    )


def _sentence_transformers(setup: Setup) -> Loaded:
    """Load `CrossEncoder`, which the frameworks' rerankers call."""
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(setup.folder, device=setup.device, local_files_only=True)
    identity = torch.nn.Identity()

    def rank(query: str, passages: list[str]) -> Any:
        pairs = [(query, passage) for passage in passages]
        return model.predict(pairs, show_progress_bar=False, activation_fn=identity)

    return Loaded(rank, _best_first)


def _langchain(setup: Setup) -> Loaded:
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder
    from langchain_core.documents import Document

    model = HuggingFaceCrossEncoder(model_name=setup.folder, model_kwargs={"device": setup.device})
    compressor = CrossEncoderReranker(model=model, top_n=_ALL)
    return Loaded(
        rank=lambda query, documents: compressor.compress_documents(documents, query),
        read=lambda documents: [(document.metadata["index"], None) for document in documents],
        prepare=lambda passages: [Document(text, metadata={"index": index}) for index, text in enumerate(passages)],
    )


def _llama_index(module: str, setup: Setup, **more: Any) -> Loaded:
    from llama_index.core.schema import NodeWithScore, TextNode

    reranker = import_module(module).SentenceTransformerRerank
    postprocessor = reranker(model=setup.folder, top_n=_ALL, device=setup.device, **more)
    return Loaded(
        rank=lambda query, nodes: postprocessor.postprocess_nodes(nodes, query_str=query),
        # Whether its scores are logits depends on the model's files.
        read=lambda nodes: [(int(node.node.node_id), None) for node in nodes],
        prepare=lambda passages: [
            NodeWithScore(node=TextNode(text=text, id_=f"{index}"), score=0.0) for index, text in enumerate(passages)
        ],
    )


def _rerankers(setup: Setup) -> Loaded:
    from rerankers import Reranker

    ranker = Reranker(setup.folder, model_type="cross-encoder", device=setup.device, verbose=0, dtype="float32")
    if ranker is None:
        raise UnusableError("rerankers did not load the model, and gave no reason")
    return Loaded(
        rank=lambda query, passages: ranker.rank(query, passages, doc_ids=list(range(len(passages)))),
        read=lambda ranked: [(int(result.doc_id), float(result.score)) for result in ranked.results],
    )


def _flashrank(setup: Setup) -> Loaded:
    """Load FlashRank with this model's weights instead of one of its own; it returns sigmoids of the logits."""
    from flashrank.Config import default_model, model_file_map
    from flashrank.Ranker import Ranker, RerankRequest

    _write_onnx_folder(setup, Path(setup.scratch) / default_model, model_file_map[default_model])
    ranker = Ranker(default_model, cache_dir=setup.scratch, log_level="ERROR")
    return Loaded(
        rank=lambda query, passages: ranker.rerank(RerankRequest(query=query, passages=passages)),
        read=lambda passages: [(passage["id"], None) for passage in passages],
        prepare=lambda passages: [{"id": index, "text": text} for index, text in enumerate(passages)],
    )


def _fastembed(setup: Setup) -> Loaded:
    """Load fastembed with this model added to its list."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    folder, name = Path(setup.scratch) / "model", "local/reranker"
    _write_onnx_folder(setup, folder, "model.onnx")
    TextCrossEncoder.add_custom_model(name, ModelSource(hf=name), model_file="model.onnx")
    model = TextCrossEncoder(name, threads=setup.threads, cuda=False, specific_model_path=str(folder))
    return Loaded(lambda query, passages: list(model.rerank(query, passages)), _best_first)


def _best_first(logits: Sequence[float]) -> list[tuple[int, float | None]]:
    # Equal logits keep their order.
    return [(index, float(logits[index])) for index in sorted(range(len(logits)), key=lambda index: -logits[index])]


def _write_onnx_folder(setup: Setup, folder: Path, weights: str) -> None:
    """Write a folder as peers download it that accept only their own models."""
    source = Path(setup.folder)
    folder.mkdir()
    files = {_ONNX_FILE: weights, f"{_ONNX_FILE}_data": "model.onnx_data", "tokenizer.json": "tokenizer.json"}
    for name, target in files.items():
        if (source / name).is_file():
            _link(source / name, folder / target)
    config, tokenizer = (
        json.loads((source / name).read_text(encoding="utf-8")) for name in ("config.json", "tokenizer_config.json")
    )
    # A `max_length` that happens to be stored there would truncate passages that the others read whole.
    tokenizer.pop("max_length", None)
    limit = tokenizer.get("model_max_length")
    contents = {
        "config": {"pad_token_id": 0, **config},
        "tokenizer_config": {
            "pad_token": "[PAD]",
            **tokenizer,
            "model_max_length": min(512, limit) if isinstance(limit, int) else 512,
        },
        "special_tokens_map": {
            name: token for name, token in tokenizer.items() if name.endswith("_token") and isinstance(token, str)
        },
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _link(file: Path, target: Path) -> None:
    try:
        target.symlink_to(file.resolve())
    except OSError:  # Windows allows links only to some users
        shutil.copyfile(file, target)


class Peer(NamedTuple):
    """A reranker from another package; `reads` is the pattern of the weights that it loads."""

    load: Callable[[Setup], Loaded]
    packages: tuple[str, ...]
    reads: str = "*.safetensors"

    @property
    def installed(self) -> bool:
        """Whether all packages are installed."""
        return all(map(version_of, self.packages))


PEERS = {
    "langchain": Peer(_langchain, ("langchain-classic", "langchain-community", "sentence-transformers")),
    "llama-index": Peer(
        # By default it would run code from the model's folder.
        partial(_llama_index, "llama_index.core.postprocessor", trust_remote_code=False),
        ("llama-index-core", "sentence-transformers"),
    ),
    "llama-index-sbert": Peer(
        partial(_llama_index, "llama_index.postprocessor.sbert_rerank"),
        ("llama-index-postprocessor-sbert-rerank", "sentence-transformers"),
    ),
    "sentence-transformers": Peer(_sentence_transformers, ("sentence-transformers",)),
    "rerankers": Peer(_rerankers, ("rerankers", "transformers")),
    "flashrank": Peer(_flashrank, ("flashrank",), _ONNX_FILE),
    "fastembed": Peer(_fastembed, ("fastembed",), _ONNX_FILE),
}
