"""BM25 as the first stage of a collection without a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from marcorank._arguments import whole_number
from marcorank.collections.trec import best_first
from marcorank.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from marcorank.collections.records import Run

_K1, _B = 0.9, 0.4
BM25 = f"BM25 (bm25s, Lucene's variant, k1={_K1}, b={_B}, English stop words, Snowball stemmer)"
"""Name of the method, for notes."""


def bm25_run(queries: Mapping[str, str], passages: Mapping[str, str], top_k: int = 100) -> Run:
    """Rank passages for each query with BM25: Lucene's variant with k1=0.9 and b=0.4, as in Anserini.

    Words of one letter and English stop words are removed, the others are stemmed. The same input gives the same run
    on every machine.

    Args:
        queries: Texts by query_id.
        passages: Texts by doc_id.
        top_k: Maximum number of results of a query.

    Returns:
        Scores by query_id and doc_id, best first, ties by doc_id descending; passages without a word of the query are
        left out.

    Raises:
        MissingExtraError: bm25s or PyStemmer is not installed.
    """
    top_k = whole_number("top_k", top_k, 1)
    try:
        import bm25s
        import Stemmer
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            'BM25 needs bm25s and PyStemmer: pip install "marcorank[evaluation]". Without them, pass a run.'
        ) from error

    def words(texts: Mapping[str, str]) -> list[list[str]]:
        return bm25s.tokenize(  # type: ignore[no-any-return]
            list(texts.values()),
            stopwords="en",
            stemmer=Stemmer.Stemmer("english"),
            return_ids=False,
            show_progress=False,
        )

    corpus = words(passages)
    known = {word for passage in corpus for word in passage}
    if not known:
        return {}
    index = bm25s.BM25(k1=_K1, b=_B, method="lucene")
    index.index(corpus, show_progress=False)
    doc_ids = list(passages)
    run = {}
    for query_id, query in zip(queries, words(queries), strict=True):
        searched = [word for word in query if word in known]
        if searched:
            scores = index.get_scores(searched)
            # Can be more than `top_k` if the last scores are equal: the doc_id decides among them.
            minimum = np.partition(scores, -top_k)[-top_k] if top_k < len(scores) else 0.0
            found = {
                doc_ids[index]: float(scores[index]) for index in np.flatnonzero((scores >= minimum) & (scores > 0))
            }
            run[query_id] = dict(list(best_first(found).items())[:top_k])
    return run
