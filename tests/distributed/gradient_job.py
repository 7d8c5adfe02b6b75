"""Two ranks take the gradients of the recorded round; started by test_ranks.py as a user's script would be."""

import sys

import torch
from helpers.training import recorded_round, sharded, train_recorded
from lightning.pytorch.strategies import DDPStrategy

from lightning_serl.objectives import Objective
from lightning_serl.policy.loading import LoraOptions

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


def gradients(model, root, trainer=dict, **options):
    """Per case the gradients of all steps."""
    out = []
    for aggregation, kl_in, accumulate, steps in CASES:
        objective = Objective(aggregation=aggregation, constant_length=64, beta=0.3, kl="k2", kl_in=kl_in)
        # two rounds: in the second the policy has left its reference
        taken, module = train_recorded(
            model, root, objective, [recorded_round()] * 2, accumulate=accumulate, steps=steps, **trainer(), **options
        )
        out.append({"gradients": [s["gradient"] for s in taken], "metrics": module.step_metrics})
    return out


def kinds(models, root, trainer=dict):
    """Per kind of model the gradients of all steps."""
    out = []
    for name, options, precision in KINDS:
        torch.manual_seed(0)  # of the adapter
        objective = Objective(beta=0.3, kl="k2")
        taken, module = train_recorded(
            f"{models}/{name}", root, objective, [recorded_round()] * 2, accumulate=2, steps=(1, 2),
            precision=precision, options=options, **trainer(),
        )  # fmt: skip
        out.append({"gradients": [s["gradient"] for s in taken], "metrics": module.step_metrics})
    return out


if __name__ == "__main__":
    models, root = sys.argv[1:]
    torch.set_num_threads(1)
    found = {
        "ddp": gradients(
            f"{models}/untied", root, lambda: {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")},
            options=PADDED,
        ),
        "sharded": gradients(
            f"{models}/untied", root, lambda: {"devices": 2, "strategy": sharded()}, precision="32-true",
            options={**PADDED, "dtype": "float64"},
        ),
        "kinds": kinds(models, root, lambda: {"devices": 2, "strategy": sharded()}),
    }  # fmt: skip
    rank = torch.distributed.get_rank()
    torch.save(found, f"{root}/rank{rank}.pt")
