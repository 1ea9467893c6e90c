"""Inference backends: each module loads a model and computes logits, and nothing else."""
