"""A LangChain retriever that reranks what another one finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import Runnable
from pydantic import ConfigDict, Field, field_validator, model_validator

from marcorank._adapters.settings import TopN, check_field_names
from marcorank._arguments import query_text
from marcorank._text import quoted
from marcorank.errors import InvalidInputError
from marcorank.langchain._rerank import NOT_GIVEN, MarcoRerank, NotGiven
from marcorank.reranker import Reranker, check_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.prompts import BasePromptTemplate
    from langchain_core.tools import BaseTool
    from pydantic import BaseModel
    from typing_extensions import Self


class RerankRetriever(BaseRetriever):
    """A retriever that reranks the documents of another retriever.

    Arguments of a call, as in `invoke(query, top_n=5, score_threshold=0.0)`, override the fields; every other keyword
    argument goes to the base retriever, such as `k=50` to that of a vector store.

    Attributes:
        base_retriever: Any retriever, or a runnable from a query to a list of documents. It should return more than
            `top_n`.
        reranker: Ranks them, with its own `score_threshold`. A `marcorank.Reranker` is wrapped.
        top_n: Maximum number of documents to return; None for all. Until it is given, that of `reranker` applies,
            also after a change of either.
    """

    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, validate_assignment=True, hide_input_in_errors=True
    )

    base_retriever: RetrieverLike
    reranker: MarcoRerank = Field(default_factory=MarcoRerank)
    top_n: TopN = 3

    @model_validator(mode="before")
    @classmethod
    def _check_field_names(cls, data: Any) -> Any:
        check_field_names(cls, data)
        return data

    @field_validator("base_retriever", mode="before")
    @classmethod
    def _check_base_retriever(cls, value: object) -> object:
        if not isinstance(value, Runnable):
            hint = " Pass its `as_retriever()`." if hasattr(value, "as_retriever") else ""
            raise InvalidInputError(
                f"`base_retriever` is {quoted(value)}; expected a retriever, or a runnable from a query to a list of "
                f"documents.{hint}"
            )
        return value

    @field_validator("reranker", mode="before")
    @classmethod
    def _wrap_core(cls, value: object) -> object:
        if isinstance(value, Reranker):
            return MarcoRerank(reranker=value)
        if not isinstance(value, (MarcoRerank, dict)):
            raise InvalidInputError(
                f"`reranker` is a {type(value).__name__}; expected a MarcoRerank of marcorank.langchain or a "
                "marcorank.Reranker. Wrap another model: MarcoRerank(model_name=...), or a scorer: "
                "MarcoRerank(reranker=...)."
            )
        return value

    def model_post_init(self, _context: Any, /) -> None:
        """Leave `top_n` to the reranker until it is given, then check it; LangChain copies what is in `__dict__`."""
        if "top_n" not in self.model_fields_set:
            self.__dict__.pop("top_n", None)
        else:
            check_options(self.reranker.core, top_n=self.top_n, score_threshold=self.reranker.score_threshold)

    if not TYPE_CHECKING:  # a type checker would take any attribute for defined

        def __getattr__(self, name: str) -> Any:
            return self.reranker.top_n if name == "top_n" else super().__getattr__(name)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; unlike pydantic's own, this checks the changes."""
        copied = super().model_copy(deep=deep)
        for name, value in (update or {}).items():
            setattr(copied, name, value)
        return copied

    def as_tool(
        self,
        args_schema: type[BaseModel] | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        arg_types: dict[str, type] | None = None,
        document_prompt: BasePromptTemplate[str] | None = None,
    ) -> BaseTool:
        """Return a tool with which an agent searches.

        The model reads the texts of the best documents, best first. The documents, with their scores, are the artifact
        of the message. A blank query, or another invalid argument, is returned as an error, and the agent goes on.

        Args:
            args_schema: The arguments that the model may give, `query` among them; the others are arguments of a call,
                such as `top_n`; one that is None is left out. By default the query alone.
            name: Name of the tool; `"search"` by default.
            description: What the model can find with the tool; say what the documents are about.
            arg_types: The arguments as types, in place of `args_schema`: `{"query": str, "top_n": int}`.
            document_prompt: How the model sees a document, with `page_content` and metadata as variables; of those that
                a document lacks nothing is shown. By default its text alone.

        Raises:
            InvalidInputError: The arguments have no `query`, or were given twice, or `document_prompt` is not a
                template.
        """
        from langchain_core.prompts import BasePromptTemplate

        from marcorank.langchain._tool import SearchTool, search_arguments  # a tool needs more of langchain-core

        if document_prompt is not None and not isinstance(document_prompt, BasePromptTemplate):
            raise InvalidInputError(
                f"`document_prompt` is {quoted(document_prompt)}; expected a template, such as "
                "PromptTemplate.from_template('{page_content}')."
            )
        return SearchTool(
            retriever=self,
            check_options=self._check_options,
            name=name or "search",
            description=description or "Search the documents. Returns the texts that answer the query best.",
            args_schema=search_arguments(args_schema, arg_types),
            document_prompt=document_prompt,
        )

    def _check_options(self, options: Mapping[str, Any]) -> None:
        if options.keys() & {"top_n", "score_threshold"}:
            check_options(
                self.reranker.core,
                top_n=options.get("top_n", self.top_n),
                score_threshold=options.get("score_threshold", self.reranker.score_threshold),
            )

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        top_n: int | NotGiven | None = NOT_GIVEN,
        score_threshold: float | NotGiven | None = NOT_GIVEN,
        **kwargs: Any,
    ) -> list[Document]:
        query_text(query)  # a store would raise an error of its own
        documents = self.base_retriever.invoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        return self.reranker.compress_documents(
            documents,
            query,
            run_manager.get_child(),
            top_n=self.top_n if top_n is NOT_GIVEN else top_n,
            score_threshold=score_threshold,
        )

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        top_n: int | NotGiven | None = NOT_GIVEN,
        score_threshold: float | NotGiven | None = NOT_GIVEN,
        **kwargs: Any,
    ) -> list[Document]:
        query_text(query)
        documents = await self.base_retriever.ainvoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        return await self.reranker.acompress_documents(
            documents,
            query,
            run_manager.get_child(),
            top_n=self.top_n if top_n is NOT_GIVEN else top_n,
            score_threshold=score_threshold,
        )
