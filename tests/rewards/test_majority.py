"""Majority votes."""

import random

import pytest
import torch

from lightning_serl.answers import TextGrader
from lightning_serl.errors import InputError
from lightning_serl.rewards import MajorityVote
from lightning_serl.rewards.majority import majority
from lightning_serl.types import Group


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
    g = Group.from_texts("p", ["so 5", "so 5", r"\boxed{4}", r"\boxed{4}"], finished=[False, False, True, True])
    verdict = vote(g)
    assert verdict.scores.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert verdict.weight.tolist() == [1.0] * 4
    assert verdict.confidence == 0.5
    assert verdict.info["no_answer"] == 2


def test_one_readable_answer_agrees_with_none():
    for answers, options, label in (
        ([None, None, "4", None], {}, None),
        ([None, None, "4", None], {"soft": True}, None),
        ([None, None, "4", None], {"min_answers": 1}, "4"),
        ([None, "3", "4", None], {}, "3"),
        (["3", "4", "4", None], {"min_answers": 4}, None),
        (["4"], {}, "4"),
        (["4", "4"], {"min_answers": 3}, "4"),
    ):
        texts = ["hm" if answer is None else f"\\boxed{{{answer}}}" for answer in answers]
        verdict = vote(Group.from_texts("problem", texts), **options)
        assert (verdict.label, bool((verdict.weight > 0).any())) == (label, label is not None), answers
        assert verdict.info.get("unscored") == (None if label else "low_consensus")
        assert verdict.confidence > 0


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
    g = Group.from_texts("p", ["answer: (E).", "answer: (E).", "(B).", "answer: (B)."], choices=["w", "x", "y", "z"])
    verdict = vote(g, grader="choice")
    assert verdict.label == "B"
    assert verdict.info["no_answer"] == 2


def test_empty_group():
    verdict = vote(Group.from_texts("p", []))
    assert verdict.scores.shape == (0,)


@pytest.mark.parametrize(
    "options",
    [{"ties": "first"}, {"min_share": 2.0}, {"min_answers": 0}, {"grader": "maths"}, {"mode": "slow"}],
)
def test_bad_options(options):
    with pytest.raises(InputError):
        MajorityVote(**options)


def test_a_users_grader_object():
    assert vote(Group.from_texts("p", ["a", "A", "b"]), grader=TextGrader()).label == "a"


def test_majority_is_the_smallest_answer_of_the_largest_class():
    assert majority(["0.5", "7", "1/2", None], [0, 1, 0, -1]) == ("0.5", 0)
    assert majority(["7", "5"], [1, 0]) == ("5", 0)
    assert majority([None, None], [-1, -1]) is None
