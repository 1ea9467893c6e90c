"""The API of each kind of reranking server: endpoint, request body, kind of scores.

The responses are similar enough for one parser, see `responses`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from marcorank.ranking import ScoreKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The API of one kind of server.

    Attributes:
        name: Name, as in `"tei+http://host:8080"`.
        path: Path of the endpoint, relative to the base URL.
        passages_field: Field of the request body that holds the passages.
        options: Other fields: all scores, no texts, logits and truncation where the API has them.
        model: Whether the server has a single model, or a request may or must name one.
        score_kind: Kind of the scores.
        max_passages: Default maximum number of passages per request.
        max_chars: Maximum length of a text; None for no limit.
        vendor_hosts: The vendor's own hosts, the only ones to which its key from the environment is sent.
        key_names: Environment variables in which the vendor's clients look for the key.
    """

    name: str
    path: str
    passages_field: str = "documents"
    options: Mapping[str, Any]
    model: Literal["single", "optional", "required"]
    score_kind: ScoreKind
    max_passages: int
    max_chars: int | None = None
    vendor_hosts: tuple[str, ...] = ()
    key_names: tuple[str, ...] = ()

    def request_body(self, query: str, passages: Sequence[str], model: str | None) -> dict[str, Any]:
        """Return the body of a request, ready for JSON."""
        body = {
            "query": query[: self.max_chars],
            self.passages_field: [passage[: self.max_chars] for passage in passages],
            **self.options,
        }
        return body if model is None or self.model == "single" else {"model": model, **body}


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
            passages_field="texts",
            options={"raw_scores": True, "return_text": False, "truncate": True},
            model="single",
            score_kind="logit",
            max_passages=32,
        ),
        Dialect(
            name="vllm",
            path="/rerank",
            # -1 means the maximum length of the model; without it, one longer text makes vLLM refuse the request. A
            # cross-encoder then loses the end of the longer text of the pair, as on other servers. Where a template
            # makes one prompt of both, an end of it is lost, but only beyond the context of a language model.
            options={"use_activation": False, "truncate_prompt_tokens": -1},
            model="optional",
            score_kind="logit",
            max_passages=256,
        ),
        Dialect(
            name="infinity",
            path="/rerank",
            options={"raw_scores": True, "return_documents": False},
            model="optional",
            score_kind="logit",
            max_passages=256,
            # It always truncates, but rejects longer texts, of which no model reads the rest.
            max_chars=122_880,
        ),
        Dialect(
            name="cohere",
            path="/v2/rerank",
            # Longer documents are truncated; 4,096 is the default.
            options={"max_tokens_per_doc": 4096},
            model="required",
            score_kind="probability",
            max_passages=1000,
            vendor_hosts=("api.cohere.com", "api.cohere.ai"),
            key_names=("COHERE_API_KEY", "CO_API_KEY"),
        ),
        Dialect(
            name="jina",
            path="/v1/rerank",
            # It always truncates.
            options={"return_documents": False},
            model="required",
            score_kind="probability",
            max_passages=1000,
            vendor_hosts=("api.jina.ai",),
            key_names=("JINA_API_KEY",),
        ),
        Dialect(
            name="voyage",
            path="/v1/rerank",
            # `top_n` is called `top_k` here; without it, all scores are returned.
            options={"return_documents": False, "truncation": True},
            model="required",
            score_kind="probability",
            max_passages=1000,
            vendor_hosts=("api.voyageai.com",),
            key_names=("VOYAGE_API_KEY",),
        ),
    )
}
"""The API of each kind of server that `RemoteScorer` can use, by the name in its address."""
