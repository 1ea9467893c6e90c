"""The LlamaIndex adapter of marcorank under LlamaIndex's naming scheme: the class of `marcorank.llama_index`."""

from marcorank.llama_index import MarcoRerank

__all__ = ["MarcoRerank"]
