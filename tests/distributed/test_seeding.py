"""Counter-based seeds: pinned values, and independence of one another."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from lightning_serl.distributed.seeding import STAGES, rng_for, seed_for, uniforms


def test_values_are_pinned():
    # a change here changes every run
    assert seed_for(0, "rollout") == 8597659618385908031
    assert seed_for(0, "rollout", 3, 1, 4) == 8769406081053608201
    assert seed_for(7, "order", 0, 2**32 - 1) == 2621356614965462594
    assert uniforms(5, 3).tolist() == [0.8575790745355746, 0.9250921171973682, 0.4213716729569317]
    assert rng_for(1, "instruction", 2).random() == 0.8410482767938997


def test_they_do_not_depend_on_the_process():
    code = "from lightning_serl.distributed.seeding import rng_for, seed_for\n"
    code += "print(seed_for(3, 'greedy', 5), rng_for(3, 'order').random())"
    out = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": h}, capture_output=True, text=True, check=True
        ).stdout
        for h in ("1", "2")
    }
    assert out == {f"{seed_for(3, 'greedy', 5)} {rng_for(3, 'order').random()}\n"}


def test_seeds_differ_by_every_counter():
    places = itertools.product((0, 1, 2), STAGES, range(3), range(3), range(5))
    seeds = [seed_for(run, stage, *counters) for run, stage, *counters in places]
    assert len(set(seeds)) == len(seeds) == 3 * len(STAGES) * 45
    assert all(0 <= s < 2**63 for s in seeds)
    assert len({s & 0xFFFFFFFF for s in seeds}) == len(seeds)


def test_stages_keep_their_places():
    # the place of a word is its number: append new words, never insert them
    first = ("exemplars", "instruction", "rollout", "greedy", "evaluation")
    assert STAGES[: len(first)] == first
    assert len(set(STAGES)) == len(STAGES)
    with pytest.raises(ValueError, match="not in"):
        seed_for(0, "holiday")
    with pytest.raises(ValueError, match="negative"):
        seed_for(0, "rollout", -1)


def test_generators_are_fresh():
    one, two = rng_for(4, "order", 1), rng_for(4, "order", 1)
    draws = [one.random() for _ in range(5)]
    assert draws == [two.random() for _ in range(5)]
    assert draws != [rng_for(4, "order", 2).random() for _ in range(5)]


def test_uniforms_of_a_shorter_run_are_the_start_of_a_longer_one():
    assert uniforms(9, 100)[:7].tolist() == uniforms(9, 7).tolist()
    assert uniforms(9, 0).shape == (0,)
    assert uniforms(9, 3).dtype == np.float64


def test_uniforms_are_uniform_and_unrelated():
    table = np.stack([uniforms(seed_for(0, "rollout", 0, 7, k), 64) for k in range(2000)])
    assert table.min() >= 0
    assert table.max() < 1
    for draws in (table[:, 0], table[:, 63], table[0]):
        counts = np.histogram(draws, bins=8, range=(0, 1))[0]
        expected = len(draws) / 8
        # 0.999 quantile for 7 degrees of freedom
        assert ((counts - expected) ** 2 / expected).sum() < 24.3
    for a, b in ((table[:-1, 0], table[1:, 0]), (table[:, 0], table[:, 1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.08


def test_the_ambient_generators_stay():
    import random

    import torch

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    seed_for(0, "rollout"), rng_for(0, "order").random(), uniforms(0, 10)
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())
