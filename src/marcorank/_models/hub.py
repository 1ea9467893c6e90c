"""Downloads model files from the Hugging Face Hub, or finds them in the cache."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from marcorank._models import catalogue
from marcorank._progress import without_hub_bars
from marcorank._text import quoted, quoted_path, shorten
from marcorank.errors import InvalidInputError, MarcoRankError, MissingExtraError, ModelLoadError, certificate_hint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_log = logging.getLogger("marcorank")

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAIN = "main"
# Every model has one: it shows whether the model is there, and at which commit.
_CONFIG = "config.json"
# An allow list, so that a repository cannot add pickles, code or the weights of other backends to a download.
TORCH_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja")
_WEIGHTS = ("*.safetensors", "*.onnx", "*.xml", "onnx/*.onnx", "openvino/*.xml", catalogue.PICKLED_WEIGHTS)
_OTHER_BACKENDS = ("onnx/*", "openvino/*")


class _Source(NamedTuple):
    """One spelling of the model name at one revision."""

    spelling: str
    revision: str


@dataclass(slots=True)
class HubModel:
    """A model on the Hub. All its files come from one commit, which is determined when the first one is fetched.

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
    _resolved: _Source | None = field(default=None, init=False, repr=False, compare=False)
    _reached: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            import huggingface_hub  # noqa: F401 -- tokenizers requires it, but slim images leave it out
        except ImportError as error:
            raise MissingExtraError(
                f"Model {quoted(self.name)} needs the package huggingface-hub: pip install huggingface-hub. "
                "The bundled models and model folders work without it."
            ) from error
        # HTTP libraries quote an invalid header in their errors, and the token with it.
        if self.token is not None and re.fullmatch(r"[!-~]+", self.token) is None:
            raise InvalidInputError(
                "`token` contains whitespace or non-ASCII characters; expected only the access token, such as 'hf_...'."
            )

    @property
    def location(self) -> str:
        """Where files are looked up, for messages."""
        revision = (self._resolved or self._sources()[0]).revision
        if self._offline:
            return f"the cache {quoted_path(self._cache)} at revision {quoted(revision)} ({self._why_offline})"
        return f"{_endpoint()} at revision {quoted(revision)}"

    def fetch(self, *candidates: str) -> Path | None:
        """Return the first of the candidate files that the repository has, downloaded if needed; None if it has none.

        Offline, None also means that the model is cached but these files are not.

        Raises:
            UnknownModelError: The Hub has no such repository.
            ModelLoadError: The model cannot be downloaded, or is not cached and the network is off.
        """
        what = " or ".join(candidates)
        with self._map_errors(what):
            source = self._resolve(what)
            return next((path for file in candidates if (path := self._fetch(file, source))), None)

    def fetch_optional(self, file: str) -> Path | None:
        """Return a small file that most models lack; None if there is none.

        Small files are fetched before the weights. So a commit whose weights are cached has all that it will have, and
        no request is sent: a cache that another program has filled does not record which files a model lacks.

        Raises:
            MarcoRankError: As `fetch`.
        """
        with self._map_errors(file):
            source = self._resolve(file)
            found = self._lookup(file, source)
            if isinstance(found, str):
                return Path(found)
            config = self._lookup(_CONFIG, source)
            if isinstance(config, str) and any(any(Path(config).parent.glob(one)) for one in _WEIGHTS):
                return None
            return self._fetch(file, source)

    def snapshot(self, *, allow_pickle: bool) -> Path:
        """Return a folder with all files that the torch backend needs."""
        from huggingface_hub import HfApi

        with self._map_errors("the weights"):
            source = self._resolve("the weights")
            folder = self._download_folder(source, TORCH_FILES)
            if allow_pickle and not any(folder.glob("*.safetensors")):
                folder = self._download_folder(source, (*TORCH_FILES, catalogue.PICKLED_WEIGHTS))
            names = [path.name for path in folder.iterdir()]
            if not catalogue.has_weights(names, allow_pickle=allow_pickle):
                if not self._offline:
                    names = HfApi(token=self.token).list_repo_files(source.spelling, revision=source.revision)
                elif not catalogue.has_weights(names, allow_pickle=True):
                    raise self._not_cached("the weights")
                catalogue.check_weights(names, where=f"Model `{self.name}`", allow_pickle=allow_pickle)
        return folder

    def export_folder(self) -> Path:
        """Return the folder for files that marcorank makes of this commit; it may not exist."""
        from huggingface_hub import constants

        # `cached_assets_path` would create the folder.
        base = Path(self.cache_folder or constants.HF_ASSETS_CACHE)
        return base / "marcorank" / self.name.replace("/", "--") / self.commit

    @property
    def commit(self) -> str:
        """The commit that all files come from; looked up if no file was fetched yet."""
        with self._map_errors(_CONFIG):
            return self._resolve(_CONFIG).revision

    def _resolve(self, what: str) -> _Source:
        """Find out which spelling at which commit has the model, by its config.json."""
        if self._resolved is None:
            source, path = self._find_config(what)
            commit = path.parent.name  # the cache has a folder for each commit
            if source != self._sources()[0]:
                _log.info("Model `%s` is loaded from `%s` at commit %s.", self.name, source.spelling, commit)
            self._resolved = _Source(source.spelling, commit)
        return self._resolved

    def _find_config(self, what: str) -> tuple[_Source, Path]:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        cached = {
            source: Path(path)
            for source in self._cached_sources()
            if isinstance(path := self._lookup(_CONFIG, source), str)
        }
        if self._offline:
            if not cached:
                raise self._not_cached(what)
            return next(iter(cached.items()))
        # The spelling that the cache has comes first.
        source, *others = sorted(self._sources(), key=lambda source: source not in cached)
        # A commit never changes, so what is cached of it needs no network.
        if source in cached and _COMMIT.fullmatch(source.revision):
            return source, cached[source]
        try:
            self._check_reachable(source)
        except Exception:
            if not cached:
                raise
            return next(iter(cached.items()))
        try:
            path = self._download(_CONFIG, source)
        except RepositoryNotFoundError as error:
            if isinstance(error, GatedRepoError) or not others:
                raise
            source = others[0]
            path = self._download(_CONFIG, source)
        if path is None:
            if self._download(catalogue.ADAPTER_FILE, source) is not None:
                raise catalogue.adapter_without_base(f"Model `{self.name}`")
            raise ModelLoadError(
                f"Model `{self.name}` has no {_CONFIG} in {self.location}; marcorank cannot load it as a model."
            )
        return source, path

    def _fetch(self, file: str, source: _Source) -> Path | None:
        from huggingface_hub import _CACHED_NO_EXIST

        found = self._lookup(file, source)
        if isinstance(found, str):
            return Path(found)
        if self._offline or found is _CACHED_NO_EXIST:
            return None
        self._check_reachable(source)
        return self._download(file, source)

    def _check_reachable(self, source: _Source) -> None:
        """Send one request first: `hf_hub_download` would take minutes to notice that the server is down."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError

        if self._reached:
            return
        url = hf_hub_url(source.spelling, _CONFIG, revision=source.revision)
        with suppress(HfHubHTTPError):  # hf_hub_download will raise it, or retry
            get_hf_file_metadata(url, token=self.token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        self._reached = True

    def _download(self, file: str, source: _Source) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(
                hf_hub_download(
                    source.spelling,
                    file,
                    revision=source.revision,
                    cache_dir=self.cache_folder,
                    token=self.token,
                )
            )
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None

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

    def _sources(self) -> list[_Source]:
        info = catalogue.find(self.name)
        revision = self.revision or (info.revision if info else _MAIN)
        return [_Source(spelling, revision) for spelling in (info.spellings if info else (self.name,))]

    def _cached_sources(self) -> list[_Source]:
        """Sources to look up offline: a cached `main` is used where the pinned commit is not cached."""
        sources = self._sources()
        mains = [] if self.revision else [_Source(source.spelling, _MAIN) for source in sources]
        return list(dict.fromkeys((*sources, *mains)))

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
        sources = [self._resolved] if self._resolved else self._cached_sources()
        spellings = " and ".join(dict.fromkeys(source.spelling for source in sources))
        revisions = " and ".join(dict.fromkeys(shorten(source.revision) for source in sources))
        return ModelLoadError(
            f"Model `{self.name}` is not cached and the network is off ({self._why_offline}): looked for {what} of "
            f"{spellings} at {revisions} in {quoted_path(self._cache)}. Run `marcorank models download {self.name}` "
            "once while online, with the same cache folder, or pass the path of a model folder."
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
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if isinstance(error, HFValidationError):
            return catalogue.unknown_model(self.name, "it is not a name of the form 'owner/model'")
        if isinstance(error, LocalEntryNotFoundError) and self._offline:
            return self._not_cached(what)
        if isinstance(error, GatedRepoError):
            message = (
                f" is gated. Accept its terms on {_endpoint()}/{self.name}, then log in with `hf auth login`, set "
                "HF_TOKEN or pass `token`."
            )
        elif isinstance(error, RepositoryNotFoundError):
            return catalogue.unknown_model(
                self.name, f"{_endpoint()} has no such repository, or it is private and your `token` has no access"
            )
        elif isinstance(error, RevisionNotFoundError):
            message = (
                f" has no revision {quoted(self._sources()[0].revision)} on {_endpoint()}. Pass an existing branch, "
                "tag or commit, such as `revision='main'`."
            )
        elif isinstance(error, OSError) and error.strerror and not _is_of_network(error):
            message = (
                f" cannot be saved to {quoted_path(self._cache)}: {error.strerror}. Check free space and permissions, "
                "or pass another `cache_folder`."
            )
        else:
            message = (
                f": {what} cannot be downloaded from {self.location}: {_reason(error)}."
                f"{certificate_hint(error) or ' Try again.'} To work offline, set HF_HUB_OFFLINE=1 if the model is "
                "cached, or pass 'bundled', 'bundled-tiny' or the path of a model folder."
            )
        return ModelLoadError(f"Model `{self.name}`{message}")


def _endpoint() -> str:
    """Return the URL of the Hub without credentials."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _is_of_network(error: OSError) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(certificate_hint(error))


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
    return f"the download was interrupted ({type(chain[-1]).__name__})"
