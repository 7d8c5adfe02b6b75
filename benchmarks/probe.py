"""What ``lightning-serl probe`` foretold, against what training then did, over pairs of a base and problems.

    python benchmarks/probe.py [--out runs/probe] [--pairs NAME ...] [--real runs/real --model DIR] [--print]

A pair of the embedded kind is a base of some pre-training length (built here, up to five minutes each) with problems
that ask for one skill: it is probed on 64 unlabelled seeds and trained on them for 16 rounds, then measured on 100
other problems with labels. A pair of the real model is a finished row of ``benchmarks/real.py`` in ``--real``; it is
only probed. What is in ``--out`` already is read.

Prints a row for each pair and Spearman's rank correlation of the trainability figure with the lift of mean@k, over all
pairs, over those that the thresholds of the verdict were set on, and over those kept aside.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import real


from lightning_serl.tiny.language import is_expression, parse, question

SEEDS, HELD_OUT = 64, 100
FIT = (
    "-c preset:quickstart --data.source seeds --data.round.samples_per_prompt 8 --data.rounds_per_epoch 16 "
    "--data.evaluation.samples 8 --data.probe.every 0"
).split()


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
        base: Pre-training steps of the embedded base, or ``real``.
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
    Pair("1500", "mixed", aside=True),
    Pair("1000", "mixed"),
    Pair("600", "mixed", aside=True),
    Pair("300", "mixed"),
    Pair("2000", "expressions", aside=True),
    Pair("2000", "long stories"),
    Pair("2000", "short stories", aside=True),
    Pair("2000", "large sums"),
    Pair("1000", "long stories", aside=True),
    Pair("600", "expressions"),
    Pair("600", "large sums", aside=True),
    Pair("real", "sums"),
    Pair("real", "opposites", aside=True),
    Pair("real", "sums in a box"),
    Pair("real", "larger sums", aside=True, rounds=8),
    Pair("real", "greater", rounds=8),
    Pair("real", "continent", aside=True, rounds=8),
]


def lightning_serl(*arguments: object, log: Path) -> None:
    """Run a command; ends this script with its error if it fails."""
    with log.open("w") as file:
        done = subprocess.run([sys.executable, "-m", "lightning_serl", *map(str, arguments)], stdout=file,
                              stderr=subprocess.STDOUT, check=False)  # fmt: skip
    if done.returncode:
        sys.exit(f"{log}: {log.read_text().strip().splitlines()[-1]}")


def base_of(steps: str, root: Path) -> str:
    """The embedded base of a pre-training length, built if it is missing."""
    if steps == "2000":
        return "tiny:base"
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
    texts = list(found)
    labelled = [{"problem": text, "answer": str(parse(text).answer)} for text in texts[SEEDS:]]  # type: ignore[union-attr]
    root.mkdir(parents=True, exist_ok=True)
    paths = root / f"{skill.replace(' ', '_')}-seeds.jsonl", root / f"{skill.replace(' ', '_')}-held-out.jsonl"
    for path, rows in zip(paths, ([{"problem": text} for text in texts[:SEEDS]], labelled), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def lift_of_embedded(pair: Pair, root: Path, options: list[str]) -> dict[str, list[float]]:
    """Accuracies before and after, in per cent, of a run that is made or read."""
    file = root / pair.name / "lift.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        held_out = problems_of(pair.task, root / "problems")[1]
        run = file.parent / "run"
        shutil.rmtree(run, ignore_errors=True)
        lightning_serl("fit", *FIT, *options, "--data.evaluation.sets", json.dumps({"held_out": str(held_out)}),
                       "--trainer.default_root_dir", run, log=file.parent / "fit.txt")  # fmt: skip
        summary = json.loads((run / "summary.json").read_text())
        names = {"greedy": "pass@1", "mean@k": "mean@8", "maj@k": "maj@8"}
        found = {shown: [100 * summary[when][name] for when in ("before", "after")] for shown, name in names.items()}
        file.write_text(json.dumps(found))
    return json.loads(file.read_text())


def options_of_embedded(pair: Pair, root: Path) -> list[str]:
    """The options of a run, beside those that all share."""
    seeds = problems_of(pair.task, root / "problems")[0]
    return ["--model.model_name_or_path", base_of(pair.base, root), "--data.seeds", str(seeds)]


def main() -> int:
    """Make what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/probe"), help="folder of runs and probes")
    parser.add_argument("--pairs", nargs="+", default=[pair.name for pair in PAIRS], help="names of pairs")
    args = parser.parse_args()
    root = args.out.resolve()
    for pair in [one for one in PAIRS if one.name in args.pairs]:
        if pair.base != "real":
            print(pair.name, lift_of_embedded(pair, root, options_of_embedded(pair, root)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
