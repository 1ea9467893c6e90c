"""Engines: each file holds how to load a model and how to get logits from it, and nothing else."""
