"""The fingerprint of a scorer, and the jobs that are refused because theirs differs."""

from __future__ import annotations

import json
import pickle
import shutil
import time

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from hub_server import HubServer
from marcorank import InvalidInputError, Reranker
from marcorank._files import sha256_of
from marcorank._inference.backends import openvino as openvino_backend
from marcorank._models import fingerprint as module
from marcorank._models.fingerprint import advice, differences
from marcorank._models.loading import load_scorer
from marcorank.errors import ModelLoadError
from marcorank.jobs.planning import plan
from marcorank.ray.datasets import RankShard
from marcorank.reranker import scorer_fingerprint
from marcorank.settings import RerankerSettings
from marcorank.testing import WordOverlapScorer
from random_models import with_weights_beside

COMMITS = ("a" * 40, "b" * 40)
NAME = "owner/model"


@pytest.fixture
def candidates(tmp_path):
    """A file of four requests."""
    path = tmp_path / "candidates.jsonl"
    row = json.dumps({"query": "lake", "passages": ["a lake", "a house"]})
    path.write_text(f"{row}\n" * 4, encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path, small_bert):
    """A model's folder that may be changed."""
    return shutil.copytree(small_bert, tmp_path / "model")


@pytest.fixture
def processor(monkeypatch):
    """Return a function that gives the processor bf16 instructions or takes them away, for OpenVINO too.

    OpenVINO computes in fp32 what it calls bf16 then, as it may run on a processor without it.
    """

    def set_processor(*, bf16, openvino_agrees=True):
        features = frozenset({"avx2", "avx512_bf16"} if bf16 else {"avx2"})
        monkeypatch.setattr("marcorank._models.selection.cpu_features", lambda: features)
        capability = "FP32" if bf16 and openvino_agrees else "NOT HERE"
        monkeypatch.setitem(openvino_backend._PRECISIONS, "bf16", ("f32", capability))

    return set_processor


@pytest.fixture
def without(monkeypatch):
    """Return a function that makes backends look as if they were not installed."""

    def set_missing(*missing):
        for name in ("selection", "loading"):
            monkeypatch.setattr(f"marcorank._models.{name}.installed", lambda backend: backend not in missing)

    return set_missing


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that huggingface_hub takes for the hub."""
    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    for copy in (constants, file_download):  # 0.x keeps a copy
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(copy, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    yield server
    server.stop()
    getattr(huggingface_hub, "close_session", lambda: None)()


def begin(candidates, out, reranker):
    """Rank the first of two shards."""
    planned = plan(candidates, out, reranker, shard_size=2)
    planned.job.rank(reranker, planned.shards[0])


def resume(candidates, out, reranker):
    return plan(candidates, out, reranker, shard_size=2)


def test_everything_that_decides_the_logits_is_in_it(model, processor, without):
    """The settings as they are resolved here, and the digests of the files that are read."""
    processor(bf16=False)
    without("torch")
    reranker = Reranker(model, max_length=64, max_query_tokens=8, long_passages="windows", activation="sigmoid")
    found = scorer_fingerprint(reranker)
    read = [model / "config.json", model / "tokenizer.json", model / "tokenizer_config.json", *model.rglob("*.onnx")]
    assert found.pop("marcorank")
    assert found == {
        "model": "model",
        "commit": None,
        "backend": "openvino",
        "precision": "fp32",
        "device": "cpu",
        "max_length": 64,
        "max_query_tokens": 8,
        "long_passages": "windows",
        "special_tokens": "parse",
        "instruction": None,
        "files": {path.name: sha256_of(path) for path in read if path.exists()},
    }


@pytest.mark.parametrize("setting", [{}, {"backend": "onnx"}, {"backend": "torch"}, {"backend": "openvino"}])
def test_it_names_what_is_loaded(model, setting):
    """Backend, precision and device are those of the backend that loading ends with."""
    found = scorer_fingerprint(Reranker(model, **setting))
    loaded = load_scorer(RerankerSettings(str(model), **setting)).scheduler.backend
    assert (found["backend"], found["precision"], found["device"]) == (loaded.name, loaded.precision, loaded.device)


def test_openvino_decides_where_the_system_promises_more(model, processor):
    """A virtual machine may name instructions that OpenVINO cannot use: fp32 runs, and fp32 is recorded."""
    processor(bf16=True, openvino_agrees=False)
    assert scorer_fingerprint(Reranker(model, device="cpu"))["precision"] == "fp32"
    processor(bf16=True)
    assert scorer_fingerprint(Reranker(model, device="cpu"))["precision"] == "bf16"


def test_a_model_without_a_graph_is_one_of_torch(model):
    """Where `auto` falls back to torch for want of an ONNX file, torch and its files are recorded."""
    for file in model.rglob("*.onnx"):
        file.unlink()
    (model / "pytorch_model.bin").write_bytes(b"not read beside safetensors")
    found = scorer_fingerprint(Reranker(model, device="cpu"))
    assert found["backend"] == "torch"
    assert "model.safetensors" in found["files"]
    assert "pytorch_model.bin" not in found["files"]
    with pytest.raises(ModelLoadError, match="has no ONNX file"):
        scorer_fingerprint(Reranker(model, backend="onnx"))


@pytest.mark.parametrize("broken", [["openvino"], ["openvino", "onnx"]])
def test_a_graph_that_openvino_cannot_read_runs_elsewhere(model, monkeypatch, caplog, broken):
    """`auto` takes the next backend that can load the model; the log has the reason, and the fingerprint what runs."""
    expected = "onnx" if broken == ["openvino"] else "torch"
    scores = Reranker(model, backend=expected, precision="fp32").score("lake", ["a lake", "a house"])

    def refuse(*_, **__):
        raise RuntimeError("Exception from core.cpp:84:\nOperator Aside is not supported")

    monkeypatch.setattr(openvino_backend.shared_core(), "read_model", refuse)
    if "onnx" in broken:
        monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    reranker = Reranker(model, device="cpu", precision="fp32")
    assert scorer_fingerprint(reranker)["backend"] == expected
    assert not caplog.records
    assert reranker.score("lake", ["a lake", "a house"]) == pytest.approx(scores)
    (record,) = caplog.records
    assert f"runs on the {expected} backend: " in record.getMessage()
    assert "cannot be read by OpenVINO (Operator Aside is not supported)" in record.getMessage()


@pytest.mark.parametrize("settings", [{"backend": "openvino"}, {"precision": "int8"}])
def test_what_was_requested_is_not_replaced(model, monkeypatch, settings):
    """Where openvino or a precision that only it has was requested, its reason is the error."""

    def refuse(*_, **__):
        raise RuntimeError("Operator Aside is not supported")

    monkeypatch.setattr(openvino_backend.shared_core(), "read_model", refuse)
    with pytest.raises(ModelLoadError, match=r"cannot be read by OpenVINO \(Operator Aside is not supported\)"):
        Reranker(model, device="cpu", **settings).warm_up()


def test_weights_of_modules_count(model):
    """A model of several modules keeps some weights in folders of their own."""
    (model / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Dense"}]), encoding="utf-8")
    (model / "1_Dense").mkdir()
    (model / "1_Dense" / "model.safetensors").write_bytes(b"dense")
    found = scorer_fingerprint(Reranker(model, backend="torch"))["files"]
    assert found["1_Dense/model.safetensors"] == sha256_of(model / "1_Dense" / "model.safetensors")
    assert found["model.safetensors"] == sha256_of(model / "model.safetensors")


def test_weights_beside_a_graph_count(tmp_path, small_bert):
    """The files that hold the weights of a large model are known by their content."""
    folder = with_weights_beside(small_bert, tmp_path / "large", "model.onnx.data")
    found = scorer_fingerprint(Reranker(folder, backend="onnx"))["files"]
    assert found["model.onnx.data"] == sha256_of(folder / "onnx/model.onnx.data")


def test_a_gpu_is_known_by_its_kind(model):
    """The second GPU of a machine computes what the first does."""
    first, second = (Reranker(model, backend="onnx", device=device) for device in ("cuda:0", "cuda:1"))
    assert scorer_fingerprint(first) == scorer_fingerprint(second)
    assert scorer_fingerprint(first)["device"] == "cuda"


def test_a_file_is_read_again_only_where_it_changed(model, monkeypatch):
    """Size, time and inode make the digest of a file; a second look at the same file reads nothing."""
    before = scorer_fingerprint(Reranker(model, backend="onnx"))
    read = []
    monkeypatch.setattr(module, "sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    assert scorer_fingerprint(Reranker(model, backend="onnx")) == before
    assert read == []
    new = model / "new.json"
    new.write_bytes((model / "config.json").read_bytes())
    new.replace(model / "config.json")
    assert scorer_fingerprint(Reranker(model, backend="onnx")) == before
    assert read == ["config.json"]


def test_scorers_of_ones_own_and_servers_are_known_by_name():
    """Nothing more can be known of them."""
    own = scorer_fingerprint(Reranker(WordOverlapScorer()))
    assert (own["model"], own["scorer"]) == ("word-overlap", "marcorank.testing.WordOverlapScorer")
    server = scorer_fingerprint(Reranker("tei+http://localhost:8080"))
    assert (server["model"], server["scorer"]) == ("tei+http://localhost:8080", "server")


def test_a_job_whose_precision_resolves_differently_is_refused(candidates, tmp_path, model, processor):
    """A processor without bf16 does not add rows to those of one with it, unless fp32 was named for both."""
    out = tmp_path / "out"
    processor(bf16=True)
    begin(candidates, out, Reranker(model, device="cpu"))
    resume(candidates, out, Reranker(model, device="cpu", precision="bf16"))
    processor(bf16=False)
    refused = 'else: precision was "bf16" and is "fp32".*To continue, set `precision=\'bf16\'`.*--overwrite'
    with pytest.raises(InvalidInputError, match=refused):
        resume(candidates, out, Reranker(model, device="cpu"))
    assert [path.name for path in out.glob("part-*")] == ["part-00000.jsonl"]


def test_a_job_whose_backend_resolves_differently_is_refused(candidates, tmp_path, model, processor, without):
    """Where openvino was removed, onnxruntime does not go on in silence; what is named may be the same by itself."""
    processor(bf16=False)
    out = tmp_path / "out"
    begin(candidates, out, Reranker(model, device="cpu"))
    without("openvino")
    with pytest.raises(InvalidInputError, match=r'backend was "openvino" and is "onnx"\. .*`backend=\'openvino\'`'):
        resume(candidates, out, Reranker(model, device="cpu"))
    assert len(resume(candidates, out, Reranker(model, backend="openvino")).shards) == 1


def test_a_job_of_a_model_that_changed_is_refused(candidates, tmp_path, model):
    """Weights that were trained again are found by their content; a touched file is the same."""
    out = tmp_path / "out"
    begin(candidates, out, Reranker(model, backend="torch"))
    (model / "config.json").touch()
    moved = model.rename(tmp_path / "elsewhere").rename(model)
    assert len(resume(candidates, out, Reranker(moved, backend="torch")).shards) == 1
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"else: the model file model\.safetensors has changed\. Use another"):
        resume(candidates, out, Reranker(model, backend="torch"))


def test_a_job_whose_branch_moved_is_refused(candidates, tmp_path, model, hub):
    """The message names both commits; with the old one as `revision` the job goes on."""
    out, settings = tmp_path / "out", {"backend": "onnx", "cache_folder": tmp_path / "cache"}
    hub.add(NAME, COMMITS[0], model)
    begin(candidates, out, Reranker(NAME, **settings))
    assert len(resume(candidates, out, Reranker(NAME, **settings)).shards) == 1
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"trained": "again"}), encoding="utf-8")
    hub.add(NAME, COMMITS[1], model)
    refused = rf'commit was "{COMMITS[0]}" and is "{COMMITS[1]}"; the model file config\.json has changed'
    with pytest.raises(InvalidInputError, match=rf"{refused}\. To continue, set `revision='{COMMITS[0]}'`"):
        resume(candidates, out, Reranker(NAME, **settings))
    assert len(resume(candidates, out, Reranker(NAME, revision=COMMITS[0], **settings)).shards) == 1


def test_an_actor_that_would_compute_otherwise_scores_nothing(candidates, tmp_path, model, processor, monkeypatch):
    """It says what differs, on which machine, and what to set; one that computes the same ranks its shard."""
    processor(bf16=True)
    reranker = Reranker(model, device="cpu")
    planned = plan(candidates, tmp_path / "out", reranker, shard_size=2)
    processor(bf16=False)
    row = planned.shards[0].to_dict()
    with monkeypatch.context() as patch:
        patch.setattr(Reranker, "rank_many", lambda *_, **__: pytest.fail("scored"))
        error = pickle.loads(RankShard(planned.job, reranker)(row)["error"])  # noqa: S301 -- made here
    assert isinstance(error, InvalidInputError)
    assert ': precision was "bf16" and is "fp32". Nothing was scored there.' in str(error)
    assert "set `precision='bf16'`" in str(error)
    assert not [*(tmp_path / "out").glob("part-*")]
    reranker = Reranker(model, device="cpu")
    planned = plan(candidates, tmp_path / "again", reranker, shard_size=2)
    assert RankShard(planned.job, reranker)(row) == {"requests": 2, "pairs": 4, "error": b""}


def test_differences_are_named_in_words():
    """Values, files and what is not known; advice only where a setting helps."""
    there = {"model": "m", "precision": "bf16", "files": {"a": "1", "b": "2"}}
    here = {"model": "m", "precision": "fp32", "device": "cpu", "files": {"b": "3", "c": "4"}}
    assert differences(there, here) == [
        'precision was "bf16" and is "fp32"',
        'device was not known and is "cpu"',
        "the model file a is gone",
        "the model file b has changed",
        "the model file c is new",
    ]
    assert advice(there, here) == "To continue, set `precision='bf16'`."
    assert advice(there, here | {"model": "other"}) == ""
    assert differences(there, there) == []
    assert advice(there, there) == ""
