"""Checks that a collapse is warned of in time, and that healthy runs log no warning.

    python benchmarks/collapse.py [--out runs/collapse] [--hot 0 1 2] [--healthy 0 1 2 3 4]

Every row is a real quickstart run of the command line: ten times the learning rate makes it collapse, the others should
be healthy. Labels are used for the accuracy only, never for the warnings. Prints a markdown table and the result
of each target; exits 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HOT = ["--model.optimizer.init_args.lr", "1e-3"]
WARNING = re.compile(r"health, (round|step) (\d+): (\w+) is (\S+),")
FALL = 0.2


@dataclass
class Run:
    """What one run showed.

    Attributes:
        warnings: (steps made, sign and number) of every health warning, in order.
        accuracy: Held-out greedy accuracy by steps made.
        error: Why it ended early, if it did.
    """

    warnings: list[tuple[int, str]]
    accuracy: dict[int, float]
    error: str = ""

    @property
    def fall(self) -> int | None:
        """The first step at which accuracy is 20 points below its best so far."""
        best = 0.0
        for step, value in self.accuracy.items():
            best = max(best, value)
            if value <= best - FALL:
                return step
        return None

    def at(self, step: int) -> float:
        """Accuracy at the last evaluation up to a step."""
        return self.accuracy[max(s for s in self.accuracy if s <= step)]

    @property
    def in_time(self) -> bool:
        """Whether a warning came before the fall."""
        return bool(self.warnings) and (self.fall is None or self.warnings[0][0] < self.fall)


def run(root: Path, seed: int, every: int, options: list[str]) -> Run:
    """One run, evaluated greedily after every ``every`` rounds."""
    command = [sys.executable, "-m", "lightning_serl", "fit", "-c", "preset:quickstart", "--seed_everything", str(seed)]
    command += ["--trainer.default_root_dir", str(root), "--trainer.val_check_interval", str(4 * every)]
    command += ["--data.evaluation.samples", "0"]
    command += ["--data.probe.prompts", "32", "--data.probe.samples", "8", "--data.probe.every", "5", *options]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    error = done.stderr.strip().splitlines()[-1] if done.returncode else ""
    if error and "survived" not in error:  # a policy that locks in may leave nothing to train on
        sys.exit(f"{root.name} failed: {error}")
    # a round's warning comes before its step, with the weights of the step before
    found = [(int(n) - (kind == "round"), f"{sign} {value}") for kind, n, sign, value in WARNING.findall(done.stderr)]
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    key = "val/held_out/pass@1"
    return Run(found, {row["step"]: row[key] for row in rows if key in row}, error)


def row(name: str, seed: int, one: Run) -> str:
    """One line of the table."""
    said = [f"{step}: {sign}" for step, sign in one.warnings]
    then = f"{100 * one.at(one.warnings[0][0]):.1f}" if said else "-"
    last = f"{100 * list(one.accuracy.values())[-1]:.1f} ({max(one.accuracy)}{', ended itself' * bool(one.error)})"
    cells = [name, str(seed), said[0] if said else "none", then, ", ".join(said[1:]) or "-"]
    cells += [f"{100 * max(one.accuracy.values()):.1f}", "-" if one.fall is None else str(one.fall), last]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Run all and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--hot", type=int, nargs="*", default=[0, 1, 2], help="seeds of the runs that collapse")
    parser.add_argument("--healthy", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="seeds of the healthy runs")
    args = parser.parse_args()
    root = args.out or Path(tempfile.mkdtemp(prefix="collapse-"))
    plan = [("lr 1e-3", seed, 1, HOT) for seed in args.hot]
    plan += [("healthy", seed, 5, []) for seed in args.healthy]
    others = {"rloo": "--model.objective.name rloo", "reinforce++": "--model.objective.name reinforce++"}
    others |= {"random": "--data.reward RandomReward"}
    plan += [(name, args.healthy[0], 5, options.split()) for name, options in others.items() if args.healthy]
    print("| run | seed | first warning, at step | accuracy | more warnings | best | 20 below | final (step) |")
    print("|---|---|---|---|---|---|---|---|")
    runs: dict[str, list[Run]] = {}
    for name, seed, every, options in plan:
        one = run(root / f"{name.replace(' ', '-')}-{seed}", seed, every, options)
        runs.setdefault(name, []).append(one)
        print(row(name, seed, one), flush=True)
    hot = runs.pop("lr 1e-3", [])
    loud = [name for name, ones in runs.items() for one in ones if one.warnings]
    checks = {
        f"lr 1e-3: warned before accuracy fell by 20 points ({sum(r.in_time for r in hot)} of {len(hot)} runs)": all(
            r.in_time for r in hot
        ),
        f"lr 1e-3: accuracy did fall so far ({sum(r.fall is not None for r in hot)} runs)": not hot
        or any(r.fall is not None for r in hot),
        f"no warning in {sum(map(len, runs.values()))} other runs ({', '.join(loud) or 'none'})": not loud,
    }
    print()
    for text, met in checks.items():
        print(f"- {'met' if met else 'MISSED'}: {text}")
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
