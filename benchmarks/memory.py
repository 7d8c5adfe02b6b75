"""Checks that nothing but pool and ledger grows over a long run.

    python benchmarks/memory.py [--rounds 200]

Plays and trains rounds of 2 prompts x 2 responses x 8 tokens, whatever their reward, and fits a line through the
resident memory after each. The size of the pool is subtracted: it is meant to grow. Exits 1 if the slope after the
first 20 rounds is 20 kB a round or more.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch

from lightning_serl import SelfPlayDataModule, SeRLModule
from lightning_serl.callbacks import Checkpoints, DifficultyFilter
from lightning_serl.callbacks.rollout_hooks import RolloutHooks
from lightning_serl.datamodules import RoundOptions
from lightning_serl.datamodules.sources import Writing
from lightning_serl.engines.base import Sampling
from lightning_serl.prompts import InstructionTemplate, SolveTemplate

WARM, LIMIT = 20, 20.0


class Meter(RolloutHooks):
    """Resident kilobytes and pool size after each round."""

    def __init__(self) -> None:
        self.resident: list[float] = []
        self.pool: list[float] = []

    def on_round_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, played: object) -> None:
        """Look once per round."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 1000)
        pool = trainer.datamodule.session.state.pool
        self.pool.append(sum(len(text) for text in pool.texts) / 1000)


def slope(values: list[float]) -> float:
    """Of the least-squares line, per value."""
    y = torch.tensor(values, dtype=torch.float64)
    x = torch.arange(len(y), dtype=torch.float64)
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    meter = Meter()
    module = SeRLModule("tiny:base", optimizer=lambda p: torch.optim.AdamW(p, lr=1e-5))
    data = SelfPlayDataModule(
        seeds="tiny:seeds",
        reward="RandomReward",
        grader="math",
        round=RoundOptions(prompts_per_round=2, samples_per_prompt=2, max_attempts=8),
        max_tokens=8,
        solve=SolveTemplate(answer_format=""),
        writing=Writing(
            exemplars=4,
            from_kept=0,
            prompts_per_call=1,
            template=InstructionTemplate(header="Write new math questions."),
            sampling=Sampling(max_tokens=64),
        ),
        rounds_per_epoch=args.rounds,
    )
    with tempfile.TemporaryDirectory() as root:
        pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, inference_mode=False, default_root_dir=root,
            callbacks=[meter, DifficultyFilter(0.0, 1.0), Checkpoints(50)],
        ).fit(module, data)  # fmt: skip
    all_of_it, held = slope(meter.resident[WARM:]), slope(meter.pool[WARM:])
    for number in range(0, len(meter.resident), max(1, len(meter.resident) // 10)):
        print(f"round {number + 1:>4}: {meter.resident[number] / 1000:.1f} MB")
    print(
        f"{len(meter.resident)} rounds; after the first {WARM}: {all_of_it:+.1f} kB a round, pool texts {held:+.2f} kB"
    )
    met = all_of_it < LIMIT
    print(f"- {'met' if met else 'MISSED'}: below {LIMIT:.0f} kB a round")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
