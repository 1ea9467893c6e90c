"""Where a long text can be split without a change to its tokens, so that only a part of it has to be tokenised."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# None of these looks further than the characters of a word, or changes what is before or after a space.
_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "StripAccents"}
_SPLIT_AT_ANY_SPACE = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_SPLIT_FURTHER = {*_SPLIT_AT_ANY_SPACE, "Digits", "Metaspace", "Punctuation"}
_SEVERAL_SPACES = re.compile(r" \{[0-9]+,\}")
# BERT's normalizer puts spaces around these.
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff"


class Boundaries:
    """Finds positions at which a text can be split without a change to its tokens.

    Whether such positions exist depends on the normalizer and on the pre-tokenizer. With kinds that are not known to
    split at spaces without regard to what follows, a text has no boundary.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        signs = _boundary_signs(tokenizer)
        # After a letter, a digit or ASCII punctuation: no normalizer turns these into a space.
        self._pattern = None if signs is None else re.compile(rf"(?<=[\w!-~])[{signs}]")
        self._part = None if signs is None else re.compile(rf"[\s\S](?:[^{signs}]+|(?<![\w!-~])[{signs}])*")

    @property
    def exist(self) -> bool:
        """Whether a text may have boundaries."""
        return self._part is not None

    def split(self, text: str) -> list[str]:
        """Return the parts of a text, split at every boundary."""
        return [text] if self._part is None else self._part.findall(text)

    def after(self, text: str, position: int) -> int:
        """Return the first boundary from `position` on, or the length of the text."""
        found = self._pattern.search(text, position) if self._pattern and position < len(text) else None
        return found.start() if found else len(text)


def _boundary_signs(tokenizer: Tokenizer) -> str | None:
    """Return the characters before which a text can be split, as the inside of a character class."""
    normalizers = parts_of(tokenizer.normalizer, "normalizers")
    splitters = parts_of(tokenizer.pre_tokenizer, "pretokenizers")
    if normalizers is None or not splitters:
        return None
    if not all(_keeps_spaces_apart(part) for part in normalizers):
        return None
    first, *others = splitters
    if any(part["type"] not in _SPLIT_FURTHER for part in others):
        return None
    if first["type"] in _SPLIT_AT_ANY_SPACE:
        # The first word would get the mark that other words do not.
        if any(part.get("prepend_scheme") == "first" for part in others):
            return None
        signs = r" \t\n"
        if any(part["type"] == "BertNormalizer" and part["handle_chinese_chars"] for part in normalizers):
            signs += _IDEOGRAPHS
    elif (first["type"] == "Metaspace" and first["split"]) or (first["type"] == "ByteLevel" and first["use_regex"]):
        signs = " "
    else:
        return None
    boundary = re.compile(f"[{signs}]")
    added = tokenizer.get_added_tokens_decoder().values()
    looks_further = any(token.rstrip or token.single_word or boundary.search(token.content) for token in added)
    return None if looks_further else signs


def _keeps_spaces_apart(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        ((kind, pattern),) = normalizer["pattern"].items()
        if kind == "Regex":
            return bool(_SEVERAL_SPACES.fullmatch(pattern)) and normalizer["content"] == " "
        # With an empty pattern or replacement, or one with a space, what is before a boundary could become a space.
        return all(text and not re.search(r"\s", text) for text in (pattern, normalizer["content"]))
    if normalizer["type"] == "Strip":
        return not normalizer["strip_left"]
    return normalizer["type"] in _NORMALIZERS


def parts_of(component: Any, name: str) -> list[dict[str, Any]] | None:
    """Return the settings of a component and of those inside it, in order; None if it is written in Python."""
    if component is None:
        return []
    try:
        settings = json.loads(component.__getstate__())
    except Exception:  # noqa: BLE001  # whatever the binding raises for a component that is written in Python
        return None
    if settings["type"] != "Sequence":
        return [settings]
    flat: list[dict[str, Any]] = []
    for part in settings[name]:
        flat += part[name] if part["type"] == "Sequence" else [part]
    return flat
