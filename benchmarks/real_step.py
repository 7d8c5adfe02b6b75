"""Processor time and peak memory of an optimizer step on a model of others: ours and TRL's ``GRPOTrainer``.

    python benchmarks/real_step.py [--model models/smollm2-135m-instruct] [--only lora full] [--steps 2]

needs TRL 1.16.0, which this project does not install: use a separate environment with ``trl`` and this checkout on
``PYTHONPATH``. Both sides are handed the same prompts, samples and rewards, and train on them by their own trainers:
``--prompts`` prompts of 30 to 60 tokens, ``--samples`` answers each of log-normal length (``--mean`` tokens, at most
``--limit``), micro-batches of ``--micro`` answers, no reference model, AdamW, no gradient checkpointing, float32, one
thread. Every side is a separate process. Seconds are processor time of the last step, memory is the high-water mark
of resident memory, whole and beyond what the process held when the model was loaded. Exits 1 if ours is not at least
1.5 times as fast, or takes more memory than TRL.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

TARGET = 1.5


def resident(field: str) -> int:
    """Bytes of a field of this process's status."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


def drawn(options: argparse.Namespace) -> list[tuple[list[int], list[list[int]]]]:
    """(prompt, answers) as token ids, for each step in turn."""
    rng = random.Random(0)

    def ids(count: int) -> list[int]:
        return [rng.randrange(100, options.vocabulary) for _ in range(count)]

    def length() -> int:
        return max(2, min(options.limit, round(options.mean * rng.lognormvariate(-0.18, 0.6))))

    count = options.prompts * options.steps
    return [(ids(rng.randrange(30, 60)), [ids(length()) for _ in range(options.samples)]) for _ in range(count)]


def run_trl(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """TRL's trainer."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    data = drawn(options)

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            report["steps"].append(time.process_time() - report["begun"])
            report["begun"] = time.process_time()

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        seen: dict[str, int] = {}
        chosen = []
        for text in prompts:
            number, place = int(text), seen.setdefault(text, 0)
            seen[text] += 1
            chosen.append((data[number][0], data[number][1][place]))
        report["begun"] = time.process_time()
        return {"prompt_ids": [p for p, _ in chosen], "completion_ids": [c for _, c in chosen], "logprobs": None}

    def score(completions: list[str], **_: Any) -> list[float]:
        return [float(i % 2) for i in range(len(completions))]

    rows = options.prompts * options.samples
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=options.micro, num_generations=options.samples,
        gradient_accumulation_steps=rows // options.micro, max_completion_length=options.limit,
        max_steps=options.steps, report_to=[], use_cpu=True, bf16=False, beta=0.0, logging_steps=10**6,
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, learning_rate=1e-5, shuffle_dataset=False,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if options.form == "lora" else None
    trainer = GRPOTrainer(
        options.model, score, args=config, callbacks=[Steps()], peft_config=lora, rollout_func=rollout,
        train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(len(data))]),
        processing_class=AutoTokenizer.from_pretrained(options.model),
    )  # fmt: skip
    report["held"] = resident("VmRSS")
    trainer.train()


def run_ours(options: argparse.Namespace, report: dict[str, Any]) -> None:
    """Ours, through Lightning's Trainer."""
    import lightning.pytorch as pl
    import torch

    from lightning_serl import SeRLModule
    from lightning_serl.objectives import Objective
    from lightning_serl.policy.lora import LoraOptions
    from lightning_serl.types import Completion, Group, Instruction, Verdict

    slots = options.prompts * options.samples // options.micro
    module = SeRLModule(
        options.model, Objective(beta=0.0), optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-5),
        lora=LoraOptions(r=16) if options.form == "lora" else None,
    )  # fmt: skip
    data = drawn(options)

    class Rollouts:
        def __len__(self) -> int:
            return options.steps * slots

        def __iter__(self) -> Any:
            for step in range(options.steps):
                chosen = data[step * options.prompts : (step + 1) * options.prompts]
                groups = [
                    Group(Instruction("", f"{step}-{i}"), tuple(p), [Completion(tuple(c), "") for c in answers])
                    for i, (p, answers) in enumerate(chosen)
                ]
                report["begun"] = time.process_time()
                yield from module.experience(groups, [Verdict(torch.arange(options.samples) % 2 * 1.0) for _ in groups])

    class Steps(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            report["held"] = resident("VmRSS")

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if (batch_idx + 1) % slots == 0:
                report["steps"].append(time.process_time() - report["begun"])

    pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tempfile.mkdtemp(), gradient_clip_val=1.0,
        accumulate_grad_batches=slots, callbacks=[Steps()],
    ).fit(module, Rollouts())  # fmt: skip


def child(side: str, options: argparse.Namespace) -> None:
    """One side in this process; prints its report."""
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report: dict[str, Any] = {"steps": [], "begun": 0.0, "held": 0}
    (run_trl if side == "trl" else run_ours)(options, report)
    report["peak"] = resident("VmHWM")
    print("REPORT " + json.dumps(report))


def main() -> int:
    """Both sides for each form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"))
    parser.add_argument("--only", nargs="+", default=["lora", "full"], choices=["lora", "full"])
    for name, value in {"prompts": 2, "samples": 8, "mean": 60, "limit": 128, "micro": 4, "steps": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--side", choices=["trl", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--form", default="lora", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.vocabulary = json.loads((Path(options.model) / "config.json").read_text())["vocab_size"]
    if options.side:
        child(options.side, options)
        return 0
    print(f"trl {version('trl')}, transformers {version('transformers')}, torch {version('torch')}")
    lengths = [len(c) for _, answers in drawn(options)[-options.prompts :] for c in answers]
    print(f"{len(lengths)} answers of {statistics.fmean(lengths):.0f} tokens on average, at most {max(lengths)}")
    print(
        "\n| form | side | seconds of a step | ratio | peak MiB | beyond the loaded model |\n|---|---|---|---|---|---|"
    )
    missed = 0
    for form in options.only:
        found = {}
        for side in ("trl", "ours"):
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--side", side, "--form", form],
                env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            line = next((x for x in done.stdout.splitlines() if x.startswith("REPORT ")), None)
            if line is None:
                raise SystemExit(f"{side}, {form}: {done.stderr[-800:]}")
            found[side] = json.loads(line.removeprefix("REPORT "))
            one, ratio = found[side], found["trl"]["steps"][-1] / found[side]["steps"][-1]
            beyond = (one["peak"] - one["held"]) >> 20
            print(
                f"| {form} | {side} | {one['steps'][-1]:.1f} | {ratio:.2f} | {one['peak'] >> 20} | {beyond} |",
                flush=True,
            )
        missed += found["trl"]["steps"][-1] / found["ours"]["steps"][-1] < TARGET
        missed += found["ours"]["peak"] > found["trl"]["peak"]
    print("met" if not missed else f"MISSED: {missed} figures")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
