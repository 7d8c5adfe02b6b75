"""The quickstart over several seeds, compared with the same run with true labels and with random rewards.

    python benchmarks/quickstart.py [--seeds 0 1 2] [--arms vote random] [--out runs/benchmark] [--options ...]

Every row is a run of the command line, about a minute on two cores. Rows that are in ``--out`` already are read, and a
run that was interrupted there goes on. Prints a table by seed, one of the mean changes with 95 % intervals over seeds,
and the result of each target; exits 1 if one is missed. Targets need the arms that they are about.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

ARMS = {"vote": [], "true labels": ["--data.reward", "oracle.TrueAnswer"], "random": ["--data.reward", "RandomReward"]}
METRICS = {"pass@1": "greedy pass@1", "mean@16": "mean@16", "maj@16": "maj@16"}
#: 97.5 % quantiles of Student's t distribution, for 1, 2, ... degrees of freedom.
QUANTILES = [
    12.71,
    4.30,
    3.18,
    2.78,
    2.57,
    2.45,
    2.36,
    2.31,
    2.26,
    2.23,
    2.20,
    2.18,
    2.16,
    2.14,
    2.13,
    2.12,
    2.11,
    2.10,
]

#: Arm, metric and the change by seed, in points.
Changes = dict[str, dict[str, list[float]]]


def run(arm: str, seed: int, root: Path, options: list[str]) -> dict:
    """The summary of one run, which is made, continued or read."""
    folder = root / f"{arm.replace(' ', '-')}-{seed}"
    if not (folder / "summary.json").is_file():
        command = [sys.executable, "-m", "lightning_serl", "fit", "-c", "preset:quickstart", "--ckpt_path", "last"]
        command += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder), *ARMS[arm], *options]
        here = str(Path(__file__).resolve().parent)
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{arm}, seed {seed} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads((folder / "summary.json").read_text())


def same_options(root: Path, options: list[str]) -> None:
    """End with an error if the folder's runs were made with other options."""
    file = root / "options.json"
    if file.is_file() and json.loads(file.read_text()) != options:
        sys.exit(f"{file} holds other --options than these; give another folder with --out")
    root.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(options))


def interval(values: list[float]) -> str:
    """The mean with its 95 % interval over seeds, by Student's t distribution."""
    if len(values) < 2:
        return f"{values[0]:+.1f}"
    half = QUANTILES[min(len(values) - 1, len(QUANTILES)) - 1] * stdev(values) / len(values) ** 0.5
    return f"{mean(values):+.1f} ± {half:.1f}"


def table_by_seed(arms: list[str], seeds: list[int], root: Path, options: list[str]) -> Changes:
    """Print a row for each run as it ends; the changes."""
    changes: Changes = {arm: {key: [] for key in METRICS} for arm in arms}
    print(f"| reward | seed | {' | '.join(METRICS.values())} | written | kept | seconds |")
    print("|---" * (len(METRICS) + 5) + "|")
    for seed in seeds:
        for arm in arms:
            s = run(arm, seed, root, options)
            cells = []
            for key in METRICS:
                before, after = 100 * s["before"][key], 100 * s["after"][key]
                changes[arm][key].append(after - before)
                cells.append(f"{before:.1f} → {after:.1f} ({after - before:+.1f})")
            print(
                f"| {arm} | {seed} | {' | '.join(cells)} | {s['proposed']} | {s['kept']} | {s['seconds']:.0f} |",
                flush=True,
            )
    return changes


def table_of_means(changes: Changes, seeds: list[int]) -> None:
    """Print the mean changes with their intervals."""
    print(f"\n| reward | seeds | {' | '.join(METRICS.values())} |")
    print("|---" * (len(METRICS) + 2) + "|")
    for arm, by in changes.items():
        print(f"| {arm} | {len(seeds)} | {' | '.join(interval(by[key]) for key in METRICS)} |")


def targets(changes: Changes) -> dict[str, bool]:
    """Each target of the arms that were run, and whether it is met."""
    checks = {}
    vote, true, chance = (changes.get(arm) for arm in ARMS)
    if vote:
        least = {key: min(vote[key]) for key in METRICS}
        checks[f"vote: greedy at least +40 on each seed (least {least['pass@1']:+.1f})"] = least["pass@1"] >= 40
        checks[f"vote: mean@16 at least +20 on each seed (least {least['mean@16']:+.1f})"] = least["mean@16"] >= 20
    if true:
        greedy = mean(true["pass@1"])
        checks[f"true labels: greedy at least +50 on average ({greedy:+.1f})"] = greedy >= 50
    if vote and true:
        share = {key: mean(vote[key]) / mean(true[key]) for key in METRICS}
        said = f"vote has at least 90 % of the greedy lift of true labels ({100 * share['pass@1']:.0f} %)"
        checks[said] = share["pass@1"] >= 0.9
        said = f"vote has at least 80 % of their mean@16 lift ({100 * share['mean@16']:.0f} %)"
        checks[said] = share["mean@16"] >= 0.8
    if chance:
        average, most = mean(chance["pass@1"]), max(chance["pass@1"])
        checks[f"random: greedy below +5 on average ({average:+.1f})"] = average < 5
        checks[f"random: none above +12 (most {most:+.1f})"] = most <= 12
    return checks


def main() -> int:
    """Run all arms and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more options for every run")
    args = parser.parse_args()
    root = args.out or Path(tempfile.mkdtemp(prefix="quickstart-"))
    same_options(root, args.options)
    changes = table_by_seed(args.arms, args.seeds, root, args.options)
    table_of_means(changes, args.seeds)
    checks = targets(changes)
    print()
    for text, met in checks.items():
        print(f"- {'met' if met else 'MISSED'}: {text}")
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
