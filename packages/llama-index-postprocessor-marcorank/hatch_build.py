"""Metadata that hatchling asks for at build time."""

from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Dependencies(MetadataHookInterface):
    """Makes this distribution depend on the marcorank of its own version: both are built from the same commit."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the dependencies."""
        metadata["dependencies"] = [f"marcorank[llama-index]=={metadata['version']}"]
