"""What ``lightning-serl probe`` foretold, against what training then did, over pairs of a base and problems.

    python benchmarks/probe.py [--out runs/probe] [--pairs NAME ...] [--real runs/real --model DIR] [--print] [--into P]

A pair of the embedded kind is a base of some pre-training length (built here, up to five minutes each) with problems
that ask for one skill: it is probed on 64 unlabelled seeds and trained on them for 10 rounds, then measured on 50 other
problems with labels. A pair of the real model is a finished row of ``benchmarks/real.py`` in ``--real``; it is only
probed. What is in ``--out`` already is read, and ``--print`` makes nothing.

Prints a row for each pair and Spearman's rank correlation of figures of the probe with the lift of mean@k: over all
pairs, over those that the thresholds of the verdict were looked at with, and over those that were kept aside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import real

from lightning_serl.cli import main as lightning_serl
from lightning_serl.tiny.language import is_expression, parse, question

SEEDS, HELD_OUT = 64, 50
FIT = [
    *("-c", "preset:quickstart", "--data.source", "seeds", "--data.rounds_per_epoch", "10"),
    *("--data.round.prompts_per_round", "8", "--data.round.samples_per_prompt", "8"),
    *("--data.evaluation.samples", "4", "--data.probe.every", "0"),
]
# Figures of the probe that are compared with the lift. Trainability was fixed before any run of this script; the others
# are what it is made of.
FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "trainability": lambda seeds: seeds["trainability"]["figure"],
    "headroom (1 - agreement)": lambda seeds: seeds["trainability"]["headroom"],
    "same vote from half of the answers": lambda seeds: seeds["trainability"]["half_vote"],
    "readable": lambda seeds: seeds["readable"],
}


def drawn(wanted: Callable[[str], bool] = lambda text: True) -> Callable[[random.Random], str]:
    """Draws a question of the embedded language that is of a kind."""

    def draw(rng: random.Random) -> str:
        return next(text for text in iter(lambda: question(rng), None) if wanted(text))

    return draw


def events(least: int, most: int) -> Callable[[str], bool]:
    """Whether a question is a story of so many changes."""

    def is_such(text: str) -> bool:
        sentences = text.count(".") + text.count("?")
        return not is_expression(text) and least <= sentences - 2 <= most

    return is_such


def large(rng: random.Random) -> str:
    """A sum that is larger than every number of the pre-training."""
    return f"Compute {rng.randint(100, 400)} + {rng.randint(100, 400)}."


SKILLS: dict[str, Callable[[random.Random], str]] = {
    "mixed": drawn(),
    "expressions": drawn(is_expression),
    "short stories": drawn(events(1, 1)),
    "long stories": drawn(events(3, 9)),
    "large sums": large,
}


@dataclass(frozen=True)
class Pair:
    """A base and problems.

    Args:
        base: Pre-training steps of the embedded base, ``trained`` for what the quickstart made of the packaged one, or
            ``real``.
        task: A skill above, or a task of ``benchmarks/real_tasks.py``.
        aside: Whether the thresholds of the verdict were set without it.
        rounds: Of the run, where the base is real.
    """

    base: str
    task: str
    aside: bool = False
    rounds: int = 16

    @property
    def name(self) -> str:
        """The name of the pair's folder."""
        return f"{self.base}-{self.task}".replace(" ", "_")


PAIRS = [
    Pair("2000", "mixed"),
    Pair("2000", "large sums", aside=True),
    Pair("300", "mixed"),
    Pair("2000", "long stories", aside=True),
    Pair("300", "expressions", aside=True),
    Pair("trained", "mixed"),
    Pair("2000", "expressions"),
    Pair("2000", "short stories", aside=True),
    Pair("300", "large sums"),
    Pair("300", "short stories", aside=True),
    Pair("trained", "expressions", aside=True),
    Pair("real", "sums"),
    Pair("real", "opposites", aside=True),
    Pair("real", "sums in a box"),
]
# A probe of the real model writes less than the default, since a CPU writes 100 of its tokens in a second.
REAL_TOKENS = 6000
MARKS = "<!-- measured -->", "<!-- end of measured -->"


def run(*arguments: object, root: Path) -> None:
    """Run a command in this process; ends this script where it fails."""
    log = root / "log.txt"
    file = log.open("a")  # stays open, since loggers keep it
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        status = lightning_serl([str(one) for one in arguments])
    if status:
        sys.exit(f"{log}: {log.read_text().strip().splitlines()[-1]}")


def base_of(steps: str, root: Path) -> str:
    """The embedded base of a pre-training length, built if it is missing."""
    if steps == "2000":
        return "tiny:base"
    if steps == "trained":
        folder = root / "bases" / "quickstart"
        if not (folder / "export").is_dir():
            run("fit", "-c", "preset:quickstart", "--trainer.default_root_dir", folder, root=root)
        return str(folder / "export")
    folder = root / "bases" / f"s1-{steps}"
    if not (folder / "config.json").is_file():
        command = [sys.executable, "-m", "lightning_serl.tiny.build", "--seed", "1", "--steps", steps]
        subprocess.run([*command, "--out", str(folder)], check=True)
    return str(folder)


def problems_of(skill: str, root: Path) -> tuple[Path, Path]:
    """Seeds without labels and held-out problems with them, of the embedded language."""
    rng, found = random.Random(skill), dict[str, None]()
    while len(found) < SEEDS + HELD_OUT:
        found.setdefault(SKILLS[skill](rng))
    rows = [{"problem": text} for text in found]
    labelled = [row | {"answer": str(parse(row["problem"]).answer)} for row in rows[SEEDS:]]  # type: ignore[union-attr]
    root.mkdir(parents=True, exist_ok=True)
    stem = skill.replace(" ", "_")
    paths = root / f"{stem}-seeds.jsonl", root / f"{stem}-held-out.jsonl"
    for path, part in zip(paths, (rows[:SEEDS], labelled), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    return paths


@dataclass(frozen=True)
class Places:
    """Where the pairs' files are, and the model of the real ones."""

    out: Path
    real: Path
    model: str
    makes: bool  # whether what is missing is made

    def options(self, pair: Pair) -> list[str]:
        """The options of a pair's fit."""
        if pair.base == "real":
            row = real.Row(pair.task)
            return real.options_of(row, real.Settings(self.model, pair.rounds), self.real)
        seeds = problems_of(pair.task, self.out / "problems")[0]
        return [*FIT, "--model.model_name_or_path", base_of(pair.base, self.out), "--data.seeds", str(seeds)]

    def lift(self, pair: Pair) -> list[float] | None:
        """mean@k before and after, in per cent; ``None`` where there is no run."""
        if pair.base == "real":
            result = real.Run(real.Row(pair.task), self.real).result
            if result is None or "error" in result:
                return None
            return [result[when]["mean@k"][0] for when in ("before", "after")]
        folder = self.out / pair.name
        if not (folder / "lift.json").is_file() and self.makes:
            held_out = problems_of(pair.task, self.out / "problems")[1]
            shutil.rmtree(folder / "run", ignore_errors=True)
            sets = ["--data.evaluation.sets", json.dumps({"held_out": str(held_out)})]
            run("fit", *self.options(pair), *sets, "--trainer.default_root_dir", folder / "run", root=self.out)
            summary = json.loads((folder / "run" / "summary.json").read_text())
            found = [100 * summary[when]["mean@4"] for when in ("before", "after")]
            (folder / "lift.json").write_text(json.dumps(found))
            shutil.rmtree(folder / "run")
        return json.loads((folder / "lift.json").read_text()) if (folder / "lift.json").is_file() else None

    def probe(self, pair: Pair) -> dict[str, Any] | None:
        """The figures of a pair's probe; ``None`` where there is none."""
        file = self.out / pair.name / "probe.json"
        if not file.is_file() and self.makes:
            file.parent.mkdir(parents=True, exist_ok=True)
            more: list[object] = ["--probe.temperatures", "none", "--out", file]
            more += ["--probe.tokens", REAL_TOKENS] if pair.base == "real" else []
            run("probe", *self.options(pair), *more, root=self.out)
        return json.loads(file.read_text()) if file.is_file() else None


def ranks(values: list[float]) -> list[float]:
    """The rank of each value from 0 on; equal values share the mean of theirs."""
    order = sorted(values)
    return [fmean(i for i, other in enumerate(order) if other == value) for value in values]


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's rank correlation; NaN where one side has no spread."""
    x, y = ranks(a), ranks(b)
    mx, my = fmean(x), fmean(y)
    spread = (sum((i - mx) ** 2 for i in x) * sum((j - my) ** 2 for j in y)) ** 0.5
    return sum((i - mx) * (j - my) for i, j in zip(x, y, strict=True)) / spread if spread else float("nan")


def line_of(pair: Pair, probed: dict[str, Any], lift: list[float]) -> str:
    """One row of the table."""
    one, aside = probed["seeds"]["trainability"], "yes" if pair.aside else ""
    cells = [
        *(pair.base, pair.task, aside, f"{one['figure']:.2f} ± {one['error']:.2f}"),
        *(f"{probed['seeds']['agreement']:.2f}", probed["outlook"]),
        *(f"{lift[0]:.1f} → {lift[1]:.1f}", f"{lift[1] - lift[0]:+.1f}"),
    ]
    return f"| {' | '.join(cells)} |"


def correlations(found: list[tuple[Pair, dict[str, Any], list[float]]]) -> list[str]:
    """The rank correlations of the probe's figures with the lift, as a table."""
    parts = {"all": found, "looked at": [f for f in found if not f[0].aside], "aside": [f for f in found if f[0].aside]}
    heads = " | ".join(f"{name} ({len(part)})" for name, part in parts.items())
    lines = ["", f"| rank correlation with the lift | {heads} |", "|---" * 4 + "|"]
    for name, figure in FIGURES.items():
        cells = []
        for part in parts.values():
            lifts = [lift[1] - lift[0] for _, _, lift in part]
            cells.append(f"{rank_correlation([figure(p['seeds']) for _, p, _ in part], lifts):.2f}" if part else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Make what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/probe"), help="folder of runs and probes")
    parser.add_argument("--real", type=Path, default=Path("runs/real"), help="folder of benchmarks/real.py")
    parser.add_argument("--model", default=str(real.ROOT / "models" / "smollm2-135m-instruct"))
    parser.add_argument("--pairs", nargs="+", default=[pair.name for pair in PAIRS], help="names of pairs")
    parser.add_argument("--print", action="store_true", help="run nothing")
    parser.add_argument("--into", type=Path, help="a markdown file; replaces what is between its two marks")
    args = parser.parse_args()
    places = Places(args.out.resolve(), args.real.resolve(), args.model, not args.print)
    lines = ["| base | problems | aside | trainability | agreement | outlook | mean@k | lift |", "|---" * 8 + "|"]
    print("\n".join(lines))
    found: list[tuple[Pair, dict[str, Any], list[float]]] = []
    for pair in [one for one in PAIRS if one.name in args.pairs]:
        probed, lift = places.probe(pair), places.lift(pair)
        if probed is not None and lift is not None:
            found.append((pair, probed, lift))
            lines.append(line_of(*found[-1]))
            print(lines[-1], flush=True)
    rest = correlations(found)
    print("\n".join(rest))
    if args.into is not None:
        real.put_into(args.into, ["", *lines, *rest, ""], MARKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
