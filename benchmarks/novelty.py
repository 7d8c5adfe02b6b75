"""Cost of a novelty decision, ours and that of ``rouge_score``, and whether both decide alike.

    python benchmarks/novelty.py [--data ../shared/data]

prints a markdown table for problems from a seeded generator and, with ``--data``, one for the recorded problems. Pools
larger than the recorded problems are filled up with recombined sentences and changed numbers. Candidates are edits of
pool entries, edits of unseen problems and unseen problems. ``rouge_score`` scores a candidate against the whole pool,
as SeRL's published code does in 32 processes; it is timed on a few candidates, ours on all, both in CPU seconds of this
one process. Exits with 1 if a target is missed. Takes about nine CPU minutes, half of them without ``--data``.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from lightning_serl.pool import InstructionPool
from lightning_serl.pool.pool import STATUSES

THRESHOLD = 0.7
SIZES = (1_000, 10_000, 100_000)
RATIOS = {1_000: 400, 10_000: 2_500, 100_000: 5_000}
REFERENCE = {1_000: 60, 10_000: 12, 100_000: 4}  # candidates that rouge_score is timed on
CANDIDATES = 300
GROWTH = 0.8
DECISION_MS, ADD_MS, LOAD_SECONDS = 5.0, 0.2, 20.0
PAIRS = 20_000

SCORER = RougeScorer(["rougeL"], use_stemmer=False)

SYLLABLES = "ma ri to len ka su bel no vi dra ha mon te li ra go pin sel du fa"
THINGS = """apples marbles pencils tickets coins stamps bottles cookies tiles bricks lamps chairs shirts books roses
trees eggs loaves candles boxes cards stickers ribbons beads plates cups keys ropes shells buttons melons lemons"""
PLACES = """school market library factory bakery farm garden harbour museum station workshop office hotel theatre bridge
warehouse orchard kitchen stadium clinic"""
VERBS = "buys sells packs counts loses finds paints ships borrows returns bakes plants collects prints mends folds"
SHAPES = "triangle rectangle square trapezoid rhombus circle hexagon cube cylinder cone prism sphere"
FACTS = (
    "{name} {verb} {n} {thing} at the {place} on the first day.",
    "Every {thing} from the {place} costs ${n}.{m}.",
    "{name} has {n} times as many {thing} as {other}.",
    "The {place} opens at {m} o'clock and closes {n} minutes later.",
    "A {shape} has a side of length {n} cm and an area of {m} square centimetres.",
    "Let $f(x) = {n}x^2 - {m}x + {k}$ for all real $x$.",
    "The sequence satisfies $a_1 = {n}$ and $a_{{j+1}} = {m}a_j + {k}$.",
    "{name} walks from the {place} to the {place2} at {n} km per hour.",
    "In a group of {n} workers, {m} can repair {thing} and {k} can drive.",
    "After {n} weeks, {name} {verb} one third of the {thing} and gives {m} to {other}.",
    "The ratio of {thing} to {thing2} in the {place} is {n}:{m}.",
    "A bag holds {n} red, {m} blue and {k} green {thing}.",
    "Suppose that $\\frac{{x}}{{{n}}} + \\frac{{y}}{{{m}}} = {k}$.",
    "Two trains leave {name} and {other} at the same time, {n} km apart.",
    "The mean of {n} numbers is {m}, and the largest of them is {k}.",
    "{other} {verb} {n} percent fewer {thing} than {name} did last year.",
    "Points $A({n}, {m})$ and $B({k}, {n})$ lie on a {shape}.",
    "Each shelf of the {place} holds {n} {thing} and {m} {thing2}.",
    "A tank is filled by a pipe in {n} hours and emptied by another in {m} hours.",
    "{name} rolls two fair dice {n} times and notes every sum above {k}.",
)
QUESTIONS = (
    "How many {thing} does {name} have in the end?",
    "What is the probability that exactly {k} of them are chosen?",
    "Find the value of $x + y$ as a reduced fraction.",
    "How much money, in dollars, is left for {other}?",
    "Determine the remainder when the total is divided by {m}.",
    "What is the perimeter of the {shape}, in centimetres?",
    "How long, in minutes, does the whole trip take?",
    "Compute the smallest positive integer with this property.",
    "What percentage of the {thing2} remains at the {place}?",
    "Find all real solutions of $f(x) = {k}$.",
)


def generate(rng: random.Random) -> list[str]:
    """The sentences of one problem: one to five facts and a question."""

    def pick(words: str, count: int) -> list[str]:
        return rng.sample(words.split(), count)

    name, other = ("".join(pick(SYLLABLES, rng.randrange(2, 4))).capitalize() for _ in range(2))
    (thing, thing2), (place, place2) = pick(THINGS, 2), pick(PLACES, 2)
    slots: dict[str, Any] = {"name": name, "other": other, "thing": thing, "thing2": thing2}
    slots |= {"place": place, "place2": place2, "shape": pick(SHAPES, 1)[0]}
    sentences = []
    for pattern in [*rng.sample(FACTS, rng.randrange(1, 6)), rng.choice(QUESTIONS)]:
        slots |= {"n": rng.randrange(2, 400), "m": rng.randrange(2, 60), "k": rng.randrange(1, 20)}
        sentences.append(pattern.format(**slots, verb=pick(VERBS, 1)[0]))
    return sentences


def recombine(problems: Sequence[list[str]], rng: random.Random) -> list[str]:
    """Half of one problem and half of another, with other numbers."""
    first, second = rng.sample(problems, 2)
    parts = first[: (len(first) + 1) // 2] + second[len(second) // 2 :]
    return [re.sub(r"\d+", lambda number: str((int(number.group()) + rng.randrange(10)) % 10_000), p) for p in parts]


def edited(sentences: list[str], rng: random.Random) -> str:
    """A rewording: some words dropped, replaced, doubled or moved."""
    words = " ".join(sentences).split()
    for _ in range(int(len(words) * rng.choice((0.05, 0.15, 0.25, 0.35)))):
        place = rng.randrange(len(words))
        match rng.randrange(4):
            case 0 if len(words) > 4:
                del words[place]
            case 1:
                words.insert(place, words[place])
            case 2:
                words.insert(rng.randrange(len(words)), words.pop(place))
            case _:
                words[place] = rng.choice(["then", "total", "each", "find", "left", str(rng.randrange(99))])
    return " ".join(words)


def recorded(folder: Path) -> list[list[str]]:
    """The distinct problems of at most 150 words in the folder's files, as sentences."""
    found = dict.fromkeys(
        str(row.get("problem") or row.get("question") or "")
        for path in sorted(folder.glob("*.jsonl"))
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    )
    return [re.split(r"(?<=[.?!])\s+", text.strip()) for text in found if 3 < len(text.split()) <= 150]


def corpus(size: int, problems: Sequence[list[str]], rng: random.Random) -> tuple[list[str], list[str]]:
    """A pool of ``size`` distinct texts and the candidates; without ``problems`` they are generated."""
    unseen = [generate(rng) for _ in range(CANDIDATES)] if not problems else rng.sample(problems, len(problems) // 10)
    base = [p for p in problems if p not in unseen]
    rng.shuffle(base)
    chosen = {" ".join(p): p for p in base[:size]}
    while len(chosen) < size:
        problem = recombine(base, rng) if base else generate(rng)
        if len(text := " ".join(problem)) <= 1000:
            chosen[text] = problem
    entries = list(chosen.values())
    rng.shuffle(entries)
    candidates = []
    for _ in range(CANDIDATES):
        source = entries if rng.random() < 0.4 else unseen
        problem = rng.choice(source)
        candidates.append(edited(problem, rng) if source is entries or rng.random() < 0.5 else " ".join(problem))
    return [" ".join(p) for p in entries], candidates


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU milliseconds, and the result."""
    start = time.process_time()
    result = work()
    return 1e3 * (time.process_time() - start), result


def largest_score(text: str, entries: Iterable[str]) -> float:
    """By ``rouge_score``."""
    return max(SCORER.score(text, entry)["rougeL"].fmeasure for entry in entries)


@dataclass
class Row:
    """What was measured at one pool size; times in CPU milliseconds.

    Attributes:
        size: Entries of the pool.
        theirs: Per decision, ``rouge_score``.
        ours: Per decision, ours.
        differing: Decisions that differ, of those that both took.
        repeats: Candidates that ours calls repetitions.
        add: Per entry added to the full pool.
        load: To load the pool's state.
        nearest: Per exact largest score.
    """

    size: int
    theirs: list[float]
    ours: list[float]
    differing: int
    repeats: int
    add: float
    load: float
    nearest: float

    @property
    def ratio(self) -> float:
        """How many times faster ours is, by means."""
        return statistics.mean(self.theirs) / statistics.mean(self.ours)

    def line(self) -> str:
        """A row of the table."""
        mean, median, worst = statistics.mean(self.ours), statistics.median(self.ours), max(self.ours)
        cells = [f"{self.size:,}", f"{statistics.mean(self.theirs):,.0f}", f"{mean:.3f} / {median:.3f} / {worst:.2f}"]
        cells += [f"{self.ratio:,.0f}x", f"{self.differing} of {len(self.theirs)}", f"{self.repeats}"]
        cells += [f"{self.add:.3f}", f"{self.load / 1e3:.2f}", f"{self.nearest:.2f}"]
        return "| " + " | ".join(cells) + " |"


def measure(size: int, problems: Sequence[list[str]]) -> Row:
    """Both sides on one pool."""
    texts, candidates = corpus(size, problems, random.Random(size))
    pool = InstructionPool(texts)
    for text in texts[:20]:
        pool.similar(text + " again", THRESHOLD)
    theirs, ours, decisions, differing = [], [], [], 0
    for i, text in enumerate(candidates):
        if i < REFERENCE.get(size, 5):
            spent, largest = timed(partial(largest_score, text, texts))
            theirs.append(spent)
        spent, found = timed(partial(pool.similar, text, THRESHOLD))
        ours.append(spent)
        decisions.append(found is not None)
        differing += i < len(theirs) and decisions[-1] != (largest > THRESHOLD)
    nearest = statistics.mean(timed(partial(pool.nearest, text))[0] for text in candidates[:50])
    state = pool.state_dict()
    load = timed(lambda: InstructionPool().load_state_dict(state))[0]
    add = timed(lambda: [pool.add(text) for text in candidates])[0] / len(candidates)
    return Row(size, theirs, ours, differing, sum(decisions), add, load, nearest)


def pairs() -> tuple[int, int]:
    """Decisions on single pairs, edits and ties among them, and how many differ from ``rouge_score``."""
    rng, differing = random.Random(1), 0
    for i in range(PAIRS):
        words = [f"w{int(40 * rng.random() ** 2)}" for _ in range(rng.randrange(1, 30))]
        other = [f"w{int(40 * rng.random() ** 2)}" for _ in range(rng.randrange(1, 30))]
        text, entry = edited(words, rng), " ".join(words if i % 2 else other)
        score = SCORER.score(text, entry)["rougeL"].fmeasure
        threshold = (THRESHOLD, 1.0 - rng.random(), score or 1.0)[i % 3]
        # all statuses: by ROUGE-L alone, so that equal texts are judged like all others
        found = InstructionPool([entry]).similar(text, threshold, STATUSES) is not None
        differing += found != (score > threshold)
    return differing, PAIRS


def growth(small: Row, large: Row) -> float:
    """The exponent with which the mean time of a decision grows with the pool."""
    return log(statistics.mean(large.ours) / statistics.mean(small.ours)) / log(large.size / small.size)


def judge(rows: Sequence[Row]) -> Iterable[tuple[str, bool]]:
    """Each target, with what was measured, and whether it is met."""
    for row in rows:
        if row.size in RATIOS:
            wanted = RATIOS[row.size]
            yield f"{row.size:,}: {row.ratio:,.0f}x `rouge_score`, at least {wanted:,}x wanted", row.ratio >= wanted
        yield f"{row.size:,}: {row.differing} decisions differ, 0 wanted", not row.differing
        yield f"{row.size:,}: {row.add:.3f} ms to add one, at most {ADD_MS} wanted", row.add <= ADD_MS
    steps = list(pairwise(rows)) + ([(rows[0], rows[-1])] if len(rows) > 2 else [])
    for small, large in steps:
        exponent = growth(small, large)
        text = f"{small.size:,} to {large.size:,}: growth exponent {exponent:.2f}, at most {GROWTH} wanted"
        yield text, exponent <= GROWTH
    last, mean = rows[-1], statistics.mean(rows[-1].ours)
    yield f"{last.size:,}: {mean:.2f} ms per decision, at most {DECISION_MS} wanted", mean <= DECISION_MS
    yield (
        f"{last.size:,}: {last.load / 1e3:.1f} s to load, at most {LOAD_SECONDS} wanted",
        last.load <= 1e3 * LOAD_SECONDS,
    )


def main() -> None:
    """Measure, print the report, and exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser(description="Time novelty decisions beside rouge_score, and compare them.")
    parser.add_argument("--data", type=Path, help="a folder of jsonl files whose problems are used as well")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sizes of the pool; default: all three")
    options = parser.parse_args()
    problems = recorded(options.data) if options.data else []
    if options.data and len(problems) < 100:
        parser.error(
            f"{options.data} holds {len(problems)} problems in jsonl files; --data needs a folder of 100 or more"
        )
    packages = ", ".join(f"{name} {version(name)}" for name in ("rouge_score", "numpy", "lightning_serl"))
    print(f"{packages}, Python {platform.python_version()}; CPU milliseconds per decision at threshold {THRESHOLD}\n")
    differing, count = pairs()
    verdicts = [(f"single pairs: {differing} of {count:,} decisions differ, 0 wanted", not differing)]
    for name, source in (("generated", []), ("recorded", problems)):
        if name == "recorded" and not source:
            continue
        titles = [f"pool of {name} problems", "`rouge_score`", "ours: mean / median / worst", "ratio", "differing"]
        titles += [f"repetitions of {CANDIDATES}", "add, ms", "load, s", "`nearest`, ms"]
        print("| " + " | ".join(titles) + " |\n" + "|" + "---|" * len(titles))
        rows = []
        for size in sorted(options.sizes):
            rows.append(measure(size, source))
            print(rows[-1].line(), flush=True)
        verdicts += [(f"{name}, {text}", met) for text, met in judge(rows)]
        print()
    for text, met in verdicts:
        print(f"- {text}: {'met' if met else 'MISSED'}")
    sys.exit(not all(met for _, met in verdicts))


if __name__ == "__main__":
    main()
