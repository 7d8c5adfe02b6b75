r"""A world of six skills on digits, some of which the base has wrong habits in: ``tiny:world``.

A question shows its skill by its wording ("Reverse the digits of 4712.") and is short or long. A solution begins with
the name of a method: the right one of the skill, a shortcut that leads to the same wrong answer each time, or ``So``, a
guess. How often the base uses each is set by skill and size in :data:`PROFILES`, and the world's seed draws which skill
has which profile. So a vote is right in one place, wrong in another, and undecided in a third.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SIZES = ("short", "long")
METHODS = ("right", "shortcut", "guess")
Numbers = Sequence[str]


class Skill(NamedTuple):
    """One skill: its wording, the names of its two methods, and functions from numbers to text.

    ``draw`` makes the numbers of a question of a size, ``work`` the digits that the right method writes down before
    its answer, ``right`` and ``shortcut`` the two answers.
    """

    wording: str
    names: tuple[str, str]
    draw: Callable[[random.Random, bool], Numbers]
    work: Callable[[Numbers], str]
    right: Callable[[Numbers], str]
    shortcut: Callable[[Numbers], str]


def _number(rng: random.Random, digits: int, least: int = 1, most: int = 9) -> str:
    return "".join(str(rng.randint(least, most)) for _ in range(digits))


def _one(short: int, long: int, least: int = 1, most: int = 9) -> Callable[[random.Random, bool], Numbers]:
    return lambda rng, is_long: (_number(rng, long if is_long else short, least, most),)


def _two(rng: random.Random, is_long: bool) -> Numbers:
    digits = 3 if is_long else 2
    return _number(rng, digits), _number(rng, digits)


def _spaced(digits: str) -> str:
    return "".join(f" {digit}" for digit in digits)


def _nothing(numbers: Numbers) -> str:
    return ""


def _without_carry(numbers: Numbers) -> str:
    pairs = zip(*numbers, strict=False)
    return str(int("".join(str((int(a) + int(b)) % 10) for a, b in pairs) or "0"))


def _add(numbers: Numbers) -> str:
    return str(sum(map(int, numbers)))


SKILLS = {
    "reverse": Skill(
        "Reverse the digits of {}.", ("Backwards", "Ends"), _one(4, 5), _nothing,
        lambda n: n[0][::-1], lambda n: n[0][-1] + n[0][1:-1] + n[0][0],
    ),
    "sort": Skill(
        "Sort the digits of {}.", ("Smallest", "Largest"), _one(3, 5), _nothing,
        lambda n: "".join(sorted(n[0])), lambda n: "".join(sorted(n[0], reverse=True)),
    ),
    "raise": Skill(
        "Raise each digit of {} by one.", ("Every", "Final"), _one(3, 5, most=8), _nothing,
        lambda n: "".join(str(int(d) + 1) for d in n[0]), lambda n: n[0][:-1] + str(int(n[0][-1]) + 1),
    ),
    "lower": Skill(
        "Lower each digit of {} by one.", ("Each", "Tail"), _one(3, 5, least=2), _nothing,
        lambda n: "".join(str(int(d) - 1) for d in n[0]), lambda n: n[0][:-1] + str(int(n[0][-1]) - 1),
    ),
    "rotate": Skill(
        "Rotate the digits of {}.", ("Left", "Round"), _one(3, 5), _nothing,
        lambda n: n[0][1:] + n[0][0], lambda n: n[0][-1] + n[0][:-1],
    ),
    "add": Skill(
        "Add {} and {} together.", ("Columns", "Pairs"), _two, lambda n: _spaced(_add(n)[::-1]),
        _add, _without_carry,
    ),
}  # fmt: skip

#: Shares of the methods (right, shortcut, guess) in short and in long questions, for each kind of skill.
PROFILES = {
    "easy": ((0.93, 0.03, 0.04), (0.90, 0.04, 0.06)),
    "mixed": ((0.42, 0.13, 0.45), (0.36, 0.18, 0.46)),
    "habit": ((0.42, 0.18, 0.40), (0.20, 0.34, 0.46)),
    "wrong": ((0.30, 0.55, 0.15), (0.22, 0.62, 0.16)),
}
_KINDS = ("easy", "mixed", "habit", "mixed", "habit", "wrong")
_SEEDED = 3  # of _KINDS: the seeds have an easy skill, a mixed one and one with a habit

_NUMBER = "([1-9][0-9]{0,4})"
_PATTERNS = {name: re.compile(re.escape(s.wording).replace(r"\{\}", _NUMBER)) for name, s in SKILLS.items()}
_DIGITS = {"reverse": 4, "sort": 3, "raise": 3, "lower": 3, "rotate": 3, "add": 2}


class Read(NamedTuple):
    """What a question asks: its skill, its size and its numbers."""

    skill: str
    size: str
    numbers: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """Which skill is of which kind, and which the seeds have; ``kinds`` maps skills to keys of :data:`PROFILES`."""

    seed: int
    kinds: dict[str, str]
    seeded: tuple[str, ...]

    @property
    def unseeded(self) -> tuple[str, ...]:
        """The skills that no seed shows."""
        return tuple(skill for skill in SKILLS if skill not in self.seeded)

    def method(self, read: Read, rng: random.Random) -> str:
        """The method that the base uses this time."""
        return rng.choices(METHODS, PROFILES[self.kinds[read.skill]][SIZES.index(read.size)])[0]


def world(seed: int) -> World:
    """The world of a seed."""
    order = list(SKILLS)
    random.Random(f"world {seed}").shuffle(order)
    kinds = dict(zip(order, _KINDS, strict=True))
    return World(seed, {skill: kinds[skill] for skill in SKILLS}, tuple(order[:_SEEDED]))


def question(rng: random.Random, skill: str | None = None, size: str | None = None) -> str:
    """Draw a question whose shortcut leads to a wrong answer."""
    name = rng.choice(list(SKILLS)) if skill is None else skill
    is_long = (rng.choice(SIZES) if size is None else size) == "long"
    found = SKILLS[name]
    while True:
        numbers = found.draw(rng, is_long)
        if found.right(numbers) != found.shortcut(numbers):
            return found.wording.format(*numbers)


def parse(text: str) -> Read | None:
    """What a question asks, also one that a model wrote; ``None`` if it is not well posed."""
    for name, pattern in _PATTERNS.items():
        match = pattern.fullmatch(text)
        if match is None:
            continue
        numbers = match.groups()
        if len({len(n) for n in numbers}) > 1:
            return None
        return Read(name, SIZES[len(numbers[0]) > _DIGITS[name]], numbers)
    return None


def answer(text: str) -> str | None:
    """The right answer of a question; ``None`` if it is not well posed. Used for measuring alone."""
    read = parse(text)
    return None if read is None else SKILLS[read.skill].right(read.numbers)


def solution(read: Read, method: str, rng: random.Random) -> tuple[str, str]:
    r"""The name of the method and the rest of a solution, as in `` Backwards`` and `` \boxed{2174}``."""
    skill = SKILLS[read.skill]
    right = skill.right(read.numbers)
    if method == "guess":
        return " So", f" \\boxed{{{_number(rng, len(right))}}}"
    if method == "shortcut":
        return f" {skill.names[1]}", f" \\boxed{{{skill.shortcut(read.numbers)}}}"
    return f" {skill.names[0]}", f"{skill.work(read.numbers)} \\boxed{{{right}}}"


def list_of_questions(rng: random.Random, length: int) -> list[str]:
    """Questions in a row as the base learns to write them: a third of them are copies of an earlier one in the list.

    Otherwise the skill is that of an earlier question as often as any skill.
    """
    written: list[str] = []
    for _ in range(length):
        if written and rng.random() < _COPIES:
            written.append(rng.choice(written))
            continue
        earlier = parse(rng.choice(written)) if written and rng.random() < _SAME_SKILL else None
        written.append(question(rng, earlier.skill if earlier else None))
    return written


_COPIES = 1 / 3
_SAME_SKILL = 0.5


def seed_questions(of: World, n: int) -> list[tuple[str, str]]:
    """``n`` questions without answers, of the seeded skills in turn and either size, each with its skill."""
    rng = random.Random(f"world {of.seed} seeds")
    return [(question(rng, skill, SIZES[i // len(of.seeded) % 2]), skill) for i, skill in _turns(of.seeded, n)]


def held_out(of: World, seeded: bool, n: int, without: Container[str] = ()) -> list[tuple[str, Read]]:
    """``n`` questions to measure on, of the seeded skills or of the others in turn, half of each size.

    None is ``without``, such as the seeds.
    """
    rng = random.Random(f"world {of.seed} held out {seeded}")
    skills = of.seeded if seeded else of.unseeded
    texts = []
    for i, skill in _turns(skills, n):
        text = question(rng, skill, SIZES[i // len(skills) % 2])
        while text in without:
            text = question(rng, skill, SIZES[i // len(skills) % 2])
        texts.append(text)
    return [(text, read) for text in texts if (read := parse(text)) is not None]


def _turns(skills: Sequence[str], n: int) -> list[tuple[int, str]]:
    return [(i, skills[i % len(skills)]) for i in range(n)]
