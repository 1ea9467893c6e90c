"""What each kind of reranking server is asked, and what its scores are: one record each.

They differ in where and how they are asked. What they answer is alike enough for one reader, see `replies`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from marcorank.ranking import ScoreKind

    # Makes the body of a request of a query, its passages, and the name of the model.
    _Ask: TypeAlias = Callable[[str, Sequence[str], str | None], dict[str, Any]]

_INFINITY_CHARS = 122_880


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of server is spoken to.

    Attributes:
        name: As in `"tei+http://host:8080"`.
        path: Of the endpoint, below the base of the server.
        ask: Makes the body of a request: all scores, no texts back, logits and truncation where one can ask for them.
        score_kind: What the scores are.
        max_passages: How many passages a request holds if the user does not say.
        needs_model: Whether the server refuses a request that names no model.
        own_hosts: Hosts of the vendor, the only ones that get its key from the environment.
        key_names: Variables of the environment in which the vendor's clients look for its key.
    """

    name: str
    path: str
    ask: _Ask
    score_kind: ScoreKind
    max_passages: int
    needs_model: bool = False
    own_hosts: tuple[str, ...] = ()
    key_names: tuple[str, ...] = ()


def _documents(query: str, passages: Sequence[str], model: str | None, **more: Any) -> dict[str, Any]:
    body = {"query": query, "documents": list(passages), **more}
    return body if model is None else {"model": model, **body}


# The number of passages is the server's own limit where it has one: `--max-client-batch-size` of TEI is 32 unless it
# is set, Cohere advises against more than 1,000, Voyage takes 1,000. vLLM has none and infinity takes 2,048: what they
# compute in a second or two comes sooner, and is sent again sooner where it has to be.
# Sources: TEI router/src/http/types.rs; infinity_emb/fastapi_schemas/pymodels.py; vllm/entrypoints/pooling/scoring and
# .../base/protocol.py; the API references of Cohere (v2/rerank), Jina (v1/rerank) and Voyage (v1/rerank).
DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            name="tei",
            path="/rerank",
            ask=lambda query, passages, _: {
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
            # -1 stands for the length of the model.
            ask=lambda query, passages, model: _documents(
                query, passages, model, use_activation=False, truncate_prompt_tokens=-1
            ),
            score_kind="logit",
            max_passages=256,
        ),
        Dialect(
            name="infinity",
            path="/rerank",
            # It always truncates, but refuses characters beyond these, which no model of it reads.
            ask=lambda query, passages, model: _documents(
                query[:_INFINITY_CHARS],
                [passage[:_INFINITY_CHARS] for passage in passages],
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
            # Longer ones are cut there; 4,096 is its default.
            ask=lambda query, passages, model: _documents(query, passages, model, max_tokens_per_doc=4096),
            score_kind="probability",
            max_passages=1000,
            needs_model=True,
            own_hosts=("api.cohere.com", "api.cohere.ai"),
            key_names=("COHERE_API_KEY", "CO_API_KEY"),
        ),
        Dialect(
            name="jina",
            path="/v1/rerank",
            # It always truncates.
            ask=lambda query, passages, model: _documents(query, passages, model, return_documents=False),
            score_kind="probability",
            max_passages=1000,
            needs_model=True,
            own_hosts=("api.jina.ai",),
            key_names=("JINA_API_KEY",),
        ),
        Dialect(
            name="voyage",
            path="/v1/rerank",
            # Where others say `top_n` it says `top_k`; without either all scores come.
            ask=lambda query, passages, model: _documents(
                query, passages, model, return_documents=False, truncation=True
            ),
            score_kind="probability",
            max_passages=1000,
            needs_model=True,
            own_hosts=("api.voyageai.com",),
            key_names=("VOYAGE_API_KEY",),
        ),
    )
}
