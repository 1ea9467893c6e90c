"""What a tracer sees of the LangChain adapter: runs, their places in the tree, inputs, outputs and errors."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.documents import Document
from langchain_core.load import dumpd
from langchain_core.runnables import RunnableLambda

from collector import Collector
from marcorank import Logistic, RerankTimeoutError, ScoreError
from marcorank.langchain import MarcoRerank, RerankRetriever
from marcorank.testing import WordOverlapScorer
from patience import PATIENCE_S

DOCUMENTS = [Document(page_content="pear"), Document(page_content="red apple")]


class BrokenScorer:
    def score(self, query, passages):
        raise RuntimeError("no memory")


def tree(run):
    return {run.name: [tree(child) for child in run.child_runs]} if run.child_runs else run.name


@pytest.fixture
def tracer():
    return Collector()


@pytest.fixture
def rerank():
    return MarcoRerank(reranker=WordOverlapScorer(), top_n=1, score_threshold=-4.0)


def check_run(run):
    assert run.name == "MarcoRerank"
    assert run.inputs == {
        "query": "red",
        "document_count": 2,
        "model": "word-overlap",
        "top_n": 1,
        "score_threshold": -4.0,
    }
    assert [document.metadata for document in run.outputs["documents"]] == [{"relevance_score": 5.0}]
    assert run.error is None
    assert run.end_time is not None
    json.dumps(dumpd({"inputs": run.inputs, "outputs": run.outputs}))


async def test_a_call_is_a_run(tracer, rerank):
    """A call is one run with query, count, model and settings in, the scored documents out; all of it JSON-ready."""
    rerank.compress_documents(DOCUMENTS, "red", [tracer])
    await rerank.acompress_documents(DOCUMENTS, "red", [tracer])
    assert len(tracer.roots) == 2
    for run in tracer.roots:
        check_run(run)


async def test_a_run_shows_the_options_that_are_on(tracer):
    """With what they go by, and which near-duplicates were left out."""
    rerank = MarcoRerank(
        reranker=WordOverlapScorer(),
        skim=WordOverlapScorer(),
        skim_keep=7,
        blend=0.3,
        max_similarity=0.8,
        activation=Logistic(1, 0),
        max_drop=0.5,
        min_n=2,
    )
    documents = [*DOCUMENTS, Document(page_content="Red  apple")]
    rerank.compress_documents(documents, "red", [tracer])
    await rerank.acompress_documents(documents, "red", [tracer])
    for run in tracer.roots:
        assert (
            run.inputs.items()
            >= {
                "skim": "word-overlap",
                "skim_keep": 7,
                "blend": 0.3,
                "max_similarity": 0.8,
                "max_drop": 0.5,
                "min_n": 2,
            }.items()
        )
        assert run.outputs["skipped"] == [{"index": 2, "similar_to": 1, "similarity": 1.0}]
        json.dumps(dumpd({"inputs": run.inputs, "outputs": run.outputs}))


class SlowScorer:
    def score(self, query, passages):
        raise RerankTimeoutError("the call took longer than 1 s")


async def test_a_skim_without_the_model_ends_its_run(tracer):
    """The documents are ranked, if by the cheaper model alone, so that the run is no error."""
    rerank = MarcoRerank(reranker=SlowScorer(), skim=WordOverlapScorer(), skim_keep=1, top_n=1, timeout_s=60)
    rerank.compress_documents(DOCUMENTS, "red", [tracer])
    await rerank.acompress_documents(DOCUMENTS, "red", [tracer])
    for run in tracer.roots:
        assert run.error is None
        (document,) = run.outputs["documents"]
        assert document.metadata.items() >= {"rerank_outcome": "skim", "scored_by": "word-overlap"}.items()


async def test_an_empty_call_is_a_run_too(tracer, rerank):
    """A call without documents starts and ends a run."""
    rerank.compress_documents([], "red", [tracer])
    await rerank.acompress_documents([], "red", [tracer])
    assert [(run.inputs["document_count"], run.outputs) for run in tracer.roots] == [(0, {"documents": []})] * 2


@pytest.mark.parametrize(
    "retriever_of",
    [
        lambda rerank, base: RerankRetriever(base_retriever=base, reranker=rerank),
        lambda rerank, base: ContextualCompressionRetriever(base_retriever=base, base_compressor=rerank),
    ],
)
async def test_the_run_hangs_below_its_retriever(tracer, rerank, retriever_of):
    """Inside a retriever the run is a child, beside that of the base retriever."""
    base = RunnableLambda(lambda query: DOCUMENTS, name="base")
    retriever = retriever_of(rerank, base)
    retriever.invoke("red", {"callbacks": [tracer]})
    await retriever.ainvoke("red", {"callbacks": [tracer]})
    assert [tree(run) for run in tracer.roots] == [{retriever.get_name(): ["base", "MarcoRerank"]}] * 2
    for run in tracer.roots:
        check_run(run.child_runs[1])


async def test_the_run_of_a_chain_step_hangs_below_it(tracer, rerank):
    """As a step of a chain the run is a child of that step."""
    step = rerank.as_runnable()
    state = {"query": "red", "documents": DOCUMENTS}
    step.invoke(state, {"callbacks": [tracer]})
    await step.ainvoke(state, {"callbacks": [tracer]})
    assert [tree(run) for run in tracer.roots] == [{"rerank": ["MarcoRerank"]}] * 2


async def test_callbacks_come_from_the_surrounding_chain(tracer, rerank):
    """Called inside a runnable without callbacks, the run still hangs below that runnable."""

    def compress(query):
        return rerank.compress_documents(DOCUMENTS, query)

    async def acompress(query, config):
        return await rerank.acompress_documents(DOCUMENTS, query, config["callbacks"])

    step = RunnableLambda(compress, afunc=acompress, name="step")
    step.invoke("red", {"callbacks": [tracer]})
    await step.ainvoke("red", {"callbacks": [tracer]})
    assert [tree(run) for run in tracer.roots] == [{"step": ["MarcoRerank"]}] * 2


async def test_an_error_ends_the_run(tracer):
    """When the model fails, the run ends with the error, which names what the scorer raised."""
    rerank = MarcoRerank(reranker=BrokenScorer())
    with pytest.raises(ScoreError, match="raised RuntimeError: no memory"):
        rerank.compress_documents(DOCUMENTS, "red", [tracer])
    with pytest.raises(ScoreError, match="raised RuntimeError: no memory"):
        await rerank.acompress_documents(DOCUMENTS, "red", [tracer])
    for run in tracer.roots:
        assert run.error.startswith("ScoreError('Model `BrokenScorer` raised RuntimeError: no memory')")
        assert run.end_time is not None
    assert len(tracer.roots) == 2


def test_an_error_is_seen_on_every_level(tracer):
    """The retriever's run ends with the same error as the run below it."""

    class NotANumber:
        def score(self, query, passages):
            return [float("nan")] * len(passages)

    retriever = RerankRetriever(
        base_retriever=RunnableLambda(lambda query: DOCUMENTS), reranker=MarcoRerank(reranker=NotANumber())
    )
    with pytest.raises(ScoreError, match="returned nan"):
        retriever.invoke("red", {"callbacks": [tracer]})
    (root,) = tracer.roots
    assert "returned nan" in root.error
    assert "returned nan" in root.child_runs[1].error


async def test_a_cancelled_call_ends_its_run(tracer):
    """A cancelled task ends its run with the cancellation."""
    started, gate = threading.Event(), threading.Event()

    class Waiting:
        def score(self, query, passages):
            started.set()
            assert gate.wait(PATIENCE_S)
            return [0.0] * len(passages)

    task = asyncio.create_task(MarcoRerank(reranker=Waiting()).acompress_documents(DOCUMENTS, "red", [tracer]))
    assert await asyncio.to_thread(started.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError, match=r"^$"):
        await task
    gate.set()
    (run,) = tracer.roots
    assert run.error.startswith("CancelledError()")


async def test_async_handlers_see_start_and_end(rerank):
    """Handlers with async methods are awaited."""
    seen = []

    class Handler(AsyncCallbackHandler):
        async def on_chain_start(self, serialized, inputs, **kwargs):
            await asyncio.sleep(0)
            seen.append(("start", kwargs["name"]))

        async def on_chain_end(self, outputs, **kwargs):
            await asyncio.sleep(0)
            seen.append(("end", len(outputs["documents"])))

    await rerank.acompress_documents(DOCUMENTS, "red", [Handler()])
    assert seen == [("start", "MarcoRerank"), ("end", 1)]


def test_no_secret_is_traced(tracer):
    """The token is in nothing that a tracer gets."""
    rerank = MarcoRerank(model_name="bundled", token="hf_secret")
    retriever = RerankRetriever(base_retriever=RunnableLambda(lambda query: DOCUMENTS), reranker=rerank)
    retriever.invoke("red", {"callbacks": [tracer]})
    (root,) = tracer.roots
    assert "hf_secret" not in str(root.model_dump())
    assert "hf_secret" not in json.dumps(dumpd(retriever))
