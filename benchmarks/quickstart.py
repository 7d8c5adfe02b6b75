"""The quickstart over several seeds, compared with the same run with true labels and with random rewards.

    python benchmarks/quickstart.py [--seeds 0 1 2] [--out runs/benchmark] [--options ...]

Every row is a real run of the command line. Prints a markdown table and the result of each target; exits 1 if one is
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

ARMS = {"vote": [], "true labels": ["--data.reward", "oracle.TrueAnswer"], "random": ["--data.reward", "RandomReward"]}


def run(arm: str, seed: int, root: Path, options: list[str]) -> dict:
    """One run; returns its summary."""
    folder = root / f"{arm.replace(' ', '-')}-{seed}"
    command = [sys.executable, "-m", "lightning_serl", "fit", "-c", "preset:quickstart", "--seed_everything", str(seed)]
    command += ["--trainer.default_root_dir", str(folder), *ARMS[arm], *options]
    here = str(Path(__file__).resolve().parent)
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": here}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arm}, seed {seed} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads((folder / "summary.json").read_text())


def main() -> int:
    """Run all arms and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more options for every run")
    args = parser.parse_args()
    root = args.out or Path(tempfile.mkdtemp(prefix="quickstart-"))
    lifts: dict[str, dict[str, list[float]]] = {}
    print("| arm | seed | greedy pass@1 | mean@16 | maj@16 | written | kept | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for arm in ARMS:
        for seed in args.seeds:
            s = run(arm, seed, root, args.options)
            before, after = s["before"], s["after"]
            cells = []
            for key in ("pass@1", "mean@16", "maj@16"):
                lifts.setdefault(arm, {}).setdefault(key, []).append(100 * (after[key] - before[key]))
                cells.append(f"{100 * before[key]:.1f} → {100 * after[key]:.1f} ({lifts[arm][key][-1]:+.1f})")
            print(
                f"| {arm} | {seed} | {' | '.join(cells)} | {s['proposed']} | {s['kept']} | {s['seconds']:.0f} |",
                flush=True,
            )
    vote, true, chance = (lifts[a] for a in ARMS)
    greedy_share = mean(vote["pass@1"]) / mean(true["pass@1"])
    mean_share = mean(vote["mean@16"]) / mean(true["mean@16"])
    checks = {
        f"vote: greedy at least +40 on each seed (least {min(vote['pass@1']):+.1f})": min(vote["pass@1"]) >= 40,
        f"vote: mean@16 at least +20 on each seed (least {min(vote['mean@16']):+.1f})": min(vote["mean@16"]) >= 20,
        f"true labels: greedy at least +50 on average ({mean(true['pass@1']):+.1f})": mean(true["pass@1"]) >= 50,
        f"vote has at least 90 % of the greedy lift of true labels ({100 * greedy_share:.0f} %)": greedy_share >= 0.9,
        f"vote has at least 80 % of their mean@16 lift ({100 * mean_share:.0f} %)": mean_share >= 0.8,
        f"random: greedy below +5 on average ({mean(chance['pass@1']):+.1f})": mean(chance["pass@1"]) < 5,
        f"random: none above +12 (most {max(chance['pass@1']):+.1f})": max(chance["pass@1"]) <= 12,
    }
    print()
    for text, met in checks.items():
        print(f"- {'met' if met else 'MISSED'}: {text}")
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
