"""Which passages make up a ranking, and in which order, once their scores are known."""
