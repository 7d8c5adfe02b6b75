"""The instruction pool: everything that was ever accepted, and an index that says what a new text resembles."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import ceil
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lightning_serl.types import Instruction
from lightning_serl.words import tokenise

STATUSES = ("seed", "accepted", "spent", "kept")

# The bound is 2*overlap/(m+n), the score rouge_score's float operations on p and r: they may differ in the last bits.
_SLACK = 1e-9

# Rows of bits that say which entries hold a feature: for one feature each, and shared; together 512 bytes an entry.
_OWN_ROWS, _SHARED_ROWS = 2048, 2048
# The most features of a text that are counted; it bounds the memory that a text of a million words may take.
_COUNTED = 2048

_Integers: TypeAlias = npt.NDArray[np.signedinteger[Any]]
_Bits: TypeAlias = npt.NDArray[np.uint64]


def _rouge_l(lcs: int, length: int, other: int) -> float:
    """ROUGE-L F by the float operations of ``rouge_score``, so that ties at a threshold fall the same way."""
    if not lcs:
        return 0.0
    precision, recall = lcs / other, lcs / length
    return 2 * precision * recall / (precision + recall)


def _full_text(item: str | Instruction) -> str:
    """What is compared: options are part of a problem, since many share the stem "Which of these is true?"."""
    if isinstance(item, str):
        return item
    return "\n".join([item.prompt, *map(str, item.meta.get("choices") or ())])


class _Query:
    """A text prepared for comparison: its length, its known words, and the positions of each word as bits."""

    def __init__(self, tokens: Sequence[str], vocabulary: Mapping[str, int]) -> None:
        self.length = len(tokens)
        self.places = [(place, word) for place, t in enumerate(tokens) if (word := vocabulary.get(t)) is not None]

    @cached_property
    def positions(self) -> dict[int, int]:
        positions: dict[int, int] = {}
        for place, word in self.places:
            positions[word] = positions.get(word, 0) | 1 << place
        return positions

    def lcs(self, words: Iterable[int]) -> int:
        """Length of the longest common subsequence with ``words``, one big-integer addition per shared word."""
        full = (1 << self.length) - 1
        row = full
        positions = self.positions
        for word in words:
            match = positions.get(word)
            if match is not None:
                hit = row & match
                row = ((row + hit) | (row - hit)) & full
        return self.length - row.bit_count()


class _Overlap:
    """At most how many words a text shares with each entry, repeated words counted as often as shared.

    A matrix of bits: a column for each entry, a row for each feature (a word and how often it came before in its text).
    The first features to come, frequent words among them, have a row each; later ones share the other rows, which can
    only raise a count. The rows of a text are added up for all entries at once, 64 of them in a machine word.
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
        numbers = [self._numbers.setdefault(feature, len(self._numbers)) for feature in _features(words)]
        self._bits[_rows(numbers), octet] |= np.uint8(1 << bit)
        self._entries += 1

    def reaching(self, words: Iterable[int], least: int) -> tuple[_Integers, _Integers]:
        """The entries that may share ``least`` (at least 1) words or more with a text, in order, and their bounds."""
        numbers = sorted(n for f in _features(words) if (n := self._numbers.get(f)) is not None)
        # Of a very long text only the rarer words, those that came last, are counted; all others may be shared.
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


def _features(words: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Each word with the number of times it came before: two texts share as many of these as words."""
    seen: dict[int, int] = {}
    for word in words:
        before = seen.get(word, 0)
        seen[word] = before + 1
        yield word, before


def _rows(numbers: Sequence[int]) -> _Integers:
    """The rows of features by their numbers in order of appearance."""
    own = np.array(numbers, np.int64)
    return np.where(own < _OWN_ROWS, own, _OWN_ROWS + own % _SHARED_ROWS)


def _add_up(rows: _Bits) -> list[_Bits]:
    """The sum of ``rows`` (n, W) in each bit position, as its binary digits (each (W,)), lowest first.

    Three rows of one place make a row of the same place and a carry; so each digit takes logarithmically many steps.
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
    """The bit positions at which the number of these binary digits is ``least`` or more (not above their range)."""
    reached = ~np.zeros_like(digits[0])
    for place, digit in enumerate(digits):
        reached = digit & reached if least >> place & 1 else digit | reached
    return reached


def _unpack(octets: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.unpackbits(octets, bitorder="little")


class InstructionPool:
    """All instructions of a run: ``seed``, ``accepted`` (waiting), ``spent`` (answered), ``kept`` for training.

    Novelty compares with all of them; few-shot exemplars come from seeds and kept ones. Labels are not stored.

    Similarity is ROUGE-L with the tokens of :func:`lightning_serl.words.tokenise`. An index bounds the number of words
    that a text shares with each entry, and with it their common subsequence; only entries whose bound could matter are
    compared in full.

    Args:
        seeds: The problems to start from.
    """

    def __init__(self, seeds: Iterable[str | Instruction] = ()) -> None:
        self._clear()
        for seed in seeds:
            self.add(seed, "seed")

    def _clear(self) -> None:
        self._items: list[Instruction] = []
        self._statuses: list[str] = []
        self._by_uid: dict[str, int] = {}
        self._by_text: dict[str, int] = {}
        self._vocabulary: dict[str, int] = {}
        self._words: list[array[int]] = []
        self._lengths = array("i")
        self._overlap = _Overlap()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, uid: object) -> bool:
        """Whether the pool holds an instruction of this uid."""
        return uid in self._by_uid

    @property
    def texts(self) -> list[str]:
        """The problems, in the order they came."""
        return [item.prompt for item in self._items]

    @property
    def statuses(self) -> list[str]:
        """One of :data:`STATUSES` for each problem, in the order of :attr:`texts`."""
        return list(self._statuses)

    @property
    def multiple_choice(self) -> bool:
        """Whether every seed carries options, so that a new problem must carry some too."""
        seeds = self.seeds
        return bool(seeds) and all(len(seed.meta.get("choices") or ()) > 1 for seed in seeds)

    @property
    def seeds(self) -> list[Instruction]:
        """The problems of the user, in the order they came, without labels; few-shot prompts show them."""
        return self._with_status("seed")

    @property
    def kept(self) -> list[Instruction]:
        """The policy's own problems that were trained on, in the order they came; few-shot prompts show them too."""
        return self._with_status("kept")

    def _with_status(self, status: str) -> list[Instruction]:
        return [item for item, its in zip(self._items, self._statuses, strict=True) if its == status]

    def add(self, text: str | Instruction, status: str = "accepted") -> int:
        """Remember an instruction, whether or not it resembles another.

        Args:
            text: The problem; a plain text gets the uid ``pool-INDEX``.
            status: One of :data:`STATUSES`.

        Returns:
            Its index.

        Raises:
            ValueError: for an unknown status, or a uid that the pool holds already.
        """
        if status not in STATUSES:
            raise ValueError(f"unknown pool status {status!r}; use one of {', '.join(STATUSES)}")
        index = len(self._items)
        item = Instruction(text, f"pool-{index}") if isinstance(text, str) else replace(text, label=None)
        if item.uid in self._by_uid:
            raise ValueError(f"the pool already holds an instruction with uid {item.uid!r}; uids must be unique")
        full = _full_text(item)
        words = array("i", (self._vocabulary.setdefault(t, len(self._vocabulary)) for t in tokenise(full)))
        self._overlap.add(words)
        self._items.append(item)
        self._statuses.append(status)
        self._by_uid[item.uid] = index
        self._by_text.setdefault(_plain(full), index)
        self._words.append(words)
        self._lengths.append(len(words))
        return index

    def mark_kept(self, which: str | int) -> None:
        """Make an accepted instruction an exemplar, because its group was trained on; a seed stays a seed.

        Args:
            which: Its uid or its index.

        Raises:
            KeyError: if the pool has no such uid.
            IndexError: if the pool has no such index.
        """
        index = self._by_uid[which] if isinstance(which, str) else which
        if self._statuses[index] != "seed":
            self._statuses[index] = "kept"

    def mark_spent(self, uids: Iterable[str]) -> None:
        """Note that accepted instructions no longer wait to be answered; uids of others are passed over."""
        for uid in uids:
            index = self._by_uid.get(uid)
            if index is not None and self._statuses[index] == "accepted":
                self._statuses[index] = "spent"

    def nearest(self, text: str | Instruction) -> tuple[float, int]:
        """The largest ROUGE-L F of ``text`` with any entry, and the first entry that reaches it.

        Two texts without any word (only signs or emoji) score 1 if they are the same and 0 otherwise.

        Args:
            text: The problem to compare; it need not be in the pool.

        Returns:
            Score and index; ``(0.0, -1)`` for an empty pool.
        """
        full = _full_text(text)
        query = _Query(tokenise(full), self._vocabulary)
        best, best_index = 0.0, 0 if self._items else -1
        if not query.length:
            same = self._by_text.get(_plain(full))
            return (best, best_index) if same is None else (1.0, same)
        entries, bounds = self._bounds(query, 0.0)
        for place in np.argsort(-bounds, kind="stable"):
            if bounds[place] < best - _SLACK:
                break
            index = int(entries[place])
            score = self._score(query, index)
            if score > best or (score == best and index < best_index):
                best, best_index = score, index
        return best, best_index

    def similar(self, text: str | Instruction, threshold: float, among: tuple[str, ...] | None = None) -> int | None:
        """An entry that ``text`` repeats: the same text, or the first whose ROUGE-L F exceeds ``threshold``.

        Args:
            text: The problem to compare.
            threshold: Scores strictly above it count as a repetition.
            among: Compare with entries of these statuses only, and by ROUGE-L alone; with all by default.

        Returns:
            The index of the entry, or ``None`` if ``text`` is new.
        """
        full = _full_text(text)
        same = self._by_text.get(_plain(full))
        if same is not None and among is None:
            return same
        query = _Query(tokenise(full), self._vocabulary)
        entries, bounds = self._bounds(query, threshold)
        for index in entries[bounds >= threshold - _SLACK].tolist():
            if among is not None and self._statuses[index] not in among:
                continue
            if self._score(query, index) > threshold:
                return int(index)
        return None

    def alike(self, text: str | Instruction, threshold: float, limit: int) -> int:
        """How many of the policy's own problems resemble ``text``, counted up to ``limit``.

        Args:
            text: The problem to compare.
            threshold: A ROUGE-L F strictly above it is a resemblance.
            limit: Counting ends here.
        """
        query = _Query(tokenise(_full_text(text)), self._vocabulary)
        entries, bounds = self._bounds(query, threshold)
        count = 0
        for index in entries[bounds >= threshold - _SLACK].tolist():
            if self._statuses[index] != "seed" and self._score(query, index) > threshold:
                count += 1
                if count == limit:
                    break
        return count

    def _bounds(self, query: _Query, threshold: float) -> tuple[_Integers, npt.NDArray[np.float64]]:
        """In order, all entries of a ROUGE-L F of ``threshold`` or more (and above 0), others too, and bounds of F."""
        # An entry that shares c words has c words or more, so its score is at most 2c/(m+c).
        share = min(threshold, 1.0) - _SLACK
        least = max(1, ceil(share * query.length / (2.0 - share)))
        entries, overlap = self._overlap.reaching((word for _, word in query.places), least)
        return entries, 2.0 * overlap / (np.asarray(self._lengths)[entries] + query.length)

    def _score(self, query: _Query, index: int) -> float:
        return _rouge_l(query.lcs(self._words[index]), query.length, self._lengths[index])

    def state_dict(self) -> dict[str, list[Any]]:
        """Everything but the index, which is rebuilt: lists of strings and of the instructions' own facts."""
        return {
            "prompts": self.texts,
            "uids": [item.uid for item in self._items],
            "roles": [item.role for item in self._items],
            "metas": [dict(item.meta) for item in self._items],
            "statuses": self.statuses,
        }

    def load_state_dict(self, state: Mapping[str, Sequence[Any]]) -> None:
        """Replace the content by that of another pool.

        Args:
            state: What :meth:`state_dict` returned.
        """
        self._clear()
        columns = (state[name] for name in ("prompts", "uids", "roles", "metas", "statuses"))
        for prompt, uid, role, meta, status in zip(*columns, strict=True):
            self.add(Instruction(prompt, uid, role, meta=dict(meta)), status)


def _plain(text: str) -> str:
    """The text up to case and white space: equal texts have equal tokens, so this never contradicts ROUGE-L."""
    return " ".join(text.lower().split())
