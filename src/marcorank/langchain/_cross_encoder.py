"""A LangChain cross-encoder: scores of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.cross_encoders import BaseCrossEncoder
from pydantic import field_validator

from marcorank._text import quoted
from marcorank.errors import InvalidInputError
from marcorank.langchain._settings import LangChainSettings

if TYPE_CHECKING:
    from marcorank.reranker import Reranker


class MarcoCrossEncoder(LangChainSettings, BaseCrossEncoder):
    """A LangChain cross-encoder, for code that takes one, such as LangChain's `CrossEncoderReranker`.

    The fields are those of `MarcoRerank` that concern the model. `on_error` can only be `"raise"`: this class returns
    only scores, and a passthrough has none. `skim`, `blend`, `max_similarity` and `max_drop` must be off: they order
    and leave out passages, which is left to the code that takes the scores.
    """

    @field_validator("on_error", mode="after")
    @classmethod
    def _check_on_error(cls, value: str) -> str:
        if value != "raise":
            raise InvalidInputError(
                f"`on_error` is {quoted(value)}; a cross-encoder returns scores alone, so it can only be 'raise'. Use "
                "MarcoRerank, or a `fallback`."
            )
        return value

    def _check_core(self) -> None:
        """Check `on_error` of a shared reranker, and of the fallbacks, as that of the field is checked."""
        for name, value in self._options_on().items():
            raise InvalidInputError(
                f"`{name}` is {quoted(value)}; a cross-encoder returns a score for every pair, in the order of the "
                "pairs. Use MarcoRerank, or leave it out."
            )
        core: Reranker | None = self.core
        while core is not None:
            self._check_on_error(core.on_error)
            if core.skim is not None:
                raise InvalidInputError(
                    f"`skim` of the fallback is {quoted(core.skim.name)}; a cross-encoder returns a score for every "
                    "pair. Use MarcoRerank, or leave it out."
                )
            core = core.fallback

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Return the score of each pair of a query and a passage, in input order.

        All pairs share batches, whatever their queries.

        Args:
            text_pairs: Pairs `(query, passage)`.

        Raises:
            InvalidInputError: One of them is not a pair of str, or a query is blank.
            ScoreError: The model did not return one finite logit per pair.
            MarcoRankError: The model cannot be loaded; see `errors`.
        """
        positions: dict[str, list[int]] = {}
        for index, pair in enumerate(text_pairs):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
                raise InvalidInputError(
                    f"`text_pairs[{index}]` is {quoted(pair)}; expected a pair of str: query, passage."
                )
            positions.setdefault(pair[0], []).append(index)
        rankings = self.core.rank_many(
            [(query, [text_pairs[index][1] for index in found]) for query, found in positions.items()]
        )
        scores = {
            found[result.index]: result.score
            for found, ranking in zip(positions.values(), rankings, strict=True)
            for result in ranking
            if result.score is not None
        }
        return [scores[index] for index in range(len(text_pairs))]
