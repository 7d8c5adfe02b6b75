"""What a vote could raise, from groups made by hand."""

import pytest

from lightning_serl.evaluation.trainability import half_vote, problem_votes, same_by_chance, trainability
from lightning_serl.types import Group

# (classes of the answers, share of their halves with the same majority), worked out by hand
HALVES = [
    ([0, 0, 0, 0], 1.0),
    ([0, 1, 2, 3], 0.0),
    ([-1, -1, -1, -1], 0.0),
    ([0, -1, -1, -1], 0.0),  # one readable answer among chatter is no majority
    ([0, 0, -1, -1], 5 / 6),  # all halves but the one without an answer
    ([0, 0, 1, 1], 0.0),
    ([0, 0, 0, 1], 1 / 2),  # half of the halves are tied
    ([0] * 7 + [1], 1.0),
    ([0, 0, 1, 2, 3, 4, 5, 6], 15 / 70),  # halves with both
    ([0, 0, 0, 0, 1, 2, 3, 4], 53 / 70),  # halves with at least two
    ([0], 0.0),
]


def group(*answers, cut=0):
    """Answers to a problem, None for one that cannot be read; the last ``cut`` were cut off."""
    texts = [f"\\boxed{{{a}}}" if a is not None else "?" for a in answers]
    made = Group.from_texts("?", texts, finished=[i < len(texts) - cut for i in range(len(texts))])
    known = sorted({a for a in answers if a is not None})
    made.answers = list(answers)
    made.cluster = [-1 if a is None else known.index(a) for a in answers]
    return made


def test_votes_of_halves():
    for classes, expected in HALVES:
        assert half_vote(classes) == pytest.approx(expected), classes
    drawn = half_vote([0] * 8 + [-1] * 8)  # more divisions than are looked at
    assert drawn == half_vote([0] * 8 + [-1] * 8)
    assert 0.99 < drawn <= 1.0


def test_a_problem_is_counted_by_its_responses():
    one = problem_votes(group("7", "7", "8", None, None, cut=1))
    assert (one.responses, one.unread, one.truncated, one.classes, one.vote) == (5, 1, 1, 2, "7")
    assert (one.share, one.second) == (0.4, 0.2)
    tied = problem_votes(group("7", "8"))
    assert (tied.vote, tied.share, tied.second) == (None, 0.5, 0.5)
    nothing = problem_votes(group(None, None))
    assert (nothing.vote, nothing.share, nothing.classes, nothing.unread) == (None, 0.0, 0, 2)


def test_votes_that_do_not_depend_on_the_problem_are_chance():
    assert same_by_chance(["a", "A ", "a"]) == 1.0
    assert same_by_chance(["a", "a", "b", "b"]) == pytest.approx(1 / 3)
    assert same_by_chance(["a", None]) == same_by_chance([]) == 0.0


def test_trainability_is_what_a_vote_could_move():
    half = [problem_votes(group(*[str(i)] * 4, None, None, None, None)) for i in range(4)]
    found = trainability(half)
    # one of the 70 halves has no answer
    assert found.half_vote == pytest.approx(69 / 70)
    assert found.figure == pytest.approx(0.5 * 69 / 70)
    assert (found.headroom, found.by_chance, found.error, found.problems) == (0.5, 0.0, 0.0, 4)
    nothing_to_raise = {
        "scattered": [group(*"abcdefgh"), group(*"ijklmnop")],
        "agreed": [group(*"aaaaaaaa"), group(*"bbbbbbbb")],
        "one answer to every problem": [group(*"aaaa", *[None] * 4), group(*"aaaa", *[None] * 4)],
        "no answer": [group(*[None] * 8)],
        "no problem": [],
    }
    for name, groups in nothing_to_raise.items():
        assert trainability([problem_votes(g) for g in groups]).figure == 0.0, name
