"""The API of each kind of reranking server: endpoint, request body, kind of scores.

The responses are similar enough for one parser, see `responses`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from marcorank.ranking import ScoreKind

    # From a query, its passages and the name of the model to the body of a request.
    _RequestBody: TypeAlias = Callable[[str, Sequence[str], str | None], dict[str, Any]]

_INFINITY_MAX_CHARS = 122_880


@dataclass(frozen=True, slots=True)
class Dialect:
    """The API of one kind of server.

    Attributes:
        name: Name, as in `"tei+http://host:8080"`.
        path: Path of the endpoint, relative to the base URL.
        request_body: Builds the body of a request: all scores, no texts, logits and truncation where the API has them.
        score_kind: Kind of the scores.
        max_passages: Default maximum number of passages per request.
        needs_model: Whether a request must name a model.
        vendor_hosts: The vendor's own hosts, the only ones to which its key from the environment is sent.
        key_names: Environment variables in which the vendor's clients look for the key.
    """

    name: str
    path: str
    request_body: _RequestBody
    score_kind: ScoreKind
    max_passages: int
    needs_model: bool = False
    vendor_hosts: tuple[str, ...] = ()
    key_names: tuple[str, ...] = ()


def _documents(query: str, passages: Sequence[str], model: str | None, **more: Any) -> dict[str, Any]:
    body = {"query": query, "documents": list(passages), **more}
    return body if model is None else {"model": model, **body}


# `max_passages` is the limit of the server if it is low: `--max-client-batch-size` of TEI defaults to 32, Cohere
# recommends at most 1,000, Voyage accepts 1,000. vLLM has no limit and infinity accepts 2,048; smaller requests, which
# take a second or two, return sooner and cost less to retry.
# Sources: TEI router/src/http/types.rs; infinity_emb/fastapi_schemas/pymodels.py; vllm/entrypoints/pooling/scoring and
# .../base/protocol.py; the API references of Cohere (v2/rerank), Jina (v1/rerank) and Voyage (v1/rerank).
DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            name="tei",
            path="/rerank",
            request_body=lambda query, passages, _: {
                "query": query,
                "texts": list(passages),
                "raw_scores": True,
                "return_text": False,
                "truncate": True,
            },
            score_kind="logit",
            max_passages=32,
        ),
        Dialect(
            name="vllm",
            path="/rerank",
            # -1 means the maximum length of the model.
            request_body=lambda query, passages, model: _documents(
                query, passages, model, use_activation=False, truncate_prompt_tokens=-1
            ),
            score_kind="logit",
            max_passages=256,
        ),
        Dialect(
            name="infinity",
            path="/rerank",
            # It always truncates, but rejects longer texts, of which no model reads the rest.
            request_body=lambda query, passages, model: _documents(
                query[:_INFINITY_MAX_CHARS],
                [passage[:_INFINITY_MAX_CHARS] for passage in passages],
                model,
                raw_scores=True,
                return_documents=False,
            ),
            score_kind="logit",
            max_passages=256,
        ),
        Dialect(
            name="cohere",
            path="/v2/rerank",
            # Longer documents are truncated; 4,096 is the default.
            request_body=lambda query, passages, model: _documents(query, passages, model, max_tokens_per_doc=4096),
            score_kind="probability",
            max_passages=1000,
            needs_model=True,
            vendor_hosts=("api.cohere.com", "api.cohere.ai"),
            key_names=("COHERE_API_KEY", "CO_API_KEY"),
        ),
        Dialect(
            name="jina",
            path="/v1/rerank",
            # It always truncates.
            request_body=lambda query, passages, model: _documents(query, passages, model, return_documents=False),
            score_kind="probability",
            max_passages=1000,
            needs_model=True,
            vendor_hosts=("api.jina.ai",),
            key_names=("JINA_API_KEY",),
        ),
        Dialect(
            name="voyage",
            path="/v1/rerank",
            # `top_n` is called `top_k` here; without it, all scores are returned.
            request_body=lambda query, passages, model: _documents(
                query, passages, model, return_documents=False, truncation=True
            ),
            score_kind="probability",
            max_passages=1000,
            needs_model=True,
            vendor_hosts=("api.voyageai.com",),
            key_names=("VOYAGE_API_KEY",),
        ),
    )
}
