"""Two ranks take the gradients of one, where divergence, whitening and dropped groups enter the advantages, and where
the sampler was not exactly the policy.

The file is also the script that the ranks run, as a user would start it.
"""

import sys

import pytest
import torch
from helpers.training import distance, run_script, train_recorded
from lightning.pytorch.strategies import DDPStrategy
from test_gradient import Plain, gpt2, mixed_round, off_by

from lightning_serl.objectives import Objective

CASES = [
    (Objective("reinforce++", beta=0.7, entropy=0.05), 2, (1, 1)),
    (Objective("reinforce++_baseline", beta=0.7, correction="token_mask", correction_cap=1.15), 1, (2, 2)),
    (Objective("rloo", "serl", beta=0.7, correction="sequence_mask", correction_cap=1.3), 1, (1, 1)),
    (Objective("grpo", "serl", beta=0.7), 9, (1, 1)),  # 18 slots for 14 responses
]


def gradients(model, root, trainer=dict):
    """Per case the gradients of all steps of two rounds: in the second the policy has left its reference."""
    out = []
    for objective, accumulate, steps in CASES:
        rounds = [off_by(model, mixed_round(), 0.2, holes=True)] * 2
        taken, module = train_recorded(model, root, objective, rounds, accumulate=accumulate, steps=steps, **trainer())
        out.append({"gradients": [s["gradient"] for s in taken], "metrics": module.step_metrics})
    return out


def test_two_ranks_take_the_gradient_of_one(tmp_path):
    model = gpt2(tmp_path / "model")
    status, _, err = run_script(__file__, model, tmp_path, limit=150)
    assert status == 0, err[-2000:]
    alone = gradients(model, tmp_path / "alone")
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for (objective, _, steps), ours, theirs in zip(CASES, alone, found, strict=True):
            assert len(ours["gradients"]) == 2 * steps[0] * steps[1]
            for a, b in zip(theirs["gradients"], ours["gradients"], strict=True):
                assert distance(a, b) < 1e-10, objective
            for name, value in ours["metrics"].items():
                if not name.startswith("serl/batch/"):
                    assert theirs["metrics"][name] == pytest.approx(value, rel=1e-9, abs=1e-12), (objective, name)
    # and one rank alone takes the true one
    correction = {"correction": "token_truncate", "correction_cap": 3.0, "correction_floor": 0.0}
    rounds = off_by(model, mixed_round(), 0.2, holes=True)
    plain = Plain(model, rounds, correction=correction, name="reinforce++", beta=0.7, entropy=0.05)
    assert distance(alone[0]["gradients"][0], plain.gradient()[0]) < 1e-10


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, root = sys.argv[1:]
    both = gradients(where, root, lambda: {"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")})
    torch.save(both, f"{root}/rank{torch.distributed.get_rank()}.pt")
