"""Keeps the models that this process has loaded: one copy of the weights for all who use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from marcorank._forks import reset_in_child
from marcorank._once import Once

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from pathlib import Path


def versions_of(files: Iterable[Path]) -> Hashable:
    """Return path, size, mtime and inode of the files that exist, so that a replaced file is noticed."""
    stats = [(file.name, str(file.resolve()), file.stat()) for file in files if file.is_file()]
    return frozenset((name, path, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, path, stat in stats)


class _Loaded:
    """Models loaded in this process: one copy of the weights, freed when no scorer uses it any more.

    Whoever asks for a model that another thread loads waits for it; other models do not wait.
    """

    def __init__(self) -> None:
        self._loading = Once()
        self.reset()

    def reset(self) -> None:
        """Start empty."""
        self._models: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()

    def shared(self, key: Hashable, load: Callable[[], Any]) -> Any:
        """Return the model that is loaded under a key, or load it."""

        def load_and_keep() -> Any:
            model = self._models[key] = load()
            return model

        return self._loading.get(key, lambda: self._models.get(key), load_and_keep)


loaded = _Loaded()
# Sessions of onnxruntime and torch do not survive a fork, so a child loads its own models.
reset_in_child(loaded, _Loaded.reset)
