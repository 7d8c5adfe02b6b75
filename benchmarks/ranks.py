"""The quickstart on one rank, on two under DDP, and on two with sharded weights.

    python benchmarks/ranks.py [--seed 0] [--rounds 20] [--out DIR]

Every row is a real run of the command line. Prints held-out greedy accuracy before and after, and the result of
each target; exits 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ARMS = {
    "one rank": [],
    "two ranks, ddp": ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
    "two ranks, sharded": ["--trainer.devices", "2", "--trainer.strategy", "sharded"],
}
LEAST = 30


def run(arm: str, args: argparse.Namespace, root: Path) -> dict:
    """One run; returns its summary."""
    folder = root / arm.replace(" ", "-").replace(",", "")
    command = [
        sys.executable,
        "-m",
        "lightning_serl",
        "fit",
        "-c",
        "preset:quickstart",
        "--data.evaluation.samples",
        "0",
    ]
    command += ["--seed_everything", str(args.seed), "--data.rounds_per_epoch", str(args.rounds), *ARMS[arm]]
    here = str(Path(__file__).resolve().parents[1])
    env = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    command += ["--trainer.default_root_dir", str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arm} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads((folder / "summary.json").read_text())


def main() -> int:
    """Run all arms and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="folder for the runs (default: a temporary one)")
    args = parser.parse_args()
    root = args.out or Path(tempfile.mkdtemp(prefix="ranks-"))
    lifts = {}
    print("| arm | greedy pass@1 | written | kept | seconds |")
    print("|---|---|---|---|---|")
    for arm in ARMS:
        s = run(arm, args, root)
        before, after = (100 * s[when]["pass@1"] for when in ("before", "after"))
        lifts[arm] = after - before
        cells = f"{before:.1f} → {after:.1f} ({lifts[arm]:+.1f}) | {s['proposed']} | {s['kept']} | {s['seconds']:.0f}"
        print(f"| {arm} | {cells} |", flush=True)
    print()
    for arm, lift in lifts.items():
        print(f"- {'met' if lift >= LEAST else 'MISSED'}: {arm} at least +{LEAST} points ({lift:+.1f})")
    return int(min(lifts.values()) < LEAST)


if __name__ == "__main__":
    sys.exit(main())
