"""From settings to a scorer: where the files are, which backend reads them, one copy of the weights for all."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args
from weakref import WeakValueDictionary

from marcorank import models
from marcorank.backends.onnx import OnnxBackend, mentions
from marcorank.cpu import cpu_features
from marcorank.errors import InvalidInputError, MissingExtraError, ModelLoadError
from marcorank.hub import HubModel
from marcorank.pairs import LongPassages, PairEncoder
from marcorank.scorer import CrossEncoderScorer, PlainScorer, RequestScorer, SerialBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from tokenizers import Tokenizer

BackendName = Literal["auto", "onnx", "torch"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]

BACKENDS: tuple[str, ...] = get_args(BackendName)
PRECISIONS: tuple[str, ...] = get_args(Precision)
_PRECISIONS_OF = {"onnx": ("fp32", "int8"), "torch": ("fp32", "bf16", "fp16")}
_BUNDLED_FOLDER = Path(__file__).with_name("bundled")
# Present where an NVIDIA driver is: torch is only imported to look for a GPU where there can be one.
_GPU_SIGNS = ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/version")
_TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
# Tokenizers that know no limit say so with a huge number.
_NO_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """All that decides which scorer is loaded; see `Reranker` for what each means."""

    model: str
    backend: BackendName = "auto"
    device: str | None = None
    precision: Precision = "auto"
    max_length: int = 512
    max_query_tokens: int | None = None
    long_passages: LongPassages = "truncate"
    revision: str | None = None
    cache_folder: str | None = None
    local_files_only: bool | None = None
    allow_pickle: bool = False
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engine runs a model, and why.

    Attributes:
        backend: `"onnx"` or `"torch"`.
        device: As torch spells devices.
        precision: What it computes in.
        reason: One sentence for people.
    """

    backend: str
    device: str
    precision: str
    reason: str


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
        models.check_weights(names, where=repr(str(self.path)), allow_pickle=allow_pickle)
        return self.path

    def export_folder(self) -> Path:
        """Return the folder itself: an exported file lies where the hub has it too."""
        return self.path


def locate(settings: ModelSettings) -> ModelFiles:
    """Return where the files of a model are; nothing is downloaded yet.

    Raises:
        UnknownModelError: The name is no model.
    """
    name = settings.model
    if name == models.BUNDLED:
        return LocalFolder(_BUNDLED_FOLDER, name)
    if not name.strip():
        raise models.unknown_model(name, "it is blank")
    try:
        folder = Path(name).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a home of nobody, a NUL
        raise models.unknown_model(name, f"it can be no path ({error})") from error
    if is_folder:
        return LocalFolder(folder, name)
    if is_file:
        raise models.unknown_model(name, "it is a file, not a folder")
    info = models.find(name)
    if info is None and (name.count("/") != 1 or name.startswith((".", "/", "~")) or "\\" in name):
        raise models.unknown_model(name, "there is no such folder, and it is not a name of the form 'owner/model'")
    return HubModel(
        name=info.name if info else name,
        revision=settings.revision,
        cache_folder=settings.cache_folder,
        local_files_only=settings.local_files_only,
        token=settings.token,
    )


def choose(settings: ModelSettings) -> Choice:
    """Decide on backend, device and precision.

    Raises:
        InvalidInputError: The settings contradict each other.
    """
    backend, device, reason = _choose_backend(settings)
    if settings.model == models.BUNDLED:
        if backend != "onnx" or settings.precision not in {"auto", "int8"}:
            raise InvalidInputError(
                f"The bundled model is one int8 ONNX file; found `backend={settings.backend!r}` and "
                f"`precision={settings.precision!r}`. Leave both at 'auto', or name another model."
            )
        return Choice(backend, device, "int8", reason)
    precision = "fp32" if settings.precision == "auto" else settings.precision
    if precision not in _PRECISIONS_OF[backend]:
        raise InvalidInputError(
            f"`precision` is {precision!r}; the {backend} backend can do "
            f"{' and '.join(map(repr, _PRECISIONS_OF[backend]))}."
        )
    return Choice(backend, device, precision, reason)


def _choose_backend(settings: ModelSettings) -> tuple[str, str, str]:
    wanted, device, precision = settings.backend, settings.device, settings.precision
    if wanted == "onnx":
        return "onnx", device or "cpu", "onnx was asked for"
    if wanted == "auto" and settings.model == models.BUNDLED:
        return "onnx", device or "cpu", "the bundled model is an ONNX file"
    torch_only = precision in {"bf16", "fp16"}
    if wanted == "torch" or torch_only or device not in {None, "cpu"}:
        why = "torch" if wanted == "torch" else f"precision {precision}" if torch_only else f"device {device}"
        return "torch", device or ("cuda" if _gpu_usable() else "cpu"), f"{why} was asked for"
    if device is None and precision != "int8" and _gpu_usable():
        return "torch", "cuda", "torch sees a GPU"
    return "onnx", "cpu", "on a CPU onnxruntime is faster than torch and needs no torch"


def _gpu_usable() -> bool:
    signs = os.name == "nt" or any(Path(sign).exists() for sign in _GPU_SIGNS)
    if not signs or not _torch_installed():
        return False
    from marcorank.backends.torch import cuda_available

    return cuda_available()


def load_scorer(settings: ModelSettings) -> RequestScorer:
    """Load a model, or share the weights that another caller has loaded with the same settings.

    Raises:
        UnknownModelError: The name is no model.
        InvalidInputError: The settings contradict each other, or this machine cannot do what they ask.
        MissingExtraError: The backend is not installed.
        ModelLoadError: A file is missing, damaged or cannot be fetched, or the model is no reranker.
    """
    files = locate(settings)
    choice = choose(settings)
    if choice.backend == "torch":
        return _load_torch(files, choice, settings)
    # The large file comes last: who is interrupted in it has no model, rather than one that reads fewer settings.
    for name in _TEXT_FILES:
        files.fetch(name)
    file = _find_onnx(files, choice.precision)
    if file is None:
        if choice.precision == "fp32" and settings.backend == "auto" and _torch_installed():
            return _load_torch(files, choice, settings)
        raise _no_onnx_file(files, choice.precision)
    return _load_onnx(files, file, choice, settings)


def _find_onnx(files: ModelFiles, precision: str) -> Path | None:
    if precision == "int8":
        return files.fetch(*models.int8_onnx_files(cpu_features()))
    file = files.fetch(*models.FP32_ONNX_FILES)
    if file is not None:
        # Models above 2 GB keep their weights in a file beside the graph. Asking the hub each time costs a request.
        if mentions(file, f"{file.name}_data"):
            files.fetch(f"{'onnx/' if file.parent.name == 'onnx' else ''}{file.name}_data")
        return file
    return LocalFolder(files.export_folder(), files.name).fetch(*models.FP32_ONNX_FILES)


def _torch_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "sentence_transformers"))


def _no_onnx_file(files: ModelFiles, precision: str) -> ModelLoadError:
    if precision == "int8":
        return ModelLoadError(
            f"Model `{files.name}` has no int8 ONNX file for this processor: tried "
            f"{', '.join(models.int8_onnx_files(cpu_features()))} in {files.place}. Use `precision='fp32'`."
        )
    if isinstance(files, LocalFolder):
        files.snapshot(allow_pickle=True)
    download = "" if isinstance(files, LocalFolder) else f" Offline, `marcorank models download {files.name}` first."
    return ModelLoadError(
        f"Model `{files.name}` has no ONNX file in {files.place} (tried "
        f"{', '.join(models.FP32_ONNX_FILES)}).{download} Make one with "
        f"`marcorank models export {files.name}`, or use `backend='torch'`; both need "
        "pip install 'marcorank[torch]'"
    )


def _load_onnx(files: ModelFiles, file: Path, choice: Choice, settings: ModelSettings) -> RequestScorer:
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
    backend = _loaded.shared(
        ("onnx", *_identity(file), choice.device, choice.precision),
        lambda: SerialBackend(OnnxBackend(file, device=choice.device, precision=choice.precision)),
    )
    encoder = _encoder(tokenizer, files, config, settings)
    return CrossEncoderScorer(backend, encoder, name=files.name)


def _load_torch(files: ModelFiles, choice: Choice, settings: ModelSettings) -> RequestScorer:
    if not _torch_installed():
        raise MissingExtraError(
            "The torch backend needs sentence-transformers and torch: pip install 'marcorank[torch]'"
        )
    from tokenizers import Tokenizer

    from marcorank.backends.torch import PredictScorer, TorchBackend, writes_its_own_prompt

    folder = files.snapshot(allow_pickle=settings.allow_pickle)
    backend = _loaded.shared(
        ("torch", *_identity(folder / "config.json"), choice.device, choice.precision, settings.allow_pickle),
        lambda: SerialBackend(
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


def _identity(file: Path) -> tuple[Hashable, ...]:
    """Tell a file from every other, also from one that took its place."""
    found = file.resolve()
    status = found.stat()
    return str(found), status.st_mtime_ns, status.st_size, status.st_ino


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
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_loaded.start_anew_in_child)
