"""The instruction pool: every instruction ever accepted, and the search for entries similar to a new text."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_serl.pool.frames import FramedTexts, Frames
from lightning_serl.pool.similarity import SLACK, TextIndex
from lightning_serl.pool.words import tokenise
from lightning_serl.types import Instruction

STATUSES = ("seed", "accepted", "spent", "kept")


def _full_text(item: str | Instruction) -> str:
    """The text that is compared, with the options: many problems share a stem such as "Which of these is true?"."""
    if isinstance(item, str):
        return item
    return "\n".join([item.prompt, *map(str, item.meta.get("choices") or ())])


class InstructionPool:
    """All instructions of a run: ``seed``, ``accepted`` (waiting), ``spent`` (answered), ``kept`` (trained on).

    Novelty compares with all of them; few-shot exemplars come from seeds and kept ones. Labels are not stored.

    Similarity is ROUGE-L over the tokens of ``words.tokenise``; :class:`TextIndex` says how few entries are compared.

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
        # kept apart, so that a look at them does not go through a pool of a hundred thousand
        self._seeds: list[Instruction] = []
        self._seeds_without_choices = 0
        self._kept: list[int] = []  # in order
        self._by_uid: dict[str, int] = {}
        self._by_text: dict[str, int] = {}
        self._index = TextIndex()
        self._models: list[str] | None = None
        self._framed: dict[float, FramedTexts] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, uid: object) -> bool:
        """Whether the pool holds an instruction of this uid."""
        return uid in self._by_uid

    @property
    def texts(self) -> list[str]:
        """The problems, in the order they were added."""
        return [item.prompt for item in self._items]

    @property
    def statuses(self) -> list[str]:
        """One of :data:`STATUSES` for each problem, in the order of :attr:`texts`."""
        return list(self._statuses)

    @property
    def multiple_choice(self) -> bool:
        """Whether every seed has options, so that a new problem must have some too."""
        return bool(self._seeds) and not self._seeds_without_choices

    @property
    def seeds(self) -> list[Instruction]:
        """The user's problems without labels, in the order they were added; few-shot prompts show them."""
        return list(self._seeds)

    @property
    def kept(self) -> list[Instruction]:
        """The policy's problems that were trained on, in the order they were added; few-shot prompts show them too."""
        return [self._items[index] for index in self._kept]

    def latest(self, count: int) -> list[str]:
        """The last ``count`` problems that are no seeds, in the order they were added."""
        found: list[str] = []
        for index in range(len(self._items) - 1, -1, -1):
            if len(found) == count:
                break
            if self._statuses[index] != "seed":
                found.append(self._items[index].prompt)
        return found[::-1]

    def add(self, text: str | Instruction, status: str = "accepted") -> int:
        """Add an instruction, whether or not it is similar to another.

        Args:
            text: The problem; a string gets the uid ``pool-INDEX``.
            status: One of :data:`STATUSES`.

        Returns:
            Its index.

        Raises:
            ValueError: for an unknown status, or a uid that the pool already holds.
        """
        if status not in STATUSES:
            raise ValueError(f"unknown pool status {status!r}; use one of {', '.join(STATUSES)}")
        index = len(self._items)
        item = Instruction(text, f"pool-{index}") if isinstance(text, str) else replace(text, label=None)
        if item.uid in self._by_uid:
            raise ValueError(f"the pool already holds an instruction with uid {item.uid!r}; uids must be unique")
        full = _full_text(item)
        self._index.add(tokenise(full))
        if status == "seed" and self._models is None:
            self._framed.clear()
        for framed in self._framed.values():
            if framed.frames:
                framed.add(full)
        self._items.append(item)
        self._statuses.append(status)
        if status == "kept":
            self._kept.append(index)
        elif status == "seed":
            self._seeds.append(item)
            self._seeds_without_choices += len(item.meta.get("choices") or ()) < 2
        self._by_uid[item.uid] = index
        self._by_text.setdefault(_plain(full), index)
        return index

    def mark_kept(self, which: str | int) -> None:
        """Make the instruction of a uid or an index a few-shot exemplar, once trained on; a seed stays a seed.

        Raises ``KeyError`` for an unknown uid and ``IndexError`` for an unknown index.
        """
        index = self._by_uid[which] if isinstance(which, str) else range(len(self._items))[which]
        if self._statuses[index] not in ("seed", "kept"):
            self._statuses[index] = "kept"
            insort(self._kept, index)

    def mark_spent(self, uids: Iterable[str]) -> None:
        """Mark accepted instructions as answered; other uids are ignored."""
        for uid in uids:
            index = self._by_uid.get(uid)
            if index is not None and self._statuses[index] == "accepted":
                self._statuses[index] = "spent"

    def nearest(self, text: str | Instruction) -> tuple[float, int]:
        """The largest ROUGE-L F of ``text`` with any entry, and the first entry that reaches it.

        Two texts without words (only symbols or emoji) score 1 if they are equal and 0 otherwise.

        Args:
            text: The problem to compare; it need not be in the pool.

        Returns:
            Score and index; ``(0.0, -1)`` for an empty pool.
        """
        full = _full_text(text)
        query = self._index.query(tokenise(full))
        best, best_index = 0.0, 0 if self._items else -1
        if not query.length:
            same = self._by_text.get(_plain(full))
            return (best, best_index) if same is None else (1.0, same)
        entries, bounds = self._index.bounds(query, 0.0)
        for place in np.argsort(-bounds, kind="stable"):
            if bounds[place] < best - SLACK:
                break
            index = int(entries[place])
            score = self._index.score(query, index)
            if score > best or (score == best and index < best_index):
                best, best_index = score, index
        return best, best_index

    def similar(self, text: str | Instruction, threshold: float, among: tuple[str, ...] | None = None) -> int | None:
        """The entry that ``text`` repeats: one of the same text, or the first whose ROUGE-L F exceeds ``threshold``.

        Where many seeds are alike, two problems that share a frame of theirs are compared by the rest of their words
        too, and only both scores above ``threshold`` make a repetition. With ``among`` a text is compared with entries
        of these statuses only, and by ROUGE-L alone. Two instructions with a ``passage`` in their meta are alike only
        if the passage is the same and one of them has no word that is only its, see :func:`own_words`.
        """
        full = _full_text(text)
        same = self._by_text.get(_plain(full))
        if same is not None and among is None:
            return same
        query = self._index.query(tokenise(full))
        entries, bounds = self._index.bounds(query, threshold)
        entries = entries[bounds >= threshold - SLACK]
        framed = self._under_frames(threshold) if among is None and len(entries) else None
        placed = None if framed is None else framed.frames.outside(full)
        if framed is not None and placed is not None:
            for index in framed.repeated(*placed, threshold):
                if self._index.score(query, index) > threshold and not _on_other_facts(text, self._items[index]):
                    return index
            entries = entries[np.asarray(framed.places)[entries] != placed[0]]
        for index in entries.tolist():
            if among is not None and self._statuses[index] not in among:
                continue
            if self._index.score(query, index) > threshold and not _on_other_facts(text, self._items[index]):
                return int(index)
        return None

    def frames(self, threshold: float) -> Frames:
        """The frames that the seeds share, judged by this ROUGE-L F; none where few of them are alike."""
        models = self._models
        if models is None:
            models = [_full_text(item) for item in self.seeds]
        return Frames(models, threshold)

    def judge_by(self, seeds: Iterable[Instruction]) -> None:
        """Take the frames of these seeds in place of those of the pool's own."""
        self._models = [_full_text(seed) for seed in seeds]
        self._framed.clear()

    def _under_frames(self, threshold: float) -> FramedTexts | None:
        """All entries under the frames of the seeds, ``None`` without frames."""
        framed = self._framed.get(threshold)
        if framed is None:
            framed = FramedTexts(self.frames(threshold))
            if framed.frames:
                for item in self._items:
                    framed.add(_full_text(item))
            self._framed[threshold] = framed
        return framed if framed.frames else None

    def alike(self, text: str | Instruction, threshold: float, limit: int) -> int:
        """The number of the policy's problems whose ROUGE-L F exceeds ``threshold``, counted up to ``limit``."""
        query = self._index.query(tokenise(_full_text(text)))
        entries, bounds = self._index.bounds(query, threshold)
        count = 0
        for index in entries[bounds >= threshold - SLACK].tolist():
            if self._statuses[index] != "seed" and self._index.score(query, index) > threshold:
                count += 1
                if count == limit:
                    break
        return count

    def state_dict(self) -> dict[str, list[Any]]:
        """All entries, as columns of primitives; the index is rebuilt from them."""
        return {
            "prompts": self.texts,
            "uids": [item.uid for item in self._items],
            "roles": [item.role for item in self._items],
            "metas": [dict(item.meta) for item in self._items],
            "statuses": self.statuses,
        }

    def load_state_dict(self, state: Mapping[str, Sequence[Any]]) -> None:
        """Replace all entries by those of another pool."""
        self._clear()
        columns = (state[name] for name in ("prompts", "uids", "roles", "metas", "statuses"))
        for prompt, uid, role, meta, status in zip(*columns, strict=True):
            self.add(Instruction(prompt, uid, role, meta=dict(meta)), status)


def _on_other_facts(text: str | Instruction, other: Instruction) -> bool:
    """Whether two problems were written from passages and ask for different facts of them."""
    here, there = (one.meta.get("passage") if isinstance(one, Instruction) else None for one in (text, other))
    if here is None or there is None:
        return False
    one, two = _full_text(text), _full_text(other)
    return here != there or bool(own_words(one, two) and own_words(two, one))


def own_words(text: str, other: str) -> set[str]:
    """The words of three letters or more that a text has and another one lacks."""
    return {word for word in set(tokenise(text)) - set(tokenise(other)) if len(word) > 2}


def _plain(text: str) -> str:
    """The text without case and white space; equal results have equal tokens, so this never contradicts ROUGE-L."""
    return " ".join(text.lower().split())
