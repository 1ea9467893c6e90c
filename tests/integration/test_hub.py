"""Models from the hub: a real HTTP server on loopback, real huggingface_hub, real files."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

import hub_server
from hub_server import HubServer
from marcorank import InvalidInputError, ModelLoadError, Reranker, UnknownModelError
from marcorank._inference.backends.openvino import shared_core
from marcorank._models import catalogue
from marcorank._models.hub import HubModel
from random_models import with_weights_beside
from untrusted_server import untrusted_server

NEW, OLD = catalogue.find("ms-marco-MiniLM-L6-v2").spellings
PINNED = catalogue.find(NEW).revision
OTHER = "1" * 40
LATER = "2" * 40
OWN = "somebody/own-reranker"
MAJOR = int(huggingface_hub.__version__.split(".")[0])
QUERY = "how many people live in Berlin?"
PASSAGES = ["museum of history", "three million registered inhabitants of Berlin", "river spree"]
TEXTS = {"config.json": b"{}", "tokenizer.json": b"{'tokenizer'}", "tokenizer_config.json": b"{}"}


def set_endpoint(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    for module in (constants, file_download):  # 0.x keeps a copy
        monkeypatch.setattr(
            module, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}", raising=False
        )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that huggingface_hub takes for the hub, with the network allowed and nothing cached."""
    server = HubServer()
    # What HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE set when huggingface_hub is imported.
    set_endpoint(monkeypatch, server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "home" / "assets"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # huggingface_hub waits seconds between its tries.
    monkeypatch.setattr(time, "sleep", lambda _: None)
    yield server
    server.stop()
    # Connections are kept open beyond the server, and a later server may get its port.
    getattr(huggingface_hub, "close_session", lambda: None)()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def model(name, cache, **settings):
    return HubModel(name, cache_folder=str(cache), **settings)


def asked_for(server, ending):
    return [request for request in server.requests if request.endswith(ending)]


def test_the_first_file_that_the_repository_has_is_fetched(hub, cache):
    """Candidates are tried in their order, and one that the repository lacks is passed over."""
    hub.add(OWN, OTHER, {**TEXTS, "b.onnx": b"second", "c.onnx": b"third"})
    assert model(OWN, cache).fetch("a.onnx", "b.onnx", "c.onnx").read_bytes() == b"second"
    assert not asked_for(hub, "c.onnx")


def test_what_a_repository_does_not_have_is_none(hub, cache):
    """An optional file that is missing is no error."""
    hub.add(OWN, OTHER, TEXTS)
    assert model(OWN, cache).fetch("onnx/model.onnx", "model.onnx") is None


def test_the_pinned_commit_is_asked_for(hub, cache):
    """A model of the catalogue comes from the commit that the catalogue names, whatever `main` is."""
    hub.add(NEW, PINNED, {"config.json": b"pinned"})
    hub.add(NEW, LATER, {"config.json": b"later"})
    assert model(NEW, cache).fetch("config.json").read_bytes() == b"pinned"
    assert set(hub.requests) == {
        f"HEAD /{NEW}/resolve/{PINNED}/config.json",
        f"GET /{NEW}/resolve/{PINNED}/config.json",
    }


def test_a_given_revision_is_taken(hub, cache):
    """A branch, tag or commit that was asked for goes before the pinned one."""
    hub.add(NEW, PINNED, {"config.json": b"pinned"})
    hub.add(NEW, LATER, {"config.json": b"later"}, branch="next")
    for revision in ("next", LATER):
        assert model(NEW, cache, revision=revision).fetch("config.json").read_bytes() == b"later"


def test_a_cached_commit_needs_no_network(hub, cache):
    """A commit never changes: neither what it has nor what it lacks is asked for twice."""
    hub.add(NEW, PINNED, TEXTS)
    files = ("onnx/model.onnx", "config.json")
    first = model(NEW, cache).fetch(*files)
    hub.requests.clear()
    assert model(NEW, cache).fetch(*files) == first
    assert model(NEW, cache).fetch("onnx/model.onnx") is None
    assert hub.requests == []


def test_all_files_come_from_one_commit(hub, cache):
    """A branch that moves between two files does not mix two versions of a model."""
    hub.add(OWN, OTHER, {"config.json": b"old config", "model.onnx": b"old model"})
    files = model(OWN, cache)
    files.fetch("config.json")
    hub.add(OWN, LATER, {"config.json": b"new config", "model.onnx": b"new model"})
    assert files.fetch("model.onnx").read_bytes() == b"old model"
    assert model(OWN, cache).fetch("model.onnx").read_bytes() == b"new model"


def test_a_branch_is_taken_from_the_cache_when_the_network_is_down(hub, cache):
    """Without a server, a model outside the catalogue loads as it was last seen."""
    hub.add(OWN, OTHER, TEXTS)
    first = model(OWN, cache).fetch("model.onnx", "config.json")
    hub.stop()
    assert model(OWN, cache).fetch("model.onnx", "config.json") == first


def test_a_model_cached_under_its_old_name_is_not_fetched_again(hub, cache):
    """The spelling that the cache holds is used."""
    hub.add(OLD, PINNED, TEXTS)
    hub.add(NEW, PINNED, TEXTS)
    huggingface_hub.hf_hub_download(OLD, "config.json", revision=PINNED, cache_dir=cache)
    hub.requests.clear()
    assert "ms-marco-MiniLM-L-6-v2" in str(model(NEW, cache).fetch("config.json"))
    assert hub.requests == []


def test_a_branch_cached_under_the_old_name_is_only_checked(hub, cache):
    """The spelling that the cache holds is used for a branch too; what has not changed is not sent again."""
    hub.add(OLD, PINNED, TEXTS)
    hub.add(NEW, PINNED, TEXTS)
    huggingface_hub.hf_hub_download(OLD, "config.json", cache_dir=cache)
    hub.requests.clear()
    assert "ms-marco-MiniLM-L-6-v2" in str(model(NEW, cache, revision="main").fetch("config.json"))
    assert set(hub.requests) == {f"HEAD /{OLD}/resolve/main/config.json"}


def test_the_old_name_redirects(hub, cache):
    """Files that are missing beside those cached under the old name come through the hub's redirect."""
    hub.add(NEW, PINNED, TEXTS)
    hub.renamed[OLD] = NEW
    huggingface_hub.hf_hub_download(OLD, "config.json", revision=PINNED, cache_dir=cache)
    files = model(NEW, cache)
    files.fetch("config.json")
    assert files.fetch("tokenizer.json").read_bytes() == TEXTS["tokenizer.json"]
    assert files.fetch("tokenizer.json").parent == files.fetch("config.json").parent


def test_a_mirror_that_knows_only_the_old_name(hub, cache):
    """Online, a name that the server does not know is tried in its other spelling."""
    hub.add(OLD, PINNED, TEXTS)
    assert model(NEW, cache).fetch("config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("spelling", [NEW, OLD])
@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE"])
def test_offline_both_spellings_are_found_without_any_request(hub, cache, monkeypatch, spelling, how):
    """Offline, it does not matter under which name a model was cached, and nothing is sent."""
    hub.add(spelling, PINNED, TEXTS)
    huggingface_hub.hf_hub_download(spelling, "config.json", revision=PINNED, cache_dir=cache)
    hub.requests.clear()
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    files = model(OLD, cache, local_files_only=True if how == "local_files_only" else None)
    assert files.fetch("config.json").read_bytes() == b"{}"
    assert files.fetch("tokenizer_config.json") is None
    assert hub.requests == []


@pytest.mark.parametrize("network", ["off", "down"])
def test_another_cached_commit_will_do_where_the_pinned_one_cannot_be_had(hub, cache, caplog, network):
    """Without network, a model cached as `main` before marcorank pinned a commit still loads, and the log says so."""
    hub.add(OLD, OTHER, {"config.json": b"older"})
    huggingface_hub.hf_hub_download(OLD, "config.json", cache_dir=cache)
    if network == "down":
        hub.stop()
    with caplog.at_level(logging.INFO, logger="marcorank"):
        files = model(NEW, cache, local_files_only=network == "off")
        assert files.fetch("config.json").read_bytes() == b"older"
    assert OTHER in caplog.text


def test_a_revision_that_was_asked_for_has_no_substitute(hub, cache):
    """Offline, an explicit revision is that revision or an error."""
    hub.add(NEW, OTHER, TEXTS)
    model(NEW, cache, revision="main").fetch("config.json")
    with pytest.raises(ModelLoadError, match=f"{NEW} and {OLD} at {PINNED} in"):
        model(NEW, cache, revision=PINNED, local_files_only=True).fetch("config.json")


def test_not_cached_says_where_it_looked_and_what_to_do(hub, cache):
    """Offline with an empty cache, the message names spellings, folder and the way out; nothing is sent."""
    with pytest.raises(ModelLoadError, match="not cached and the network is off") as caught:
        model(NEW, cache, local_files_only=True).fetch("onnx/model.onnx")
    for part in (
        NEW,
        OLD,
        str(cache),
        "local_files_only=True",
        "onnx/model.onnx",
        "marcorank models download",
        "folder",
    ):
        assert part in str(caught.value)
    assert hub.requests == []
    assert not cache.exists()


def test_a_model_that_does_not_exist(hub, cache):
    """An unknown repository is named with near matches, and the message says that it may be private."""
    with pytest.raises(UnknownModelError, match=rf"private.*Did you mean .*{NEW}") as caught:
        model("cross-encoder/ms-marco-MiniLM-L6-v3", cache).fetch("config.json")
    assert isinstance(caught.value.__cause__, huggingface_hub.errors.RepositoryNotFoundError)


def test_a_name_that_the_hub_does_not_allow(hub, cache):
    """A malformed name is no model, online and off."""
    for local_files_only in (False, True):
        with pytest.raises(UnknownModelError, match="not a name of the form 'owner/model'"):
            model("owner/na me", cache, local_files_only=local_files_only).fetch("config.json")
    assert hub.requests == []


def test_a_gated_model_asks_for_consent(hub, cache):
    """Gated is told apart from missing."""
    hub.add(OWN, OTHER, TEXTS)
    hub.gated.add(OWN)
    with pytest.raises(ModelLoadError, match=f"is gated. Accept its terms on {hub.url}/{OWN}"):
        model(OWN, cache).fetch("config.json")


@pytest.mark.parametrize("revision", ["no-branch", OTHER])
def test_a_revision_that_does_not_exist(hub, cache, revision):
    """The message names the revision that was not found."""
    hub.add(NEW, PINNED, TEXTS)
    with pytest.raises(ModelLoadError, match=f"no revision '{revision}' on {hub.url}"):
        model(NEW, cache, revision=revision).fetch("config.json")


def test_a_private_model_opens_with_the_right_token(hub, cache):
    """The token is sent to the server, and only there."""
    hub.add(OWN, OTHER, TEXTS)
    hub.private.add(OWN)
    assert model(OWN, cache, token=hub.token).fetch("config.json")
    assert set(hub.authorizations) == {f"Bearer {hub.token}"}
    with pytest.raises(UnknownModelError, match="private and your `token`"):
        model(OWN, cache / "other").fetch("config.json")


def test_a_wrong_token_is_refused_and_never_shown(hub, cache):
    """A token is in no message, repr or cause."""
    hub.add(OWN, OTHER, TEXTS)
    files = model(OWN, cache, token="hf_secret")
    with pytest.raises(ModelLoadError, match="the token is missing or was refused") as caught:
        files.fetch("config.json")
    shown = [repr(files)]
    error = caught.value
    while error is not None:
        shown.append(str(error))
        error = error.__cause__ or error.__context__
    assert "hf_secret" not in " ".join(shown)


@pytest.mark.parametrize("token", ["hf_se cret", "hf_secret\n", "hf_secrét"])
def test_a_token_that_no_header_can_hold(token):
    """A token with a line end from a file is refused early, before an HTTP library shows it."""
    with pytest.raises(InvalidInputError, match="contains whitespace or non-ASCII characters") as caught:
        Reranker(OWN, token=token)
    assert "secr" not in str(caught.value)


def test_credentials_in_the_address_of_the_hub_are_not_shown(hub, cache, monkeypatch):
    """An endpoint with a password appears without it."""
    hub.stop()
    set_endpoint(monkeypatch, hub.url.replace("//", "//user:password@"))
    with pytest.raises(ModelLoadError, match=f"downloaded from {hub.url} at") as caught:
        model(OWN, cache).fetch("config.json")
    assert "password" not in str(caught.value)


def test_a_refused_connection(hub, cache):
    """No server: the message says so at once, and how to work without network."""
    hub.stop()
    with pytest.raises(ModelLoadError, match=r"config.json cannot be downloaded from .*refused.*HF_HUB_OFFLINE=1"):
        model(OWN, cache).fetch("config.json")


def test_a_host_that_has_no_address(hub, cache, monkeypatch):
    """A name that DNS does not know is an error of the same kind."""
    set_endpoint(monkeypatch, "http://no-such-host.invalid")
    with pytest.raises(ModelLoadError, match=r"cannot be downloaded from http://no-such-host.invalid at"):
        model(OWN, cache).fetch("config.json")


def test_a_certificate_that_nobody_signed(hub, cache, tmp_path, monkeypatch):
    """Behind the proxy of a company the message names the variable for its certificate."""
    with untrusted_server(tmp_path) as (host, _):
        set_endpoint(monkeypatch, f"https://{host}")
        with pytest.raises(ModelLoadError, match=r"cannot be downloaded from https.* Set SSL_CERT_FILE to a file"):
            model(OWN, cache).fetch("config.json")


@pytest.mark.skipif(MAJOR < 1, reason="0.x takes REQUESTS_CA_BUNDLE")
def test_certificates_that_cannot_be_read(hub, cache, tmp_path, monkeypatch):
    """A wrong SSL_CERT_FILE is not taken for a full disk."""
    (tmp_path / "empty.pem").touch()
    for name in ("none.pem", "empty.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
        huggingface_hub.close_session()
        with pytest.raises(
            ModelLoadError, match=r"cannot be downloaded .* certificates cannot be read; set SSL_CERT_FILE"
        ):
            model(OWN, cache).fetch("config.json")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_in_trouble(hub, cache, status):
    """The status of a failing server is in the message."""
    hub.fault = hub_server.answers(status)
    with pytest.raises(ModelLoadError, match=f"the server returned status {status}"):
        model(OWN, cache).fetch("config.json")


def test_a_server_that_is_no_hub(hub, cache):
    """A captive portal or a web server answers 200 to everything and is still no hub."""
    hub.fault = hub_server.answers(200)
    with pytest.raises(ModelLoadError, match="FileMetadataError"):
        model(OWN, cache).fetch("config.json")


def test_a_server_that_never_answers(hub, cache, monkeypatch):
    """A server that accepts and is silent gives an error after one timeout, not a hang."""
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.fault = hub_server.hangs
    with pytest.raises(ModelLoadError, match="the request timed out"):
        model(OWN, cache).fetch("config.json")
    if MAJOR >= 1:  # 0.x asks some more times
        assert len(hub.requests) == 1


def test_a_download_that_stands_still(hub, cache, monkeypatch):
    """A server that stops in the middle of a file gives an error, and the file is not taken for complete."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.add(OWN, OTHER, {**TEXTS, "model.onnx": b"weights " * 1000})
    model(OWN, cache).fetch("config.json")
    hub.fault = hub_server.hangs_in_files
    with pytest.raises(ModelLoadError, match="the request timed out"):
        model(OWN, cache).fetch("model.onnx")
    assert not list(cache.rglob("model.onnx"))


@pytest.mark.parametrize("fault", [hub_server.breaks_off(), hub_server.sends_too_little], ids=["breaks off", "short"])
def test_a_broken_download_leaves_nothing_behind_and_can_be_repeated(hub, cache, fault):
    """Half a file is an error and never a file; the next try has all of it."""
    weights = bytes(range(256)) * 400
    hub.add(OWN, OTHER, {**TEXTS, "model.onnx": weights})
    model(OWN, cache).fetch("config.json")
    hub.fault = fault
    with pytest.raises(ModelLoadError, match="the download was interrupted"):
        model(OWN, cache).fetch("model.onnx")
    assert not list(cache.rglob("model.onnx"))
    if MAJOR >= 2:  # older ones keep what came, and go on from there
        assert not list(cache.rglob("*.incomplete"))
    assert model(OWN, cache, local_files_only=True).fetch("model.onnx") is None
    hub.fault = None
    assert model(OWN, cache).fetch("model.onnx").read_bytes() == weights


def test_a_cache_that_cannot_be_written(hub, cache):
    """A fault of the disk is told apart from one of the network, with the folder."""
    hub.add(OWN, OTHER, TEXTS)
    cache.write_text("a file, not a folder")
    with pytest.raises(ModelLoadError, match=f"cannot be saved to '{cache}'.*another `cache_folder`"):
        model(OWN, cache).fetch("config.json")


def test_nothing_is_printed_and_progress_bars_are_restored(hub, cache, capfd):
    """A download is silent, and other users of huggingface_hub keep their progress bars."""
    hub.add(OWN, OTHER, {**TEXTS, "model.safetensors": bytes(100_000)})
    assert not huggingface_hub.utils.are_progress_bars_disabled()
    model(OWN, cache).snapshot(allow_pickle=False)
    assert not huggingface_hub.utils.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_progress_bars_that_were_asked_for_stay(hub, cache, monkeypatch):
    """HF_HUB_DISABLE_PROGRESS_BARS=0 is the user's word, and no warning comes of it."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", False)
    hub.add(OWN, OTHER, TEXTS)
    seen = []
    hub.fault = lambda *_: seen.append(huggingface_hub.utils.are_progress_bars_disabled())
    model(OWN, cache).fetch("config.json")
    assert seen
    assert not any(seen)


def test_the_export_folder_depends_on_name_and_commit_and_is_not_made(hub, cache):
    """An export belongs to one commit, under one name for all spellings, beside the hub's own folders."""
    hub.add(NEW, PINNED, TEXTS)
    hub.add(OWN, OTHER, TEXTS)
    folder = model(NEW, cache).export_folder()
    assert folder == model(NEW, cache, local_files_only=True).export_folder()
    assert folder.parts[-2:] == ("cross-encoder--ms-marco-MiniLM-L6-v2", PINNED)
    assert cache / "marcorank" in folder.parents
    assert not (cache / "marcorank").exists()
    assert Path(constants.HF_ASSETS_CACHE) in HubModel(OWN).export_folder().parents
    assert not Path(constants.HF_ASSETS_CACHE).exists()


def test_the_torch_folder_holds_neither_pickles_nor_code_nor_other_engines(hub, cache):
    """What comes down is text and safetensors; the rest of the repository is left alone."""
    wanted = {**TEXTS, "model.safetensors": b"weights", "vocab.txt": b"words", "1_Head/config.json": b"{}"}
    pickles = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "flax_model.msgpack")
    other = ("onnx/model.onnx", "openvino/openvino_model.bin", "openvino/config.json", "tf_model.h5", "model.py")
    unwanted = dict.fromkeys((*pickles, *other), b"x")
    hub.add(OWN, OTHER, {**wanted, **unwanted})
    for allow_pickle in (False, True):
        folder = model(OWN, cache).snapshot(allow_pickle=allow_pickle)
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(wanted)
    assert not any(request.endswith(tuple(unwanted)) for request in hub.requests)


def test_pickled_weights_need_permission(hub, cache):
    """Pickles are refused by name, without a byte of them being fetched, and come when they are allowed."""
    hub.add(OWN, OTHER, {**TEXTS, "pytorch_model.bin": b"pickle", "training_args.bin": b"pickle"})
    with pytest.raises(ModelLoadError, match=r"only pickled weights \(pytorch_model.bin\).*allow_pickle=True"):
        model(OWN, cache).snapshot(allow_pickle=False)
    assert not asked_for(hub, ".bin")
    assert (model(OWN, cache).snapshot(allow_pickle=True) / "pytorch_model.bin").read_bytes() == b"pickle"
    assert not asked_for(hub, "training_args.bin")


def test_a_repository_without_weights(hub, cache):
    """No weights at all is an error that lists what there is."""
    hub.add(OWN, OTHER, {**TEXTS, "README.md": b"soon"})
    with pytest.raises(ModelLoadError, match=r"has no weights: expected .*found 'README.md', 'config.json'"):
        model(OWN, cache).snapshot(allow_pickle=True)


def test_a_repository_without_a_config(hub, cache):
    """What has no config.json is no model."""
    hub.add(OWN, OTHER, {"README.md": b"soon"})
    with pytest.raises(ModelLoadError, match=r"has no config.json in .* at revision 'main'"):
        model(OWN, cache).snapshot(allow_pickle=False)


def test_a_repository_with_an_adapter(hub, cache):
    """A LoRA adapter without its base model is named as what it is."""
    hub.add(OWN, OTHER, {"adapter_config.json": b"{}", "adapter_model.safetensors": b""})
    with pytest.raises(ModelLoadError, match=r"is a LoRA adapter .*Merge it into its base model first"):
        model(OWN, cache).snapshot(allow_pickle=False)


def test_weights_that_are_not_cached_are_not_missing(hub, cache):
    """Offline, a model cached for onnx is not said to lack the weights for torch."""
    hub.add(NEW, PINNED, {**TEXTS, "model.safetensors": b"weights"})
    model(NEW, cache).fetch("config.json")
    with pytest.raises(ModelLoadError, match=r"not cached and the network is off .*looked for the weights"):
        model(NEW, cache, local_files_only=True).snapshot(allow_pickle=False)


@pytest.fixture
def published(hub, small_bert):
    """A hub that has a small model under the name and commit of MiniLM-L6."""
    hub.add(NEW, PINNED, small_bert)
    hub.renamed[OLD] = NEW
    return hub


def test_onnx_from_the_hub_then_without_it(published, cache, small_bert):
    """A model named in the old spelling is fetched once, ranks like its folder, and needs the server no more."""
    expected = Reranker(small_bert, backend="onnx").rank(QUERY, PASSAGES)
    first = Reranker(OLD, backend="onnx", cache_folder=cache).rank(QUERY, PASSAGES)
    assert [result.logit for result in first] == [result.logit for result in expected]
    assert not asked_for(published, ".safetensors")
    published.stop()
    for name in (OLD, NEW, "ms-marco-MiniLM-L6-v2"):
        assert Reranker(name, backend="onnx", cache_folder=cache).rank(QUERY, PASSAGES) == first


def test_torch_from_the_hub_equals_onnx(published, cache):
    """Both backends take the same commit and agree; torch fetches no ONNX file, and works again without a server."""
    torch = Reranker(NEW, backend="torch", precision="fp32", device="cpu", cache_folder=cache).score(QUERY, PASSAGES)
    assert not asked_for(published, ".onnx")
    onnx = Reranker(NEW, backend="onnx", cache_folder=cache).score(QUERY, PASSAGES)
    assert torch == pytest.approx(onnx, abs=3e-4)
    published.stop()
    again = Reranker(NEW, backend="torch", precision="fp32", device="cpu", cache_folder=cache).score(QUERY, PASSAGES)
    assert again == pytest.approx(torch, abs=1e-6)


def test_local_files_only_sends_nothing(published, cache):
    """The first use offline fails without a request; after one use online it works, still without a request."""
    offline = Reranker(NEW, backend="onnx", cache_folder=cache, local_files_only=True)
    with pytest.raises(ModelLoadError, match="not cached and the network is off"):
        offline.rank(QUERY, PASSAGES)
    assert published.requests == []
    online = Reranker(NEW, backend="onnx", cache_folder=cache).rank(QUERY, PASSAGES)
    published.requests.clear()
    assert offline.rank(QUERY, PASSAGES) == online
    assert published.requests == []


def test_a_cache_filled_by_other_tools_works_offline(published, cache):
    """A full copy of the repository, made by `hf download`, is enough: nothing more is looked for."""
    huggingface_hub.snapshot_download(OLD, cache_dir=cache)
    published.requests.clear()
    assert len(Reranker(OLD, backend="onnx", cache_folder=cache).rank(QUERY, PASSAGES)) == 3
    assert published.requests == []
    published.stop()
    for settings in ({}, {"local_files_only": True}):
        assert len(Reranker(NEW, backend="onnx", cache_folder=cache, **settings).rank(QUERY, PASSAGES)) == 3


def test_a_prompt_that_cannot_be_fetched_is_not_left_out(hub, cache, small_bert):
    """While the hub fails for one small file, a model is not ranked as if it had no such file."""
    hub.add(OWN, OTHER, small_bert)
    hub.fault = hub_server.answers_for("config_sentence_transformers.json", 503)
    with pytest.raises(ModelLoadError, match=r"config_sentence_transformers\.json cannot be downloaded .* status 503"):
        Reranker(OWN, backend="onnx", cache_folder=cache).warm_up()
    hub.fault = None
    Reranker(OWN, backend="onnx", cache_folder=cache).warm_up()


def test_an_onnx_model_without_its_tokenizer(hub, cache, small_bert):
    """A needed file that is missing is named with the place where it was looked for."""
    files = {"onnx/model.onnx": (small_bert / "onnx" / "model.onnx").read_bytes()}
    hub.add(OWN, OTHER, {**files, "config.json": (small_bert / "config.json").read_bytes()})
    with pytest.raises(ModelLoadError, match=f"no tokenizer.json in {hub.url} at revision '{OTHER}'"):
        Reranker(OWN, backend="onnx", cache_folder=cache).warm_up()


def test_an_exported_file_is_found(hub, cache, small_bert):
    """Where the hub has no ONNX file, the one that was exported for this commit is used."""
    from marcorank._models.export import export_onnx

    hub.add(OWN, OTHER, small_bert)
    hub.commits[OWN][OTHER].pop("onnx/model.onnx")
    reranker = Reranker(OWN, backend="onnx", cache_folder=cache)
    with pytest.raises(ModelLoadError, match=r"has no ONNX file in .*marcorank models export"):
        reranker.warm_up()
    export_onnx(small_bert, model(OWN, cache).export_folder())
    assert len(reranker.rank(QUERY, PASSAGES)) == 3


def test_a_branch_that_moves_gives_the_new_model(hub, cache, tmp_path, small_bert):
    """A new reranker follows `main` of a model outside the catalogue; one that is loaded stays as it is."""
    hub.add(OWN, OTHER, small_bert)
    loaded = Reranker(OWN, backend="onnx", cache_folder=cache)
    before = loaded.rank(QUERY, PASSAGES)
    config = json.loads((small_bert / "config.json").read_text())
    files = {
        **hub.commits[OWN][OTHER],
        "config.json": json.dumps({**config, "id2label": {"0": "a", "1": "b"}}).encode(),
    }
    hub.add(OWN, LATER, files)
    assert loaded.rank(QUERY, PASSAGES) == before
    with pytest.raises(ModelLoadError, match="has 2 labels"):
        Reranker(OWN, backend="onnx", cache_folder=cache).warm_up()


RANK = f"""
from marcorank import Reranker
ranking = Reranker({OLD!r}, backend="onnx").rank({QUERY!r}, {PASSAGES!r})
print([round(result.logit, 3) for result in ranking])
"""


def run_python(code, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(  # noqa: S603 - the code is our own
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**kept, **variables},
    )
    return SimpleNamespace(status=done.returncode, out=done.stdout.strip(), err=done.stderr)


def test_a_fresh_process_with_the_real_environment(published, tmp_path, small_bert):
    """HF_ENDPOINT and HF_HOME are followed at first use; then HF_HUB_OFFLINE=1 works, and nothing is printed."""
    home = {"HF_HOME": str(tmp_path / "fresh"), "HF_ENDPOINT": published.url}
    first = run_python(RANK, **home)
    assert (first.status, first.err) == (0, "")
    expected = [round(result.logit, 3) for result in Reranker(small_bert, backend="onnx").rank(QUERY, PASSAGES)]
    assert json.loads(first.out) == pytest.approx(expected, abs=2e-3)
    assert f"GET /{NEW}/resolve/{PINNED}/onnx/model.onnx" in published.requests
    published.stop()
    second = run_python(RANK, HF_HUB_OFFLINE="1", **home)
    assert (second.status, second.err, second.out) == (0, "", first.out)


def test_a_fresh_process_offline_with_the_old_name_in_the_cache(published, tmp_path):
    """A cache that an older tool filled under the old name serves the model offline."""
    cache = tmp_path / "fresh" / "hub"
    huggingface_hub.snapshot_download(OLD, revision=PINNED, cache_dir=cache)
    published.requests.clear()
    done = run_python(RANK, HF_HOME=str(cache.parent), HF_ENDPOINT=published.url, HF_HUB_OFFLINE="1")
    assert (done.status, done.err) == (0, "")
    assert published.requests == []


@pytest.mark.parametrize("locations", [["model.onnx_data"], ["model.onnx.data"], ["weights.0", "weights.1", "more/w"]])
def test_a_large_model_is_read_from_the_cache(hub, cache, small_bert, tmp_path, locations):
    """Its weights are in files of any name, which the graph tells; the cache has links to all of them."""
    hub.add(OWN, OTHER, with_weights_beside(small_bert, tmp_path / "large", *locations))
    expected = Reranker(small_bert, backend="onnx").score(QUERY, PASSAGES)
    for backend in ("onnx", "openvino", "auto"):
        for offline in (None, True):
            large = Reranker(OWN, backend=backend, precision="fp32", cache_folder=cache, local_files_only=offline)
            assert large.score(QUERY, PASSAGES) == pytest.approx(expected, abs=1e-4)
    assert len([request for request in hub.requests if request.startswith("GET") and "/onnx/" in request]) == 1 + len(
        locations
    )
    assert not list(cache.rglob("marcorank*"))


@pytest.mark.parametrize("linking", ["hardlink_to", "copies"])
def test_weights_behind_links_are_read_where_the_file_system_has_no_hard_links(
    hub, cache, small_bert, tmp_path, monkeypatch, linking
):
    """They are copied; if that fails too, the error names the file and the reason."""
    hub.add(OWN, OTHER, with_weights_beside(small_bert, tmp_path / "large", "model.onnx_data"))

    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "hardlink_to", fails)
    large = Reranker(OWN, backend="openvino", precision="fp32", cache_folder=cache)
    if linking == "copies":
        monkeypatch.setattr("marcorank._inference.backends.graph_files.shutil.copyfile", fails)
        with pytest.raises(ModelLoadError, match=r"weights of '.*model.onnx' cannot be linked or copied: .*No space"):
            large.warm_up()
    else:
        expected = Reranker(small_bert, backend="onnx").score(QUERY, PASSAGES)
        assert large.score(QUERY, PASSAGES) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_missing_weights_of_a_large_model_are_named(hub, cache, small_bert, tmp_path, backend):
    """A repository that has the graph without its weights."""
    hub.add(OWN, OTHER, with_weights_beside(small_bert, tmp_path / "large", "model.onnx.data"))
    hub.commits[OWN][OTHER].pop("onnx/model.onnx.data")
    match = rf"model.onnx' has its weights in 'model.onnx.data' beside it; found no such file in {hub.url}"
    with pytest.raises(ModelLoadError, match=match):
        Reranker(OWN, backend=backend, cache_folder=cache).warm_up()


def test_openvino_reads_the_files_that_the_repository_has(hub, cache, small_bert):
    """One ONNX file serves both CPU backends; the IR is fetched, weights included, where there is no ONNX file."""
    import openvino

    texts = {name: (small_bert / name).read_bytes() for name in TEXTS}
    graph = (small_bert / "onnx/model.onnx").read_bytes()
    openvino.save_model(shared_core().read_model(small_bert / "onnx/model.onnx"), cache / "model.xml")
    ir = {f"openvino/openvino_model.{end}": (cache / f"model.{end}").read_bytes() for end in ("xml", "bin")}
    expected = Reranker(small_bert, backend="openvino", precision="int8").score(QUERY, PASSAGES)

    hub.add(OWN, OTHER, {**texts, **ir, "onnx/model.onnx": graph})
    both = Reranker(OWN, backend="openvino", precision="int8", cache_folder=cache)
    assert both.score(QUERY, PASSAGES) == pytest.approx(expected)
    assert not [request for request in hub.requests if request.startswith("GET") and "openvino" in request]

    hub.add("somebody/ir-only", LATER, {**texts, **ir})
    for offline in (None, True):
        alone = Reranker(
            "somebody/ir-only", backend="openvino", precision="fp32", cache_folder=cache, local_files_only=offline
        )
        assert (
            alone.rank(QUERY, PASSAGES)[0].index
            == Reranker(small_bert, precision="fp32").rank(QUERY, PASSAGES)[0].index
        )
