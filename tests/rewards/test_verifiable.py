"""Rewards against gold labels, and label else vote."""

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from lightning_serl.rewards import LabelElseVote, VerifiableReward
from lightning_serl.types import Group


def group(*answers, label=None, **kwargs):
    return Group.from_texts("problem", [a if a is None else f"\\boxed{{{a}}}" for a in answers], label=label, **kwargs)


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


def test_label_else_vote_takes_the_options_of_the_vote_from_a_configuration():
    options = {"grader": "text", "mode": "exact", "ties": "abstain", "min_share": 0.5, "soft": True}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LabelElseVote, "reward")
    reward = parser.instantiate_classes(parser.parse_object({"reward": options})).reward
    assert (reward.vote.ties, reward.vote.min_share, reward.vote.soft) == ("abstain", 0.5, True)
    assert reward.vote.grader is reward.verify.grader
    assert reward.vote.grader.name == "text"
    with pytest.raises(ArgumentError, match="tie"):
        parser.parse_object({"reward": {**options, "tie": "abstain"}})


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
