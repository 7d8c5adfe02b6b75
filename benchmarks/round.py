"""A whole round with a real model beside its arithmetic: the matrix products of the same work at measured speed.

    python benchmarks/round.py [--model models/smollm2-135m-instruct] [--forms lora full]
        [--engines TransformersEngine VLLMEngine]

Each form runs two rounds by the command line: 8 problems of 16 answers of at most 24 tokens, new problems written by
the model, random rewards, one thread. The second round is measured, in processor seconds. Its floating point operations
are counted by torch in another run of the same seed with ``TransformersEngine``; those of the products, forward and
backward, are what no implementation can leave out. Their speed is that of one product in the shape of the model's
feed-forward layer, before and after the run. Targets: at most 1.8 times the arithmetic, and a profile whose parts add
up to the round within 5 %. Exits 1 if one is missed. ``VLLMEngine`` needs an environment with vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_SIZES = (  # noqa: SIM905
    "--data.max_tokens 24 --data.writing.sampling.max_tokens 96 --data.round.prompts_per_round 8 "
    "--data.round.samples_per_prompt 16 --data.round.max_attempts 1 --data.rounds_per_epoch 2 --trainer.max_epochs 1 "
    "--data.probe.every 0 --data.reward RandomReward --model.micro_batch 32 --seed_everything 0"
).split()
_FORMS = {"lora": ["--model.lora.r", "16"], "full": []}
_RESULT, _TARGET, _WITHIN = "RESULT ", 1.8, 0.05


def products_per_second(model: str) -> float:
    """Floating point operations of a matrix product in a processor second, in the shape of the feed-forward layer."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    rows, width, inner = 512, config.hidden_size, config.intermediate_size
    a, b = torch.randn(rows, width), torch.randn(width, inner)
    for _ in range(5):
        a @ b
    began = time.process_time()
    count = 0
    while (spent := time.process_time() - began) < 1.0:
        a @ b
        count += 1
    return count * 2 * rows * width * inner / spent


def child(mode: str, arguments: list[str]) -> int:
    """One run in this process: ``count`` its operations, or ``time`` it; prints what was found as json."""
    from torch.utils.flop_counter import FlopCounterMode

    from lightning_serl.callbacks.run_folder import profile
    from lightning_serl.cli import main

    warnings.simplefilter("ignore")
    counter = FlopCounterMode(display=False)
    at_rows: list[float] = []
    ends: list[float] = []
    write = profile.RoundProfile.row

    def row(self: Any) -> dict[str, float]:
        at_rows.append(float(counter.get_total_flops()))
        ends.append(time.process_time())
        return write(self)

    profile.RoundProfile.row = row  # type: ignore[method-assign]
    profile.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[attr-defined]
    found: dict[str, Any] = {}
    if mode == "count":
        with counter:
            status = main(arguments)
    else:
        model = arguments[arguments.index("--model.model_name_or_path") + 1]
        speed = products_per_second(model)
        status = main(arguments)
        found["speed"] = (speed + products_per_second(model)) / 2
    found |= {"flop": at_rows[1] - at_rows[0], "seconds": ends[1] - ends[0]}
    print(_RESULT + json.dumps(found))
    return status


def run(mode: str, options: list[str], folder: Path) -> dict[str, Any]:
    """What a run in a process of its own found, with the profile of its second round under ``parts``."""
    arguments = [__file__, "child", mode, "fit", *options, "--trainer.default_root_dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(options)[:200]}: {done.stderr[-800:]}")
    line = next(line for line in done.stdout.splitlines() if line.startswith(_RESULT))
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    parts = {key.removeprefix("time/"): value for key, value in steps[1].items() if key.startswith("time/")}
    parts.pop("step", None)
    return {**json.loads(line.removeprefix(_RESULT)), "parts": parts}


def main() -> int:
    """Every form and engine in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"))
    parser.add_argument("--forms", nargs="+", choices=list(_FORMS), default=list(_FORMS))
    parser.add_argument("--engines", nargs="+", default=["TransformersEngine"])
    given = parser.parse_args()
    from lightning_serl import tiny

    missed = 0
    print(
        "| form | engine | seconds | arithmetic | ratio | parts of the round | parts / whole |\n|---" + "|---" * 6 + "|"
    )
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        seeds = root / "seeds.jsonl"
        problems = [json.loads(line)["problem"] for line in tiny.path("held_out").read_text().splitlines()[:64]]
        seeds.write_text("".join(json.dumps({"problem": problem}) + "\n" for problem in problems))
        common = ["--model.model_name_or_path", given.model, "--data.seeds", str(seeds), *_SIZES]
        for form in given.forms:
            options = [*common, *_FORMS[form]]
            flop = run("count", options, root / f"{form}-count")["flop"]
            for engine in given.engines:
                found = run("time", [*options, "--data.engine", engine], root / f"{form}-{engine}")
                arithmetic = flop / found["speed"]
                ratio, whole = found["seconds"] / arithmetic, sum(found["parts"].values())
                missed += ratio > _TARGET
                missed += abs(whole / found["seconds"] - 1) > _WITHIN
                parts = ", ".join(f"{part} {s:.1f}" for part, s in sorted(found["parts"].items()) if s >= 0.05)
                print(
                    f"| {form} | {engine} | {found['seconds']:.1f} | {arithmetic:.1f} | {ratio:.2f} | {parts} | "
                    f"{whole / found['seconds']:.3f} |",
                    flush=True,
                )
    print("met" if not missed else f"MISSED: {missed} figures")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(child(sys.argv[2], sys.argv[3:]) if sys.argv[1:2] == ["child"] else main())
