"""The settings of `Reranker` as fields of the LangChain classes."""

from __future__ import annotations

from typing import ClassVar

from langchain_core.cross_encoders import BaseCrossEncoder

from marcorank._adapters.settings import AdapterSettings
from marcorank.settings import DEFAULT_MODEL


class LangChainSettings(AdapterSettings):
    """Settings with the field name that LangChain uses for the model."""

    _model_field: ClassVar[str] = "model_name"
    # The `score` of a cross-encoder takes pairs.
    _no_scorers: ClassVar[tuple[type, ...]] = (type, BaseCrossEncoder)

    model_name: str = DEFAULT_MODEL
