"""What is reported of how a round's answers were read."""

import pytest

from lightning_serl.answers import AutoGrader, TextGrader
from lightning_serl.evaluation.reading_report import reading_shares, unread_form
from lightning_serl.rewards import MajorityVote
from lightning_serl.types import Group


def voted(grader, *groups):
    """Groups of (problem, responses, choices), read by a vote; the last response of each was cut off."""
    made = [
        Group.from_texts(problem, [*texts, "cut"], finished=[True] * len(texts) + [False], choices=choices)
        for problem, texts, choices in groups
    ]
    MajorityVote(grader)(made, None)
    return made


def test_shares_of_kinds_and_of_unread_answers():
    groups = voted(
        AutoGrader(),
        ("How many?", ["12", "twelve", "So 12 are left."], None),
        ("Who?", ["Ada", "It is Ada."], None),
        ("Which?", ["B", "zinc", "A or B", "It depends.", "n/a"], ["iron", "zinc"]),
    )
    assert reading_shares(groups, AutoGrader()) == "math 43 %, choice 29 %, text 29 %; unread 30 %"
    assert reading_shares(voted(TextGrader(), ("Who?", ["Ada", ""], None)), TextGrader()) == "unread 50 %"
    assert reading_shares([], AutoGrader()) == "none read; unread 0 %"


@pytest.mark.parametrize(
    ("choices", "unread", "expected"),
    [
        (["iron", "zinc"], ["It depends on the case."] * 2, None),
        (
            ["iron", "zinc"],
            [f"\\boxed{{C}}, case {'x' * n}." for n in range(5)],
            "33 % of the finished answers name no single option of their problem and cannot be read: ",
        ),
        (
            None,
            [f"I do not know{'.' * n}" for n in range(5)],
            "33 % of the finished answers are words and cannot be read: ",
        ),
        (["iron", "zinc"], [""] * 4, "29 % of the finished answers are empty and cannot be read"),
    ],
)
def test_a_form_that_often_goes_unread_is_shown(choices, unread, expected):
    groups = voted(AutoGrader(), ("Which?", ["A"] * 10 + unread, choices))
    found = unread_form(groups)
    assert (found is None) == (expected is None)
    if found is not None:
        assert expected in found
        assert found.count(" | ") == (2 if unread[0] else 0)
        assert len(found) < 220
