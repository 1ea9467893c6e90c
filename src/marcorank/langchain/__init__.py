"""Cross-encoder reranking for LangChain, on langchain-core alone.

    from marcorank.langchain import MarcoRerank, RerankRetriever

    retriever = RerankRetriever(base_retriever=store.as_retriever(search_kwargs={"k": 20}), top_n=5)

`MarcoRerank` is a document compressor, `RerankRetriever` a retriever around any other, and `MarcoCrossEncoder` serves
code that takes a LangChain cross-encoder.

A ranked document is a copy with a metadata dict of its own, which has these keys, unless `write_metadata=False`. Values
of an earlier stage under these keys are replaced. All are plain numbers and texts, which vector stores accept.

* `relevance_score`: its score, a float.
* `retrieval_score`: its score before this stage: the value of `retrieval_score`, else of `relevance_score`, else of
  `score`; absent if none of them is a number.
* `best_start` and `best_end`: where the best window starts and ends in `page_content`; only with
  `long_passages="windows"`.
* `truncated`: True if the model read only the beginning of the text, else absent.
* `unknown_tokens`: number of unknown tokens in the text; absent if it has none.
* `query_truncated`: True if the query was longer than its limit and was truncated, else absent.
* `rerank_outcome`: if the model failed, else absent: `"fallback"`, or `"passthrough"` for documents in first-stage
  order without a `relevance_score`.
* `rerank_error` and `rerank_reason`: class name of the error, and its message, beside `rerank_outcome`.
"""

from __future__ import annotations

from marcorank.errors import MissingExtraError

try:
    from marcorank.langchain._cross_encoder import MarcoCrossEncoder
    from marcorank.langchain._rerank import MarcoRerank
    from marcorank.langchain._retriever import RerankRetriever
except ImportError as error:  # also langchain-core raises one if pydantic is missing
    raise MissingExtraError(
        "`marcorank.langchain` needs langchain-core 1.4 or later: pip install 'marcorank[langchain]'"
    ) from error

__all__ = ["MarcoRerank", "MarcoCrossEncoder", "RerankRetriever"]
