"""What two ranks are asked to do: jobs by name, run one after another or alone as a user's script would be.

``python -m helpers.rank_jobs serve FD`` runs the jobs it reads as lines and answers each with a line on that file
descriptor; ``python -m helpers.rank_jobs JOB KEY=VALUE...`` runs one job and lets Lightning start the second rank.
"""

import contextlib
import json
import math
import os
import sys
import traceback
from pathlib import Path
from unittest import mock

import torch
from helpers.command_line import cli
from helpers.engines import FailingEngine
from helpers.gradients import mixed_round, off_by, recorded_round, train_recorded
from helpers.nonfinite import Fault, first_weight
from helpers.training import selfplay, sharded, trainer_for, weights
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from lightning_serl.callbacks import Checkpoints, CollapseGuard, Export, ReferenceSync
from lightning_serl.datamodules import RoundOptions
from lightning_serl.datamodules.rounds.health_probe import Probe
from lightning_serl.distributed.finite import own_part
from lightning_serl.objectives import Objective
from lightning_serl.objectives.surrogate import Surrogate
from lightning_serl.policy.loading import LoraOptions


def two(how):
    """Trainer options of two ranks; a strategy belongs to one Trainer."""
    return {"devices": 2, "strategy": sharded() if how == "sharded" else DDPStrategy(process_group_backend="gloo")}


def save(found, root):
    torch.save(found, f"{root}/rank{torch.distributed.get_rank()}.pt")


def steps_of(taken, module):
    return {"gradients": [step["gradient"] for step in taken], "metrics": module.step_metrics}


# -- gradients of the recorded round ---------------------------------------------------------------------------

#: (aggregation, where the KL divergence is, accumulation, inner epochs and minibatches)
CASES = [
    ("token", "loss", 1, (1, 1)),
    ("token", "loss", 2, (2, 2)),
    ("sequence", "reward", 2, (1, 1)),
    ("constant", "loss", 8, (1, 1)),  # 16 slots for 12 responses
]
#: As sharded weights always run; and a Llama's norms are in float32, where prompts shared by other rows show.
PADDED = {"packing": "none"}
#: Models and options beside them, for sharded weights: (model, its options, precision).
ADAPTER = LoraOptions(r=2, target_modules=["q_proj", "down_proj"])
KINDS = [
    ("tied", {**PADDED, "dtype": "float64", "gradient_checkpointing": True}, "32-true"),
    ("untied", {**PADDED, "dtype": "float64", "gradient_checkpointing": True, "lora": ADAPTER}, "32-true"),
    ("untied", PADDED, "32-true"),
    ("tied", {**PADDED, "gradient_checkpointing": True}, "bf16-mixed"),
    ("untied", {**PADDED, "dtype": "bfloat16", "lora": ADAPTER}, "bf16-mixed"),
]
#: (objective, accumulation, inner epochs and minibatches): what enters the advantages, and an inexact sampler.
OBJECTIVES = [
    (Objective("reinforce++", beta=0.7, entropy=0.05), 2, (1, 1)),
    (Objective("reinforce++_baseline", beta=0.7, correction="token_mask", correction_cap=1.15), 1, (2, 2)),
    (Objective("rloo", "serl", beta=0.7, correction="sequence_mask", correction_cap=1.3), 1, (1, 1)),
    (Objective("grpo", "serl", beta=0.7), 9, (1, 1)),  # 18 slots for 14 responses
]


def case_gradients(model, root, trainer=dict, **options):
    """Per case the gradients of all steps."""
    out = []
    for aggregation, kl_in, accumulate, steps in CASES:
        objective = Objective(aggregation=aggregation, constant_length=64, beta=0.3, kl="k2", kl_in=kl_in)
        # two rounds: in the second the policy has left its reference
        out.append(steps_of(*train_recorded(
            model, root, objective, [recorded_round()] * 2, accumulate=accumulate, steps=steps, **trainer(), **options
        )))  # fmt: skip
    return out


def kind_gradients(models, root, trainer=dict):
    """Per kind of model the gradients of all steps."""
    out = []
    for name, options, precision in KINDS:
        torch.manual_seed(0)  # of the adapter
        out.append(steps_of(*train_recorded(
            f"{models}/{name}", root, Objective(beta=0.3, kl="k2"), [recorded_round()] * 2, accumulate=2, steps=(1, 2),
            precision=precision, options=options, **trainer(),
        )))  # fmt: skip
    return out


def objective_gradients(model, root, trainer=dict):
    """Per objective the gradients of all steps of two rounds: in the second the policy has left its reference."""
    out = []
    for objective, accumulate, steps in OBJECTIVES:
        rounds = [off_by(model, mixed_round(), 0.2, holes=True)] * 2
        out.append(steps_of(*train_recorded(
            model, root, objective, rounds, accumulate=accumulate, steps=steps, **trainer()
        )))  # fmt: skip
    return out


def gradients(models, root):
    """Job: all of the above but the objectives."""
    untied = f"{models}/untied"
    double = {**PADDED, "dtype": "float64"}
    found = {
        "ddp": case_gradients(untied, root, lambda: two("ddp"), options=PADDED),
        "sharded": case_gradients(untied, root, lambda: two("sharded"), precision="32-true", options=double),
        "kinds": kind_gradients(models, root, lambda: two("sharded")),
    }
    save(found, root)


def objectives(model, root):
    """Job: the gradients of every objective."""
    save(objective_gradients(model, root, lambda: two("ddp")), root)


# -- self-play -------------------------------------------------------------------------------------------------

#: One problem at a time: the other rank has nothing to answer and waits for the longest response.
NARROW = {"round": RoundOptions(prompts_per_round=1, samples_per_prompt=6, max_attempts=4)}


def rank_selfplay(**options):
    """Plain SGD: Adam's first steps have the size of the learning rate even on rounding noise."""
    options = {"probe": Probe(prompts=4, samples=2, every=1), **options}
    return selfplay(steps=(1, 2), optimizer=lambda p, lr: torch.optim.SGD(p, lr=50 * lr), **options)


def callbacks(every=1):
    """A reference that moves, checkpoints of the four steps, an export."""
    return [ReferenceSync("ema", every_n_steps=1, alpha=0.3), Checkpoints(every, keep=-1), Export()]


def fit(root, how, module, data, every=1, resume=False):
    trainer = trainer_for(root, callbacks(every), **two(how), gradient_clip_val=1.0)
    trainer.fit(module, data, ckpt_path=f"{root}/checkpoints/last.ckpt" if resume else None)
    save({"weights": weights(module), "metrics": module.step_metrics}, root)


def play(root, how="ddp", narrow=False, resume=False):
    """Job: self-play; ``narrow`` gives one rank nothing to do, ``resume`` continues from the last checkpoint."""
    module, data = rank_selfplay(engine=FailingEngine(), **(NARROW if narrow else {}))
    fit(root, how, module, data, resume=resume)


class Harm(Callback):
    """Turns the sign of all weights after the second step, so that the policy writes nonsense."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 2:
            with torch.no_grad():
                for p in pl_module.policy.parameters():
                    if p.requires_grad:
                        p.mul_(-1)


def guarded(root, how):
    """Job: the weights are spoilt before the second round, which begins with those of the first again."""
    module, data = rank_selfplay(probe=Probe(prompts=20, samples=4, every=1), max_tokens=28)
    guard = CollapseGuard(factor=0.5)
    trainer = trainer_for(root, [Harm(), guard, Checkpoints(1)], **two(how))
    trainer.fit(module, data)
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    save({"weights": weights(module), "times": guard.times, "rate": rate}, root)


def fail(root):
    """Job: the engine of rank 1 raises in the second round."""

    def gone(text):
        Path(root, "raised").touch()
        return RuntimeError(text)

    module, data = rank_selfplay(engine=FailingEngine(fail_at=5, error=gone, rank=1), probe=Probe(every=0))
    fit(root, "ddp", module, data, every=100)  # what is found was saved at the end


def fail_in_step(root):
    """Job: the third training step of rank 1 raises."""
    module, data = rank_selfplay(engine=FailingEngine())
    whole, calls = module.training_step, []

    def training_step(batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 3 and module.global_rank == 1:
            Path(root, "raised").touch()
            raise MemoryError("rank 1 has no room")
        return whole(batch, batch_idx)

    module.training_step = training_step
    fit(root, "ddp", module, data, every=100)


def spoilt(root, how):
    """Job: on rank 1 alone the loss of the second step is NaN, and a value of the gradient before the third is used."""
    module, data = rank_selfplay(engine=FailingEngine(), **NARROW)

    def evaluate(surrogate, policy):
        loss, stats = whole(surrogate, policy)
        return (loss * math.nan if module.global_rank and module.global_step == 1 else loss), stats

    def in_gradient(trainer, module, optimizer):
        if module.global_rank and module.global_step == 2:
            own_part(first_weight(module).grad).fill_(math.nan)

    whole = Surrogate.evaluate
    with mock.patch.object(Surrogate, "evaluate", evaluate):
        trainer = trainer_for(root, [Fault("on_before_optimizer_step", in_gradient, 1, 9), Export()], **two(how))
        trainer.fit(module, data)
    save({"weights": weights(module), "left_out": module.step_metrics["serl/nonfinite_steps"]}, root)


# -- the command line ------------------------------------------------------------------------------------------


def command(arguments):
    """Job: the command line; its status, and what it wrote."""
    ended = cli(*arguments)
    return [ended.status, ended.out, ended.err]


JOBS = {job.__name__: job for job in (gradients, objectives, play, guarded, fail, fail_in_step, spoilt, command)}


def serve(replies):
    """Run the jobs that come as lines of JSON, until there are no more."""
    for line in sys.stdin:
        name, options = json.loads(line)
        try:
            answer = {"result": JOBS[name](**options)}
        except (Exception, SystemExit):  # told to the test, which ends this process
            answer = {"error": traceback.format_exc()[-3000:]}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "serve":
        with contextlib.suppress(BrokenPipeError), os.fdopen(int(sys.argv[2]), "w") as replies:
            serve(replies)
    else:
        JOBS[sys.argv[1]](**dict(argument.split("=", 1) for argument in sys.argv[2:]))
