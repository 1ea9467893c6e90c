"""How fast this machine reranks: every backend, precision and peer that is installed, measured in turn.

`running.run_bench` starts a process for each contestant (`process`, `child`), gives all of them the same request
(`workload`), lets them take turns, and returns `records.Results`. What they do in their processes is in `engines`
(marcorank and its peers), `products` (the machine's own limit) and `scenarios`.
"""
