"""The quickstart with each policy-gradient algorithm, by its name.

    python benchmarks/algorithms.py [--seeds 0] [--names grpo rloo reinforce++ ...] [--out runs/benchmark]

Every row is a real run of the command line. Prints a markdown table; exits 1 if one lifts the greedy answers by less
than 40 points.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import quickstart

NAMES = ["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"]
TARGET = 40.0


def main() -> int:
    """Run all algorithms and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--out", type=Path, help="folder for the runs (default: a temporary one)")
    args = parser.parse_args()
    root = args.out or Path(tempfile.mkdtemp(prefix="algorithms-"))
    quickstart.ARMS.update({name: ["--model.objective.name", name] for name in args.names})
    missed = []
    print("| algorithm | seed | greedy pass@1 | mean@16 | maj@16 | KL to the base | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in args.names:
        for seed in args.seeds:
            s = quickstart.run(name, seed, root, [])
            before, after = s["before"], s["after"]
            cells = [f"{100 * before[k]:.1f} → {100 * after[k]:.1f}" for k in ("pass@1", "mean@16", "maj@16")]
            print(f"| {name} | {seed} | {' | '.join(cells)} | {s['kl']:.3f} | {s['seconds']:.0f} |", flush=True)
            lift = 100 * (after["pass@1"] - before["pass@1"])
            if lift < TARGET:
                missed.append(f"{name}, seed {seed}: {lift:+.1f}")
    print()
    print("\n".join(f"- MISSED: greedy {one}" for one in missed) or f"- met: greedy at least +{TARGET:.0f} everywhere")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
