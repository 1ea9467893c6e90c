"""Settings of `marcorank serve`: options, environment variables, and what they decide together."""

from __future__ import annotations

import pytest

from marcorank import InvalidInputError
from marcorank._inference.cpu import usable_cores
from marcorank.cli import main
from marcorank.cli import serve as command
from marcorank.serving.settings import ProcessSettings, ServerSettings, ServeSettings
from marcorank.settings import descriptions


def test_both_servers_share_what_they_have_in_common():
    """One record; a setting of the other server is unknown, so that nobody relies on it."""
    shared = descriptions(ServerSettings)
    assert shared.items() <= descriptions(ProcessSettings).items()
    assert shared.items() <= descriptions(ServeSettings).items()
    with pytest.raises(InvalidInputError, match="Unknown settings 'num_cpus'"):
        ProcessSettings.of({"num_cpus": 2}, {})
    with pytest.raises(InvalidInputError, match="Unknown settings 'workers'"):
        ServeSettings.of({"workers": 2}, {})


def test_options_take_precedence_over_the_environment(monkeypatch):
    """Each setting is both; texts become what is meant."""
    taken = []
    monkeypatch.setattr("marcorank.serving.running.serve", taken.append)
    monkeypatch.setenv("MARCORANK_MAX_BATCH", "7")
    monkeypatch.setenv("MARCORANK_PORT", "9000")
    monkeypatch.setenv("MARCORANK_QUIET", "true")
    assert main(["serve", "--port", "0", "--request-timeout-s", "2.5", "--max-length", "256"]) == 0
    assert taken == [ProcessSettings(port=0, max_batch=7, quiet=True, request_timeout_s=2.5, max_length=256)]


def test_the_help_shows_every_setting(capsys, monkeypatch):
    """With its default, and the API key only as an environment variable."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    for name, description in descriptions(ProcessSettings).items():
        assert f"{description.option or '--' + name.replace('_', '-')}" in shown
    assert "(default: 8080)" in shown
    assert "MARCORANK_SERVE_API_KEY" in command._EXAMPLES
    assert "--api-key " not in shown


def test_the_port_of_kubernetes_is_none_of_ours():
    """For a service called marcorank it sets `MARCORANK_PORT` to a URL in each container."""
    assert ProcessSettings.of({}, {"MARCORANK_PORT": "tcp://10.0.0.1:80"}) == ProcessSettings()
    assert ProcessSettings.of({}, {"MARCORANK_PORT": "80"}).port == 80


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("port", 65536, "expected at most 65535"),
        ("port", -1, "a whole number of at least 0"),
        ("workers", 0, "a whole number of at least 1"),
        ("max_queued", -1, "a whole number of at least 0"),
        ("body_timeout_s", 0, "a number above 0"),
        ("quiet", "perhaps", "expected one of true"),
        ("host", None, "a text"),
    ],
)
def test_a_wrong_setting_is_named(name, value, expected):
    """With what is expected."""
    with pytest.raises(InvalidInputError, match=f"`{name}` is .*{expected}"):
        ProcessSettings.of({name: value}, {})


def test_processes_share_the_cores():
    """One alone decides as a `Reranker` does; `threads` overrides it."""
    assert ProcessSettings().reranker().to_dict()["threads"] is None
    assert ProcessSettings(workers=1000).reranker().to_dict()["threads"] == 1
    assert ProcessSettings(workers=2).reranker().to_dict()["threads"] == max(1, usable_cores() // 2)
    assert ProcessSettings(workers=2, threads=3).reranker().to_dict()["threads"] == 3


def test_a_wrong_digest_is_named_but_not_shown(capsys):
    """It may be the key itself."""
    with pytest.raises(SystemExit):
        main(["serve", "--api-key-sha256", "secret"])
    shown = capsys.readouterr().err
    assert "argument --api-key-sha256: is not a SHA-256 in hex; expected 64 characters from 0-9 and a-f" in shown
    assert "secret" not in shown
