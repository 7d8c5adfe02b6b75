"""From the values of options to sources, rewards and graders."""

import re
from pathlib import Path

import pytest

from lightning_serl import SelfPlayDataModule
from lightning_serl.answers import AutoGrader, MathGrader, TextGrader
from lightning_serl.datamodules.option_values import (
    load_class_path,
    named_reward,
    parse_grader,
    parse_paths,
    parse_reward,
    parse_source,
)
from lightning_serl.datamodules.sources import PromptSet
from lightning_serl.errors import InputError
from lightning_serl.rewards import MajorityVote, RandomReward
from lightning_serl.types import Instruction


def constant(groups, ctx):
    return []


def test_the_share_of_the_seeds():
    assert [parse_source(s) for s in ("self", "seeds", "mix:0.25")] == [
        ("self", 0.0),
        ("seeds", 1.0),
        ("mix:0.25", 0.25),
    ]
    own = PromptSet([Instruction("a", "1")])
    assert parse_source(own) == (own, 0.0)
    for wrong in ("mix:0", "mix:1", "mix:x", "mix:nan", "mix:"):
        with pytest.raises(InputError, match=rf"^data\.source '{wrong}': the ratio must be a number between 0 and 1"):
            parse_source(wrong)
    with pytest.raises(InputError, match=r"^data\.source must be self, .* got 'seed'; did you mean seeds\?$"):
        parse_source("seed")


def test_rewards_by_name_by_path_by_role_and_as_objects():
    assert parse_reward(None) == (None, {})
    assert parse_reward("RandomReward") == ("RandomReward", {})
    assert parse_reward(constant) == (None, {"solve": constant})
    assert parse_reward({"solve": constant, "judge": constant}) == (None, {"solve": constant, "judge": constant})
    name, rewards = parse_reward("lightning_serl.rewards.MajorityVote")
    assert name is None
    assert isinstance(rewards["solve"], MajorityVote)
    for wrong, said in (
        ("Majority", "there is no 'Majority'; did you mean MajorityVote?"),
        ("Xyz", "there is no 'Xyz'; use MajorityVote"),
        ("no.such.Reward", "'no.such.Reward' cannot be used"),
        ({}, "an empty mapping"),
    ):
        with pytest.raises(InputError, match=f"data.reward.* ?{re.escape(said)}"):
            parse_reward(wrong)


def test_a_named_reward_has_the_grader_and_the_seed_of_the_run():
    grader = TextGrader()
    assert named_reward("MajorityVote", grader, 3).grader is grader
    named = named_reward("RandomReward", grader, 3)
    assert isinstance(named, RandomReward)
    assert named.seed == 3


def test_graders_by_name_by_path_and_as_objects():
    grader, name = parse_grader("auto")
    assert (type(grader), name) == (AutoGrader, "auto")
    grader, name = parse_grader("math")
    assert (type(grader), name) == (MathGrader, "math")
    grader, _ = parse_grader("lightning_serl.answers.TextGrader")
    assert isinstance(grader, TextGrader)
    mine = TextGrader()
    assert parse_grader(mine)[0] is mine
    with pytest.raises(InputError, match=r"data\.grader .*'maths'"):
        parse_grader("maths")


def test_one_path_or_several():
    assert parse_paths(None) == []
    assert parse_paths("a") == parse_paths(Path("a")) == ["a"]
    assert parse_paths(["a", Path("b")]) == ["a", "b"]


def test_a_class_path_leads_to_an_object():
    assert load_class_path("lightning_serl.answers.TextGrader", "data.x", "y").__class__ is TextGrader
    assert load_class_path(f"{__name__}.constant", "data.x", "y") is constant
    with pytest.raises(InputError, match=r"^data\.x: 'os\.path\.nothing' cannot be used \(.*\); use y$"):
        load_class_path("os.path.nothing", "data.x", "use y")


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("MajorityVote", set()),
        ("TeacherVote", {"teacher"}),
        ("SelectiveVote", {"entropy"}),
        ("SelfJudge", {"reference"}),
    ],
)
def test_a_reward_by_name_says_what_it_needs(name, needs):
    assert SelfPlayDataModule(seeds="tiny:seeds", reward=name).needs == needs
