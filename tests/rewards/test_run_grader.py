"""Votes and label checks read with the grader of the run, unless one is named; answers are there before any reward."""

from types import SimpleNamespace

import pytest
from helpers.own_parts import LastNumber

from lightning_serl.answers import ChoiceGrader, MathGrader, TextGrader
from lightning_serl.rewards import LabelElseVote, MajorityVote, RandomReward, VerifiableReward
from lightning_serl.types import Group

TEXTS = ["The answer is \\boxed{Paris}.", "\\boxed{paris}", "\\boxed{Rome}", "\\boxed{B}"]
CTX = {name: SimpleNamespace(grader=grader) for name, grader in (
    ("math", MathGrader()), ("text", TextGrader()), ("choice", ChoiceGrader()), ("own", LastNumber("n")),
)}  # fmt: skip


def read(reward, ctx, texts=TEXTS, label=None):
    group = Group.from_texts("Which city?", texts, label=label)
    reward([group], ctx)
    return group.answers


def test_a_reward_without_a_grader_reads_with_the_run_s():
    seven = ["7 or \\boxed{8}", "so 7", "9"]
    for made in (MajorityVote, VerifiableReward, LabelElseVote):
        for label in (None, "Paris"):
            assert read(made(), CTX["text"], label=label) == read(made("text"), None, label=label)
            assert read(made(), CTX["choice"], label=label) == [None, None, None, "B"]
            assert read(made(), CTX["own"], seven, label) == ["n8", "n7", "n9"]
            assert read(made(), None, label=label) == read(made("math"), None, label=label)
            assert read(made(), SimpleNamespace(round=0), label=label) == read(made("math"), None, label=label)
            for named in ("math", "text", ChoiceGrader()):  # a named one is not replaced
                assert read(made(named), CTX["own"], seven, label) == read(made(named), None, seven, label)
    soft = MajorityVote(soft=True)([Group.from_texts("?", ["1", "x 1", "2"])], CTX["own"])[0]
    assert (soft.label, soft.scores.tolist()) == ("n1", pytest.approx([2 / 3, 2 / 3, 1 / 3]))


def test_answers_that_the_run_read_are_read_again_by_another_grader_only():
    group = Group.from_texts("Which city?", TEXTS)
    MajorityVote()([group], CTX["text"])
    kept = group.answers
    MajorityVote()([group], CTX["text"])
    assert group.answers is kept
    MajorityVote("choice")([group], CTX["text"])
    assert group.answers == [None, None, None, "B"]


def test_random_rewards_take_the_run_s_seed():
    groups = [Group.from_texts(f"Problem {i}?", TEXTS) for i in range(8)]

    def scores(reward, ctx):
        return [verdict.scores.tolist() for verdict in reward(groups, ctx)]

    assert scores(RandomReward(), SimpleNamespace(seed=3, round=2)) == scores(RandomReward(3), SimpleNamespace(round=2))
    assert scores(RandomReward(), None) == scores(RandomReward(0), None)
    assert scores(RandomReward(5), SimpleNamespace(seed=3, round=0)) == scores(RandomReward(5), None)
