"""Majority votes, labels and the control."""

import random

import pytest
import torch

from lightning_serl.answers import TextGrader
from lightning_serl.errors import InputError
from lightning_serl.rewards import LabelElseVote, MajorityVote, RandomReward, VerifiableReward, check_reward
from lightning_serl.types import Group, Verdict


def group(*answers, label=None, **kwargs):
    return Group.from_texts("problem", [a if a is None else f"\\boxed{{{a}}}" for a in answers], label=label, **kwargs)


def vote(g, **kwargs):
    return MajorityVote(**kwargs)([g], None)[0]


def test_vote():
    g = group("1/2", "0.5", "3")
    verdict = vote(g)
    assert verdict.scores.tolist() == [1.0, 1.0, 0.0]
    assert verdict.weight.tolist() == [1.0, 1.0, 1.0]
    assert verdict.scores.dtype == verdict.weight.dtype == torch.float32
    assert verdict.label == "0.5"
    assert verdict.confidence == pytest.approx(2 / 3)
    assert verdict.info == {"tie": False, "unique_answers": 2, "no_answer": 0}
    assert g.answers == ["1/2", "0.5", "3"]
    assert g.cluster == [0, 0, 1]


def test_no_answer_is_no_vote():
    g = Group.from_texts("p", ["so 5", "so 5", "so 5", r"\boxed{4}"], finished=[False, False, False, True])
    verdict = vote(g)
    assert verdict.scores.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert verdict.weight.tolist() == [1.0] * 4
    assert verdict.confidence == 0.25
    assert verdict.info["no_answer"] == 3


def test_nothing_answered():
    verdict = vote(Group.from_texts("p", ["hm", "<think>4"]))
    assert verdict.label is None
    assert verdict.scores.tolist() == [0.0, 0.0]
    assert verdict.confidence == 0.0
    assert not verdict.info["tie"]


def test_ties():
    g = group("3", "2", "3", "2", "1")
    verdict = vote(g)
    assert (verdict.label, verdict.info["tie"]) == ("2", True)
    assert verdict.scores.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]
    verdict = vote(g, ties="abstain")
    assert verdict.label is None
    assert verdict.info["tie"] is True
    assert verdict.weight.tolist() == [0.0] * 5
    assert vote(group("3", "3", "2"), ties="abstain").label == "3"


def test_min_share():
    g = group("3", "3", "2", "1")
    assert vote(g, min_share=0.5).label == "3"
    verdict = vote(g, min_share=0.6)
    assert verdict.label is None
    assert verdict.weight.tolist() == verdict.scores.tolist() == [0.0] * 4


def test_soft():
    g = group("3", "3.0", "2", "___")
    assert vote(g, soft=True).scores.tolist() == [0.5, 0.5, 0.25, 0.0]
    assert vote(group("3", "4", "2"), soft=True).scores.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("options", [{}, {"soft": True}, {"ties": "abstain"}, {"min_share": 0.3}])
def test_votes_do_not_depend_on_the_order_of_responses(mode, options):
    rng = random.Random(3)
    pool = ["1", "1.0", "2", "x+1", "1+x", r"\frac{1}{3}", "0.333333", "0.3333334", "x=5", "5", "___"]
    for _ in range(15):
        answers = [rng.choice(pool) for _ in range(8)]
        before = vote(group(*answers), mode=mode, **options)
        order = rng.sample(range(8), 8)
        after = vote(group(*(answers[i] for i in order)), mode=mode, **options)
        assert after.label == before.label
        assert after.info == before.info
        assert after.scores.tolist() == [before.scores[i].item() for i in order]
        assert after.weight.tolist() == [before.weight[i].item() for i in order]


def test_one_group_through_several_graders():
    g = Group.from_texts("p", [r"\boxed{NaCl}", r"\boxed{ClNa}", r"\boxed{nacl}"])
    assert vote(g).confidence >= 2 / 3, "algebra reads letters as factors"
    verdict = vote(g, grader="text")
    assert verdict.scores.tolist() == [1.0, 0.0, 1.0]
    assert g.answers == ["nacl", "clna", "nacl"]


def test_choice_votes_know_the_options():
    g = Group.from_texts("p", ["answer: (E).", "answer: (E).", "answer: (B)."], choices=["w", "x", "y", "z"])
    verdict = vote(g, grader="choice")
    assert verdict.label == "B"
    assert verdict.info["no_answer"] == 2


def test_empty_group():
    verdict = vote(Group.from_texts("p", []))
    assert verdict.scores.shape == (0,)


@pytest.mark.parametrize("options", [{"ties": "first"}, {"min_share": 2.0}, {"grader": "maths"}, {"mode": "slow"}])
def test_bad_options(options):
    with pytest.raises(InputError):
        MajorityVote(**options)


def test_labels():
    verdict = VerifiableReward()([group(r"\dfrac{\pi}{2}", r"0.5\pi", "2", label=r"\frac{\pi}{2}")], None)[0]
    assert verdict.scores.tolist() == [1.0, 1.0, 0.0]
    assert verdict.label == r"\frac{\pi}{2}"
    solution = group("4", "5", label="First 2, then 2: $\\boxed{4}$.")
    assert VerifiableReward()([solution], None)[0].scores.tolist() == [1.0, 0.0]
    text = Group.from_texts("p", ["Answer: Paris", "Answer: Rome"], label="paris.")
    assert VerifiableReward(grader="text")([text], None)[0].scores.tolist() == [1.0, 0.0]


def test_no_label_no_weight():
    verdict = VerifiableReward()([group("1", "2")], None)[0]
    assert verdict.weight.tolist() == [0.0, 0.0]
    assert "label" in verdict.info["reason"]


def test_label_else_vote_keeps_the_order():
    groups = [group("1", "1", "2"), group("1", "1", "2", label="2"), group("7")]
    verdicts = LabelElseVote()(groups, None)
    assert [v.scores.tolist() for v in verdicts] == [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0]]


def test_random_reward_knows_nothing_and_repeats_itself():
    groups = [Group.from_texts(f"p{i}", ["a"] * 16) for i in range(200)]
    forward = RandomReward(seed=3)(groups, None)
    other = [Group.from_texts(f"p{i}", ["b"] * 16) for i in reversed(range(200))]
    backward = RandomReward(seed=3)(other, None)
    assert [v.scores.tolist() for v in forward] == [v.scores.tolist() for v in reversed(backward)]
    assert 0.47 < torch.stack([v.scores for v in forward]).mean().item() < 0.53
    assert forward[0].scores.tolist() != RandomReward(seed=4)(groups, None)[0].scores.tolist()


def good(groups, ctx):
    return [Verdict(torch.zeros(len(g))) for g in groups]


class Needy:
    needs = frozenset({"entropy"})

    def __call__(self, groups, ctx, factor=1.0):
        return good(groups, ctx)


def test_rewards_that_pass():
    for reward in (good, Needy(), MajorityVote(), lambda groups, _ctx: [], lambda *args: []):
        assert check_reward(reward) is reward


class Wrong:
    needs = frozenset({"magic"})

    def __call__(self, groups, ctx):
        return []


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (lambda prompts, completions: [], "'prompts'"),
        (lambda groups: [], "'ctx'"),
        (lambda groups, ctx, extra: [], "'extra'"),
        (lambda groups, ctx, *, key: [], "'key'"),
        (Needy, r"Needy\(\)"),
        (Wrong(), "magic"),
        ("majority", "cannot be called"),
    ],
)
def test_rewards_that_do_not(reward, words):
    with pytest.raises(InputError, match=words):
        check_reward(reward)


def test_a_users_grader_object():
    assert vote(Group.from_texts("p", ["a", "A", "b"]), grader=TextGrader()).label == "a"


class Shouting:
    """A grader of a user's own, without a method for labels."""

    def extract(self, text):
        found = text.rpartition("=")[2].strip(" .")
        return found.upper() or None

    def same(self, a, b):
        return a == b


@pytest.mark.parametrize(("label", "read"), [("yes.", "YES"), ("so = no", "NO"), ("...", "...")])
def test_a_grader_without_a_method_for_labels_reads_them_as_responses(label, read):
    g = Group.from_texts("p", ["x = yes", "x = No.", "x = ..."], label=label)
    verdict = VerifiableReward(Shouting())([g], None)[0]
    assert verdict.label == read
    assert verdict.scores.tolist() == [float(answer == read) for answer in ("YES", "NO", None)]
