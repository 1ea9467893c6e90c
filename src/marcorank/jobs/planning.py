"""A job over many requests: plan its shards, rank one of them, count what is done."""

from __future__ import annotations

import hashlib
import platform
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from marcorank._arguments import one_of, score_threshold_or_none, text_or_none, top_n_or_none, whole_number
from marcorank._files import errors_named, sha256_of
from marcorank._models.fingerprint import advice, differences
from marcorank.collections import parquet
from marcorank.collections.requests import answer_row
from marcorank.errors import InvalidInputError
from marcorank.jobs import folder, inputs
from marcorank.jobs.folder import Folder, OutputFormat
from marcorank.jobs.joining import RunFiles, join
from marcorank.ranking import plain_activation
from marcorank.reranker import check_options, ranking_fingerprint

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from marcorank.jobs.inputs import Paths, Shard
    from marcorank.reranker import Reranker

SHARD_SIZE = 100
FORMATS: tuple[str, ...] = get_args(OutputFormat)
_FIELDS_OF_OPTIONS = {"skim_keep": ("scored_by", "skim_logit"), "blend": ("blended_score",)}


@dataclass(frozen=True, slots=True)
class ShardRun:
    """Progress of a job, or its result.

    Attributes:
        output: The output folder.
        shards: Number of shards.
        skipped: Shards that were finished before.
        ranked: Shards that this run has ranked.
        requests: Queries in these.
        pairs: Pairs of query and passage in these.
        seconds: Seconds since the first of them was started.
    """

    output: str
    shards: int
    skipped: int
    ranked: int = 0
    requests: int = 0
    pairs: int = 0
    seconds: float = 0.0

    @property
    def pairs_per_second(self) -> float:
        """Pairs ranked per second; 0 before the first shard."""
        return self.pairs / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds for the remaining shards; None before the first shard."""
        left = self.shards - self.skipped - self.ranked
        return left * self.seconds / self.ranked if self.ranked else None


class Done(NamedTuple):
    """Number of queries, and of pairs of query and passage, in a shard that was ranked."""

    requests: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Job:
    """How shards are ranked and where they are written; small and picklable.

    Attributes:
        folder: The output folder.
        scorer: Fingerprint of the reranker; see `ranking_fingerprint`.
        top_n: Maximum number of results of a query.
        score_threshold: Minimum score of a result.
        text_field: Field of a passage with its text.
    """

    folder: Folder
    scorer: Mapping[str, Any]
    top_n: int | None
    score_threshold: float | None
    text_field: str | None

    def check_scorer(self, reranker: Reranker) -> None:
        """Check that a reranker in this process computes the same scores as those in the folder; nothing is scored.

        Raises:
            InvalidInputError: It computes something else.
            MarcoRankError: A file of the model is missing or cannot be fetched.
        """
        here = ranking_fingerprint(reranker)
        for name, one in (("scorer", reranker), ("skim_scorer", reranker.skim)):
            if one is not None and not isinstance(one.model, str):
                # The scorer itself was sent here, and a class that is pickled by value loses part of its name.
                here[name] = self.scorer[name]
        different = differences(self.scorer, here)
        if different:
            hint = advice(self.scorer, here) or "Every machine needs the same model files and version of marcorank."
            raise InvalidInputError(
                f"The worker on {platform.node()!r} would compute different scores from those in "
                f"{str(self.folder.path)!r}: {'; '.join(different[:4])}. Nothing was scored there. {hint}"
            )

    def rank(self, reranker: Reranker, shard: Shard) -> Done:
        """Read a shard, rank it and write it.

        Raises:
            MarcoRankError: The input cannot be read, the model fails, or the folder cannot be written.
        """
        requests = inputs.read_shard(shard, text_field=self.text_field)
        rankings = reranker.rank_many(
            [request.parts for request in requests], top_n=self.top_n, score_threshold=self.score_threshold
        )
        rows = [answer_row(request, ranking) for request, ranking in zip(requests, rankings, strict=True)]
        self.folder.write_shard(shard.number, rows)
        return Done(len(requests), sum(len(request.passages) for request in requests))


@dataclass(frozen=True, slots=True)
class Plan:
    """A job and its remaining shards.

    Attributes:
        job: How to rank them.
        shards: The remaining shards.
        initial: Progress at the start.
    """

    job: Job
    shards: tuple[Shard, ...]
    initial: ShardRun

    def follow(self, done: Iterable[Done], progress: Callable[[ShardRun], None] | None) -> ShardRun:
        """Count the shards that are done, in any order; call `progress` at the start and after each of them."""
        run, started = self.initial, time.monotonic()
        if progress is not None:
            progress(run)
        for one in done:
            run = replace(
                run,
                ranked=run.ranked + 1,
                requests=run.requests + one.requests,
                pairs=run.pairs + one.pairs,
                seconds=time.monotonic() - started,
            )
            if progress is not None:
                progress(run)
        return run

    def rank_here(self, reranker: Reranker) -> Iterator[Done]:
        """Rank the remaining shards in this process, one after the other."""
        for shard in self.shards:
            yield self.job.rank(reranker, shard)


def plan(
    source: Paths | RunFiles,
    output: str | os.PathLike[str],
    reranker: Reranker,
    *,
    top_n: int | None = None,
    score_threshold: float | None = None,
    text_field: str | None = None,
    shard_size: int = SHARD_SIZE,
    output_format: OutputFormat | None = None,
    overwrite: bool = False,
) -> Plan:
    """Check the input and the finished shards, and start the folder if it is new; nothing is ranked yet.

    The first start reads every row, so that invalid rows are found before the job runs for hours. The arguments are
    those of `rerank_dataset`. The model of the reranker is not loaded, but its files are read, and downloaded if they
    are not cached.

    Raises:
        InvalidInputError: An argument is not allowed, the input cannot be read, a row is not a request, or the folder
            was started with another input, other settings, or a scorer that computes something else.
        MissingExtraError: pyarrow is needed and not installed.
        MarcoRankError: A file of the model is missing or cannot be fetched.
    """
    if reranker.on_error != "raise" or reranker.fallback is not None:
        raise InvalidInputError(
            "`on_error` and `fallback` cannot be used in a job: all rows have scores of one model, and a shard that "
            "fails is ranked at the next start. Leave them out."
        )
    if reranker.skim is not None and reranker.timeout_s is not None:
        raise InvalidInputError(
            f"`timeout_s` is {reranker.timeout_s} beside `skim`, which would rank alone where the time is over; all "
            "rows of a job are ranked by the same models. Leave one of them out."
        )
    check_options(reranker, top_n=top_n, score_threshold=score_threshold)
    size = whole_number("shard_size", shard_size, 1)
    one_of("output_format", output_format, (None, *FORMATS))
    out = Path(output).expanduser().absolute()
    files = list(source.paths) if isinstance(source, RunFiles) else inputs.find_files(source, outside=out)
    if output_format is None:
        output_format = "parquet" if all(inputs.is_parquet(file) for file in files) else "jsonl"
    settings = {
        "activation": plain_activation(reranker.activation),
        "top_n": top_n_or_none(top_n),
        "score_threshold": score_threshold_or_none(score_threshold),
        "text_field": text_or_none("text_field", text_field),
        "shard_size": size,
        "output_format": output_format,
    }
    found = folder.read_manifest(out) if not overwrite or not out.is_dir() else None
    manifest: dict[str, Any] = {
        # Differs if a run starts again with the same settings.
        "run": uuid.uuid4().hex,
        "scorer": ranking_fingerprint(reranker),
        # Without folders: the files may have moved.
        "input": {f"{file.name!r} (file {number})": _sha256(file) for number, file in enumerate(files, 1)},
        "settings": settings,
    }
    if found is not None:
        folder.check_same(out, found, manifest)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{str(out)!r} cannot be created: {error.strerror or error}.") from error
    joined = None
    if isinstance(source, RunFiles):
        content = hashlib.sha256("".join(manifest["input"].values()).encode()).hexdigest()
        joined = out / f"_candidates-{content[:16]}.jsonl"
        if not joined.exists():
            join(source, joined)
        files = [joined]
    shards = inputs.split(files, size)
    if found is None:
        as_parquet = output_format == "parquet"
        manifest["columns"] = _check_rows(files, text_field, as_parquet=as_parquet, scorer=manifest["scorer"])
        if overwrite:
            folder.clear(out, keep=joined)
        folder.begin(out, manifest)
    folder.clear_unfinished(out)
    to_write = Folder.open(out)
    left = tuple(shard for shard in shards if not to_write.is_finished(shard.number, shard.rows))
    return Plan(
        Job(to_write, manifest["scorer"], top_n, score_threshold, text_field),
        left,
        ShardRun(str(out), len(shards), len(shards) - len(left)),
    )


def _sha256(path: Path) -> str:
    with errors_named(repr(str(path))):
        return sha256_of(path)


def _check_rows(
    files: Sequence[Path], text_field: str | None, *, as_parquet: bool, scorer: Mapping[str, Any]
) -> str | None:
    """Read every row once; return the columns of the output, None if it is JSONL."""
    columns = []
    for file in files:
        requests = inputs.read_file(file, text_field=text_field)
        if as_parquet and not inputs.is_parquet(file):
            columns.append(parquet.columns_of_requests(requests))
            continue
        for _ in requests:
            pass
        if as_parquet:
            columns.append(parquet.columns_of_file(file))
    options = [name for option, names in _FIELDS_OF_OPTIONS.items() if option in scorer for name in names]
    return parquet.answer_columns(columns, options=options) if as_parquet else None
