"""Word frames that seeds share ("What is the capital of ...?"), and what a problem says outside of its frame."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence

from lightning_serl.pool.similarity import SLACK, TextIndex, features
from lightning_serl.pool.words import tokenise

# At most this many seeds are compared with each other, evenly spaced.
_SAMPLE = 400
# Seeds are alike if more than this share of them repeats another, and a frame has at least this many of them.
_ALIKE, _FEWEST = 0.2, 4
# A word is part of a frame if this share of its problems has it. A problem has a frame if it has this share of the
# frame's words, and they are this share of the problem's words.
_COMMON, _HAS, _COVERS = 2 / 3, 0.8, 0.4

_OPERATOR = re.compile(r"(?<=[\d)\s])[-+*/^×÷·−<>](?=[\s\d(])")

#: A word and the number of its earlier occurrences in the text.
Feature = tuple[str, int]


class Frames:
    """The frames of some seeds; none where few seeds are alike.

    Attributes:
        frames: The words of each frame.
        alike: How many of the compared seeds repeat another one by ROUGE-L; exact copies do not count.
        compared: How many seeds were compared.
    """

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        step = -(-len(texts) // _SAMPLE) or 1
        problems = list(dict.fromkeys(tuple(tokenise(text)) for text in texts[::step]))
        index = TextIndex()
        groups: list[list[int]] = []  # of each problem, shared by all that are linked by similar ones
        self.alike = 0
        for number, words in enumerate(problems):
            similar = list(index.above(words, threshold))
            index.add(words)
            self.alike += bool(similar)
            group = [number]
            for other in {id(groups[i]): groups[i] for i in similar}.values():
                group += other
            groups.append(group)
            for i in group:
                groups[i] = group
        self.compared = len(problems)
        self.frames: list[frozenset[Feature]] = []
        if self.alike > _ALIKE * self.compared:
            for group in {id(group): group for group in groups}.values():
                if len(group) >= _FEWEST:
                    self._add(_common([problems[i] for i in group]))

    def __bool__(self) -> bool:
        return bool(self.frames)

    def _add(self, frame: frozenset[Feature]) -> None:
        """Add a frame, or merge it with one that has nearly the same words."""
        for place, other in enumerate(self.frames):
            both = frame & other
            if len(both) >= _HAS * max(len(frame), len(other)):
                self.frames[place] = both
                return
        if frame:
            self.frames.append(frame)

    def outside(self, text: str) -> tuple[int, list[str]] | None:
        """The frame that a text has and the rest of its words, signs of arithmetic included; ``None`` without one."""
        words = tokenise(text)
        found = list(features(words))
        held = set(found)
        best, most = -1, 0
        for place, frame in enumerate(self.frames):
            shared = len(frame & held)
            if shared > most and shared >= _HAS * len(frame) and shared >= _COVERS * len(words):
                best, most = place, shared
        if best < 0:
            return None
        # a name counts once, however often it stands in the rest; each number counts
        own = [(word, before) for word, before in found if (word, before) not in self.frames[best]]
        counted = dict(reversed(own))
        rest = [word for word, before in own if word.isdecimal() or counted[word] == before]
        return best, rest + _OPERATOR.findall(text)


def _common(group: Sequence[Sequence[str]]) -> frozenset[Feature]:
    """The words that most problems of a group have."""
    counts = Counter(feature for words in group for feature in features(words))
    return frozenset(feature for feature, count in counts.items() if count >= _COMMON * len(group))


class FramedTexts:
    """Texts under the frames of some seeds, searched by what they say outside of their frame."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        #: The frame of each text, -1 for none.
        self.places = array("i")
        self._rests = TextIndex()

    def add(self, text: str) -> None:
        """Append a text."""
        placed = self.frames.outside(text)
        self.places.append(-1 if placed is None else placed[0])
        self._rests.add([] if placed is None else _named(*placed))

    def repeated(self, place: int, rest: Sequence[str], threshold: float) -> Iterator[int]:
        """The texts of frame ``place`` whose rest has a ROUGE-L F above ``threshold`` with this one, in order.

        If the rest is numbers and signs alone, those with the same rest; if nothing is left outside of the frame, all.
        """
        if rest:
            # "What is 3 + 4 + 5?" is not "What is 3 + 4?": another number makes another problem
            exact = not any(map(str.isalpha, rest))
            return self._rests.above(_named(place, rest), 1.0 - SLACK if exact else threshold)
        return (index for index, its in enumerate(self.places) if its == place)


def _named(place: int, rest: Sequence[str]) -> list[str]:
    """The words of a rest, different from those of other frames."""
    return [f"{place} {word}" for word in rest]
