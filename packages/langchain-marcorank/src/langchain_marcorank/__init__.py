"""The LangChain adapters of marcorank under LangChain's naming scheme: the classes of `marcorank.langchain`."""

from marcorank.langchain import MarcoCrossEncoder, MarcoRerank, RerankRetriever

__all__ = ["MarcoCrossEncoder", "MarcoRerank", "RerankRetriever"]
