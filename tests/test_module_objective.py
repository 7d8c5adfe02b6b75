"""The objective on the command line and in a configuration file, and the entropy bonus through the real policy."""

import dataclasses

import pytest
import torch
import yaml
from helpers.command_line import cli, small
from helpers.slow_advantages import RULES
from helpers.small_models import small_policy
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI

from lightning_serl import SeRLModule
from lightning_serl.objectives import Objective
from lightning_serl.types import pad_rows

CASES = [
    ((), Objective()),
    (("name rloo",), Objective("rloo")),
    (("name dr_grpo", "constant_length 56"), Objective("dr_grpo", constant_length=56)),
    (("baseline loo", "scale none"), Objective(baseline="loo", scale="none")),
    (("name reinforce++", "style serl", "beta 1e-4"), Objective("reinforce++", "serl", beta=1e-4)),
    (("style serl", "name rloo", "kl k3", "kl_in loss"), Objective("rloo", "serl", kl="k3", kl_in="loss")),
    (("name reinforce++_baseline", "scale null", "entropy 0.01"), Objective("reinforce++_baseline", entropy=0.01)),
]


def options(case):
    return [word for choice in case for word in (f"--model.objective.{choice.split()[0]}", choice.split()[1])]


@pytest.mark.parametrize(("case", "expected"), CASES)
def test_choices_on_the_command_line(case, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mine.py", *options(case)])
    parsed = LightningCLI(SeRLModule, run=False, save_config_callback=None)
    assert parsed.model.objective == expected.resolve()
    # as printed, and read back
    printed = cli("fit", *options(case), "--print_config")
    assert printed.status == 0, printed.err
    written = yaml.safe_load(printed.out)["model"]["objective"]
    assert Objective(**written) == expected
    (tmp_path / "again.yaml").write_text(printed.out, encoding="utf-8")
    assert cli("fit", "-c", tmp_path / "again.yaml", "--print_config").out == printed.out
    # a name given later still decides what was left open
    later = cli("fit", "-c", tmp_path / "again.yaml", "--model.objective.name", "dr_grpo", "--print_config")
    changed = {"name": "dr_grpo"}
    assert Objective(**yaml.safe_load(later.out)["model"]["objective"]) == Objective(**written | changed)


def test_what_a_name_decides_stays_open_in_a_configuration():
    written = yaml.safe_load(cli("fit", "--model.objective.name", "rloo", "--print_config").out)["model"]["objective"]
    assert {k for k, v in written.items() if v is None} == {
        "baseline", "scale", "aggregation", "kl", "kl_in", "eps", "dual_clip", "clip_low", "clip_high", "beta",
        "ratio", "surrogate",
    }  # fmt: skip


def test_the_saved_configuration_of_a_run_gives_the_same_objective(tmp_path):
    chosen = ["--model.objective.name", "reinforce++", "--model.objective.style", "serl", "--model.objective.kl", "k2"]
    ended = cli("fit", *small(tmp_path / "run", rounds=1), *chosen)
    assert ended.status == 0, ended.err
    saved = yaml.safe_load((ended.run / "config.yaml").read_text(encoding="utf-8"))["model"]
    expected = Objective("reinforce++", "serl", kl="k2", beta=0.01)
    parser = ArgumentParser()
    parser.add_class_arguments(SeRLModule, "model")
    read = parser.instantiate_classes(parser.parse_object({"model": saved}))
    assert read.model.objective == expected.resolve()
    again = cli("fit", "-c", ended.run / "config.yaml", "--print_config")
    assert yaml.safe_load(again.out)["model"]["objective"] == saved["objective"]


@pytest.mark.parametrize(
    ("option", "value"), [("name", "ppo"), ("baseline", "mean"), ("kl_in", "grad"), ("entropy", "-1")]
)
def test_a_wrong_choice_is_refused(option, value):
    ended = cli("fit", f"--model.objective.{option}", value)
    assert ended.status == 2
    assert option in ended.error


def test_copies_keep_what_was_chosen_and_leave_the_rest_to_the_name():
    for style, name in RULES:
        objective = Objective(name, style, beta=0.5)
        assert Objective(**dataclasses.asdict(objective)) == objective
        assert dataclasses.replace(objective, beta=0.1) == Objective(name, style, beta=0.1)
        assert dataclasses.replace(objective, name="rloo") == Objective("rloo", style, beta=0.5)
        resolved = objective.resolve()
        assert dataclasses.replace(resolved, beta=0.1) == Objective(name, style, beta=0.1).resolve()
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.baseline = "none"


@pytest.mark.parametrize("chunk", [1024, 5])
def test_entropy_carries_its_gradient_through_the_head(chunk):
    """Also where the head works in pieces that are computed again in the backward pass."""
    policy = small_policy("llama_tied", chunk=chunk, temperature=0.7).double()
    rows, starts = [tuple(range(1, 20)), (3, 1, 4, 1, 5, 9), (2, 7)], [4, 1, 1]
    entropy = policy(pad_rows(rows, starts, 0), spread_gradient=True).entropy
    (entropy.sum() * 0.5).backward()
    found = {n: p.grad.clone() for n, p in policy.named_parameters()}
    policy.zero_grad()
    total = 0.0
    for ids, start in zip(rows, starts, strict=True):
        logp = torch.log_softmax(policy.model(torch.tensor([ids])).logits[0, start - 1 : -1].double() / 0.7, -1)
        total = total - 0.5 * (logp.exp() * logp).sum()
    total.backward()
    norm = torch.cat([p.grad.flatten() for p in policy.parameters()]).norm()
    assert norm > 1
    for name, parameter in policy.named_parameters():
        assert float((found[name] - parameter.grad).norm()) < 1e-10 * float(norm), name
    # and costs nothing where it is not asked for
    stats = policy(pad_rows(rows, starts, 0))
    assert stats.logp.requires_grad
    assert not stats.entropy.requires_grad
