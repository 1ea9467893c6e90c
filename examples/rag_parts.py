"""Shared by both RAG examples: documents, updates of the store, the table of ranks, an answer without an LLM."""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import chromadb
from tqdm import tqdm

from marcorank import Reranker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

T = TypeVar("T")

SUFFIXES = {".md", ".txt", ".pdf"}
DEFAULT_QUESTION = "When is the else clause of a loop executed?"


def arguments(description: str | None) -> argparse.Namespace:
    """Parse the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # arrows, on a terminal that has none
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("question", nargs="?", default=DEFAULT_QUESTION, help="default: %(default)s")
    parser.add_argument(
        "--docs", type=folder, help="folder of .md, .txt and .pdf files; default: Python's own reference"
    )
    parser.add_argument(
        "--store", type=Path, default=Path(".marcorank"), help="folder of the Chroma store (default: %(default)s)"
    )
    parser.add_argument("--model", default="bundled", help="cross-encoder: bundled, a hub name or a folder")
    parser.add_argument("--top-k", type=at_least_one, default=20, help="passages from the store")
    parser.add_argument("--top-n", type=at_least_one, default=3, help="passages for the answer")
    parser.add_argument("--llm", help="name of a model on an OpenAI-compatible server")
    parser.add_argument("--base-url", help="that server, such as http://localhost:11434/v1 for Ollama")
    args = parser.parse_args()
    if not args.question.strip():
        parser.error("the question is blank")
    return args


def folder(text: str) -> Path:
    """Parse the path of an existing folder."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return Path(text)


def at_least_one(text: str) -> int:
    """Parse a number of passages."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text}; expected at least 1")
    return number


def load_documents(folder: Path | None) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each document."""
    if folder is None:
        from pydoc_data.topics import topics

        # The longest chapters repeat the text of others.
        yield from sorted((name, text) for name, text in topics.items() if len(text) < 15_000)
        return
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"No .md, .txt or .pdf file in {str(folder)!r}.")
    for file in files:
        yield str(file.relative_to(folder)), read(file)


def read(file: Path) -> str:
    """Return the text of a file."""
    if file.suffix.lower() != ".pdf":
        return file.read_text(encoding="utf-8", errors="replace")
    from pypdf import PdfReader

    return "\n\n".join(page.extract_text() for page in PdfReader(file).pages)


def open_collection(store: Path, framework: str, docs: Path | None) -> tuple[chromadb.ClientAPI, chromadb.Collection]:
    """Open a Chroma collection on disk with cosine distance: one for each framework and folder of documents."""
    settings = chromadb.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(store), settings)
    documents = "reference" if docs is None else hashlib.sha256(str(docs.resolve()).encode()).hexdigest()[:16]
    return client, client.get_or_create_collection(f"{framework}-{documents}", metadata={"hnsw:space": "cosine"})


def chunk_id(source: str, text: str) -> str:
    """Return an id that changes with the chunk, so that a second run embeds only new chunks."""
    return hashlib.sha256(f"{source}\0{text}".encode()).hexdigest()[:32]


def new_chunks(collection: chromadb.Collection, chunks: dict[str, T]) -> Iterable[Sequence[T]]:
    """Delete chunks that are no longer in any document, and yield the missing ones, with a progress bar."""
    if not chunks:
        raise SystemExit("The documents hold no text.")
    known = set(collection.get(include=[])["ids"])
    stale = sorted(known - chunks.keys())
    for start in range(0, len(stale), 1000):
        collection.delete(stale[start : start + 1000])
    missing = [chunk for key, chunk in chunks.items() if key not in known]
    print(f"{len(chunks)} chunks: {len(missing)} to embed, {len(stale)} removed")
    starts = range(0, len(missing), 32)
    return (missing[start : start + 32] for start in tqdm(starts, desc="Embedding", disable=not missing))


@dataclass
class Moved:
    """The ranks of one passage in both stages."""

    source: str
    text: str
    first_rank: int
    first_score: float
    score: float


def print_moves(question: str, rows: Sequence[Moved], *, model: str, top_n: int) -> None:
    """Print how the second stage changed the ranks; the passages above the line are used for the answer."""
    width = max(shutil.get_terminal_size((120, 24)).columns, 60)
    better = "the bundled model. For better rankings: --model ms-marco-MiniLM-L6-v2 (a download)"
    print(f"\nQuestion: {question}\nReranked by {better if model == 'bundled' else model}")
    print(f"\n{'rank':>11}  {'first':>6}  {'new':>8}  passage (similarity in the store, score of the cross-encoder)")
    for rank, row in enumerate(rows, 1):
        move = row.first_rank - rank
        arrow = f"↑{move}" if move > 0 else f"↓{-move}" if move < 0 else "="
        line = f"{row.first_rank:>3} →{rank:>3} {arrow:>3}  {row.first_score:6.3f}  {row.score:8.3f}  [{row.source}] "
        line += " ".join(row.text.split())
        print(line if len(line) <= width else line[: width - 1] + "…")
        if rank == top_n and rank < len(rows):
            print("-" * width)


def extractive_answer(question: str, texts: Sequence[str], model: str) -> str:
    """Return the sentence with the highest score."""
    sentences = [part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", text)]
    whole = [part for part in sentences if len(part.split()) > 3 and part.endswith((".", "!", "?"))]
    best = Reranker(model).rank(question, whole or texts, top_n=1)
    return " ".join(best[0].text.split()) + (
        "\n(Extractive: the best sentence of the passages above the line. For a written answer name a model:"
        "\n --llm NAME --base-url URL, for instance --llm llama3.2 --base-url http://localhost:11434/v1)"
    )


def print_answer(answer: str, rows: Sequence[Moved]) -> None:
    """Print the answer and its sources."""
    print(f"\nAnswer: {answer}")
    print("Sources: " + ", ".join(f"[{place}] {row.source}" for place, row in enumerate(rows, 1)))
