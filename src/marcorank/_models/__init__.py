"""Which model, which of its files, and which backend."""
