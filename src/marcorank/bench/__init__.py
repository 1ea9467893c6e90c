"""Measures how fast this machine reranks with every installed backend, precision and peer.

`running.run_bench` starts a process for each contestant (`process`, `child`), gives all of them the same request
(`workload`) in turn, and returns `records.Results`. What runs in those processes is in `contestants` (marcorank and its
peers), `limit` (large matrix products) and `scenarios` (concurrent requests, lag of an event loop).
"""
