"""The instruction pool: everything that was ever accepted, and an index that says what a new text resembles."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_serl.pool.similarity import _SLACK, _Integers, _Overlap, _Query, _rouge_l
from lightning_serl.pool.words import tokenise
from lightning_serl.types import Instruction

STATUSES = ("seed", "accepted", "spent", "kept")


def _full_text(item: str | Instruction) -> str:
    """What is compared: options are part of a problem, since many share the stem "Which of these is true?"."""
    if isinstance(item, str):
        return item
    return "\n".join([item.prompt, *map(str, item.meta.get("choices") or ())])


class InstructionPool:
    """All instructions of a run: ``seed``, ``accepted`` (waiting), ``spent`` (answered), ``kept`` for training.

    Novelty compares with all of them; few-shot exemplars come from seeds and kept ones. Labels are not stored.

    Similarity is ROUGE-L with the tokens of ``words.tokenise``. An index bounds the number of words
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
