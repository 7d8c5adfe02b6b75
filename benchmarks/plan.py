"""Compares what ``lightning-serl plan`` foresees with measured runs: seconds of a round by part, and peak memory.

    python benchmarks/plan.py [--model models/smollm2-135m-instruct] [--only quickstart lora full]

Each configuration is planned and run in processes of its own with one thread: the quickstart, and two rounds of the
real model, with an adapter and in full. Seconds are processor seconds on both sides, so that other load matters less;
lengths and shares that only a run can tell are given to the plan from the run (``--plan.like``). The peak is the one
for these lengths, libraries included, and the high-water mark of the run's resident memory. Targets: 30 % of the
seconds of a round, 15 % of the peak; exits 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

_SMALL = (  # noqa: SIM905
    "--data.max_tokens 24 --data.writing.sampling.max_tokens 96 --data.round.prompts_per_round 4 "
    "--data.round.samples_per_prompt 8 --data.round.max_attempts 2 --data.writing.prompts_per_call 2 "
    "--data.rounds_per_epoch 2 --trainer.max_epochs 1 --data.probe.every 0 --data.reward RandomReward "
    # as large on both sides, whatever memory is free
    "--model.micro_batch 16"
).split()
_PEAK = "PEAK"


def configurations(model: str, seeds: Path) -> dict[str, list[str]]:
    """Options of each run by name."""
    real = ["--model.model_name_or_path", model, "--data.seeds", str(seeds), *_SMALL]
    return {
        "quickstart": ["-c", "preset:quickstart"],
        "lora": [*real, "--model.lora.r", "16"],
        "full": real,
    }


def resident(field: str) -> int:
    """Bytes of a field of this process's status."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


def child(arguments: list[str]) -> int:
    """The command line in this process, with a profile in processor seconds; prints the memory that it took."""
    from types import SimpleNamespace

    from lightning_serl.callbacks.run_folder import profile
    from lightning_serl.cli import lightning_cli, main  # noqa: F401

    profile.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[attr-defined]
    status = main(arguments)
    print(f"{_PEAK} {resident('VmHWM')}")
    return status


def ended(arguments: list[str]) -> str:
    """The output of a process that must end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)[:200]}: {done.stderr[-500:]}")
    return done.stdout


def compare(name: str, options: list[str], root: Path) -> tuple[float, float]:
    """Print one configuration side by side; returns the two errors as shares."""
    run, file = root / name, root / f"{name}.json"
    out = ended([__file__, "child", "fit", *options, "--trainer.default_root_dir", str(run)])
    peak = int(next(line for line in out.splitlines() if line.startswith(_PEAK)).split()[1])
    asked = ["--plan.like", str(run), "--plan.json", str(file)]
    ended(["-m", "lightning_serl", "plan", *options, *asked])
    foreseen = json.loads(file.read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    outside = ("time/step", "time/evaluating", "time/starting", "time/saving")
    names = {key for row in steps for key in row if key.startswith("time/") and key not in outside}
    measured = {name.removeprefix("time/"): fmean(row.get(name, 0.0) for row in steps) for name in names}
    print(f"\n{name}: seconds of a round\n| part | foreseen | measured |\n|---|---|---|")
    for part in sorted({*measured, *foreseen["seconds"]}):
        print(f"| {part} | {foreseen['seconds'].get(part, 0.0):.2f} | {measured.get(part, 0.0):.2f} |")
    whole = sum(measured.values())
    held = foreseen["memory"]["libraries"]
    expected, most = (held + foreseen["memory"][name] for name in ("expected", "peak"))
    off, memory = foreseen["round_seconds"] / whole - 1, expected / peak - 1
    print(f"| whole | {foreseen['round_seconds']:.2f} | {whole:.2f} | {100 * off:+.0f} %")
    bounds = f"libraries {held >> 20}, at most {most >> 20}"
    print(f"| peak, MiB | {expected >> 20} | {peak >> 20} | {100 * memory:+.0f} % ({bounds})")
    print(f"machine: {foreseen['machine']}", flush=True)
    return off, memory


def main() -> int:
    """Every configuration in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"))
    parser.add_argument("--only", nargs="+", default=["quickstart", "lora", "full"])
    parser.add_argument("--keep", help="folder that the runs stay in")
    given = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(given.keep or name)
        root.mkdir(parents=True, exist_ok=True)
        seeds = root / "seeds.jsonl"
        from lightning_serl import tiny

        problems = [json.loads(line)["problem"] for line in tiny.path("held_out").read_text().splitlines()[:64]]
        seeds.write_text("".join(json.dumps({"problem": problem}) + "\n" for problem in problems))
        for one in given.only:
            off, memory = compare(one, configurations(given.model, seeds)[one], root)
            missed += abs(off) > 0.3
            missed += abs(memory) > 0.15
    print("met" if not missed else f"MISSED: {missed} figures")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else main())
