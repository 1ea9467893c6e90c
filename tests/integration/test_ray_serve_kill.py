"""The server while parts of the cluster die: no response is lost, and none is wrong."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from marcorank import RemoteError, Reranker
from marcorank.remote import RemoteScorer
from patience import PATIENCE_S
from ray_server import cluster_server

QUERIES = [f"what is known about topic {number}?" for number in range(12)]
PASSAGES = [f"passage {number} is about topic {number % 12}, at some length, " * 3 for number in range(20)]
CLIENTS = 6
# As for RemoteScorer. A request whose node dies may never get a response.
TIMEOUT_S = 10


class Load:
    """Clients that send requests in a loop, and retry temporary failures."""

    def __init__(self, url: str) -> None:
        self.responses: list[tuple[str, list[float]]] = []
        self.failures: list[str] = []
        self.retries = 0
        self._url = url
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(
                target=self._send_with_remote_scorer if number % 3 == 0 else self._send_with_httpx, args=(number,)
            )
            for number in range(CLIENTS)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int) -> None:
        """Wait for this number of further responses."""
        with self._changed:
            expected = len(self.responses) + count
            self._changed.wait_for(lambda: self.failures or len(self.responses) >= expected, PATIENCE_S)
            assert not self.failures
            assert len(self.responses) >= expected, "no more responses arrived"

    def _send_with_remote_scorer(self, number: int) -> None:
        with RemoteScorer(f"tei+{self._url}", timeout_s=TIMEOUT_S, max_attempts=20) as scorer:
            reranker = Reranker(scorer)
            while not self._stop.is_set():
                query = QUERIES[number % len(QUERIES)]
                number += 1
                try:
                    self._add_response(query, reranker.score(query, PASSAGES).tolist())
                except RemoteError as error:
                    self._add_failure(str(error))
                    return

    def _send_with_httpx(self, number: int) -> None:
        with httpx.Client(timeout=TIMEOUT_S) as client:
            while not self._stop.is_set():
                query = QUERIES[number % len(QUERIES)]
                number += 1
                body = {"query": query, "texts": PASSAGES, "raw_scores": True}
                for _ in range(10):
                    try:
                        response = client.post(f"{self._url}/rerank", json=body)
                    except httpx.TransportError:
                        response = None
                    if response is not None and response.status_code not in {502, 503, 504}:
                        break
                    self.retries += 1
                    time.sleep(0.2)
                if response is None or response.status_code != 200:
                    self._add_failure("no connection" if response is None else response.text)
                    return
                scores = {one["index"]: one["score"] for one in response.json()}
                self._add_response(query, [scores[index] for index in range(len(PASSAGES))])

    def _add_response(self, query: str, scores: list[float]) -> None:
        with self._changed:
            self.responses.append((query, scores))
            self._changed.notify_all()

    def _add_failure(self, message: str) -> None:
        with self._changed:
            self.failures.append(message)
            self._changed.notify_all()


def test_no_request_is_lost_when_a_replica_or_node_dies():
    """A replica and then a worker node are killed; each request gets the scores of a single process."""
    with Reranker("bundled", threads=1) as reranker:
        expected = {query: reranker.score(query, PASSAGES).tolist() for query in QUERIES}
    with cluster_server(2, num_cpus=1, min_replicas=2, max_replicas=2) as (url, cluster, nodes), Load(url) as load:
        import ray

        # Repeat if the killed replica was processing no request of a client that counts its retries.
        for _ in range(10):
            load.wait_for_more(2 * CLIENTS)
            replica, *_ = (one for one in ray.util.list_named_actors(all_namespaces=True) if "marcorank" in one["name"])
            ray.kill(ray.get_actor(replica["name"], namespace=replica["namespace"]))
            load.wait_for_more(2 * CLIENTS)
            if load.retries > 0:
                break
        cluster.remove_node(nodes[0], allow_graceful=False)
        load.wait_for_more(3 * CLIENTS)
    assert load.failures == []
    assert load.retries > 0, "nothing died in the middle of a request"
    for query, scores in load.responses:
        assert scores == pytest.approx(expected[query], abs=1e-4)
