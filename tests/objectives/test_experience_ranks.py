"""Two ranks take the gradients of one, where divergence, whitening and dropped groups enter the advantages, and where
the sampler was not exactly the policy.
"""

import pytest
from helpers.gradients import Plain, distance, gpt2, mixed_round, off_by
from helpers.rank_jobs import OBJECTIVES, objective_gradients
from helpers.ranks import ranks_of


def test_two_ranks_take_the_gradient_of_one(tmp_path, pair):
    model = gpt2(tmp_path / "model")
    pair.run("objectives", model=model, root=tmp_path)
    alone = objective_gradients(model, tmp_path / "alone")
    for found in ranks_of(tmp_path):
        for (objective, _, steps), ours, theirs in zip(OBJECTIVES, alone, found, strict=True):
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
