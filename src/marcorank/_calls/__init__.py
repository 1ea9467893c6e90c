"""One call: deduplication, score cache, deadline, fallback and passthrough."""
