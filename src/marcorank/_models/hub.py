"""Downloads model files from the Hugging Face Hub, or finds them in the cache."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from marcorank._models import catalogue
from marcorank._progress import without_hub_bars
from marcorank.errors import InvalidInputError, MarcoRankError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_log = logging.getLogger("marcorank")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAIN = "main"
# Every model has one, so it shows whether the model itself is there.
_CONFIG = "config.json"
# An allow list, so that a repository cannot add pickles, code or the weights of other backends to a download.
_TORCH_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja")
_OTHER_BACKENDS = ("onnx/*", "openvino/*")


class _Source(NamedTuple):
    """One spelling of the model name at one revision."""

    spelling: str
    revision: str

    @property
    def is_commit(self) -> bool:
        return _COMMIT.fullmatch(self.revision) is not None


@dataclass(slots=True)
class HubModel:
    """A model on the Hub. All its files come from the commit of the first one that was fetched.

    Attributes:
        name: Name on the Hub; for a model in the catalogue, all spellings are looked up.
        revision: Branch, tag or commit; None for the commit pinned in the catalogue, or `main`.
        cache_folder: Folder for downloaded files; None for the Hugging Face cache.
        local_files_only: True turns the network off; otherwise `HF_HUB_OFFLINE` decides.
        token: Access token; None to use the one that huggingface_hub finds.
    """

    name: str
    revision: str | None = None
    cache_folder: str | None = None
    local_files_only: bool | None = None
    token: str | None = field(default=None, repr=False)
    _source: _Source | None = field(default=None, init=False, repr=False, compare=False)
    _reached: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # HTTP libraries quote an invalid header in their errors, and the token with it.
        if self.token is not None and re.fullmatch(r"[!-~]+", self.token) is None:
            raise InvalidInputError(
                "`token` contains whitespace or non-ASCII characters; expected only the access token, such as 'hf_...'."
            )

    @property
    def location(self) -> str:
        """Where files are looked up, for messages."""
        revision = (self._source or self._sources()[0]).revision
        if self._offline:
            return f"the cache {str(self._cache)!r} at revision {revision!r} ({self._why_offline})"
        return f"{_endpoint()} at revision {revision!r}"

    def fetch(self, *candidates: str) -> Path | None:
        """Return the first of the candidate files that the repository has, downloaded if needed; None if it has none.

        Offline, None also means that the model is cached but these files are not.

        Raises:
            UnknownModelError: The Hub has no such repository.
            ModelLoadError: The model cannot be downloaded, or is not cached and the network is off.
        """
        with self._map_errors(" or ".join(candidates)):
            if self._offline:
                return self._fetch_cached(candidates)
            return next((path for file in candidates if (path := self._fetch_online(file))), None)

    def snapshot(self, *, allow_pickle: bool) -> Path:
        """Return a folder with all files that the torch backend needs.

        Raises:
            UnknownModelError: The Hub has no such repository.
            ModelLoadError: The model cannot be downloaded, or has no weights that may be loaded.
        """
        source = self._resolved_source()
        with self._map_errors("the weights"):
            folder = self._download_folder(source, _TORCH_FILES)
            if allow_pickle and not any(folder.glob("*.safetensors")):
                folder = self._download_folder(source, (*_TORCH_FILES, catalogue.PICKLED_WEIGHTS))
            names = [path.name for path in folder.iterdir()]
            if not catalogue.has_weights(names, allow_pickle=allow_pickle):
                if self._offline:
                    raise self._not_cached("the weights")
                catalogue.check_weights(self._list(source), where=f"Model `{self.name}`", allow_pickle=allow_pickle)
        return folder

    def export_folder(self) -> Path:
        """Return the folder to which `marcorank models export` writes the ONNX file of this commit; it may not exist.

        Raises:
            UnknownModelError: The Hub has no such repository.
            ModelLoadError: The commit cannot be determined.
        """
        from huggingface_hub import constants

        # `cached_assets_path` would create the folder.
        base = Path(self.cache_folder or constants.HF_ASSETS_CACHE)
        return base / "marcorank" / self.name.replace("/", "--") / self.commit

    @property
    def commit(self) -> str:
        """The commit that all files come from; looked up if no file was fetched yet.

        Raises:
            UnknownModelError: The hub has no such repository.
            ModelLoadError: The commit cannot be looked up.
        """
        return self._resolved_source().revision

    def _resolved_source(self) -> _Source:
        if self._source is None:
            self.fetch(_CONFIG)
        if self._source is None:
            raise ModelLoadError(
                f"Model `{self.name}` has no {_CONFIG} in {self.location}; marcorank cannot load it as a model."
            )
        return self._source

    def _fetch_cached(self, candidates: Sequence[str]) -> Path | None:
        sources = self._cached_sources()
        for source in sources:
            for file in candidates:
                if path := self._cached(file, source):
                    return self._pin(path, file, source)
        if any(self._cached(_CONFIG, source) for source in sources):
            return None
        raise self._not_cached(" or ".join(candidates))

    def _fetch_online(self, file: str) -> Path | None:
        # A commit never changes, so what is cached of it needs no network.
        commits = [source for source in self._sources() if source.is_commit]
        for source in commits:
            if path := self._cached(file, source):
                return self._pin(path, file, source)
        if any(self._known_missing(file, source) for source in commits):
            return None
        sources = sorted(self._sources(), key=lambda source: self._cached(file, source) is None)
        try:
            self._check_reachable(file, sources[0])
        except Exception:
            for source in self._cached_sources():
                if path := self._cached(file, source):
                    return self._pin(path, file, source)
                if self._known_missing(file, source):
                    return None
            raise
        return self._download(file, *sources)

    def _check_reachable(self, file: str, source: _Source) -> None:
        """Send one request first: `hf_hub_download` would take minutes to notice that the server is down."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError

        if self._reached:
            return
        url = hf_hub_url(source.spelling, file, revision=source.revision)
        try:
            get_hf_file_metadata(url, token=self.token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except HfHubHTTPError:
            _log.debug("%s returned an error; leaving it to hf_hub_download.", _endpoint(), exc_info=True)
        self._reached = True

    def _download(self, file: str, source: _Source, *others: _Source) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )

        try:
            path = hf_hub_download(
                source.spelling,
                file,
                revision=source.revision,
                cache_dir=self.cache_folder,
                token=self.token,
            )
        except (LocalEntryNotFoundError, GatedRepoError):
            raise
        except EntryNotFoundError:
            return None
        except RepositoryNotFoundError:
            if not others:
                raise
            return self._download(file, *others)
        return self._pin(Path(path), file, source)

    def _download_folder(self, source: _Source, patterns: Sequence[str]) -> Path:
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            source.spelling,
            revision=source.revision,
            cache_dir=self.cache_folder,
            token=self.token,
            local_files_only=self._offline,
            allow_patterns=list(patterns),
            ignore_patterns=list(_OTHER_BACKENDS),
        )
        return Path(folder)

    def _list(self, source: _Source) -> list[str]:
        from huggingface_hub import HfApi

        return HfApi(token=self.token).list_repo_files(source.spelling, revision=source.revision)

    def _pin(self, path: Path, file: str, source: _Source) -> Path:
        """Use the commit of this file for all others; in the cache, a file is in a folder named after its commit."""
        if self._source is None:
            commit = path.parents[file.count("/")].name
            if source != self._sources()[0]:
                _log.info("Model `%s` is loaded from `%s` at commit %s.", self.name, source.spelling, commit)
            self._source = _Source(source.spelling, commit)
        return path

    def _sources(self) -> list[_Source]:
        if self._source is not None:
            return [self._source]
        info = catalogue.find(self.name)
        revision = self.revision or (info.revision if info else _MAIN)
        return [_Source(spelling, revision) for spelling in self._spellings]

    def _cached_sources(self) -> list[_Source]:
        """Sources to look up offline: a cached `main` is used where the pinned commit is not cached."""
        sources = self._sources()
        if self._source is None and self.revision is None:
            sources += [_Source(spelling, _MAIN) for spelling in self._spellings]
        return sources

    @property
    def _spellings(self) -> tuple[str, ...]:
        info = catalogue.find(self.name)
        return info.spellings if info else (self.name,)

    def _cached(self, file: str, source: _Source) -> Path | None:
        path = self._lookup(file, source)
        return Path(path) if isinstance(path, str) else None

    def _known_missing(self, file: str, source: _Source) -> bool:
        from huggingface_hub import _CACHED_NO_EXIST

        return self._lookup(file, source) is _CACHED_NO_EXIST

    def _lookup(self, file: str, source: _Source) -> object:
        from huggingface_hub import try_to_load_from_cache

        return try_to_load_from_cache(source.spelling, file, cache_dir=self._cache, revision=source.revision)

    @property
    def _cache(self) -> Path:
        from huggingface_hub import constants

        return Path(self.cache_folder or constants.HF_HUB_CACHE)

    @property
    def _offline(self) -> bool:
        from huggingface_hub import constants

        return bool(self.local_files_only or constants.HF_HUB_OFFLINE)

    @property
    def _why_offline(self) -> str:
        return "`local_files_only=True`" if self.local_files_only else "HF_HUB_OFFLINE is set"

    def _not_cached(self, what: str) -> ModelLoadError:
        sources = self._cached_sources()
        spellings, revisions = (" and ".join(dict.fromkeys(part)) for part in zip(*sources, strict=True))
        return ModelLoadError(
            f"Model `{self.name}` is not cached and the network is off ({self._why_offline}): looked for {what} of "
            f"{spellings} at {revisions} in {str(self._cache)!r}. Run `marcorank models download {self.name}` once "
            "while online, with the same cache folder, or pass the path of a model folder."
        )

    @contextmanager
    def _map_errors(self, what: str) -> Iterator[None]:
        """Map errors of huggingface_hub and the HTTP libraries below it to errors of marcorank."""
        try:
            with without_hub_bars:
                yield
        except MarcoRankError:
            raise
        except Exception as error:  # requests, httpx, xet and the OS each raise their own
            raise self._mapped(error, what) from error

    def _mapped(self, error: Exception, what: str) -> MarcoRankError:
        from huggingface_hub.errors import LocalEntryNotFoundError

        refusal = self._refusal(error)
        if refusal is not None:
            return refusal
        if isinstance(error, LocalEntryNotFoundError):
            if self._offline:
                return self._not_cached(what)
            # The cause is why huggingface_hub could not look online.
            reason = _reason(error.__cause__ or error)
        elif isinstance(error, OSError) and error.strerror and not isinstance(error, (ConnectionError, TimeoutError)):
            return ModelLoadError(
                f"Model `{self.name}` cannot be saved to {str(self._cache)!r}: {error.strerror}. Check "
                "free space and permissions, or pass another `cache_folder`."
            )
        else:
            reason = _reason(error)
        return ModelLoadError(
            f"Model `{self.name}`: {what} cannot be downloaded from {self.location}: {reason}. Try again. To work "
            "offline, set HF_HUB_OFFLINE=1 if the model is cached, or pass 'bundled' or the path of a model folder."
        )

    def _refusal(self, error: Exception) -> MarcoRankError | None:
        """Return the error for a request that the Hub refused; None if it did not refuse."""
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if isinstance(error, HFValidationError):
            return catalogue.unknown_model(self.name, "it is not a name of the form 'owner/model'")
        if isinstance(error, GatedRepoError):
            return ModelLoadError(
                f"Model `{self.name}` is gated. Accept its terms on {_endpoint()}/{self.name}, then log in with "
                "`hf auth login`, set HF_TOKEN or pass `token`."
            )
        if isinstance(error, RepositoryNotFoundError):
            return catalogue.unknown_model(
                self.name, f"{_endpoint()} has no such repository, or it is private and your `token` has no access"
            )
        if isinstance(error, RevisionNotFoundError):
            return ModelLoadError(
                f"Model `{self.name}` has no revision {self._sources()[0].revision!r} on {_endpoint()}. Pass an "
                "existing branch, tag or commit, such as `revision='main'`."
            )
        return None


def _endpoint() -> str:
    """Return the URL of the Hub without credentials."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _reason(error: BaseException) -> str:
    """Describe why a request failed, without any URL: a signed URL is as secret as a token."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status in {401, 403}:
            return f"the token is missing or was refused (status {status}; pass `token` or set HF_TOKEN)"
        if status is not None:
            return f"the server returned status {status}"
    if any(isinstance(link, TimeoutError) or "Timeout" in type(link).__name__ for link in chain):
        return "the request timed out (see HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT)"
    for link in reversed(chain):
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
    return f"the download was interrupted ({type(error).__name__})"
