"""What is spent besides training: the size of the health probe, lengths that fit a context, and how both are said."""

import math

import pytest
from helpers.training import selfplay, trainer_for

from lightning_serl.datamodules import EvaluationOptions, RoundOptions
from lightning_serl.datamodules.checks import announce_lengths, check_lengths
from lightning_serl.datamodules.rounds.health_probe import Probe
from lightning_serl.datamodules.spending import evaluation_sentence, planned_rounds, probe_sentence
from lightning_serl.engines import Sampling, TransformersEngine
from lightning_serl.errors import InputError

# (what is given, rounds, answers of a round, seeds, (prompts, samples, every))
PROBES = [
    ({}, 200, 256, 200, (32, 8, 34)),
    ({}, 20, 256, 64, (16, 4, 10)),
    ({}, 1000, 256, 200, (32, 8, 34)),
    ({}, math.inf, 256, 200, (32, 8, 34)),
    ({}, 200, 1024, 200, (32, 8, 9)),
    ({}, 200, 4096, 200, (32, 8, 5)),
    ({}, 50, 256, 200, (24, 8, 25)),
    ({}, 40, 256, 200, (16, 8, 20)),
    ({}, 10, 256, 200, (8, 4, 5)),
    ({}, 5, 256, 200, (32, 8, 0)),
    ({}, 2, 8, 200, (32, 8, 0)),
    ({}, 200, 256, 10, (32, 8, 11)),
    ({}, 200, 256, 0, (32, 8, 0)),
    ({"every": 0}, 200, 256, 200, (32, 8, 0)),
    ({"every": 5}, 200, 256, 200, (32, 8, 5)),
    ({"every": 1, "prompts": 2, "samples": 2}, 3, 8, 200, (2, 2, 1)),
    ({"prompts": 100}, 200, 256, 200, (100, 4, 67)),
    ({"prompts": 12, "samples": 3}, 4, 256, 200, (12, 3, 5)),
    ({"samples": 16}, 200, 256, 200, (32, 16, 67)),
]


@pytest.mark.parametrize(("given", "rounds", "answers", "seeds", "expected"), PROBES)
def test_the_probe_costs_at_most_3_percent(given, rounds, answers, seeds, expected):
    probe = Probe(**given).fitted(rounds, answers, seeds)
    assert (probe.prompts, probe.samples, probe.every) == expected
    if not given and probe.every and math.isfinite(rounds):
        cost = math.ceil(rounds / probe.every) * min(probe.prompts, seeds) * probe.samples
        assert cost <= 0.03 * rounds * answers


# (options of the Trainer, rounds per epoch, steps of a round, expected)
LIMITS = [
    ({"max_epochs": 10}, 20, (1, 1), 200), ({"max_epochs": 10}, 20, (2, 2), 200),
    ({"max_epochs": -1}, 20, (1, 1), math.inf),
    ({"max_epochs": 10, "max_steps": 30}, 20, (1, 1), 30), ({"max_epochs": 10, "max_steps": 30}, 20, (1, 3), 10),
    ({"max_epochs": 10, "limit_train_batches": 5}, 20, (1, 1), 50),
    ({"max_epochs": 10, "limit_train_batches": 0.5}, 20, (1, 1), 100),
    ({"max_epochs": 2, "accumulate_grad_batches": 4, "limit_train_batches": 8}, 20, (1, 1), 4),
    ({"max_epochs": 0}, 20, (1, 1), 0), ({"max_epochs": -1, "max_steps": 12}, 20, (1, 1), 12),
]  # fmt: skip


@pytest.mark.parametrize(("options", "per_epoch", "steps", "expected"), LIMITS)
def test_planned_rounds(tmp_path, options, per_epoch, steps, expected):
    trainer = trainer_for(tmp_path, **options)
    trainer.strategy.connect(selfplay(steps=steps)[0])
    assert planned_rounds(trainer, per_epoch) == expected


def test_what_is_written_is_said():
    options = RoundOptions()
    said = probe_sentence(Probe().fitted(200, 256, 50), 50, 200, options, 1024)
    assert said == (
        "health probe: 32 seeds with 8 answers each, before the first round and every 34 rounds: 256 completions of "
        "together at most 262,144 tokens, 3.0 % of the run's answers"
    )
    assert "none, since two probes would be more than 3 %" in probe_sentence(Probe(every=0), 50, 2, options, 1024)
    assert "100.0 % of" in probe_sentence(Probe(every=1).fitted(math.inf, 256, 50), 50, math.inf, options, 9)
    said = evaluation_sentence({"a": [1] * 50, "b": [1] * 3}, EvaluationOptions(samples=4), 100)
    assert said.startswith("evaluation: 50 problems of a, 3 problems of b, each answered once greedily and 4 times")
    assert said.endswith("265 completions of together at most 26,500 tokens")


# (context, given, expected)
LENGTHS = [
    (None, None, 1024), (None, 77, 77), (131072, None, 1024), (2048, None, 1024), (1280, None, 1024),
    (1279, None, 639), (1100, None, 550), (1024, None, 512), (512, None, 256), (256, None, 128), (64, None, 32),
    (3, None, 1), (1, None, 1), (512, 500, 500), (512, 4000, 4000), (2048, 1024, 1024),
]  # fmt: skip


@pytest.mark.parametrize(("context", "given", "expected"), LENGTHS)
def test_lengths_that_were_left_open_fit_the_context(context, given, expected):
    sampling = Sampling(max_tokens=given, temperature=0.5, top_p=0.9)
    assert sampling.fitted(context) == Sampling(max_tokens=expected, temperature=0.5, top_p=0.9)


def test_fitted_lengths_are_said_and_given_ones_refused(tmp_path, caplog):
    module, _ = selfplay()
    policy, engine, left_open = module.policy, TransformersEngine(), Sampling()
    with caplog.at_level("INFO"):
        announce_lengths(policy, engine, left_open, Sampling(max_tokens=9), 0)
        assert "data.max_tokens: 256, half of the 512 tokens that the model's context holds" in caplog.text
        assert "data.writing" not in caplog.text
        announce_lengths(policy, engine, Sampling(max_tokens=9), Sampling(temperature=0.8), 0)
        assert "data.writing.sampling.max_tokens: 256, half of the 512" in caplog.text
    check_lengths(policy, engine, left_open, left_open)
    for name, both in (
        ("data", (Sampling(max_tokens=1024), None)),
        ("data.writing.sampling", (left_open, Sampling(512))),
    ):
        with pytest.raises(InputError, match=rf"{name}\.max_tokens is (512|1024) but the model's context holds 512"):
            check_lengths(policy, engine, *both)
    with pytest.raises(InputError, match=r"overlong_buffer must be at most 256, got 300"):
        announce_lengths(policy, engine, left_open, None, 300)
