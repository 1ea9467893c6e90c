"""Clients of TEI, Cohere and infinity with `marcorank serve` as their server."""

from __future__ import annotations

import warnings

import httpx
import pytest

from marcorank import Reranker
from marcorank.langchain import MarcoRerank
from marcorank.remote import DIALECTS
from rerank_servers import TIMEOUT_S, server_command

QUERY = "how do I open a file?"
PASSAGES = [
    "a list is mutable",
    "open() returns a file object",
    "",
    "the with statement closes a file",
    "open() " * 600,
]
KEY = "a-long-random-key"


@pytest.fixture(scope="module")
def server():
    environment = {"MARCORANK_SERVE_API_KEY": KEY}
    with server_command("--threads", "1", "--auto-truncate", environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def expected():
    """The ranking of the model in this process."""
    with Reranker("bundled", activation="sigmoid", threads=1) as reranker:
        yield reranker.rank(QUERY, PASSAGES)


def check(results, expected):
    """Fail unless pairs of an index and a score are the beginning of a ranking."""
    results = list(results)
    assert [index for index, _ in results] == [one.index for one in expected][: len(results)]
    assert [score for _, score in results] == pytest.approx([one.score for one in expected][: len(results)], abs=1e-4)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_our_own_client(server, expected, dialect):
    """In each dialect, with logits where it has them, and with what was truncated."""
    with Reranker(f"{dialect}+{server.url}#bundled", token=KEY, activation="sigmoid") as reranker:
        ranking = reranker.rank(QUERY, PASSAGES)
        assert (ranking[0].logit is None) == (reranker.score_kind == "probability")
    check(((one.index, one.score) for one in ranking), expected)
    assert [one.truncated for one in ranking] == [one.truncated for one in expected]


async def test_our_adapter(server, expected):
    """The address in place of a model's name."""
    from langchain_core.documents import Document

    reranker = MarcoRerank(model_name=f"tei+{server.url}", token=KEY, activation="sigmoid", top_n=2)
    found = await reranker.acompress_documents([Document(text) for text in PASSAGES], QUERY)
    check([(PASSAGES.index(one.page_content), one.metadata["relevance_score"]) for one in found], expected)


@pytest.fixture(scope="module")
def cohere():
    """The package, which is written for an older pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("cohere")


@pytest.mark.parametrize("name", ["Client", "ClientV2"])
def test_the_client_of_cohere(server, expected, cohere, name):
    """Both versions of its API."""
    with getattr(cohere, name)(KEY, base_url=server.url) as client:
        response = client.rerank(query=QUERY, documents=PASSAGES, model="bundled", top_n=3)
        with pytest.raises(cohere.NotFoundError, match="this server serves 'bundled'"):
            client.rerank(query=QUERY, documents=PASSAGES, model="rerank-v3.5")
    assert len(response.results) == 3
    check([(one.index, one.relevance_score) for one in response.results], expected)


async def test_the_async_client_of_cohere(server, expected, cohere):
    """As the other one."""
    async with cohere.AsyncClientV2(KEY, base_url=server.url) as client:
        response = await client.rerank(query=QUERY, documents=PASSAGES, model="bundled")
    check([(one.index, one.relevance_score) for one in response.results], expected)


def test_the_compressor_of_langchain_cohere(server, expected, cohere):
    """With the server as its `base_url`."""
    from langchain_cohere import CohereRerank
    from langchain_core.documents import Document

    compressor = CohereRerank(cohere_api_key=KEY, base_url=server.url, model="bundled", top_n=2)
    documents = [Document(text, metadata={"index": index}) for index, text in enumerate(PASSAGES)]
    with compressor.client:  # else it leaves its connection open
        found = compressor.compress_documents(documents, QUERY)
    assert len(found) == 2
    check([(one.metadata["index"], one.metadata["relevance_score"]) for one in found], expected)


def test_the_postprocessor_of_llama_index(server, expected):
    """It does not ask for truncation, so the server needs `--auto-truncate` for long nodes."""
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    rerank = TextEmbeddingInference(base_url=server.url, top_n=3, auth_token=f"Bearer {KEY}")
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(index)), score=0.5) for index, text in enumerate(PASSAGES)]
    found = rerank.postprocess_nodes(nodes, query_str=QUERY)
    assert len(found) == 3
    check([(int(one.node.node_id), one.score) for one in found], expected)


def test_the_request_of_the_client_of_infinity(server, expected):
    """The body that it sends, and all that it reads in the response."""
    body = {
        "query": QUERY,
        "documents": PASSAGES,
        "return_documents": False,
        "raw_scores": False,
        "model": "default/not-specified",
    }
    response = httpx.post(f"{server.url}/rerank", json=body, headers={"Authorization": f"Bearer {KEY}"})
    answer = response.raise_for_status().json()
    check([(one["index"], one["relevance_score"]) for one in answer["results"]], expected)
    assert answer["object"] == "rerank"
    assert answer["model"] == "bundled"
    assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


def test_the_client_of_infinity(server, expected):
    """If it is installed: it asks for an older httpx, so no extra has it."""
    infinity_client = pytest.importorskip("infinity_client")
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    with infinity_client.AuthenticatedClient(server.url, token=KEY, timeout=httpx.Timeout(TIMEOUT_S)) as client:
        answer = rerank.sync(client=client, body=RerankInput(query=QUERY, documents=PASSAGES, top_n=3))
    check([(one.index, one.relevance_score) for one in answer.results], expected)
