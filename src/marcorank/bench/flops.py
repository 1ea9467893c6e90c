"""How many operations a request needs, from the shape of the model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from marcorank._models.loading import locate
from marcorank.bench.workload import pair_length, read_tokenizer
from marcorank.errors import MarcoRankError
from marcorank.settings import RerankerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

# Encoders whose layers are BERT's: four square products and two of the intermediate size. Others gate or share parts.
_FIRST_TOKEN_DECIDES = {"bert", "roberta", "xlm-roberta", "electra", "camembert", "mpnet", "distilbert"}
_ALL_TOKENS_DECIDE = {"interaction-bert"}
_MAX_TOKENS = 512


class Flops(NamedTuple):
    """Operations of one request; multiply and add are two.

    Attributes:
        whole: Every layer for every token.
        least: Without what reaches no logit: of the last layer, only the keys and values of all tokens are needed,
            and the rest of it for the first token.
    """

    whole: float
    least: float


def request_flops(model: str, query: str, passages: Sequence[str], cache_folder: str | None) -> Flops | None:
    """Return the operations of the products of weights and of attention; None for a shape that is not known.

    Embeddings, biases, normalisation and softmax are not counted: they are not products.
    """
    try:
        files = locate(RerankerSettings(model, cache_folder=cache_folder, local_files_only=True))
        file = files.fetch("config.json")
        config = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
        tokenizer = read_tokenizer(model, cache_folder)
    except (MarcoRankError, OSError, ValueError):
        return None
    kind = config.get("model_type")
    if kind not in _FIRST_TOKEN_DECIDES | _ALL_TOKENS_DECIDE:
        return None
    # DistilBERT has names of its own.
    hidden = _first(config, "hidden_size", "dim")
    intermediate = _first(config, "intermediate_size", "hidden_dim")
    layers = _first(config, "num_hidden_layers", "n_layers")
    most = min(_MAX_TOKENS, _first(config, "max_position_embeddings") or _MAX_TOKENS)
    if not (hidden and intermediate and layers):
        return None
    lengths = [min(most, pair_length(tokenizer, query, passage)) for passage in passages]
    weights = 4 * hidden**2 + 2 * hidden * intermediate
    whole = least = 0
    for tokens in lengths:
        layer = 2 * weights * tokens + 4 * tokens**2 * hidden
        last = 2 * (2 * hidden**2 * tokens + weights - 2 * hidden**2) + 4 * tokens * hidden
        whole += layers * layer
        least += (layers - 1) * layer + (last if kind in _FIRST_TOKEN_DECIDES else layer)
    return Flops(float(whole), float(least))


def _first(config: dict[str, Any], *names: str) -> int:
    found = (config[name] for name in names if isinstance(config.get(name), int))
    return next(found, 0)
