"""Jobs on Ray Data: a pool of actors, each with a reranker of its own."""

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

try:
    import ray
    import ray.data
except ImportError as error:
    raise MissingExtraError("`rerank_dataset` needs Ray Data: pip install 'marcorank[ray]'") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from marcorank.jobs.folder import OutputFormat
    from marcorank.jobs.inputs import Paths
    from marcorank.jobs.joining import RunFiles
    from marcorank.jobs.planning import Job, Plan, ShardRun
    from marcorank.scorer import Scorer

# With more, cores share a batch instead of having one each.
_MAX_CORES = 8


def rerank_dataset(
    input: Paths | RunFiles,  # noqa: A002 -- the natural name beside `output`
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
    """Rerank files of queries with candidates on Ray; the same call continues a job that was interrupted.

    Rows and scores are those of `marcorank rerank --requests`. The input is split into shards, and each is written to
    `output` as `part-00017.jsonl` or `.parquet` once all of it is ranked; finished shards are not ranked again. If
    this process is connected to Ray, that cluster is used, otherwise the one at `address` or `RAY_ADDRESS`;
    otherwise Ray is started on this machine and shut down at the end. Input, output and model must have the same
    paths on every machine. An actor that would compute different scores from those of the job, for
    example because `precision="auto"` resolves differently there, refuses to score.

    Args:
        input: Paths of files and folders, or patterns, of JSONL or Parquet with a `query` and `passages` a row;
            or the `RunFiles` of a first stage.
        output: The output folder.
        model: As for `Reranker`.
        top_n: Maximum number of results of a query; None for all.
        score_threshold: Minimum score of a result, on the scale of the activation.
        text_field: Field of a passage that holds its text; None for the first of `text`, `passage`, `page_content`
            and `content`.
        shard_size: Rows per shard.
        output_format: `"jsonl"` or `"parquet"`; None for the format of the input.
        overwrite: Whether to delete the output of an earlier run and start again.
        num_actors: Number of actors; None for as many as the cluster has cores for.
        threads: Cores per actor. None for all cores of a machine, up to 8: sharing one model is faster than a model
            per core. With GPUs the default is 1.
        num_gpus: GPUs per actor.
        address: Address of a Ray cluster, as `ray.init` takes it.
        progress: Called at the start and after each shard.
        **settings: Further settings of `Reranker`, except `token`: actors read it from `HF_TOKEN`, or
            `MARCORANK_API_KEY` for a server.

    Raises:
        InvalidInputError: An argument is not allowed, the input cannot be read, or the folder was started
            with another input, other settings or another scorer, or an actor would compute different scores.
        MissingExtraError: Ray or pyarrow is not installed.
        MarcoRankError: The model cannot be loaded or fails, see `errors`.
    """
    if settings.get("token") is not None:
        raise InvalidInputError(
            "`token` is not sent to other machines; set HF_TOKEN, or MARCORANK_API_KEY for a server, on each of them."
        )
    actors = None if num_actors is None else whole_number("num_actors", num_actors, 1)
    cores = None if threads is None else whole_number("threads", threads, 1)
    local = isinstance(model, (str, os.PathLike)) and not is_remote(os.fspath(model))
    if local and not num_gpus and settings.get("device") is None:
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
    with _connected(text_or_none("address", address)):
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cores = cores or _cores_of_an_actor(machines, actors or 1, num_gpus)
        capacity = _capacity(machines, cores, num_gpus)
        pool = min(actors or capacity, len(planned.shards))
        # Actors have another working directory.
        if settings.get("cache_folder") is not None:
            settings["cache_folder"] = Path(settings["cache_folder"]).expanduser().absolute()
        model = _where_it_is(model)
        settings["skim"] = _where_it_is(settings.get("skim"))
        if local:
            settings["threads"] = cores
        reranker = Reranker(model, **settings)
        return planned.follow(_rank(planned, reranker, pool, cores, num_gpus or None), progress)


def _where_it_is(model: Any) -> Any:
    """Return the absolute path of a model folder; any other model as it is."""
    is_folder = isinstance(model, (str, os.PathLike)) and Path(model).expanduser().is_dir()
    return Path(model).expanduser().resolve() if is_folder else model


class RankShard:
    """An actor of the pool; each call ranks one shard."""

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


def _rank(planned: Plan, reranker: Reranker, pool: int, cores: int, num_gpus: float | None) -> Iterator[Done]:
    shards = [shard.to_dict() for shard in planned.shards]
    dataset = ray.data.from_items(shards, override_num_blocks=len(shards))
    dataset.context.enable_progress_bars = False
    # Ray starts the actors that fit, and continues with the remaining ones if a machine is lost.
    ranked = dataset.map(
        RankShard,  # type: ignore[arg-type]
        fn_constructor_args=(planned.job, reranker),
        compute=ray.data.ActorPoolStrategy(size=pool),
        num_cpus=cores,
        num_gpus=num_gpus,
    )
    for row in ranked.iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])  # noqa: S301 -- from our own actors
        yield Done(int(row["requests"]), int(row["pairs"]))


def _cores_of_an_actor(machines: Sequence[dict[str, float]], actors: int, num_gpus: float) -> int:
    """Return the cores per actor that leave the fewest idle while `actors` fit; the larger number of equal ones."""
    if num_gpus:
        return 1
    cpus = [int(machine.get("CPU", 0)) for machine in machines]
    fitting = [cores for cores in range(1, _MAX_CORES + 1) if sum(count // cores for count in cpus) >= actors]
    return max(fitting, key=lambda cores: (sum(count - count % cores for count in cpus), cores), default=1)


def _capacity(machines: Sequence[dict[str, float]], cores: int, num_gpus: float) -> int:
    """Return how many actors fit. An error if none does, because Ray would wait forever."""
    capacity = 0
    for machine in machines:
        fits = int(machine.get("CPU", 0)) // cores
        capacity += min(fits, int(machine.get("GPU", 0) / num_gpus)) if num_gpus else fits
    if capacity < 1:
        cpus, gpus = (max((machine.get(kind, 0) for machine in machines), default=0) for kind in ("CPU", "GPU"))
        raise InvalidInputError(
            f"The largest machine of the cluster has {cpus:g} cores and {gpus:g} GPUs; an actor with "
            f"`threads={cores}` and `num_gpus={num_gpus:g}` does not fit."
        )
    return capacity


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
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
