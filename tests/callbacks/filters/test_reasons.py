"""Every reason to reject or drop, in rounds of both styles."""

from dataclasses import replace
from typing import get_args

import pytest

from lightning_serl.answers import MathGrader
from lightning_serl.callbacks import DifficultyFilter, NoveltyFilter, QualityFilter, ZeroSpread
from lightning_serl.datamodules.rounds.play import play_round
from lightning_serl.datamodules.rounds.setup import RoundOptions, RoundSetup, RoundState
from lightning_serl.datamodules.sources import InstructionSource
from lightning_serl.engines import ReplayEngine, Sampling
from lightning_serl.policy.loading import load_policy
from lightning_serl.pool import InstructionPool
from lightning_serl.prompts import SolveTemplate
from lightning_serl.rewards import MajorityVote, PairwiseVote
from lightning_serl.types import Instruction, Reason

SEED = "Ann has three pears and eats two. How many has she left?"
CHOICE_SEED = Instruction("Which of these is even?", "s", meta={"choices": ["3", "4"]})
BAND = ["\\boxed{1}", "\\boxed{1}", "\\boxed{1}", "\\boxed{2}", "\\boxed{3}"]
EDGE = ["\\boxed{1}"] * 4 + ["\\boxed{2}"]  # 4 of 5: in the band as it is written, above it in float32
EASY = ["\\boxed{1}"] * 5
HARD = [f"\\boxed{{{n}}}" for n in range(10, 15)]
SILENT = ["..."] * 5


class Written(InstructionSource):
    """A source of given problems, the last of which can be marked as cut off."""

    def __init__(self, problems, cut_off):
        self.items = [Instruction(p, "", meta={"origin": "self"}) for p in problems]
        if cut_off:
            self.items[-1] = replace(self.items[-1], meta={"origin": "self", "truncated": True})

    def propose(self, k, ctx):
        items, self.items = self.items, []
        return items


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny:base")


def outcomes(policy, style, problems, answers, cut_off=False, band=True, room=15):
    """What became of each problem, in order: a reason, ``kept`` or ``waits``."""
    engine = ReplayEngine(answers)
    engine.start(policy)
    grader = MathGrader()
    setup = RoundSetup(
        options=RoundOptions(room, 5, max_attempts=1, style=style, max_prompt_tokens=60),
        source=Written(problems, cut_off),
        engine=engine,
        policy=policy,
        rewards={"solve": PairwiseVote() if style == "serl" else MajorityVote(grader)},
        gate=MajorityVote(grader),
        grader=grader,
        grader_name="math",
        templates={"solve": SolveTemplate(plain="{problem}", answer_format="")},
        sampling=Sampling(max_tokens=20),
        instruction_filters=[QualityFilter(style), NoveltyFilter(style=style)],
        group_filters=([DifficultyFilter(low=0.25, style=style)] if band else []) + [ZeroSpread()],
    )
    events = play_round(setup, RoundState(InstructionPool([SEED])), 0).events
    ends = {e["uid"]: e.get("reason", "kept") for e in events if e["event"] in ("rejected", "dropped", "kept")}
    return [ends.get(e["uid"], "waits") for e in events if e["event"] == "proposed"]


GOOD = [
    "A baker sells nine loaves at noon. How many remain of twenty?",
    "Train B covers eighty miles per hour. How far in three hours?",
    "Find the sum of all odd numbers below thirty one.",
    "Let seven cats share a bowl of milk equally. Which part is left?",
    "Which prime number comes just after ninety seven then?",
]  # fmt: skip


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("default", ["kept", "kept", "too_easy", "too_hard", "no_answer"]),
        # 4 of 5 is above the band in float32; a text that answers nothing equals itself, and so scores like any other
        ("serl", ["kept", "too_easy", "too_easy", "too_hard", "too_hard"]),
    ],
)
def test_difficulty(policy, style, expected):
    answers = dict(zip(GOOD, (BAND, EDGE, EASY, HARD, SILENT), strict=True))
    assert outcomes(policy, style, GOOD, answers) == expected


@pytest.mark.parametrize("style", ["default", "serl"])
def test_spread_and_room(policy, style):
    answers = {p: EASY if p == GOOD[0] else BAND for p in GOOD}
    rest = "waits" if style == "default" else "no_room"
    assert outcomes(policy, style, GOOD, answers, band=False, room=4) == ["no_spread", "kept", "kept", "kept", rest]


#: What each style says of a written problem.
WRITTEN = {
    "What is 3 + 4, and what is five + 6?": ("kept", "kept"),
    "": ("empty", "empty"),
    "Add them": ("too_short", "too_short"),
    "Add " + "one and " * 160 + "two.": ("over_long_prompt", "too_long"),
    "Add " + "one and " * 400 + "two.": ("too_long", "too_long"),
    "In the figure, find the angle ABC.": ("keyword", "kept"),
    "Sketch the graph of a line through two points.": ("kept", "keyword"),
    "Write a program that adds two numbers.": ("write_a_program", "write_a_program"),
    "?!? ... !": ("punctuation", "too_short"),
    "$x + 3 = 9$ has which only root?": ("kept", "punctuation"),
    "Ünder which condition is seven even or odd?": ("kept", "non_ascii"),
    SEED: ("duplicate", "duplicate"),
    "What is two plus two? Answer: 4": ("solution_leak", "kept"),
    "Find the sum of the numbers " + "12345678901 " * 9: ("over_long_prompt", "over_long_prompt"),
    "The answer of the town is the answer of all.": ("no_question", "kept"),
    "How many is one and one? How many is two and one?": ("several_questions", "kept"),
    "How many of them are left in total?": ("no_context", "kept"),
    "Last of all, this problem is cut off in": ("truncated_item", "kept"),
}


@pytest.mark.parametrize("style", ["default", "serl"])
def test_writing(policy, style):
    answers = dict.fromkeys(WRITTEN, BAND)
    got = outcomes(policy, style, list(WRITTEN), answers, cut_off=style == "default")
    column = ("default", "serl").index(style)
    assert dict(zip(WRITTEN, got, strict=True)) == {p: ends[column] for p, ends in WRITTEN.items()}


def test_choices(policy):
    with_options = "Which of these is odd?\nA. 2\nB. 5"
    quality = QualityFilter()
    pool = InstructionPool([CHOICE_SEED])
    assert quality.reject(GOOD[0], pool) == "no_choices"
    assert quality.reject(with_options, pool) is None
    assert QualityFilter("serl").reject(GOOD[0], pool) is None


def test_every_reason_is_met_above():
    met = {end for ends in WRITTEN.values() for end in ends} - {"kept"}
    of_groups = {"too_easy", "too_hard", "no_answer", "no_spread", "stale", "no_room", "no_choices"}
    of_rewards = {"low_consensus", "no_view", "no_grade", "no_evaluation"}
    of_documents = {"needs_passage", "answer_in_problem"}  # tests/rewards/test_open_book.py
    assert met | of_groups | of_rewards | of_documents == set(get_args(Reason))
