"""Checks what is kept, when a run stops and what is rolled back, on runs whose held-out accuracy is known.

    python benchmarks/guard.py --out runs/guard [--list] [--only KIND ...] [--bases DIR ...] [--seeds 11 12 ...]
    python benchmarks/guard.py --out runs/guard --model DIR --only real-healthy real-hot ...
    python benchmarks/guard.py --out runs/guard --replay [--drop 0.05] [--errors 3]

Every run is a quickstart of the command line, or with ``--model`` one of ``benchmarks/real.py``, with the health probe
and a greedy evaluation every second round. Their responses to the probe are recorded, so that ``--replay`` applies the
rules of ``KeepBest``, ``StopEarly`` and ``CollapseGuard`` to them once more without running anything; a run of a kind
that ends in ``+guard`` has the guard on. A finished run is not repeated. Labels are used for the table only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import real_tasks

from lightning_serl.answers import resolve_grader
from lightning_serl.callbacks.probe_signs import ProbeHistory
from lightning_serl.types import Probed

#: Options of each kind of run, and whether it should stay healthy (``None``: what it does is not known beforehand).
HOT = ["--model.optimizer.init_args.lr", "1e-3"]
QUICK = ["--model.optimizer.init_args.lr", "3e-4"]
KINDS: dict[str, tuple[list[str], bool | None]] = {
    "healthy": ([], True),
    "rloo": (["--model.objective.name", "rloo"], True),
    "seeds": (["--data.source", "seeds"], True),
    "random": (["--data.reward", "RandomReward"], None),
    "hot": (HOT, False),
    "warm": (["--model.optimizer.init_args.lr", "4e-4"], None),
    "random-hot": (["--data.reward", "RandomReward", *HOT], False),
    "bias": (["--data.reward", "guard_parts.BiasedVote", *QUICK], False),
    "short": (["--data.reward", "guard_parts.ShortReward", *QUICK], False),
}
REAL: dict[str, tuple[list[str], bool | None]] = {
    "real-healthy": ([], True),
    "real-random": (["--data.reward", "RandomReward"], None),
    "real-hot": (["--model.lr", "5e-4"], False),
    "real-random-hot": (["--data.reward", "RandomReward", "--model.lr", "5e-4"], False),
    "real-bias": (["--data.reward", "guard_parts.BiasedVote", "--data.reward.after", "3", "--model.lr", "3e-4"], False),
    "real-short": (
        ["--data.reward", "guard_parts.ShortReward", "--data.reward.after", "3", "--model.lr", "3e-4"],
        False,
    ),
}
GUARD = ["--trainer.callbacks+", "CollapseGuard"]


@dataclass(frozen=True)
class Arm:
    """One run: kind, base or task, run seed, and whether the guard is on."""

    kind: str
    base: str
    seed: int
    guarded: bool = False

    @property
    def name(self) -> str:
        """The name of its folder."""
        place = Path(self.base).name.replace(":", "_").replace(" ", "_")
        return f"{self.kind}{'+guard' * self.guarded}-{place}-{self.seed}"

    @property
    def healthy(self) -> bool | None:
        """Whether a run of this kind should stay healthy."""
        return (KINDS | REAL)[self.kind][1]


def command(arm: Arm, root: Path, model: str | None, rounds: int) -> list[str]:
    """The command line of a run."""
    folder = root / arm.name
    options = ["--seed_everything", str(arm.seed), "--trainer.default_root_dir", str(folder / "run")]
    options += [
        "--data.evaluation.samples",
        "0",
        "--data.probe.every",
        "2",
        "--trainer.callbacks+",
        "guard_parts.Record",
    ]
    options += GUARD if arm.guarded else []
    if arm.kind in KINDS:
        given = ["-c", "preset:quickstart", "--model.model_name_or_path", arm.base, "--trainer.val_check_interval", "8"]
        given += ["--data.probe.prompts", "32", "--data.probe.samples", "4", *KINDS[arm.kind][0]]
    else:
        task = real_tasks.TASKS[arm.base]
        seeds, held_out = task.write(arm.base, root / "problems")
        named = {
            "model.model_name_or_path": model,
            "model.temperature": 0.7,
            "model.lora.r": 16,
            "model.dtype": "bfloat16",
            "model.micro_batch": 64,
            "data.seeds": seeds,
            "data.source": "seeds",
            "data.evaluation.sets.held_out": held_out,
            "data.max_tokens": task.tokens,
            "data.round.prompts_per_round": 8,
            "data.round.samples_per_prompt": 8,
            "data.rounds_per_epoch": rounds,
            "data.probe.prompts": 40,
            "data.probe.samples": 4,
            "trainer.max_epochs": 1,
            "trainer.val_check_interval": 2,
        }
        if task.answer_format is not None:
            named["data.solve.answer_format"] = task.answer_format
        given = [part for name, value in named.items() for part in (f"--{name}", str(value))] + REAL[arm.kind][0]
    return [sys.executable, "-m", "lightning_serl", "fit", *given, *options]


def run(arm: Arm, root: Path, model: str | None, rounds: int) -> None:
    """Make a run unless it is finished; what a stopped one left is deleted."""
    folder = root / arm.name
    if (folder / "done.json").exists():
        return
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    folder.mkdir(parents=True)
    with (folder / "log.txt").open("w") as log:
        made = subprocess.run(
            command(arm, root, model, rounds), stdout=log, stderr=log, cwd=Path(__file__).parent, check=False
        )
    if made.returncode in (-2, -15, 130, 143):
        sys.exit(f"{arm.name} was stopped; the same command repeats it")
    said = (folder / "log.txt").read_text().strip().splitlines()[-1]
    (folder / "done.json").write_text(json.dumps({"status": made.returncode, "said": said}))
    for left in ("export", "checkpoints"):
        subprocess.run(["rm", "-rf", str(folder / "run" / left)], check=True)


@dataclass
class Facts:
    """What a run did and what the rules would have done.

    Attributes:
        accuracy: Held-out greedy accuracy in per cent by optimizer steps.
        kept: Step that ``KeepBest`` keeps; alarm: step of the first probe that got worse, and the step kept then.
        stopped: Step at which ``StopEarly`` ends the run.
    """

    accuracy: dict[int, float]
    kept: int = 0
    alarm: tuple[int, int] | None = None
    stopped: int | None = None
    lines: tuple[str, ...] = ()

    def at(self, step: int) -> float:
        """Accuracy at the evaluation nearest to a step."""
        return self.accuracy[min(self.accuracy, key=lambda s: (abs(s - step), s))]

    @property
    def best(self) -> float:
        """Best accuracy of the run."""
        return max(self.accuracy.values())

    @property
    def last(self) -> float:
        """Accuracy of the last weights."""
        return self.accuracy[max(self.accuracy)]


def replay(folder: Path, drop: float, errors: float, same: Any, samples: int | None = None) -> Facts:
    """Apply the rules to the recorded probes of a run."""
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    key = "val/held_out/pass@1"
    facts = Facts({row["step"]: 100 * row[key] for row in rows if key in row})
    history, best, waited, lines = ProbeHistory(), {}, 0, []
    for line in (folder / "run" / "probe.jsonl").read_text().splitlines():
        row = json.loads(line)
        probed = {
            uid: Probed(tuple(answers[:samples]), row["tokens"] // len(row["answers"]), 0)
            for uid, answers in row["answers"].items()
        }
        step, reading = row["step"], history.enter(probed, same)
        change = "-" if reading.change is None else f"{reading.change:+.3f} ± {reading.error:.3f}"
        score, agreement = reading.signs.get("score", 0.0), reading.signs["agreement"]
        lines.append(
            f"step {step:>2}: accuracy {facts.at(step):.1f}, score {score:.3f}, change {change}, "
            f"agreement {agreement:.2f}"
        )
        if facts.alarm is None and reading.fell(drop, errors):
            facts.alarm = step, facts.kept
        if reading.as_good:
            facts.kept = step
        now = {"score": score, "agreement": agreement}
        gained = any(value > best.get(name, -1.0) + 0.02 for name, value in now.items())
        waited = 0 if gained else waited + 1
        if gained:
            best = {n: max(v, best.get(n, -1.0)) for n, v in now.items()}
        if facts.stopped is None and (reading.fell(drop, errors) or waited >= 3):
            facts.stopped = step
    facts.lines = tuple(lines)
    return facts


def report(root: Path, drop: float, errors: float, samples: int | None, verbose: bool) -> int:
    """Print the table of all finished runs and the targets; returns how many were missed."""
    grader = resolve_grader("auto", "fast")
    memo: dict[tuple[str, str], bool] = {}

    def same(a: str, b: str) -> bool:
        if (a, b) not in memo:
            memo[a, b] = grader.same(a, b)
        return memo[a, b]

    found: list[tuple[str, bool, Facts]] = []
    print("| run | best | last | kept (step) | alarm at, back to | stop at |\n|---|---|---|---|---|---|")
    for done in sorted(root.glob("*/done.json")):
        folder = done.parent
        if not (folder / "run" / "probe.jsonl").exists():
            print(f"| {folder.name} | {json.loads(done.read_text())['said'][-100:]} |||||")
            continue
        facts = replay(folder, drop, errors, same, samples)
        found.append((folder.name, "+guard" in folder.name, facts))
        alarm = "-" if facts.alarm is None else f"{facts.alarm[0]}, {facts.at(facts.alarm[1]):.1f} ({facts.alarm[1]})"
        stopped = "-" if facts.stopped is None else f"{facts.stopped}: {facts.at(facts.stopped):.1f}"
        kept = f"{facts.at(facts.kept):.1f} ({facts.kept})"
        print(f"| {folder.name} | {facts.best:.1f} | {facts.last:.1f} | {kept} | {alarm} | {stopped} |")
        if verbose:
            print(*facts.lines, sep="\n")
    return targets(found)


def targets(found: list[tuple[str, bool, Facts]]) -> int:
    """Print what came of each target; returns the number of those missed."""
    alone = [(name, facts) for name, guarded, facts in found if not guarded]
    fell = [(name, f) for name, f in alone if f.last < f.best - 5]
    whole = [(name, f) for name, f in alone if f.last >= f.best - 3]
    guarded = [(name, f) for name, guard, f in found if guard]
    loud = [name for name, f in whole if f.alarm is not None]
    near = [name for name, f in fell if f.at(f.alarm[1] if f.alarm else max(f.accuracy)) >= f.best - 3]
    ended = [name for name, f in guarded if f.last >= f.best - 3]
    lost = mean(f.best - f.at(f.kept) for _, f in alone) if alone else 0.0
    differ = [(name, f) for name, f in alone if abs(f.at(f.kept) - f.last) > 5]
    better = [name for name, f in differ if f.at(f.kept) > f.last]
    checks = {
        f"alarms in runs that end within 3 points of their best: {len(loud)} of {len(whole)} ({', '.join(loud)})": 20
        * len(loud)
        <= len(whole),
        f"runs that end 5 points or more below their best, of them the weights gone back to are within 3 points: "
        f"{len(near)} of {len(fell)}": 20 * len(near) >= 19 * len(fell),
        f"guarded runs that end within 3 points of their best: {len(ended)} of {len(guarded)}": 20 * len(ended)
        >= 19 * len(guarded),
        f"the kept checkpoint is {lost:.1f} points below the best on average": lost <= 3,
        f"better than the last where they differ by more than 5: {len(better)} of {len(differ)}": len(better)
        == len(differ),
    }
    print()
    for text, met in checks.items():
        print(f"- {'met' if met else 'MISSED'}: {text}")
    return sum(not met for met in checks.values())


def main() -> int:
    """Run or replay."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/guard"))
    parser.add_argument("--only", nargs="*", default=["healthy", "random", "hot", "bias", "short"], help="kinds")
    parser.add_argument("--bases", nargs="*", default=["tiny:base"], help="embedded bases, or with --model tasks")
    parser.add_argument("--seeds", type=int, nargs="*", default=[11])
    parser.add_argument("--guard", action="store_true", help="with CollapseGuard")
    parser.add_argument("--model", help="a real model, for the kinds whose names begin with real-")
    parser.add_argument("--rounds", type=int, default=10, help="of a run of a real model")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--drop", type=float, default=0.05)
    parser.add_argument("--errors", type=float, default=3.0)
    parser.add_argument("--samples", type=int, help="use the first so many responses of each problem")
    args = parser.parse_args()
    args.out = args.out.absolute()
    if not args.replay:
        arms = [Arm(k, b, s, args.guard) for s in args.seeds for b in args.bases for k in args.only]
        for arm in arms:
            print(arm.name, flush=True)
            if not args.list:
                run(arm, args.out, args.model, args.rounds)
    return 0 if args.list else report(args.out, args.drop, args.errors, args.samples, args.verbose)


if __name__ == "__main__":
    sys.exit(main())
