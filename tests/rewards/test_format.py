"""The format-only control: boxes count, answers do not."""

import pytest

from lightning_serl.rewards import FormatReward
from lightning_serl.types import Group


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("\\boxed{3}", 1),
        ("So $\\boxed{\\text{none}}$.", 1),
        ("It is 3.", 0),
        ("\\boxed{}", 0),
        ("\\boxed{3", 0),
        ("<think>\\boxed{3}</think> It is 3.", 0),
        ("", 0),
    ],
)
def test_a_box_with_something_in_it(text, score):
    verdict = FormatReward()([Group.from_texts("1+2?", [text, "\\boxed{7}"], label="3")], None)[0]
    assert verdict.scores.tolist() == [score, 1]
    assert (verdict.confidence, verdict.info["no_answer"]) == ((score + 1) / 2, 1 - score)


def test_no_responses():
    assert FormatReward()([Group.from_texts("1+2?", [])], None)[0].scores.tolist() == []
