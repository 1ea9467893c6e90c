"""The PyTorch backend; loads every model that `CrossEncoder` of sentence-transformers loads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._forks import ProcessLock
from marcorank._inference.pairs import TokenBatch
from marcorank._progress import without_transformers_bars
from marcorank._text import message_of, quoted
from marcorank.errors import InvalidInputError, MissingExtraError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_MAX_PADDED_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Whose chunks see the padding of some lengths only.
_READ_PADDING_AT_TIMES = ("reformer",)
# Scored with and without padding when a model is loaded, to find out whether it changes a logit by more than rounding.
_TRIED_PAIR = ("how many people live in berlin", "three million")
_TRIED_PADDING = 16
_ROUNDING = {"fp32": 5e-3, "bf16": 0.2, "fp16": 0.05}
# transformers switches the default dtype of the whole process while it loads a model.
_loading = ProcessLock()


class TorchBackend:
    """A transformers sequence classifier, in `"fp32"`, `"bf16"` or `"fp16"`, that is called with token batches.

    Attributes:
        cross_encoder: The loaded `sentence_transformers.CrossEncoder`.
        predict_lock: Hold it to call `cross_encoder.predict`, which changes the settings of its tokenizer.
    """

    name = "torch"
    # torch uses all cores, or the whole GPU, for one batch.
    parallel_batches = 1

    def __init__(self, folder: Path, *, device: str, precision: str, allow_pickle: bool) -> None:
        """Load a model folder in a precision."""
        self.device = device
        self.precision = precision
        self.max_padded_tokens = _MAX_PADDED_TOKENS.get(device.partition(":")[0], _MAX_PADDED_TOKENS["cpu"])
        self.predict_lock = threading.Lock()
        self.cross_encoder = _load(folder, device=device, precision=precision, allow_pickle=allow_pickle)
        self._inputs = [
            name
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if name in self.cross_encoder.tokenizer.model_input_names
        ]
        if not uses_prompt(self.cross_encoder) and self._reads_padding():
            self.max_padded_tokens = 1  # each pair runs alone

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return one logit per row. Shape: (batch,), float32."""
        import torch

        with torch.inference_mode():
            feed = {name: torch.from_numpy(getattr(batch, name)).to(self.device) for name in self._inputs}
            output = self.cross_encoder.model(**feed).logits
            return np.asarray(output.squeeze(-1).float().cpu().numpy())

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


def _load(folder: Path, *, device: str, precision: str, allow_pickle: bool) -> Any:
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
    try:
        with _loading, without_transformers_bars:
            model = CrossEncoder(
                str(folder),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                # None accepts any format; True rejects pickles.
                model_kwargs={"use_safetensors": None if allow_pickle else True, _dtype_argument(): dtype},
            )
    except Exception as error:  # transformers, safetensors and torch each raise their own
        raise ModelLoadError(
            f"sentence-transformers cannot load {str(folder)!r} as a cross-encoder: {error}"
        ) from error
    if model.config.num_labels != 1 and not uses_prompt(model):
        raise ModelLoadError(
            f"{str(folder)!r} has {model.config.num_labels} labels; a reranker needs a model with one logit per pair."
        )
    if not allow_pickle:
        _check_head(folder, model.model)
    # Modules with their own precision get the requested one.
    model.to(dtype)
    if dtype != torch.float32 and not uses_prompt(model):
        _keep_head_in_fp32(model.model)
    model.eval()
    return model


def _keep_head_in_fp32(model: Any) -> None:
    """Compute the head in fp32: in bf16, logits around 10 are multiples of 1/16, which causes many ties."""
    import torch

    def widened(_module: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            value.float() if torch.is_tensor(value) and value.is_floating_point() else value for value in values
        )

    for name, part in model.named_children():
        if name != model.base_model_prefix:
            part.float()
            part.register_forward_pre_hook(widened)


def _check_head(folder: Path, model: Any) -> None:
    """Reject a model whose output layer transformers has initialised randomly, such as an embedding model."""
    from safetensors import safe_open

    if not type(model).__name__.endswith("ForSequenceClassification"):
        return
    inner = f"{model.base_model_prefix}."
    # The layer with the single output; other layers of the head may come from pre-training.
    head = {
        name
        for name, values in model.named_parameters()
        if not name.startswith(inner) and tuple(values.shape[:1]) == (1,)
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


def _dtype_argument() -> str:
    """Return the name of the dtype argument in the installed version of transformers."""
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def uses_prompt(cross_encoder: Any) -> bool:
    """Whether the model is a causal language model, which reads a prompt instead of a pair."""
    return any(str(name).endswith("ForCausalLM") for name in cross_encoder.config.architectures or ())


class PredictScorer:
    """A cross-encoder that inserts each pair into a prompt, such as one based on a language model.

    Uses `CrossEncoder.predict`, so truncation is unknown and windows are not supported.
    """

    def __init__(self, scheduler: Any, *, name: str) -> None:
        """Keep the `Scheduler` of a `TorchBackend`, which scorers share and which keeps the model loaded."""
        self._scheduler = scheduler
        self.name = name

    def score(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Return one logit per passage, in input order. Shape: (passages,), float32."""
        import torch

        backend = self._scheduler.backend
        with backend.predict_lock:
            scores = backend.cross_encoder.predict(
                [(query, passage) for passage in passages],
                batch_size=4,
                show_progress_bar=False,
                activation_fn=torch.nn.Identity(),
            )
        return np.asarray(scores, dtype=np.float32)
