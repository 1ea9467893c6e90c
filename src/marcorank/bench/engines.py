"""What is measured, as its users call it: marcorank, and the rerankers that others use with the same weights.

Everything here runs in the process of one contestant. A peer takes what it takes by default: batch sizes, lengths and
threads are its own.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from marcorank.bench.records import MARCORANK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Unusable(Exception):  # noqa: N818 -- a finding, and no fault
    """A peer cannot load these weights; the text says why."""


class Answer(NamedTuple):
    """What a reranker made of a request.

    Attributes:
        order: Positions of the passages, best first.
        logits: One a passage in the order of the request; None where it gives none.
    """

    order: list[int]
    logits: list[float] | None


class Engine(Protocol):
    """A loaded reranker. Only `rank` is timed."""

    def prepare(self, passages: Sequence[str]) -> Any:
        """Return the passages as this reranker takes them."""
        ...

    def rank(self, query: str, prepared: Any) -> Any:
        """Rank as a user would."""
        ...

    def read(self, result: Any) -> Answer:
        """Return what the result says."""
        ...


class Setup(NamedTuple):
    """Where and how an engine runs.

    Attributes:
        model: As the user named it.
        folder: Of the model, for peers.
        backend: Of marcorank.
        precision: Of marcorank.
        device: As torch spells it; None for the CPU.
        threads: None for the engine's own choice.
        cache_folder: Of hub models.
        scratch: An empty folder for what a peer wants to have beside the weights.
    """

    model: str
    folder: str
    backend: str
    precision: str
    device: str | None
    threads: int | None
    cache_folder: str | None
    scratch: str


class Marcorank:
    """This package."""

    def __init__(self, setup: Setup) -> None:
        from marcorank import Reranker

        more: dict[str, Any] = {} if setup.threads is None else {"threads": setup.threads}
        self.reranker = Reranker(
            setup.model,
            backend=setup.backend,  # type: ignore[arg-type]
            precision=setup.precision,  # type: ignore[arg-type]
            device=setup.device or "cpu",
            cache_folder=setup.cache_folder,
            local_files_only=True,
            **more,
        )

    def prepare(self, passages: Sequence[str]) -> list[str]:
        """Return the texts."""
        return list(passages)

    def rank(self, query: str, prepared: list[str]) -> Any:
        """Call `Reranker.rank`."""
        return self.reranker.rank(query, prepared)

    def read(self, result: Any) -> Answer:
        """Return order and logits of the ranking."""
        logits = {passage.index: passage.logit for passage in result}
        return Answer([passage.index for passage in result], [logits[index] for index in range(len(logits))])


class SentenceTransformers:
    """`CrossEncoder.predict`, the function below the frameworks' own rerankers."""

    def __init__(self, setup: Setup) -> None:
        _needs(setup, "*.safetensors")
        import torch
        from sentence_transformers import CrossEncoder

        self._no_activation = torch.nn.Identity()
        self._model = CrossEncoder(setup.folder, device=setup.device or "cpu", local_files_only=True)

    def prepare(self, passages: Sequence[str]) -> list[str]:
        """Return the texts."""
        return list(passages)

    def rank(self, query: str, prepared: list[str]) -> Any:
        """Call `CrossEncoder.predict`."""
        return self._model.predict(
            [(query, passage) for passage in prepared], show_progress_bar=False, activation_fn=self._no_activation
        )

    def read(self, result: Any) -> Answer:
        """Return the logits."""
        return _by_score([float(score) for score in result])


class LangChain:
    """`CrossEncoderReranker` over `HuggingFaceCrossEncoder`. It keeps the scores to itself."""

    def __init__(self, setup: Setup) -> None:
        _needs(setup, "*.safetensors")
        from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
        from langchain_community.cross_encoders import HuggingFaceCrossEncoder

        model = HuggingFaceCrossEncoder(model_name=setup.folder, model_kwargs={"device": setup.device or "cpu"})
        self._compressor = CrossEncoderReranker(model=model, top_n=_ALL)

    def prepare(self, passages: Sequence[str]) -> Any:
        """Return documents."""
        from langchain_core.documents import Document

        return [Document(passage, metadata={"index": index}) for index, passage in enumerate(passages)]

    def rank(self, query: str, prepared: Any) -> Any:
        """Call `compress_documents`."""
        return self._compressor.compress_documents(prepared, query)

    def read(self, result: Any) -> Answer:
        """Return the order."""
        return Answer([document.metadata["index"] for document in result], None)


class LlamaIndex:
    """`SentenceTransformerRerank` of llama-index-core, or that of its own package."""

    def __init__(self, setup: Setup, reranker: Callable[..., Any], **more: Any) -> None:
        self._reranker = reranker(model=setup.folder, top_n=_ALL, device=setup.device or "cpu", **more)

    @classmethod
    def of_core(cls, setup: Setup) -> LlamaIndex:
        """Return the one that their documentation recommends."""
        _needs(setup, "*.safetensors")
        from llama_index.core.postprocessor import SentenceTransformerRerank

        # Its own default runs code from the model's folder.
        return cls(setup, SentenceTransformerRerank, trust_remote_code=False)

    @classmethod
    def of_package(cls, setup: Setup) -> LlamaIndex:
        """Return the one of llama-index-postprocessor-sbert-rerank."""
        _needs(setup, "*.safetensors")
        from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank

        return cls(setup, SentenceTransformerRerank)

    def prepare(self, passages: Sequence[str]) -> Any:
        """Return nodes; new ones each time, since the reranker changes them."""
        from llama_index.core.schema import NodeWithScore, TextNode

        return [
            NodeWithScore(node=TextNode(text=passage, id_=f"{index}"), score=0.0)
            for index, passage in enumerate(passages)
        ]

    def rank(self, query: str, prepared: Any) -> Any:
        """Call `postprocess_nodes`."""
        return self._reranker.postprocess_nodes(prepared, query_str=query)

    def read(self, result: Any) -> Answer:
        """Return the order; whether the scores are logits depends on the model's files."""
        return Answer([int(node.node.node_id) for node in result], None)


class Rerankers:
    """The package rerankers, its cross-encoder."""

    def __init__(self, setup: Setup) -> None:
        _needs(setup, "*.safetensors")
        from rerankers import Reranker

        self._ranker = Reranker(
            setup.folder, model_type="cross-encoder", device=setup.device or "cpu", verbose=0, dtype="float32"
        )
        if self._ranker is None:
            raise Unusable("rerankers did not load the model, and gave no reason")

    def prepare(self, passages: Sequence[str]) -> list[str]:
        """Return the texts."""
        return list(passages)

    def rank(self, query: str, prepared: list[str]) -> Any:
        """Call `rank`."""
        return self._ranker.rank(query, prepared, doc_ids=list(range(len(prepared))))

    def read(self, result: Any) -> Answer:
        """Return order and logits."""
        scores = {int(found.doc_id): float(found.score) for found in result.results}
        return Answer([int(found.doc_id) for found in result.results], [scores[index] for index in range(len(scores))])


class FlashRank:
    """FlashRank, with this model's file instead of one of its own. It gives sigmoids of the logits."""

    def __init__(self, setup: Setup) -> None:
        _needs_cpu(setup)
        _needs(setup, _ONNX_FILE)
        from flashrank.Config import default_model, model_file_map
        from flashrank.Ranker import Ranker, RerankRequest

        _onnx_folder(setup, Path(setup.scratch) / default_model, model_file_map[default_model])
        self._request = RerankRequest
        self._ranker = Ranker(default_model, cache_dir=setup.scratch, log_level="ERROR")

    def prepare(self, passages: Sequence[str]) -> Any:
        """Return its dictionaries; new ones each time, since it changes and sorts them."""
        return [{"id": index, "text": passage} for index, passage in enumerate(passages)]

    def rank(self, query: str, prepared: Any) -> Any:
        """Call `rerank`."""
        return self._ranker.rerank(self._request(query=query, passages=prepared))

    def read(self, result: Any) -> Answer:
        """Return the order."""
        return Answer([int(found["id"]) for found in result], None)


class FastEmbed:
    """fastembed's `TextCrossEncoder` with this model added to its list."""

    def __init__(self, setup: Setup) -> None:
        _needs_cpu(setup)
        _needs(setup, _ONNX_FILE)
        from fastembed.common.model_description import ModelSource
        from fastembed.rerank.cross_encoder import TextCrossEncoder

        folder, name = Path(setup.scratch) / "model", "local/reranker"
        _onnx_folder(setup, folder, "model.onnx")
        TextCrossEncoder.add_custom_model(name, ModelSource(hf=name), model_file="model.onnx")
        self._model = TextCrossEncoder(name, threads=setup.threads, cuda=False, specific_model_path=str(folder))

    def prepare(self, passages: Sequence[str]) -> list[str]:
        """Return the texts."""
        return list(passages)

    def rank(self, query: str, prepared: list[str]) -> Any:
        """Call `rerank`, and take what it yields."""
        return list(self._model.rerank(query, prepared))

    def read(self, result: Any) -> Answer:
        """Return the logits."""
        return _by_score([float(score) for score in result])


class Peer(NamedTuple):
    """A reranker of others.

    Attributes:
        load: Loads it.
        modules: That have to be there.
        install: The pip command that brings them.
    """

    load: Callable[[Setup], Engine]
    modules: tuple[str, ...]
    install: str

    @property
    def installed(self) -> bool:
        """Whether all modules are there."""
        return all(map(_there, self.modules))


PEERS: Mapping[str, Peer] = {
    "langchain": Peer(
        LangChain,
        ("langchain_classic", "langchain_community", "sentence_transformers"),
        "pip install langchain-classic langchain-community sentence-transformers",
    ),
    "llama-index": Peer(
        LlamaIndex.of_core,
        ("llama_index.core", "sentence_transformers"),
        "pip install llama-index-core sentence-transformers",
    ),
    "llama-index-sbert": Peer(
        LlamaIndex.of_package,
        ("llama_index.postprocessor.sbert_rerank", "sentence_transformers"),
        "pip install llama-index-postprocessor-sbert-rerank",
    ),
    "sentence-transformers": Peer(
        SentenceTransformers, ("sentence_transformers",), "pip install sentence-transformers"
    ),
    "rerankers": Peer(Rerankers, ("rerankers", "transformers"), "pip install 'rerankers[transformers]'"),
    "flashrank": Peer(FlashRank, ("flashrank",), "pip install flashrank"),
    "fastembed": Peer(FastEmbed, ("fastembed",), "pip install fastembed"),
}

# Frameworks cut their lists; an order of all passages tells more.
_ALL = 1_000_000
_ONNX_FILE = "onnx/model.onnx"


def load(engine: str, setup: Setup) -> Engine:
    """Load a contestant's engine."""
    return Marcorank(setup) if engine == MARCORANK else PEERS[engine].load(setup)


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # the package around it is not there
        return False


def _by_score(logits: list[float]) -> Answer:
    return Answer(sorted(range(len(logits)), key=lambda index: -logits[index]), logits)


def _needs(setup: Setup, pattern: str) -> None:
    if not any(Path(setup.folder).glob(pattern)):
        raise Unusable(f"the model has no {pattern.removeprefix('*')} file, which it reads")


def _needs_cpu(setup: Setup) -> None:
    if setup.device not in {None, "cpu"}:
        raise Unusable("it is measured on the CPU only")


def _onnx_folder(setup: Setup, folder: Path, file: str) -> None:
    """Fill a folder as peers that only know their own downloads want to find it."""
    source = Path(setup.folder)
    weights = source / _ONNX_FILE
    folder.mkdir()
    _link(weights, folder / file)
    data = weights.with_name("model.onnx_data")
    if data.is_file():
        _link(data, folder / data.name)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    config, texts = _json(source / "config.json"), _json(source / "tokenizer_config.json")
    names = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token", "bos_token", "eos_token")
    special = {name: texts[name] for name in names if isinstance(texts.get(name), str)}
    # A `max_length` that was stored there by chance would cut passages that the others read whole.
    texts = {name: value for name, value in texts.items() if name != "max_length"}
    limit = texts.get("model_max_length")
    texts["model_max_length"] = min(512, limit) if isinstance(limit, int) else 512
    texts.setdefault("pad_token", "[PAD]")
    config.setdefault("pad_token_id", 0)
    for name, content in (("config", config), ("tokenizer_config", texts), ("special_tokens_map", special)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _link(file: Path, target: Path) -> None:
    try:
        target.symlink_to(file.resolve())
    except OSError:  # Windows grants links to few
        shutil.copyfile(file, target)


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content
