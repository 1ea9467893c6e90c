"""Checks that a tokenizer has the vocabulary of its model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marcorank._text import first_few, quoted
from marcorank.errors import ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenizers import Tokenizer

# The space of SentencePiece, which T5 and mBART have without a vocabulary too.
_MAX_MADE_UP_TOKENS = 1


def has_vocabulary(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer knows more than special tokens.

    Where transformers finds no vocabulary, it makes a tokenizer that has none, and every text becomes unknown tokens.
    """
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    # Reading all of a large vocabulary takes half a second.
    if tokenizer.get_vocab_size(with_added_tokens=False) > len(added) + _MAX_MADE_UP_TOKENS:
        return True
    return len(tokenizer.get_vocab(with_added_tokens=False).keys() - added) > _MAX_MADE_UP_TOKENS


def check_vocabulary(tokenizer: Tokenizer, config: Mapping[str, Any], *, model: str, files: Iterable[str]) -> None:
    """Raise `ModelLoadError` if a tokenizer has no vocabulary, or ids for which the model has no embedding.

    Args:
        tokenizer: The tokenizer.
        config: The content of the config.json of its model.
        model: The model and where its files are, for messages.
        files: The names of the files that may hold a vocabulary.
    """
    if not has_vocabulary(tokenizer):
        raise ModelLoadError(
            f"{model} has no vocabulary: its tokenizer knows only {first_few(sorted(tokenizer.get_vocab()), 5)}, so "
            f"every text would be unknown tokens. Expected {' or '.join(sorted(files))} with a vocabulary; copy the "
            "tokenizer files of the model from which it was trained: "
            "`AutoTokenizer.from_pretrained(base).save_pretrained(folder)`."
        )
    embeddings = (config.get("text_config") or config).get("vocab_size")
    largest = max([tokenizer.get_vocab_size() - 1, *tokenizer.get_added_tokens_decoder()])
    if isinstance(embeddings, int) and largest >= embeddings:
        raise ModelLoadError(
            f"{model} has embeddings for {embeddings} tokens (`vocab_size` in config.json), but its tokenizer has ids "
            f"up to {largest} ({quoted(tokenizer.id_to_token(largest))}). It may be the tokenizer of another model; "
            "copy the files that belong to this one."
        )
