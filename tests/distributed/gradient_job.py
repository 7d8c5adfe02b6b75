"""Two ranks take the gradients of the recorded round; started by test_ranks.py as a user's script would be."""

import sys

import torch
from lightning.pytorch.strategies import DDPStrategy
from spine_kit import recorded_round, train_recorded

from lightning_serl.objectives import Objective

CASES = [
    ("token", "loss", 1, (1, 1)),
    ("token", "loss", 2, (2, 2)),
    ("sequence", "reward", 2, (1, 1)),
    ("constant", "loss", 8, (1, 1)),  # 16 slots for 12 responses
]


def gradients(model, root, trainer=dict):
    """Per case the gradients of all steps."""
    out = []
    for aggregation, kl_in, accumulate, steps in CASES:
        objective = Objective(aggregation=aggregation, constant_length=64, beta=0.3, kl="k2", kl_in=kl_in)
        # two rounds: in the second the policy has left its reference
        taken, module = train_recorded(
            model, root, objective, [recorded_round()] * 2, accumulate=accumulate, steps=steps, **trainer()
        )
        out.append({"gradients": [s["gradient"] for s in taken], "metrics": module.step_metrics})
    return out


if __name__ == "__main__":
    model, root = sys.argv[1:]
    torch.set_num_threads(1)
    found = gradients(model, root, lambda: {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")})
    rank = torch.distributed.get_rank()
    torch.save(found, f"{root}/rank{rank}.pt")
