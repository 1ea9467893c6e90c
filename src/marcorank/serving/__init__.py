"""The HTTP shapes of a rerank server, with and without Ray."""
