"""How the time of a round grows with group size, response length, prompts and the size of the pool.

    python benchmarks/growth.py [--only group length prompts pool]

Runs rounds of the embedded policy, or of a small random model where answers must be long, in this process with one
thread. Time is processor time by part, as in a run's profile; the first round of each run, which tries out packing, is
left out. For each part the table shows its seconds at each size, and the exponents of a log-log fit over the tokens of
the answers (over the problems of the pool in the last table): of all sizes, and of the two largest. A part counts at
the sizes where it takes at least 2 % of its round: below, it holds a few clock ticks, or its work fell into the first
round, as with few prompts, whose problems one call writes for several rounds. Targets: no part grows faster than its
tokens (1.1 over all sizes, 1.25 between the two largest, where single measurements are noisier), and no part with more
than the 0.8th power of the pool. Exits 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import lightning.pytorch as pl
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lightning_serl import SelfPlayDataModule, SeRLModule, tiny
from lightning_serl.callbacks import DifficultyFilter, NoveltyFilter, QualityFilter
from lightning_serl.callbacks.run_folder import profile
from lightning_serl.datamodules import RoundOptions
from lightning_serl.datamodules.rounds.health_probe import Probe
from lightning_serl.datamodules.sources import Writing
from lightning_serl.engines.base import Sampling
from lightning_serl.objectives import Objective
from lightning_serl.prompts import InstructionTemplate, SolveTemplate

SIZES = {
    "group": (4, 8, 16, 32, 64),
    "prompts": (4, 8, 16, 32, 64),
    "length": (32, 64, 128, 256, 512),
    "pool": (1_000, 10_000, 100_000),
}
ROUNDS = 5  # one call writes problems for several rounds
FIT, STEP, POOL, SMALL = 1.1, 1.25, 0.8, 0.02


def random_model(folder: Path) -> str:
    """A Llama of random weights with room for long answers, which all end at their limit.

    So wide that attention, whose work grows with the square of the length, has the share that it has in real models.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny.path("base"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=384, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # one feature is large at every position, and speaks against the end token
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = -10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def problems(count: int, folder: Path) -> str:
    """A file of so many different problems of the embedded language's kind."""
    draw = random.Random(0)
    file = folder / f"seeds-{count}.jsonl"
    seen: dict[str, None] = {}
    forms = ("Compute {}.", "What is {}?", "Find the value of {}.", "Evaluate {}.", "Calculate {} and box the result.")
    while len(seen) < count:
        numbers = [draw.randrange(1, 100) for _ in range(draw.randrange(2, 6))]
        text = str(numbers[0]) + "".join(f" {draw.choice('+-*')} {n}" for n in numbers[1:])
        seen[draw.choice(forms).format(text)] = None
    file.write_text("".join(json.dumps({"problem": text}) + "\n" for text in seen))
    return str(file)


def rounds(root: Path, model: str, seeds: str, prompts: int, group: int, length: int) -> dict[str, float]:
    """Mean processor seconds by part of the rounds after the first, and the tokens of their answers."""
    module = SeRLModule(model, objective=Objective(beta=0.01), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-6))
    data = SelfPlayDataModule(
        seeds=seeds,
        reward="RandomReward",
        grader="math",
        # a random model writes no problems
        source="self" if model == "tiny:base" else "seeds",
        round=RoundOptions(prompts_per_round=prompts, samples_per_prompt=group, max_attempts=1),
        max_tokens=length,
        solve=SolveTemplate(answer_format=""),
        writing=Writing(
            exemplars=4,
            from_kept=0,
            template=InstructionTemplate(header="Write new math questions."),
            sampling=Sampling(max_tokens=170),
        ),
        probe=Probe(every=0),
        rounds_per_epoch=ROUNDS,
    )
    filters = [QualityFilter(), NoveltyFilter(0.8), DifficultyFilter(0.0, 1.0)]
    pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, default_root_dir=root, callbacks=filters,
    ).fit(module, data)  # fmt: skip
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row][1:]
    outside = ("time/step", "time/evaluating", "time/starting", "time/saving")
    names = {key for row in rows for key in row if key.startswith("time/") and key not in outside}
    out = {name.removeprefix("time/"): fmean(row.get(name, 0.0) for row in rows) for name in names}
    out["whole"] = sum(out.values())
    out["tokens"] = fmean(row["completions/mean_length"] * row["serl/round/groups"] * group for row in rows)
    return out


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    a, b = [math.log(v) for v in x], [math.log(v) for v in y]
    mean, other = fmean(a), fmean(b)
    return sum((p - mean) * (q - other) for p, q in zip(a, b, strict=True)) / sum((p - mean) ** 2 for p in a)


def sweep(what: str, root: Path) -> int:
    """Print one table; returns the number of parts that grow too fast."""
    model = random_model(root / "model") if what == "length" else "tiny:base"
    found = []
    for size in SIZES[what]:
        given = {"prompts": 16, "group": 8, "length": 24} | ({what: size} if what != "pool" else {})
        given |= {"prompts": 4} if what == "length" else {}
        seeds = problems(size, root) if what == "pool" else "tiny:seeds"
        found.append(rounds(root / f"{what}-{size}", model, seeds, **given))
    x = [float(s) for s in SIZES[what]] if what == "pool" else [one["tokens"] for one in found]
    against = "pool" if what == "pool" else "tokens"
    print(f"\n| {what} | {' | '.join(map(str, SIZES[what]))} | exponent | of the last two |")
    print("|---" * (len(x) + 3) + "|")
    print(f"| tokens of answers | {' | '.join(format(one['tokens'], ',.0f') for one in found)} | | |")
    missed, bounds = 0, (POOL, POOL) if what == "pool" else (FIT, STEP)
    for part in sorted({name for one in found for name in one} - {"tokens"}, key=lambda n: (n == "whole", n)):
        y = [one.get(part, 0.0) for one in found]
        judged = [k for k, one in enumerate(found) if y[k] >= SMALL * one["whole"]]
        fit = exponent([x[k] for k in judged], [y[k] for k in judged]) if len(judged) > 2 else None
        last = exponent(x[-2:], y[-2:]) if set(judged[-2:]) == {len(x) - 2, len(x) - 1} else None
        too_fast = (fit or 0.0) > bounds[0] or (last or 0.0) > bounds[1]
        missed += too_fast
        cells = " | ".join(f"{1000 * s:.0f} ms" for s in y)
        exponents = " | ".join("small" if one is None else f"{one:.2f}" for one in (fit, last))
        print(f"| {part} | {cells} | {exponents}{' MISSED' * too_fast} |")
    print(f"exponents over {against}", flush=True)
    return missed


def main() -> int:
    """Every table in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SIZES), default=list(SIZES))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    profile.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[attr-defined]
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        for what in args.only:
            missed += sweep(what, Path(name))
    print("met" if not missed else f"MISSED: {missed} parts grow too fast")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
