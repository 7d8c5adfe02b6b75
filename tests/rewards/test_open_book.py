"""Votes with the passage in view: which are labels, what is imitated, and why a group is left out."""

from types import SimpleNamespace

import pytest
import torch

from lightning_serl.answers import TextGrader
from lightning_serl.errors import InputError
from lightning_serl.rewards.open_book import CLOSED_BOOK, OpenBookVote, quotes
from lightning_serl.types import OPEN_BOOK, Completion, Group, Instruction, Link, Verdict

RED, BLUE = "Mira is red. So \\boxed{red}.", "So \\boxed{blue}."


def answered(texts, right=None, prompt="What is the color of Mira?", choices=None, finished=True):
    """A group with the passage in view and the run's context; ``right`` are the scores of the one without."""
    root = Instruction(prompt, "q", role=OPEN_BOOK, meta={"choices": choices} if choices else {})
    group = Group(root, (1, 2, 3), [Completion((5, 6), text, (-0.1, -0.2), finished) for text in texts])
    ctx = SimpleNamespace(grader=TextGrader(), verdicts={})
    if right is not None:
        closed = Group(Instruction(prompt, "c", link=Link(CLOSED_BOOK, "q")), (7,), [Completion((5,), "")] * len(right))
        group.links[CLOSED_BOOK, None] = [closed]
        ctx.verdicts["c"] = Verdict(torch.tensor(right))
    return group, ctx


def test_agreed_answers_are_examples_under_the_prompt_without_the_passage():
    group, ctx = answered([RED, RED, BLUE, "The text says red. So \\boxed{red}."], right=[0.0, 1.0, 0.0, 0.0])
    (verdict,) = OpenBookVote(imitate=2.0)([group], ctx)
    # three of four agree; the one that speaks of the text is left out; a quarter is known already
    assert (verdict.label, verdict.confidence, verdict.centred) == ("red", 0.75, True)
    assert verdict.scores.tolist() == [1.5, 1.5, 0.0, 0.0]
    assert verdict.weight.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert group.prompt_ids == (7,)
    # they were sampled under another prompt: their log-probs are none of this one
    assert [one.logprobs for one in group.completions] == [None] * 4
    group, ctx = answered([RED, RED, RED, BLUE], right=[0.0] * 4)
    (verdict,) = OpenBookVote(imitate=0.0)([group], ctx)
    assert (group.prompt_ids, verdict.label, verdict.scores.sum()) == ((1, 2, 3), "red", 0)


def test_why_a_problem_is_left_out():
    several = ["red", "blue", "green"]
    for texts, more, why in (
        ([RED, RED, BLUE, BLUE], {}, "low_consensus"),
        ([RED, BLUE, "\\boxed{a}", "\\boxed{b}"], {}, "low_consensus"),
        ([RED] * 4, {"prompt": "What is the color of Mira, who is red?"}, "answer_in_problem"),
        ([RED] * 4, {"prompt": "Is Mira red or blue?"}, None),
        ([RED] * 4, {"right": [1.0] * 4}, "too_easy"),
        (["As the passage states, \\boxed{red}."] * 4, {}, "needs_passage"),
    ):
        group, ctx = answered(texts, **{"right": [0.0] * 4} | more)
        (verdict,) = OpenBookVote()([group], ctx)
        assert verdict.info.get("unscored") == why, (texts, more)
        assert (verdict.weight.sum() == 0) == (why is not None)
        assert not verdict.centred or why is None  # ZeroSpread gives the reason of those that are not
    assert not quotes("Is it made of stone or of wood?", "wood")
    assert not quotes("Is Mira red?", "yes")
    assert not quotes("Who owns the owls?", "owl")
    group, ctx = answered([f"\\boxed{{{one}}}" for one in several])
    assert OpenBookVote(min_share=0.3)([group], ctx)[0].label is None  # a tie
    for options in ({"min_share": 1.1}, {"imitate": -1}):
        with pytest.raises(InputError, match=r"data\.reading\."):
            OpenBookVote(**options)
