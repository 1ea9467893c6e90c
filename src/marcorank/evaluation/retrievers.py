"""Runs of LangChain retrievers, LlamaIndex retrievers and query engines, and functions.

No framework is imported: objects are recognised by their methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from marcorank._arguments import query_text
from marcorank._text import first_few, quoted
from marcorank.collections.trec import ID_RULE, is_id
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from marcorank.collections.records import Run


def run_of(search: object, queries: Mapping[str, str], *, doc_id: str | Callable[[Any], object] = "id") -> Run:
    """Send each query to a retriever and record the ids that it returns.

    Args:
        search: A LangChain retriever or another runnable from a query to documents; a LlamaIndex retriever; a
            LlamaIndex query engine, with its postprocessors; or a function from a query to doc_ids, documents or
            nodes, or to pairs of one of these and a score, best first. Of a query engine the sources of its answers
            count; with `response_mode="no_text"` it calls no LLM.
        queries: Texts by query_id, such as `Collection.queries`.
        doc_id: Source of a result's doc_id: `"id"` for its own (`Document.id`, `node_id`), the name of a metadata
            field, or a function of the result, such as `lambda found: found.node.ref_doc_id`. Of several results with
            the same doc_id, such as chunks of one document, the first counts.

    Returns:
        The results in their order; scores count down to 1. A query without results is left out.

    Raises:
        InvalidInputError: `search` cannot be called in any of these ways, or a result has no doc_id.
    """
    retrieve = _search_function(search)
    if not isinstance(queries, Mapping):
        raise InvalidInputError(f"`queries` is a {type(queries).__name__}; expected a mapping of texts by query_id.")
    if not callable(doc_id) and (not isinstance(doc_id, str) or not doc_id):
        raise InvalidInputError(
            f"`doc_id` is {quoted(doc_id)}; expected 'id', the name of a metadata field, or a function."
        )
    run = {}
    for query_id, query in queries.items():
        results = retrieve(query_text(query))
        if isinstance(results, (str, bytes, Mapping)) or not isinstance(results, Iterable):
            raise InvalidInputError(
                f"The search returned a {type(results).__name__} for query_id {quoted(query_id)}; expected a list of "
                "results."
            )
        ids = dict.fromkeys(
            _doc_id(result, doc_id, f"Result {index} of query_id {quoted(query_id)}")
            for index, result in enumerate(results)
        )
        if ids:
            run[query_id] = {found: float(len(ids) - index) for index, found in enumerate(ids)}
    return run


def _search_function(search: object) -> Callable[[str], Any]:
    # A query engine has `retrieve` too, but it does not take a text, and not every engine supports it.
    query = getattr(search, "query", None)
    if callable(query):
        return lambda text: getattr(query(text), "source_nodes", None)
    for name in ("invoke", "retrieve", "__call__"):
        method: Callable[[str], Any] | None = getattr(search, name, None)
        if callable(method) and not isinstance(search, type):
            return method
    hint = " Pass its `as_retriever()`." if hasattr(search, "as_retriever") else ""
    raise InvalidInputError(
        f"`search` is {quoted(search)}; expected a LangChain retriever (with `invoke`), a LlamaIndex retriever (with "
        f"`retrieve`) or query engine (with `query`), or a function from a query to doc_ids.{hint}"
    )


def _doc_id(result: Any, wanted: str | Callable[[Any], object], shown: str) -> str:
    if isinstance(result, (tuple, list)) and len(result) == 2:
        result = result[0]
    found: object
    if isinstance(result, (str, int, np.integer)):
        found, where = result, "it is"
    elif callable(wanted):
        found, where = wanted(result), "the function `doc_id` returned"
    elif wanted == "id":
        # LlamaIndex has the id on the node, LangChain on the document.
        found, where = getattr(result, "node_id", None) or getattr(result, "id", None), "its own id is"
    else:
        found, where = _metadata(result).get(wanted), f"its metadata field {quoted(wanted)} is"
    doc_id = str(found) if isinstance(found, (int, np.integer)) and not isinstance(found, bool) else found
    if not is_id(doc_id):
        fields = first_few(_metadata(result), 10) or "no fields"
        raise InvalidInputError(
            f"{shown} ({type(result).__name__}) has no usable doc_id: {where} {quoted(found)}; expected {ID_RULE}. "
            f"Choose its source with `doc_id`: a metadata field (available: {fields}) or a function of the result."
        )
    return str(doc_id)


def _metadata(result: object) -> Mapping[str, Any]:
    metadata = getattr(result, "metadata", None)
    return metadata if isinstance(metadata, Mapping) else {}
