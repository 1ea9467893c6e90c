"""Many callers at once: the event loop stays free, results do not mix, cancelled work is dropped."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from gated_scorer import GatedScorer
from marcorank.langchain import MarcoRerank, RerankRetriever
from marcorank.testing import WordOverlapScorer

WORDS = ["red", "apple", "tart", "pear", "green", "car"]
DOCUMENTS = [Document(page_content=f"{first} {second}") for first in WORDS for second in WORDS]


def queries_of(count):
    return [f"{WORDS[i % 6]} {WORDS[i // 6 % 6]} {i}" for i in range(count)]


async def only_async(query):
    await asyncio.sleep(0)
    return DOCUMENTS


async def has_started(scorer):
    assert await asyncio.to_thread(scorer.started.wait, 30)


async def test_two_hundred_callers_get_what_each_would_get_alone():
    """200 concurrent calls equal serial ones, and the event loop runs on while they wait for the model."""
    scorer = GatedScorer()
    rerank = MarcoRerank(reranker=scorer, top_n=4)
    retriever = RerankRetriever(base_retriever=RunnableLambda(only_async), reranker=rerank)
    queries = queries_of(200)
    tasks = [asyncio.create_task(retriever.ainvoke(query)) for query in queries]
    await has_started(scorer)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    scorer.gate.set()
    together = await asyncio.gather(*tasks)
    assert together == [rerank.compress_documents(DOCUMENTS, query) for query in queries]


async def test_async_work_runs_in_the_rerankers_own_thread():
    """Async scoring takes neither the event loop's thread nor one of its default pool."""
    scorer = GatedScorer()
    scorer.gate.set()
    rerank = MarcoRerank(reranker=scorer)
    await asyncio.gather(*(rerank.acompress_documents(DOCUMENTS, query) for query in queries_of(20)))
    await rerank.as_runnable().abatch([{"query": query, "documents": DOCUMENTS} for query in queries_of(20)])
    assert {name.rpartition("_")[0] for name in scorer.threads} == {"marcorank"}


async def test_cancelled_work_that_waits_is_dropped(monkeypatch):
    """A task that is cancelled before its turn is never scored; its neighbours get their results."""
    monkeypatch.setattr("marcorank.reranker._THREADS_FOR_A_SCORER", 1)
    scorer = GatedScorer()
    rerank = MarcoRerank(reranker=scorer)
    tasks = [asyncio.create_task(rerank.acompress_documents(DOCUMENTS, query)) for query in ["red", "car", "pear"]]
    await has_started(scorer)
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError, match=r"^$"):
        await tasks[1]
    scorer.gate.set()
    first, last = await asyncio.gather(tasks[0], tasks[2])
    assert scorer.queries == ["red", "pear"]
    assert first == rerank.compress_documents(DOCUMENTS, "red")
    assert last == rerank.compress_documents(DOCUMENTS, "pear")


async def test_cancelling_running_work_frees_the_caller():
    """A task that is cancelled while the model runs ends at once, and the reranker goes on working."""
    scorer = GatedScorer()
    rerank = MarcoRerank(reranker=scorer)
    task = asyncio.create_task(rerank.acompress_documents(DOCUMENTS, "red"))
    await has_started(scorer)
    task.cancel()
    with pytest.raises(asyncio.CancelledError, match=r"^$"):
        await task
    assert not scorer.gate.is_set()
    scorer.gate.set()
    assert await rerank.acompress_documents(DOCUMENTS, "car") == rerank.compress_documents(DOCUMENTS, "car")


async def test_a_timeout_frees_the_caller():
    """`asyncio.wait_for` around a call works: the caller gets its TimeoutError while the model still runs."""
    scorer = GatedScorer()
    rerank = MarcoRerank(reranker=scorer)
    with pytest.raises(asyncio.TimeoutError, match=r"^$"):
        await asyncio.wait_for(rerank.acompress_documents(DOCUMENTS, "red"), timeout=0.01)
    scorer.gate.set()


def test_threads_share_an_adapter():
    """Threads that use one adapter at once get what each would get alone."""
    rerank = MarcoRerank(reranker=WordOverlapScorer(), top_n=4)
    queries = queries_of(60)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: rerank.compress_documents(DOCUMENTS, query), queries))
    assert together == [rerank.compress_documents(DOCUMENTS, query) for query in queries]


def test_one_adapter_serves_several_event_loops():
    """An adapter works in one event loop after the other, as in tests and notebooks."""
    rerank = MarcoRerank(reranker=WordOverlapScorer())
    first = asyncio.run(rerank.acompress_documents(DOCUMENTS, "red"))
    assert asyncio.run(rerank.acompress_documents(DOCUMENTS, "red")) == first
