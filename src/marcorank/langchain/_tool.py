"""A tool with which agents search: a retriever, with texts for the model and documents for the application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.documents import Document
from langchain_core.prompts import BasePromptTemplate, aformat_document, format_document
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import BaseTool, ToolException
from pydantic import BaseModel, Field, SkipValidation, create_model

from marcorank._arguments import query_text
from marcorank._text import first_few, quoted
from marcorank.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.callbacks import AsyncCallbackManagerForToolRun, CallbackManagerForToolRun

_NOTHING_FOUND = "No relevant documents were found."


class _Absent(str):
    """Metadata that a document lacks: nothing, in whatever format a prompt asks for."""

    __slots__ = ()

    def __format__(self, _spec: str, /) -> str:
        return ""


class SearchInput(BaseModel):
    """The arguments of a search."""

    query: str = Field(description="What to search for, as a complete question or a few words.")


class SearchTool(BaseTool):
    """Searches with a retriever.

    The model reads the texts; the documents, with their scores, are the artifact of the message. Invalid arguments are
    returned to the model as a tool error, so that it can try again.

    Attributes:
        retriever: Searches. Gets the query, and as keyword arguments all others that are not None.
        check_options: Raises `InvalidInputError` for options that the retriever cannot take.
        document_prompt: How the model sees a document; None for its text alone.
    """

    retriever: BaseRetriever
    check_options: Callable[[Mapping[str, Any]], None] = Field(exclude=True, repr=False)
    # langchain-core before 1.5 cannot validate the generic.
    document_prompt: SkipValidation[BasePromptTemplate[str] | None] = None
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: Any = True

    def _run(
        self, query: str, *, run_manager: CallbackManagerForToolRun | None = None, **options: Any
    ) -> tuple[str, list[Document]]:
        options = self._checked(query, options)
        callbacks = None if run_manager is None else run_manager.get_child()
        documents = self.retriever.invoke(query, {"callbacks": callbacks}, **options)
        if self.document_prompt is None:
            return _content([document.page_content for document in documents]), documents
        prompt = self.document_prompt
        return _content([format_document(_complete(document, prompt), prompt) for document in documents]), documents

    async def _arun(
        self, query: str, *, run_manager: AsyncCallbackManagerForToolRun | None = None, **options: Any
    ) -> tuple[str, list[Document]]:
        options = self._checked(query, options)
        callbacks = None if run_manager is None else run_manager.get_child()
        documents = await self.retriever.ainvoke(query, {"callbacks": callbacks}, **options)
        if self.document_prompt is None:
            return _content([document.page_content for document in documents]), documents
        prompt = self.document_prompt
        texts = [await aformat_document(_complete(document, prompt), prompt) for document in documents]
        return _content(texts), documents

    def _checked(self, query: str, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options that the model gave, or that its schema has as defaults.

        Raises:
            ToolException: They or the query are invalid; the agent reports this to the model.
        """
        # An optional argument that the model leaves out is None, which would mean "all" in a call of the retriever.
        given = {name: value for name, value in options.items() if value is not None}
        try:
            query_text(query)
            self.check_options(given)
        except InvalidInputError as error:
            raise ToolException(str(error)) from error
        return given


def search_arguments(args_schema: type[BaseModel] | None, arg_types: dict[str, type] | None) -> type[BaseModel]:
    """Return the schema of the arguments of a search, given as one or as their types.

    Raises:
        InvalidInputError: Both were given, or there is no query.
    """
    if args_schema is not None and arg_types is not None:
        raise InvalidInputError("`args_schema` was given beside `arg_types`, which says the same. Pass one of the two.")
    if arg_types is not None:
        fields: dict[str, Any] = {name: (kind, ...) for name, kind in arg_types.items()}
        args_schema = create_model("SearchInput", **fields)
    if args_schema is None:
        return SearchInput
    if not (isinstance(args_schema, type) and issubclass(args_schema, BaseModel)):
        raise InvalidInputError(f"`args_schema` is {quoted(args_schema)}; expected a class derived from BaseModel.")
    if "query" not in args_schema.model_fields:
        raise InvalidInputError(
            f"The arguments of the tool are [{first_few(list(args_schema.model_fields), 10)}]; expected `query` among "
            "them. The others are passed to the retriever, such as `top_n`."
        )
    return args_schema


def _complete(document: Document, prompt: BasePromptTemplate[str]) -> Document:
    """Return a document with all metadata that a prompt asks for."""
    absent = {name: _Absent() for name in prompt.input_variables if name != "page_content"}
    given = {name: value for name, value in document.metadata.items() if value is not None}
    return Document(document.page_content, metadata=absent | given)


def _content(texts: Sequence[str]) -> str:
    return "\n\n".join(texts) or _NOTHING_FOUND
