"""Settings of the server: where they come from, and what a wrong one says."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys

import pytest

from marcorank import InvalidInputError
from marcorank.ray import ServeSettings

KEY = "a-long-random-key"


def test_the_environment_and_arguments_set_everything():
    """Text is read as what is meant, and an argument wins over the environment."""
    settings = ServeSettings.of(
        {"max_replicas": 7, "num_cpus": "0.5", "precision": "fp32"},
        {
            "MARCORANK_MODEL": "./my-reranker",
            "MARCORANK_MAX_LENGTH": "256",
            "MARCORANK_PRECISION": "int8",
            "MARCORANK_TARGET_ONGOING": "2.5",
            "MARCORANK_ELSE": "nothing of ours",
        },
    )
    assert settings == ServeSettings(
        model="./my-reranker", max_length=256, precision="fp32", target_ongoing=2.5, max_replicas=7, num_cpus=0.5
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MAX_LENGHT", "MAX_LENGTH"),
        ("MODELS", "MODEL"),
        ("NUMCPUS", "NUM_CPUS"),
        ("SERVE_APIKEY", "SERVE_API_KEY"),
        ("REPLICAS", "MIN_REPLICAS"),
        ("MAX_BATCH_SIZE", "MAX_BATCH"),
        ("API_KEYS", "SERVE_API_KEY, the key that clients must send, or MARCORANK_API_KEY, for other servers"),
    ],
)
def test_a_variable_with_a_typo_is_an_error(name, meant):
    """A setting that was meant never has no effect, least of all the key; the value is not repeated."""
    message = f"The environment variable `MARCORANK_{name}` is unknown. Did you mean MARCORANK_{meant}"
    with pytest.raises(InvalidInputError, match=message) as caught:
        ServeSettings.of({}, {f"MARCORANK_{name}": KEY})
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("ELSE", ""), ("MODEL_NAME", " Did you mean MARCORANK_MODEL?")],
)
def test_a_variable_that_nothing_reads_is_logged(name, hint, caplog):
    """It may be one of the user's own, so it is a warning; the value is not repeated."""
    assert ServeSettings.of({}, {f"MARCORANK_{name}": KEY}) == ServeSettings()
    assert f"The environment variable MARCORANK_{name} is unknown and has no effect.{hint}" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "name", ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8000_TCP_ADDR", "API_PORT"]
)
def test_variables_of_kubernetes_are_none_of_ours(name, caplog):
    """A service called marcorank puts such variables into each container."""
    assert ServeSettings.of({}, {f"MARCORANK_{name}": "10.0.0.1"}) == ServeSettings()
    assert not caplog.text


def test_a_key_for_other_servers_does_not_protect_this_one(caplog):
    """The names are close; who sets the wrong one is told that the server is open."""
    assert ServeSettings.of({}, {"MARCORANK_API_KEY": KEY}).api_key_sha256 is None
    assert "takes requests without a key; set MARCORANK_SERVE_API_KEY to require one" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "more", [{"MARCORANK_SERVE_API_KEY": "other"}, {"MARCORANK_MODEL": "tei+http://127.0.0.1:8080"}, {}]
)
def test_a_key_for_other_servers_may_be_meant_so(more, caplog):
    """It is right beside a key of the server itself, and where another server computes the scores."""
    ServeSettings.of({}, {**more, **({"MARCORANK_API_KEY": KEY} if more else {})})
    assert not caplog.text


def test_without_anything_the_bundled_model_is_served():
    """No setting is needed."""
    assert ServeSettings.of({}, {}) == ServeSettings()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MODEL", "", "a text. Leave it out for the default"),
        ("BACKEND", "tensorrt", "one of 'auto', 'openvino'"),
        ("PRECISION", "fp8", "one of 'auto', 'fp32'"),
        ("LONG_PASSAGES", "drop", "one of 'truncate', 'windows'"),
        ("THREADS", "many", "a whole number of at least 1"),
        ("THREADS", "0", "a whole number of at least 1"),
        ("MAX_LENGTH", "15", "a whole number of at least 16"),
        ("MAX_BATCH", "1.5", "a whole number of at least 1"),
        ("NUM_CPUS", "-1", "a number of at least 0"),
        ("NUM_GPUS", "nan", "a number of at least 0"),
        ("TARGET_ONGOING", "0", "a number above 0"),
        ("MAX_REPLICAS", "", "a whole number of at least 1"),
        ("SKIM", "", "a text"),
        ("SKIM_KEEP", "0", "a whole number of at least 1"),
        ("BLEND", "1.5", "a number from 0 to 1"),
        ("MAX_SIMILARITY", "high", "a number from 0 to 1"),
        ("MAX_DROP", "0.3", "a Logistic fitted by"),
        ("API_KEY_SHA256", "1234", "64 characters from 0-9 and a-f"),
    ],
)
def test_a_wrong_variable_is_named(name, value, expected):
    """The error names the variable, and says what is expected."""
    with pytest.raises(InvalidInputError, match=f"`MARCORANK_{name}`.*{expected}"):
        ServeSettings.of({}, {f"MARCORANK_{name}": value})


def test_a_wrong_argument_is_named():
    """The error names the argument as it was given; an unknown one gets the list of those that exist."""
    with pytest.raises(InvalidInputError, match="`max_batch` is True; expected a whole number"):
        ServeSettings.of({"max_batch": True}, {})
    with pytest.raises(InvalidInputError, match=r"Unknown settings 'replicas'; expected some of .*min_replicas"):
        ServeSettings.of({"replicas": 2}, {})
    with pytest.raises(InvalidInputError, match="`max_replicas` is 1 and `min_replicas` is 2"):
        ServeSettings.of({"min_replicas": 2, "max_replicas": 1}, {})


def test_the_options_of_a_ranking_are_those_of_the_reranker():
    """They reach it, with the skimming model by its name; a cut at a drop needs other scores than a server has."""
    given = {"MARCORANK_SKIM": "bundled", "MARCORANK_SKIM_KEEP": "7", "MARCORANK_BLEND": "0.25"}
    with ServeSettings.of({"max_similarity": 0.8}, given).reranker() as reranker:
        shown = reranker.to_dict()
    assert shown.items() >= {"skim": "bundled", "skim_keep": 7, "blend": 0.25, "max_similarity": 0.8}.items()
    with pytest.raises(InvalidInputError, match="`max_drop` is not a setting of the server: its scores are sigmoids"):
        ServeSettings.of({"max_drop": 0.3}, {})


def test_of_the_key_only_a_digest_is_kept():
    """The key is in no repr, attribute or pickle."""
    settings = ServeSettings.of({}, {"MARCORANK_SERVE_API_KEY": KEY})
    assert settings.api_key_sha256 == hashlib.sha256(KEY.encode()).hexdigest()
    assert KEY.encode() not in pickle.dumps(settings)
    assert "sha256" not in repr(settings)


@pytest.mark.parametrize("key", ["", "with space", "with-newline\n", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_an_error(key):
    """An empty or broken key never means that no key is needed, and is not shown."""
    with pytest.raises(InvalidInputError, match=r"`MARCORANK_SERVE_API_KEY` is empty or has characters") as caught:
        ServeSettings.of({}, {"MARCORANK_SERVE_API_KEY": key})
    assert not key or key not in str(caught.value)


def test_a_key_among_the_arguments_is_an_error():
    """Ray shows arguments, so a key there is refused, and not repeated."""
    with pytest.raises(InvalidInputError, match="set MARCORANK_SERVE_API_KEY in the environment") as caught:
        ServeSettings.of({"api_key": KEY}, {})
    assert KEY not in str(caught.value)


def test_without_ray_the_package_says_how_to_get_it():
    """Importing `marcorank.ray` without Ray names the pip command."""
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from marcorank import MissingExtraError\n"
        "try: import marcorank.ray\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "`marcorank.ray` needs Ray: pip install 'marcorank[ray]'"


def test_importing_the_package_does_not_import_ray():
    """Names are resolved when they are used."""
    code = "import sys, marcorank.ray; print('ray' in sys.modules, marcorank.ray.ServeSettings(), 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.startswith("False ServeSettings(backend='auto'")
    assert done.stdout.strip().endswith("False")
