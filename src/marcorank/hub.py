"""Files of a model on the Hugging Face hub, from the cache or the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HubModel:
    """PLACEHOLDER until the hub helper delivers."""

    name: str
    revision: str | None = None
    cache_folder: str | None = None
    local_files_only: bool | None = None
    token: str | None = field(default=None, repr=False)

    def fetch(self, *candidates: str) -> Path | None:
        """Return the first of the files that the repository has, downloaded if needed; None if it has none."""
        raise NotImplementedError

    def snapshot(self, *, allow_pickle: bool) -> Path:
        """Return a folder with everything that the torch backend needs."""
        raise NotImplementedError

    def export_folder(self) -> Path:
        """Return where `marcorank models export` puts an ONNX file of this commit; it need not exist."""
        raise NotImplementedError
