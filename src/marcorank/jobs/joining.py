"""Joins a run, its queries and its corpus to rows of a query with its passages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from marcorank._files import json_line, write_durably
from marcorank.collections.texts import check_texts, read_texts
from marcorank.collections.trec import read_run

if TYPE_CHECKING:
    import os


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The output of a first stage as three files; each may be compressed.

    Attributes:
        run: A TREC run, or query_id, doc_id and score.
        queries: Texts of the queries: JSONL of `_id` or `id` and `text`, or .tsv of an id, a tab and a text.
        corpus: Texts of the passages, in the same formats; in JSONL a `title` is put before the text.
    """

    run: str | os.PathLike[str]
    queries: str | os.PathLike[str]
    corpus: str | os.PathLike[str]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The absolute paths of the files."""
        return tuple(Path(path).expanduser().absolute() for path in (self.run, self.queries, self.corpus))


def join(files: RunFiles, path: Path) -> None:
    """Write the queries of a run with the texts of their candidates, best first, as JSONL; it appears when complete.

    Raises:
        InvalidInputError: A file is missing or damaged, or the files do not belong together.
    """
    run_path, queries_path, corpus_path = files.paths
    run = read_run(run_path)
    queries, _ = read_texts(queries_path, wanted=run)
    check_texts(queries, run, "queries of the run", queries_path)
    wanted = dict.fromkeys(doc_id for results in run.values() for doc_id in results)
    passages, _ = read_texts(corpus_path, wanted=wanted)
    check_texts(passages, wanted, "passages of the run", corpus_path)

    def fill(file: BinaryIO) -> None:
        for query_id, results in run.items():
            candidates = [
                {"id": doc_id, "text": passages[doc_id], "retrieval_score": score} for doc_id, score in results.items()
            ]
            row = {"query_id": query_id, "query": queries[query_id], "passages": candidates}
            file.write(json_line(row).encode())

    write_durably(path, fill)
