"""The PyTorch backend; loads every model that `CrossEncoder` of sentence-transformers loads."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._forks import ForkGate, ProcessLock
from marcorank._inference.pairs import TokenBatch
from marcorank._progress import without_transformers_bars
from marcorank._text import first_few, message_of, quoted
from marcorank.errors import InvalidInputError, MissingExtraError, ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from marcorank._inference.pairs import PairEncoder

_MAX_PADDED_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}
# Texts with different scripts, cases and accents, and with spaces that a tokenizer may join.
_TRIED_PAIRS = (
    ("How many people live in Berlin?", "Berlin had 3,520,031 inhabitants in 2016."),
    ("ÜBERFALL on naïve Façades", "Two\n\nlines,  two spaces\tand a tab: don't!"),
    ("e\u0301 Å 東京", "ﬁne Москва 서울 العربية 🙂 "),
)
_READ_MODULES_SINCE = (5, 4)
_TOKENIZER_FILES = ("tokenizer.json", "*vocab*", "*.model", "*.tiktoken")
# Arguments of a tokenizer; it would warn of texts beyond the limit of the model.
UNTRUNCATED = {"truncation": False, "verbose": False}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Families whose chunks see the padding at some lengths only.
_READ_PADDING_AT_TIMES = ("reformer",)
# Scored with and without padding when a model is loaded, to find out whether it changes a logit by more than rounding.
_TRIED_PAIR = ("how many people live in berlin", "three million")
_TRIED_PADDING = 16
_ROUNDING = {"fp32": 5e-3, "bf16": 0.2, "fp16": 0.05}
# transformers switches the default dtype of the whole process while it loads a model.
_loading = ProcessLock()
# MKL holds a lock at times while it computes, for which a child that is forked then would wait forever.
computing = ForkGate()


class TorchBackend:
    """A `CrossEncoder` of sentence-transformers, in `"fp32"`, `"bf16"` or `"fp16"`, that is called with token batches.

    Attributes:
        cross_encoder: The loaded `sentence_transformers.CrossEncoder`.
        predict_lock: Hold it to call `cross_encoder.predict`, which changes the settings of its tokenizer.
        reads_pairs: Whether it reads a query and a passage side by side, and not in a chat template.
    """

    name = "torch"
    # torch uses all cores, or the whole GPU, for one batch.
    parallel_batches = 1
    # Every thread that computes gets threads of its own from OpenMP.
    runs_in_callers = False

    def __init__(
        self, folder: Path, *, device: str, precision: str, allow_pickle: bool, saved_with: str | None = None
    ) -> None:
        """Load a model folder in a precision.

        `saved_with` is the version of sentence-transformers that saved it, if older ones may not understand it.
        """
        self.device = device
        self.precision = precision
        self.max_padded_tokens = _MAX_PADDED_TOKENS.get(device.partition(":")[0], _MAX_PADDED_TOKENS["cpu"])
        self.predict_lock = threading.Lock()
        self.cross_encoder = load_cross_encoder(
            folder, device=device, precision=precision, allow_pickle=allow_pickle, saved_with=saved_with
        )
        self._modules = _modules_of(self.cross_encoder)
        self.reads_pairs = not _is_causal(self.cross_encoder.config.architectures) and not (
            self._modules and "message" in self._modules[0].modality_config
        )
        self._inputs = [
            name
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if name in self.cross_encoder.tokenizer.model_input_names
        ]
        if self.reads_pairs:
            # Not in this thread, which may be the one that forks: the threads that torch starts for it do not exist in
            # the child, and it would wait for them.
            with ThreadPoolExecutor(1) as executor:
                if executor.submit(self._reads_padding).result():
                    self.max_padded_tokens = 1  # each pair runs alone

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return one logit per row. Shape: (batch,), float32."""
        import torch

        with torch.inference_mode(), computing:
            feed = {name: torch.from_numpy(getattr(batch, name)).to(self.device) for name in self._inputs}
            output = self._scores(feed) if len(self._modules) > 1 else self.cross_encoder.model(**feed).logits
            return np.asarray(output.squeeze(-1).float().cpu().numpy())

    def _scores(self, features: dict[str, Any]) -> Any:
        encoder, *head = self._modules
        features = encoder(features)
        if self.precision != "fp32":
            features = {name: _widened(value) for name, value in features.items()}
        for module in head:
            features = module(features)
        return features["scores"]

    def _reads_padding(self) -> bool:
        """Whether padding changes a logit, as it does where convolutions, poolings or the last position see it.

        Raises:
            ModelLoadError: The model cannot score a pair of texts.
        """
        if self.cross_encoder.config.model_type in _READ_PADDING_AT_TIMES:
            return True
        pair = self.cross_encoder.tokenizer(*_TRIED_PAIR)
        tokens = len(pair["input_ids"])
        # An even and an odd number of tokens: poolings of two see padding in one of them only.
        rows = ([*range(tokens)], [0, 1, *range(1, tokens)])
        batch = TokenBatch(*np.zeros((3, len(rows), tokens + _TRIED_PADDING), dtype=np.int64))
        batch.input_ids[:] = getattr(self.cross_encoder.config, "pad_token_id", None) or 0
        for row, order in enumerate(rows):
            batch.input_ids[row, : len(order)] = np.array(pair["input_ids"])[order]
            batch.attention_mask[row, : len(order)] = 1
            batch.token_type_ids[row, : len(order)] = np.array(pair.get("token_type_ids", [0] * tokens))[order]
        try:
            alone = np.concatenate([self.logits(row) for row in batch.rows()])
            return not np.allclose(self.logits(batch), alone, rtol=0, atol=_ROUNDING[self.precision])
        except Exception as error:  # of the model's code
            raise ModelLoadError(
                f"{type(self.cross_encoder.model).__name__} cannot score a pair of texts: {message_of(error)}"
            ) from error

    def tokens_of_predict(self, prompt: str) -> list[dict[str, Any]]:
        """Return what `predict` makes of a few pairs.

        Raises:
            ModelLoadError: It makes no tokens of a pair, for example because a chat template has no room for one.
        """
        try:
            with self.predict_lock:
                return [
                    self.cross_encoder.preprocess([pair], prompt=prompt, processing_kwargs={"text": UNTRUNCATED})
                    for pair in _TRIED_PAIRS
                ]
        except Exception as error:  # a template may raise anything
            raise ModelLoadError(
                f"sentence-transformers cannot tokenise a query and a passage: {message_of(error)}"
            ) from error

    def tokenises_like(self, encoder: PairEncoder, prompt: str) -> bool:
        """Whether `predict` makes the same tokens as an encoder that truncates nothing, tried on a few pairs.

        Raises:
            ModelLoadError: sentence-transformers makes no tokens of a pair.
        """
        if not self._modules:
            return True  # a version without other ways
        if prompt and not all(getattr(module, "include_prompt", True) for module in self._modules):
            return False
        for (query, passage), features in zip(_TRIED_PAIRS, self.tokens_of_predict(prompt), strict=True):
            encoded = encoder.encode(query, [passage])
            batch = encoder.batch([(encoded.query_ids, encoded.windows[0])])
            if any(
                not np.array_equal(features[name].numpy(), getattr(batch, name))
                for name in self._inputs
                if name in features
            ):
                return False
        return True


def load_cross_encoder(
    folder: Path, *, device: str, precision: str, allow_pickle: bool, saved_with: str | None, **options: Any
) -> Any:
    """Return the `CrossEncoder` of a folder, if it has one logit and all its weights are there.

    Args:
        folder: Where the model is.
        device: Device name, as in torch.
        precision: Precision of the encoder; its head is in fp32.
        allow_pickle: Whether pickled weights may be loaded.
        saved_with: Version of sentence-transformers that saved it, if older ones may not understand it.
        options: More arguments for the model's `from_pretrained`.
    """
    try:
        import torch
        from sentence_transformers import CrossEncoder

        import marcorank.interaction  # noqa: F401  # registers the architecture with transformers
    except ImportError as error:
        raise MissingExtraError(
            f"The torch backend needs sentence-transformers and torch, but {error.name or error!r} is missing: "
            "pip install 'marcorank[torch]'"
        ) from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA raises AssertionError
        raise InvalidInputError(
            f"`device` is {quoted(device)}; torch {torch.__version__} cannot use it on this machine "
            f"({message_of(error)}). Use 'cpu'."
        ) from error
    dtype = getattr(torch, _DTYPES[precision])
    _check_version(folder, saved_with)
    try:
        with _loading, without_transformers_bars:
            model = CrossEncoder(
                str(folder),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                # None accepts any format; True rejects pickles.
                model_kwargs={"use_safetensors": None if allow_pickle else True, _dtype_argument(): dtype, **options},
            )
    except Exception as error:  # transformers, safetensors and torch each raise their own
        has_tokenizer = any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES)
        hint = "" if has_tokenizer else ". The folder has no tokenizer.json, nor other files of a tokenizer."
        raise ModelLoadError(
            f"sentence-transformers cannot load {str(folder)!r} as a cross-encoder: {error}{hint}"
        ) from error
    _check_own_code(folder, model.model)
    modules = _modules_of(model)
    labels = model.num_labels if modules else model.config.num_labels
    if labels != 1:
        raise ModelLoadError(f"{str(folder)!r} has {labels} labels; a reranker needs a model with one logit per pair.")
    if not allow_pickle:
        _check_weights(folder, model.model)
    # Modules with their own precision get the requested one.
    model.to(dtype)
    if dtype != torch.float32:
        if len(modules) > 1:
            for module in modules[1:]:
                module.float()
        else:
            _keep_head_in_fp32(model.model)
    model.eval()
    return model


def _check_version(folder: Path, saved_with: str | None) -> None:
    """Reject a model of which an old sentence-transformers would load the encoder alone, with a random head."""
    import sentence_transformers

    installed = tuple(int(part) for part in sentence_transformers.__version__.split(".")[:2])
    if installed >= _READ_MODULES_SINCE:
        return
    if saved_with is None and not _is_causal(_config_of(folder).get("architectures")):
        return
    needed = saved_with or ".".join(map(str, _READ_MODULES_SINCE))
    raise ModelLoadError(
        f"{str(folder)!r} is a cross-encoder made of modules, which sentence-transformers "
        f"{sentence_transformers.__version__} does not read: pip install 'sentence-transformers>={needed}'"
    )


def _modules_of(cross_encoder: Any) -> list[Any]:
    """Return the modules of a cross-encoder; empty before sentence-transformers 5.4, where it has none."""
    import torch

    return list(cross_encoder) if isinstance(cross_encoder, torch.nn.Sequential) else []


def _is_causal(architectures: list[str] | None) -> bool:
    """Whether a model is a causal language model, which answers yes or no."""
    return any(str(name).endswith("ForCausalLM") for name in architectures or ())


def _config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _widened(value: Any) -> Any:
    import torch

    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value


def _keep_head_in_fp32(model: Any) -> None:
    """Compute the head in fp32: in bf16, logits around 10 are multiples of 1/16, which causes many ties."""

    def widened(_module: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(map(_widened, values))

    for name, part in model.named_children():
        if name != model.base_model_prefix:
            part.float()
            part.register_forward_pre_hook(widened)


def _check_weights(folder: Path, model: Any) -> None:
    """Reject a model of which transformers has initialised a part randomly, such as the head of an embedding model."""
    from safetensors import safe_open

    inner = f"{model.base_model_prefix}."
    # The layer with the single output; other layers of the head may come from pre-training.
    head = {
        name
        for name, values in model.named_parameters()
        if type(model).__name__.endswith("ForSequenceClassification")
        and not name.startswith(inner)
        and tuple(values.shape[:1]) == (1,)
    }
    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            stored.update(tensors.keys())
    if not head <= stored:
        raise ModelLoadError(
            f"{str(folder)!r} has no weights for the output layer ({', '.join(sorted(head))}); it may be an "
            "embedding model, or a cross-encoder that this version of sentence-transformers does not support."
        )
    missing = _without_weights(model, stored)
    if missing:
        raise ModelLoadError(
            f"{str(folder)!r} has no weights for {first_few(missing)}, which its config.json asks for; transformers "
            "would use random numbers. Compare its number of layers, for example, with that of the saved model."
        )


def _without_weights(model: Any, stored: set[str]) -> list[str]:
    """Return the parameters that no file holds; none if the files use other names than the model."""
    names = set(model.state_dict())
    # Buffers that older versions saved.
    if not {name for name in stored if not name.endswith("position_ids")} <= names:
        return []
    # Tied parameters have several names, of which one is stored.
    names_of: dict[int, list[str]] = {}
    for name, values in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(values), []).append(name)
    missing = [tied[0] for tied in names_of.values() if stored.isdisjoint(tied)]
    # Of an encoder, only the hidden states are read.
    return [name for name in missing if not name.startswith("pooler.")]


def _check_own_code(folder: Path, model: Any) -> None:
    """Reject a model that code in its repository computes.

    Where transformers has an architecture of that type, it loads that one instead, with random numbers for the weights
    that are missing. A repository may keep the code of an architecture that transformers has taken over.
    """
    own_code = _config_of(folder).get("auto_map")
    if not isinstance(own_code, dict):
        return
    kind = type(model).__name__
    head = next((head for head in ("ForSequenceClassification", "ForCausalLM") if kind.endswith(head)), "")
    for auto_class, loaded in ((f"AutoModel{head}", kind), ("AutoConfig", type(model.config).__name__)):
        own = str(own_code.get(auto_class, loaded))
        if own.rpartition(".")[2] != loaded:
            raise ModelLoadError(
                f"{str(folder)!r} needs code from its repository ({own}), which marcorank never runs; {loaded} of "
                "transformers is something else. If the repository has an ONNX file, use `backend='onnx'` or "
                "`backend='openvino'`."
            )


def _dtype_argument() -> str:
    """Return the name of the dtype argument in the installed version of transformers."""
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"
