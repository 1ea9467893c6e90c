"""Finds passages whose text is nearly that of a better one.

The similarity of two texts is the Jaccard index of their shingles (Broder, 1997): the share of those that both have
among those that either has. A shingle is eight characters from the beginning of a word on, in lower case and with
whitespace as one space; in scripts without spaces it begins at every character.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SHINGLE_CHARS = 8
# First and last code point of Thai and Lao, Myanmar, Khmer, and of the scripts of East Asia.
_WITHOUT_SPACES = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0xD7A3), (0x20000, 0x3FFFF))
_SPACES = np.array([0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000])
# Odd numbers with well mixed bits: the golden ratio, and a prime of xxHash.
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xC2B2AE3D27D4EB4F)


class NearDuplicate(NamedTuple):
    """A text that is nearly that of an earlier one.

    Attributes:
        position: Of the text.
        similar_to: Position of the earlier text.
        similarity: Of the two, from 0 to 1.
    """

    position: int
    similar_to: int
    similarity: float


def without_near_duplicates(
    texts: Sequence[str], *, max_similarity: float, limit: int | None = None
) -> tuple[list[int], list[NearDuplicate]]:
    """Return the positions of the texts that are not near-duplicates of an earlier one, and those before that are.

    Args:
        texts: Best first.
        max_similarity: A text that is more similar than that to one that was returned is a near-duplicate.
        limit: Maximum number of texts to return; None for all.
    """
    shingles = _Shingles(texts)
    kept: list[int] = []
    skipped: list[NearDuplicate] = []
    # The greatest similarity of each text to one that was kept.
    closest = np.full(len(texts), -1.0)
    for position in range(len(texts)):
        if limit is not None and len(kept) >= limit:
            break
        if closest[position] > max_similarity:
            similarities = shingles.similarities(position)[kept]
            similar_to = int(similarities.argmax())
            skipped.append(NearDuplicate(position, kept[similar_to], float(similarities[similar_to])))
        else:
            kept.append(position)
            np.maximum(closest, shingles.similarities(position), out=closest)
    return kept, skipped


class _Shingles:
    """The shingles of each text, as numbers; of those that only one text has, only how many they are."""

    def __init__(self, texts: Sequence[str]) -> None:
        rows, hashes = _hashed_shingles(texts)
        # The lowest bits of a number are the position of its text, so that one sort groups equal shingles.
        bits = np.uint64(max(1, len(texts)).bit_length())
        low = np.uint64((1 << int(bits)) - 1)
        numbers = np.sort((hashes & ~low) | rows)
        numbers = numbers[_differs(numbers)]
        rows, hashes = (numbers & low).astype(np.int64), numbers >> bits
        self._counts = np.bincount(rows, minlength=len(texts))
        starts = _differs(hashes)
        shared = ~starts
        shared[:-1] |= ~starts[1:]
        self._rows = rows[shared]
        # Equal shingles have the same group.
        self._groups = np.cumsum(starts[shared]) - 1
        self._is_of_text = np.zeros(int(starts[shared].sum()), dtype=np.bool_)

    def similarities(self, position: int) -> NDArray[np.float64]:
        """Return how similar each other text is to one of them. Shape: (texts,), float64."""
        counts, is_of_text = self._counts, self._is_of_text
        own = self._groups[self._rows == position]
        is_of_text[own] = True
        common = np.bincount(self._rows[is_of_text[self._groups]], minlength=len(counts))
        is_of_text[own] = False
        either = counts + counts[position] - common
        # Two blank texts are equal, without any shingle.
        similarities = np.ones(len(counts))
        np.divide(common, either, out=similarities, where=either > 0)
        return similarities


def _differs(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return whether each value differs from the one before; the first one always does."""
    differs = np.ones(len(values), dtype=np.bool_)
    differs[1:] = values[1:] != values[:-1]
    return differs


def _hashed_shingles(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the position of its text and a hash of each shingle. Shape: (shingles,), uint64, both."""
    lowered = [text.lower().strip() for text in texts]
    # Zeros at the end of each text keep shingles from reaching into the next one.
    end = "\0" * _SHINGLE_CHARS
    codes = np.frombuffer(end.join([*lowered, ""]).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    offsets = np.cumsum([0, *(len(text) + _SHINGLE_CHARS for text in lowered)])[:-1]
    is_space = (codes == 0x20) | ((codes >= 0x09) & (codes <= 0x0D)) | ((codes >= 0x1C) & (codes <= 0x1F))
    if codes.max(initial=0) >= _SPACES[0]:
        is_space |= np.isin(codes, _SPACES)
    codes = np.where(is_space, 0x20, codes)
    follows_space = _follows(is_space | (codes == 0))
    surplus = is_space & follows_space
    if surplus.any():
        # Of several spaces, the first one stands for all.
        offsets -= np.cumsum(surplus)[offsets] - surplus[offsets]
        codes, is_space, follows_space = codes[~surplus], is_space[~surplus], follows_space[~surplus]
        follows_space = _follows(is_space | (codes == 0))
    if codes.max(initial=0) >= _WITHOUT_SPACES[0][0]:
        for first, last in _WITHOUT_SPACES:
            follows_space |= (codes >= first) & (codes <= last)
    starts = np.flatnonzero(follows_space & (codes != 0) & ~is_space)
    hashes = np.zeros(len(starts), dtype=np.uint64)
    for offset in range(_SHINGLE_CHARS):
        hashes = hashes * _BASE + codes[starts + offset]
    # The product moves what the low bits say to the high ones, and the shift brings it back.
    hashes = (hashes ^ (hashes >> np.uint64(32))) * _MIX
    return (np.searchsorted(offsets, starts, side="right") - 1).astype(np.uint64), hashes


def _follows(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return what follows something that is marked; the first one always does."""
    follows = np.ones(len(marked), dtype=np.bool_)
    follows[1:] = marked[:-1]
    return follows
