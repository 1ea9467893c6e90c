"""The errors that marcorank raises.

    MarcoRankError
      InvalidInputError(ValueError)    an invalid argument: the value found, the values allowed
      UnknownModelError(LookupError)   no such model: similar names, how to pass a folder
      MissingExtraError(ImportError)   a package is missing: the pip command to install it
      ModelLoadError(OSError)          a model exists but cannot be loaded: file, revision, what was tried
      ScoreError(ValueError)           a scorer returned invalid scores: passage index, model
      ClosedError(RuntimeError)        a reranker or scorer was used after `close()`
      RerankTimeoutError(TimeoutError) a call took longer than `timeout_s`
      RemoteError(ConnectionError)     a server could not be reached or used: url, attempts
        RemoteTimeoutError(TimeoutError)  the server did not respond in time
        RemoteStatusError                 the server responded with an error status
        RemoteProtocolError               the response of the server is invalid

Each class also derives from the built-in exception that callers would catch for this kind of error.
"""

from __future__ import annotations


class MarcoRankError(Exception):
    """Base class of all errors that marcorank raises."""


class InvalidInputError(MarcoRankError, ValueError):
    """An argument has an invalid value."""


class UnknownModelError(MarcoRankError, LookupError):
    """No model with this name exists."""


class MissingExtraError(MarcoRankError, ImportError):
    """An optional package is not installed."""


class ModelLoadError(MarcoRankError, OSError):
    """A model was found but could not be downloaded or loaded."""


class ScoreError(MarcoRankError, ValueError):
    """A scorer returned scores that are not finite, or not one per passage."""


class ClosedError(MarcoRankError, RuntimeError):
    """A reranker or scorer was used after it was closed."""


class RerankTimeoutError(MarcoRankError, TimeoutError):
    """A call took longer than `timeout_s`."""


class RemoteError(MarcoRankError, ConnectionError):
    """A server could not be reached or used. No message contains the API key."""


class RemoteTimeoutError(RemoteError, TimeoutError):
    """A server did not respond in time."""


class RemoteStatusError(RemoteError):
    """A server responded with an error status.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return _status_error, (str(self), self.status)


class RemoteProtocolError(RemoteError):
    """A server sent an invalid response: not JSON, a wrong number of results, or a redirect that is not followed."""


def _status_error(message: str, status: int) -> RemoteStatusError:
    return RemoteStatusError(message, status=status)


def certificate_hint(error: BaseException | None) -> str:
    """Return what to do, as a sentence, if a connection failed because of certificates, else ""."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        # Opening a file names it; only `ssl`, which reads the trusted certificates itself, does not.
        is_nameless = isinstance(error, FileNotFoundError) and error.errno is not None and error.filename is None
        if is_nameless or getattr(error, "library", None) == "X509" or "TLS CA certificate bundle" in str(error):
            return " The file of trusted certificates cannot be read; set SSL_CERT_FILE to a PEM file of certificates."
        # The second one is of the downloads of huggingface_hub in Rust.
        if "CERTIFICATE_VERIFY_FAILED" in str(error) or "invalid peer certificate" in str(error):
            uses_requests = any(type(link).__module__.startswith("requests") for link in seen)
            return (
                " The certificate was issued by an unknown authority or is not valid for this host. Set SSL_CERT_FILE "
                "to a file with the certificate of the authority, such as that of your company's proxy."
                + (" For huggingface_hub before 1.0, the variable is REQUESTS_CA_BUNDLE." if uses_requests else "")
            )
        error = error.__cause__ or error.__context__
    return ""
