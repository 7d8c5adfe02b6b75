"""Small self-play runs through a real Trainer: module, datamodule, and what a run leaves behind."""

import json
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_serl import SelfPlayDataModule, SeRLModule
from lightning_serl.datamodules import RoundOptions
from lightning_serl.datamodules.rounds.health_probe import Probe
from lightning_serl.datamodules.sources import Writing
from lightning_serl.distributed.sharding import full
from lightning_serl.engines.base import Sampling
from lightning_serl.objectives import Objective
from lightning_serl.prompts import InstructionTemplate, SolveTemplate
from lightning_serl.rewards import MajorityVote

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def sharded(ranks=2, **options):
    """FSDP2 as a user would ask for it."""
    return ModelParallelStrategy(
        data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False, **options
    )


def selfplay(steps=(1, 1), beta=0.01, engine=None, rounds_per_epoch=2, optimizer=torch.optim.AdamW, scheduler=None,
             **data):  # fmt: skip
    """A real module and datamodule on the embedded base, without the health probe: some 0.3 s per round."""
    module = SeRLModule(
        "tiny:base",
        objective=Objective(beta=beta),
        inner_epochs=steps[0],
        minibatches=steps[1],
        optimizer=lambda p: optimizer(p, lr=1e-3),
        lr_scheduler=scheduler,
    )
    options = {
        "seeds": "tiny:seeds",
        "grader": "math",
        "round": RoundOptions(prompts_per_round=3, samples_per_prompt=4, max_attempts=2),
        "max_tokens": 24,  # often too few for an answer, so that a single one is a vote here
        "reward": MajorityVote(min_answers=1),
        "solve": SolveTemplate(answer_format=""),
        "writing": Writing(
            exemplars=4,
            from_kept=1,
            prompts_per_call=2,
            template=InstructionTemplate(header="Write new math questions."),
            sampling=Sampling(max_tokens=64),
        ),
        "probe": Probe(every=0),
    }
    return module, SelfPlayDataModule(**options | data, engine=engine, rounds_per_epoch=rounds_per_epoch)


def trainer_for(root, callbacks=(), max_epochs=1, **options):
    return pl.Trainer(**QUIET | options, max_epochs=max_epochs, default_root_dir=root, callbacks=list(callbacks))


def weights(module):
    """Whole weights on the CPU; all ranks in step where they are sharded."""
    return {n: full(p).cpu().clone() for n, p in module.policy.named_parameters()}


def ledger(root):
    return (Path(root) / "ledger.jsonl").read_bytes()


def rows(root, name="metrics"):
    """Rows of a run file without what a clock measured."""
    text = (Path(root) / f"{name}.jsonl").read_text(encoding="utf-8")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in text.splitlines()]
