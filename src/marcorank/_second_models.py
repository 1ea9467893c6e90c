"""The other models of a reranker: its fallback, and the one that skims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marcorank.errors import InvalidInputError
from marcorank.remote import RemoteScorer, is_remote
from marcorank.settings import RerankerSettings, defaults

# What a model that was given by name has from the reranker.
_SHARED_WITH_FALLBACK = ("special_tokens", "threads", "cache_folder", "local_files_only")
_SHARED_WITH_SKIM = (*_SHARED_WITH_FALLBACK, "cache_size", "max_length", "max_query_tokens", "long_passages")


def fallback_of(settings: RerankerSettings, make: Any) -> Any:
    """Return the reranker that ranks if the model fails, or None; `make` is the class `Reranker`."""
    shared = {name: getattr(settings, name) for name in ("activation", *_SHARED_WITH_FALLBACK)}
    return None if settings.fallback is None else _made(settings.fallback, shared, settings, make)


def skim_of(settings: RerankerSettings, make: Any) -> Any:
    """Return the reranker whose model skims, or None; `make` is the class `Reranker`.

    Raises:
        InvalidInputError: It has settings that mean nothing there.
    """
    if settings.skim is None:
        return None
    skim = _made(settings.skim, {name: getattr(settings, name) for name in _SHARED_WITH_SKIM}, settings, make)
    values, usual = skim.__getstate__(), defaults(RerankerSettings)
    for name in ("skim", "fallback", "timeout_s", "blend", "max_similarity", "max_drop"):
        if values[name] != usual[name]:
            raise InvalidInputError(
                f"`skim` is a reranker with `{name}`, which it would not use; expected one without it. Pass `{name}` "
                "to the reranker that has the `skim`."
            )
    return skim


def _made(given: object, shared: Mapping[str, Any], settings: RerankerSettings, make: Any) -> Any:
    """Return the reranker of a second model; one given by name has the shared settings."""
    if isinstance(given, make):
        return given
    activation = {name: value for name, value in shared.items() if name == "activation"}
    if isinstance(given, Mapping):
        if "url" in given:
            return make(RemoteScorer.from_dict(given), **activation)
        return make.from_dict({**activation, **given})
    if not isinstance(given, str):
        return make(given, **activation)
    if is_remote(given):
        return make(given, **activation, max_passages_per_request=settings.max_passages_per_request)
    return make(given, **shared)
