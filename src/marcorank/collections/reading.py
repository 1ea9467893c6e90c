"""Read collections: a BEIR folder, TREC files, or JSONL of queries with their passages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from marcorank._files import COMPRESSED_ENDINGS, errors_named, without_compression
from marcorank._text import first_few, is_blank, quoted, quoted_path, shorten
from marcorank.collections.first_stage import BM25, bm25_run
from marcorank.collections.records import Collection
from marcorank.collections.rows import read_rows
from marcorank.collections.texts import check_texts, read_texts
from marcorank.collections.trec import qrels_and_notes, read_qrels, read_run, run_and_notes, write_run
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Collection as Several
    from collections.abc import Mapping

    from marcorank.collections.records import Qrels, Run

__all__ = ["read_collection", "read_qrels", "read_run", "write_run"]

_Path: TypeAlias = "str | os.PathLike[str]"
_TREC_ENDINGS = (".tsv", ".txt", ".trec")
_TEXT_ENDINGS = (".jsonl", ".tsv")


def read_collection(
    source: str | os.PathLike[str],
    *,
    run: str | os.PathLike[str] | None = None,
    qrels: str | os.PathLike[str] | None = None,
    queries: str | os.PathLike[str] | None = None,
    corpus: str | os.PathLike[str] | None = None,
    name: str | None = None,
    split: str = "test",
) -> Collection:
    """Read judged queries with their candidates.

    **A folder** in BEIR's layout: corpus.jsonl (`_id` or `id`, `title`, `text`), queries.jsonl (`_id` or `id`, `text`),
    or corpus.tsv and queries.tsv with an id, a tab and a text, and the judgements as qrels/SPLIT.tsv or qrels.tsv, .txt
    or .trec. The first stage may be there as run.tsv, .txt or .trec; without one, BM25 retrieves 100 candidates for
    each query. With a run, only the texts of candidates and of judged passages are kept.

    **A file** of JSONL, or a JSON array, with a row for each query:

        {"query": "...", "passages": ["...", "..."], "relevant": [0]}

    `passages` are texts, or objects with `text` and optionally `id` and `score`, in the order of the first stage.
    `relevant` names passages by index from 0, by id or by text, or is an object of grades by id. Whole numbers are
    indexes, unless ids are whole numbers too. A list that can be read in several ways is an error, such as `[0, 1, 0]`
    for three passages, which looks like labels. Other passages are judged as not relevant. A relevant passage that is
    not in the list was not found by the first stage. A row may have a `query_id` or `id`; by default it is the line
    number.

    Files may be compressed as .gz, .bz2 or .xz. Only judged queries are kept. `Collection.notes` lists irregularities.

    Args:
        source: Path of the folder or file.
        run: Path of the first stage's run, instead of the folder's; see `read_run`.
        qrels: Path of the judgements, instead of the folder's; see `read_qrels`.
        queries: Path of the queries' texts, instead of the folder's.
        corpus: Path of the passages' texts, instead of the folder's.
        name: Name of the collection; None for that of the folder or file.
        split: Name of the file in the folder qrels; if there is only one file, it is read anyway.

    Raises:
        InvalidInputError: A file is missing or invalid, or the files do not belong together.
        MissingExtraError: There is no run, and the packages for BM25 are not installed.
    """
    folder = Path(source)
    with errors_named(quoted_path(folder)):
        is_folder = folder.is_dir()
    if not is_folder:
        return _of_file(folder, {"run": run, "qrels": qrels, "queries": queries, "corpus": corpus}, name)
    qrels_file, split_notes = (Path(qrels), []) if qrels is not None else _qrels_file(folder, split)
    judged, qrels_notes = qrels_and_notes(qrels_file)
    texts, query_notes = _queries(_texts_file(folder, "queries", queries), judged)
    run_file = _file(folder, "run", _TREC_ENDINGS, run)
    corpus_file = _texts_file(folder, "corpus", corpus)
    if run_file is None:
        passages, corpus_notes = read_texts(corpus_file)
        candidates, run_notes = bm25_run(texts, passages), [f"There is no run; the first stage is {BM25}."]
    else:
        candidates, run_notes = _candidates(run_file, texts)
        passages, corpus_notes = read_texts(corpus_file, wanted=_doc_ids(candidates) | _doc_ids(judged))
    check_texts(passages, _doc_ids(candidates), "passages of the run", corpus_file)
    judged_ids = _doc_ids(judged)
    without_text = [doc_id for doc_id in judged_ids if doc_id not in passages]
    if without_text:
        corpus_notes.append(
            f"Judged passages that are not in the corpus, counted as not found: {len(without_text)} of "
            f"{len(judged_ids)}, such as {first_few(without_text[:1])}."
        )
    notes = (*split_notes, *qrels_notes, *query_notes, *run_notes, *corpus_notes)
    return _noted(Collection(name or folder.resolve().name, texts, passages, judged, candidates, notes))


def _of_file(path: Path, given: Mapping[str, object], name: str | None) -> Collection:
    if not path.exists():
        raise InvalidInputError(f"{quoted_path(path)} does not exist; expected a folder or a JSONL file.")
    too_many = next((argument for argument, value in given.items() if value is not None), None)
    if too_many:
        raise InvalidInputError(
            f"`{too_many}` goes with a folder, but {str(path)!r} is a file that contains everything."
        )
    return _noted(read_rows(path, name or without_compression(path.name).removesuffix(".jsonl").removesuffix(".json")))


def _noted(collection: Collection) -> Collection:
    empty = len(collection.queries) - len(collection.run)
    if not empty:
        return collection
    note = f"Judged queries without results, counted as 0: {empty}."
    return replace(collection, notes=(*collection.notes, note))


def _texts_file(folder: Path, stem: str, given: _Path | None) -> Path:
    found = _file(folder, stem, _TEXT_ENDINGS, given)
    if found is None:
        raise InvalidInputError(
            f"{str(folder)!r} has no {stem}.jsonl; expected it there (or as .gz or .tsv), or its path as `{stem}`."
        )
    return found


def _file(folder: Path, stem: str, endings: Several[str], given: _Path | None = None) -> Path | None:
    """Return the given path, or else the only file of that name in the folder, if there is one."""
    if given is not None:
        return Path(given)
    paths = (folder / f"{stem}{ending}{compressed}" for ending in endings for compressed in ("", *COMPRESSED_ENDINGS))
    with errors_named(quoted_path(folder / stem)):
        found = [path for path in paths if path.is_file()]
    if len(found) > 1:
        raise InvalidInputError(
            f"{str(folder)!r} has {' and '.join(path.name for path in found)}; keep one, or name it with `{stem}`."
        )
    return found[0] if found else None


def _qrels_file(folder: Path, split: str) -> tuple[Path, list[str]]:
    in_folder = folder / "qrels"
    has_splits = in_folder.is_dir()
    found = _file(in_folder, split, _TREC_ENDINGS) if has_splits else _file(folder, "qrels", _TREC_ENDINGS)
    if found is not None:
        return found, []
    if not has_splits:
        raise InvalidInputError(
            f"{str(folder)!r} has no judgements; expected qrels/{shorten(split)}.tsv or qrels.tsv, or their path as "
            "`qrels`."
        )
    files = sorted(path for path in in_folder.iterdir() if without_compression(path.name).endswith(_TREC_ENDINGS))
    if len(files) != 1:
        names = first_few([path.name for path in files], 10) or "no file"
        raise InvalidInputError(
            f"{str(in_folder)!r} has no judgements of the split {quoted(split)}; found {names}. Choose one with "
            "`split`."
        )
    return files[0], [f"There are no judgements of the split {quoted(split)}; those in {files[0].name} were read."]


def _queries(path: Path, judged: Several[str]) -> tuple[dict[str, str], list[str]]:
    texts, notes = read_texts(path, wanted=judged)
    check_texts(texts, judged, "judged queries", path)
    blank = [query_id for query_id, text in texts.items() if is_blank(text)]
    if blank:
        raise InvalidInputError(f"{str(path)!r} has blank queries ({first_few(blank)}); expected a text for each.")
    return texts, notes


def _candidates(path: Path, queries: Several[str]) -> tuple[Run, list[str]]:
    run, notes = run_and_notes(path)
    unjudged = [query_id for query_id in run if query_id not in queries]
    if len(unjudged) == len(run):
        raise InvalidInputError(
            f"{str(path)!r} has no judged query, only {first_few(unjudged)}; judged are {first_few(queries)}. "
            "Do run and qrels belong together?"
        )
    if unjudged:
        notes.append(f"Queries of the run without judgements, left out: {len(unjudged)} ({first_few(unjudged)}).")
    return {query_id: run[query_id] for query_id in queries if query_id in run}, notes


def _doc_ids(results: Run | Qrels) -> dict[str, None]:
    """Return each doc_id once, in order of first appearance."""
    return dict.fromkeys(doc_id for found in results.values() for doc_id in found)
