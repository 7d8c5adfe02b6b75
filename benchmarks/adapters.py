"""The quickstart with LoRA and with QLoRA, and the size of the weights an engine would be sent after a step.

    python benchmarks/adapters.py [--seeds 0]

Every row is a real run of the command line. Exits 1 if a run lifts greedy pass@1 by less than 40 points.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from lightning_serl.policy.loading import load_policy
from lightning_serl.policy.lora import LoraOptions

TARGET = 40


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    policy = load_policy("tiny:base", LoraOptions(r=16, alpha=32))
    adapter = sum(t.nbytes for t in policy.adapter_state().values())
    whole = sum(t.nbytes for _, t in policy.named_weights())
    print(f"bytes per push: adapter {adapter:,}, all weights {whole:,} ({adapter / whole:.2f})\n")
    print("| preset | seed | greedy pass@1 | seconds |\n|---|---|---|---|")
    least = 100.0
    for preset in ("quickstart-lora", "quickstart-qlora"):
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as root:
                command = [sys.executable, "-m", "lightning_serl", "fit", "-c", f"preset:{preset}"]
                command += ["--seed_everything", str(seed), "--trainer.default_root_dir", root]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{preset}, seed {seed} failed: {done.stderr.strip().splitlines()[-1]}")
                s = json.loads((Path(root) / "summary.json").read_text())
            before, after = 100 * s["before"]["pass@1"], 100 * s["after"]["pass@1"]
            least = min(least, after - before)
            lift = f"{before:.1f} → {after:.1f} ({after - before:+.1f})"
            print(f"| {preset} | {seed} | {lift} | {s['seconds']:.0f} |", flush=True)
    print(f"\n- {'met' if least >= TARGET else 'MISSED'}: at least +{TARGET} points (least {least:+.1f})")
    return int(least < TARGET)


if __name__ == "__main__":
    sys.exit(main())
