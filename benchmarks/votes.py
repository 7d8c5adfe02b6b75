"""Votes of our two modes and SeRL's pairwise vote by math-verify, in one process and in processor time.

    python benchmarks/votes.py [--data ../shared/data] [--groups 160] [--rounds 2]

Half of the timed groups are recorded (every k-th of ``responses_*.jsonl``), half synthetic; without the recorded data
all are synthetic and the targets on rewards are not checked. The published vote runs math-verify's ``math_metric`` on
every pair of texts (problem and response), in both directions where the first says no. Processor time is that of this
process and, for our modes, of the worker; starting the worker and importing math-verify are not counted. Sides
alternate, every round begins with a fresh grader and empty caches, and the median of the rounds counts. A grader
remembers verdicts across groups, which is part of the method; a column shows the default mode with a new grader for
every group.

A hostile answer is judged by processor time as well; the wall time shown next to it depends on the machine's load.

Rewards are compared on all recorded groups: exact mode against the same algorithm with math-verify called directly
and without our limits, default mode against exact mode. Prints a markdown report; exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from statistics import median

from math_verify import ExprExtractionConfig, LatexExtractionConfig, math_metric, parse, verify

from lightning_serl.answers import MathGrader
from lightning_serl.answers.math import expression, normal_form, structure
from lightning_serl.answers.math_grader import MAX_READ, tidy
from lightning_serl.answers.verifier.client import shared_client
from lightning_serl.answers.verifier.worker import Verifier
from lightning_serl.rewards import MajorityVote
from lightning_serl.types import Group

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TARGETS = (ExprExtractionConfig(), LatexExtractionConfig())
SIZE = 16
HOSTILE = [
    "9^{9^{9}}",
    "1000000!",
    r"\binom{1000000}{500000}",
    "(x+1)^{500}(x-1)^{400}",
    r"\sum_{k=1}^{10000000} \frac{1}{k}",
    r"\prod_{k=1}^{100000} (x+k)",
    "7^{7^{7^{7}}}",
    r"\int_0^1 e^{x^{x^x}} dx",
    "{" * 900,
    r"\frac{" * 200,
    "(" * 300 + "x" + ")" * 300,
    r"\sqrt{" * 60 + "x" + "}" * 60,
    "x^{2}+" * 300 + "1",
    "2^{999999999}",
    r"\sin(\cos(\tan(x)))^{99999}",
    "1" * 1900,
    "(a+b+c+d+e+f)^{40}",
    "((((9!)!)!)!)!",
    r"\frac{1}{" * 90 + "x" + "}" * 90,
    "x\x00" * 200,
]


class Direct(MathGrader):
    """Exact mode done naively: math-verify in this process for every pair that is asked for, nothing remembered."""

    def __init__(self) -> None:
        super().__init__("exact")
        self._verifier = Verifier()

    def _read(self, text: str, boxed: str | None = None) -> str | None:
        return tidy(self._verifier.read(text[-MAX_READ:])["answer"]) or boxed

    def same(self, a: str, b: str) -> bool:
        """By parsing both answers and verifying them in both directions, with math-verify's own limits."""
        if a == b or any(self._is_text(x) for x in (a, b)):
            return normal_form.normal_form(a) == normal_form.normal_form(b)
        left, right = (parse(f"\\boxed{{{x}}}", TARGETS) for x in (a, b))
        return bool(left and right) and (verify(left, right, 6) or verify(right, left, 6))


def published(group: Group) -> None:
    """SeRL's matrix of a group."""
    metric = math_metric(gold_extraction_target=TARGETS, pred_extraction_target=TARGETS, aggregation_function=max)
    texts = [f"{group.instruction.prompt}\n{text}" for text in group.texts]
    for a, b in combinations(texts, 2):
        try:
            _ = metric([a], [b])[0] == 1.0 or metric([b], [a])[0] == 1.0
        except Exception:
            continue  # as published: whatever goes wrong is "different"


def recorded(folder: Path) -> list[Group]:
    """All recorded groups, file by file."""
    groups = []
    for path in sorted(folder.glob("responses_*.jsonl")):
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        groups += [Group.from_texts(row["problem"], [r["text"] for r in row["responses"]]) for row in rows]
    return groups


def synthetic(count: int, seed: int = 0) -> list[Group]:
    """Groups of 16 worked responses: several spellings of one answer, wrong answers, some without a box or cut off."""
    rng = random.Random(seed)
    return [_synthetic(rng) for _ in range(count)]


def _synthetic(rng: random.Random) -> Group:
    right, wrong = _answers(rng)
    share = rng.uniform(0.2, 0.9)
    wrong = rng.sample(wrong, rng.randint(1, len(wrong)))
    a, b = rng.randint(2, 40), rng.randint(2, 40)
    prompt = f"A shop sells ${a}$ boxes with ${b}$ pens each, and so on. What is the value that follows?"
    texts, finished = [], []
    for _ in range(SIZE):
        answer = rng.choice(right if rng.random() < share else wrong)
        steps = [
            f"## Step {k}: {rng.choice(['Set up the relation', 'Simplify', 'Check', 'Go on'])}\nThere are "
            f"${a} \\cdot {k * b} = {a * k * b}$ pens, and $\\frac{{{a}}}{{{b + k}}} + {k}x = \\sqrt{{{k}}}$ holds."
            for k in range(1, rng.randint(6, 20))
        ]
        text, how = "\n\n".join(steps), rng.random()
        if how < 0.05:
            text += f"\n\nThe answer is {answer}."
        elif how < 0.09:
            text = text[: int(len(text) * rng.uniform(0.5, 0.9))]
        else:
            text += rng.choice(
                [
                    f"\n\nThe final answer is: $\\boxed{{{answer}}}$",
                    f"\n\nTherefore, the answer is $\\boxed{{{answer}}}$.",
                    f"\n\nSo we get\n\\[\n\\boxed{{{answer}}}\n\\]",
                ]
            )
        texts.append(text)
        finished.append(not 0.05 <= how < 0.09)
    return Group.from_texts(prompt, texts, finished=finished)


def _answers(rng: random.Random) -> tuple[list[str], list[str]]:
    """Spellings of a right answer, and wrong answers."""
    n, k, c = rng.randint(2, 9999), rng.randint(2, 9), rng.choice([2, 3, 5, 7])
    p, q = rng.randint(1, 30), rng.randint(2, 30)
    kinds = [
        ([f"{n}", f"{n}", f"\\text{{{n}}}", f"{n}.0", f"{n} ", f"{n:,}"], [f"{n + 1}", f"{2 * n + 3}", f"-{n}"]),
        (
            [f"\\frac{{{p}}}{{{q}}}", f"\\dfrac{{{p}}}{{{q}}}", f"{p}/{q}", f"\\frac{{{2 * p}}}{{{2 * q}}}"],
            [f"\\frac{{{q}}}{{{p + 2 * q}}}", f"\\frac{{{p}}}{{{q + 1}}}", f"{p + q}", f"{p / q + 1:.3f}"],
        ),
        (
            [f"{p}+{k}\\sqrt{{{c}}}", f"{k}\\sqrt{{{c}}} + {p}", f"{p} + \\sqrt{{{k * k * c}}}"],
            [f"{p}-{k}\\sqrt{{{c}}}", f"{p + k}\\sqrt{{{c}}}", f"{p}", f"{q}\\pi"],
        ),
        ([f"({p},{q})", f"({p}, {q})", f"\\left( {p}, {q} \\right)"], [f"({q + 31},{p})", f"({p},{-q})", f"{p}"]),
        ([f"x^2+{p}x-{q}", f"x^2 + {p} x - {q}", f"-{q}+{p}x+x^2"], [f"x^2-{p}x-{q}", f"{p}x-{q}", f"x^2+{p + 1}x"]),
        ([f"{k}\\%", f"{k} \\%"], [f"{k + 1}\\%", f"{k + 10}", f"{k * 3}\\%"]),
    ]
    return kinds[rng.choices(range(len(kinds)), [6, 4, 2, 1, 1, 1])[0]]


def forget() -> None:
    """A fresh worker, ready, and empty caches."""
    shared_client().close()
    forms = (normal_form.normal_form, normal_form.number, normal_form.is_phrase)
    for cached in (*forms, structure.structure, expression.evaluate, expression._variable):
        cached.cache_clear()
    shared_client().ask("same", 5.0, a="\\boxed{y+2}", b="\\boxed{2+y}")


def spent(work: Callable[[], object]) -> float:
    """Processor seconds of this process and the worker."""
    own, worker = time.process_time(), shared_client().seconds
    work()
    return time.process_time() - own + shared_client().seconds - worker


def unread(group: Group) -> Group:
    """The same responses, not read yet."""
    finished = [completion.finished for completion in group.completions]
    return Group.from_texts(group.instruction.prompt, group.texts, finished=finished)


def timed(groups: Sequence[Group], rounds: int) -> dict[str, list[float]]:
    """Seconds of every group by side, medians of the rounds."""
    times: dict[str, list[list[float]]] = {side: [] for side in ("published", "exact", "fast", "fast alone")}
    for _ in range(rounds):
        times["published"].append([spent(lambda g=g: published(g)) for g in groups])
        for side in ("exact", "fast", "fast alone"):
            forget()
            votes = [MajorityVote(mode=side.split()[0])] * len(groups)
            if side == "fast alone":
                votes = [MajorityVote() for _ in groups]
            fresh = [unread(group) for group in groups]
            times[side].append([spent(lambda g=g, v=v: v([g], None)) for g, v in zip(fresh, votes, strict=True)])
    return {side: [median(group) for group in zip(*found, strict=True)] for side, found in times.items()}


def ratios(times: dict[str, list[float]], side: str, chosen: Sequence[int]) -> tuple[float, float]:
    """How many times more the published vote costs, in total and on the median group."""
    base, ours = ([times[name][i] for i in chosen] for name in ("published", side))
    return sum(base) / sum(ours), median(p / q for p, q in zip(base, ours, strict=True))


def rewards(groups: Sequence[Group], vote: MajorityVote) -> list[tuple[list[float], bool]]:
    """The scores of every group and whether it is tied."""
    verdicts = [vote([unread(group)], None)[0] for group in groups]
    return [(verdict.scores.tolist(), verdict.info["tie"]) for verdict in verdicts]


def hostile_groups(answers: Sequence[str], count: int) -> list[Group]:
    """Ordinary groups, in which the answers take the place of one response each, in turn."""
    rng, texts = random.Random(7), []
    for group in synthetic(count, seed=7):
        texts.append([group.instruction.prompt, *group.texts])
    for i, answer in enumerate(answers):
        texts[i % count][1 + (i // count + rng.randrange(SIZE // 2) * 2) % SIZE] = f"So it is $\\boxed{{{answer}}}$."
    return [Group.from_texts(prompt, responses) for prompt, *responses in texts]


def hostile() -> tuple[tuple[float, float], tuple[float, float]]:
    """Processor and wall seconds of the slowest group with one hostile answer, and of 16 groups with twenty of them."""
    slowest, total = (0.0, 0.0), (0.0, 0.0)
    for mode in ("exact", "fast"):
        forget()
        for answer in HOSTILE:
            slowest = max(slowest, both_clocks(MajorityVote(mode=mode), hostile_groups([answer], 1)))
        total = max(total, both_clocks(MajorityVote(mode=mode), hostile_groups(HOSTILE, 16)))
    shared_client().close()
    return slowest, total


def both_clocks(vote: MajorityVote, groups: Sequence[Group]) -> tuple[float, float]:
    """Processor and wall seconds of a vote."""
    started = time.perf_counter()
    seconds = spent(lambda: vote(groups, None))
    return seconds, time.perf_counter() - started


def main() -> int:
    """Measure, report, and say whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder that holds responses_*.jsonl")
    parser.add_argument("--groups", type=int, default=160, help="timed groups, half of them recorded")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    packages = ("math-verify", "latex2sympy2_extended", "sympy")
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in packages))
    known = recorded(args.data)
    half = min(args.groups // 2, len(known))
    groups = [known[i * len(known) // half] for i in range(half)] + synthetic(args.groups - half)
    published(groups[-1])
    times = timed(groups, args.rounds)
    print("\n| groups | | published, s | ms, median group | exact: times cheaper, total | median group", end="")
    print(" | default: total | median group | default, new grader a group: total | median group |")
    print("|" + "---|" * 10)
    parts = {"recorded": range(half), "synthetic": range(half, len(groups)), "all": range(len(groups))}
    for name, chosen in parts.items():
        if not chosen:
            continue
        base = [times["published"][i] for i in chosen]
        cells = [name, f"{len(chosen)}", f"{sum(base):.1f}", f"{1e3 * median(base):.0f}"]
        cells += [f"{x:,.0f}" for side in ("exact", "fast", "fast alone") for x in ratios(times, side, chosen)]
        print("| " + " | ".join(cells) + " |")
    exact, fast = ratios(times, "exact", parts["all"]), ratios(times, "fast", parts["all"])
    rows = [
        ("exact, total", f"{exact[0]:.1f} times cheaper", ">= 8", exact[0] >= 8),
        ("default, median group", f"{fast[1]:,.0f} times cheaper", ">= 500", fast[1] >= 500),
        ("default, total", f"{fast[0]:,.0f} times cheaper", ">= 100", fast[0] >= 100),
    ]
    if known:
        plainly, ours = rewards(known, MajorityVote(Direct())), rewards(known, MajorityVote(mode="exact"))
        differ = sum(a != b for x, y in zip(plainly, ours, strict=True) for a, b in zip(x[0], y[0], strict=True))
        rows.append(
            ("exact, rewards unlike plain representatives", f"{differ} of {len(known)} groups", "0", not differ)
        )
        quick = rewards(known, MajorityVote())
        untied = [(x[0], y[0]) for x, y in zip(ours, quick, strict=True) if not x[1]]
        share = sum(x == y for x, y in untied) / len(untied)
        rows.append(
            (f"default, {len(untied)} untied groups as exact", f"{100 * share:.1f} %", ">= 95 %", share >= 0.95)
        )
    for (seconds, wall), name, bound in zip(
        hostile(), ("slowest group with a hostile answer", "twenty hostile answers in 16 groups"), (1, 16), strict=True
    ):
        rows.append((name, f"{seconds:.2f} s ({wall:.2f} s by the clock)", f"<= {bound} s", seconds <= bound))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    rows.append(("largest worker", f"{peak:.2f} GB", "< 2 GB", peak < 2.0))
    print("\n| target | measured | bound | |\n|---|---|---|---|")
    for name, measured, bound, met in rows:
        print(f"| {name} | {measured} | {bound} | {'met' if met else 'MISSED'} |")
    return 0 if all(met for *_, met in rows) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
