"""Ray Data: a pool of actors writes the same rows as a single process, whatever dies meanwhile."""

# ruff: noqa: S603 -- what runs here is this project's own program

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from marcorank import InvalidInputError, Reranker, ScoreError
from marcorank.errors import MissingExtraError
from marcorank.jobs.planning import plan
from marcorank.ray.datasets import _cores_of_an_actor, rerank_dataset
from marcorank.reranker import scorer_fingerprint
from marcorank.testing import WordOverlapScorer
from patience import PATIENCE_S

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves files and sockets to the collector
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

WORDS = ["berlin", "museum", "lake", "house", "river", "bread", "open", "file", "people", "city", "known", "population"]
ROWS = 40


@pytest.fixture
def candidates(tmp_path):
    """A file of requests."""
    chance = random.Random(3)  # noqa: S311
    rows = [
        {
            "id": number,
            "query": " ".join(chance.sample(WORDS, 3)),
            "passages": [" ".join(chance.choices(WORDS, k=8)) for _ in range(5)],
        }
        for number in range(ROWS)
    ]
    path = tmp_path / "candidates.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def expected(candidates, tmp_path):
    """Return the shards of a single process, by name."""

    def rank_here(model, **settings):
        with Reranker(model) as reranker:
            planned = plan(candidates, tmp_path / "here", reranker, **settings)
            planned.follow(planned.rank_here(reranker), None)
        return shards_of(tmp_path / "here")

    return rank_here


def shards_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name.startswith("part-")}


@pytest.fixture(scope="module")
def local_ray():
    """Ray on this machine, to which the process is connected."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("local_ray")
def test_rows_equal_those_of_a_single_process(candidates, expected, tmp_path):
    """Byte for byte, in JSONL and Parquet; a second call ranks only the missing shards; Ray keeps running."""
    for output_format in ("jsonl", "parquet"):
        out, seen = tmp_path / output_format, []
        shards = expected("bundled", shard_size=6, output_format=output_format, overwrite=True)
        done = rerank_dataset(candidates, out, shard_size=6, output_format=output_format, progress=seen.append)
        assert shards_of(out) == shards
        assert (done.shards, done.skipped, done.ranked, done.requests, done.pairs) == (7, 0, 7, ROWS, ROWS * 5)
        assert [run.ranked for run in seen] == [*range(8)]
        (out / f"part-00003.{output_format}").unlink()
        again = rerank_dataset(candidates, out, shard_size=6, output_format=output_format)
        assert shards_of(out) == shards
        assert (again.skipped, again.ranked, again.requests) == (6, 1, 6)
    assert ray.is_initialized()


@pytest.mark.usefixtures("local_ray")
def test_no_row_is_lost_when_an_actor_dies(candidates, expected, tmp_path):
    """An actor that is killed during a shard is restarted, and the shard is ranked again."""

    class Dying(WordOverlapScorer):
        def __init__(self, folder):
            super().__init__()
            self._folder = folder

        def score(self, query, passages):
            if len([*self._folder.iterdir()]) < 3 and self.calls == 4:
                (self._folder / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().score(query, passages)

    deaths = tmp_path / "deaths"
    deaths.mkdir()
    options = {"shard_size": 3, "top_n": 2, "score_threshold": -4.0}
    done = rerank_dataset(candidates, tmp_path / "out", model=Dying(deaths), num_actors=2, **options)
    assert len([*deaths.iterdir()]) >= 3
    assert (done.ranked, done.requests) == (14, ROWS)
    assert shards_of(tmp_path / "out") == expected(WordOverlapScorer(), **options)


@pytest.mark.usefixtures("local_ray")
def test_a_cascade_ranks_in_actors_as_here(candidates, tmp_path, small_bert, monkeypatch):
    """Byte for byte, also with a skimming model in a folder below the working directory, and with a scorer."""
    monkeypatch.chdir(small_bert.parent)
    options = {"skim_keep": 3, "blend": 0.3, "max_similarity": 0.9, "device": "cpu", "threads": 2}
    scorer = WordOverlapScorer()
    for number, (skim, sent) in enumerate([(str(small_bert), small_bert.name), (scorer, scorer)]):
        here, there = tmp_path / f"here-{number}", tmp_path / f"there-{number}"
        with Reranker("bundled", skim=skim, **options) as reranker:
            planned = plan(candidates, here, reranker, output_format="parquet")
            planned.follow(planned.rank_here(reranker), None)
        rerank_dataset(candidates, there, skim=sent, **options, output_format="parquet")
        assert shards_of(there) == shards_of(here)


@pytest.mark.usefixtures("local_ray")
def test_errors_in_actors_are_raised_unchanged(candidates, tmp_path):
    """The caller gets the same error as the actor."""

    class Broken:
        def score(self, query, passages):
            return [float("nan")] * len(passages)

    with pytest.raises(ScoreError, match=r"Model `Broken` returned nan for `passages\[0\]`"):
        rerank_dataset(candidates, tmp_path / "out", model=Broken())


@pytest.mark.usefixtures("local_ray")
def test_actors_that_would_compute_other_scores_are_refused(candidates, tmp_path, small_bert, monkeypatch):
    """If `auto` resolves to another precision in the actors, nothing is scored."""
    with monkeypatch.context() as patch:
        # The actors see the processor that is here, this process the other kind.
        actual = scorer_fingerprint(Reranker(small_bert, device="cpu"))["precision"]
        other = "fp32" if actual == "bf16" else "bf16"
        features = frozenset({"avx512_bf16"} if other == "bf16" else ())
        patch.setattr("marcorank._models.selection.cpu_features", lambda: features)
        patch.setattr("marcorank._inference.backends.openvino.computes", lambda _: True)
        with pytest.raises(InvalidInputError, match=f': precision was "{other}" and is "{actual}"') as caught:
            rerank_dataset(candidates, tmp_path / "out", model=small_bert)
    assert f"To continue, set `precision='{other}'`" in str(caught.value)
    assert shards_of(tmp_path / "out") == {}
    assert rerank_dataset(candidates, tmp_path / "named", model=small_bert, precision="fp32").ranked == 1


@pytest.mark.usefixtures("local_ray")
def test_the_device_of_a_job_does_not_depend_on_the_gpu_of_this_process(candidates, tmp_path, small_bert, monkeypatch):
    """Ray hides the GPUs from actors that request none, so the job runs on the CPU from the start."""
    monkeypatch.setattr("marcorank._models.selection._gpu_usable", lambda: True)
    assert rerank_dataset(candidates, tmp_path / "out", model=small_bert).ranked == 1
    manifest = json.loads((tmp_path / "out" / "_marcorank.json").read_text(encoding="utf-8"))
    assert manifest["scorer"]["device"] == "cpu"


@pytest.mark.usefixtures("local_ray")
def test_arguments_are_checked_before_anything_runs(candidates, tmp_path):
    """A token would not reach the actors; with too small a cluster Ray would wait forever."""
    with pytest.raises(InvalidInputError, match="`token` is not sent to other machines; set HF_TOKEN, or"):
        rerank_dataset(candidates, tmp_path / "out", token="secret")
    with pytest.raises(InvalidInputError, match="`num_actors` is 0; expected a whole number of at least 1"):
        rerank_dataset(candidates, tmp_path / "out", num_actors=0)
    too_small = "The largest machine of the cluster has 2 cores and 0 GPUs; an actor with `threads="
    for more in ({"threads": 3}, {"num_gpus": 1}, {"num_actors": 1, "threads": 64}, {"num_actors": 1, "num_gpus": 1}):
        with pytest.raises(InvalidInputError, match=f"{too_small}{more.get('threads', 1)}` and `num_gpus="):
            rerank_dataset(candidates, tmp_path / "out", **more)


@pytest.mark.parametrize(
    ("machines", "actors", "cores"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([8, 8], 1, 8),
        ([16, 4], 1, 4),
        ([6], 1, 6),
        ([0, 3], 1, 3),
        ([64], 32, 2),
        ([2], 5, 1),
        ([10], 1, 5),
    ],
)
def test_actors_get_the_cores_that_leave_the_fewest_idle(machines, actors, cores):
    """The requested number of actors fits, with at most 8 cores each."""
    resources = [{"CPU": float(count)} for count in machines]
    assert _cores_of_an_actor(resources, actors, 0) == cores
    assert _cores_of_an_actor(resources, actors, 1) == 1


def test_the_reference_lists_every_argument():
    """Every argument is listed with its default, and nothing else."""
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    section = page.partition("### `marcorank.ray.rerank_dataset`")[2].partition("\n#")[0]
    found = dict(re.findall(r"(?m)^\| `(\w+)` \| (\S+) \|", section))
    parameters = inspect.signature(rerank_dataset).parameters.values()
    assert found == {
        parameter.name: "`{}`"
        if parameter.kind is parameter.VAR_KEYWORD
        else "required"
        if parameter.default is parameter.empty
        else f"`{parameter.default!r}`"
        for parameter in parameters
    }


def test_without_ray_data_the_error_names_the_pip_command(monkeypatch):
    """The message has the command."""
    monkeypatch.setitem(sys.modules, "ray.data", None)
    monkeypatch.delitem(sys.modules, "marcorank.ray.datasets")
    with pytest.raises(MissingExtraError, match=re.escape("needs Ray Data: pip install 'marcorank[ray]'")):
        importlib.import_module("marcorank.ray.datasets")


@pytest.mark.usefixtures("local_ray")
def test_a_killed_command_can_be_resumed(candidates, expected, tmp_path):
    """After SIGKILL at random moments, with a local Ray or a cluster, no row is missing, duplicated or different."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "marcorank", "rerank", "--engine", "ray", "--workers", "2", "--shard-size", "1"]
    command += ["--input", str(candidates), "--output", str(out)]
    on_cluster = [*command, "--ray-address", ray.get_runtime_context().gcs_address]
    chance = random.Random(5)  # noqa: S311
    for killed in (command, on_cluster, on_cluster):
        finished = len(shards_of(out)) if out.is_dir() else 0
        process = subprocess.Popen(killed, stderr=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < end:
            if out.is_dir() and len(shards_of(out)) > finished:
                time.sleep(chance.random() * 0.03)
                process.kill()
            time.sleep(0.001)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    done = subprocess.run(on_cluster, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert re.search(r"skipped \d+ shards? of an earlier run; '.*out' holds all 40\n$", done.stderr)
    assert shards_of(out) == expected("bundled", shard_size=1)
    assert not [path.name for path in out.iterdir() if path.name.endswith(".tmp")]


def test_no_row_is_lost_when_a_node_dies(candidates, expected, tmp_path):
    """On a cluster of two nodes, one of which dies, the other ranks the rest."""

    class Slow(WordOverlapScorer):
        def score(self, query, passages):
            time.sleep(0.02)
            return super().score(query, passages)

    if ray.is_initialized():
        ray.shutdown()
    noticing = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 2}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": noticing}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        nodes = [node]

        def lose_a_node(run):
            if run.ranked >= 4 and nodes:
                cluster.remove_node(nodes.pop(), allow_graceful=False)

        done = rerank_dataset(
            candidates, tmp_path / "out", model=Slow(), shard_size=2, address=cluster.address, progress=lose_a_node
        )
        assert not nodes
        assert (done.ranked, done.requests) == (20, ROWS)
        assert shards_of(tmp_path / "out") == expected(WordOverlapScorer(), shard_size=2)
    finally:
        cluster.shutdown()
    assert not ray.is_initialized()
