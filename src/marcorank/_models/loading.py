"""From settings to a scorer: where the files are, which backend reads them, one copy of the weights for all."""

from __future__ import annotations

import ctypes
import json
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from marcorank._inference.backends.onnx import OnnxBackend, mentions
from marcorank._inference.cpu import Workers, cpu_features
from marcorank._inference.pairs import PairEncoder
from marcorank._inference.scheduler import Scheduler
from marcorank._inference.scorer import CrossEncoderScorer, PlainScorer, RequestScorer
from marcorank._models import catalogue
from marcorank._models.hub import HubModel
from marcorank._models.selection import ModelSettings, choose, installed
from marcorank.errors import InvalidInputError, MarcoRankError, MissingExtraError, ModelLoadError
from marcorank.remote import RemoteScorer, is_remote

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from tokenizers import Tokenizer

    from marcorank._inference.backends.base import Backend
    from marcorank._models.selection import Choice
    from marcorank.ranking import ScoreKind

_BUNDLED_FOLDER = Path(__file__).parents[1] / "bundled"
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
# Tokenizers that know no limit say so with a huge number.
_NO_LIMIT = 1_000_000
# Those that a server decides on for itself.
_LOCAL_SETTINGS = {
    name: value
    for name, value in asdict(ModelSettings(model="")).items()
    if name not in {"model", "cache_size", "token"}
}

_OF_A_FALLBACK = ("threads", "cache_folder", "local_files_only")


class ModelFiles(Protocol):
    """Where the files of a model come from."""

    @property
    def name(self) -> str:
        """Name to show."""
        ...

    @property
    def place(self) -> str:
        """Where they are looked for, for messages."""
        ...

    def fetch(self, *candidates: str) -> Path | None:
        """Return the first of the files that there is; None if there is none of them."""
        ...

    def snapshot(self, *, allow_pickle: bool) -> Path:
        """Return a folder with everything that the torch backend needs."""
        ...

    def export_folder(self) -> Path:
        """Return the folder in which an exported ONNX file would be."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A model in a folder of this machine."""

    path: Path
    name: str

    @property
    def place(self) -> str:
        """Where files are looked for, for messages."""
        return repr(str(self.path))

    def fetch(self, *candidates: str) -> Path | None:
        """Return the first of the files that there is; None if there is none of them."""
        return next((self.path / name for name in candidates if (self.path / name).is_file()), None)

    def snapshot(self, *, allow_pickle: bool) -> Path:
        """Return the folder.

        Raises:
            ModelLoadError: It holds no weights that may be read.
        """
        names = [path.name for path in self.path.iterdir()]
        catalogue.check_weights(names, where=repr(str(self.path)), allow_pickle=allow_pickle)
        return self.path

    def export_folder(self) -> Path:
        """Return the folder itself: an exported file lies where the hub has it too."""
        return self.path


def kind_of_model(settings: ModelSettings, *, has_fallback: bool) -> ScoreKind:
    """Check the name of a model, and return what the model gives; nothing is downloaded or asked yet.

    Args:
        settings: Of the model.
        has_fallback: Whether some settings may be meant for another model.

    Raises:
        UnknownModelError: The name is no model.
        InvalidInputError: The name is an address that cannot be used, or settings were given that mean nothing to a
            server.
    """
    if not is_remote(settings.model):
        locate(settings)
        return "logit"
    # First, so that no message shows an address with a password. Not the shared one: another thread may be loading.
    server = RemoteScorer(settings.model, api_key=settings.token)
    for name, default in _LOCAL_SETTINGS.items():
        value = getattr(settings, name)
        if value != default and not (has_fallback and name in _OF_A_FALLBACK):
            raise InvalidInputError(
                f"`{name}` is {value!r} beside the server {settings.model!r}, where it means nothing; leave it out."
            )
    return server.score_kind


def _remote(settings: ModelSettings) -> RemoteScorer:
    """Return the scorer of a server; who names the same one with the same key shares its connections."""
    scorer: RemoteScorer = _loaded.shared(
        ("remote", settings.model, settings.token), lambda: RemoteScorer(settings.model, api_key=settings.token)
    )
    return scorer


def locate(settings: ModelSettings) -> ModelFiles:
    """Return where the files of a model are; nothing is downloaded yet.

    Raises:
        UnknownModelError: The name is no model.
    """
    name = settings.model
    if name == catalogue.BUNDLED:
        return LocalFolder(_BUNDLED_FOLDER, name)
    if not name.strip():
        raise catalogue.unknown_model(name, "it is blank")
    try:
        folder = Path(name).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a home of nobody, a NUL
        raise catalogue.unknown_model(name, f"it can be no path ({error})") from error
    if is_folder:
        return LocalFolder(folder, name)
    if is_file:
        raise catalogue.unknown_model(name, "it is a file, not a folder")
    info = catalogue.find(name)
    if info is None and (name.count("/") != 1 or name.startswith((".", "/", "~")) or "\\" in name):
        raise catalogue.unknown_model(name, "there is no such folder, and it is not a name of the form 'owner/model'")
    return HubModel(
        name=info.name if info else name,
        revision=settings.revision,
        cache_folder=settings.cache_folder,
        local_files_only=settings.local_files_only,
        token=settings.token,
    )


def load_scorer(settings: ModelSettings) -> RequestScorer:
    """Load a model, or share the weights that another caller has loaded with the same settings.

    Raises:
        UnknownModelError: The name is no model.
        InvalidInputError: The settings contradict each other, or this machine cannot do what they ask.
        MissingExtraError: The backend is not installed.
        ModelLoadError: A file is missing, damaged or cannot be fetched, or the model is no reranker.
    """
    if is_remote(settings.model):
        return _remote(settings)
    files = locate(settings)
    try:
        choice, graph = resolve(files, settings)
        if graph is None:
            return _load_torch(files, choice, settings)
        return _load_graph(files, graph, choice, settings)
    except MarcoRankError:
        raise
    except OSError as error:  # no permission, a disk that fails
        raise ModelLoadError(f"A file of model `{files.name}` in {files.place} cannot be read: {error}") from error


def resolve(files: ModelFiles, settings: ModelSettings) -> tuple[Choice, Path | None]:
    """Return what runs a model on this machine, and the graph that it reads; None for the torch backend.

    Raises:
        InvalidInputError: The settings contradict each other.
        MissingExtraError: The backend is not installed.
        ModelLoadError: There is no graph for the backend, or a file cannot be fetched.
    """
    choice = choose(settings)
    if choice.backend == "torch":
        return choice, None
    # The large file comes last: who is interrupted in it has no model, rather than one that reads fewer settings.
    for name in TEXT_FILES:
        files.fetch(name)
    graph = graph_file(files, choice)
    if graph is None:
        if settings.backend == "auto" and choice.precision != "int8" and installed("torch"):
            return choose(replace(settings, backend="torch")), None
        raise _no_graph_file(files, choice)
    return _confirmed(choice, settings), graph


def graph_file(files: ModelFiles, choice: Choice) -> Path | None:
    """Return the file that the onnx or openvino backend reads; those that belong to it are beside it then.

    Returns:
        None if the model has no such file.
    """
    if choice.backend == "onnx" and choice.precision == "int8":
        return files.fetch(*catalogue.int8_onnx_files(cpu_features()))
    if choice.backend == "openvino" and choice.precision == "int8":
        # Made by `marcorank models quantize`. Others are quantised from fp32 when they are loaded: the hub's own
        # int8 IRs have one scale for all tokens, which costs accuracy, and are the last resort.
        made = _made_here(files, catalogue.QUANTIZED_IR_FILE)
        if made is not None:
            return made
    file = files.fetch(*catalogue.FP32_ONNX_FILES)
    if file is not None:
        # Models above 2 GB keep their weights in a file beside the graph. Asking the hub each time costs a request.
        if mentions(file, f"{file.name}_data"):
            files.fetch(f"{'onnx/' if file.parent.name == 'onnx' else ''}{file.name}_data")
        return file
    if choice.backend == "openvino":
        names = catalogue.INT8_IR_FILES if choice.precision == "int8" else ()
        for name in (*catalogue.FP32_IR_FILES, *names):
            # Weights first: an IR without them would be found, and fail.
            if files.fetch(str(Path(name).with_suffix(".bin"))) and (file := files.fetch(name)):
                return file
    return _made_here(files, *catalogue.FP32_ONNX_FILES)


def _made_here(files: ModelFiles, *names: str) -> Path | None:
    return LocalFolder(files.export_folder(), files.name).fetch(*names)


def _no_graph_file(files: ModelFiles, choice: Choice) -> ModelLoadError:
    if choice.backend == "onnx" and choice.precision == "int8":
        return ModelLoadError(
            f"Model `{files.name}` has no int8 ONNX file for this processor: tried "
            f"{', '.join(catalogue.int8_onnx_files(cpu_features()))} in {files.place}. Use `precision='fp32'`, or "
            "`backend='openvino'`, which makes int8 of any model: pip install 'marcorank[openvino]'"
        )
    if isinstance(files, LocalFolder):
        files.snapshot(allow_pickle=True)
    tried = [*catalogue.FP32_ONNX_FILES, *(catalogue.FP32_IR_FILES if choice.backend == "openvino" else ())]
    torch = ""
    if choice.precision == "int8":
        tried += [*catalogue.INT8_IR_FILES, catalogue.QUANTIZED_IR_FILE]
    else:
        torch = ", or use `backend='torch'`; both need"
    download = "" if isinstance(files, LocalFolder) else f" Offline, `marcorank models download {files.name}` first."
    return ModelLoadError(
        f"Model `{files.name}` has no ONNX file in {files.place} (tried "
        f"{', '.join(tried)}).{download} Make one with "
        f"`marcorank models export {files.name}`{torch or ', which needs'} pip install 'marcorank[torch]'"
    )


def _load_graph(files: ModelFiles, file: Path, choice: Choice, settings: ModelSettings) -> RequestScorer:
    from tokenizers import Tokenizer

    config = _read_json(files, "config.json")
    _check_labels(files, config)
    tokenizer_file = files.fetch("tokenizer.json")
    if tokenizer_file is None:
        raise ModelLoadError(
            f"Model `{files.name}` has no tokenizer.json in {files.place}; without it only "
            "`backend='torch'` can read it."
        )
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the Rust side raises bare Exception
        raise ModelLoadError(f"{str(tokenizer_file)!r} cannot be read as a tokenizer: {error}") from error
    workers = Workers.of(settings.threads)
    # Weights may lie beside the graph. Batches mix the pairs of all who share a model, so they share its tokenizer too.
    read = (file, file.with_suffix(".bin"), file.with_name(f"{file.name}_data"), tokenizer_file)
    backend = _loaded.shared(
        (choice.backend, _identity(read), choice.device, choice.precision, workers),
        lambda: Scheduler(_open_graph(file, choice, workers, config)),
    )
    encoder = _encoder(tokenizer, files, config, settings)
    return CrossEncoderScorer(backend, encoder, name=files.name)


def _open_graph(file: Path, choice: Choice, workers: Workers, config: dict[str, Any]) -> Backend:
    if choice.backend == "onnx":
        return OnnxBackend(file, device=choice.device, precision=choice.precision, workers=workers)
    from marcorank._inference.backends.openvino import OpenvinoBackend

    positions = config.get("max_position_embeddings")
    return OpenvinoBackend(
        file,
        device=choice.device,
        precision=choice.precision,
        workers=workers,
        longest=positions if isinstance(positions, int) and positions > 0 else None,
    )


def _confirmed(choice: Choice, settings: ModelSettings) -> Choice:
    """Return what openvino can do where the system says more of the processor than openvino finds.

    So it is in some virtual machines. What was asked for by name is left for the backend to refuse.
    """
    if choice.backend != "openvino" or settings.precision != "auto" or choice.precision == "fp32":
        return choice
    from marcorank._inference.backends.openvino import computes

    return choice if computes(choice.precision) else replace(choice, precision="fp32")


def _load_torch(files: ModelFiles, choice: Choice, settings: ModelSettings) -> RequestScorer:
    if not installed("torch"):
        raise MissingExtraError(
            "The torch backend needs sentence-transformers and torch: pip install 'marcorank[torch]'"
        )
    from tokenizers import Tokenizer

    from marcorank._inference.backends.torch import PredictScorer, TorchBackend, writes_its_own_prompt

    folder = files.snapshot(allow_pickle=settings.allow_pickle)
    backend = _loaded.shared(
        ("torch", _identity(folder.iterdir()), choice.device, choice.precision, settings.allow_pickle),
        lambda: Scheduler(
            TorchBackend(
                folder,
                device=choice.device,
                precision=choice.precision,
                allow_pickle=settings.allow_pickle,
            )
        ),
    )
    cross_encoder = backend.backend.cross_encoder
    if writes_its_own_prompt(cross_encoder):
        return PlainScorer(PredictScorer(backend, name=files.name))
    tokenizer = Tokenizer.from_str(cross_encoder.tokenizer.backend_tokenizer.to_str())
    encoder = _encoder(tokenizer, files, cross_encoder.config.to_dict(), settings)
    return CrossEncoderScorer(backend, encoder, name=files.name)


def _encoder(tokenizer: Tokenizer, files: ModelFiles, config: dict[str, Any], settings: ModelSettings) -> PairEncoder:
    limits = [settings.max_length]
    of_tokenizer = _read_json(files, "tokenizer_config.json", {}).get("model_max_length")
    if of_tokenizer is not None and of_tokenizer < _NO_LIMIT:
        limits.append(int(of_tokenizer))
    pad_id = config.get("pad_token_id")
    pad_id = pad_id if isinstance(pad_id, int) else 0
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions > 0:
        # RoBERTa and its kin number positions from behind the padding's id.
        offset = pad_id + 1 if "roberta" in str(config.get("model_type")) else 0
        limits.append(positions - offset)
    return PairEncoder(
        tokenizer,
        max_length=min(limits),
        max_query_tokens=settings.max_query_tokens,
        long_passages=settings.long_passages,
        pad_id=pad_id,
    )


def _check_labels(files: ModelFiles, config: dict[str, Any]) -> None:
    labels = config.get("id2label")
    if isinstance(labels, dict) and len(labels) > 1:
        raise ModelLoadError(
            f"Model `{files.name}` has {len(labels)} labels ({', '.join(map(str, labels.values()))}); a reranker "
            "needs a model with one logit a pair."
        )


def _identity(files: Iterable[Path]) -> Hashable:
    """Tell files from all others, also from those that took their place; what is no file does not count."""
    found = [(file.name, file.resolve()) for file in files if file.is_file()]
    known = [(name, str(path), path.stat()) for name, path in found]
    return frozenset((name, path, at.st_mtime_ns, at.st_size, at.st_ino) for name, path, at in known)


def _read_json(files: ModelFiles, name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    file = files.fetch(name)
    if file is None:
        if default is None:
            raise ModelLoadError(
                f"Model `{files.name}` has no {name} in {files.place}; this is no model that can be loaded."
            )
        return default
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{str(file)!r} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{str(file)!r} holds a {type(content).__name__}; expected an object.")
    return content


class _Loaded:
    """What this process has loaded: one copy of the weights, freed when nobody uses it any more."""

    def __init__(self) -> None:
        self.start_anew()

    def start_anew(self) -> None:
        """Forget everything, with a lock that nobody holds."""
        self._lock = threading.Lock()
        self._models: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()

    def start_anew_in_child(self) -> None:
        """Let a forked child load for itself: neither onnxruntime nor torch works on there."""
        for model in list(self._models.values()):
            # To destroy an onnxruntime session is to wait for its threads, and a child has none of them.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(model))
        self.start_anew()

    def shared(self, key: Hashable, load: Callable[[], Any]) -> Any:
        """Return what is loaded under a key; load it if there is nothing."""
        with self._lock:
            loaded = self._models.get(key)
            if loaded is None:
                loaded = self._models[key] = load()
            return loaded


_loaded = _Loaded()
start_anew_in_child = _loaded.start_anew_in_child
