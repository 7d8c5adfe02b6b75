"""ROUGE-L between one text and many, with an index that bounds it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import ceil
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

#: The bound is 2*overlap/(m+n) and the score is computed from precision and recall; they may differ in the last bits.
SLACK = 1e-9

# Rows of the bit matrix for one feature each, and rows that features share; together 512 bytes per entry.
_OWN_ROWS, _SHARED_ROWS = 2048, 2048
# At most this many features of a text are counted, to bound the memory for a text of a million words.
_COUNTED = 2048

Integers: TypeAlias = npt.NDArray[np.signedinteger[Any]]
_Bits: TypeAlias = npt.NDArray[np.uint64]
_Word = TypeVar("_Word", int, str)


def rouge_l(lcs: int, length: int, other: int) -> float:
    """ROUGE-L F from an LCS and two lengths, by the float operations of ``rouge_score``, so that ties are the same."""
    if not lcs:
        return 0.0
    precision, recall = lcs / other, lcs / length
    return 2 * precision * recall / (precision + recall)


class Query:
    """A text prepared for comparison: its length, its known words, and the positions of each word as bits."""

    def __init__(self, tokens: Sequence[str], vocabulary: Mapping[str, int]) -> None:
        self.length = len(tokens)
        self.places = [(place, word) for place, t in enumerate(tokens) if (word := vocabulary.get(t)) is not None]

    @cached_property
    def positions(self) -> dict[int, int]:
        """The positions of each known word, as the bits of an integer."""
        positions: dict[int, int] = {}
        for place, word in self.places:
            positions[word] = positions.get(word, 0) | 1 << place
        return positions

    def lcs(self, words: Iterable[int]) -> int:
        """Length of the longest common subsequence with ``words``; costs one big-integer addition per shared word."""
        full = (1 << self.length) - 1
        row = full
        positions = self.positions
        for word in words:
            match = positions.get(word)
            if match is not None:
                hit = row & match
                row = ((row + hit) | (row - hit)) & full
        return self.length - row.bit_count()


class OverlapIndex:
    """Bounds the number of words that a text shares with each entry, counting repeated words as often as shared.

    The index is a matrix of bits: a column for each entry, a row for each feature (a word and the number of its earlier
    occurrences in the text). The first features, frequent words among them, have a row each; later ones share rows,
    which can only raise a count. The rows of a text are summed for all entries at once, 64 per machine word.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int], int] = {}
        self._bits = np.zeros((_OWN_ROWS + _SHARED_ROWS, 8), np.uint8)
        self._entries = 0

    def add(self, words: Iterable[int]) -> None:
        """Append an entry."""
        octet, bit = divmod(self._entries, 8)
        if octet == self._bits.shape[1]:
            self._bits = np.concatenate([self._bits, np.zeros_like(self._bits)], axis=1)
        numbers = [self._numbers.setdefault(feature, len(self._numbers)) for feature in features(words)]
        self._bits[_rows(numbers), octet] |= np.uint8(1 << bit)
        self._entries += 1

    def reaching(self, words: Iterable[int], least: int) -> tuple[Integers, Integers]:
        """The entries that may share ``least`` (1 or more) words with a text, in order, and their bounds."""
        numbers = sorted(n for f in features(words) if (n := self._numbers.get(f)) is not None)
        # Of a very long text only the rarer words, those with the last numbers, are counted; all others may be shared.
        uncounted = max(0, len(numbers) - _COUNTED)
        if least > len(numbers):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        used = -(-self._entries // 64) * 8
        sums = _add_up(self._bits[_rows(numbers[uncounted:]), :used].view(np.uint64))
        reached = _at_least(sums, max(0, least - uncounted)).view(np.uint8)
        octets = np.flatnonzero(reached != 0)
        places = np.flatnonzero(_unpack(reached[octets]).view(np.bool_))
        bounds = np.full(8 * len(octets), uncounted, np.int32)
        for place, digits in enumerate(sums):
            bounds += np.left_shift(_unpack(digits.view(np.uint8)[octets]), place, dtype=np.int32)
        entries = 8 * octets[places // 8] + places % 8
        places = places[: np.searchsorted(entries, self._entries)]
        return entries[: len(places)], bounds[places]


class TextIndex:
    """Texts as words, with the search for those whose ROUGE-L F with another text exceeds a threshold.

    An index bounds the number of words that a text shares with each entry, and so their common subsequence; only
    entries whose bound could matter are compared in full.
    """

    def __init__(self) -> None:
        self._vocabulary: dict[str, int] = {}
        self._words: list[array[int]] = []
        self._lengths = array("i")
        self._overlap = OverlapIndex()

    def add(self, tokens: Sequence[str]) -> None:
        """Append a text."""
        words = array("i", (self._vocabulary.setdefault(t, len(self._vocabulary)) for t in tokens))
        self._overlap.add(words)
        self._words.append(words)
        self._lengths.append(len(words))

    def query(self, tokens: Sequence[str]) -> Query:
        """A text prepared for the other methods; it need not be an entry."""
        return Query(tokens, self._vocabulary)

    def bounds(self, query: Query, threshold: float) -> tuple[Integers, npt.NDArray[np.float64]]:
        """All entries that reach ``threshold`` (above 0), and others, in order, with upper bounds of ROUGE-L F."""
        # An entry that shares c words has at least c words, so its score is at most 2c/(m+c).
        share = min(threshold, 1.0) - SLACK
        least = max(1, ceil(share * query.length / (2.0 - share)))
        entries, overlap = self._overlap.reaching((word for _, word in query.places), least)
        return entries, 2.0 * overlap / (np.asarray(self._lengths)[entries] + query.length)

    def score(self, query: Query, index: int) -> float:
        """ROUGE-L F with an entry."""
        return rouge_l(query.lcs(self._words[index]), query.length, self._lengths[index])

    def above(self, tokens: Sequence[str], threshold: float) -> Iterator[int]:
        """The entries whose ROUGE-L F exceeds ``threshold``, in order."""
        query = self.query(tokens)
        entries, bounds = self.bounds(query, threshold)
        for index in entries[bounds >= threshold - SLACK].tolist():
            if self.score(query, index) > threshold:
                yield index


def features(words: Iterable[_Word]) -> Iterator[tuple[_Word, int]]:
    """Each word with the number of its earlier occurrences: two texts share as many of these as words."""
    seen: dict[_Word, int] = {}
    for word in words:
        before = seen.get(word, 0)
        seen[word] = before + 1
        yield word, before


def _rows(numbers: Sequence[int]) -> Integers:
    """The rows of features, given their numbers in order of appearance."""
    own = np.array(numbers, np.int64)
    return np.where(own < _OWN_ROWS, own, _OWN_ROWS + own % _SHARED_ROWS)


def _add_up(rows: _Bits) -> list[_Bits]:
    """The sum of ``rows`` (n, W) in each bit position, as its binary digits (each (W,)), lowest first.

    Three rows of one digit add up to one row of that digit and a carry, so each digit takes logarithmically many steps.
    """
    digits = []
    while len(rows):
        carries = [rows[:0]]
        while len(rows) > 1:
            third = len(rows) // 3
            if third:
                a, b, c = rows[:third], rows[third : 2 * third], rows[2 * third : 3 * third]
                odd = a ^ b
                carries.append(a & b | odd & c)
                rows = np.concatenate([odd ^ c, rows[3 * third :]])
            else:
                carries.append(rows[:1] & rows[1:])
                rows = rows[:1] ^ rows[1:]
        digits.append(rows[0])
        rows = np.concatenate(carries)
    return digits


def _at_least(digits: Sequence[_Bits], least: int) -> _Bits:
    """The bit positions at which the number with these binary digits is ``least`` (within their range) or more."""
    reached = ~np.zeros_like(digits[0])
    for place, digit in enumerate(digits):
        reached = digit & reached if least >> place & 1 else digit | reached
    return reached


def _unpack(octets: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.unpackbits(octets, bitorder="little")
