"""Many queries with candidates through Ray Data: a pool of actors, each with a reranker of its own."""

from __future__ import annotations

import logging
import os
import pickle
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marcorank._arguments import text_or_none, whole_number
from marcorank._inference.cpu import usable_cores
from marcorank.errors import InvalidInputError, MarcoRankError, MissingExtraError
from marcorank.jobs.inputs import Shard
from marcorank.jobs.planning import SHARD_SIZE, Done, plan
from marcorank.remote import is_remote
from marcorank.reranker import Reranker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from marcorank.jobs.folder import OutputFormat
    from marcorank.jobs.inputs import Paths
    from marcorank.jobs.joining import RunFiles
    from marcorank.jobs.planning import Job, Plan, ShardRun
    from marcorank.scorer import Scorer

# Beyond that many, cores share a batch instead of having one each.
_MOST_CORES = 8


def rerank_dataset(
    input: Paths | RunFiles,  # noqa: A002 -- what people look for beside `output`
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | Scorer = "bundled",
    top_n: int | None = None,
    score_threshold: float | None = None,
    text_field: str | None = None,
    shard_size: int = SHARD_SIZE,
    output_format: OutputFormat | None = None,
    overwrite: bool = False,
    num_actors: int | None = None,
    threads: int | None = None,
    num_gpus: float = 0,
    address: str | None = None,
    progress: Callable[[ShardRun], None] | None = None,
    **settings: Any,
) -> ShardRun:
    """Rerank files of queries with candidates on Ray; a run that was stopped goes on where it was.

    Rows and scores are those of `marcorank rerank --requests`. Input is cut into shards, and each is written to
    `output` as `part-00017.jsonl` or `.parquet` when all of it is ranked. What is there is not ranked again. A Ray
    that this process is connected to is used, else the one of `address` or `RAY_ADDRESS`, else one is started on this
    machine and ended again. Every machine has to see input and output, and the model, under the same paths.

    Args:
        input: Paths of files and folders, or patterns, of JSONL or Parquet with a `query` and `passages` a row;
            or the `RunFiles` of a first stage.
        output: Folder to write to.
        model: As for `Reranker`.
        top_n: Most results of a query; None for all.
        score_threshold: Least score of a result, on the scale of the activation.
        text_field: Field of a passage that holds its text; None for the first of `text`, `passage`, `page_content`
            and `content`.
        shard_size: Rows of a shard.
        output_format: `"jsonl"` or `"parquet"`; None for that of the input.
        overwrite: Whether to remove what an earlier run wrote and to start anew.
        num_actors: Actors that rank; None for as many as the cluster has cores for.
        threads: Cores of an actor. None for as many as a machine has, up to 8: they share one model, which is faster
            than a model a core. With GPUs it is 1.
        num_gpus: GPUs of an actor.
        address: Of a Ray cluster, as `ray.init` takes it.
        progress: Called at the start and after each shard.
        **settings: Further settings of `Reranker`, but `token`: workers take that from `HF_TOKEN`, or
            `MARCORANK_API_KEY` for a server.

    Raises:
        InvalidInputError: An argument is not allowed, the input cannot be read, or the folder was begun with other
            input or settings.
        MissingExtraError: Ray or pyarrow is not installed.
        MarcoRankError: The model cannot be loaded or fails, see `errors`.
    """
    ray = _ray()
    if settings.get("token") is not None:
        raise InvalidInputError(
            "`token` does not go to other machines; set HF_TOKEN, or MARCORANK_API_KEY for a server, on each of them."
        )
    actors = None if num_actors is None else whole_number("num_actors", num_actors, 1)
    cores = None if threads is None else whole_number("threads", threads, 1)
    if not num_gpus and settings.get("device") is None and _is_local(model):
        # Ray hides the GPUs from actors that ask for none, so none may decide here either.
        settings["device"] = "cpu"
    planned = plan(
        input,
        output,
        Reranker(model, **settings),
        top_n=top_n,
        score_threshold=score_threshold,
        text_field=text_field,
        shard_size=shard_size,
        output_format=output_format,
        overwrite=overwrite,
    )
    if not planned.shards:
        return planned.follow((), progress)
    with _connected(ray, text_or_none("address", address)):
        cores = cores or _cores_of_an_actor(ray, actors or 1, num_gpus)
        # Ray would wait for ever for room that no machine has.
        room = _room(ray, cores, num_gpus)
        pool = min(actors or room, len(planned.shards))
        if settings.get("cache_folder") is not None:
            settings["cache_folder"] = Path(settings["cache_folder"]).expanduser().absolute()
        reranker = Reranker(_absolute(model), threads=cores, **settings)
        return planned.follow(
            _ranked(ray, planned, reranker, pool, {"num_cpus": cores, "num_gpus": num_gpus or None}), progress
        )


class RankShard:
    """Ranks a shard a call; an actor of the pool is one of these."""

    def __init__(self, job: Job, reranker: Reranker) -> None:
        self._job = job
        self._reranker = reranker
        self._checked = False

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Rank the shard of a row; return how many requests and pairs it had, or the error, pickled."""
        try:
            # Not in the constructor: Ray starts an actor whose constructor raised again and again.
            if not self._checked:
                self._job.check_scorer(self._reranker)
                self._checked = True
            done = self._job.rank(self._reranker, Shard.from_dict(row))
        except (MarcoRankError, OSError) as error:
            return {"requests": 0, "pairs": 0, "error": pickle.dumps(error)}
        return {"requests": done.requests, "pairs": done.pairs, "error": b""}


def _ranked(
    ray: ModuleType, planned: Plan, reranker: Reranker, pool: int, of_an_actor: dict[str, Any]
) -> Iterator[Done]:
    shards = [shard.to_dict() for shard in planned.shards]
    dataset = ray.data.from_items(shards, override_num_blocks=len(shards))
    dataset.context.enable_progress_bars = False
    # Ray starts the actors that find room, and goes on with those that are left where a machine is lost.
    ranked = dataset.map(
        RankShard,
        fn_constructor_args=(planned.job, reranker),
        compute=ray.data.ActorPoolStrategy(size=pool),
        **of_an_actor,
    )
    for row in ranked.iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])  # noqa: S301 -- of our own actors
        yield Done(int(row["requests"]), int(row["pairs"]))


def _cores_of_an_actor(ray: ModuleType, actors: int, num_gpus: float) -> int:
    """Return how many cores an actor gets so that the fewest are left over, and so many actors fit; rather more."""
    if num_gpus:
        return 1
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    fitting = [cores for cores in range(1, _MOST_CORES + 1) if sum(machine // cores for machine in machines) >= actors]
    return max(fitting, key=lambda cores: (sum(machine - machine % cores for machine in machines), cores), default=1)


def _room(ray: ModuleType, cores: int, num_gpus: float) -> int:
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = 0
    for machine in machines:
        fits = int(machine.get("CPU", 0)) // cores
        room += min(fits, int(machine.get("GPU", 0) / num_gpus)) if num_gpus else fits
    if room < 1:
        most = max((machine.get("CPU", 0) for machine in machines), default=0)
        gpus = max((machine.get("GPU", 0) for machine in machines), default=0)
        raise InvalidInputError(
            f"The largest machine of the cluster has {most:g} cores and {gpus:g} GPUs; an actor with "
            f"`threads={cores}` and `num_gpus={num_gpus:g}` does not fit."
        )
    return room


@contextmanager
def _connected(ray: ModuleType, address: str | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    if address is not None or os.environ.get("RAY_ADDRESS"):
        options: dict[str, Any] = {"address": address}
    else:
        options = {"address": "local", "num_cpus": usable_cores(), "include_dashboard": False}
    ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        ray.shutdown()


def _is_local(model: str | os.PathLike[str] | Scorer) -> bool:
    return isinstance(model, (str, os.PathLike)) and not is_remote(os.fspath(model))


def _absolute(model: str | os.PathLike[str] | Scorer) -> str | os.PathLike[str] | Scorer:
    """Return a model's folder as workers find it, which run in folders of their own."""
    if isinstance(model, (str, os.PathLike)) and Path(model).expanduser().is_dir():
        return Path(model).expanduser().resolve()
    return model


def _ray() -> ModuleType:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("Ray is needed here: pip install 'marcorank[ray]'") from error
    return ray
