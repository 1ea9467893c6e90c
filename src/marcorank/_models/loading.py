"""Loads scorers: finds the model files, chooses the backend, and shares one copy of the weights."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from marcorank._inference.backends.base import UnreadableGraphError
from marcorank._inference.backends.graph_files import weight_files
from marcorank._inference.backends.onnx import OnnxBackend
from marcorank._inference.cpu import Workers, cpu_features
from marcorank._inference.pairs import PairEncoder
from marcorank._inference.predict import PredictScorer
from marcorank._inference.scheduler import Scheduler
from marcorank._inference.scorer import CrossEncoderScorer, RequestScorer
from marcorank._models import catalogue
from marcorank._models.graphs import fetch_weights, load_without_openvino
from marcorank._models.hub import HubModel
from marcorank._models.loaded import loaded, versions_of
from marcorank._models.modules import NO_LIMIT, read_json, read_modules, token_limit, torch_files
from marcorank._models.positions import (
    first_position_of_graph,
    first_position_of_module,
    padding_id,
    usable_positions,
)
from marcorank._models.selection import choose, installed
from marcorank._models.vocabulary import check_vocabulary
from marcorank._text import first_few, message_of, quoted
from marcorank.errors import InvalidInputError, MarcoRankError, MissingExtraError, ModelLoadError
from marcorank.remote import RemoteScorer, is_remote
from marcorank.remote.address import parse_address
from marcorank.scorer import score_kind
from marcorank.settings import ModelSettings, RerankerSettings, defaults

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from marcorank._inference.backends.base import Backend
    from marcorank._inference.head import Head
    from marcorank._models.modules import Modules
    from marcorank._models.selection import Choice
    from marcorank.ranking import ScoreKind
    from marcorank.scorer import Scorer

_log = logging.getLogger("marcorank")

_PACKAGE_FOLDER = Path(__file__).parents[1]
# What the extra of a backend installs.
_PACKAGES = {"openvino": "openvino", "torch": "sentence-transformers and torch"}
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
# Without a limit of the user's or the model's.
_DEFAULT_LENGTH = 512
# Settings that need our own tokenisation, with their defaults.
_PAIR_SETTINGS = {
    name: defaults(ModelSettings)[name] for name in ("special_tokens", "long_passages", "max_query_tokens")
}
# Settings that only apply to a local model.
_LOCAL_SETTINGS = {
    name: value
    for name, value in defaults(ModelSettings).items()
    if name not in {"cache_size", "max_passages_per_request"}
}
_SERVER_SETTINGS = {"max_passages_per_request": None}
_FALLBACK_SETTINGS = ("special_tokens", "threads", "cache_folder", "local_files_only", "max_passages_per_request")


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A model in a local folder."""

    path: Path
    name: str

    @property
    def location(self) -> str:
        """Where files are looked up, for messages."""
        return repr(str(self.path))

    def fetch(self, *candidates: str) -> Path | None:
        """Return the first of the candidate files that exists; None if there is none."""
        return next((self.path / name for name in candidates if (self.path / name).is_file()), None)

    def fetch_optional(self, file: str) -> Path | None:
        """Return a file that most models lack; None if it does not exist."""
        return self.fetch(file)

    def snapshot(self, *, allow_pickle: bool) -> Path:
        """Return the folder, if it has weights that may be loaded."""
        catalogue.check_weights(self.names(), where=self.location, allow_pickle=allow_pickle)
        return self.path

    def names(self) -> list[str]:
        """Return the names of what is in the folder, and in those of the backends in it."""
        paths = (path for pattern in ("*", "onnx/*", "openvino/*") for path in self.path.glob(pattern))
        return [path.relative_to(self.path).as_posix() for path in paths]

    def export_folder(self) -> Path:
        """Return the folder itself: an exported file has the same relative path as on the Hub."""
        return self.path


# The files of a model, wherever they are stored.
ModelFiles = LocalFolder | HubModel


def validate_model(settings: RerankerSettings, *, has_fallback: bool) -> ScoreKind:
    """Check a model and return the kind of its scores, without downloading or sending anything.

    Settings that only apply to local models are errors for a server and for a scorer object, unless they may be meant
    for the fallback.
    """
    if not isinstance(settings.model, str):
        if settings.token is not None:
            raise InvalidInputError(f"`token` has no effect on the scorer {quoted(settings.name)}; leave it out.")
        _check_unused(settings, defaults(ModelSettings), f"scorer {quoted(settings.name)}", has_fallback=has_fallback)
        return score_kind(cast("Scorer", settings.model))
    if not is_remote(settings.name):
        locate(settings)
        where = f"local model {quoted(settings.name)}"
        _check_unused(settings, _SERVER_SETTINGS, where, has_fallback=has_fallback)
        return "logit"
    # Checks the URL, so that no message below shows a password.
    server = _remote_scorer(settings)
    _check_unused(settings, _LOCAL_SETTINGS, f"server {quoted(settings.name)}", has_fallback=has_fallback)
    return server.score_kind


def _check_unused(settings: RerankerSettings, unused: dict[str, Any], where: str, *, has_fallback: bool) -> None:
    for name, default in unused.items():
        value = getattr(settings, name)
        if value != default and not (has_fallback and name in _FALLBACK_SETTINGS):
            raise InvalidInputError(f"`{name}` is {quoted(value)}, which has no effect on the {where}; leave it out.")


def locate(settings: RerankerSettings) -> ModelFiles:
    """Find out where the files of a model are, without downloading anything."""
    name = settings.name
    if name in catalogue.BUNDLED_MODELS:
        return LocalFolder(_PACKAGE_FOLDER / name.replace("-", "_"), name)
    if not name.strip():
        raise catalogue.unknown_model(name, "it is blank")
    try:
        folder = Path(name).expanduser()
        is_folder, is_file = folder.is_dir(), folder.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, an unknown home folder, a NUL
        raise catalogue.unknown_model(
            name, f"it is not a valid path ({getattr(error, 'strerror', None) or message_of(error)})"
        ) from error
    if is_folder:
        return LocalFolder(folder, name)
    if is_file:
        raise catalogue.unknown_model(name, "it is a file, not a folder")
    info = catalogue.find(name)
    if info is None and catalogue.is_path(name):
        raise catalogue.unknown_model(name, "there is no such folder")
    if info is None and name.count("/") != 1:
        raise catalogue.unknown_model(name, "there is no such folder, and it is not a name of the form 'owner/model'")
    return HubModel(
        name=info.name if info else name,
        revision=settings.revision,
        cache_folder=None if settings.cache_folder is None else os.fspath(settings.cache_folder),
        local_files_only=settings.local_files_only,
        token=settings.token,
    )


def load_scorer(settings: RerankerSettings) -> RequestScorer:
    """Load a model, or share the weights if they are already loaded with the same settings.

    Raises:
        UnknownModelError: No model has this name.
        InvalidInputError: The settings contradict each other, or this machine does not support them.
        MissingExtraError: The backend is not installed.
        ModelLoadError: A file is missing, damaged or cannot be downloaded, or the model is not a reranker.
    """
    if is_remote(settings.name):
        # Scorers with the same URL and key share their connections.
        key = ("remote", settings.name, settings.token, settings.max_passages_per_request)
        server: RemoteScorer = loaded.shared(key, lambda: _remote_scorer(settings))
        return server
    files = locate(settings)
    try:
        choice = choose(settings)
        _check_installed(choice.backend)
        choice, graph = resolve(files, settings, choice)
        if graph is None:
            return _load_torch(files, choice, settings)
        return _load_graph(files, graph, choice, settings)
    except UnreadableGraphError as error:
        chosen, scorer = load_without_openvino(settings, load_scorer, error)
        _log.warning("Model `%s` runs on the %s backend: %s", files.name, chosen.backend, error)
        return scorer
    except MarcoRankError:
        raise
    except OSError as error:  # no permission, a disk that fails
        raise ModelLoadError(
            f"A file of model `{files.name}` in {files.location} cannot be read: {message_of(error)}"
        ) from error


def _remote_scorer(settings: RerankerSettings) -> RemoteScorer:
    # Here the address is that of a model, and the key is a token.
    parse_address(settings.name, name="model", key="token")
    return RemoteScorer(
        settings.name, api_key=settings.token, max_passages_per_request=settings.max_passages_per_request
    )


def _check_installed(backend: str) -> None:
    """Check before anything is downloaded. `resolve` does not: a job is planned without the packages of its workers."""
    if backend in _PACKAGES and not installed(backend):
        raise MissingExtraError(f"The {backend} backend needs {_PACKAGES[backend]}: pip install 'marcorank[{backend}]'")


def resolve(files: ModelFiles, settings: RerankerSettings, choice: Choice | None = None) -> tuple[Choice, Path | None]:
    """Return what runs a model on this machine, and the graph that it reads; None for the torch backend.

    Args:
        files: The files of the model.
        settings: The settings of the model.
        choice: What was chosen for these settings, if that is known.
    """
    choice = choice or choose(settings)
    if choice.backend == "torch":
        return choice, None
    # The large file comes last: an interrupted download must not leave a model without its small settings files.
    for name in TEXT_FILES:
        files.fetch(name)
    may_use_torch = settings.backend == "auto" and choice.precision != "int8" and installed("torch")
    torch_only = read_modules(files).torch_only
    if torch_only is not None:
        if may_use_torch:
            return _torch(settings, f"only torch can run this model: {torch_only}"), None
        raise ModelLoadError(
            f"The {choice.backend} backend cannot run model `{files.name}`: {torch_only}. Use `backend='torch'`: "
            "pip install 'marcorank[torch]'"
        )
    graph = _graph_file(files, choice)
    if graph is None:
        if may_use_torch:
            return _torch(settings, f"the model has no file for {choice.backend}, so torch runs it"), None
        raise _no_graph_file(files, choice)
    return _with_supported_precision(choice, settings), fetch_weights(graph, files.fetch, where=files.location)


def _torch(settings: RerankerSettings, reason: str) -> Choice:
    """Return the choice of torch in place of a backend that cannot run the model."""
    choice = choose(replace(settings, backend="torch"))
    return replace(choice, reason=choice.reason.replace("torch was requested", reason))


def _graph_file(files: ModelFiles, choice: Choice) -> Path | None:
    """Fetch the graph file for the onnx or openvino backend; None if the model has none."""
    if choice.backend == "onnx" and choice.precision == "int8":
        return files.fetch(*catalogue.int8_onnx_files(cpu_features()))
    if choice.backend == "openvino" and choice.precision == "int8":
        # Written by `marcorank models quantize`. Without it, fp32 is quantised at load time. int8 IRs on the Hub are
        # the last resort: they use one scale for all tokens, which costs accuracy.
        quantized = _find_exported(files, catalogue.QUANTIZED_IR_FILE)
        if quantized is not None:
            return quantized
    file = files.fetch(*catalogue.FP32_ONNX_FILES)
    if file is not None:
        return file
    if choice.backend == "openvino":
        names = catalogue.INT8_IR_FILES if choice.precision == "int8" else ()
        for name in (*catalogue.FP32_IR_FILES, *names):
            # Weights first: an IR without weights cannot be loaded.
            if files.fetch(str(Path(name).with_suffix(".bin"))) and (file := files.fetch(name)):
                return file
    return _find_exported(files, *catalogue.FP32_ONNX_FILES)


def _find_exported(files: ModelFiles, *names: str) -> Path | None:
    return LocalFolder(files.export_folder(), files.name).fetch(*names)


def _no_graph_file(files: ModelFiles, choice: Choice) -> ModelLoadError:
    if isinstance(files, LocalFolder):
        catalogue.check_not_adapter(files.names(), files.location)
    if choice.backend == "onnx" and choice.precision == "int8":
        return ModelLoadError(
            f"Model `{files.name}` has no int8 ONNX file for this processor: tried "
            f"{', '.join(catalogue.int8_onnx_files(cpu_features()))} in {files.location}. Use `precision='fp32'`, or "
            "`backend='openvino'`, which quantises any model at load time: pip install 'marcorank[openvino]'"
        )
    if isinstance(files, LocalFolder):
        files.snapshot(allow_pickle=True)  # raises an error if there are no weights to export
    tried = [*catalogue.FP32_ONNX_FILES, *(catalogue.FP32_IR_FILES if choice.backend == "openvino" else ())]
    if choice.precision == "int8":
        tried += [*catalogue.INT8_IR_FILES, catalogue.QUANTIZED_IR_FILE]
    download = f" To work offline, first run `marcorank models download {files.name}`."
    torch = ", or use `backend='torch'`"
    return ModelLoadError(
        f"Model `{files.name}` has no ONNX file in {files.location} (tried {', '.join(tried)})."
        f"{'' if isinstance(files, LocalFolder) else download} Export one with `marcorank models export {files.name}`"
        f"{'' if choice.precision == 'int8' else torch}: pip install 'marcorank[torch]'"
    )


def _load_graph(files: ModelFiles, file: Path, choice: Choice, settings: RerankerSettings) -> RequestScorer:
    from tokenizers import Tokenizer

    config = read_json(files, "config.json")
    modules = read_modules(files)
    labels = config.get("id2label")
    if modules.head is None and isinstance(labels, dict) and len(labels) > 1:
        raise ModelLoadError(
            f"Model `{files.name}` has {len(labels)} labels ({first_few(list(labels.values()), 5)}); a reranker "
            "needs a model with one logit per pair."
        )
    tokenizer_file = files.fetch("tokenizer.json")
    if tokenizer_file is None:
        raise ModelLoadError(
            f"Model `{files.name}` has no tokenizer.json in {files.location}; without it, "
            "only `backend='torch'` can load the model."
        )
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the Rust side raises bare Exception
        raise ModelLoadError(f"{str(tokenizer_file)!r} cannot be read as a tokenizer: {error}") from error
    check_vocabulary(tokenizer, config, model=_described(files), files=["tokenizer.json"])
    workers = Workers.of(settings.threads)
    # A batch mixes pairs of all callers, so they must use the same tokenizer too.
    used = (file, *(file.parent / name for name in weight_files(file)), tokenizer_file, *modules.files.values())
    backend = loaded.shared(
        (choice.backend, versions_of(used), choice.device, choice.precision, workers),
        lambda: Scheduler(_open_graph(file, choice, workers, config, modules.head)),
    )
    first = first_position_of_graph(file, config)
    encoder = _encoder(tokenizer, files, config, modules, settings, first_position=first)
    return CrossEncoderScorer(backend, encoder, name=files.name)


def _open_graph(file: Path, choice: Choice, workers: Workers, config: dict[str, Any], head: Head | None) -> Backend:
    if choice.backend == "onnx":
        return OnnxBackend(file, device=choice.device, precision=choice.precision, workers=workers, head=head)
    from marcorank._inference.backends.openvino import OpenvinoBackend

    positions = config.get("max_position_embeddings")
    return OpenvinoBackend(
        file,
        device=choice.device,
        precision=choice.precision,
        workers=workers,
        longest=positions if isinstance(positions, int) and positions > 0 else None,
        head=head,
    )


def _with_supported_precision(choice: Choice, settings: RerankerSettings) -> Choice:
    """Replace a precision that was chosen automatically and that openvino, on some virtual machines, does not find."""
    if choice.backend != "openvino" or settings.precision != "auto" or choice.precision == "fp32":
        return choice
    from marcorank._inference.backends.openvino import computes

    return choice if computes(choice.precision) else replace(choice, precision="fp32")


def _load_torch(files: ModelFiles, choice: Choice, settings: RerankerSettings) -> RequestScorer:
    from tokenizers import Tokenizer

    from marcorank._inference.backends.torch import TorchBackend

    folder = files.snapshot(allow_pickle=settings.allow_pickle)
    modules = read_modules(files)
    backend = loaded.shared(
        (
            "torch",
            versions_of(torch_files(folder).values()),
            choice.device,
            choice.precision,
            settings.allow_pickle,
        ),
        lambda: Scheduler(
            TorchBackend(
                folder,
                device=choice.device,
                precision=choice.precision,
                allow_pickle=settings.allow_pickle,
                saved_with=modules.saved_with,
            )
        ),
    )
    prompt = _prompt(files, modules, settings)
    cross_encoder = backend.backend.cross_encoder
    config = cross_encoder.config.to_dict()
    fast_tokenizer = getattr(cross_encoder.tokenizer, "backend_tokenizer", None)
    if fast_tokenizer is None:
        raise ModelLoadError(
            f"{_described(files)} has a {type(cross_encoder.tokenizer).__name__}, which has no fast version; expected "
            "a tokenizer with a tokenizer.json. This kind of cross-encoder is not supported."
        )
    names = cross_encoder.tokenizer.vocab_files_names.values()
    check_vocabulary(fast_tokenizer, config, model=_described(files), files={"tokenizer.json", *names})
    if backend.backend.reads_pairs:
        tokenizer = Tokenizer.from_str(fast_tokenizer.to_str())
        untruncated = PairEncoder(tokenizer, max_length=NO_LIMIT, special_tokens=settings.special_tokens, prompt=prompt)
        if backend.backend.tokenises_like(untruncated, prompt):
            first = first_position_of_module(cross_encoder)
            encoder = _encoder(tokenizer, files, config, modules, settings, first_position=first)
            return CrossEncoderScorer(backend, encoder, name=files.name)
    for name, value in _PAIR_SETTINGS.items():
        if getattr(settings, name) != value:
            raise InvalidInputError(
                f"`{name}` is {quoted(getattr(settings, name))}; sentence-transformers makes the tokens of "
                f"`{files.name}`, and does not support it. Leave it out."
            )
    backend.backend.tokens_of_predict(prompt)
    return PredictScorer(backend, name=files.name, prompt=prompt, max_length=settings.max_length)


def _prompt(files: ModelFiles, modules: Modules, settings: RerankerSettings) -> str:
    if settings.instruction is None:
        return modules.prompt
    if not modules.takes_instruction:
        raise InvalidInputError(
            f"`instruction` is {quoted(settings.instruction)}; `{files.name}` was saved without prompts and has no "
            "chat template, so it was not trained to follow one. Leave it out."
        )
    return settings.instruction


def _described(files: ModelFiles) -> str:
    return f"Model `{files.name}` in {files.location}"


def _encoder(
    tokenizer: Tokenizer,
    files: ModelFiles,
    config: dict[str, Any],
    modules: Modules,
    settings: RerankerSettings,
    *,
    first_position: int,
) -> PairEncoder:
    limits = [] if settings.max_length is None else [settings.max_length]
    # As sentence-transformers reads them, the modules overrule the tokenizer.
    saved_limit = modules.max_length or token_limit(
        read_json(files, "tokenizer_config.json", {}), "model_max_length", "tokenizer_config.json"
    )
    if saved_limit is not None:
        limits.append(saved_limit)
    positions = usable_positions(config, first=first_position)
    if positions is not None:
        limits.append(positions)
    return PairEncoder(
        tokenizer,
        max_length=min(limits, default=_DEFAULT_LENGTH),
        max_query_tokens=settings.max_query_tokens,
        prompt=_prompt(files, modules, settings),
        long_passages=settings.long_passages,
        special_tokens=settings.special_tokens,
        pad_id=padding_id(config),
    )
