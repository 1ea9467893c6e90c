"""Server URLs, and the API keys for them."""

from __future__ import annotations

import pickle

import pytest

from marcorank.errors import InvalidInputError
from marcorank.remote import DIALECTS, is_remote
from marcorank.remote.address import parse_address
from marcorank.remote.keys import Key, key_from_environment

SECRET = "sk-very-secret-123"


@pytest.mark.parametrize(
    ("url", "more", "dialect", "endpoint", "model"),
    [
        ("tei+http://host:8080", {}, "tei", "http://host:8080/rerank", None),
        ("http://host:8080", {"dialect": "tei"}, "tei", "http://host:8080/rerank", None),
        ("tei+http://host:8080/", {"dialect": "tei"}, "tei", "http://host:8080/rerank", None),
        ("tei+http://host/prefix", {}, "tei", "http://host/prefix/rerank", None),
        ("TEI+HTTPS://Host.Example:8443/Pre/", {}, "tei", "https://host.example:8443/Pre/rerank", None),
        ("infinity+http://h#cross-encoder/ms-marco", {}, "infinity", "http://h/rerank", "cross-encoder/ms-marco"),
        ("cohere+https://api.cohere.com#rerank-v3.5", {}, "cohere", "https://api.cohere.com/v2/rerank", "rerank-v3.5"),
        ("voyage+https://h", {"model": "rerank-2.5"}, "voyage", "https://h/v1/rerank", "rerank-2.5"),
        ("jina+https://api.jina.ai/v1", {"model": "m"}, "jina", "https://api.jina.ai/v1/rerank", "m"),
        ("vllm+http://h:8000/v1#m", {"model": "m"}, "vllm", "http://h:8000/v1/rerank", "m"),
        ("tei+http://[::1]:8080", {}, "tei", "http://[::1]:8080/rerank", None),
        ("cohere+https://api.cohere.com/v1#m", {}, "cohere", "https://api.cohere.com/v1/rerank", "m"),
        ("jina+https://h/below/v2/#m", {}, "jina", "https://h/below/v2/rerank", "m"),
        ("tei+http://h/v10", {}, "tei", "http://h/v10/rerank", None),
        ("tei+http://v1", {}, "tei", "http://v1/rerank", None),
        ("jina+http://v1#m", {}, "jina", "http://v1/v1/rerank", "m"),
        ("tei+http://rerank", {}, "tei", "http://rerank/rerank", None),
        ("tei+http://h/my-rerank", {}, "tei", "http://h/my-rerank/rerank", None),
    ],
)
def test_a_url_contains_dialect_and_model(url, more, dialect, endpoint, model):
    """Dialect and model come from the URL or from arguments, and a base path is kept."""
    address = parse_address(url, **more)
    assert (address.dialect.name, address.endpoint, address.model) == (dialect, endpoint, model)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "path", ["/rerank", "/rerank/", "/v1/rerank", "/v1/rerank//", "/v2/rerank", "/prefix/v1/rerank", "/v1/reranking"]
)
def test_a_url_may_end_in_the_endpoint(dialect, path):
    """As vendors document it, with or without a slash at the end; it is used as it is."""
    address = parse_address(f"{dialect}+https://host:8000{path}#m")
    assert address.endpoint == f"https://host:8000{path.rstrip('/')}"
    assert address.model == "m"


@pytest.mark.parametrize(
    ("url", "shorter"),
    [
        ("vllm+http://host/v1/rerank", "http://host"),
        ("vllm+http://host/v1/reranking/", "http://host"),
        ("tei+http://host/v1", "http://host"),
        ("tei+http://host/prefix/v2/rerank", "http://host/prefix"),
        ("cohere+http://host/rerank#m", "http://host"),
        ("tei+http://host/a/b", "http://host/a"),
        # Their endpoint would be the same.
        ("tei+http://host/rerank", None),
        ("jina+http://host/v1#m", None),
        ("jina+http://host/v1/rerank#m", None),
        ("tei+http://host", None),
    ],
)
def test_a_shorter_base_can_be_suggested(url, shorter):
    """Without the endpoint and its version, or without the last part of the path."""
    found = parse_address(url).shorter
    assert (found and found.url) == shorter


@pytest.mark.parametrize(
    ("url", "more", "message"),
    [
        (
            "http://host:8080",
            {},
            "does not name the API.* tei, vllm, infinity, cohere, jina, voyage, .*tei.http://host",
        ),
        ("tie+http://host", {}, "`url` begins with 'tie'; expected one of tei, vllm"),
        ("http://host", {"dialect": "tie"}, "`dialect` is 'tie'; expected one of tei"),
        ("http://host", {"dialect": ""}, "`dialect` is ''; expected one of tei"),
        ("http://host", {"dialect": 3}, "`dialect` is 3; expected one of tei"),
        ("tei+http://host", {"dialect": "vllm"}, "begins with 'tei' but `dialect` is 'vllm'"),
        ("tei+ftp://host", {}, "the scheme 'ftp'; expected http or https"),
        ("file:///etc/passwd", {"dialect": "tei"}, "the scheme 'file'; expected http or https"),
        ("host:8080", {"dialect": "tei"}, "has no scheme"),
        (b"http://host", {}, "is of type bytes"),
        ("tei+http://", {}, "no valid host"),
        ("tei+http://:80", {}, "no valid host"),
        ("tei+http://host:99999", {}, "no valid host and port"),
        ("tei+http://host:0", {}, "no valid host and port"),
        ("tei+http://host:x", {}, "no valid host and port"),
        ("tei+http://a..b", {}, "no valid host"),
        ("tei+http://" + "a" * 64, {}, "no valid host"),
        ("tei+http://[::1", {}, "no valid host"),
        ("tei+http://hos t", {}, "a space, a backslash or a control character"),
        ("tei+http://host\n", {}, "a space, a backslash or a control character"),
        ("tei+http://host\\@other", {}, "a space, a backslash or a control character"),
        ("tei+http://host#a", {"model": "b"}, "names the model 'a' and `model` is 'b'"),
        ("cohere+https://api.cohere.com", {}, "`model` is None, but a cohere server needs a model name"),
    ],
)
def test_an_invalid_url_is_rejected(url, more, message):
    """The message contains the value found and what is expected."""
    with pytest.raises(InvalidInputError, match=message):
        parse_address(url, **more)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"tei+http://user:{SECRET}@host", "user name or password; remove them and pass `api_key`"),
        (f"tei+http://{SECRET}@host:x", "user name or password|no valid host"),
        (f"tei+http://host?key={SECRET}", "query string; remove it"),
        (f"tei+http://user:{SECRET}@host\n", "control character"),
        (f"ftp://user:{SECRET}@host", "the scheme 'ftp'"),
        (f"http://user:{SECRET}@host", "user name or password"),
    ],
)
def test_a_secret_in_a_url_is_rejected_and_not_repeated(url, message):
    """The message does not contain the password."""
    with pytest.raises(InvalidInputError, match=message) as caught:
        parse_address(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tei+http://host", True),
        ("COHERE+https://host#m", True),
        ("http://host", True),
        ("https://host", True),
        ("tie+http://host", True),
        ("tei+ftp://host", True),
        ("cross-encoder/ms-marco-MiniLM-L6-v2", False),
        ("bundled", False),
        ("./tei+http", False),
        ("C:\\models\\tei", False),
        ("s3://bucket/model", False),
        ("", False),
    ],
)
def test_is_remote(name, expected):
    """A misspelled server URL still counts as one."""
    assert is_remote(name) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("tei+http://localhost:1", True),
        ("tei+http://tei.localhost", True),
        ("tei+http://127.0.0.2", True),
        ("tei+http://[::1]", True),
        ("tei+http://localhost.example.com", False),
        ("tei+http://10.0.0.1", False),
    ],
)
def test_is_loopback(url, expected):
    """Servers on this machine are reached without a proxy."""
    assert parse_address(url).is_loopback is expected


def header_of(key: Key | None) -> str | None:
    return None if key is None else key.authorization


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("cohere+https://api.cohere.com#m", "Bearer of-cohere"),
        ("jina+https://api.jina.ai#m", "Bearer of-jina"),
        ("voyage+https://api.voyageai.com#m", "Bearer of-voyage"),
        # The vendor's key is not for others: another host, another vendor, a host that only begins alike, no TLS.
        ("cohere+https://cohere.example.com#m", "Bearer of-all"),
        ("jina+https://api.cohere.com#m", "Bearer of-all"),
        ("cohere+https://api.cohere.com.example.com#m", "Bearer of-all"),
        ("cohere+http://api.cohere.com#m", "Bearer of-all"),
        ("tei+http://host", "Bearer of-all"),
    ],
)
def test_a_vendor_key_from_the_environment_is_only_for_the_vendor(url, expected, monkeypatch):
    """A vendor's variable is read for the vendor's own host, MARCORANK_API_KEY for any server."""
    for name in ("COHERE", "JINA", "VOYAGE"):
        monkeypatch.setenv(f"{name}_API_KEY", f"of-{name.lower()}")
    monkeypatch.setenv("MARCORANK_API_KEY", "of-all")
    assert header_of(key_from_environment(parse_address(url))) == expected


def test_the_second_variable_is_used_if_the_first_is_not_set(monkeypatch):
    """Cohere's clients read either; an empty variable is ignored; without any, no key is sent."""
    address = parse_address("cohere+https://api.cohere.com#m")
    for name in ("COHERE_API_KEY", "CO_API_KEY", "MARCORANK_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert key_from_environment(address) is None
    monkeypatch.setenv("COHERE_API_KEY", "")
    monkeypatch.setenv("CO_API_KEY", "second")
    assert header_of(key_from_environment(address)) == "Bearer second"


@pytest.mark.parametrize("bad", ["", "  ", f"{SECRET}\n", f"Bearer {SECRET}", f"{SECRET}\u20ac", f"\t{SECRET}", 7])
def test_an_invalid_key_is_rejected_and_not_repeated(bad, monkeypatch):
    """As an argument or in the environment."""
    with pytest.raises(InvalidInputError, match=r"`api_key` (is blank|contains a space|is of type int)") as caught:
        Key(bad)
    assert SECRET not in str(caught.value)
    if isinstance(bad, str) and bad:
        monkeypatch.setenv("MARCORANK_API_KEY", bad)
        with pytest.raises(InvalidInputError, match="environment variable MARCORANK_API_KEY") as caught:
            key_from_environment(parse_address("tei+http://host"))
        assert SECRET not in str(caught.value)


def test_a_key_is_never_shown():
    """It is neither in its repr nor in a pickle, and is redacted in texts."""
    key = Key('sk-"1&2/3')
    assert "sk-" not in f"{key} {key!r} {[key]}"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(key)
    said = 'no sk-"1&2/3, sk-&quot;1&amp;2/3, sk-%221%262%2F3, sk-\\"1&2/3'
    assert key.redact(said) == "no [key], [key], [key], [key]"


def test_score_kind_of_each_dialect():
    """Logits are requested if a server has them; the vendors only return probabilities."""
    kinds = {name: dialect.score_kind for name, dialect in DIALECTS.items()}
    assert kinds == {
        "tei": "logit",
        "vllm": "logit",
        "infinity": "logit",
        "cohere": "probability",
        "jina": "probability",
        "voyage": "probability",
    }
